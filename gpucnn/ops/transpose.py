"""Permutation of axes: ``kernels/transpose.cu``."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.empty_batch import nothing
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import not_empty, same_float_dtype
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

Axes = tuple[int, ...]

# geometry


def permutation(axes: Any, ndim: int) -> Axes:
    """``axes`` as a permutation of 0 … ndim − 1; the reversed order for None."""
    if axes is None:
        return tuple(range(ndim))[::-1]
    try:
        if len(axes) == 1 and isinstance(axes[0], tuple | list):
            axes = axes[0]
        given = tuple(operator.index(a) for a in axes)
    except TypeError:
        raise TypeError(f"axes must be integers, got {axes!r}") from None
    if any(not -ndim <= a < ndim for a in given):
        raise ValueError(f"axes must lie between {-ndim} and {ndim - 1}, got {given}")
    found = tuple(a % ndim for a in given)
    if sorted(found) != list(range(ndim)):
        raise ValueError(f"axes must name each of {ndim} axes once, got {given}")
    return found


def exchanges(shape: Sequence[int], axes: Axes) -> list[tuple[int, int, int, int]]:
    """The (B, R, C, S) of the exchanges that permute ``shape`` by ``axes``, in order.

    Axes that stay neighbours move as one, and axes of size 1 do not count.
    """
    groups = _groups(shape, axes)
    order = sorted(groups)
    moves = []
    for done, group in enumerate(groups):
        at = order.index(group)
        if at == done:
            continue
        size = [math.prod(shape[a] for a in g) for g in order]
        moves.append(
            (math.prod(size[:done]), math.prod(size[done:at]), size[at], math.prod(size[at + 1 :]))
        )
        order.insert(done, order.pop(at))
    return moves


def ends_exchanged(shape: Sequence[int], axes: Axes) -> tuple[int, int, int, int] | None:
    """The (B, R, M, C) whose R and C change places, if that permutes ``shape`` by ``axes``."""
    groups = _groups(shape, axes)
    order = sorted(groups)
    fixed = len(groups) - 3
    if fixed not in (0, 1) or groups != order[:fixed] + order[fixed:][::-1]:
        return None
    R, M, C = (math.prod(shape[a] for a in g) for g in order[fixed:])
    return math.prod(shape[a] for g in order[:fixed] for a in g), R, M, C


def _groups(shape: Sequence[int], axes: Axes) -> list[list[int]]:
    """Runs of axes that stay neighbours, in their new order."""
    groups: list[list[int]] = []
    for a in (a for a in axes if shape[a] > 1):
        last = groups[-1][-1] if groups else None
        between = range((last or 0) + 1, a)
        if last is not None and last < a and all(shape[i] == 1 for i in between):
            groups[-1].append(a)
        else:
            groups.append([a])
    return groups


_ends_exchanged = functools.lru_cache(4096)(ends_exchanged)
_exchanges = functools.lru_cache(4096)(exchanges)

# primitives

_CHUNK = 1 << 17  # elements that a thread moves at once


@storing_primitive(0)
def transpose_forward(x: Array, axes: Axes) -> Array:
    """y = x with axis axes[i] as axis i, in a new order in memory."""
    view = x.transpose(axes)
    y = buffers.empty(view.shape, x.dtype)
    if not axes:
        y[...] = x
        return y

    def part(start: int, stop: int) -> None:
        np.copyto(y[start:stop], view[start:stop])

    map_chunks(part, len(view), max(1, _CHUNK * len(view) // x.size))
    return y


_THREADS = 256
_TILE = 32

_kernels = KernelFile("transpose", storage=True)


@transpose_forward.kernel(native=True)
def launch_transpose(x: Array, axes: Axes) -> Array:
    shape = [x.shape[a] for a in axes]
    if (ends := _ends_exchanged(x.shape, axes)) is not None:
        return _tiles(x, *ends).reshape(shape)
    for B, R, C, S in _exchanges(x.shape, axes):
        if S == 1:
            x = _tiles(x, B, R, 1, C)
            continue
        y = empty(x, x.shape, x.dtype)
        grid = (-(-x.size // _THREADS),)
        launch = _kernels.storing(x, "transpose_runs")
        launch(grid, (_THREADS,), y, x, x.size, R, C, S)
        x = y
    return x.reshape(shape)


def _tiles(x: Array, B: int, R: int, M: int, C: int) -> Array:
    """x (B, R, M, C) as (B, C, M, R)."""
    y = empty(x, x.shape, x.dtype)
    tiles_r, tiles_c = -(-R // _TILE), -(-C // _TILE)
    grid = (B * M * tiles_r * tiles_c,)
    launch = _kernels.storing(x, "transpose_tiles")
    launch(grid, (_TILE, 8), y, x, R, M, C, tiles_r, tiles_c)
    return y


# tape


class Transpose(Function):
    """Permutes axes; the gradient goes back by the inverse permutation."""

    activations = (0,)

    def forward(self, x: Array, *, axes: Axes) -> Array:
        if x.size == 0:
            raise ValueError(f"x must not be empty, got shape {x.shape}")
        same_float_dtype(x=x)
        self.axes = axes
        return self.run(transpose_forward, x, axes)

    def backward(self, dy: Array) -> tuple[Array]:
        inverse = tuple(self.axes.index(i) for i in range(len(self.axes)))
        return (self.run(transpose_forward, dy, inverse),)


# public


def transpose(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """``y`` with axis ``axes[i]`` of x as axis i; without axes their order is reversed.

    x: any shape, float32 (float64 on cpu). axes: a permutation of its
    axes, negative ones from the end. Returns a contiguous tensor, unlike NumPy's view.

    Raises ValueError or TypeError naming the argument if axes is no permutation, a row of x is
    empty or x integer.

    Source: numpy.transpose; torch.permute.
    """
    check_tensor("x", x)
    order = permutation(axes, x.ndim)
    if x.shape[:1] == (0,):
        not_empty("x", x)
        return nothing((x,), tuple(x.shape[a] for a in order))
    return cast("Tensor", Transpose.apply(x, axes=order))
