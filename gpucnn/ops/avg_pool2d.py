"""2-D average and sum pooling: ``kernels/avg_pool2d.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import Padding, Pair, flag
from gpucnn.ops.window import (
    THREADS,
    Pool2dGeometry,
    blocks,
    pool2d_geometry,
    sum_of_cells,
    sum_of_windows,
)
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor

# geometry


@dataclass(frozen=True)
class AvgPool2dGeometry:
    """The windows, the padding below and on the right, and what a sum is divided by.

    AVERAGE: the cells that count, rather than 1. INCLUDE: the padding counts. ZERO: what lies past
    the padded image counts.
    """

    windows: Pool2dGeometry
    PB: int
    PR: int
    AVERAGE: bool
    INCLUDE: bool
    ZERO: bool

    def kernel_arguments(self) -> tuple[int, ...]:
        flags = (int(self.AVERAGE), int(self.INCLUDE), int(self.ZERO))
        return (*self.windows.values[:12], self.PB, self.PR, *flags)


def avg_pool2d_geometry(
    x: Any,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    edge: Any,
    *,
    average: bool,
    count_include_pad: Any = True,
) -> AvgPool2dGeometry:
    """Check the arguments of :func:`avg_pool2d` and :func:`sum_pool2d`, work out the sizes."""
    include = flag("count_include_pad", count_include_pad)
    windows, after = pool2d_geometry(x, kernel_size, stride, padding, 1, edge)
    return AvgPool2dGeometry(windows, *after, average, include, edge == "zero")


def _counted(
    outputs: int, stride: int, kernel: int, size: int, padding: Pair, include: bool, zero: bool
) -> Array:
    """Per window along one axis, how many of its cells count, at least 1."""
    begin = np.arange(outputs) * stride - padding[0]
    end, padded = begin + kernel, size + padding[1]
    count = np.minimum(end, padded if include else size) - (begin if include else begin.clip(0))
    return np.maximum(count + (end - padded).clip(0) if zero else count, 1)


def window_divisor(geometry: AvgPool2dGeometry, dtype: Any) -> Array:
    """What the sum of each window is divided by: (OH, OW, 1), or 1 for sums."""
    g, s = geometry, geometry.windows
    if not g.AVERAGE:
        return np.ones((), dtype)
    rows = _counted(s.OH, s.SH, s.KH, s.H, (s.PT, g.PB), g.INCLUDE, g.ZERO)
    columns = _counted(s.OW, s.SW, s.KW, s.W, (s.PL, g.PR), g.INCLUDE, g.ZERO)
    return (rows[:, None, None] * columns[:, None]).astype(dtype)


# primitives


@storing_primitive(0)
def avg_pool2d_forward(x: Array, geometry: AvgPool2dGeometry) -> Array:
    """y[n,oh,ow,c] = Σ_{kh,kw} x[n, oh·SH−PT+kh, ow·SW−PL+kw, c] / divisor(oh, ow)

    x (N,H,W,C) -> y (N,OH,OW,C). Cells outside the image add nothing; the divisor is that of
    :func:`window_divisor`.
    """
    s = geometry.windows
    y = buffers.empty((s.N, s.OH, s.OW, s.C), x.dtype)
    sum_of_cells(x, np.ones((), x.dtype), s, y)
    if geometry.AVERAGE:
        np.divide(y, window_divisor(geometry, x.dtype), out=y)
    return y


@storing_primitive(0)
def avg_pool2d_backward(dy: Array, geometry: AvgPool2dGeometry) -> Array:
    """dx[n,h,w,c] = Σ dy[n,oh,ow,c] / divisor(oh, ow) over the windows that hold (h, w)

    dy (N,OH,OW,C) -> dx (N,H,W,C): the adjoint of avg_pool2d_forward.
    """
    s = geometry.windows
    dx = buffers.empty((s.N, s.H, s.W, s.C), dy.dtype)
    sum_of_windows(dy, window_divisor(geometry, dy.dtype), s, dx)
    return dx


_kernels = KernelFile("avg_pool2d", storage=True)


@avg_pool2d_forward.kernel(native=True)
def _launch_forward(x: Array, geometry: AvgPool2dGeometry) -> Array:
    s = geometry.windows
    y = empty(x, (s.N, s.OH, s.OW, s.C), x.dtype)
    launch = _kernels.storing(x, "avg_pool2d_forward")
    launch(blocks(y.size, s.C), (THREADS,), y, x, *geometry.kernel_arguments())
    return y


@avg_pool2d_backward.kernel(native=True)
def _launch_backward(dy: Array, geometry: AvgPool2dGeometry) -> Array:
    s = geometry.windows
    dx = empty(dy, (s.N, s.H, s.W, s.C), dy.dtype)
    launch = _kernels.storing(dy, "avg_pool2d_backward")
    launch(blocks(dx.size, s.C), (THREADS,), dx, dy, *geometry.kernel_arguments())
    return dx


# tape


class AvgPool2d(Function):
    """avg_pool2d and sum_pool2d; each cell of a window gets the same share of its gradient."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, **options: Any) -> Array:
        self.geometry = avg_pool2d_geometry(x, **options)
        return self.run(avg_pool2d_forward, x, self.geometry)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(avg_pool2d_backward, dy, self.geometry),)


# public


def avg_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    edge: str = "drop",
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of an image.

    ``y[n,oh,ow,c] = Σ x[n, oh·SH − PT + kh, ow·SW − PL + kw, c] / divisor`` over kh < KH, kw < KW
    and the cells inside the image. The divisor is the rows times the columns of the window that
    count: those of the image; those of the padding if ``count_include_pad``; those past the padded
    image if edge is "zero".

    x: (N, H, W, C) float32 (float64 on cpu). kernel_size, stride (None: kernel_size): int or
    (height, width), >= 1. padding: int, (PH, PW), ((PT, PB), (PL, PR)), "valid" or "same", each
    smaller than the window. edge, for a last window that reaches past the padded image:

    - "drop": left out, ``OH = (H + PT + PB − KH) // SH + 1``;
    - "ceil": kept if it begins inside the image or before it; absent cells do not count (torch's
      ceil_mode), ``OH = ⌈(H + PT + PB − KH) / SH⌉ + 1``, or one less;
    - "zero": as many windows as "ceil"; the cells past the padded image are zeros that count.

    Returns y (N, OH, OW, C). Raises ValueError or TypeError naming the argument if a shape, dtype
    or number does not fit, also for an empty image, padding as large as the window, and a window
    larger than the padded image.

    Source: torch.nn.functional.avg_pool2d.
    """
    options = {"edge": edge, "average": True, "count_include_pad": count_include_pad}
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return cast("Tensor", AvgPool2d.apply(x, **windows, **options))


def sum_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    edge: str = "drop",
) -> Tensor:
    """The sum of each window of an image: :func:`avg_pool2d` that divides by nothing.

    ``y[n,oh,ow,c] = Σ x[n, oh·SH − PT + kh, ow·SW − PL + kw, c]`` over kh < KH, kw < KW and the
    cells inside the image. Shapes, arguments and errors as there; "ceil" and "zero" differ in
    nothing. Equal to torch.nn.functional.avg_pool2d with divisor_override=1.
    """
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    return cast("Tensor", AvgPool2d.apply(x, **windows, edge=edge, average=False))
