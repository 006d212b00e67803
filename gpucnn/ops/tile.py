"""Launch geometry of the shared-memory tile loop in ``kernels/tile_matmul.cuh``."""

from __future__ import annotations

THREADS = 256
GRID_YZ = 65535
TILE_WIDTHS = (32, 16, 8)
SPECIALISATIONS = tuple({"TILE_GN": width} for width in TILE_WIDTHS)

BUSY_BLOCKS = 512  # keeps a large GPU busy; a constant, so that the bits do not depend on the GPU
_SLICE = 64  # terms of a sum that a block should have at least: four slabs


def tile(rows: int, columns: int) -> tuple[int, int, int]:
    """(specialisation, row tiles, column tiles) with the widest tile that the columns half fill."""
    index = 0
    while index + 1 < len(TILE_WIDTHS) and columns <= TILE_WIDTHS[index] // 2:
        index += 1
    width = TILE_WIDTHS[index]
    return index, -(-rows // (4 * THREADS // width)), -(-columns // width)


def slices(
    terms: int, blocks: int, most: int = GRID_YZ, busy: int = BUSY_BLOCKS
) -> tuple[int, int]:
    """(slices, terms of each): how to cut a sum so that ``blocks`` × slices keep a GPU busy."""
    wanted = min(-(-busy // blocks), terms // _SLICE, most)
    each = -(-terms // max(1, wanted))
    return -(-terms // each), each
