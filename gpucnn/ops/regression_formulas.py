"""The losses of pairs of numbers on one piece of x and t: values and slopes, both written.

In float32 or float64. NaN passes; exp() only sees numbers <= 0, or logarithms of probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.threads import scratch

Floats = NDArray[Any]


def _sign(x: Floats, out: Floats) -> None:
    """-1, 0 or 1, by overflow: NumPy's sign takes a branch at each number."""
    np.multiply(x, np.finfo(x.dtype).max, out=out)
    out *= np.finfo(x.dtype).max
    np.clip(out, -1, 1, out=out)


def _l1(x: Floats, t: Floats, loss: Floats, slope: Floats) -> None:
    np.subtract(x, t, out=slope)
    np.abs(slope, out=loss)
    _sign(slope, slope)


def _mse(x: Floats, t: Floats, loss: Floats, slope: Floats) -> None:
    np.subtract(x, t, out=slope)
    np.multiply(slope, slope, out=loss)
    slope *= 2


def _huber(
    x: Floats, t: Floats, loss: Floats, slope: Floats, delta: float, curvature: float
) -> None:
    np.subtract(x, t, out=slope)
    distance = np.abs(slope, out=scratch("loss a", x.shape, x.dtype))
    near = np.clip(distance, 0, delta, out=scratch("loss b", x.shape, x.dtype))
    np.multiply(near, 0.5, out=loss)
    np.subtract(distance, loss, out=loss)
    if curvature != 1:
        near *= curvature
    loss *= near
    np.clip(slope, -delta, delta, out=slope)
    if curvature != 1:
        slope *= curvature


def bce_with_logits(
    x: Floats,
    t: Floats,
    loss: Floats,
    slope: Floats,
    weight: Floats | None = None,
    pos_weight: Floats | None = None,
) -> None:
    """a·log(1 + e^-x) + b·log(1 + e^x), a = w·p·t, b = w·(1 − t), slope (a + b)·sigmoid(x) − a.

    Both logarithms are log(1 + e^-|x|), one of them with |x| more.
    """
    power, positive, negative = (scratch(f"loss {i}", x.shape, x.dtype) for i in "abc")
    np.abs(x, out=power)
    np.negative(power, out=power)
    np.exp(power, out=power)
    np.log1p(power, out=loss)
    np.negative(x, out=slope)
    np.exp(slope, out=slope)
    slope += 1
    np.divide(1, slope, out=slope)
    np.subtract(1, t, out=negative)
    if pos_weight is None:
        positive[...] = t
    else:
        np.multiply(t, pos_weight, out=positive)
    if weight is not None:
        positive *= weight
        negative *= weight
    if weight is not None or pos_weight is not None:
        both = np.add(positive, negative, out=power)
        loss *= both
        slope *= both
    slope -= positive
    positive *= np.clip(x, -np.inf, 0, out=power)
    loss -= positive
    negative *= np.clip(x, 0, np.inf, out=power)
    loss += negative


def _hinge(x: Floats, t: Floats, loss: Floats, slope: Floats) -> None:
    np.multiply(t, x, out=loss)
    np.subtract(1, loss, out=loss)
    np.clip(loss, 0, np.inf, out=loss)
    _sign(loss, slope)
    slope *= t
    np.negative(slope, out=slope)


def _kl_div(x: Floats, t: Floats, loss: Floats, slope: Floats) -> None:
    np.log(t, out=loss)
    loss -= x
    loss *= t
    np.copyto(loss, 0, where=(t == 0) & (x == x))
    np.negative(t, out=slope)


def _kl_div_log(x: Floats, t: Floats, loss: Floats, slope: Floats) -> None:
    np.exp(t, out=slope)
    np.subtract(t, x, out=loss)
    loss *= slope
    np.copyto(loss, 0, where=(slope == 0) & (x == x))
    np.negative(slope, out=slope)


# name -> what writes loss and slope of a piece of x and t
LOSSES: dict[str, Callable[..., None]] = {
    "l1_loss": _l1,
    "mse_loss": _mse,
    "huber_loss": _huber,
    "bce_with_logits_loss": bce_with_logits,
    "hinge_loss": _hinge,
    "kl_div": _kl_div,
    "kl_div_log": _kl_div_log,
}
