"""What networks compute and have learned, in numbers and pictures."""
