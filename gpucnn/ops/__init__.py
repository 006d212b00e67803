"""One file per operator family: geometry, primitives, Function and public function, in that order."""
