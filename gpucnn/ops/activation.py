"""Activations, element by element: ``kernels/activation.cu``."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.bfloat16 import is_bfloat16, is_float
from gpucnn.device import Array
from gpucnn.fusion import fuses
from gpucnn.kernel import KernelFile
from gpucnn.ops.activation_formulas import ACTIVATIONS, not_below
from gpucnn.ops.elementwise import launch_elements, multiply_forward
from gpucnn.ops.geometry import choice, same_float_dtype
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry

GELUS = ("none", "tanh")


def check_real(name: str, value: Any) -> float:
    """``value`` as a float; TypeError or ValueError naming the argument unless finite."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_positive(name: str, value: Any) -> float:
    """:func:`check_real`, and > 0."""
    number = check_real(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    return number


def check_input(x: Array) -> None:
    """Check the x of an activation."""
    if x.size == 0:
        raise ValueError(f"x must not be empty, got shape {tuple(x.shape)}")
    if not is_float(x):
        same_float_dtype(x=x)


# primitives

# Elements: smaller pieces stay in the L2 cache, but two threads that change hands after each short
# pass cost more than that saves.
_CHUNK = 1 << 17


@storing_primitive(0)
def relu_forward(x: Array) -> Array:
    """y = 0 where x <= 0, else x; NaN passes."""
    y = buffers.empty_like(x)
    inputs, outputs = x.reshape(-1), y.reshape(-1)

    def part(start: int, stop: int) -> None:
        not_below(inputs[start:stop], 0, outputs[start:stop])

    map_chunks(part, x.size, _CHUNK)
    return y


@storing_primitive(0)
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


def _evaluate(
    x: Array, name: str, parameters: tuple[float, ...], slope: bool
) -> tuple[Array, Array | None]:
    """y = f(x) and, if wanted, f'(x)."""
    y, dydx = buffers.empty_like(x), buffers.empty_like(x) if slope else None
    inputs, outputs = x.reshape(-1), y.reshape(-1)
    slopes = None if dydx is None else dydx.reshape(-1)
    formula = ACTIVATIONS[name].formula

    def part(start: int, stop: int) -> None:
        at = slice(start, stop)
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            formula(inputs[at], outputs[at], None if slopes is None else slopes[at], *parameters)

    map_chunks(part, x.size, _CHUNK)
    return y, dydx


@storing_primitive(0)
def activation_forward(x: Array, name: str, parameters: tuple[float, ...]) -> Array:
    """y = f(x), element by element, f = ACTIVATIONS[name] with its parameters."""
    return _evaluate(x, name, parameters, False)[0]


@storing_primitive(0)
def activation_backward(dy: Array, kept: Array, name: str, parameters: tuple[float, ...]) -> Array:
    """dx = dy·f'(x), f = ACTIVATIONS[name]; kept is y if f' is computed from y, else x."""
    dx = buffers.empty_like(dy)
    gradients, inputs, results = dy.reshape(-1), kept.reshape(-1), dx.reshape(-1)
    activation = ACTIVATIONS[name]

    def part(start: int, stop: int) -> None:
        values, out = inputs[start:stop], results[start:stop]
        with np.errstate(invalid="ignore", over="ignore", under="ignore"):
            if activation.slope is not None:
                activation.slope(values, out, *parameters)
            else:
                y = scratch("activation y", values.shape, values.dtype)
                activation.formula(values, y, out, *parameters)
            out *= gradients[start:stop]

    map_chunks(part, dy.size, _CHUNK)
    return dx


_kernels = KernelFile("activation", storage=True)


@relu_forward.kernel(native=True)
def _launch_relu_forward(x: Array) -> Array:
    return launch_elements(_kernels, "relu_forward", x, x, x.size)


@relu_backward.kernel(native=True)
def _launch_relu_backward(dy: Array, y: Array) -> Array:
    return launch_elements(_kernels, "relu_backward", dy, dy, y, dy.size)


@activation_forward.kernel(native=True)
def _launch_forward(x: Array, name: str, parameters: tuple[float, ...]) -> Array:
    return launch_elements(_kernels, f"{name}_forward", x, x, x.size, *parameters)


@activation_backward.kernel(native=True)
def _launch_backward(dy: Array, kept: Array, name: str, parameters: tuple[float, ...]) -> Array:
    return launch_elements(_kernels, f"{name}_backward", dy, dy, kept, dy.size, *parameters)


# tape


class Activation(Function):
    """An activation whose gradient another operation's backward pass may have computed already."""

    activations: tuple[int, ...] = (0,)
    batched: tuple[int, ...] = (0,)
    fuses = True  # whether that may be
    passed = False  # dy is that of x

    def from_output(self) -> tuple[str, float] | None:
        """(name, negative_slope) where the gradient can be told from y; None where it cannot."""
        return None


class Relu(Activation):
    """relu and its gradient, which needs the output alone."""

    def forward(self, x: Array) -> Array:
        check_input(x)
        y = self.run(relu_forward, x)
        if self.recording:
            self.y, self.fuses = y, fuses()
        return y

    def backward(self, dy: Array) -> tuple[Array]:
        return (dy if self.passed else self.run(relu_backward, dy, self.y),)

    def from_output(self) -> tuple[str, float] | None:
        return "relu", 0.0


class Elementwise(Activation):
    """One of ACTIVATIONS; keeps the input, or the output where that is enough.

    On the CPU, where arithmetic costs more than memory, a slope that shares its exponentials with
    y is computed along with y, and kept instead of the input.
    """

    def forward(self, x: Array, *, name: str, parameters: tuple[float, ...]) -> Array:
        check_input(x)
        self.slope = None
        shares = self.device == "cpu" and ACTIVATIONS[name].slope is None
        if self.recording and shares and not is_bfloat16(x):
            y, self.slope = _evaluate(x, name, parameters, True)
            return y
        y = self.run(activation_forward, x, name, parameters)
        if self.recording:
            self.kept = y if ACTIVATIONS[name].keeps_output else x
            self.name, self.parameters, self.fuses = name, parameters, fuses()
        return y

    def from_output(self) -> tuple[str, float] | None:
        if self.slope is not None:
            return None
        if self.name == "leaky_relu" and self.parameters[0] > 0:
            return self.name, self.parameters[0]
        return (self.name, 0.0) if ACTIVATIONS[self.name].keeps_output else None

    def backward(self, dy: Array) -> tuple[Array]:
        if self.passed:
            return (dy,)
        if self.slope is not None:
            return (self.run(multiply_forward, dy, self.slope),)
        return (self.run(activation_backward, dy, self.kept, self.name, self.parameters),)


def _apply(x: Tensor, name: str, *parameters: float) -> Tensor:
    return cast("Tensor", Elementwise.apply(x, name=name, parameters=parameters))


# public


def identity(x: Tensor) -> Tensor:
    """``y = x``: the tensor itself, of any shape and dtype.

    Source: torch.nn.Identity.
    """
    return x


def relu(x: Tensor) -> Tensor:
    """``y = max(x, 0)``, element by element; the gradient is dy where x > 0, and 0 at x <= 0.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. A NaN stays NaN, and its gradient passes.

    Raises ValueError for empty rows, TypeError for integers.

    Source: torch.nn.functional.relu.
    """
    return cast("Tensor", Relu.apply(x))


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """``y = x`` where x > 0, else ``negative_slope · x``; the gradient at 0 is negative_slope.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. negative_slope: any finite number; the backward pass works from x, so a negative
    slope is right too. (PyTorch's default; Keras has 0.2 and 0.3, darknet 0.1.)

    Raises ValueError for empty rows or a slope that is not finite, TypeError for integers or a
    slope that is no number.

    Source: Maas, Hannun and Ng (2013); torch.nn.functional.leaky_relu.
    """
    return _apply(x, "leaky_relu", check_real("negative_slope", negative_slope))


def elu(x: Tensor, alpha: float = 1.0) -> Tensor:
    """``y = x`` where x > 0, else ``alpha · (exp(x) − 1)``; the gradient at 0 is alpha.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. alpha: any finite number; exp(x) − 1 is computed without cancellation.

    Raises ValueError for empty rows or an alpha that is not finite, TypeError for integers or an
    alpha that is no number.

    Source: Clevert, Unterthiner and Hochreiter, arXiv:1511.07289; torch.nn.functional.elu.
    """
    return _apply(x, "elu", check_real("alpha", alpha), 1.0)


def selu(x: Tensor) -> Tensor:
    """``y = 1.0507… · elu(x, 1.6733…)``; the gradient at 0 is 1.7581.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype.

    Raises ValueError for empty rows, TypeError for integers.

    Source: Klambauer et al., arXiv:1706.02515; torch.nn.functional.selu.
    """
    return _apply(x, "elu", 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def sigmoid(x: Tensor) -> Tensor:
    """``y = 1 / (1 + exp(−x))``, without overflow; the gradient is y·(1 − y).

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype, with numbers from 0 to 1.

    Raises ValueError for empty rows, TypeError for integers.

    Source: torch.sigmoid.
    """
    return _apply(x, "sigmoid")


def tanh(x: Tensor) -> Tensor:
    """``y = tanh(x)``; the gradient is 1 − y².

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype, with numbers from −1 to 1.

    Raises ValueError for empty rows, TypeError for integers.

    Source: torch.tanh.
    """
    return _apply(x, "tanh")


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """``y = log(1 + exp(beta·x)) / beta``, and x itself where beta·x > threshold.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. beta > 0; threshold: any finite number, and large ones overflow nothing. The gradient
    is sigmoid(beta·x), and 1 above the threshold.

    Raises ValueError for empty rows, a beta <= 0 or a number that is not finite, TypeError for
    integers or what is no number.

    Source: torch.nn.functional.softplus.
    """
    return _apply(x, "softplus", check_positive("beta", beta), check_real("threshold", threshold))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """``y = x · P(x)``, P the standard normal distribution function ½·(1 + erf(x/√2)).

    approximate="tanh": ``y = ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``. x: any shape with at least
    one element, float32 (float64 on cpu). Returns a tensor of its shape and dtype. At ±inf the
    limits are returned, inf and 0, where PyTorch gives NaN.

    Raises ValueError for empty rows or another approximate, TypeError for integers.

    Source: Hendrycks and Gimpel, arXiv:1606.08415; torch.nn.functional.gelu.
    """
    plain = choice("approximate", approximate, GELUS) == "none"
    return _apply(x, "gelu" if plain else "gelu_tanh")


def silu(x: Tensor) -> Tensor:
    """``y = x · sigmoid(x)``, also called swish.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype. At −inf the limit 0 is returned, where PyTorch gives NaN.

    Raises ValueError for empty rows, TypeError for integers.

    Source: Elfwing, Uchibe and Doya, arXiv:1702.03118; torch.nn.functional.silu.
    """
    return _apply(x, "silu")


def hardswish(x: Tensor) -> Tensor:
    """``y = x · min(max(x + 3, 0), 6) / 6``; the gradient is 0 at −3 and 1 at 3.

    x: any shape, float32 (float64 on cpu). Returns a tensor of its shape
    and dtype.

    Raises ValueError for empty rows, TypeError for integers.

    Source: Howard et al., arXiv:1905.02244; torch.nn.functional.hardswish.
    """
    return _apply(x, "hardswish")
