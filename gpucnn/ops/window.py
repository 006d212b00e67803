"""Windows that slide over images: what pooling and unpooling share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array
from gpucnn.ops.channels import pixels
from gpucnn.ops.geometry import (
    MAX_SIZE,
    Geometry,
    Pair,
    batch_shape,
    choice,
    conv_output_size,
    image_shape,
    padding_of_axes,
    pair,
    remembered,
    resolve_padding,
    same_float_dtype,
    sizes,
)
from gpucnn.threads import map_chunks, scratch

EDGES = ("drop", "ceil", "zero")


@dataclass(frozen=True)
class Pool2dGeometry(Geometry):
    """The sizes of one pooling, in the order in which the kernels take them.

    The windows of the output rows from ZH on, and of the output columns from ZW on, reach past the
    padded image, and what they find there counts as zero (edge="zero"); OH and OW where none does.
    """

    N: int
    H: int
    W: int
    C: int
    KH: int
    KW: int
    OH: int
    OW: int
    SH: int
    SW: int
    PT: int
    PL: int
    DH: int
    DW: int
    ZH: int
    ZW: int


def _pool_output_size(
    size: int, kernel: int, stride: int, padding: Pair, dilation: int, edge: str
) -> tuple[int, int]:
    """(outputs along one axis, the first of them whose window reaches past the padded input)."""
    low, high = padding
    reach = dilation * (kernel - 1) + 1
    if low >= reach or high >= reach:
        raise ValueError(
            f"padding must be smaller than the window ({kernel} with dilation {dilation} covers "
            f"{reach}), got {max(low, high)}"
        )
    if edge == "drop":
        out = conv_output_size(size, kernel, stride=stride, padding=padding, dilation=dilation)
        return out, out
    padded = size + low + high
    if padded + reach + stride > MAX_SIZE:
        raise ValueError(f"kernel_size, stride and padding must stay below {MAX_SIZE} together")
    out = -(-(padded - reach) // stride) + 1
    if (out - 1) * stride >= size + low:  # a window begins inside the image or its left padding
        out -= 1
    if out < 1:
        raise ValueError(
            f"kernel_size: a window of {kernel} with dilation {dilation} covers {reach}, more than "
            f"the padded input: ceil(({size} + {low} + {high} - {dilation}*({kernel} - 1) - 1) / "
            f"{stride}) + 1 = {out} outputs"
        )
    incomplete = (out - 1) * stride + reach > padded
    return out, out - 1 if incomplete else out


@remembered(arrays=slice(0, 1))
def pool2d_geometry(
    x: Any, kernel_size: Any, stride: Any, padding: Any, dilation: Any, edge: Any
) -> tuple[Pool2dGeometry, Pair]:
    """Check the arguments of a pooling and work out its sizes -> (sizes, (PB, PR))."""
    N, H, W, C = image_shape("x", x)
    same_float_dtype(x=x)
    choice("edge", edge, EDGES)
    kernel = pair("kernel_size", kernel_size)
    steps = kernel if stride is None else pair("stride", stride)
    spread = pair("dilation", dilation)
    spread = spread[0] if kernel[0] > 1 else 1, spread[1] if kernel[1] > 1 else 1
    rows, columns = resolve_padding(padding, (H, W), kernel, steps, spread)
    OH, ZH = _pool_output_size(H, kernel[0], steps[0], rows, spread[0], edge)
    OW, ZW = _pool_output_size(W, kernel[1], steps[1], columns, spread[1], edge)
    if edge != "zero":
        ZH, ZW = OH, OW
    numbers = (N, H, W, C, *kernel, OH, OW, *steps, rows[0], columns[0], *spread, ZH, ZW)
    return Pool2dGeometry(*numbers), (rows[1], columns[1])


class UnpoolAxis(NamedTuple):
    """One axis that an unpooling goes back: ``outputs`` windows over ``size`` cells."""

    outputs: int
    size: int
    kernel: int
    stride: int
    padding: Pair


def unpool_axes(
    dims: int, x: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> tuple[UnpoolAxis, ...]:
    """Check the arguments of an unpooling of x, a batch of ``dims`` axes, and size each axis."""
    outputs = batch_shape("x", x, dims)[1:-1]
    same_float_dtype(x=x)
    kernel = sizes("kernel_size", kernel_size, dims)
    steps = kernel if stride is None else sizes("stride", stride, dims)
    if isinstance(padding, str) and padding != "valid":
        raise ValueError(f'padding must be numbers or "valid", got {padding!r}')
    pads = padding_of_axes(0 if isinstance(padding, str) else padding, dims)
    wanted = (None,) * dims if output_size is None else sizes("output_size", output_size, dims)
    axes = []
    for axis, n in enumerate(outputs):
        k, s, (low, high), got = kernel[axis], steps[axis], pads[axis], wanted[axis]
        if max(low, high) >= k:
            raise ValueError(f"padding must be smaller than the window of {k}, got {pads[axis]}")
        if (n - 1) * s + k > MAX_SIZE:
            raise ValueError(f"stride: {n} windows of {k} every {s} cells exceed {MAX_SIZE}")
        default = (n - 1) * s + k - low - high
        got = default if got is None else got
        if not max(default - s, 0) < got < default + s:
            raise ValueError(
                f"output_size must be within {max(default - s + 1, 1)} … {default + s - 1} along "
                f"axis {axis}, got {got}"
            )
        axes.append(UnpoolAxis(n, got, k, s, pads[axis]))
    if math.prod(axis.size for axis in axes) > MAX_SIZE:
        cells = " x ".join(str(axis.size) for axis in axes)
        raise ValueError(f"output_size: {cells} are more than an int32 index names")
    return tuple(axes)


def unpool2d_geometry(
    x: Any, kernel_size: Any, stride: Any, padding: Any, output_size: Any
) -> tuple[Pool2dGeometry, Pair]:
    """The pooling (H, W) -> (OH, OW) that an unpooling of x (N, OH, OW, C) goes back, (PB, PR)."""
    axes = unpool_axes(2, x, kernel_size, stride, padding, output_size)
    outputs, size, kernel, steps, pads = zip(*axes, strict=True)
    (top, bottom), (left, right) = pads
    numbers = (x.shape[0], *size, x.shape[3], *kernel, *outputs, *steps, top, left, 1, 1, *outputs)
    return Pool2dGeometry(*numbers), (bottom, right)


_CHUNK = 1 << 18  # outputs of one chunk, at most: few enough for the cache


def chunk_of(images: int, outputs: int) -> int:
    """An even number of equal chunks, for two threads; one chunk where there is little to do."""
    if outputs < _CHUNK // 8:
        return images
    return -(-images // (2 * -(-outputs // (2 * _CHUNK))))


def images_per_chunk(s: Pool2dGeometry) -> int:
    """:func:`chunk_of` of a pooling."""
    return chunk_of(s.N, s.N * s.OH * s.OW * s.C)


def padded_shape(s: Pool2dGeometry, n: int) -> tuple[int, int, int, int]:
    """Images that hold every cell that a window touches, from (-PT, -PL) on."""
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    return n, high, wide, s.C


def cells(images: NDArray[Any], s: Pool2dGeometry, kh: int, kw: int) -> NDArray[Any]:
    """The cell (kh, kw) of every window: a view (n, OH, OW, …) of padded images."""
    top, left = kh * s.DH, kw * s.DW
    return images[
        :,
        top : top + (s.OH - 1) * s.SH + 1 : s.SH,
        left : left + (s.OW - 1) * s.SW + 1 : s.SW,
    ]


def phases(s: Pool2dGeometry, n: int, fill: float | None, dtype: Any) -> NDArray[Any]:
    """Padded images (n, high, SW, wide/SW, C), a scratch buffer: column w is at [w % SW, w // SW].

    Thus what one column of all windows holds is a run in each row, whatever the stride.
    """
    n, high, wide, channels = padded_shape(s, n)
    images = scratch("window phases", (n, high, s.SW, -(-wide // s.SW), channels), dtype)
    if fill is not None:
        images[...] = fill
    return images


def _columns_of_phases(s: Pool2dGeometry) -> Iterator[tuple[slice, slice]]:
    """Per phase, its columns of the images and where they are in the phase."""
    for phase in range(s.SW):
        first = (phase - s.PL) % s.SW
        at = (first + s.PL) // s.SW
        yield slice(first, None, s.SW), slice(at, at + len(range(first, s.W, s.SW)))


def into_phases(x: NDArray[Any], s: Pool2dGeometry, images: NDArray[Any]) -> None:
    """x (n,H,W,C) into the images of :func:`phases`."""
    inside = pixels(images)[:, s.PT : s.PT + s.H]
    for phase, (columns, at) in enumerate(_columns_of_phases(s)):
        np.copyto(inside[:, :, phase, at], pixels(x)[:, :, columns])


def out_of_phases(images: NDArray[Any], s: Pool2dGeometry, x: NDArray[Any]) -> None:
    """The inverse of :func:`into_phases`."""
    inside = pixels(images)[:, s.PT : s.PT + s.H]
    for phase, (columns, at) in enumerate(_columns_of_phases(s)):
        np.copyto(pixels(x)[:, :, columns], inside[:, :, phase, at])


def cells_of_column(images: NDArray[Any], s: Pool2dGeometry, kw: int) -> NDArray[Any]:
    """Column kw of every window, in all rows of :func:`phases`: a view (n, high, OW·C)."""
    at, phase = divmod(kw * s.DW, s.SW)
    return images[:, :, phase, at : at + s.OW].reshape(*images.shape[:2], s.OW * s.C)


def rows_of_windows(s: Pool2dGeometry, kh: int) -> slice:
    """The rows of padded images that are row kh of a window."""
    return slice(kh * s.DH, kh * s.DH + (s.OH - 1) * s.SH + 1, s.SH)


def keep_larger(
    best: NDArray[Any],
    winner: NDArray[Any],
    cell: NDArray[Any],
    offset: Any,
    nan: bool,
    out: NDArray[Any],
) -> None:
    """Where cell is larger than best, or NaN, it goes out, and its offset is the winner.

    Offsets within the image increase from call to call, so the last winner has the largest.
    """
    wins = scratch("window wins", best.shape, np.bool_)
    np.greater(cell, best, out=wins)
    if nan:
        np.logical_or(wins, np.isnan(cell), out=wins)
    candidate = scratch("window candidate", best.shape, winner.dtype)
    np.multiply(wins.view(np.uint8), offset, out=candidate)
    np.maximum(winner, candidate, out=winner)
    np.maximum(best, cell, out=out)


def two_by_two(s: Pool2dGeometry) -> bool:
    """Windows of 2×2 beside each other, all within the image."""
    return (
        (s.KH, s.KW, s.SH, s.SW, s.DH, s.DW, s.PT, s.PL) == (2, 2, 2, 2, 1, 1, 0, 0)
        and 2 * s.OH <= s.H
        and 2 * s.OW <= s.W
    )


def largest_of_four(
    x: NDArray[Any], s: Pool2dGeometry, y: NDArray[Any], winner: NDArray[Any], row: int
) -> None:
    """The maximum of each 2×2 window of a few images without a NaN, and its row·kh + kw there.

    First the rows of a window, which are whole rows of the image, then half as many columns.
    """
    n = len(x)
    rows = x[:, : 2 * s.OH].reshape(n, s.OH, 2, s.W * s.C)
    larger = scratch("window larger", (n, s.OH, s.W, s.C), x.dtype)
    below = scratch("window below", larger.shape, np.bool_)
    np.maximum(rows[:, :, 0], rows[:, :, 1], out=larger.reshape(n, s.OH, -1))
    np.greater(rows[:, :, 1], rows[:, :, 0], out=below.reshape(n, s.OH, -1))
    values = scratch("window columns", (2, n, s.OH, s.OW, s.C), x.dtype)
    lower = scratch("window lower", values.shape, np.bool_)
    for column in range(2):
        every_second = np.s_[:, :, column : 2 * s.OW : 2]
        np.copyto(pixels(values[column]), pixels(larger)[every_second])
        np.copyto(pixels(lower[column]), pixels(below)[every_second])
    np.maximum(values[0], values[1], out=y)
    right, first = (scratch(f"window {name}", y.shape, np.bool_) for name in ("right", "first"))
    np.equal(values[0], values[1], out=first)  # the right one is the first where it lies higher
    np.logical_and(first, lower[0], out=first)
    np.greater(first, lower[1], out=first)
    np.greater(values[1], values[0], out=right)
    np.logical_or(right, first, out=right)
    np.logical_xor(lower[0], lower[1], out=lower[1])
    np.logical_and(lower[1], right, out=lower[1])
    np.logical_xor(lower[0], lower[1], out=lower[0])
    np.multiply(lower[0].view(np.uint8), winner.dtype.type(row), out=winner)
    np.add(winner, right.view(np.uint8), out=winner)


def sum_of_cells(x: Array, divisor: Array, s: Pool2dGeometry, y: Array) -> None:
    """y[n,oh,ow,c] = Σ x[n,h,w,c] / divisor[h,w,0] over the cells of each window; dilation is 1.

    x (N,H,W,C), divisor (H,W,1) or a number -> y (N,OH,OW,C).
    """
    plain = np.ndim(divisor) == 0 and divisor == 1

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        shape = padded_shape(s, stop - start)
        padded = x[start:stop]
        if not plain or shape != padded.shape:
            padded = scratch("window padded", shape, x.dtype)
            padded[...] = 0
            inside = padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]
            np.divide(x[start:stop], divisor, out=inside)
        rows = scratch("window rows", (shape[0], s.OH, *shape[2:]), x.dtype)
        for kh in range(s.KH):
            part = padded[:, kh : kh + (s.OH - 1) * s.SH + 1 : s.SH]
            np.add(rows, part, out=rows) if kh else np.copyto(rows, part)
        total = y[start:stop]
        for kw in range(s.KW):
            part = rows[:, :, kw : kw + (s.OW - 1) * s.SW + 1 : s.SW]
            if s.SW > 1:  # a copy of whole pixels is faster than an addition that skips some
                column = scratch("window column", total.shape, x.dtype)
                np.copyto(pixels(column), pixels(part))
                part = column
            np.add(total, part, out=total) if kw else np.copyto(total, part)

    map_chunks(images, s.N, images_per_chunk(s))


def _add(values: NDArray[Any], total: NDArray[Any], first: bool) -> None:
    """total += values; ``first`` says that total is 0 there: no two windows share a cell."""
    if first:
        np.copyto(pixels(total), pixels(values))
    else:
        np.add(total, values, out=total)


def sum_of_windows(y: Array, divisor: Array, s: Pool2dGeometry, x: Array) -> None:
    """x[n,h,w,c] = Σ y[n,oh,ow,c] / divisor[oh,ow,0] over the windows that hold (h, w).

    y (N,OH,OW,C), divisor (OH,OW,1) or a number -> x (N,H,W,C): the adjoint of sum_of_cells.
    """

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        shape = padded_shape(s, stop - start)
        share = y[start:stop]
        if np.ndim(divisor) or divisor != 1:
            share = scratch("window share", share.shape, y.dtype)
            np.divide(y[start:stop], divisor, out=share)
        rows = scratch("window rows", (shape[0], s.OH, *shape[2:]), y.dtype)
        rows[...] = 0
        for kw in range(s.KW):
            part = rows[:, :, kw : kw + (s.OW - 1) * s.SW + 1 : s.SW]
            _add(share, part, first=s.SW >= s.KW)
        direct = shape[1:] == x.shape[1:]
        padded = x[start:stop] if direct else scratch("window padded", shape, y.dtype)
        padded[...] = 0
        for kh in range(s.KH):
            part = padded[:, kh : kh + (s.OH - 1) * s.SH + 1 : s.SH]
            _add(rows, part, first=s.SH >= s.KH)
        if not direct:
            x[start:stop] = padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]

    map_chunks(images, s.N, images_per_chunk(s))


THREADS = 256


def blocks(elements: int, channels: int) -> tuple[int]:
    """The grid of kernels whose threads own four channels, or one where C is no multiple of 4."""
    each = 4 if channels % 4 == 0 else 1
    return (-(-elements // (each * THREADS)),)
