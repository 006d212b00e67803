"""Sums and multiples of tensors, element by element: ``kernels/elementwise.cu``."""

from __future__ import annotations

from typing import cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor

# primitives


@primitive
def add_forward(a: Array, b: Array) -> Array:
    """y = a + b, arrays of one shape."""
    return np.add(a, b, out=buffers.empty_like(a))


@primitive
def scale_forward(x: Array, factor: Array) -> Array:
    """y = factor[0] * x; factor is an array of one element, so that no device waits for it."""
    return np.multiply(x, factor.reshape(()), out=buffers.empty_like(x))


THREADS = 256

_kernels = KernelFile("elementwise")


def four_each(n: int) -> tuple[int]:
    """The grid of a kernel whose threads own four elements each of n."""
    return (-(-n // (4 * THREADS)),)


@add_forward.kernel()
def _launch_add(a: Array, b: Array) -> Array:
    y = empty(a, a.shape)
    _kernels["add"](four_each(y.size), (THREADS,), y, a, b, y.size)
    return y


@scale_forward.kernel()
def _launch_scale(x: Array, factor: Array) -> Array:
    y = empty(x, x.shape)
    _kernels["scale"](four_each(y.size), (THREADS,), y, x, factor.reshape(1), y.size)
    return y


# tape


class Add(Function):
    """a + b; both receive the gradient of the sum."""

    def forward(self, a: Array, b: Array) -> Array:
        if a.shape != b.shape:
            raise ValueError(f"add: b must have the shape of a, {a.shape}, got {b.shape}")
        same_float_dtype(a=a, b=b)
        return self.run(add_forward, a, b)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        return dy, dy


# public


def add(a: Tensor, b: Tensor) -> Tensor:
    """a + b for tensors of one shape and dtype, as in a skip connection.

    Raises ValueError for two shapes (nothing is broadcast), TypeError for integers.
    """
    return cast("Tensor", Add.apply(a, b))
