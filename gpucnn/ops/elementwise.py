"""Sums, differences, products and multiples, element by element: ``kernels/elementwise.cu``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.primitive import storing_primitive
from gpucnn.storage import alike, widen_there
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

# geometry


def is_vector(a: Any, b: Any) -> bool:
    """Whether ``b`` is a vector along the last axis of ``a``, and not of its shape."""
    return bool(b.ndim == 1 and a.ndim > 1 and b.shape == a.shape[-1:])


def _check_pair(name: str, a: Any, b: Any) -> None:
    if a.size == 0:
        raise ValueError(f"{name}: a must not be empty, got shape {a.shape}")
    same_float_dtype(a=a, b=b)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a Tensor or a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must fit a float, got {value}") from None


# primitives

_CHUNK = 1 << 17  # elements: three arrays of this many stay in a 2 MiB L2 cache


def _combine(ufunc: Callable[..., Any], a: Array, b: Array) -> Array:
    y = buffers.empty_like(a)
    left, right, out = a.reshape(-1), b.reshape(-1), y.reshape(-1)

    def part(start: int, stop: int) -> None:
        ufunc(left[start:stop], right[start:stop], out=out[start:stop])

    map_chunks(part, a.size, _CHUNK)
    return y


def _combine_rows(ufunc: Callable[..., Any], a: Array, b: Array) -> Array:
    y = buffers.empty_like(a)
    left, out = a.reshape(-1, b.size), y.reshape(-1, b.size)

    def part(start: int, stop: int) -> None:
        ufunc(left[start:stop], b, out=out[start:stop])

    map_chunks(part, len(left), max(1, _CHUNK // b.size))
    return y


@storing_primitive(0)
def add_forward(a: Array, b: Array) -> Array:
    """y = a + b, arrays of one shape."""
    return _combine(np.add, a, b)


@storing_primitive(0)
def subtract_forward(a: Array, b: Array) -> Array:
    """y = a - b, arrays of one shape."""
    return _combine(np.subtract, a, b)


@storing_primitive(0)
def multiply_forward(a: Array, b: Array) -> Array:
    """y = a * b, arrays of one shape."""
    return _combine(np.multiply, a, b)


@storing_primitive(0)
def affine_forward(x: Array, scale: float, shift: float) -> Array:
    """y = scale * x + shift, with numbers."""
    y = buffers.empty_like(x)
    inputs, out = x.reshape(-1), y.reshape(-1)

    def part(start: int, stop: int) -> None:
        np.multiply(inputs[start:stop], scale, out=out[start:stop])
        out[start:stop] += shift

    map_chunks(part, x.size, _CHUNK)
    return y


@storing_primitive(0)
def add_vector(a: Array, b: Array, sign: float) -> Array:
    """y[…,c] = a[…,c] + sign·b[c]: a (…, C), b (C); sign is 1 or -1."""
    return _combine_rows(np.add if sign > 0 else np.subtract, a, b)


@storing_primitive(0)
def multiply_vector(a: Array, b: Array) -> Array:
    """y[…,c] = a[…,c]·b[c]: a (…, C), b (C)."""
    return _combine_rows(np.multiply, a, b)


@storing_primitive(0)
def scale_forward(x: Array, factor: Array) -> Array:
    """y = factor[0] * x; factor is an array of one element, so that no device waits for it."""
    y = buffers.empty_like(x)
    inputs, out, number = x.reshape(-1), y.reshape(-1), factor.reshape(())

    def part(start: int, stop: int) -> None:
        np.multiply(inputs[start:stop], number, out=out[start:stop])

    map_chunks(part, x.size, _CHUNK)
    return y


THREADS = 256

_kernels = KernelFile("elementwise", storage=True)


def four_each(n: int) -> tuple[int]:
    """The grid of a kernel whose threads own four elements each of n."""
    return (-(-n // (4 * THREADS)),)


def launch_elements(
    file: KernelFile, name: str, like: Array, *args: Any, fours: bool = False
) -> Array:
    """Launch on arrays of any shape, where a kernel takes all but 0-d ones -> y like ``like``.

    A thread owns 16 bytes of an array, or ``fours``: four elements.
    """
    if not like.ndim:
        flat = (a.reshape(1) if hasattr(a, "reshape") else a for a in args)
        return launch_elements(file, name, like.reshape(1), *flat, fours=fours).reshape(())
    y = empty(like, like.shape, like.dtype)
    eights = not fours and is_bfloat16(like)
    grid = four_each(-(-y.size // 2) if eights else y.size)
    file.storing(like, name)(grid, (THREADS,), y, *args)
    return y


def _launch_pair(name: str, a: Array, b: Array) -> Array:
    a, b = alike(a, b)
    return launch_elements(_kernels, name, a, a, b, a.size)


def _launch_vector(name: str, a: Array, b: Array, *numbers: float) -> Array:
    if is_bfloat16(b):
        b = widen_there(b)
    return launch_elements(_kernels, name, a, a, b, a.size, b.size, *numbers, fours=True)


@add_forward.kernel(native=True)
def _launch_add(a: Array, b: Array) -> Array:
    return _launch_pair("add", a, b)


@subtract_forward.kernel(native=True)
def _launch_subtract(a: Array, b: Array) -> Array:
    return _launch_pair("subtract", a, b)


@multiply_forward.kernel(native=True)
def _launch_multiply(a: Array, b: Array) -> Array:
    return _launch_pair("multiply", a, b)


@affine_forward.kernel(native=True)
def _launch_affine(x: Array, scale: float, shift: float) -> Array:
    return launch_elements(_kernels, "affine", x, x, x.size, scale, shift)


@add_vector.kernel(native=True)
def _launch_add_vector(a: Array, b: Array, sign: float) -> Array:
    return _launch_vector("add_vector", a, b, sign)


@multiply_vector.kernel(native=True)
def _launch_multiply_vector(a: Array, b: Array) -> Array:
    return _launch_vector("multiply_vector", a, b)


@scale_forward.kernel(native=True)
def _launch_scale(x: Array, factor: Array) -> Array:
    return launch_elements(_kernels, "scale", x, x, factor.reshape(1), x.size)


# tape


class Add(Function):
    """a + sign·b; a vector b receives the sum of the gradient's rows."""

    activations = (0, 1)
    batched = (0, 1)

    def forward(self, a: Array, b: Array, *, sign: float) -> Array:
        _check_pair("add" if sign > 0 else "subtract", a, b)
        self.sign, self.vector = sign, is_vector(a, b)
        if self.vector:
            return self.run(add_vector, a, b, sign)
        return self.run(add_forward if sign > 0 else subtract_forward, a, b)

    def backward(self, dy: Array) -> tuple[Array, Array | None]:
        from gpucnn.ops.reduce import column_sum

        if not self.needs[1]:
            return dy, None
        db = self.run(column_sum, dy) if self.vector else dy
        return dy, db if self.sign > 0 else self.run(affine_forward, db, -1.0, 0.0)


class Multiply(Function):
    """a · b; each receives the gradient times the other."""

    activations = (0, 1)
    batched = (0, 1)

    def forward(self, a: Array, b: Array) -> Array:
        _check_pair("multiply", a, b)
        if self.recording:
            self.a, self.b = a, b
        self.vector = is_vector(a, b)
        return self.run(multiply_vector if self.vector else multiply_forward, a, b)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        from gpucnn.ops.reduce import column_sum

        da = db = None
        if self.needs[0]:
            da = self.run(multiply_vector if self.vector else multiply_forward, dy, self.b)
        if self.needs[1]:
            db = self.run(multiply_forward, dy, self.a)
            if self.vector:
                db = self.run(column_sum, db)
        return da, db


class Affine(Function):
    """scale · a + shift with numbers."""

    activations = (0,)
    batched = (0,)

    def forward(self, a: Array, *, scale: float, shift: float) -> Array:
        if a.size == 0:
            raise ValueError(f"a must not be empty, got shape {a.shape}")
        same_float_dtype(a=a)
        self.scale = scale
        return self.run(affine_forward, a, scale, shift)

    def backward(self, dy: Array) -> tuple[Array]:
        return (dy if self.scale == 1.0 else self.run(affine_forward, dy, self.scale, 0.0),)


# public


def _pair(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a and b in shapes that one kernel takes."""
    check_tensor("a", a)
    if a.shape == b.shape or is_vector(a, b):
        return a, b
    from gpucnn.ops.broadcast import broadcast_pair

    return broadcast_pair(name, a, b)


def add(a: Tensor, b: Tensor | float) -> Tensor:
    """``a + b``, element by element; also ``a + b`` with the operator.

    a: any shape, float32 (float64 on cpu). b: a number, or a tensor of its dtype: of its shape, as
    in a skip connection, or of one that NumPy's rule broadcasts with it, such as (C) or
    (N, 1, 1, C) beside (N, H, W, C). The gradient of what was broadcast is the sum over its copies.
    A vector along the last axis is added in place; other shapes are copied out first
    (:func:`broadcast_to`). Returns a tensor of the common shape.

    Raises ValueError or TypeError naming the argument for shapes or dtypes that do not fit, or
    empty rows; DeviceError for tensors of two devices.
    """
    if isinstance(b, Tensor):
        return cast("Tensor", Add.apply(*_pair("add", a, b), sign=1.0))
    return cast("Tensor", Affine.apply(a, scale=1.0, shift=_number("b", b)))


def subtract(a: Tensor, b: Tensor | float) -> Tensor:
    """``a - b``, element by element; arguments and errors as those of :func:`add`."""
    if isinstance(b, Tensor):
        return cast("Tensor", Add.apply(*_pair("subtract", a, b), sign=-1.0))
    return cast("Tensor", Affine.apply(a, scale=1.0, shift=-_number("b", b)))


def multiply(a: Tensor, b: Tensor | float) -> Tensor:
    """``a * b``, element by element; arguments and errors as those of :func:`add`.

    The gradients are ``da = dy·b`` and ``db = dy·a``, summed over the copies of what was broadcast.
    """
    if isinstance(b, Tensor):
        return cast("Tensor", Multiply.apply(*_pair("multiply", a, b)))
    return cast("Tensor", Affine.apply(a, scale=_number("b", b), shift=0.0))


def divide(a: Tensor, b: float) -> Tensor:
    """``a / b`` for a number b: a times ``1 / b``. Errors as those of :func:`add`, and for 0."""
    if isinstance(b, Tensor):
        raise TypeError("b must be a number: no tensor is divided by another")
    divisor = _number("b", b)
    if divisor == 0:
        raise ValueError("b must not be 0")
    return cast("Tensor", Affine.apply(a, scale=1 / divisor, shift=0.0))


def negate(a: Tensor) -> Tensor:
    """``-a``: any shape, float32 (float64 on cpu). Errors as those of :func:`add`."""
    return cast("Tensor", Affine.apply(a, scale=-1.0, shift=0.0))
