"""Batch normalisation, an activation and max pooling: ``kernels/batch_norm_block_pool.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.batch_norm_launches import empty_sums, rows_blocks
from gpucnn.ops.batch_norm_parts import Factors, Given, activate, bend, block_gradients, invstd_of
from gpucnn.ops.channels import fold, pixels, rows_per_chunk
from gpucnn.ops.pool2d import max_pool2d_geometry
from gpucnn.ops.reduce import vector_column_blocks
from gpucnn.ops.window import (
    Pool2dGeometry,
    cells,
    cells_of_column,
    into_phases,
    keep_larger,
    largest_of_four,
    out_of_phases,
    padded_shape,
    phases,
    rows_of_windows,
    two_by_two,
)
from gpucnn.primitive import storing_primitive
from gpucnn.threads import map_chunks, scratch

# geometry

NEGATIVE = 128  # of a code: z <= 0 at the cell that won
NOWHERE = 255  # the code of an output whose gradient goes nowhere
EDGES = ("drop", "ceil")


def block_pool_geometry(
    x: Any, kernel_size: Any, stride: Any, padding: Any, edge: Any
) -> Pool2dGeometry:
    """Check the arguments of the pooling of a block and work out its sizes."""
    if edge not in EDGES:
        raise ValueError(f"edge must be one of {', '.join(EDGES)}, got {edge!r}")
    s = max_pool2d_geometry(x, kernel_size, stride, padding, 1, edge)
    if s.KH * s.KW >= NEGATIVE:
        raise ValueError(
            f"kernel_size: a window of {s.KH} x {s.KW} has more than {NEGATIVE - 1} cells"
        )
    return s


# primitives


def _images_per_chunk(s: Pool2dGeometry) -> int:
    return rows_per_chunk(s.N, s.H * s.W * s.C)


def _first_inside(size: int, outputs: int, stride: int, pad: int) -> NDArray[Any]:
    """Per output along one axis, which of its cells is the first inside the image."""
    return np.maximum(0, pad - np.arange(outputs) * stride)


def _largest(a: NDArray[Any], s: Pool2dGeometry, y: NDArray[Any], code: NDArray[Any]) -> None:
    """y, code (n,OH,OW,C) = the maxima of the windows of a (n,H,W,C) and the cells kh·KW + kw.

    First the maximum of each row of a window, and the column where it is; then that of the rows.
    """
    n = len(a)
    nan = bool(np.isnan(a.min()))
    if two_by_two(s) and not nan:
        largest_of_four(a, s, y, code, 2)
        return
    planes = a[:, :, None]
    if s.SW > 1 or padded_shape(s, n) != a.shape:
        planes = phases(s, n, None if padded_shape(s, n) == a.shape else -np.inf, a.dtype)
        into_phases(a, s, planes)
    best = cells_of_column(planes, s, 0)
    column = scratch("block columns", best.shape, np.uint8)
    column[...] = _first_inside(s.W, s.OW, s.SW, s.PL).repeat(s.C)
    larger = scratch("block rows", best.shape, a.dtype)
    for kw in range(1, s.KW):
        keep_larger(best, column, cells_of_column(planes, s, kw), np.uint8(kw), nan, larger)
        best = larger
    y, code = y.reshape(n, s.OH, -1), code.reshape(n, s.OH, -1)
    first = rows_of_windows(s, 0)
    row = _first_inside(s.H, s.OH, s.SH, s.PT) * s.KW
    np.add(column[:, first], row[:, None].astype(np.uint8), out=code)
    found = best[:, first]
    candidate = scratch("block candidate", code.shape, np.uint8)
    for kh in range(1, s.KH):
        rows = rows_of_windows(s, kh)
        np.add(column[:, rows], np.uint8(kh * s.KW), out=candidate)
        keep_larger(found, code, best[:, rows], candidate, nan, y)
        found = y
    if found is not y:
        np.copyto(y, found)


def _empty_windows(s: Pool2dGeometry) -> list[tuple[Any, ...]]:
    """Where windows without a cell of the image are: an index for their rows, one for columns."""
    found = []
    for axis, (size, outputs, stride, pad, kernel) in enumerate(
        ((s.H, s.OH, s.SH, s.PT, s.KH), (s.W, s.OW, s.SW, s.PL, s.KW))
    ):
        starts = np.arange(outputs) * stride - pad
        outside = np.flatnonzero((starts + kernel <= 0) | (starts >= size))
        if len(outside):
            found.append((*(slice(None),) * (axis + 1), outside))
    return found


@storing_primitive(0)
def batch_norm_block_pool_forward(
    x: Array,
    residual: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    geometry: Pool2dGeometry,
) -> tuple[Array, Array]:
    """max_pool2d of what batch_norm_block_forward makes of its arguments, and where it was found

    x, residual (N,H,W,C) -> y (N,OH,OW,C), codes (N,OH,OW,C) uint8: the cell kh·KW + kw that won,
    by the rules of max_pool2d_forward, and NEGATIVE more if z <= 0 there; NOWHERE if no cell of the
    image won, or if z <= 0 and negative_slope is 0.
    """
    s = geometry
    y = buffers.empty((s.N, s.OH, s.OW, s.C), x.dtype)
    codes = buffers.empty(y.shape, np.uint8)
    factors = Factors(x, Given(gamma, beta, mean, delta), invstd_of(spread, eps))
    empty_windows = _empty_windows(s)

    def images(start: int, stop: int) -> None:
        folded, k = fold(x[start:stop])
        a = scratch("block a", folded.shape, x.dtype)
        factors.normalise(folded, k, a)
        if residual is not None:
            np.add(a, residual[start:stop].reshape(a.shape), out=a)
        shape = (stop - start, s.H, s.W, s.C)
        z = a.copy() if negative_slope < 0 else a
        if negative_slope not in (0, 1):
            activate(a, negative_slope)
        out, code = y[start:stop], codes[start:stop]
        _largest(a.reshape(shape), s, out, code)
        at = out
        if negative_slope < 0:  # the sign of z cannot be read off a
            h, w = np.divmod(code, np.uint8(s.KW))
            h = (h + (np.arange(s.OH) * s.SH - s.PT)[:, None, None]).clip(0, s.H - 1)
            w = (w + (np.arange(s.OW) * s.SW - s.PL)[:, None]).clip(0, s.W - 1)
            n, c = np.arange(stop - start)[:, None, None, None], np.arange(s.C)
            at = z.reshape(shape)[n, h, w, c]
        negative = scratch("block negative", code.shape, np.bool_)
        np.less_equal(at, 0, out=negative)
        flags = negative.view(np.uint8)
        np.multiply(flags, NOWHERE if negative_slope == 0 else NEGATIVE, out=flags)
        np.bitwise_or(code, flags, out=code)
        if negative_slope == 0:
            activate(out, 0)
        for where in empty_windows:
            out[where], code[where] = -np.inf, NOWHERE

    map_chunks(images, s.N, _images_per_chunk(s))
    return y, codes


@storing_primitive(0, 1)
def batch_norm_block_pool_backward(
    dy: Array,
    x: Array,
    codes: Array,
    gamma: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    residual: bool,
    sums: bool,
    geometry: Pool2dGeometry,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """batch_norm_block_backward for g = dy at the cells that won, times negative_slope if z <= 0

    dy, codes (N,OH,OW,C), x (N,H,W,C), the rest (C) -> dx, g if ``residual`` wants it, dgamma and
    dbeta (C) if ``sums``.
    """
    s = geometry
    dresidual = buffers.empty_like(x) if residual else None
    apart = s.SH >= s.KH and s.SW >= s.KW  # no two windows share a cell
    bits = np.dtype(f"i{dy.itemsize}")

    def route(
        start: int, stop: int, factors: Factors, centred: NDArray[Any], k: int, g: NDArray[Any]
    ) -> None:
        n, code, gradient = stop - start, codes[start:stop], dy[start:stop]
        if negative_slope not in (0, 1):
            gradient = gradient.copy()
            bend(gradient, code >= NEGATIVE, negative_slope)
        if negative_slope != 0:  # else all that is NEGATIVE is NOWHERE
            code = np.where(code == NOWHERE, code, code & (NEGATIVE - 1)).astype(np.uint8)
        if apart:
            direct = padded_shape(s, n) == g.shape
            planes = g if direct else scratch("block padded", padded_shape(s, n), g.dtype)
            if not (direct and two_by_two(s) and (s.H, s.W) == (2 * s.OH, 2 * s.OW)):
                planes[...] = 0
        else:
            planes = phases(s, n, 0, dy.dtype)
        won = scratch("block wins", code.shape, np.int8)
        keep = scratch("block keep", code.shape, bits)
        for cell in range(s.KH * s.KW):
            kh, kw = divmod(cell, s.KW)
            np.equal(code, cell, out=won.view(np.bool_))
            np.negative(won, out=won)
            np.copyto(keep, won)  # all bits set, or none
            np.bitwise_and(keep, gradient.view(bits), out=keep)
            if apart:
                np.copyto(cells(pixels(planes), s, kh, kw), pixels(keep))
            else:
                targets = cells_of_column(planes, s, kw)[:, rows_of_windows(s, kh)]
                np.add(targets, keep.view(dy.dtype).reshape(targets.shape), out=targets)
        if not apart:
            out_of_phases(planes, s, g)
        elif not direct:
            g[...] = planes[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]

    given = gamma, None, mean, delta, invstd_of(spread, eps)
    chunk = _images_per_chunk(s)
    dx, dgamma, dbeta = block_gradients(x, *given, sums, dresidual, route, chunk)
    return dx, dresidual, dgamma, dbeta


_kernels = KernelFile("batch_norm_block_pool", storage=True)


def _numbers(s: Pool2dGeometry) -> tuple[int, ...]:
    """The sizes in the order of the kernels, N … PL."""
    return s.values[:-4]


@batch_norm_block_pool_forward.kernel(native=True)
def _launch_forward(
    x: Array,
    residual: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    geometry: Pool2dGeometry,
) -> tuple[Array, Array]:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.C), x.dtype)
    codes = empty(x, y.shape, np.uint8)
    grid, block, each = rows_blocks(y.size // s.C, s.C, 4)
    per_channel = (gamma, beta, mean, delta, spread)
    launch = _kernels.storing(x, "batch_norm_block_pool")
    numbers = (*_numbers(s), each, eps, negative_slope)
    launch(grid, block, y, codes, x, residual, *per_channel, *numbers)
    return y, codes


@batch_norm_block_pool_backward.kernel(native=True)
def _launch_backward(
    dy: Array,
    x: Array,
    codes: Array,
    gamma: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    residual: bool,
    sums: bool,
    geometry: Pool2dGeometry,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    s, numbers = geometry, _numbers(geometry)
    dgamma = dbeta = None
    if sums:
        grid, block, each = vector_column_blocks(dy.size // s.C, s.C)
        made, (dgamma, dbeta) = empty_sums(x, grid)
        launch = _kernels.storing(x, "batch_norm_block_pool_sums")
        given = dy, x, codes, mean, delta, spread
        launch(grid, block, *made, *given, *numbers, each, eps, negative_slope)
    dx = empty(x, x.shape, x.dtype)
    dresidual = empty(x, x.shape, x.dtype) if residual else None
    pixels = s.N * s.H * s.W
    if (s.KH, s.KW, s.SH, s.SW) == (2, 2, 2, 2):
        pixels = s.N * ((s.H + s.PT + 1) // 2) * ((s.W + s.PL + 1) // 2)
    through = (dgamma, dbeta) if mean is None else (None, None)
    grid, block, each = rows_blocks(pixels, s.C, 4)
    launch = _kernels.storing(x, "batch_norm_block_pool_gradient")
    gradients = (dx, dresidual, dy, x, codes, gamma, delta, spread, *through)
    launch(grid, block, *gradients, *numbers, each, eps, negative_slope)
    return dx, dresidual, dgamma, dbeta
