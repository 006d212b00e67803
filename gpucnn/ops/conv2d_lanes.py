"""What the launchers of the convolutions of few channels share."""

from __future__ import annotations

from gpucnn.device import Array, address
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.tile import THREADS
from gpucnn.recording import copied

SHARED = 48 * 1024  # bytes that every GPU gives a block without being asked
BLOCKS = 264  # two for each multiprocessor of a large GPU
SCRATCH = THREADS // 2  # floats that add_lanes takes per sum


def up(a: int, b: int) -> int:
    return -(-a // b)


def lanes_over(channels: int, most: int) -> int:
    """The power of two that covers the channels, at most ``most``."""
    return min(1 << (channels - 1).bit_length(), most)


def plane_numbers(s: ConvGeometry) -> tuple[int, ...]:
    """The sizes that kernels without depth and groups take."""
    return (s.N, s.H, s.W, s.C, s.OC, s.KH, s.KW, s.OH, s.OW, s.SH, s.SW, s.PT, s.PL, s.DH, s.DW)


def aligned(a: Array, vector: int) -> Array:
    """The array, or a copy, at a multiple of as many numbers."""
    return a if address(a) % (a.itemsize * vector) == 0 else copied(a)
