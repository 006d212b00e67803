"""Copies along axes, by NumPy's rule: the ``spread`` kernel of ``kernels/reduce.cu``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from gpucnn.device import Array
from gpucnn.empty_batch import nothing
from gpucnn.ops.geometry import integer, not_empty, same_float_dtype
from gpucnn.ops.reduce import axis_sum, spread
from gpucnn.tensor import Function, Tensor, check_tensor

# geometry


def wider(x: Any, shape: Any) -> tuple[int, ...]:
    """``shape`` as a tuple to which x can be broadcast; ValueError or TypeError otherwise."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape must be a tuple of sizes, got {shape!r}")
    wanted = tuple(integer("shape", n, 1 if axis else 0) for axis, n in enumerate(shape))
    fits = len(wanted) >= x.ndim and all(
        have in (1, want) for have, want in zip(x.shape[::-1], wanted[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"shape: x of shape {tuple(x.shape)} cannot be broadcast to {wanted}: from the end, "
            "each size must be that of x, or x must have 1 there"
        )
    return wanted


def copies(small: Sequence[int], large: Sequence[int]) -> list[tuple[int, int, int]]:
    """The (O, R, C) of the steps (O, C) -> (O, R, C) that make ``large`` of ``small``, in order.

    Axes that grow beside each other grow in one step, and the last ones first: the arrays between
    the steps stay small.
    """
    now = [1] * (len(large) - len(small)) + list(small)
    steps = []
    last = len(large) - 1
    while last >= 0:
        first = last
        if now[last] == large[last]:
            last -= 1
            continue
        while first > 0 and now[first - 1] == 1:
            first -= 1
        R = math.prod(large[first : last + 1])
        steps.append((math.prod(now[:first]), R, math.prod(now[last + 1 :])))
        now[first : last + 1] = large[first : last + 1]
        last = first - 1
    return steps


# tape


class Broadcast(Function):
    """x in a larger shape; its gradient is the sum over the copies, in a fixed order."""

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.shape, self.steps = x.shape, copies(x.shape, shape)
        for O, R, C in self.steps:
            x = self.run(spread, x.reshape(O, C), None, R, 1.0)
        return x.reshape(shape)

    def backward(self, dy: Array) -> tuple[Array]:
        for step in self.steps[::-1]:
            dy = self.run(axis_sum, dy.reshape(step), 1.0)
        return (dy.reshape(self.shape),)


# public


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x repeated along new axes in front, and along those where it has size 1.

    x: any shape, float32 (float64 on cpu). shape: its sizes, from the end, are those of x, or
    anything >= 1 (0 for the batch) where x has 1 or no axis. Returns a tensor of that shape, a
    copy, unlike NumPy's view; x itself if that is its shape. The gradient is the sum of those of
    the copies.

    Raises ValueError or TypeError naming the argument if shape does not fit, a row of x is
    empty or x integer.

    Source: numpy.broadcast_to; torch.broadcast_to.
    """
    check_tensor("x", x)
    not_empty("x", x)
    same_float_dtype(x=x)
    wanted = wider(x, shape)
    if wanted != x.shape and wanted[:1] == (0,):
        return nothing((x,), wanted)
    return x if wanted == x.shape else cast("Tensor", Broadcast.apply(x, shape=wanted))


def broadcast_pair(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the shape that NumPy would give the result; a vector along the last axis stays one.

    name: of the function, for the errors.
    """
    same_float_dtype(a=a, b=b)
    not_empty(f"{name}: a", a)
    not_empty(f"{name}: b", b)
    try:
        shape = np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ValueError(
            f"{name}: b must have the shape of a, {a.shape}, or one that broadcasts with it, "
            f"got {b.shape}"
        ) from None
    if a.shape == shape and b.shape[-1:] == shape[-1:] and b.size == shape[-1]:
        return a, b.reshape(-1)
    return broadcast_to(a, shape), broadcast_to(b, shape)
