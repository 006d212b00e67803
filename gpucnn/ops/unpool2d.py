"""2-D unpooling by indices: ``kernels/unpool2d.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty, to_host
from gpucnn.kernel import Kernel, KernelFile
from gpucnn.ops.geometry import Geometry, Padding, Pair, choice, host_array
from gpucnn.ops.window import (
    THREADS,
    UnpoolAxis,
    blocks,
    chunk_of,
    unpool_axes,
)
from gpucnn.primitive import storing_primitive
from gpucnn.recording import reading
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks, scratch

# geometry

OVERLAPS = ("last", "sum", "error")


@dataclass(frozen=True)
class UnpoolGeometry(Geometry):
    """The sizes of one unpooling: ``dims``, then those that the kernels take, in their order.

    Windows (OD, OH, OW) over cells (D, H, W). Axes that the images lack (D of 2-D images, D and H
    of sequences) have size 1.
    """

    dims: int
    N: int
    D: int
    H: int
    W: int
    C: int
    KD: int
    KH: int
    KW: int
    OD: int
    OH: int
    OW: int
    SD: int
    SH: int
    SW: int
    PF: int
    PT: int
    PL: int

    @property
    def cells(self) -> int:
        """Of one image."""
        return self.D * self.H * self.W

    @property
    def windows(self) -> int:
        """Of one image."""
        return self.OD * self.OH * self.OW

    @property
    def size(self) -> tuple[int, ...]:
        """(H, W), or what else the images have."""
        return (self.D, self.H, self.W)[-self.dims :]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """What is unpooled."""
        return (self.N, *(self.OD, self.OH, self.OW)[-self.dims :], self.C)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """What is made of it."""
        return (self.N, *self.size, self.C)


def unpool_geometry(
    dims: int, x: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> UnpoolGeometry:
    """Check the arguments of an unpooling by indices over ``dims`` axes and work out its sizes."""
    axes = unpool_axes(dims, x, kernel_size, stride, padding, output_size)
    axes = (UnpoolAxis(1, 1, 1, 1, (0, 0)),) * (3 - dims) + axes
    outputs, size, kernel, steps, pads = zip(*axes, strict=True)
    before = (low for low, _ in pads)
    numbers = (x.shape[0], *size, x.shape[-1], *kernel, *outputs, *steps, *before)
    return UnpoolGeometry(dims, *numbers)


def check_indices(indices: Array, s: UnpoolGeometry) -> None:
    """Raise ValueError unless every index is -1 or a cell of the image; waits for a GPU."""
    host = to_host(indices)
    low, high = int(host.min()), int(host.max())
    if low < -1 or high >= s.cells:
        formula = {1: "w", 2: "h·W + w", 3: "(d·H + h)·W + w"}[s.dims]
        raise ValueError(
            f"indices must be -1 or {formula} in an output of {' x '.join(map(str, s.size))}, at "
            f"most {s.cells - 1}, got {low if low < -1 else high}"
        )


def check_apart(indices: Array, s: UnpoolGeometry) -> None:
    """Raise ValueError if two windows name one cell; waits for a GPU."""
    host = to_host(indices).reshape(s.N, -1, s.C)
    order = np.sort(host, axis=1)
    twice = (order[:, 1:] == order[:, :-1]) & (order[:, 1:] >= 0)
    if twice.any():
        n, i, c = np.argwhere(twice)[0]
        raise ValueError(
            f'overlap="error": indices name cell {order[n, i, c]} of image {n}, channel {c} more '
            'than once; overlap may be "last" or "sum"'
        )


# primitives


def _targets(
    indices: NDArray[Any], s: UnpoolGeometry
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(position in the flat images of each index inside, which are inside; None for all)."""
    at = scratch("unpool2d targets", (len(indices), s.windows, s.C), np.int64)
    np.multiply(indices.reshape(at.shape), s.C, out=at, casting="unsafe")
    at += np.arange(len(indices))[:, None, None] * (s.cells * s.C)
    at += np.arange(s.C)
    inside = (indices >= 0) & (indices < s.cells)
    return (at.reshape(-1), None) if inside.all() else (at[inside.reshape(at.shape)], inside)


@storing_primitive(0)
def max_unpool2d_forward(x: Array, indices: Array, last: bool, geometry: UnpoolGeometry) -> Array:
    """y[n, indices[n,oh,ow,c], c] = x[n,oh,ow,c], all other cells 0

    x, indices (N,OH,OW,C) -> y (N,H,W,C); also sequences and volumes. Where several windows name
    one cell, the last in raster order wins, or (not last) they are added in raster order. An index
    outside 0 … H·W−1 is skipped.
    """
    s = geometry
    y = buffers.empty(s.y_shape, x.dtype)

    def images(start: int, stop: int) -> None:
        part = y[start:stop].reshape(-1)
        part[...] = 0
        at, inside = _targets(indices[start:stop], s)
        values = x[start:stop].reshape(-1) if inside is None else x[start:stop][inside]
        if last:
            part[at] = values  # in order: a repeated index keeps its last value
        else:
            np.add.at(part, at, values)

    map_chunks(images, s.N, chunk_of(s.N, x.size))
    return y


@storing_primitive(0)
def max_unpool2d_backward(dy: Array, indices: Array, last: bool, geometry: UnpoolGeometry) -> Array:
    """dx[n,oh,ow,c] = dy[n, indices[n,oh,ow,c], c]

    dy (N,H,W,C), indices (N,OH,OW,C) -> dx (N,OH,OW,C); also sequences and volumes. 0 for a skipped
    index, and (last) where a later window names the same cell.
    """
    s = geometry
    dx = buffers.empty(s.x_shape, dy.dtype)

    def images(start: int, stop: int) -> None:
        at, inside = _targets(indices[start:stop], s)
        gradient = dy[start:stop].reshape(-1)[at]
        if last:
            order = np.arange(at.size, dtype=np.int32)
            writer = scratch("unpool2d writer", dy[start:stop].shape, np.int32).reshape(-1)
            writer[at] = order  # read below only where it was written
            gradient[writer[at] != order] = 0
        if inside is None:
            dx[start:stop] = gradient.reshape(dx[start:stop].shape)
        else:
            dx[start:stop] = 0
            dx[start:stop][inside] = gradient

    map_chunks(images, s.N, chunk_of(s.N, dx.size))
    return dx


_PARTS = 16  # blocks that look for strays in one image, at most

_kernels = KernelFile("unpool2d", *({"DIMS": dims} for dims in (2, 3)), storage=True)


def _kernel(like: Array, name: str, s: UnpoolGeometry) -> Kernel:
    return _kernels.storing(like, name, int(s.dims == 3))


def _find_strays(indices: Array, s: UnpoolGeometry) -> tuple[Array, int]:
    parts = min(_PARTS, -(-s.windows * s.C // THREADS))
    strays = empty(indices, (s.N, parts), np.int32)
    launch = _kernel(indices, "find_strays", s)
    launch((s.N * parts,), (THREADS,), strays, indices, *s.values[1:], parts)
    return strays, parts


@max_unpool2d_forward.kernel(native=True)
def _launch_max_forward(x: Array, indices: Array, last: bool, geometry: UnpoolGeometry) -> Array:
    s = geometry
    y = empty(x, s.y_shape, x.dtype)
    strays, parts = _find_strays(indices, s)
    launch, arrays = _kernel(x, "max_unpool2d_forward", s), (y, x, indices, strays)
    launch(blocks(y.size, s.C), (THREADS,), *arrays, *s.values[1:], parts, int(last))
    return y


@max_unpool2d_backward.kernel(native=True)
def _launch_max_backward(dy: Array, indices: Array, last: bool, geometry: UnpoolGeometry) -> Array:
    s = geometry
    dx = empty(dy, s.x_shape, dy.dtype)
    strays, parts = _find_strays(indices, s)
    launch, arrays = _kernel(dy, "max_unpool2d_backward", s), (dx, dy, indices, strays)
    launch(blocks(dx.size, 1), (THREADS,), *arrays, *s.values[1:], parts, int(last))
    return dx


# tape


class MaxUnpool(Function):
    """max_unpool1d, 2d and 3d; a value gets the gradient of the cell it was written to."""

    activations = (0,)
    batched = (0, 1)

    def forward(
        self, x: Array, indices: Array, *, dims: int, overlap: Any, **windows: Any
    ) -> Array:
        self.geometry = unpool_geometry(dims, x, **windows)
        choice("overlap", overlap, OVERLAPS)
        if indices.dtype != np.int32:
            raise TypeError(f"indices must be int32, got {indices.dtype}")
        if indices.shape != x.shape:
            raise ValueError(f"indices must have the shape of x, {x.shape}, got {indices.shape}")
        if isinstance(indices, np.ndarray) or overlap == "error":
            check_indices(indices, self.geometry)
        if overlap == "error":
            reading('the indices of overlap="error"')
            check_apart(indices, self.geometry)
        self.last = overlap == "last"
        if self.recording:
            self.indices = indices
        return self.run(max_unpool2d_forward, x, indices, self.last, self.geometry)

    def backward(self, dy: Array) -> tuple[Array, None]:
        return (self.run(max_unpool2d_backward, dy, self.indices, self.last, self.geometry), None)


# public


def unpool_by_indices(dims: int, x: Tensor, indices: Any, **options: Any) -> Tensor:
    """:class:`MaxUnpool` with indices of any kind."""
    check_tensor("x", x)
    if not isinstance(indices, Tensor):
        given = host_array("indices", indices)
        if given.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers, got {given.dtype}")
        try:
            indices = Tensor(given.astype(np.int64), device=x.device)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None
    return cast("Tensor", MaxUnpool.apply(x, indices, dims=dims, **options))


def max_unpool2d(
    x: Tensor,
    indices: Any,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    output_size: int | Pair | None = None,
    overlap: str = "last",
) -> Tensor:
    """Put each value back where a max pooling found it; all other cells are 0.

    ``y[n, h, w, c] = x[n, oh, ow, c]`` with ``h·W + w = indices[n, oh, ow, c]``.

    x: (N, OH, OW, C) float32 (float64 on cpu). indices: integers of its shape, as a Tensor or an
    array, from ``max_pool2d(…, return_indices=True)`` or elsewhere: any cell of the output, and -1
    for a value that is left out. kernel_size, stride, padding: those of the pooling (padding in
    numbers or "valid"). output_size: (H, W), less than a stride away from the default
    ``H = (OH − 1)·SH − PT − PB + KH``; several sizes are pooled to the same OH. overlap, where
    several windows name one cell:

    - "last": the last of them in raster order wins and alone receives the gradient;
    - "sum": they are added, and each receives the gradient;
    - "error": ValueError.

    Returns y (N, H, W, C), the same bits every time. The gradient of x is that of the cells it was
    written to.

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit, or
    an index lies outside the output. On cuda such an index is left out like -1, as looking for it
    would wait for the GPU; overlap="error" waits, looks and raises.

    Source: torch.nn.functional.max_unpool2d, which leaves open who wins and hands every window the
    gradient.
    """
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    options = {"output_size": output_size, "overlap": overlap}
    return unpool_by_indices(2, x, indices, **windows, **options)
