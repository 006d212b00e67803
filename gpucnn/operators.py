"""The operators and methods of a tensor that are functions of ``gpucnn.functional``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from gpucnn.tensor import Tensor


class Operators:
    """What :class:`gpucnn.Tensor` inherits; the functions are imported when they are called."""

    def transpose(self: Any, *axes: int) -> Tensor:
        """Axis ``axes[i]`` becomes axis i; without axes their order is reversed."""
        from gpucnn.ops.transpose import transpose

        return transpose(self, axes or None)

    def sum(self: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """The sum of all elements, or along axes; see ``functional.sum``."""
        from gpucnn.ops.reduce import sum

        return sum(self, axis, keepdims=keepdims)

    def mean(self: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """The mean of all elements, or along axes; see ``functional.mean``."""
        from gpucnn.ops.reduce import mean

        return mean(self, axis, keepdims=keepdims)

    def max(self: Any, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
        """The maximum of all elements, or along axes; see ``functional.max``."""
        from gpucnn.ops.reduce import max

        return max(self, axis, keepdims=keepdims)

    def __add__(self: Any, other: Tensor | float) -> Tensor:
        from gpucnn.ops.elementwise import add

        return add(self, other)

    def __sub__(self: Any, other: Tensor | float) -> Tensor:
        from gpucnn.ops.elementwise import subtract

        return subtract(self, other)

    def __mul__(self: Any, other: Tensor | float) -> Tensor:
        from gpucnn.ops.elementwise import multiply

        return multiply(self, other)

    def __truediv__(self: Any, other: float) -> Tensor:
        """Division by a number, as when losses of several batches are averaged."""
        from gpucnn.ops.elementwise import divide

        return divide(self, other)

    def __neg__(self: Any) -> Tensor:
        from gpucnn.ops.elementwise import negate

        return negate(self)

    def __radd__(self: Any, other: float) -> Tensor:
        return cast("Tensor", self + other)

    def __rsub__(self: Any, other: float) -> Tensor:
        return cast("Tensor", -self + other)

    def __rmul__(self: Any, other: float) -> Tensor:
        return cast("Tensor", self * other)

    def __matmul__(self: Any, other: Tensor) -> Tensor:
        from gpucnn.ops.linear import matmul

        return matmul(self, other)
