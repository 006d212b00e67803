"""How a time is taken: what is checked before, on which clock, over how many samples."""
