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
from gpucnn.primitive import primitive
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
    groups: list[list[int]] = []
    for a in (a for a in axes if shape[a] > 1):
        last = groups[-1][-1] if groups else None
        between = range((last or 0) + 1, a)
        if last is not None and last < a and all(shape[i] == 1 for i in between):
            groups[-1].append(a)
        else:
            groups.append([a])
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


_exchanges = functools.lru_cache(4096)(exchanges)

# primitives

_CHUNK = 1 << 17  # elements that a thread moves at once


@primitive
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

_kernels = KernelFile("transpose")


@transpose_forward.kernel()
def launch_transpose(x: Array, axes: Axes) -> Array:
    for B, R, C, S in _exchanges(x.shape, axes):
        y = empty(x, x.shape)
        if S == 1:
            tiles_r, tiles_c = -(-R // _TILE), -(-C // _TILE)
            grid = (B * tiles_r * tiles_c,)
            _kernels["transpose_tiles"](grid, (_TILE, 8), y, x, R, C, tiles_r, tiles_c)
        else:
            grid = (-(-x.size // _THREADS),)
            _kernels["transpose_runs"](grid, (_THREADS,), y, x, x.size, R, C, S)
        x = y
    return x.reshape([x.shape[a] for a in axes])


# tape


class Transpose(Function):
    """Permutes axes; the gradient goes back by the inverse permutation."""

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
