"""The activations on one piece of an array: values and slopes, in place of a buffer.

Each formula writes what it computes from ``x`` (or from the output ``y``), in float32 or float64. A
NaN passes; an exponential may overflow to infinity where it is divided by, and a factor that is 0
far out meets a bounded x, so that 0 · infinity does not arise. Only what NumPy vectorises is used:
selections under a mask and minima with a number are several times slower than all else.
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
    """``formula(x, y, slope, *parameters)`` writes y and, unless slope is None, dy/dx as well.

    Where dy/dx shares nothing with y, ``slope(kept, out, *parameters)`` writes it alone, from x or,
    with keeps_output, from y; the formula then always gets None.
    """

    formula: Callable[..., None]
    slope: Callable[..., None] | None = None
    keeps_output: bool = False


def _like(name: str, x: Floats) -> Floats:
    return scratch(f"activation {name}", x.shape, x.dtype)


def not_below(x: Floats, least: float, out: Floats) -> Floats:
    """max(x, least): NumPy's maximum and minimum with a number are not vectorised, clip is."""
    return np.clip(x, least, np.inf, out=out)


def _not_above(x: Floats, most: float, out: Floats) -> Floats:
    return np.clip(x, -np.inf, most, out=out)


def positive(x: Floats, out: Floats) -> None:
    """1 where x > 0, else 0."""
    greater = scratch("activation greater", x.shape, np.bool_)
    np.greater(x, 0, out=greater)
    np.copyto(out, greater.view(np.int8))


def _sigmoid(x: Floats, out: Floats) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.divide(1, out, out=out)


def two_slopes(x: Floats, out: Floats, negative_slope: Any) -> None:
    """x where x > 0, else negative_slope·x."""
    below = _not_above(x, 0, _like("term", x))
    below *= negative_slope
    not_below(x, 0, out)
    out += below


def two_slopes_slope(x: Floats, out: Floats, negative_slope: Any) -> None:
    """1 where x > 0, else negative_slope."""
    positive(x, out)
    below = np.subtract(1, out, out=_like("term", x))
    below *= negative_slope
    out += below


def _leaky_relu(x: Floats, y: Floats, slope: None, negative_slope: float) -> None:
    if x.dtype.type(negative_slope) == 0:  # 0 · infinity
        two_slopes(x, y, negative_slope)
        return
    np.multiply(x, negative_slope, out=y)
    (np.maximum if negative_slope <= 1 else np.minimum)(x, y, out=y)


def _elu(x: Floats, y: Floats, slope: Floats | None, alpha: float, scale: float) -> None:
    below = _not_above(x, 0, _like("below", x))
    np.expm1(below, out=y)
    y *= alpha * scale
    above = not_below(x, 0, _like("term", x))
    above *= scale
    y += above
    if slope is None:
        return
    np.exp(below, out=slope)
    positive(x, above)
    slope -= above
    slope *= alpha * scale
    above *= scale
    slope += above


def _sigmoid_forward(x: Floats, y: Floats, slope: None) -> None:
    _sigmoid(x, y)


def _sigmoid_slope(y: Floats, out: Floats) -> None:
    np.subtract(1, y, out=out)
    out *= y


def _tanh(x: Floats, y: Floats, slope: None) -> None:
    np.tanh(x, out=y)


def _tanh_slope(y: Floats, out: Floats) -> None:
    np.multiply(y, y, out=out)
    np.subtract(1, out, out=out)


def _beyond(t: Floats, threshold: float) -> NDArray[np.bool_] | None:
    """Where t > threshold; None if nowhere."""
    beyond = np.greater(t, threshold, out=scratch("activation greater", t.shape, np.bool_))
    return beyond if beyond.any() else None


def _softplus(x: Floats, y: Floats, slope: None, beta: float, threshold: float) -> None:
    t = np.multiply(x, beta, out=_like("product", x))
    np.abs(t, out=y)
    np.negative(y, out=y)
    np.exp(y, out=y)
    np.log1p(y, out=y)
    y += not_below(t, 0, _like("term", x))
    y /= beta
    if (beyond := _beyond(t, threshold)) is not None:
        np.copyto(y, x, where=beyond)


def _softplus_slope(x: Floats, out: Floats, beta: float, threshold: float) -> None:
    t = np.multiply(x, beta, out=_like("product", x))
    _sigmoid(t, out)
    if (beyond := _beyond(t, threshold)) is not None:
        np.copyto(out, 1, where=beyond)


# P(x) = ½ + ½·tanh(x·p(x²)), P the normal distribution function: the coefficients of p, by a
# minimax fit of log(P(x)/P(−x)) that is weighted by P(x)·P(−x)·max(1, |x|): 6.8e-8 from P.
_HALF_LOGIT = (
    7.978844926671635e-1, 3.633391133298158e-2, -3.2954754617345e-5, -5.5278018017980e-5,
    3.973113363173355e-6, -1.3364687673754e-7, 1.80936345834955e-9,
)  # fmt: skip


def _normal_distribution(x: Floats, out: Floats) -> None:
    """P(x), and 0 or 1 at ±inf."""
    if x.dtype == np.float64:
        _normal_distribution_to_14_digits(x, out)
        return
    square = np.multiply(x, x, out=_like("product", x))
    np.multiply(square, _HALF_LOGIT[-1], out=out)
    for c in _HALF_LOGIT[-2:0:-1]:
        out += c
        out *= square
    out += _HALF_LOGIT[0]
    out *= x
    np.tanh(out, out=out)
    out += 1
    out *= 0.5


@functools.cache
def _scaled_erfc() -> list[float]:
    """A polynomial for exp(z²)·erfc(z), z >= 0, in t = (z − 2.5) / (z + 2.5), right to 1e-14.

    Source of the variable: Schonfelder, Mathematics of Computation 32 (1978).
    """

    def scaled_erfc(z: float) -> float:
        if z < 5:
            return math.exp(z * z) * math.erfc(z)
        fraction = 0.0  # the continued fraction of Laplace
        for k in range(80, 0, -1):
            fraction = k / 2 / (z + fraction)
        return 1 / math.sqrt(math.pi) / (z + fraction)

    def values(t: Any) -> Any:
        return np.array([scaled_erfc(2.5 * (1 + v) / (1 - v)) for v in t])

    chebyshev = np.polynomial.chebyshev
    series = chebyshev.chebinterpolate(values, 24)
    return [float(c) for c in chebyshev.cheb2poly(series)]


def _normal_distribution_to_14_digits(x: Floats, out: Floats) -> None:
    """½·erfc(−x/√2), with as many digits where it is near 0."""
    z, t = _like("product", x), _like("term", x)
    np.abs(x, out=z)
    z *= math.sqrt(0.5)
    np.add(z, 2.5, out=t)
    np.divide(-5, t, out=t)
    t += 1
    np.multiply(t, _scaled_erfc()[-1], out=out)
    for c in _scaled_erfc()[-2:0:-1]:
        out += c
        out *= t
    out += _scaled_erfc()[0]
    z *= z
    np.negative(z, out=z)
    out *= np.exp(z, out=z)
    out *= 0.5
    positive(x, t)
    np.subtract(t, out, out=out)  # 1 − the other tail, or −out
    np.abs(out, out=out)


def _gelu(x: Floats, y: Floats, slope: Floats | None) -> None:
    """x·P(x), with the slope P(x) + x·density."""
    _normal_distribution(x, y)
    v = not_below(x, -_FAR, _like("bounded", x))
    if slope is not None:
        np.multiply(x, x, out=slope)
        slope *= -0.5
        np.exp(slope, out=slope)
        slope *= 1 / math.sqrt(2 * math.pi)
        slope *= _not_above(v, _FAR, _like("term", x))
        slope += y
    y *= v


def _gelu_tanh(x: Floats, y: Floats, slope: Floats | None) -> None:
    v = np.clip(x, -_FAR, _FAR, out=_like("bounded", x))
    square = np.multiply(v, v, out=_like("term", v))
    u = np.multiply(square, 2 * _SQRT_2_OVER_PI * _CUBIC, out=_like("product", v))
    u += 2 * _SQRT_2_OVER_PI
    u *= v
    _sigmoid(u, y)
    if slope is not None:
        square *= 6 * _SQRT_2_OVER_PI * _CUBIC
        square += 2 * _SQRT_2_OVER_PI
        v *= square
        _bell(y, v, slope)
    y *= not_below(x, -_FAR, square)


def _bell(s: Floats, factor: Floats, out: Floats) -> None:
    """s + factor·s·(1 − s)."""
    np.subtract(1, s, out=out)
    out *= factor
    out += 1
    out *= s


def _silu(x: Floats, y: Floats, slope: Floats | None) -> None:
    _sigmoid(x, y)
    v = not_below(x, -_SILU_FAR, _like("bounded", x))
    if slope is not None:
        _bell(y, _not_above(v, _SILU_FAR, _like("term", x)), slope)
    y *= v


def _hardswish(x: Floats, y: Floats, slope: None) -> None:
    above = not_below(x, -3, _like("term", x))
    np.multiply(above, 1 / 6, out=y)
    y += 0.5
    _not_above(y, 1, y)
    y *= above


def _hardswish_slope(x: Floats, out: Floats) -> None:
    """q + ½ for q = x/3 cut to -1…1, at both ends ½ nearer to 0."""
    np.clip(x, -3, 3, out=out)
    out /= 3
    jump = np.trunc(out, out=_like("term", x))
    jump *= 0.5
    out -= jump
    out += 0.5


ACTIVATIONS = {
    "leaky_relu": Activation(_leaky_relu, two_slopes_slope),
    "elu": Activation(_elu),
    "sigmoid": Activation(_sigmoid_forward, _sigmoid_slope, keeps_output=True),
    "tanh": Activation(_tanh, _tanh_slope, keeps_output=True),
    "softplus": Activation(_softplus, _softplus_slope),
    "gelu": Activation(_gelu),
    "gelu_tanh": Activation(_gelu_tanh),
    "silu": Activation(_silu),
    "hardswish": Activation(_hardswish, _hardswish_slope),
}
