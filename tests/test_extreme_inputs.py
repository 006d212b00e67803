"""Every activation and every loss at the ends of the numbers, on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import ACTIVATION_FUNCTIONS, REGRESSION_LOSS
from gpucnn import Tensor
from gpucnn import functional as F
from tests.support import gradients

LARGEST = np.finfo(np.float32).max
EXTREME = np.array([0, -0.0, 1e-45, -1e-45, 1e-30, 88.8, -88.8, 104, -104, 1e4, -1e4, 1e18, -1e18,
                    LARGEST / 2, -LARGEST / 2], np.float32)  # fmt: skip
WITHIN = EXTREME[np.abs(EXTREME) < 1e30]

ACTIVATIONS: list[tuple[str, dict[str, Any]]] = [
    *ACTIVATION_FUNCTIONS,
    ("identity", {}),
    ("softmax", {}),
    ("log_softmax", {}),
]


def activation(name: str, options: dict[str, Any]) -> Any:
    return lambda x: getattr(F, name)(x, **options)


ids = {"ids": lambda value: str(value).replace(" ", "")}


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS, **ids)
def test_activations_stay_finite(name: str, options: dict[str, Any], device: str) -> None:
    x = WITHIN if name == "log_softmax" else EXTREME  # a difference of two of them is no float32
    y, (dx,) = gradients(activation(name, options), [x], np.ones_like(x), device)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("weight", [0.25, -1.0])
def test_prelu_stays_finite(weight: float, device: str) -> None:
    slope, x = np.array([weight], np.float32), WITHIN
    y, grads = gradients(F.prelu, [x, slope], np.ones_like(x), device)
    assert np.isfinite(y).all()
    assert all(np.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS, **ids)
def test_nan_in_nan_out(name: str, options: dict[str, Any], device: str) -> None:
    """At each place of a vector of four and of its tail; other rows are left alone."""
    for at in range(5):
        x = np.zeros((3, 5), np.float32)
        x[1, at] = np.nan
        y = activation(name, options)(Tensor(x, device=device)).numpy()
        assert np.isnan(y[1, at])
        assert np.isfinite(y[[0, 2]]).all()


SCORES = np.array([[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [-1e4, -1e4, -1e4]], np.float32)
TARGETS: dict[str, Any] = {
    "hinge_loss": np.array([[1, -1, 1], [1, 1, -1], [-1, 1, 1]]),
    "binary_cross_entropy_with_logits": np.array([[1, 0, 0.5], [1, 0, 1], [0, 1, 0.25]]),
    "kl_div": np.array([[0, 1, 0], [0.5, 0.25, 0.25], [1, 0, 0]]),
}
CLASS_LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("cross_entropy", {}),
    ("cross_entropy", {"label_smoothing": 0.1}),
    ("cross_entropy", {"weight": [0.5, 1.0, 2.0], "ignore_index": 2}),
    ("nll_loss", {}),
    ("multi_margin_loss", {}),
    ("multi_margin_loss", {"p": 2}),
]


def check_finite(
    name: str, target: Any, options: dict[str, Any], device: str, of_scores: bool = False
) -> None:
    for reduction in ("mean", "sum", "none"):
        x = Tensor(SCORES, requires_grad=True, device=device)
        scores = F.log_softmax(x) if of_scores else x
        loss = getattr(F, name)(scores, target, reduction=reduction, **options)
        loss.backward(np.ones(loss.shape, np.float32))
        assert np.isfinite(loss.numpy()).all()
        assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(("name", "options"), REGRESSION_LOSS, **ids)
def test_losses_of_numbers_are_finite(name: str, options: dict[str, Any], device: str) -> None:
    target = TARGETS.get(name, -SCORES)
    if options.get("log_target"):
        target = np.where(target > 0, np.log(np.maximum(target, 1e-30)), -1e4)
    check_finite(name, target, options, device, name == "kl_div")


@pytest.mark.parametrize(("name", "options"), CLASS_LOSSES, **ids)
def test_losses_of_classes_are_finite(name: str, options: dict[str, Any], device: str) -> None:
    check_finite(name, [1, 0, 2], options, device, name == "nll_loss")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_probabilities_are_finite(smoothing: float, device: str) -> None:
    check_finite("cross_entropy", TARGETS["kl_div"], {"label_smoothing": smoothing}, device)


def test_the_table_holds_every_activation_and_loss() -> None:
    names = {name for name, _ in [*ACTIVATIONS, *REGRESSION_LOSS, *CLASS_LOSSES]} | {"prelu"}
    losses = {name for name in F.__all__ if name.endswith("_loss")}
    losses |= {"cross_entropy", "kl_div", "binary_cross_entropy_with_logits"}
    activations = {name.lower() for name in gpucnn.ops.activation.__dict__ if name in F.__all__}
    assert losses | activations <= names
