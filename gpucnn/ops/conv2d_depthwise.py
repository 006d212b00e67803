"""Launchers of ``kernels/conv2d_depthwise.cu``: convolutions in groups of one, two or four."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

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
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.reduce import empty_slices, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, THREADS

RUN, BAND = 4, 4
_MACROS = ("FILTER_W", "STEP_W", "VECTOR", "IN_GROUP", "OUT_GROUP")
# KW, SW, output channels of a lane, input and output channels of a group
_SPECIALISATIONS = (
    (0, 0, 1, 1, 1),
    (0, 0, 4, 1, 1),
    (3, 1, 4, 1, 1),
    (3, 2, 4, 1, 1),
    (5, 1, 4, 1, 1),
    (3, 1, 4, 1, 2),
    (0, 0, 4, 2, 2),
    (0, 0, 4, 4, 4),
    (3, 1, 4, 4, 4),
    (3, 2, 4, 4, 4),
)
_depthwise = KernelFile(
    "conv2d_depthwise",
    *(dict(zip(_MACROS, given, strict=True)) for given in _SPECIALISATIONS),
    storage=True,
)


@dataclass(frozen=True)
class Lanes:
    """How threads share the channels of a problem."""

    index: int  # of the specialisation
    vector: int
    lanes: int  # of a block, along the channels
    taps: int  # of a filter row, of which a thread keeps the sums in the weight gradient
    chunks: int  # of taps

    def columns(self, s: ConvGeometry) -> int:
        """Blocks along the output channels."""
        return up(s.OC, self.lanes * self.vector)

    def inputs(self, s: ConvGeometry) -> int:
        """Input channels whose outputs a block of the data gradient holds, with one a lane.

        Sectors of eight outputs are not split where half of the lanes can be kept.
        """
        most = max(1, self.lanes // s.OCG)
        whole = most - most % (8 // math.gcd(8, s.OCG))
        return whole if 2 * whole * s.OCG >= self.lanes else most

    def filters(self, s: ConvGeometry, backward: bool) -> int:
        """Bytes that a block of the forward pass or of the data gradient stages."""
        if self.vector == 4 or not backward:
            return 4 * (self.lanes + 1) * self.vector * s.K
        parts = THREADS * (RUN + 1) if s.OCG > 1 else 0
        return 4 * ((self.inputs(s) * s.OCG + 1) * s.K + parts)


def _index(s: ConvGeometry) -> int | None:
    """The specialisation of a problem; None if there is none."""
    generic = _SPECIALISATIONS.index((0, 0, 1, 1, 1)) if s.CG == 1 else None
    if s.OC % 4:
        return generic
    found = [(s.KW, s.SW), (0, 0)] if s.DW == 1 and s.KH <= s.KW else [(0, 0)]
    for kw, sw in found:
        if (kw, sw, 4, s.CG, s.OCG) in _SPECIALISATIONS:
            return _SPECIALISATIONS.index((kw, sw, 4, s.CG, s.OCG))
    return generic


@functools.lru_cache(4096)
def depthwise_lanes(s: ConvGeometry) -> Lanes | None:
    """How the channels are shared out; None if the kernel does not fit."""
    index = None if s.dims == 3 or s.G == 1 else _index(s)
    if index is None:
        return None
    kw, _, vector, _, _ = _SPECIALISATIONS[index]
    taps = kw or 4
    chunks = s.KH * up(s.KW, taps)
    lanes = lanes_over(up(s.OC, vector), 32)
    while True:
        found = Lanes(index, vector, lanes, taps, chunks)
        staged = max(found.filters(s, False), found.filters(s, True))
        sums = 4 * lanes * vector * s.K
        if lanes * chunks <= THREADS and max(staged, sums) <= SHARED:
            fits = max(found.columns(s), up(s.C, found.inputs(s)) if vector == 1 else 1) <= GRID_YZ
            return found if fits else None
        if lanes == 1:
            return None
        lanes //= 2


def depthwise_takes(primitive: str, s: ConvGeometry) -> bool:
    """Whether the kernels take a problem: all its passes, or none."""
    return depthwise_lanes(s) is not None


def _strip(columns: int, lanes: int) -> int:
    """Runs side by side by which a block owns about a square of pixels."""
    across = up(columns, RUN)
    return up(across, max(1, round(across / math.sqrt(THREADS // lanes))))


def _bands(s: ConvGeometry, rows: int, columns: int, lanes: int, strip: int) -> int:
    """Blocks that go through the bands of runs of rows × columns pixels."""
    runs = up(up(columns, RUN), strip) * strip
    return up(s.N * up(rows, BAND) * runs, THREADS // lanes)


def depthwise_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    y, strip = empty(x, s.y_shape, x.dtype), _strip(s.OW, how.lanes)
    grid = (_bands(s, s.OH, s.OW, how.lanes, strip), how.columns(s))
    launch = _depthwise.storing(x, "conv2d_depthwise_forward", how.index)
    given = (aligned(x, how.vector), w, None if b is None else aligned(b, how.vector))
    numbers = (*s.once(plane_numbers), how.lanes, strip)
    launch(grid, (THREADS,), y, *given, *numbers, shared_mem=how.filters(s, False))
    return y


def depthwise_gather(dy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """The data gradient, with a bias: also the forward pass of a transposed convolution."""
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    dx, strip = empty(dy, s.x_shape, dy.dtype), _strip(s.W, how.lanes)
    columns = how.columns(s) if how.vector == 4 else up(s.C, how.inputs(s))
    grid = (_bands(s, s.H, s.W, how.lanes, strip), columns)
    launch = _depthwise.storing(dy, "conv2d_depthwise_data_gradient", how.index)
    given = (aligned(dy, how.vector), w, None if b is None else aligned(b, how.vector))
    numbers = (*s.once(plane_numbers), how.lanes, strip, how.inputs(s))
    launch(grid, (THREADS,), dx, *given, *numbers, shared_mem=how.filters(s, True))
    return dx


def depthwise_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    return depthwise_gather(dy, w, None, geometry)


def depthwise_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    how = depthwise_lanes(s)
    assert how is not None
    runs, columns = s.N * s.OH * up(s.OW, RUN), how.columns(s)
    lanes = THREADS // (how.lanes * how.chunks)
    each = up(runs, max(1, min(up(runs, 4 * lanes), up(2 * BLOCKS, columns))))
    count = up(runs, each)
    partial = empty_slices(x, count, s.w_shape)
    launch = _depthwise.storing(x, "conv2d_depthwise_weight_gradient", how.index)
    sums = how.taps * s.CG * how.vector * SCRATCH
    shared = 4 * max(sums, how.lanes * how.vector * s.K)
    given = (aligned(dy, how.vector), aligned(x, how.vector))
    numbers = (*s.once(plane_numbers), how.lanes, each)
    launch((count, columns), (THREADS,), partial, *given, *numbers, shared_mem=shared)
    return launch_sum_slices(partial, None)
