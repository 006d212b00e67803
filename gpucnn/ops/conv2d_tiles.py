"""Tiles of the pipelined convolutions, and how their sums are cut into slices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpucnn.kernel import Macros
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.tile import GRID_YZ

SLAB = 32  # terms of the sums that a block multiplies at once; 64 where they lie in bfloat16
_LEAST_TERMS = 256  # of a slice: several slabs, so that filling the pipeline is not most of it
_PLACE = 16  # bytes of a Place of gemm_pipeline.cuh, in static shared memory


@dataclass(frozen=True)
class Tile:
    """What one block computes: rows × columns, shared out to warps."""

    rows: int
    columns: int
    warps_m: int
    warps_n: int
    resident: int  # blocks that a multiprocessor should hold, for __launch_bounds__
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    def ring(self, by_rows: bool) -> int:
        """Bytes of dynamic shared memory: the slabs of pipeline_rows, or of pipeline_columns.

        32 floats to a row, or as many bytes of bfloat16.
        """
        return 4 * self.stages * (self.rows + self.columns + (0 if by_rows else 16)) * 32

    def fits(self, shared: int, by_rows: bool) -> bool:
        """Whether a block finds its memory: the ring, and places of its rows or of two slabs."""
        return self.ring(by_rows) + _PLACE * (self.rows if by_rows else 2 * 64) <= shared

    def macros(self, arithmetic: Macros, vector: int, dims: int) -> dict[str, int]:
        return {
            "TILE_GM": self.rows,
            "TILE_GN": self.columns,
            "WARPS_M": self.warps_m,
            "WARPS_N": self.warps_n,
            "RESIDENT_BLOCKS": self.resident,
            "STAGES": self.stages,
            "VECTOR": vector,
            "DIMS": dims,
            **arithmetic,
        }

    def __str__(self) -> str:
        return f"{self.rows}×{self.columns}"


# Tiles by the columns of the product (output channels of a group): the first one that makes
# BUSY_BLOCKS is taken, else the last. Wide tiles multiply more per number read, narrow ones occupy
# more of the GPU. ``gpucnn tune`` measures where these rules of thumb are wrong.
TILES: tuple[tuple[float, tuple[str, ...]], ...] = (
    (16, ("128×16",)),
    (32, ("128×32",)),
    (64, ("128×64", "64×64")),
    (math.inf, ("256×128", "128×128", "128×64", "64×64")),
)
BUSY_BLOCKS = 264  # two for each multiprocessor of a large GPU


def phases_of(s: ConvGeometry) -> tuple[int, int]:
    """The phases of the input pixels against the strides, and the pixels of the largest."""
    axes = ((s.D, s.SD), (s.H, s.SH), (s.W, s.SW))
    phases = math.prod(min(size, stride) for size, stride in axes)
    return phases, s.N * math.prod(-(-size // stride) for size, stride in axes)


def gathered_terms(s: ConvGeometry) -> int:
    """Terms of the longest sum of the data gradient: its phase reads the most taps."""

    def taps(size: int, count: int, stride: int, pad: int, dilation: int) -> int:
        phases = range(min(size, stride))
        return max(
            sum((p + pad - t * dilation) % stride == 0 for t in range(count)) for p in phases
        )

    deep = taps(s.D, s.KD, s.SD, s.PF, s.DD)
    return s.OCG * deep * taps(s.H, s.KH, s.SH, s.PT, s.DH) * taps(s.W, s.KW, s.SW, s.PL, s.DW)


def whole(terms: int) -> int:
    """Terms rounded up to whole slabs."""
    return -(-terms // SLAB) * SLAB


def _k_slices(rows: int, columns: int, terms: int, groups: int) -> tuple[int, int]:
    """(slices, terms of each, whole slabs) of the sums of a product with few outputs.

    Not by the tile that fits the GPU, on which the bits must not depend.
    """
    blocks = -(-rows // 64) * -(-columns // 64) * groups
    if blocks >= BUSY_BLOCKS // 2:
        return 1, whole(terms)
    most = max(1, min(terms // _LEAST_TERMS, GRID_YZ // groups))
    each = whole(-(-terms // min(most, -(-BUSY_BLOCKS // blocks))))
    return -(-terms // each), each


def forward_slices(s: ConvGeometry) -> tuple[int, int]:
    return _k_slices(s.outputs, s.OCG, s.K, s.G)


def gather_slices(s: ConvGeometry) -> tuple[int, int]:
    phases, largest = s.once(phases_of)
    return _k_slices(phases * largest, s.CG, s.once(gathered_terms), s.G)
