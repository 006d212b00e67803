"""3-D pooling: 2-D pooling of the planes, then along depth, and ``kernels/pool3d.cu``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.misuse import look_for_zeros_that_won
from gpucnn.ops.avg_pool2d import avg_pool2d, sum_pool2d
from gpucnn.ops.geometry import (
    MAX_SIZE,
    Geometry,
    Pair,
    batch_shape,
    flag,
    resolve_padding,
    same_float_dtype,
    sizes,
)
from gpucnn.ops.pool2d import max_pool2d_backward, max_pool2d_forward, max_pool2d_geometry
from gpucnn.ops.window import THREADS, Pool2dGeometry, blocks, chunk_of
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

Size = int | tuple[int, int, int]
Ends = int | tuple[int, int, int] | tuple[Pair, Pair, Pair] | str

# geometry


@dataclass(frozen=True)
class JoinGeometry(Geometry):
    """The sizes of :func:`max_pool3d_join`, in the order in which the kernel takes them.

    From ZD, ZH and ZW on windows reach past the padded volume, and what they find there counts as
    zero (edge="zero").
    """

    N: int
    D: int
    H: int
    W: int
    C: int
    OD: int
    OH: int
    OW: int
    ZD: int
    ZH: int
    ZW: int

    @property
    def output_shape(self) -> tuple[int, int, int, int, int]:
        return self.N, self.OD, self.OH, self.OW, self.C


@dataclass(frozen=True)
class Pool3dGeometry:
    """A pooling (N·D, H, W, C) -> (N·D, OH, OW, C), one (N, D, 1, P) -> (N, OD, 1, P), a join.

    P = OH·OW·C: along depth the places of a plane are channels.
    """

    planes: Pool2dGeometry
    depth: Pool2dGeometry
    join: JoinGeometry


def volume_shape(x: Any) -> tuple[int, int, int, int, int]:
    n, d, h, w, c = batch_shape("x", x, 3)
    return n, d, h, w, c


def _axes(x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Any:
    """Kernel, stride, padding and dilation, each for the three axes of a volume."""
    kernel = sizes("kernel_size", kernel_size, 3)
    steps = kernel if stride is None else sizes("stride", stride, 3)
    spread = sizes("dilation", dilation, 3)
    spread = tuple(d if k > 1 else 1 for d, k in zip(spread, kernel, strict=True))
    return kernel, steps, resolve_padding(padding, x.shape[1:4], kernel, steps, spread), spread


def max_pool3d_geometry(
    x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, edge: Any
) -> Pool3dGeometry:
    """Check the arguments of :func:`max_pool3d` and work out its sizes."""
    N, D, H, W, C = volume_shape(x)
    same_float_dtype(x=x)
    if D * H * W > MAX_SIZE:
        raise ValueError(f"x: {D} x {H} x {W} cells are more than an int32 index can name")
    kernel, steps, pads, spread = _axes(x, kernel_size, stride, padding, dilation)

    def like(*shape: int) -> Array:
        return np.broadcast_to(np.zeros((), x.dtype), shape)

    flat = like(N * D, H, W, C)
    p = max_pool2d_geometry(flat, kernel[1:], steps[1:], pads[1:], spread[1:], edge)
    columns = like(N, D, 1, p.OH * p.OW * C)
    along = (kernel[0], 1), (steps[0], 1), (pads[0], (0, 0)), (spread[0], 1)
    d = max_pool2d_geometry(columns, *along, edge)
    whole = replace(p, ZH=p.OH, ZW=p.OW), replace(d, ZH=d.OH, ZW=d.OW)
    return Pool3dGeometry(*whole, JoinGeometry(N, D, H, W, C, d.OH, p.OH, p.OW, d.ZH, p.ZH, p.ZW))


# primitives


@primitive
def max_pool3d_join(
    best: Array, inner: Array, outer: Array, geometry: JoinGeometry
) -> tuple[Array, Array, Array]:
    """indices[n,od,oh,ow,c] = d·H·W + inner[n·D+d, oh, ow, c], where outer[n,od,oh,ow,c] = d

    best (N,OD,1,OH·OW·C), the maxima; inner (N·D,OH,OW,C) int32, the winners h·W + w in their
    planes; outer (N,OD,1,OH·OW·C) int32, the winning planes -> y (N,OD,OH,OW,C); indices int32, -1
    where no cell won; winners, outer with -1 where the 0 past the edge won: in a window from ZD, ZH
    or ZW on it does over negative numbers.
    """
    s = geometry
    y, winners = buffers.empty(best.shape, best.dtype), buffers.empty(best.shape, np.int32)
    indices = buffers.empty(best.shape, np.int32)
    places = s.OH * s.OW * s.C  # of a plane
    planes = inner.reshape(s.N, s.D * places)
    place = np.arange(places)
    edge = np.zeros((s.OD, s.OH, s.OW, s.C), np.bool_)
    edge[s.ZD :] = edge[:, s.ZH :] = edge[:, :, s.ZW :] = True
    past = edge.reshape(s.OD, 1, -1) if edge.any() else None

    def images(start: int, stop: int) -> None:
        for n in range(start, stop):
            found, index = outer[n], indices[n]
            cell = np.multiply(found, places, dtype=np.intp)
            at = planes[n].take(np.add(cell, place, out=cell), mode="clip")
            np.add(found * np.int32(s.H * s.W), at, out=index)
            index[(found < 0) | (at < 0)] = -1
            y[n], winners[n] = best[n], found
            if past is not None:
                zero = past & (best[n] < 0)
                y[n][zero] = 0
                index[zero] = winners[n][zero] = -1

    map_chunks(images, s.N, chunk_of(s.N, y.size))
    return y.reshape(s.output_shape), indices.reshape(s.output_shape), winners


_kernels = KernelFile("pool3d")


@max_pool3d_join.kernel()
def _launch_join(
    best: Array, inner: Array, outer: Array, geometry: JoinGeometry
) -> tuple[Array, Array, Array]:
    y = empty(best, geometry.output_shape)
    indices = empty(best, y.shape, np.int32)
    winners = empty(best, best.shape, np.int32)
    arrays = (y, indices, winners, best, inner, outer)
    _kernels["max_pool3d_join"](blocks(y.size, 1), (THREADS,), *arrays, *geometry.values)
    return y, indices, winners


# tape


class MaxPool3d(Function):
    """max_pool3d; its gradient goes to the cells that won."""

    batched = (0,)

    def forward(self, x: Array, **options: Any) -> tuple[Array, Array]:
        g = self.geometry = max_pool3d_geometry(x, **options)
        p, d = g.planes, g.depth
        flat = x.reshape(p.N, p.H, p.W, p.C)
        planes, inner = self.run(max_pool2d_forward, flat, p)
        columns = planes.reshape(d.N, d.H, d.W, d.C)
        best, outer = self.run(max_pool2d_forward, columns, d)
        y, indices, winners = self.run(max_pool3d_join, best, inner, outer, g.join)
        if options["edge"] == "zero":
            j = g.join
            past = indices[:, j.ZD :], indices[:, :, j.ZH :], indices[:, :, :, j.ZW :]
            look_for_zeros_that_won(*past)
        if self.recording:
            self.shape, self.inner, self.winners = x.shape, inner, winners
        return y, indices

    def backward(self, dy: Array, *_: None) -> tuple[Array]:
        p, d = self.geometry.planes, self.geometry.depth
        dy = dy.reshape(d.N, d.OH, d.OW, d.C)
        columns = self.run(max_pool2d_backward, dy, self.winners, d)
        planes = columns.reshape(p.N, p.OH, p.OW, p.C)
        dx = self.run(max_pool2d_backward, planes, self.inner, p)
        return (dx.reshape(self.shape),)


# public


def max_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    dilation: Size = 1,
    edge: str = "drop",
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a volume.

    ``y[n,od,oh,ow,c] = max x[n, od·SD − PF + kd·DD, oh·SH − PT + kh·DH, ow·SW − PL + kw·DW, c]``
    over the window and the cells inside the volume.

    x: (N, D, H, W, C) float32 (float64 on cpu). kernel_size, stride (None: kernel_size), dilation:
    int or (depth, height, width). padding: int, one number per axis, one (before, after) per axis,
    "valid" or "same". All else, ties, NaN, edge and errors, as in
    :func:`gpucnn.functional.max_pool2d`, first along depth. Returns y (N, OD, OH, OW, C), or
    (y, indices): int32, ``(d·H + h)·W + w`` of the winner, -1 where no cell of the volume won.

    Source: torch.nn.functional.max_pool3d.
    """
    y, indices = MaxPool3d.apply(
        x, kernel_size=kernel_size, stride=stride, padding=padding, dilation=dilation, edge=edge
    )
    return (y, indices) if flag("return_indices", return_indices) else y


def _pool_twice(pool: Any, x: Tensor, windows: Any, options: dict[str, Any]) -> Tensor:
    """Planes, then depth: sums and divisors of windows are products over the axes."""
    check_tensor("x", x)
    N, D, H, W, C = volume_shape(x)
    kernel_size, stride, padding = windows
    kernel, steps, pads, _ = _axes(x, kernel_size, stride, padding, 1)
    planes = pool(x.reshape(N * D, H, W, C), kernel[1:], steps[1:], pads[1:], **options)
    OH, OW = planes.shape[1:3]
    columns = planes.reshape(N, D, 1, OH * OW * C)
    y = pool(columns, (kernel[0], 1), (steps[0], 1), (pads[0], (0, 0)), **options)
    return cast("Tensor", y.reshape(N, y.shape[1], OH, OW, C))


def avg_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    edge: str = "drop",
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of a volume.

    x: (N, D, H, W, C) -> (N, OD, OH, OW, C). kernel_size, stride, padding as in
    :func:`max_pool3d`; edge, count_include_pad and errors as in
    :func:`gpucnn.functional.avg_pool2d`, the divisor being the product of the planes, rows and
    columns that count. Source: torch.nn.functional.avg_pool3d.
    """
    options = {"edge": edge, "count_include_pad": count_include_pad}
    return _pool_twice(avg_pool2d, x, (kernel_size, stride, padding), options)


def sum_pool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    edge: str = "drop",
) -> Tensor:
    """The sum of each window of a volume; arguments, shapes and errors as in :func:`avg_pool3d`."""
    return _pool_twice(sum_pool2d, x, (kernel_size, stride, padding), {"edge": edge})
