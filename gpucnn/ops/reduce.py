"""Sums, means and maxima in a fixed order: ``kernels/reduce.cu``."""

from __future__ import annotations

import builtins
import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.arrivals import arrivals
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, empty, result
from gpucnn.empty_batch import nothing
from gpucnn.flat_gradients import room_for, waits
from gpucnn.kernel import KernelFile
from gpucnn.ops.channels import SHORT_ROW, fold
from gpucnn.ops.elementwise import four_each
from gpucnn.ops.geometry import flag, not_empty, same_float_dtype
from gpucnn.ops.optimizer_parts import slice_elements, slice_lane_bits
from gpucnn.ops.transpose import launch_transpose, transpose
from gpucnn.primitive import primitive, storing_primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

Axes = int | Sequence[int] | None

# geometry


def reduced_axes(axis: Axes, ndim: int) -> tuple[int, ...]:
    """The axes to reduce, ascending and not negative; all for None."""
    if axis is None:
        return tuple(range(ndim))
    try:
        given = (
            tuple(axis) if isinstance(axis, tuple | list) else (operator.index(cast(int, axis)),)
        )
        axes = tuple(operator.index(a) for a in given)
    except TypeError:
        raise TypeError(f"axis must be None, an int or several, got {axis!r}") from None
    if any(not -ndim <= a < ndim for a in axes):
        raise ValueError(f"axis must lie between {-ndim} and {ndim - 1}, got {axis!r}")
    found = tuple(sorted({a % ndim for a in axes}))
    if len(found) != len(axes):
        raise ValueError(f"axis must not name an axis twice, got {axis!r}")
    return found


def _as_three_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, int, int] | None:
    """(O, R, C) where the reduced axes lie together, sizes of 1 apart; None where they do not."""
    wide = [a for a in axes if shape[a] > 1]
    if not wide:
        return 1, 1, math.prod(shape)
    first, last = wide[0], wide[-1]
    if any(shape[a] > 1 and a not in axes for a in range(first, last)):
        return None
    return (
        math.prod(shape[:first]),
        math.prod(shape[first : last + 1]),
        math.prod(shape[last + 1 :]),
    )


# primitives

_ROWS = 4096  # per partial sum: float32 loses little over so few, and a slice of x stays in cache
_CHUNK = 1 << 16  # elements of x that a thread takes at once
_COLUMN_CHUNK = 1 << 18  # the same, read once


@storing_primitive()
def column_sum(x: Array) -> Array:
    """y[c] = Σ x[…, c]: x (…, C) -> (C). Partial sums over rows are added in order."""
    C = x.shape[-1]
    rows, k = fold(x.reshape(-1, C), SHORT_ROW)
    each = builtins.min(_ROWS, builtins.max(1, _COLUMN_CHUNK // rows.shape[1]))
    ones = np.ones(each, x.dtype)

    def part(start: int, stop: int) -> NDArray[Any]:
        return cast("NDArray[Any]", ones[: stop - start] @ rows[start:stop])

    parts = np.stack(map_chunks(part, len(rows), each))
    sums = parts.sum(axis=0, dtype=np.float64).reshape(k, C).sum(axis=0)
    return cast("NDArray[Any]", sums.astype(x.dtype))


@storing_primitive()
def axis_sum(x: Array, factor: float) -> Array:
    """y[o,c] = factor·Σ_r x[o,r,c]: x (O, R, C) -> (O, C)."""
    O, R, C = x.shape
    if O == 1:
        return cast("NDArray[Any]", column_sum(x) * x.dtype.type(factor)).reshape(1, C)
    y = buffers.empty((O, C), x.dtype)
    ones = np.ones(min(R, _ROWS), x.dtype)

    def part(start: int, stop: int) -> None:
        total = np.zeros((stop - start, C))
        for r in range(0, R, _ROWS):
            rows = x[start:stop, r : r + _ROWS]
            weights = ones[: rows.shape[1]]
            total += (rows[..., 0] @ weights)[:, None] if C == 1 else np.matmul(weights, rows)
        total *= factor
        y[start:stop] = total

    map_chunks(part, O, builtins.max(1, _CHUNK // (R * C)))
    return y


@primitive
def axis_max(x: Array) -> tuple[Array, Array]:
    """y[o,c] = max_r x[o,r,c] and the first r where it stands: x (O, R, C) -> (O, C), int32 (O, C).

    A NaN is larger than every number.
    """
    O, R, C = x.shape
    y, index = buffers.empty((O, C), x.dtype), buffers.empty((O, C), np.int32)

    def part(start: int, stop: int) -> None:
        found = x[start:stop].argmax(axis=1)
        index[start:stop] = found
        y[start:stop] = np.take_along_axis(x[start:stop], found[:, None], axis=1)[:, 0]

    map_chunks(part, O, builtins.max(1, _CHUNK // (R * C)))
    return y, index


@primitive
def spread(dy: Array, index: Array | None, R: int, factor: float) -> Array:
    """dx[o,r,c] = factor·dy[o,c], or with index (O, C): dy[o,c] where r = index[o,c], else 0.

    dy (O, C) -> (O, R, C).
    """
    O, C = dy.shape
    dx = buffers.empty((O, R, C), dy.dtype)

    def part(start: int, stop: int) -> None:
        out, gradient = dx[start:stop], dy[start:stop, None]
        if index is None:
            np.multiply(gradient, factor, out=out)
        else:
            out[...] = 0
            np.put_along_axis(out, index[start:stop, None].astype(np.int64), gradient, axis=1)

    map_chunks(part, O, builtins.max(1, _CHUNK // (R * C)))
    return dx


@primitive
def sum_slices(partial: Array, bias: Array | None) -> Array:
    """y = Σ_s partial[s] (+ bias along the last axis), in the order of s: (S, …, C) -> (…, C)."""
    y = partial[0].copy()
    for part in partial[1:]:
        y += part
    return y if bias is None else y + bias


_THREADS = 256
_MOST_CHUNKS = 256

_kernels = KernelFile("reduce", storage=True)


@functools.lru_cache(4096)
def column_blocks(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid, block, rows per chunk) of a kernel that reduces the rows of a (rows, columns) matrix.

    A block is TX columns by 256 / TX rows; grid is (chunks of rows, groups of columns).
    """
    width = 1
    while width < min(columns, 32):
        width *= 2
    each = builtins.max(16 * _THREADS // width, -(-rows // _MOST_CHUNKS))
    return (-(-rows // each), -(-columns // width)), (width, _THREADS // width), each


def vector_column_blocks(rows: int, C: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """:func:`column_blocks` for threads of four columns, where C is a multiple of 4.

    A thread has fewer rows in turn, so that there are as many blocks.
    """
    columns = C // 4 if C % 4 == 0 else C
    (_, groups), block, _ = column_blocks(rows, columns)
    each = builtins.max(8 * block[1], -(-rows // (2 * _MOST_CHUNKS)))
    return (-(-rows // each), groups), block, each


def _short_rows_as_columns(x: Array) -> Array:
    """(O, R, 1) as (1, R, O) where a row is too short for a block: lanes then run along O."""
    O, R, C = x.shape
    if C > 1 or O == 1 or R >= _THREADS:
        return x
    return launch_transpose(x, (2, 1, 0))


@sum_slices.kernel()
def launch_sum_slices(partial: Array, bias: Array | None) -> Array:
    slices, shape = partial.shape[0], partial.shape[1:]
    if slices == 1 and bias is None:
        return partial.reshape(shape)
    y = result(partial, shape)
    return y if bias is None and waits(partial) else _sum_slices(y, partial, bias)


def launch_stored_slices(partial: Array, bias: Array | None, like: Array) -> Array:
    """:func:`sum_slices`, stored as ``like`` is: in float32, or rounded to bfloat16."""
    if not is_bfloat16(like):
        return cast("Array", launch_sum_slices(partial, bias))
    return _sum_slices(empty(partial, partial.shape[1:], like.dtype), partial, bias)


def _sum_slices(y: Array, partial: Array, bias: Array | None) -> Array:
    slices = partial.shape[0]
    grid = (-(-y.size // slice_elements(slices)),)
    numbers = (slices, y.size, y.shape[-1], slice_lane_bits(slices))
    _kernels.storing(y, "sum_slices")(grid, (_THREADS,), y, partial, bias, *numbers)
    return y


@axis_sum.kernel(native=True)
def _launch_axis_sum(x: Array, factor: float) -> Array:
    shape = x.shape[0], x.shape[2]
    x = _short_rows_as_columns(x)
    O, rows, C = x.shape
    (chunks, groups), block, each = column_blocks(rows, C)
    y, partial, arrived = empty(x, shape), None, None
    if chunks > 1:
        partial, arrived = empty(x, (O, chunks, C)), arrivals(x, O * groups)
    arrays, sizes = (y, partial, arrived, x), (rows, C, chunks, each)
    launch = _kernels.storing(x, "axis_sum")
    launch((O * chunks * groups,), block, *arrays, *sizes, factor)
    return y


@column_sum.kernel(native=True)
def launch_column_sum(x: Array) -> Array:
    C = x.shape[-1]
    rows = x.size // C
    (chunks, groups), block, each = column_blocks(rows, C)
    partial = empty_slices(x, chunks, (C,))
    launch = _kernels.storing(x, "axis_sum")
    arrays = (partial, None) if chunks == 1 else (None, partial)
    launch((chunks * groups,), block, *arrays, None, x, rows, C, chunks, each, 1.0)
    return launch_sum_slices(partial, None)


def empty_slices(like: Array, slices: int, shape: tuple[int, ...]) -> Array:
    """Memory for the slices of a result, to be added by :func:`launch_sum_slices`, which leaves
    that to the step of an optimizer where they may wait for it.
    """
    if slices == 1:
        return result(like, (1, *shape))
    room = room_for(slices, math.prod(shape))
    return empty(like, (slices, *shape)) if room is None else room.reshape(slices, *shape)


@axis_max.kernel()
def _launch_axis_max(x: Array) -> tuple[Array, Array]:
    shape = x.shape[0], x.shape[2]
    x = _short_rows_as_columns(x)
    O, rows, C = x.shape
    (chunks, groups), block, each = column_blocks(rows, C)
    y, index = empty(x, shape), empty(x, shape, np.int32)
    partial = at = arrived = None
    if chunks > 1:
        partial, at = empty(x, (O, chunks, C)), empty(x, (O, chunks, C), np.int32)
        arrived = arrivals(x, O * groups)
    arrays, sizes = (y, index, partial, at, arrived, x), (rows, C, chunks, each)
    _kernels["axis_max"]((O * chunks * groups,), block, *arrays, *sizes)
    return y, index


@spread.kernel()
def _launch_spread(dy: Array, index: Array | None, R: int, factor: float) -> Array:
    O, C = dy.shape
    dx = empty(dy, (O, R, C))
    grid = four_each(dx.size)
    _kernels["spread"](grid, (_THREADS,), dx, dy, index, dx.size, R, C, factor)
    return dx


# tape


class AxisSum(Function):
    """factor times the sum of x as (O, R, C) over R."""

    def forward(
        self, x: Array, *, sizes: tuple[int, int, int], shape: tuple[int, ...], factor: float
    ) -> Array:
        self.shape, self.sizes, self.factor = x.shape, sizes, factor
        return self.run(axis_sum, x.reshape(sizes), factor).reshape(shape)

    def backward(self, dy: Array) -> tuple[Array]:
        O, R, C = self.sizes
        dx = self.run(spread, dy.reshape(O, C), None, R, self.factor)
        return (dx.reshape(self.shape),)


class AxisMax(Function):
    """The maximum of x as (O, R, C) over R; the first one receives the gradient."""

    def forward(self, x: Array, *, sizes: tuple[int, int, int], shape: tuple[int, ...]) -> Array:
        self.shape, self.sizes = x.shape, sizes
        y, self.index = self.run(axis_max, x.reshape(sizes))
        return y.reshape(shape)

    def backward(self, dy: Array) -> tuple[Array]:
        O, R, C = self.sizes
        dx = self.run(spread, dy.reshape(O, C), self.index, R, 1.0)
        return (dx.reshape(self.shape),)


def _reduce(
    function: type[Function], x: Tensor, axis: Axes, keepdims: bool, mean: bool = False
) -> Tensor:
    check_tensor("x", x)
    flag("keepdims", keepdims)
    not_empty("x", x)
    same_float_dtype(x=x)
    axes = reduced_axes(axis, x.ndim)
    if not axes and x.ndim:
        raise ValueError(f"axis must name at least one axis, got {axis!r}")
    kept = tuple(a for a in range(x.ndim) if a not in axes)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape) if keepdims or a in kept)
    if not x.size:
        if function is AxisMax and 0 in axes:
            raise ValueError(f"x must not be empty where it has a maximum, got shape {x.shape}")
        return nothing((x,), shape, math.nan if mean else 0)
    sizes = _as_three_axes(x.shape, axes)
    if sizes is None:
        count = math.prod(x.shape[a] for a in axes)
        x, sizes = transpose(x, kept + axes), (x.size // count, count, 1)
    options: dict[str, Any] = {"sizes": sizes, "shape": shape}
    if function is AxisSum:
        options["factor"] = 1.0 / sizes[1] if mean else 1.0
    return cast("Tensor", function.apply(x, **options))


# public


def sum(x: Tensor, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
    """The sum of all elements, or along one or several axes, in a fixed order.

    x: any shape, float32 (float64 on cpu). axis: None for all, an int or
    several, negative ones from the end. Returns a 0-d tensor or one without the reduced axes; with
    keepdims they stay as 1.

    Raises ValueError or TypeError naming the argument for an axis x does not have, an axis given
    twice, empty rows or integers.

    Source: torch.sum.
    """
    return _reduce(AxisSum, x, axis, keepdims)


def mean(x: Tensor, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
    """The mean of all elements, or along one or several axes; arguments as those of :func:`sum`.

    Source: torch.mean.
    """
    return _reduce(AxisSum, x, axis, keepdims, mean=True)


def max(x: Tensor, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
    """The maximum of all elements, or along one or several axes; arguments as those of :func:`sum`.

    A NaN is larger than every number. The whole gradient goes to the first maximum, in memory order
    of the reduced axes (PyTorch's amax shares it among equal elements).

    Source: torch.max.
    """
    return _reduce(AxisMax, x, axis, keepdims)
