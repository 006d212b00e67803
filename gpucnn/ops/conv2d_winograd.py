"""Launchers of ``kernels/conv2d_winograd.cu``: 3×3 convolutions by Winograd's F(2×2, 3×3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.conv2d_few_channels import FewChannels
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.tile import GRID_YZ, THREADS
from gpucnn.signature import MAX_ELEMENTS

# What a block computes, as in the kernel file: tiles of 2×2 outputs, filters, channels of a slab.
TILES, FILTERS, SLAB = 64, 32, 4
POINTS = 16
BLOCK_THREADS = 512
SHARED = 64 * 1024  # bytes, which a block finds on every GPU
_PIECES = 252  # of the even columns of the staged cells, and of the odd ones
_BANKS = 8  # of 16 bytes
_MEETING = 64  # pieces that take as long to stage as eight tiles that meet in a bank once

_kernels = KernelFile("conv2d_winograd")


def _up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class TileBlock:
    """The tiles of a block, images × rows × columns, and how their cells lie in shared memory."""

    images: int
    rows: int
    columns: int
    row_pitch: int  # pieces of four channels between rows of a column
    image_pitch: int
    across: int  # blocks that cover the width of an image
    down: int
    count: int  # blocks that cover the batch

    @property
    def pieces(self) -> int:
        """Of the even columns: two for each tile, and the halo."""
        return self.images * (2 * self.rows + 2) * (self.columns + 1)

    @property
    def numbers(self) -> tuple[int, ...]:
        shape = (self.images, self.rows, self.columns, self.row_pitch, self.image_pitch)
        return *shape, self.across, self.down


def _meetings(block: TileBlock) -> int:
    """How often eight tiles that are transformed at once meet in a bank."""
    at = [
        image * block.image_pitch + 2 * row * block.row_pitch + column
        for image in range(block.images)
        for row in range(block.rows)
        for column in range(block.columns)
    ]
    eights = (at[i : i + 8] for i in range(0, len(at), 8))
    return sum(max(Counter(piece % _BANKS for piece in eight).values()) - 1 for eight in eights)


def _pitched(N: int, high: int, wide: int, shape: tuple[int, int, int]) -> Iterator[TileBlock]:
    """The blocks of images × rows × columns tiles whose pieces fit, by their pitches."""
    images, rows, columns = shape
    across, down = _up(wide, columns), _up(high, rows)
    count = _up(N, images) * down * across
    high = 2 * rows + 2
    for row in range(columns + 1, columns + 1 + _BANKS):
        for image in range(high * row, high * row + _BANKS if images > 1 else high * row + 1):
            if images * image <= _PIECES:
                yield TileBlock(*shape, row, image, across, down, count)


def tile_block(N: int, OH: int, OW: int) -> TileBlock:
    """The block that covers a batch of outputs in the fewest, then with the least to read."""
    high, wide = _up(OH, 2), _up(OW, 2)
    shapes: dict[int, list[tuple[int, int, int]]] = {}  # by the blocks that cover the batch
    for rows in range(1, min(high, TILES) + 1):
        for columns in range(1, min(wide, TILES // rows) + 1):
            pieces = (2 * rows + 2) * (columns + 1)
            images = min(N, TILES // (rows * columns), _PIECES // pieces)
            if images:
                count = _up(N, images) * _up(high, rows) * _up(wide, columns)
                shapes.setdefault(count, []).append((images, rows, columns))
    fewest = shapes[min(shapes)]
    blocks = (block for shape in fewest for block in _pitched(N, high, wide, shape))
    return min(blocks, key=lambda block: (block.pieces + _MEETING * _meetings(block), block.pieces))


def _filter_floats(G: int, outputs: int, inputs: int) -> int:
    """Numbers of the transformed filters, padded to whole blocks and pairs of slabs."""
    return G * POINTS * _up(outputs, FILTERS) * FILTERS * _up(inputs, 2 * SLAB) * 2 * SLAB


def winograd_fits(s: ConvGeometry) -> bool:
    """Whether ``conv2d_winograd.cu`` takes a problem: its forward pass and its data gradient."""
    return s.once(_fits)


def _fits(s: ConvGeometry) -> bool:
    if s.dims != 2 or (s.KH, s.KW) != (3, 3) or (s.SH, s.SW, s.DH, s.DW) != (1, 1, 1, 1):
        return False
    filters = max(_filter_floats(s.G, s.OCG, s.CG), _filter_floats(s.G, s.CG, s.OCG))
    return s.adjoint() is not None and s.G <= GRID_YZ and filters <= MAX_ELEMENTS


@dataclass(frozen=True)
class _Launches:
    """How a problem is launched."""

    floats: int  # of the transformed filters
    filter_blocks: int
    blocks: int
    numbers: tuple[int, ...]


def _launches(s: ConvGeometry) -> _Launches:
    block, filter_tiles = tile_block(s.N, s.OH, s.OW), _up(s.OCG, FILTERS)
    sizes = (s.N, s.H, s.W, s.CG, s.OCG, s.OH, s.OW, s.PT, s.PL, filter_tiles)
    return _Launches(
        _filter_floats(s.G, s.OCG, s.CG),
        filter_tiles * _up(s.CG, 2 * SLAB),
        filter_tiles * block.count,
        (*sizes, *block.numbers),
    )


def _convolve(x: Array, w: Array, b: Array | None, s: ConvGeometry, turned: bool) -> Array:
    """s: of what is computed; w: of the forward pass, also where its turned filters are meant."""
    how = s.once(_launches)
    u = empty(x, (how.floats,))
    launch = _kernels["conv2d_winograd_filters"]
    grid = (how.filter_blocks, s.G)
    launch(grid, (THREADS,), u, w, w.shape[0], w.shape[-1], s.G, int(turned))
    y = empty(x, s.y_shape)
    launch = _kernels["conv2d_winograd_forward"]
    grid = (how.blocks, s.G)
    launch(grid, (BLOCK_THREADS,), y, x, u, b, *how.numbers, shared_mem=SHARED)
    return y


def winograd_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    return _convolve(x, w, b, geometry, turned=False)


def winograd_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    adjoint = geometry.adjoint()
    assert adjoint is not None
    return _convolve(dy, w, None, adjoint, turned=True)


WINOGRAD = FewChannels(
    "winograd",
    lambda primitive, s: winograd_fits(s),
    {"conv2d_forward": winograd_forward, "conv2d_data_gradient": winograd_data_gradient},
    storage=False,
)
