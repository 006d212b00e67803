"""Launchers of the convolutions of few channels: ``kernels/conv2d_direct.cu``, for images of one to
four channels, and ``kernels/conv2d_depthwise.cu``, for groups of one. Sequences are images of one
row; volumes go to the other rungs.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.reduce import launch_column_sum, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, THREADS
from gpucnn.primitive import Primitive

_SHARED = 48 * 1024  # bytes that every GPU gives a block without being asked
_BANKS = 32
_BLOCKS = 264  # of a weight gradient: two for each multiprocessor of a large GPU
_SCRATCH = THREADS // 2  # floats that add_lanes takes per sum


def _up(a: int, b: int) -> int:
    return -(-a // b)


def _lanes(channels: int, most: int) -> int:
    """The power of two that covers the channels, at most ``most``."""
    return min(1 << (channels - 1).bit_length(), most)


def _plane_numbers(s: ConvGeometry) -> tuple[int, ...]:
    return (s.N, s.H, s.W, s.C, s.OC, s.KH, s.KW, s.OH, s.OW, s.SH, s.SW, s.PT, s.PL, s.DH, s.DW)


def _add_slices(partial: Array) -> Array:
    """The sum over the first axis in a fixed order: by several threads where there are many."""
    count, *shape = partial.shape
    if count <= 64:
        return launch_sum_slices(partial, None)
    return launch_column_sum(partial.reshape(count, -1)).reshape(shape)


# images of one to four channels

RUN = 8
_TAPS = 8
_DIRECT = ((0, 0, 0), (3, 1, 1), (3, 3, 1), (5, 1, 1), (5, 3, 1), (7, 3, 2))  # KW, C, SW
_direct = KernelFile(
    "conv2d_direct",
    *({"FILTER_W": kw, "CHANNELS": c, "STEP_W": sw} for kw, c, sw in _DIRECT),
)


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
    chunks = _up(s.K, sums) if sums else 1
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
        across = _up(s.OW, RUN)
        runs = _up(across, _up(across, wanted))
        rows = max(1, min(s.OH, wanted // runs))
        rows = _up(s.OH, _up(s.OH, rows))
        yield max(1, min(s.N, wanted // (runs * rows))), rows, runs
        wanted //= 2


def _tile_of(s: ConvGeometry, backward: bool, quads: int) -> DirectTile | None:
    """The tile of blocks of ``quads`` × 4 channels, not much smaller than one run a thread."""
    index = _specialisation(s)
    sums = s.KW * (s.C if s.KW * s.C <= 9 else 1) if index else _TAPS
    if backward and quads * _up(s.K, sums) > THREADS:
        return None
    wanted = THREADS // quads
    if backward:
        wanted = max(wanted, 32)
    for images, rows, runs in _shapes(s, wanted, 1 if quads == 1 else max(1, wanted // 2)):
        lines = images * ((rows - 1) * s.SH + (s.KH - 1) * s.DH + 1)
        if 4 * lines * _staged_length(s, runs, bool(index)) > _SHARED:
            continue
        pitch = _pitch(s, rows, runs, quads, sums if backward else 0)
        floats = lines * pitch
        outputs = images * rows * runs * (RUN * min(4 * quads, s.OC) + 1) if s.OC % 4 else 0
        if backward:
            floats = max(floats + outputs, 4 * sums * _SCRATCH, 4 * quads * s.K)
        else:
            floats = max(floats + (s.K + 1) * (4 * quads + 4), outputs)  # filters and bias
        if 4 * floats <= _SHARED:
            count = _up(s.N, images) * _up(s.OH, rows) * _up(s.OW, runs * RUN)
            return DirectTile(images, rows, runs, quads, pitch, count, 4 * floats)
    return None


@functools.lru_cache(4096)
def direct_tile(s: ConvGeometry, backward: bool) -> DirectTile | None:
    """The tile of the forward pass or of the weight gradient; None if the kernel does not fit."""
    if s.dims == 3 or s.G > 1 or s.C > 4:
        return None
    quads = _lanes(_up(s.OC, 4), 16)
    while quads and _up(s.OC, 4 * quads) <= GRID_YZ:
        found = _tile_of(s, backward, quads)
        if found is not None:
            return found
        quads //= 2
    return None


def direct_fits(s: ConvGeometry) -> bool:
    """Whether ``conv2d_direct.cu`` takes a problem."""
    return direct_tile(s, False) is not None and direct_tile(s, True) is not None


def direct_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    tile = direct_tile(s, False)
    assert tile is not None
    y = empty(x, s.y_shape)
    launch = _direct["conv2d_direct_forward", _specialisation(s)]
    grid = (tile.count, _up(s.OC, 4 * tile.quads))
    numbers = (*_plane_numbers(s), *tile.numbers)
    launch(grid, (THREADS,), y, x, w, b, *numbers, shared_mem=tile.shared)
    return y


def direct_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    tile = direct_tile(s, True)
    assert tile is not None
    columns = _up(s.OC, 4 * tile.quads)
    each = _up(tile.count, min(tile.count, max(1, _BLOCKS // columns)))
    count = _up(tile.count, each)
    partial = empty(x, (count, *s.w_shape))
    launch = _direct["conv2d_direct_weight_gradient", _specialisation(s)]
    numbers = (*_plane_numbers(s), *tile.numbers, tile.count, each)
    launch((count, columns), (THREADS,), partial, dy, x, *numbers, shared_mem=tile.shared)
    return _add_slices(partial)


# groups of one channel

_RUN, _BAND = 4, 4
_DEPTHWISE = ((0, 0, 1), (0, 0, 4), (3, 1, 4), (3, 2, 4), (5, 1, 4))  # KW, SW, channels of a lane
_depthwise = KernelFile(
    "conv2d_depthwise",
    *({"FILTER_W": kw, "STEP_W": sw, "VECTOR": v} for kw, sw, v in _DEPTHWISE),
)


@dataclass(frozen=True)
class Lanes:
    """How threads share the channels of a depthwise convolution."""

    index: int  # of the specialisation
    vector: int
    lanes: int  # of a block, along the channels
    taps: int  # whose sums a thread keeps in the weight gradient
    chunks: int  # of taps

    def columns(self, channels: int) -> int:
        """Blocks along the channels."""
        return _up(channels, self.lanes * self.vector)

    def filters(self, s: ConvGeometry) -> int:
        """Bytes of the filters that a block stages, at most: those of the data gradient."""
        return 4 * (self.lanes * self.vector * s.OCG + self.vector) * s.K


@functools.lru_cache(4096)
def depthwise_lanes(s: ConvGeometry) -> Lanes | None:
    """How the channels are shared out; None if the kernel does not fit."""
    if s.dims == 3 or s.CG > 1 or s.G == 1:
        return None
    vector = 4 if s.OCG == 1 and s.C % 4 == 0 else 1
    fixed = (s.KW, s.SW, vector)
    index = _DEPTHWISE.index(fixed if s.DW == 1 and fixed in _DEPTHWISE else (0, 0, vector))
    taps = _DEPTHWISE[index][0] or 4
    chunks = s.KH * _up(s.KW, taps)
    lanes = _lanes(_up(s.OC, vector), 32)
    while True:
        found = Lanes(index, vector, lanes, taps, chunks)
        if lanes * chunks <= THREADS and found.filters(s) <= _SHARED:
            return found if found.columns(s.OC) <= GRID_YZ else None
        if lanes == 1:
            return None
        lanes //= 2


def depthwise_fits(s: ConvGeometry) -> bool:
    """Whether ``conv2d_depthwise.cu`` takes a problem."""
    return depthwise_lanes(s) is not None


def _bands(s: ConvGeometry, rows: int, columns: int, lanes: int) -> int:
    """Blocks that go through the bands of runs of rows × columns pixels."""
    return _up(s.N * _up(rows, _BAND) * _up(columns, _RUN), THREADS // lanes)


def depthwise_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    y = empty(x, s.y_shape)
    grid = (_bands(s, s.OH, s.OW, how.lanes), how.columns(s.OC))
    launch = _depthwise["conv2d_depthwise_forward", how.index]
    shared = 4 * (how.lanes + 1) * how.vector * s.K
    launch(grid, (THREADS,), y, x, w, b, *_plane_numbers(s), how.lanes, shared_mem=shared)
    return y


def depthwise_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    dx = empty(dy, s.x_shape)
    grid = (_bands(s, s.H, s.W, how.lanes), how.columns(s.C))
    launch = _depthwise["conv2d_depthwise_data_gradient", how.index]
    numbers = (*_plane_numbers(s), how.lanes)
    launch(grid, (THREADS,), dx, dy, w, *numbers, shared_mem=how.filters(s))
    return dx


def depthwise_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    runs, columns = s.N * s.OH * _up(s.OW, _RUN), how.columns(s.OC)
    lanes = THREADS // (how.lanes * how.chunks)
    each = _up(runs, max(1, min(_up(runs, 4 * lanes), _up(2 * _BLOCKS, columns))))
    count = _up(runs, each)
    partial = empty(x, (count, *s.w_shape))
    launch = _depthwise["conv2d_depthwise_weight_gradient", how.index]
    shared = 4 * max(how.taps * how.vector * _SCRATCH, how.lanes * how.vector * s.K)
    numbers = (*_plane_numbers(s), how.lanes, each)
    launch((count, columns), (THREADS,), partial, dy, x, *numbers, shared_mem=shared)
    return _add_slices(partial)


# the variants


@dataclass(frozen=True)
class FewChannels:
    """A variant of conv2d that takes some problems only, and of those perhaps not every pass."""

    name: str
    fits: Callable[[ConvGeometry], bool]
    launchers: Mapping[str, Callable[..., Array]]  # by the name of the primitive


FEW_CHANNELS = (
    FewChannels(
        "depthwise",
        depthwise_fits,
        {
            "conv2d_forward": depthwise_forward,
            "conv2d_data_gradient": depthwise_data_gradient,
            "conv2d_weight_gradient": depthwise_weight_gradient,
        },
    ),
    FewChannels(
        "direct",
        direct_fits,
        {
            "conv2d_forward": direct_forward,
            "conv2d_weight_gradient": direct_weight_gradient,
        },
    ),
)


def where_it_fits(primitive: Primitive, few: FewChannels) -> Callable[..., Array]:
    """A launcher of ``few``; what does not fit takes the default, so that whole networks train."""
    default = primitive.launchers[""]
    launcher = few.launchers.get(primitive.name, default)

    @functools.wraps(default)
    def launch(*arguments: Any) -> Array:
        chosen = launcher if few.fits(arguments[-1]) else default
        return cast("Array", chosen(*arguments))

    return launch
