"""Launchers of the convolutions with few channels on one side: ``kernels/conv2d_direct.cu``, from
images of one to four channels, and ``kernels/conv2d_direct_to_few.cu``, to such images.

With a stride of 1 a convolution to few channels is, backwards, one from few: its gradients take
``conv2d_direct.cu`` with the roles exchanged.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gpucnn.arrivals import chunk_arrivals
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.conv2d_lanes import (
    BLOCKS,
    SCRATCH,
    SHARED,
    aligned,
    lanes_over,
    plane_numbers,
    up,
)
from gpucnn.ops.conv2d_pipeline import ACTIVATIONS
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.reduce import empty_slices, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, THREADS

RUN = 8
FEW = 4
_BANKS = 32
_TAPS = 8
_MOST_TILES = 4  # of a block, enough to forget how long its filters took
_DIRECT = ((0, 0, 0), (3, 1, 1), (3, 3, 1), (5, 1, 1), (5, 3, 1), (7, 3, 2))  # KW, C, SW
_direct = KernelFile(
    "conv2d_direct",
    *({"FILTER_W": kw, "CHANNELS": c, "STEP_W": sw} for kw, c, sw in _DIRECT),
    storage=True,
)


def _tiles_each(tiles: int) -> int:
    """Tiles of a block, where blocks go from tile to tile with the same filters."""
    return max(1, min(_MOST_TILES, tiles // (2 * BLOCKS)))


# from few channels


@dataclass(frozen=True)
class DirectTile:
    """What a block takes: images × rows × runs of 8 pixels, by ``quads`` of four channels."""

    images: int
    rows: int
    runs: int
    quads: int
    pitch: int  # floats between staged rows
    count: int  # tiles of the batch
    shared: int  # bytes

    @property
    def numbers(self) -> tuple[int, ...]:
        return self.images, self.rows, self.runs, self.quads, self.pitch


def _specialisation(s: ConvGeometry) -> int:
    wanted = (s.KW, s.C, s.SW)
    return _DIRECT.index(wanted) if s.DW == 1 and wanted in _DIRECT else 0


def _staged_length(s: ConvGeometry, runs: int, fixed: bool) -> int:
    floats = ((runs * RUN - 1) * s.SW + (s.KW - 1) * s.DW + 1) * s.C
    return floats + (floats - 1) // (RUN * s.SW * s.C) if fixed else floats


def _pitch(s: ConvGeometry, rows: int, runs: int, quads: int, sums: int) -> int:
    """The pitch of staged rows by which the threads of a warp meet in the fewest banks.

    sums: the taps whose sums a thread keeps, 0 in the forward pass.
    """
    fixed = bool(_specialisation(s))
    least = _staged_length(s, runs, fixed)
    step = RUN * s.SW * s.C + 1 if fixed else s.SW * s.C
    chunks = up(s.K, sums) if sums else 1
    threads = min(THREADS, rows * runs * quads * chunks)

    def place(thread: int, pitch: int) -> int:
        run, tap = thread // (quads * chunks), thread // quads % chunks * sums
        row = run // runs % rows * s.SH + tap // (s.KW * s.C) * s.DH
        return row * pitch + run % runs * step + tap // s.C % s.KW * s.DW * s.C + tap % s.C

    def worst(pitch: int) -> int:
        most = 0
        for first in range(0, threads, _BANKS):
            words = {place(t, pitch) for t in range(first, min(first + _BANKS, threads))}
            most = max(most, *Counter(word % _BANKS for word in words).values())
        return most

    return min(range(least, least + _BANKS), key=worst)


def _shapes(s: ConvGeometry, wanted: int, least: int) -> Iterator[tuple[int, int, int]]:
    """(images, rows, runs) of tiles of about ``wanted`` runs, the largest first."""
    while wanted >= least:
        across = up(s.OW, RUN)
        runs = up(across, up(across, wanted))
        rows = max(1, min(s.OH, wanted // runs))
        rows = up(s.OH, up(s.OH, rows))
        yield max(1, min(s.N, wanted // (runs * rows))), rows, runs
        wanted //= 2


def _tile_of(s: ConvGeometry, backward: bool, quads: int) -> DirectTile | None:
    """The tile of blocks of ``quads`` × 4 channels, not much smaller than one run a thread."""
    index = _specialisation(s)
    sums = s.KW * (s.C if s.KW * s.C <= 9 else 1) if index else _TAPS
    if backward and quads * up(s.K, sums) > THREADS:
        return None
    wanted = THREADS // quads
    if backward:
        wanted = max(wanted, 32)
    for images, rows, runs in _shapes(s, wanted, 1 if quads == 1 else max(1, wanted // 2)):
        lines = images * ((rows - 1) * s.SH + (s.KH - 1) * s.DH + 1)
        if 4 * lines * _staged_length(s, runs, bool(index)) > SHARED:
            continue
        pitch = _pitch(s, rows, runs, quads, sums if backward else 0)
        floats = lines * pitch
        outputs = images * rows * runs * (RUN * min(4 * quads, s.OC) + 1) if s.OC % 4 else 0
        if backward:
            floats = max(floats + outputs, 4 * sums * SCRATCH, 4 * quads * s.K)
        else:
            floats = max(floats + (s.K + 1) * (4 * quads + 4), outputs)  # filters and bias
        if 4 * floats <= SHARED:
            count = up(s.N, images) * up(s.OH, rows) * up(s.OW, runs * RUN)
            return DirectTile(images, rows, runs, quads, pitch, count, 4 * floats)
    return None


@functools.lru_cache(4096)
def direct_tile(s: ConvGeometry, backward: bool) -> DirectTile | None:
    """The tile of the forward pass or of the weight gradient; None if the kernel does not fit."""
    if s.dims == 3 or s.G > 1 or s.C > 4:
        return None
    quads = lanes_over(up(s.OC, 4), 16)
    while quads and up(s.OC, 4 * quads) <= GRID_YZ:
        found = _tile_of(s, backward, quads)
        if found is not None:
            return found
        quads //= 2
    return None


def _launch_from_few(
    x: Array,
    w: Array,
    b: Array | None,
    s: ConvGeometry,
    y_shape: tuple[int, ...],
    exchanged: bool,
    activation: int = 0,
    negative_slope: float = 0.0,
    running: tuple[Array | None, Array | None] = (None, None),
    join: tuple[float, float] | None = None,
) -> tuple[Array, tuple[Array, Array] | None]:
    """y, and with join (momentum, eps) the mean and 1 / deviation of its channels."""
    tile = direct_tile(s, False)
    assert tile is not None
    y = empty(x, y_shape, x.dtype)
    launch = _direct.storing(x, "conv2d_direct_forward", _specialisation(s))
    columns = up(s.OC, 4 * tile.quads)
    each = _tiles_each(tile.count * columns) if s.OC % 4 == 0 else 1  # else outputs replace filters
    grid = (up(tile.count, each), columns)
    numbers = (*s.once(plane_numbers), *tile.numbers, tile.count, each, exchanged)
    left: Any = (None,) * 6
    if join is not None:
        C, blocks = s.OC, grid[0]
        made = empty(x, (4, C, blocks)), chunk_arrivals(x, columns, blocks)
        left = empty(x, (C,)), empty(x, (C,)), *running, *made
    through = (activation, negative_slope, *(join or (0.0, 0.0)))
    launch(grid, (THREADS,), y, *left, x, w, b, *numbers, *through, shared_mem=tile.shared)
    return y, None if join is None else left[:2]


def _launch_weight_gradient(
    dy: Array, x: Array, s: ConvGeometry, w_shape: tuple[int, ...], exchanged: bool
) -> Array:
    tile = direct_tile(s, True)
    assert tile is not None
    columns = up(s.OC, 4 * tile.quads)
    each = up(tile.count, min(tile.count, max(1, BLOCKS // columns)))
    count = up(tile.count, each)
    partial = empty_slices(x, count, w_shape)
    launch = _direct.storing(x, "conv2d_direct_weight_gradient", _specialisation(s))
    numbers = (*s.once(plane_numbers), *tile.numbers, tile.count, each, exchanged)
    launch((count, columns), (THREADS,), partial, dy, x, *numbers, shared_mem=tile.shared)
    return launch_sum_slices(partial, None)


# to few channels

_SIDE = 6  # words of a Side
_to_few = KernelFile("conv2d_direct_to_few", {"VECTOR": 1}, {"VECTOR": 4}, storage=True)


@dataclass(frozen=True)
class ToFew:
    """What a block takes: tiles of images × rows × runs of 8 pixels, by ``lanes`` × vector."""

    vector: int
    images: int
    rows: int
    runs: int
    lanes: int
    down: int  # tiles of an image, or of its largest phase
    across: int
    each: int  # tiles of a block
    taps: int  # rows of the filter, or of its largest phase
    blocks: int
    shared: int  # bytes

    @property
    def numbers(self) -> tuple[int, ...]:
        tile = self.images, self.rows, self.runs, self.lanes
        return *tile, self.down, self.across, self.each, self.taps


def _tile_to_few(s: ConvGeometry, backward: bool, runs: int) -> tuple[int, int, int]:
    """(images, rows, runs) of a tile of at most ``runs``, by which the batch reads the least."""
    high, wide = (up(s.H, s.SH), up(s.W, s.SW)) if backward else (s.OH, s.OW)
    steps = (1, 1) if backward else (s.SH, s.SW)
    reach = (s.KH - 1) * s.DH, (s.KW - 1) * s.DW
    if backward:
        reach = reach[0] // s.SH, reach[1] // s.SW

    def cost(tile: tuple[int, int, int]) -> int:
        images, rows, along = tile
        tiles = up(s.N, images) * up(high, rows) * up(wide, along * RUN)
        read = images * (rows * steps[0] + reach[0]) * (along * RUN * steps[1] + reach[1])
        return tiles * (read + runs * RUN)

    found = []
    for along in range(1, min(runs, up(wide, RUN)) + 1):
        rows = min(high, runs // along)
        found.append((min(s.N, runs // (along * rows)), rows, along))
    return min(found, key=cost)


@functools.lru_cache(4096)
def to_few(s: ConvGeometry, backward: bool) -> ToFew | None:
    """The work of the forward pass or of the data gradient; None if the kernel does not fit."""
    few, many = (s.C, s.OC) if backward else (s.OC, s.C)
    if s.dims == 3 or s.G > 1 or few > FEW:
        return None
    vector = 4 if many % 4 == 0 else 1
    taps, phases, step = s.KH, 1, 1  # rows of the filter in a phase, phases of rows and columns
    if backward:
        taps, phases, step = up(s.KH, s.SH // math.gcd(s.SH, s.DH)), min(s.SH, s.H), s.SW

    def filters(lanes: int) -> int:
        return up(_SIDE * (step + 1), 4) * 4 + taps * s.KW * few * (lanes + 1) * vector

    def most_runs(lanes: int) -> int:
        return min(THREADS // lanes, (SHARED // 4 - filters(lanes)) // (RUN * step * few))

    widest = lanes_over(up(many, vector), 32)
    lanes = max((widest >> i for i in range(widest.bit_length())), key=lambda n: n * most_runs(n))
    if most_runs(lanes) < 1:
        return None
    images, rows, runs = _tile_to_few(s, backward, most_runs(lanes))
    high, wide = (up(s.H, s.SH), up(s.W, s.SW)) if backward else (s.OH, s.OW)
    down, across = up(high, rows), up(wide, runs * RUN)
    tiles = up(s.N, images) * down * across
    each = _tiles_each(tiles * phases)
    blocks = up(tiles, each) * phases
    shared = 4 * (filters(lanes) + images * rows * runs * RUN * step * few)
    return ToFew(vector, images, rows, runs, lanes, down, across, each, taps, blocks, shared)


def _launch_to_few(
    x: Array,
    w: Array,
    b: Array | None,
    s: ConvGeometry,
    y_shape: tuple[int, ...],
    backward: bool,
) -> Array:
    work = to_few(s, backward)
    assert work is not None
    y = empty(x, y_shape, x.dtype)
    launch = _to_few.storing(x, "conv2d_direct_to_few", int(work.vector == 4))
    sides = (s.H, s.W, s.C), (s.OH, s.OW, s.OC)
    of_y, of_x = sides if backward else sides[::-1]
    filters = (s.KH, s.KW, s.SH, s.SW, s.PT, s.PL, s.DH, s.DW)
    numbers = (s.N, *of_y, *of_x, *filters, *work.numbers, backward)
    x = aligned(x, work.vector)
    launch((work.blocks,), (THREADS,), y, x, w, b, *numbers, shared_mem=work.shared)
    return y


# the passes


def _from_few(s: ConvGeometry, backward: bool) -> bool:
    return direct_tile(s, backward) is not None


def _exchanged(s: ConvGeometry) -> ConvGeometry | None:
    """The convolution from few channels whose passes are the gradients of one to few."""
    return s.exchanged() if s.G == 1 and s.OC <= FEW and s.dims < 3 else None


def direct_takes(primitive: str, s: ConvGeometry) -> bool:
    """Whether a kernel of this module takes a pass of a problem."""
    other = _exchanged(s)
    if primitive == "conv2d_forward":
        return _from_few(s, False) or to_few(s, False) is not None
    backward = primitive == "conv2d_weight_gradient"
    if other is not None and _from_few(other, backward):
        return True
    return _from_few(s, True) if backward else to_few(s, True) is not None


def direct_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    if _from_few(geometry, False):
        return _launch_from_few(x, w, b, geometry, geometry.y_shape, False)[0]
    return _launch_to_few(x, w, b, geometry, geometry.y_shape, False)


def direct_activates(geometry: ConvGeometry) -> bool:
    """Whether the forward pass of a problem is that of :func:`direct_activated`."""
    return _from_few(geometry, False)


def direct_activated(
    x: Array,
    w: Array,
    b: Array | None,
    geometry: ConvGeometry,
    activation: str,
    slope: float,
    running: tuple[Array | None, Array | None],
    join: tuple[float, float] | None,
) -> tuple[Array, tuple[Array, Array] | None]:
    """The forward pass and an activation, from few channels; with join as in
    :func:`~gpucnn.ops.conv2d_fused.conv2d_fused_forward`.
    """
    through = (ACTIVATIONS.index(activation), slope, running, join)
    return _launch_from_few(x, w, b, geometry, geometry.y_shape, False, *through)


def direct_gather(dy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """The data gradient, with a bias: also the forward pass of a transposed convolution."""
    s, other = geometry, _exchanged(geometry)
    if other is not None and _from_few(other, False):
        return _launch_from_few(dy, w, b, other, s.x_shape, True)[0]
    return _launch_to_few(dy, w, b, s, s.x_shape, True)


def direct_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    return direct_gather(dy, w, None, geometry)


def direct_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s, other = geometry, _exchanged(geometry)
    if _from_few(s, True):
        return _launch_weight_gradient(dy, x, s, s.w_shape, False)
    assert other is not None
    return _launch_weight_gradient(x, dy, other, s.w_shape, True)
