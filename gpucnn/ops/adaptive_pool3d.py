"""3-D adaptive and global pooling: the planes of a volume as images, then along depth."""

from __future__ import annotations

from typing import Any, cast

from gpucnn.device import Array
from gpucnn.ops.adaptive_pool2d import (
    AdaptivePool2dGeometry,
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    adaptive_max_pool2d_backward,
    adaptive_max_pool2d_forward,
    check_regions,
    output_sizes,
)
from gpucnn.ops.geometry import MAX_SIZE, flag, same_float_dtype
from gpucnn.ops.pool3d import JoinGeometry, max_pool3d_join, volume_shape
from gpucnn.tensor import Function, Tensor, check_tensor

Sizes = int | tuple[int | None, int | None, int | None]

# geometry


def _sizes(x: Any, output_size: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The checked (N, D, H, W, C) and (OD, OH, OW) of an adaptive pooling."""
    shape = volume_shape(x)
    same_float_dtype(x=x)
    wanted = output_sizes(output_size, shape[1:4])
    check_regions(wanted, shape[1:4])
    return shape, wanted


# tape


class AdaptiveMaxPool3d(Function):
    """adaptive_max_pool3d; its gradient goes to the cells that won."""

    batched = (0,)

    def forward(self, x: Array, *, output_size: Any) -> tuple[Array, Array]:
        (N, D, H, W, C), (OD, OH, OW) = _sizes(x, output_size)
        if D * H * W > MAX_SIZE:
            raise ValueError(f"x: {D} x {H} x {W} cells are more than an int32 index can name")
        p = self.planes = AdaptivePool2dGeometry(N * D, H, W, C, OH, OW)
        d = self.depth = AdaptivePool2dGeometry(N, D, 1, OH * OW * C, OD, 1)
        planes, inner = self.run(adaptive_max_pool2d_forward, x.reshape(p.N, p.H, p.W, p.C), p)
        columns = planes.reshape(d.N, d.H, d.W, d.C)
        best, outer = self.run(adaptive_max_pool2d_forward, columns, d)
        join = JoinGeometry(N, D, H, W, C, OD, OH, OW, OD, OH, OW)
        y, indices, _ = self.run(max_pool3d_join, best, inner, outer, join)
        if self.recording:
            self.shape, self.inner, self.outer = x.shape, inner, outer
        return y, indices

    def backward(self, dy: Array, *_: None) -> tuple[Array]:
        p, d = self.planes, self.depth
        dy = dy.reshape(d.N, d.OH, d.OW, d.C)
        columns = self.run(adaptive_max_pool2d_backward, dy, self.outer, d)
        planes = columns.reshape(p.N, p.OH, p.OW, p.C)
        dx = self.run(adaptive_max_pool2d_backward, planes, self.inner, p)
        return (dx.reshape(self.shape),)


# public


def adaptive_avg_pool3d(x: Tensor, output_size: Sizes) -> Tensor:
    """The means of OD x OH x OW regions that cover the volume, whatever its size.

    Region od holds the planes ``⌊od·D/OD⌋ <= d < ⌈(od + 1)·D/OD⌉``, rows and columns likewise:
    regions may share a plane, and repeat one if OD > D.

    x: (N, D, H, W, C) float32 (float64 on cpu). output_size: int or (OD, OH, OW), >= 1; None among
    the three keeps that size. Returns (N, OD, OH, OW, C). Raises ValueError or TypeError naming the
    argument if a shape, dtype or number does not fit.

    Source: torch.nn.functional.adaptive_avg_pool3d.
    """
    check_tensor("x", x)
    (N, D, H, W, C), (OD, OH, OW) = _sizes(x, output_size)
    planes = adaptive_avg_pool2d(x.reshape(N * D, H, W, C), (OH, OW))
    y = adaptive_avg_pool2d(planes.reshape(N, D, 1, OH * OW * C), (OD, 1))
    return y.reshape(N, OD, OH, OW, C)


def adaptive_max_pool3d(
    x: Tensor, output_size: Sizes, *, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of the regions of :func:`adaptive_avg_pool3d`.

    The first maximum in raster order of (d, h, w) wins and has the gradient; a NaN wins over
    numbers, the last NaN over others. Returns y (N, OD, OH, OW, C), or (y, indices) with
    ``return_indices``: int32, ``(d·H + h)·W + w`` of the winner. Arguments and errors as there.

    Source: torch.nn.functional.adaptive_max_pool3d.
    """
    y, indices = AdaptiveMaxPool3d.apply(x, output_size=output_size)
    return (y, indices) if flag("return_indices", return_indices) else y


def _as_images(x: Tensor) -> Tensor:
    """(N, D, H, W, C) as images (N, D·H, W, C)."""
    check_tensor("x", x)
    N, D, H, W, C = volume_shape(x)
    return x.reshape(N, D * H, W, C)


def global_avg_pool3d(x: Tensor) -> Tensor:
    """The mean of each channel over the volume: ``y[n,c] = Σ x[n,d,h,w,c] / (D·H·W)``.

    x: (N, D, H, W, C) float32 (float64 on cpu), at least one element -> (N, C). Raises ValueError
    or TypeError naming x if its shape or dtype does not fit. Source: Lin et al., arXiv 1312.4400.
    """
    y = adaptive_avg_pool2d(_as_images(x), 1)
    return y.reshape(y.shape[0], y.shape[3])


def global_max_pool3d(x: Tensor) -> Tensor:
    """The maximum of each channel over the volume: ``y[n,c] = max x[n,d,h,w,c]``.

    The first maximum in raster order has the gradient; a NaN wins over numbers. Shapes and errors
    as in :func:`global_avg_pool3d`.
    """
    y = cast("Tensor", adaptive_max_pool2d(_as_images(x), 1))
    return y.reshape(y.shape[0], y.shape[3])
