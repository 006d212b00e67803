"""2-D pooling to a given size, and of whole images: ``kernels/adaptive_pool2d.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.channels import pixels
from gpucnn.ops.geometry import MAX_SIZE, Geometry, flag, image_shape, same_float_dtype, sizes
from gpucnn.ops.tile import BUSY_BLOCKS
from gpucnn.ops.window import THREADS, blocks, keep_larger
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


@dataclass(frozen=True)
class AdaptivePool2dGeometry(Geometry):
    """The sizes of one pooling, in the order in which the kernels take them."""

    N: int
    H: int
    W: int
    C: int
    OH: int
    OW: int


def output_sizes(value: Any, size: tuple[int, ...]) -> tuple[int, ...]:
    """One output size per axis: an int, or one int or None each; None keeps the size there is."""
    if value is None:
        return size
    if isinstance(value, tuple | list) and len(value) == len(size):
        value = tuple(n if given is None else given for given, n in zip(value, size, strict=True))
    return sizes("output_size", value, len(size))


def check_regions(wanted: tuple[int, ...], size: tuple[int, ...]) -> None:
    """Raise ValueError where the bounds of the regions along an axis do not fit int32."""
    for outputs, n in zip(wanted, size, strict=True):
        if (outputs + 1) * (n + 1) > MAX_SIZE:
            raise ValueError(f"output_size: {outputs} regions of {n} cells exceed int32")


def adaptive_pool2d_geometry(x: Any, output_size: Any) -> AdaptivePool2dGeometry:
    """Check the arguments of the adaptive poolings and work out their sizes."""
    N, H, W, C = image_shape("x", x)
    same_float_dtype(x=x)
    OH, OW = wanted = output_sizes(output_size, (H, W))
    check_regions(wanted, (H, W))
    return AdaptivePool2dGeometry(N, H, W, C, OH, OW)


def _regions(size: int, outputs: int) -> list[slice]:
    """The positions that each output along one axis pools."""
    return [slice(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]


def _starts(size: int, outputs: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Per region along one axis, its first position and how many it holds."""
    parts = _regions(size, outputs)
    return np.array([p.start for p in parts]), np.array([p.stop - p.start for p in parts])


def _areas(s: AdaptivePool2dGeometry, dtype: Any) -> Array:
    """The cells of each region: (OH, OW, 1)."""
    rows, columns = _starts(s.H, s.OH)[1], _starts(s.W, s.OW)[1]
    return (rows[:, None, None] * columns[:, None]).astype(dtype)


# primitives

_CHUNK = 1 << 18  # inputs of one chunk, about


def _images_per_chunk(s: AdaptivePool2dGeometry) -> int:
    return max(1, _CHUNK // (s.H * s.W * s.C))


@storing_primitive(0)
def adaptive_avg_pool2d_forward(x: Array, geometry: AdaptivePool2dGeometry) -> Array:
    """y[n,oh,ow,c] = mean of x[n,h,w,c], ⌊oh·H/OH⌋ <= h < ⌈(oh+1)·H/OH⌉, w likewise

    x (N,H,W,C) -> y (N,OH,OW,C).
    """
    s = geometry
    y = buffers.empty((s.N, s.OH, s.OW, s.C), x.dtype)
    areas = _areas(s, x.dtype)

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        rows = scratch("adaptive rows", (stop - start, s.OH, s.W, s.C), x.dtype)
        for oh, part in enumerate(_regions(s.H, s.OH)):
            np.add.reduce(x[start:stop, part], axis=1, out=rows[:, oh])
        for ow, part in enumerate(_regions(s.W, s.OW)):
            np.add.reduce(rows[:, :, part], axis=2, out=y[start:stop, :, ow])
        np.divide(y[start:stop], areas, out=y[start:stop])

    map_chunks(images, s.N, _images_per_chunk(s))
    return y


@storing_primitive(0)
def adaptive_avg_pool2d_backward(dy: Array, geometry: AdaptivePool2dGeometry) -> Array:
    """dx[n,h,w,c] = Σ dy[n,oh,ow,c] / (cells of the region) over the regions that hold (h, w)

    dy (N,OH,OW,C) -> dx (N,H,W,C): the adjoint of adaptive_avg_pool2d_forward.
    """
    s = geometry
    dx = buffers.empty((s.N, s.H, s.W, s.C), dy.dtype)
    areas = _areas(s, dy.dtype)

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        share = dy[start:stop] / areas
        rows = scratch("adaptive rows", (stop - start, s.OH, s.W, s.C), dy.dtype)
        rows[...] = 0
        for ow, part in enumerate(_regions(s.W, s.OW)):
            rows[:, :, part] += share[:, :, ow, None]
        dx[start:stop] = 0
        for oh, part in enumerate(_regions(s.H, s.OH)):
            dx[start:stop, part] += rows[:, oh, None]

    map_chunks(images, s.N, _images_per_chunk(s))
    return dx


def _largest_of_all(x: Array) -> tuple[Array, Array]:
    """Per channel, the largest of the pixels (n, P, C) -> (n, C), and the first where it stands.

    A NaN is larger than every number, and the last one is the first.
    """
    y = x.max(axis=1, keepdims=True)
    P = x.shape[1]
    ranks = np.arange(P, 0, -1, dtype=np.min_scalar_type(P))[:, None]
    wins = scratch("adaptive wins", x.shape, np.bool_)
    np.equal(x, y, out=wins)
    ranked = scratch("adaptive ranks", x.shape, ranks.dtype)
    at = P - np.multiply(wins.view(np.uint8), ranks, out=ranked).max(axis=1).astype(np.int32)
    if np.isnan(y).any():
        nan = np.isnan(x)
        at = np.where(nan.any(axis=1), P - 1 - nan[:, ::-1].argmax(axis=1), at)
    return y[:, 0], at


@storing_primitive(0)
def adaptive_max_pool2d_forward(x: Array, geometry: AdaptivePool2dGeometry) -> tuple[Array, Array]:
    """y[n,oh,ow,c] = max of x[n,h,w,c], ⌊oh·H/OH⌋ <= h < ⌈(oh+1)·H/OH⌉, w likewise

    x (N,H,W,C) -> y (N,OH,OW,C), indices (N,OH,OW,C) int32 = h·W + w of the winner: the first
    maximum in raster order; a NaN wins over numbers, the last one over other NaNs.
    """
    s = geometry
    y = buffers.empty((s.N, s.OH, s.OW, s.C), x.dtype)
    indices = buffers.empty(y.shape, np.int32)
    (top, high), (left, wide) = _starts(s.H, s.OH), _starts(s.W, s.OW)
    origins = np.repeat((top[:, None] * s.W + left).astype(np.int32), s.C, axis=1)
    number = np.min_scalar_type((high.max() - 1) * s.W + wide.max() - 1)

    def images(start: int, stop: int) -> None:
        part, n = x[start:stop], stop - start
        if s.OH == s.OW == 1:
            found = _largest_of_all(part.reshape(n, -1, s.C))
            y[start:stop, 0, 0], indices[start:stop, 0, 0] = found
            return
        nan = bool(np.isnan(part.min()))
        # The maximum of each row of a region, and the column where it is; then that of the rows.
        # Regions with fewer cells than others meet their last one again.
        best = scratch("adaptive rows", (n, s.H, s.OW * s.C), x.dtype)
        column = scratch("adaptive columns", best.shape, number)
        column[...] = 0
        cell = scratch("adaptive cells", (n, s.H, s.OW, s.C), x.dtype)
        for k in range(wide.max()):
            offset = np.minimum(k, wide - 1)
            into = cell if k else best.reshape(cell.shape)
            pixels(part).take(left + offset, axis=2, out=pixels(into), mode="clip")
            if k:
                alike = (offset == k).all()
                offsets = number.type(k) if alike else np.repeat(offset.astype(number), s.C)
                keep_larger(best, column, cell.reshape(best.shape), offsets, nan, best)
        y_rows = y[start:stop].reshape(n, s.OH, -1)
        winner = scratch("adaptive winner", y_rows.shape, number)
        for k in range(high.max()):
            offset = np.minimum(k, high - 1)
            candidate = column[:, top + offset] + (offset * s.W).astype(number)[:, None]
            if k:
                keep_larger(y_rows, winner, best[:, top + offset], candidate, nan, y_rows)
            else:
                y_rows[...], winner[...] = best[:, top], candidate
        np.add(winner, origins, out=indices[start:stop].reshape(winner.shape))

    map_chunks(images, s.N, _images_per_chunk(s))
    return y, indices


@storing_primitive(0)
def adaptive_max_pool2d_backward(
    dy: Array, indices: Array, geometry: AdaptivePool2dGeometry
) -> Array:
    """dx[n,h,w,c] = Σ dy[n,oh,ow,c] over the regions with indices[n,oh,ow,c] = h·W + w

    dy, indices (N,OH,OW,C) -> dx (N,H,W,C): the adjoint of adaptive_max_pool2d_forward.
    """
    s = geometry
    dx = buffers.empty((s.N, s.H, s.W, s.C), dy.dtype)
    c = np.arange(s.C)

    def images(start: int, stop: int) -> None:
        dx[start:stop] = 0
        n = np.arange(stop - start).reshape(-1, 1, 1, 1)
        cells = (n * (s.H * s.W) + indices[start:stop]) * s.C + c
        np.add.at(dx[start:stop].reshape(-1), cells.reshape(-1), dy[start:stop].reshape(-1))

    map_chunks(images, s.N, _images_per_chunk(s))
    return dx


_kernels = KernelFile("adaptive_pool2d", storage=True)


_ENOUGH = 1 << 17  # threads that keep a large GPU's memory busy


def _shared(s: AdaptivePool2dGeometry) -> tuple[tuple[int, int], int, int]:
    """(block, blocks, slices of a region) of the kernels whose blocks share a region.

    No slices where a thread per region does better: many or small regions.
    """
    vectors = s.C // 4 if s.C % 4 == 0 else s.C
    wide = 1
    while wide < min(vectors, 32):
        wide *= 2
    high, tiles = THREADS // wide, -(-vectors // wide)
    regions, cells = s.N * s.OH * s.OW, -(-s.H // s.OH) * -(-s.W // s.OW)
    if cells < 4 * high or regions * vectors >= _ENOUGH:
        return (wide, high), 0, 0
    slices = max(1, min(-(-BUSY_BLOCKS // (regions * tiles)), cells // (8 * high)))
    return (wide, high), regions * tiles * slices, slices


@adaptive_avg_pool2d_forward.kernel(native=True)
def _launch_avg_forward(x: Array, geometry: AdaptivePool2dGeometry) -> Array:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.C), x.dtype)
    block, count, slices = _shared(s)
    if not slices:
        launch = _kernels.storing(x, "adaptive_avg_pool2d_forward")
        launch(blocks(y.size, s.C), (THREADS,), y, x, *s.values)
        return y
    launch = _kernels.storing(x, "adaptive_avg_pool2d_shared")
    if slices == 1:
        launch((count,), block, y, None, x, *s.values, slices)
        return y
    parts = empty(x, (s.N, s.OH, s.OW, slices, s.C))
    launch((count,), block, None, parts, x, *s.values, slices)
    launch = _kernels.storing(x, "adaptive_avg_pool2d_join")
    launch(blocks(y.size, 1), (THREADS,), y, parts, *s.values, slices)
    return y


@adaptive_avg_pool2d_backward.kernel(native=True)
def _launch_avg_backward(dy: Array, geometry: AdaptivePool2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.H, s.W, s.C), dy.dtype)
    launch = _kernels.storing(dy, "adaptive_avg_pool2d_backward")
    launch(blocks(dx.size, s.C), (THREADS,), dx, dy, *s.values)
    return dx


@adaptive_max_pool2d_forward.kernel(native=True)
def _launch_max_forward(x: Array, geometry: AdaptivePool2dGeometry) -> tuple[Array, Array]:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.C), x.dtype)
    indices = empty(x, y.shape, np.int32)
    block, count, slices = _shared(s)
    if not slices:
        launch = _kernels.storing(x, "adaptive_max_pool2d_forward")
        launch(blocks(y.size, s.C), (THREADS,), y, indices, x, *s.values)
        return y, indices
    parts, places = y, indices
    if slices > 1:
        parts = empty(x, (s.N, s.OH, s.OW, slices, s.C), x.dtype)
        places = empty(x, parts.shape, np.int32)
    launch = _kernels.storing(x, "adaptive_max_pool2d_shared")
    launch((count,), block, parts, places, x, *s.values, slices)
    if slices > 1:
        launch = _kernels.storing(x, "adaptive_max_pool2d_join")
        arrays = (y, indices, parts, places)
        launch(blocks(y.size, 1), (THREADS,), *arrays, y.size, s.C, slices)
    return y, indices


@adaptive_max_pool2d_backward.kernel(native=True)
def _launch_max_backward(dy: Array, indices: Array, geometry: AdaptivePool2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.H, s.W, s.C), dy.dtype)
    launch = _kernels.storing(dy, "adaptive_max_pool2d_backward")
    launch(blocks(dx.size, s.C), (THREADS,), dx, dy, indices, *s.values)
    return dx


# tape


class AdaptiveAvgPool2d(Function):
    """adaptive_avg_pool2d; each cell of a region gets the same share of its gradient."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, *, output_size: Any) -> Array:
        self.geometry = adaptive_pool2d_geometry(x, output_size)
        return self.run(adaptive_avg_pool2d_forward, x, self.geometry)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(adaptive_avg_pool2d_backward, dy, self.geometry),)


class AdaptiveMaxPool2d(Function):
    """adaptive_max_pool2d; its gradient goes to the cells that won."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, *, output_size: Any) -> tuple[Array, Array]:
        self.geometry = adaptive_pool2d_geometry(x, output_size)
        y, indices = self.run(adaptive_max_pool2d_forward, x, self.geometry)
        if self.recording:
            self.indices = indices
        return y, indices

    def backward(self, dy: Array, *_: None) -> tuple[Array]:
        return (self.run(adaptive_max_pool2d_backward, dy, self.indices, self.geometry),)


# public


def adaptive_avg_pool2d(x: Tensor, output_size: int | tuple[int | None, int | None]) -> Tensor:
    """The means of OH x OW regions that cover the image, whatever its size.

    Region oh holds the rows ``⌊oh·H/OH⌋ <= h < ⌈(oh + 1)·H/OH⌉``, columns likewise: regions may
    share a row, and repeat one if OH > H.

    x: (N, H, W, C) float32 (float64 on cpu). output_size: int or (OH, OW), >= 1; None in the pair
    keeps that size. Returns (N, OH, OW, C). Raises ValueError or TypeError naming the argument if a
    shape, dtype or number does not fit.

    Source: torch.nn.functional.adaptive_avg_pool2d.
    """
    return cast("Tensor", AdaptiveAvgPool2d.apply(x, output_size=output_size))


def adaptive_max_pool2d(
    x: Tensor, output_size: int | tuple[int | None, int | None], *, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of the regions of :func:`adaptive_avg_pool2d`.

    The first maximum in raster order wins and has the gradient; a NaN wins over numbers, the last
    NaN over others. Returns y (N, OH, OW, C), or (y, indices) with ``return_indices``: int32,
    ``h·W + w`` of the winner. Arguments and errors as there.

    Source: torch.nn.functional.adaptive_max_pool2d.
    """
    y, indices = AdaptiveMaxPool2d.apply(x, output_size=output_size)
    return (y, indices) if flag("return_indices", return_indices) else y


def global_avg_pool2d(x: Tensor) -> Tensor:
    """The mean of each channel over the image: ``y[n,c] = Σ x[n,h,w,c] / (H·W)``.

    x: (N, H, W, C) float32 (float64 on cpu), at least one element -> (N, C). Raises ValueError or
    TypeError naming x if its shape or dtype does not fit. Source: Lin et al., arXiv 1312.4400.
    """
    y = adaptive_avg_pool2d(x, 1)
    return y.reshape(y.shape[0], y.shape[3])


def global_max_pool2d(x: Tensor) -> Tensor:
    """The maximum of each channel over the image: ``y[n,c] = max x[n,h,w,c]``.

    The first maximum in raster order has the gradient; a NaN wins over numbers. Shapes and errors
    as in :func:`global_avg_pool2d`.
    """
    y = cast("Tensor", adaptive_max_pool2d(x, 1))
    return y.reshape(y.shape[0], y.shape[3])
