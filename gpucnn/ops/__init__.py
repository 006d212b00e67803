"""One file per operator family: geometry, primitives, tape, public function, in that order."""
