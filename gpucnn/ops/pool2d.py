"""2-D pooling: ``kernels/pool2d.cu``."""

from __future__ import annotations

from typing import Any, Literal, cast, overload

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.misuse import look_for_zeros_that_won
from gpucnn.ops.channels import pixels
from gpucnn.ops.geometry import MAX_SIZE, Padding, Pair, flag, remembered
from gpucnn.ops.window import (
    THREADS,
    Pool2dGeometry,
    blocks,
    cells,
    cells_of_column,
    images_per_chunk,
    into_phases,
    keep_larger,
    largest_of_four,
    out_of_phases,
    padded_shape,
    phases,
    pool2d_geometry,
    rows_of_windows,
    two_by_two,
)
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


@remembered(arrays=slice(0, 1))
def max_pool2d_geometry(
    x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, edge: Any
) -> Pool2dGeometry:
    """Check the arguments of :func:`max_pool2d` and work out its sizes."""
    s, (below, _) = pool2d_geometry(x, kernel_size, stride, padding, dilation, edge)
    high = max(s.PT + s.H + below, s.DH * (s.KH - 1) + 1)
    if high * s.W > MAX_SIZE:
        raise ValueError(f"x: {high} x {s.W} padded cells are more than an int32 index can name")
    return s


# primitives


def _first_inside(
    size: int, outputs: int, stride: int, pad: int, kernel: int, dilation: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Per output along one axis: its first cell inside the image, and whether there is one."""
    starts = np.arange(outputs) * stride - pad
    first = np.maximum(0, -(starts // dilation))
    return first, (first < kernel) & (starts + first * dilation < size)


def _window_origins(s: Pool2dGeometry) -> NDArray[Any]:
    """The index h·W + w of the first cell of each window, repeated per channel: (OH, OW, C)."""
    rows = (np.arange(s.OH) * s.SH - s.PT) * s.W
    columns = np.arange(s.OW) * s.SW - s.PL
    origins = (rows[:, None] + columns).astype(np.int32)
    return np.repeat(origins[..., None], s.C, axis=2)


def _offset_dtype(s: Pool2dGeometry) -> np.dtype[Any]:
    """Of an offset from the first cell of a window, and one number more: mostly uint8."""
    return np.dtype(np.min_scalar_type((s.KH - 1) * s.DH * s.W + (s.KW - 1) * s.DW + 1))


@storing_primitive(0)
def max_pool2d_forward(x: Array, geometry: Pool2dGeometry) -> tuple[Array, Array]:
    """y[n,oh,ow,c] = max_{kh,kw} x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, c], and where it was found

    x (N,H,W,C) -> y (N,OH,OW,C), indices (N,OH,OW,C) int32 = h·W + w. Cells outside the image do
    not compete, but those past ZH and ZW count as 0. The first maximum in raster order wins, a cell
    of the image before a 0 outside; a NaN wins over numbers, the last one over other NaNs
    (torch.nn.MaxPool2d). Index -1: no cell of the image won; y is then -inf, or 0 by the edge.
    """
    s = geometry
    y = buffers.empty((s.N, s.OH, s.OW, s.C), x.dtype)
    indices = buffers.empty(y.shape, np.int32)
    origins = _window_origins(s)
    first_row, row_inside = _first_inside(s.H, s.OH, s.SH, s.PT, s.KH, s.DH)
    first_column, column_inside = _first_inside(s.W, s.OW, s.SW, s.PL, s.KW, s.DW)
    number = _offset_dtype(s)
    first_row = np.where(row_inside, first_row * (s.DH * s.W), 0)[:, None].astype(number)
    first_column = np.where(column_inside, first_column * s.DW, 0).repeat(s.C).astype(number)

    def images(start: int, stop: int) -> None:
        n, index = stop - start, indices[start:stop]
        nan = bool(np.isnan(x[start:stop].min()))
        if two_by_two(s) and not nan:
            winner = scratch("pool2d winner", index.shape, number)
            largest_of_four(x[start:stop], s, y[start:stop], winner, s.W)
            np.add(winner, origins, out=index)
            return
        padded = x[start:stop, :, None]
        whole = padded_shape(s, n) == (n, s.H, s.W, s.C)
        if s.SW > 1 or not whole:
            padded = phases(s, n, None if whole else -np.inf, x.dtype)
            into_phases(x[start:stop], s, padded)
        # The maximum of each row of a window, and the column where it is; then that of the rows.
        best = cells_of_column(padded, s, 0)
        larger = scratch("pool2d rows", best.shape, x.dtype)
        column = scratch("pool2d columns", best.shape, number)
        column[...] = first_column
        for kw in range(1, s.KW):
            cell = cells_of_column(padded, s, kw)
            keep_larger(best, column, cell, number.type(kw * s.DW), nan, larger)
            best = larger
        y_rows = y[start:stop].reshape(n, s.OH, -1)
        winner = scratch("pool2d winner", y_rows.shape, number)
        candidate = scratch("pool2d candidate row", y_rows.shape, number)
        first = rows_of_windows(s, 0)
        np.add(column[:, first], first_row, out=winner)
        found = best[:, first]
        for kh in range(1, s.KH):
            rows = rows_of_windows(s, kh)
            np.add(column[:, rows], number.type(kh * s.DH * s.W), out=candidate)
            keep_larger(found, winner, best[:, rows], candidate, nan, y_rows)
            found = y_rows
        if found is not y_rows:
            np.copyto(y_rows, found)
        np.add(winner.reshape(index.shape), origins, out=index)

    map_chunks(images, s.N, images_per_chunk(s))
    indices[:, ~row_inside] = -1
    indices[:, :, ~column_inside] = -1
    for y_edge, index_edge in (
        (y[:, s.ZH :], indices[:, s.ZH :]),
        (y[:, :, s.ZW :], indices[:, :, s.ZW :]),
    ):
        index_edge[y_edge < 0] = -1
        y_edge[y_edge < 0] = 0
    return y, indices


@storing_primitive(0)
def max_pool2d_backward(dy: Array, indices: Array, geometry: Pool2dGeometry) -> Array:
    """dx[n,h,w,c] = Σ dy[n,oh,ow,c] over the windows with indices[n,oh,ow,c] = h·W + w

    dy, indices (N,OH,OW,C) -> dx (N,H,W,C): the adjoint of max_pool2d_forward.
    """
    s = geometry
    dx = buffers.empty((s.N, s.H, s.W, s.C), dy.dtype)
    origins = _window_origins(s)
    bits, number = np.dtype(f"i{dy.itemsize}"), _offset_dtype(s)
    nowhere = np.iinfo(number).max
    apart = s.SH > (s.KH - 1) * s.DH and s.SW > (s.KW - 1) * s.DW
    tiled = (s.SH, s.SW, s.DH, s.DW) == (s.KH, s.KW, 1, 1)

    def images(start: int, stop: int) -> None:
        n = stop - start
        if apart:
            shape = padded_shape(s, n)
            direct = shape[1:] == (s.H, s.W, s.C)
            padded = dx[start:stop] if direct else scratch("pool2d padded", shape, dy.dtype)
            if not (tiled and shape[1:3] == (s.OH * s.SH, s.OW * s.SW)):
                padded[...] = 0
        else:
            padded = phases(s, n, 0, dy.dtype)
        index = indices[start:stop]
        offset = scratch("pool2d offset", index.shape, number)
        won = scratch("pool2d wins", offset.shape, np.bool_)
        keep = scratch("pool2d keep", offset.shape, bits)
        np.subtract(index, origins, out=offset, casting="unsafe")
        if index.min() < 0:
            offset[index < 0] = nowhere
        gradient = dy[start:stop].view(bits)
        for k in range(s.KH * s.KW):
            kh, kw = divmod(k, s.KW)
            # In the padding an offset may stand for a cell of another row; what is written there is
            # cut off below.
            np.equal(offset, number.type(kh * s.DH * s.W + kw * s.DW), out=won)
            np.negative(won.view(np.int8), out=won.view(np.int8))
            np.copyto(keep, won.view(np.int8))  # all bits set, or none
            np.bitwise_and(keep, gradient, out=keep)
            if apart:
                np.copyto(cells(pixels(padded), s, kh, kw), pixels(keep))
            else:
                targets = cells_of_column(padded, s, kw)[:, rows_of_windows(s, kh)]
                np.add(targets, keep.view(dy.dtype).reshape(targets.shape), out=targets)
        if not apart:
            out_of_phases(padded, s, dx[start:stop])
        elif not direct:
            dx[start:stop] = padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]

    map_chunks(images, s.N, images_per_chunk(s))
    return dx


_WINDOWS = (0, 2, 3)  # sides of the square windows that have a kernel of their own; 0 is any window
_kernels = KernelFile("pool2d", *({"WINDOW": side} for side in _WINDOWS), storage=True)


def _specialisation(s: Pool2dGeometry) -> int:
    square = s.KH == s.KW and s.KH in _WINDOWS
    return _WINDOWS.index(s.KH) if square else 0


@max_pool2d_forward.kernel(native=True)
def _launch_max_forward(x: Array, geometry: Pool2dGeometry) -> tuple[Array, Array]:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.C), x.dtype)
    indices = empty(x, y.shape, np.int32)
    launch = _kernels.storing(x, "max_pool2d_forward", _specialisation(s))
    launch(blocks(y.size, s.C), (THREADS,), y, indices, x, *s.values)
    return y, indices


@max_pool2d_backward.kernel(native=True)
def _launch_max_backward(dy: Array, indices: Array, geometry: Pool2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.H, s.W, s.C), dy.dtype)
    launch = _kernels.storing(dy, "max_pool2d_backward")
    launch(blocks(dx.size, s.C), (THREADS,), dx, dy, indices, *s.values[:-2])
    return dx


# tape


class MaxPool2d(Function):
    """max_pool2d; its gradient goes to the cells that won."""

    activations = (0,)
    batched = (0,)

    def forward(
        self,
        x: Array,
        *,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        edge: Any,
        return_indices: bool,
    ) -> Any:
        self.geometry = max_pool2d_geometry(x, kernel_size, stride, padding, dilation, edge)
        y, indices = self.run(max_pool2d_forward, x, self.geometry)
        if edge == "zero":
            s = self.geometry
            look_for_zeros_that_won(indices[:, s.ZH :], indices[:, :, s.ZW :])
        if self.recording:
            self.indices = indices
        return (y, indices) if flag("return_indices", return_indices) else y

    def backward(self, dy: Array, *_: None) -> tuple[Array]:
        return (self.run(max_pool2d_backward, dy, self.indices, self.geometry),)


# public


@overload
def max_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    dilation: int | Pair = 1,
    edge: str = "drop",
    return_indices: Literal[False] = False,
) -> Tensor: ...


@overload
def max_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    dilation: int | Pair = 1,
    edge: str = "drop",
    return_indices: bool,
) -> Tensor | tuple[Tensor, Tensor]: ...


def max_pool2d(
    x: Tensor,
    kernel_size: int | Pair,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    *,
    dilation: int | Pair = 1,
    edge: str = "drop",
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of an image.

    ``y[n,oh,ow,c] = max x[n, oh·SH − PT + kh·DH, ow·SW − PL + kw·DW, c]`` over kh < KH, kw < KW and
    the cells inside the image: padding never competes. The gradient of y goes to the cell that won:
    the first maximum in raster order; a NaN wins over numbers, and the last NaN over others.

    x: (N, H, W, C) float32 (float64 on cpu). kernel_size, stride (None: kernel_size), dilation: int
    or (height, width), >= 1. padding: int, (PH, PW), ((PT, PB), (PL, PR)), "valid" or "same", each
    smaller than the dilated window. edge, for a last window that reaches past the padded image:

    - "drop": left out, ``OH = (H + PT + PB − DH·(KH − 1) − 1) // SH + 1``;
    - "ceil": kept if it begins inside the image or before it; absent cells do not compete (torch's
      ceil_mode), ``OH = ⌈(H + PT + PB − DH·(KH − 1) − 1) / SH⌉ + 1``, or one less;
    - "zero": as many windows as "ceil"; the cells past the padded image count as 0 and win over
      negative numbers, which a :class:`~gpucnn.MisuseWarning` points out once.

    Returns y (N, OH, OW, C), or (y, indices) with ``return_indices``: int32, ``h·W + w`` of the
    winner in the image; -1, and no gradient, where a 0 past the edge won or where no cell of the
    window lies inside the image (y is then −inf).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty image, padding as large as the window, and a window larger than the padded
    image.

    Source: torch.nn.functional.max_pool2d.
    """
    result = MaxPool2d.apply(
        x,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        edge=edge,
        return_indices=return_indices,
    )
    return cast("Tensor | tuple[Tensor, Tensor]", result)
