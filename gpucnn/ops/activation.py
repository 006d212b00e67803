"""Activations, element by element: ``kernels/activation.cu``."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# primitives

_CHUNK = 1 << 17  # elements: two arrays of this many stay in a 2 MiB L2 cache


@functools.cache
def _zeros(dtype: np.dtype[Any]) -> NDArray[Any]:
    """An array, because NumPy's maximum with a scalar is not vectorised."""
    return np.zeros(_CHUNK, dtype)


@primitive
def relu_forward(x: Array) -> Array:
    """y = 0 where x <= 0, else x; NaN passes."""
    y = buffers.empty_like(x)
    inputs, outputs, zeros = x.reshape(-1), y.reshape(-1), _zeros(x.dtype)

    def part(start: int, stop: int) -> None:
        np.maximum(inputs[start:stop], zeros[: stop - start], out=outputs[start:stop])

    map_chunks(part, x.size, _CHUNK)
    return y


@primitive
def relu_backward(dy: Array, y: Array) -> Array:
    """dx = 0 where y <= 0, else dy: the gradient at 0 is 0, and a NaN in y passes dy."""
    dx = buffers.empty_like(dy)
    bits = np.dtype(f"i{dy.itemsize}")
    gradients, outputs = dy.reshape(-1).view(bits), y.reshape(-1)
    results = dx.reshape(-1).view(bits)

    def part(start: int, stop: int) -> None:
        blocked = scratch("relu blocked", (stop - start,), np.bool_)
        keep = scratch("relu keep", (stop - start,), bits)
        np.less_equal(outputs[start:stop], 0, out=blocked)
        np.subtract(blocked.view(np.int8), 1, out=blocked.view(np.int8))
        np.copyto(keep, blocked.view(np.int8))  # all bits set, or none
        np.bitwise_and(gradients[start:stop], keep, out=results[start:stop])

    map_chunks(part, dy.size, _CHUNK)
    return dx


_kernels = KernelFile("activation")


@relu_forward.kernel()
def _launch_relu_forward(x: Array) -> Array:
    y = empty(x, x.shape)
    _kernels["relu_forward"](four_each(x.size), (THREADS,), y.reshape(-1), x.reshape(-1), x.size)
    return y


@relu_backward.kernel()
def _launch_relu_backward(dy: Array, y: Array) -> Array:
    dx = empty(dy, dy.shape)
    flat = (a.reshape(-1) for a in (dx, dy, y))
    _kernels["relu_backward"](four_each(dy.size), (THREADS,), *flat, dy.size)
    return dx


# tape


class Relu(Function):
    """relu and its gradient, which needs the output alone."""

    def forward(self, x: Array) -> Array:
        if x.size == 0:
            raise ValueError(f"x must not be empty, got shape {x.shape}")
        same_float_dtype(x=x)
        y = self.run(relu_forward, x)
        if self.recording:
            self.y = y
        return y

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(relu_backward, dy, self.y),)


# public


def relu(x: Tensor) -> Tensor:
    """``y = max(x, 0)``, element by element; the gradient is dy where x > 0, and 0 at x <= 0.

    x: any shape with at least one element, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. A NaN stays NaN, and its gradient passes.

    Raises ValueError for an empty x, TypeError for integers.

    Source: torch.nn.functional.relu.
    """
    return cast("Tensor", Relu.apply(x))
