"""Between float32 and bfloat16: ``kernels/cast.cu``."""

from __future__ import annotations

from typing import cast

import numpy as np

from gpucnn.bfloat16 import is_bfloat16, narrowed, use, widened
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor, check_tensor

# primitives


@storing_primitive()
def widen(x: Array) -> Array:
    """The float32 values of bfloat16, exact: x any shape, uint16 bits -> float32."""
    return widened(x) if is_bfloat16(x) else x


@storing_primitive(0)
def narrow(x: Array) -> Array:
    """x rounded to bfloat16: to nearest, halves to even; NaN stays NaN. -> uint16 bits."""
    return narrowed(x)


_kernels = KernelFile("cast")


@widen.kernel(native=True)
def _launch_widen(x: Array) -> Array:
    y = empty(x, x.shape)
    _kernels["widen"](four_each(x.size), (THREADS,), y.reshape(-1), x.reshape(-1), x.size)
    return y


@narrow.kernel(native=True)
def _launch_narrow(x: Array) -> Array:
    y = empty(x, x.shape, np.uint16)
    _kernels["narrow"](four_each(x.size), (THREADS,), y.reshape(-1), x.reshape(-1), x.size)
    return y


# tape


class Widen(Function):
    """bfloat16 as float32; the gradient is rounded."""

    batched = (0,)
    activations = (0,)

    def forward(self, x: Array) -> Array:
        return self.run(widen, x)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(narrow, dy),)


class Narrow(Function):
    """float32 rounded to bfloat16; the gradient is that of the rounded number."""

    batched = (0,)

    def forward(self, x: Array) -> Array:
        return self.run(narrow, x)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(widen, dy),)


# public


def to_float32(x: Tensor) -> Tensor:
    """x in float32: the same tensor, or the values of one in bfloat16. Any shape but an empty one.

    Raises TypeError if x is no Tensor of float32 or bfloat16.
    """
    check_tensor("x", x)
    if x.data.dtype == np.float32:
        return x
    if not is_bfloat16(x.data):
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}")
    return cast("Tensor", Widen.apply(x))


def to_bfloat16(x: Tensor) -> Tensor:
    """x in bfloat16, the upper half of a float32: rounded to nearest, halves to even.

    x: float32, any shape but an empty one, or bfloat16, which is returned as it is. Functions that
    compute on bfloat16 return it; the others widen it and return float32. Raises TypeError if x is
    no such Tensor.
    """
    check_tensor("x", x)
    if is_bfloat16(x.data):
        return x
    if x.data.dtype != np.float32:
        raise TypeError(f"x must be float32 or bfloat16, got {x.dtype}")
    use()
    return cast("Tensor", Narrow.apply(x))
