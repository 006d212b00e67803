"""2-D unpooling of averages and sums: ``kernels/avg_unpool2d.cu``."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.avg_pool2d import AvgPool2dGeometry, avg_pool2d_backward, avg_pool2d_forward
from gpucnn.ops.geometry import Padding, Pair, choice
from gpucnn.ops.window import (
    THREADS,
    Pool2dGeometry,
    blocks,
    sum_of_cells,
    sum_of_windows,
    unpool2d_geometry,
)
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor

MODES = ("repeat", "spread")

# primitives


def _holders(s: Pool2dGeometry, dtype: Any) -> Array:
    """The number of windows that hold each cell, at least 1: (H, W, 1), or () where all are 1."""

    def along(size: int, outputs: int, kernel: int, stride: int, pad: int) -> Array:
        from_start = np.arange(size)[:, None] - (np.arange(outputs) * stride - pad)
        return ((from_start >= 0) & (from_start < kernel)).sum(axis=1)

    rows = along(s.H, s.OH, s.KH, s.SH, s.PT)
    columns = along(s.W, s.OW, s.KW, s.SW, s.PL)
    holders = np.maximum(rows[:, None, None] * columns[:, None], 1).astype(dtype)
    return np.ones((), dtype) if (holders == 1).all() else holders


@storing_primitive(0)
def avg_repeat_forward(x: Array, geometry: Pool2dGeometry) -> Array:
    """y[n,h,w,c] = mean of x[n,oh,ow,c] over the windows that hold (h, w), 0 where none does

    x (N,OH,OW,C) -> y (N,H,W,C).
    """
    s = geometry
    y = buffers.empty((s.N, s.H, s.W, s.C), x.dtype)
    sum_of_windows(x, np.ones((), x.dtype), s, y)
    holders = _holders(s, x.dtype)
    return np.divide(y, holders, out=y) if holders.ndim else y


@storing_primitive(0)
def avg_repeat_backward(dy: Array, geometry: Pool2dGeometry) -> Array:
    """dx[n,oh,ow,c] = Σ dy[n,h,w,c] / (windows that hold (h, w)) over the cells of the window

    dy (N,H,W,C) -> dx (N,OH,OW,C): the adjoint of avg_repeat_forward.
    """
    s = geometry
    dx = buffers.empty((s.N, s.OH, s.OW, s.C), dy.dtype)
    sum_of_cells(dy, _holders(s, dy.dtype), s, dx)
    return dx


_kernels = KernelFile("avg_unpool2d", storage=True)


@avg_repeat_forward.kernel(native=True)
def _launch_repeat_forward(x: Array, geometry: Pool2dGeometry) -> Array:
    s = geometry
    y = empty(x, (s.N, s.H, s.W, s.C), x.dtype)
    launch = _kernels.storing(x, "avg_repeat_forward")
    launch(blocks(y.size, s.C), (THREADS,), y, x, *s.values[:12])
    return y


@avg_repeat_backward.kernel(native=True)
def _launch_repeat_backward(dy: Array, geometry: Pool2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.OH, s.OW, s.C), dy.dtype)
    launch = _kernels.storing(dy, "avg_repeat_backward")
    launch(blocks(dx.size, s.C), (THREADS,), dx, dy, *s.values[:12])
    return dx


# tape


class AvgRepeat2d(Function):
    """avg_unpool2d(mode="repeat")."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, **windows: Any) -> Array:
        self.geometry, _ = unpool2d_geometry(x, **windows)
        return self.run(avg_repeat_forward, x, self.geometry)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(avg_repeat_backward, dy, self.geometry),)


class WindowsBack2d(Function):
    """The adjoint of an average or sum pooling."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, *, average: bool, whole: bool, **windows: Any) -> Array:
        s, after = unpool2d_geometry(x, **windows)
        self.geometry = AvgPool2dGeometry(s, *after, average, whole, whole)
        return self.run(avg_pool2d_backward, x, self.geometry)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(avg_pool2d_forward, dy, self.geometry),)


# public


def avg_unpool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    output_size: int | Pair | None = None,
    mode: str = "repeat",
) -> Tensor:
    """The way back from :func:`avg_pool2d`.

    mode, for a cell of the output:

    - "repeat": the mean of x over the windows that hold it. Where windows do not overlap and only
      cells of the image count, ``avg_pool2d(avg_unpool2d(x)) = x``;
    - "spread": ``Σ x / (KH·KW)`` over the windows that hold it: the adjoint of avg_pool2d that
      divides by the whole window, ``⟨avg_pool2d(a), b⟩ = ⟨a, spread(b)⟩``.

    A cell that no window holds is 0. x: (N, OH, OW, C) float32 (float64 on cpu). kernel_size,
    stride, padding, output_size: as in :func:`gpucnn.functional.max_unpool2d`. Returns
    (N, H, W, C).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit. No
    other library offers this operation; the formulas above are the convention.
    """
    choice("mode", mode, MODES)
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    windows["output_size"] = output_size
    if mode == "repeat":
        return cast("Tensor", AvgRepeat2d.apply(x, **windows))
    return cast("Tensor", WindowsBack2d.apply(x, average=True, whole=True, **windows))


def sum_unpool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    output_size: int | Pair | None = None,
    mode: str = "spread",
) -> Tensor:
    """The way back from :func:`sum_pool2d`.

    mode, for a cell of the output:

    - "spread": ``Σ x / m`` over the windows that hold it, m the cells of the window inside the
      output. Where windows do not overlap, ``sum_pool2d(sum_unpool2d(x)) = x``;
    - "repeat": ``Σ x`` over the windows that hold it: the adjoint of sum_pool2d,
      ``⟨sum_pool2d(a), b⟩ = ⟨a, repeat(b)⟩``.

    Shapes, arguments and errors as in :func:`avg_unpool2d`.
    """
    choice("mode", mode, MODES)
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    windows["output_size"] = output_size
    average = mode == "spread"
    return cast("Tensor", WindowsBack2d.apply(x, average=average, whole=False, **windows))
