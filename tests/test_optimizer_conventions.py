"""Where libraries differ under one name: numbers, worked out by hand, that say which form holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AMSGrad,
    Lion,
    Nadam,
    Optimizer,
    RMSprop,
)

Build = Callable[[list[gpucnn.Tensor]], Optimizer]


def path(build: Build, gradients: Sequence[float], start: float = 0.0) -> float:
    """Where one parameter is after steps with these gradients."""
    p = gpucnn.Tensor(np.array([start]), requires_grad=True)
    optimizer = build([p])
    for g in gradients:
        p.grad = None
        p.backward(np.array([g]))
        optimizer.step()
    return float(p.item())


CONVENTIONS: list[tuple[str, Build, list[float], float, float]] = [
    # eps beside the corrected root: 1e-7/(1e-7 + 1e-8). Keras: a tenth of it.
    ("adam eps", lambda p: Adam(p, lr=1.0), [1e-7], 0.0, -0.9090909),
    # L2 goes through the moments and is normalised away: one full step, whatever the decay.
    ("adam l2", lambda p: Adam(p, lr=0.1, weight_decay=0.25), [0.0], 2.0, 1.9),
    # Decoupled decay is a factor 1 - 0.1 * 0.25.
    ("adamw decay", lambda p: AdamW(p, lr=0.1, weight_decay=0.25), [0.0], 2.0, 1.95),
    ("adamw decay, twice", lambda p: AdamW(p, lr=0.1, weight_decay=0.25), [0.0] * 2, 2.0, 1.90125),
    # The maximum is taken before the correction by 1 - b2^t: v = .1, then .09 < .1; m = .1, .09;
    # the second step is (.09/.19)/(√(.1/.19)).
    ("amsgrad", lambda p: AMSGrad(p, 1.0, (0.9, 0.9)), [1.0, 0.0], 0.0, -1 - 0.6529286),
    # eps outside the root, alpha 0.99: 1/√.01. Keras' first step is 1/√.1.
    ("rmsprop", lambda p: RMSprop(p, lr=1.0), [1.0], 0.0, -9.999999),
    # s - m² = .01 - .0001
    ("rmsprop centered", lambda p: RMSprop(p, 1.0, centered=True), [1.0], 0.0, -10.050377),
    # √1e-6/√(.1 + 1e-6), and lr is 1.
    ("adadelta", lambda p: Adadelta(p), [1.0], 0.0, -0.00316226),
    ("adagrad", lambda p: Adagrad(p, lr=1.0), [3.0, 4.0], 0.0, -1.8),
    # 1 + .1·μ₂/(1 - μ₁μ₂), momentum_decay 0.004. Keras (1): 1.0627879.
    ("nadam", lambda p: Nadam(p, lr=1.0), [1.0], 0.0, -1.0564518),
    ("nadam keras", lambda p: Nadam(p, 1.0, momentum_decay=1.0), [1.0], 0.0, -1.0627879),
    # The second u is .999, the second mean .09/.19.
    ("adamax", lambda p: Adamax(p, lr=1.0), [1.0, 0.0], 0.0, -1 - 0.4741583),
    ("lion", lambda p: Lion(p, lr=0.1), [5.0, -0.1, 0.0], 0.0, -0.3),
]


@pytest.mark.parametrize(
    ("build", "gradients", "start", "expected"),
    [c[1:] for c in CONVENTIONS],
    ids=[c[0] for c in CONVENTIONS],
)
def test_pinned_numbers(build: Any, gradients: Any, start: float, expected: float) -> None:
    assert path(build, gradients, start) == pytest.approx(expected, abs=2e-7)


def test_the_rate_is_not_part_of_sgds_velocity() -> None:
    """v = 1, then 1.9: with rates of 1 and .1 the way is 1.19. With lr·g accumulated it is 2."""
    p = gpucnn.Tensor(np.zeros(1), requires_grad=True)
    optimizer = SGD([p], lr=1.0, momentum=0.9)
    for lr in (1.0, 0.1):
        optimizer.lr = lr
        p.grad = None
        p.backward(np.ones(1))
        optimizer.step()
    assert p.item() == pytest.approx(-1.19)
