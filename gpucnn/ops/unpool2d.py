"""2-D unpooling by indices: ``kernels/unpool2d.cu``."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty, to_host
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import Padding, Pair, choice, host_array
from gpucnn.ops.window import (
    THREADS,
    Pool2dGeometry,
    blocks,
    images_per_chunk,
    unpool2d_geometry,
)
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks, scratch

# geometry

OVERLAPS = ("last", "sum", "error")


def check_indices(indices: Array, s: Pool2dGeometry) -> None:
    """Raise ValueError unless every index is -1 or a cell of the image; waits for a GPU."""
    host = to_host(indices)
    low, high = int(host.min()), int(host.max())
    if low < -1 or high >= s.H * s.W:
        raise ValueError(
            f"indices must be -1 or h·W + w in an output of {s.H} x {s.W}, at most "
            f"{s.H * s.W - 1}, got {low if low < -1 else high}"
        )


def check_apart(indices: Array, s: Pool2dGeometry) -> None:
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
    indices: NDArray[Any], s: Pool2dGeometry
) -> tuple[NDArray[Any], NDArray[np.bool_] | None]:
    """(position in the flat images of each index inside, which are inside; None for all)."""
    at = scratch("unpool2d targets", indices.shape, np.int64)
    np.multiply(indices, s.C, out=at, casting="unsafe")
    at += np.arange(len(indices))[:, None, None, None] * (s.H * s.W * s.C)
    at += np.arange(s.C)
    inside = (indices >= 0) & (indices < s.H * s.W)
    return (at.reshape(-1), None) if inside.all() else (at[inside], inside)


@primitive
def max_unpool2d_forward(x: Array, indices: Array, last: bool, geometry: Pool2dGeometry) -> Array:
    """y[n, indices[n,oh,ow,c], c] = x[n,oh,ow,c], all other cells 0

    x, indices (N,OH,OW,C) -> y (N,H,W,C). Where several windows name one cell, the last in raster
    order wins, or (not last) they are added in raster order. An index outside 0 … H·W−1 is skipped.
    """
    s = geometry
    y = buffers.empty((s.N, s.H, s.W, s.C), x.dtype)

    def images(start: int, stop: int) -> None:
        part = y[start:stop].reshape(-1)
        part[...] = 0
        at, inside = _targets(indices[start:stop], s)
        values = x[start:stop].reshape(-1) if inside is None else x[start:stop][inside]
        if last:
            part[at] = values  # in order: a repeated index keeps its last value
        else:
            np.add.at(part, at, values)

    map_chunks(images, s.N, images_per_chunk(s))
    return y


@primitive
def max_unpool2d_backward(dy: Array, indices: Array, last: bool, geometry: Pool2dGeometry) -> Array:
    """dx[n,oh,ow,c] = dy[n, indices[n,oh,ow,c], c]

    dy (N,H,W,C), indices (N,OH,OW,C) -> dx (N,OH,OW,C); 0 for a skipped index, and (last) where a
    later window names the same cell.
    """
    s = geometry
    dx = buffers.empty((s.N, s.OH, s.OW, s.C), dy.dtype)

    def images(start: int, stop: int) -> None:
        at, inside = _targets(indices[start:stop], s)
        gradient = dy[start:stop].reshape(-1)[at]
        if last:
            order = np.arange(at.size, dtype=np.int32)
            writer = scratch("unpool2d writer", dy[start:stop].shape, np.int32).reshape(-1)
            writer[at] = order  # read below only where it was written
            gradient[writer[at] != order] = 0
        if inside is None:
            dx[start:stop] = gradient.reshape(stop - start, s.OH, s.OW, s.C)
        else:
            dx[start:stop] = 0
            dx[start:stop][inside] = gradient

    map_chunks(images, s.N, images_per_chunk(s))
    return dx


_PARTS = 16  # blocks that look for strays in one image, at most

_kernels = KernelFile("unpool2d")


def _find_strays(indices: Array, s: Pool2dGeometry) -> tuple[Array, int]:
    parts = min(_PARTS, -(-s.OH * s.OW * s.C // THREADS))
    strays = empty(indices, (s.N, parts), np.int32)
    sizes = astuple(s)[:12]
    _kernels["find_strays"]((s.N * parts,), (THREADS,), strays, indices, *sizes, parts)
    return strays, parts


@max_unpool2d_forward.kernel()
def _launch_max_forward(x: Array, indices: Array, last: bool, geometry: Pool2dGeometry) -> Array:
    s = geometry
    y = empty(x, (s.N, s.H, s.W, s.C))
    strays, parts = _find_strays(indices, s)
    launch, arrays = _kernels["max_unpool2d_forward"], (y, x, indices, strays)
    launch(blocks(y.size, s.C), (THREADS,), *arrays, *astuple(s)[:12], parts, int(last))
    return y


@max_unpool2d_backward.kernel()
def _launch_max_backward(dy: Array, indices: Array, last: bool, geometry: Pool2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.OH, s.OW, s.C))
    strays, parts = _find_strays(indices, s)
    launch, arrays = _kernels["max_unpool2d_backward"], (dx, dy, indices, strays)
    launch(blocks(dx.size, 1), (THREADS,), *arrays, *astuple(s)[:12], parts, int(last))
    return dx


# tape


class MaxUnpool2d(Function):
    """max_unpool2d; a value gets the gradient of the cell it was written to."""

    def forward(self, x: Array, indices: Array, *, overlap: Any, **windows: Any) -> Array:
        self.geometry, _ = unpool2d_geometry(x, **windows)
        choice("overlap", overlap, OVERLAPS)
        if indices.dtype != np.int32:
            raise TypeError(f"indices must be int32, got {indices.dtype}")
        if indices.shape != x.shape:
            raise ValueError(f"indices must have the shape of x, {x.shape}, got {indices.shape}")
        if isinstance(indices, np.ndarray) or overlap == "error":
            check_indices(indices, self.geometry)
        if overlap == "error":
            check_apart(indices, self.geometry)
        self.last = overlap == "last"
        if self.recording:
            self.indices = indices
        return self.run(max_unpool2d_forward, x, indices, self.last, self.geometry)

    def backward(self, dy: Array) -> tuple[Array, None]:
        return (self.run(max_unpool2d_backward, dy, self.indices, self.last, self.geometry), None)


# public


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
    check_tensor("x", x)
    if not isinstance(indices, Tensor):
        given = host_array("indices", indices)
        if given.dtype.kind not in "iu":
            raise TypeError(f"indices must be integers, got {given.dtype}")
        try:
            indices = Tensor(given.astype(np.int64), device=x.device)
        except ValueError as error:
            raise ValueError(f"indices: {error}") from None
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    options = {"output_size": output_size, "overlap": overlap}
    return cast("Tensor", MaxUnpool2d.apply(x, indices, **windows, **options))
