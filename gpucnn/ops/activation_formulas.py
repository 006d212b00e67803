"""The activations on one piece of an array: values and slopes, in place of a buffer.

Each formula writes to ``out`` what it computes from ``x`` (or from the output ``y``), in float32 or
float64. A NaN passes. exp() only sees numbers <= 0, and a factor that is 0 far out meets a bounded
x, so that nothing overflows and 0 · infinity does not arise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucnn.threads import scratch

Floats = NDArray[Any]

_SQRT_2_OVER_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715
_FAR = 40.0  # beyond it sigmoid(2u) and the normal distribution are 0 or 1
_SILU_FAR = 1000.0


class Activation(NamedTuple):
    """``forward(x, out, *parameters)`` writes y, ``slope(kept, out, *parameters)`` writes dy/dx."""

    forward: Callable[..., None]
    slope: Callable[..., None]
    keeps_output: bool = False  # slope takes y, else x


def _like(name: str, x: Floats) -> Floats:
    return scratch(f"activation {name}", x.shape, x.dtype)


def _bounded(x: Floats, limit: float) -> Floats:
    return np.clip(x, -limit, limit, out=_like("bounded", x))


def positive(x: Floats, out: Floats) -> None:
    """1 where x > 0, else 0; copying or computing under a mask is several times slower."""
    greater = scratch("activation greater", x.shape, np.bool_)
    np.greater(x, 0, out=greater)
    np.copyto(out, greater.view(np.int8))


def _sigmoid(x: Floats, out: Floats) -> None:
    """e^min(x, 0) / (1 + e^-|x|): the numerator is 1 where x >= 0."""
    power = _like("power", x)
    np.abs(x, out=power)
    np.negative(power, out=power)
    np.exp(power, out=power)
    power += 1
    np.minimum(x, 0, out=out)
    np.exp(out, out=out)
    out /= power


def two_slopes(x: Floats, out: Floats, negative_slope: Any) -> None:
    """x where x > 0, else negative_slope·x."""
    below = np.minimum(x, 0, out=_like("term", x))
    below *= negative_slope
    np.maximum(x, 0, out=out)
    out += below


def two_slopes_slope(x: Floats, out: Floats, negative_slope: Any) -> None:
    """1 where x > 0, else negative_slope."""
    positive(x, out)
    below = np.subtract(1, out, out=_like("term", x))
    below *= negative_slope
    out += below


def _elu(x: Floats, out: Floats, alpha: float, scale: float) -> None:
    below = np.minimum(x, 0, out=_like("term", x))
    np.expm1(below, out=below)
    below *= alpha * scale
    np.maximum(x, 0, out=out)
    out *= scale
    out += below


def _elu_slope(x: Floats, out: Floats, alpha: float, scale: float) -> None:
    positive(x, out)
    power = np.minimum(x, 0, out=_like("power", x))
    np.exp(power, out=power)
    power *= alpha * scale
    power *= np.subtract(1, out, out=_like("term", x))
    out *= scale
    out += power


def _sigmoid_slope(y: Floats, out: Floats) -> None:
    np.subtract(1, y, out=out)
    out *= y


def _tanh(x: Floats, out: Floats) -> None:
    np.tanh(x, out=out)


def _tanh_slope(y: Floats, out: Floats) -> None:
    np.multiply(y, y, out=out)
    np.subtract(1, out, out=out)


def _softplus(x: Floats, out: Floats, beta: float, threshold: float) -> None:
    t = np.multiply(x, beta, out=_like("product", x))
    np.abs(t, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    np.log1p(out, out=out)
    out += np.maximum(t, 0, out=_like("power", x))
    out /= beta
    np.copyto(out, x, where=t > threshold)


def _softplus_slope(x: Floats, out: Floats, beta: float, threshold: float) -> None:
    t = np.multiply(x, beta, out=_like("product", x))
    _sigmoid(t, out)
    np.copyto(out, 1, where=t > threshold)


@functools.cache
def _scaled_erfc_series(degree: int) -> list[float]:
    """Chebyshev series of exp(x²)·erfc(x), x >= 0, in t = (x − 3) / (x + 3).

    Source of the variable: Schonfelder, Mathematics of Computation 32 (1978).
    """

    def scaled_erfc(x: float) -> float:
        if x < 5:
            return math.exp(x * x) * math.erfc(x)
        fraction = 0.0  # the continued fraction of Laplace
        for k in range(80, 0, -1):
            fraction = k / 2 / (x + fraction)
        return 1 / math.sqrt(math.pi) / (x + fraction)

    def values(t: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([scaled_erfc(3 * (1 + v) / (1 - v)) for v in t])

    return [float(c) for c in np.polynomial.chebyshev.chebinterpolate(values, degree)]  # type: ignore[type-var]


def _normal_distribution(x: Floats, out: Floats) -> None:
    """½·erfc(−x/√2); a series of degree 10 is right to 3e-9, one of 24 to 4e-15."""
    series = _scaled_erfc_series(10 if x.dtype == np.float32 else 24)
    t, before, last, term = (_like(name, x) for name in ("t", "before", "last", "term"))
    np.abs(x, out=last)
    last *= math.sqrt(0.5)
    np.add(last, 3, out=t)
    np.divide(-6, t, out=t)
    t += 1
    np.multiply(last, last, out=out)
    np.negative(out, out=out)
    np.exp(out, out=out)
    before[...], last[...] = 0, series[-1]
    for c in series[-2:0:-1]:  # Clenshaw's recurrence
        np.multiply(t, last, out=term)
        term *= 2
        term -= before
        term += c
        before, last, term = last, term, before
    np.multiply(t, last, out=term)
    term -= before
    term += series[0]
    out *= term
    out *= 0.5
    positive(x, t)
    np.subtract(t, out, out=out)  # 1 − the other tail, or −out
    np.abs(out, out=out)


def _gelu(x: Floats, out: Floats) -> None:
    _normal_distribution(_bounded(x, _FAR), out)
    out *= np.maximum(x, -_FAR, out=_like("term", x))


def _gelu_slope(x: Floats, out: Floats) -> None:
    v = _bounded(x, _FAR)
    _normal_distribution(v, out)
    density = np.multiply(v, v, out=_like("power", x))
    density *= -0.5
    np.exp(density, out=density)
    density *= 1 / math.sqrt(2 * math.pi)
    density *= v
    out += density


def _gelu_tanh_sigmoid(v: Floats, out: Floats) -> Floats:
    """sigmoid(2u), u = √(2/π)·(v + 0.044715·v³), and v²."""
    square = np.multiply(v, v, out=_like("square", v))
    u = np.multiply(square, 2 * _SQRT_2_OVER_PI * _CUBIC, out=_like("product", v))
    u += 2 * _SQRT_2_OVER_PI
    u *= v
    _sigmoid(u, out)
    return square


def _gelu_tanh(x: Floats, out: Floats) -> None:
    _gelu_tanh_sigmoid(_bounded(x, _FAR), out)
    out *= np.maximum(x, -_FAR, out=_like("term", x))


def _gelu_tanh_slope(x: Floats, out: Floats) -> None:
    v = _bounded(x, _FAR)
    inner = _gelu_tanh_sigmoid(v, out)
    inner *= 6 * _SQRT_2_OVER_PI * _CUBIC
    inner += 2 * _SQRT_2_OVER_PI
    inner *= v
    _add_bell(out, inner)


def _add_bell(out: Floats, factor: Floats) -> None:
    """s + factor·s·(1 − s) for s = out; factor is overwritten."""
    bell = np.subtract(1, out, out=_like("term", out))
    bell *= out
    bell *= factor
    out += bell


def _silu(x: Floats, out: Floats) -> None:
    _sigmoid(x, out)
    out *= np.maximum(x, -_SILU_FAR, out=_like("term", x))


def _silu_slope(x: Floats, out: Floats) -> None:
    _sigmoid(x, out)
    _add_bell(out, _bounded(x, _SILU_FAR))


def _hardswish(x: Floats, out: Floats) -> None:
    np.add(x, 3, out=out)
    np.clip(out, 0, 6, out=out)
    out /= 6
    out *= np.maximum(x, -3, out=_like("term", x))


def _hardswish_slope(x: Floats, out: Floats) -> None:
    np.divide(x, 3, out=out)
    out += 0.5
    np.copyto(out, 0, where=x <= -3)
    np.copyto(out, 1, where=x >= 3)


ACTIVATIONS = {
    "leaky_relu": Activation(two_slopes, two_slopes_slope),
    "elu": Activation(_elu, _elu_slope),
    "sigmoid": Activation(_sigmoid, _sigmoid_slope, keeps_output=True),
    "tanh": Activation(_tanh, _tanh_slope, keeps_output=True),
    "softplus": Activation(_softplus, _softplus_slope),
    "gelu": Activation(_gelu, _gelu_slope),
    "gelu_tanh": Activation(_gelu_tanh, _gelu_tanh_slope),
    "silu": Activation(_silu, _silu_slope),
    "hardswish": Activation(_hardswish, _hardswish_slope),
}
