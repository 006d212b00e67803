"""Softmax and its logarithm over the last axis: ``kernels/softmax.cu``."""

from __future__ import annotations

from typing import cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# primitives

_CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


_SHORT = 1 << 8  # elements: rows so short are mostly overhead where NumPy reduces them
_EXACT = 1 << 12  # elements: a float32 sum in no special order loses little over so few


def row_max(x: Array) -> Array:
    """The maximum of each row of x (n, C): (n, 1); NaN where there is one."""
    if x.shape[1] > _SHORT:
        return cast("Array", x.max(axis=1, keepdims=True))
    return cast("Array", np.ascontiguousarray(x.T).max(axis=0)[:, None])


def row_sum(x: Array) -> Array:
    """The sum of each row of x (n, C): (n, 1)."""
    if x.shape[1] > _EXACT:
        return cast("Array", x.sum(axis=1, keepdims=True))
    return cast("Array", x @ np.ones((x.shape[1], 1), x.dtype))


@primitive
def softmax_forward(x: Array) -> Array:
    """y[…, c] = exp(x[…, c] − m) / Σ_j exp(x[…, j] − m), m the maximum of the row: x, y (…, C)."""
    rows = x.reshape(-1, x.shape[-1])
    y = buffers.empty_like(x)
    out = y.reshape(rows.shape)

    def part(start: int, stop: int) -> None:
        values = out[start:stop]
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as it should be
            np.subtract(rows[start:stop], row_max(rows[start:stop]), out=values)
        np.exp(values, out=values)
        np.divide(values, row_sum(values), out=values)

    map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    return y


@primitive
def softmax_backward(dy: Array, y: Array) -> Array:
    """dx[…, c] = y[…, c] · (dy[…, c] − Σ_j dy[…, j]·y[…, j]): dy, y, dx (…, C)."""
    rows = y.reshape(-1, y.shape[-1])
    gradients = dy.reshape(rows.shape)
    dx = buffers.empty_like(y)
    out = dx.reshape(rows.shape)

    def part(start: int, stop: int) -> None:
        values, weights = out[start:stop], rows[start:stop]
        product = scratch("softmax product", values.shape, y.dtype)
        np.multiply(gradients[start:stop], weights, out=product)
        np.subtract(gradients[start:stop], row_sum(product), out=values)
        np.multiply(values, weights, out=values)

    map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    return dx


@primitive
def log_softmax_forward(x: Array) -> Array:
    """y[…, c] = (x[…, c] − m) − log Σ_j exp(x[…, j] − m), m the maximum of the row: x, y (…, C)."""
    rows = x.reshape(-1, x.shape[-1])
    y = buffers.empty_like(x)
    out = y.reshape(rows.shape)

    def part(start: int, stop: int) -> None:
        values = out[start:stop]
        powers = scratch("softmax product", values.shape, x.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as it should be
            np.subtract(rows[start:stop], row_max(rows[start:stop]), out=values)
        np.exp(values, out=powers)
        values -= np.log(row_sum(powers))

    map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    return y


@primitive
def log_softmax_backward(dy: Array, y: Array) -> Array:
    """dx[…, c] = dy[…, c] − exp(y[…, c]) · Σ_j dy[…, j]: dy, y, dx (…, C)."""
    rows = y.reshape(-1, y.shape[-1])
    gradients = dy.reshape(rows.shape)
    dx = buffers.empty_like(y)
    out = dx.reshape(rows.shape)

    def part(start: int, stop: int) -> None:
        values = out[start:stop]
        np.exp(rows[start:stop], out=values)
        values *= row_sum(gradients[start:stop])
        np.subtract(gradients[start:stop], values, out=values)

    map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    return dx


WARPS = 8  # rows of a block of 256 threads

_kernels = KernelFile("softmax")


def row_blocks(rows: int) -> tuple[tuple[int], tuple[int]]:
    """(grid, block) of a kernel whose warps take one row each."""
    return (-(-rows // WARPS),), (32 * WARPS,)


@softmax_forward.kernel()
def _launch_softmax_forward(x: Array) -> Array:
    y = empty(x, x.shape)
    C = x.shape[-1]
    _kernels["softmax_forward"](*row_blocks(x.size // C), y, x, x.size // C, C)
    return y


@softmax_backward.kernel()
def _launch_softmax_backward(dy: Array, y: Array) -> Array:
    dx = empty(dy, dy.shape)
    C = y.shape[-1]
    _kernels["softmax_backward"](*row_blocks(y.size // C), dx, dy, y, y.size // C, C)
    return dx


@log_softmax_forward.kernel()
def _launch_log_softmax_forward(x: Array) -> Array:
    y = empty(x, x.shape)
    C = x.shape[-1]
    _kernels["log_softmax_forward"](*row_blocks(x.size // C), y, x, x.size // C, C)
    return y


@log_softmax_backward.kernel()
def _launch_log_softmax_backward(dy: Array, y: Array) -> Array:
    dx = empty(dy, dy.shape)
    C = y.shape[-1]
    _kernels["log_softmax_backward"](*row_blocks(y.size // C), dx, dy, y, y.size // C, C)
    return dx


# tape


def _check(x: Array) -> None:
    if x.ndim < 1 or x.size == 0:
        raise ValueError(f"x must have shape (…, C) and not be empty, got {tuple(x.shape)}")
    same_float_dtype(x=x)


class Softmax(Function):
    """softmax and its gradient, which needs the output alone."""

    batched = (0,)

    def forward(self, x: Array) -> Array:
        _check(x)
        y = self.run(softmax_forward, x)
        if self.recording:
            self.y = y
        return y

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(softmax_backward, dy, self.y),)


class LogSoftmax(Function):
    """log_softmax and its gradient, which needs the output alone."""

    batched = (0,)

    def forward(self, x: Array) -> Array:
        _check(x)
        y = self.run(log_softmax_forward, x)
        if self.recording:
            self.y = y
        return y

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(log_softmax_backward, dy, self.y),)


# public


def softmax(x: Tensor) -> Tensor:
    """Probabilities from scores: ``y[…, c] = exp(x[…, c]) / Σ_j exp(x[…, j])`` over the last axis.

    The maximum of a row is subtracted first, so that large scores do not overflow. x: (…, C) with
    at least one element, float32 (float64 on cpu). Returns a tensor of its shape; each row sums to
    1. A score of −inf has probability 0; a row that holds +inf or NaN, or only −inf, becomes NaN.

    For training use :func:`~gpucnn.functional.cross_entropy`, which takes the scores themselves.

    Raises ValueError for empty rows or a 0-d x, TypeError for integers.

    Source: torch.nn.functional.softmax with dim=-1.
    """
    return cast("Tensor", Softmax.apply(x))


def log_softmax(x: Tensor) -> Tensor:
    """Logarithms of probabilities: ``y[…, c] = x[…, c] − log Σ_j exp(x[…, j])`` over the last axis.

    The maximum of a row is subtracted first, so that large scores do not overflow, and the
    probability itself is never formed, so that a small one does not become log 0. x: (…, C) with at
    least one element, float32 (float64 on cpu). Returns a tensor of its shape. A score of −inf
    stays −inf; a row that holds +inf or NaN, or only −inf, becomes NaN.

    Raises ValueError for empty rows or a 0-d x, TypeError for integers.

    Source: torch.nn.functional.log_softmax with dim=-1.
    """
    return cast("Tensor", LogSoftmax.apply(x))
