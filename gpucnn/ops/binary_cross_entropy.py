"""Binary cross-entropy of scores: ``kernels/regression_loss.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array
from gpucnn.ops.loss import check_reduction, constant, float_constant
from gpucnn.ops.regression_formulas import bce_with_logits
from gpucnn.ops.regression_loss import (
    CHUNK,
    Formula,
    check_numbers,
    evaluate,
    launch_loss,
    launch_slopes,
    multiply_slopes,
    pair_loss,
    regression_loss_backward,
    regression_loss_forward,
)
from gpucnn.primitive import primitive
from gpucnn.tensor import Tensor

# geometry


def _repeated(name: str, value: Any, input: Tensor) -> Array | None:
    """A weight as a vector that repeats along the flat input, or None."""
    if value is None:
        return None
    shape = tuple(constant(name, value, input.device).shape)
    if shape not in ((), (1,)) and shape != input.shape[input.ndim - len(shape) :]:
        raise ValueError(
            f"{name} must be one number or have the shape of input, {input.shape}, or of its last "
            f"axes, got {shape}"
        )
    return float_constant(name, value, shape, input).reshape(-1)


# primitives


def _formula(weight: Array | None, pos_weight: Array | None, n: int) -> Formula:
    def repeat(vector: Array | None) -> NDArray[Any] | None:
        enough = min(n, CHUNK + vector.size) if vector is not None else 0
        return vector if vector is None or vector.size >= n else np.resize(vector, enough)

    given = [
        (repeat(vector), 1 if vector is None else vector.size) for vector in (weight, pos_weight)
    ]

    def formula(at: slice, x: Array, t: Array, loss: Array, slope: Array) -> None:
        pieces = [None if v is None else v[at.start % period :][: x.size] for v, period in given]
        bce_with_logits(x, t, loss, slope, *pieces)

    return formula


@primitive
def weighted_bce_forward(
    x: Array,
    target: Array,
    weight: Array | None,
    pos_weight: Array | None,
    factor: float,
    add: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss = factor·w·(−p·t·log sigmoid(x) − (1 − t)·log sigmoid(−x)), and factor·slope

    x, target of n elements; weight w and pos_weight p: vectors that repeat along them, or None for
    1 -> loss () if add, else of the shape of x; dx of that shape or None.
    """
    return evaluate(_formula(weight, pos_weight, x.size), x, target, factor, add, gradient)


@primitive
def weighted_bce_backward(
    dy: Array, x: Array, target: Array, weight: Array | None, pos_weight: Array | None
) -> Array:
    """dx = dy·w·((p·t + 1 − t)·sigmoid(x) − p·t), all as in the forward pass."""
    return multiply_slopes(_formula(weight, pos_weight, x.size), dy, x, target)


def _rest(weight: Array | None, pos_weight: Array | None) -> tuple[Any, ...]:
    sizes = (1 if vector is None else vector.size for vector in (weight, pos_weight))
    return weight, pos_weight, *sizes


@weighted_bce_forward.kernel()
def _launch_forward(
    x: Array,
    target: Array,
    weight: Array | None,
    pos_weight: Array | None,
    factor: float,
    add: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    rest = _rest(weight, pos_weight)
    return launch_loss("weighted_bce_with_logits_loss", x, target, rest, factor, add, gradient)


@weighted_bce_backward.kernel()
def _launch_backward(
    dy: Array, x: Array, target: Array, weight: Array | None, pos_weight: Array | None
) -> Array:
    rest = _rest(weight, pos_weight)
    return launch_slopes("weighted_bce_with_logits_loss", dy, x, target, rest)


# public


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Any,
    *,
    weight: Any = None,
    pos_weight: Any = None,
    reduction: str = "mean",
) -> Tensor:
    """``w·(−p·t·log sigmoid(x) − (1 − t)·log sigmoid(−x))`` for scores x = input and t = target.

    The gradient is w·(sigmoid(x) − t) where p is 1. The sigmoid is never taken the logarithm of, so
    that scores of ±1e4 cost their distance. input: any shape with at least one element, float32
    (float64 on cpu). target: numbers of its shape, 0…1 (not checked), as NumPy array, lists, or
    Tensor on the device of input. weight w and pos_weight p, 1 if not given: one number, or numbers
    of the shape of input or of its last axes, such as (C) for each class; p > 1 makes a missed
    positive cost more. reduction: "mean" over all elements, whatever the weights, "sum" or "none".
    Returns a 0-d tensor, or one of the shape of input with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype or option does not fit, or
    target or a weight requires a gradient; DeviceError for a Tensor on another device.

    Source: torch.nn.functional.binary_cross_entropy_with_logits.
    """
    check_numbers(input)
    check_reduction(reduction)
    wanted = float_constant("target", target, input.shape, input)
    if weight is None and pos_weight is None:
        plain = regression_loss_forward, regression_loss_backward
        return pair_loss(input, wanted, reduction, plain, "bce_with_logits_loss", ())
    weights = _repeated("weight", weight, input), _repeated("pos_weight", pos_weight, input)
    primitives = weighted_bce_forward, weighted_bce_backward
    return pair_loss(input, wanted, reduction, primitives, *weights)
