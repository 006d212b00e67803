"""Somebody's own kernel in the place of ours: ``gpucnn check``."""
