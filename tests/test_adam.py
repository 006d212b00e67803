"""Adam, AdamW, AMSGrad, Adamax, Nadam: loops -> steps -> kernels; PyTorch's trajectories."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.cases import OPTIMIZER
from gpucnn.ops.adam import AdamStep, adam_step, adamax_step, nadam_step
from gpucnn.optim import Adam, Adamax, AdamW, AMSGrad, Nadam, Optimizer
from gpucnn.primitive import Primitive
from tests.optimizers import (
    DECAYS,
    RATES,
    Config,
    check_step,
    continue_to_the_bit,
    drawn,
    float64_numbers,
    follow_pytorch,
    follow_the_definition,
    follow_the_formula,
    parametrize,
)
from tests.support import needs_torch

__all__ = ["float64_numbers"]

CONFIGS: list[Config] = [
    ("adam", Adam, {"lr": 0.01}),
    (
        "adam decay",
        Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    ("adamw", AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ("amsgrad", AMSGrad, {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    ("adamax", Adamax, {}),
    ("adamax decay", Adamax, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    ("nadam", Nadam, {}),
    ("nadam decay", Nadam, {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 1.0}),
    ("nadamw", Nadam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
]
configs = parametrize(CONFIGS)

MOMENTS = {
    "lr": RATES,
    "betas": [(0.9, 0.999), (0.0, 0.5), (0.8, 0.0), (0.5, 0.9)],
    "eps": [1e-8, 1e-3],
    "weight_decay": DECAYS,
}
OPTIONS: dict[type[Optimizer], st.SearchStrategy[dict[str, Any]]] = {
    **{ours: drawn(**MOMENTS) for ours in (Adam, AdamW, AMSGrad, Adamax)},
    Nadam: drawn(**MOMENTS, momentum_decay=[0.0, 0.004, 1.0], decoupled_weight_decay=[False, True]),
}

STEP = AdamStep(0.1, 0.9, 0.99, 1e-8, 0.1, True, 3)
STEPS: list[
    tuple[Primitive, int, tuple[Any, ...]]
] = [  # (step, its states, its numbers and options)
    (adam_step, 3, (STEP.adam(),)),
    (nadam_step, 2, (STEP.nadam(0.2, 0.3),)),
    (adamax_step, 2, (STEP.adamax(),)),
]


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@parametrize(CONFIGS)
def test_100_steps_of_pytorch(ours: type[Optimizer], options: dict[str, Any]) -> None:
    follow_pytorch(ours, options, 100)


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@pytest.mark.parametrize("ours", OPTIONS)
@given(data=st.data())
def test_drawn_options_follow_pytorch(ours: type[Optimizer], data: st.DataObject) -> None:
    follow_pytorch(ours, data.draw(OPTIONS[ours]), 8)


@configs
def test_steps_are_the_formulas(ours: type[Optimizer], options: dict[str, Any]) -> None:
    follow_the_formula(ours, options)


@configs
def test_kernels_follow_the_definition(
    ours: type[Optimizer], options: dict[str, Any], kernel_device: str
) -> None:
    follow_the_definition(ours, options, kernel_device)


@configs
def test_state_continues_to_the_bit(ours: type[Optimizer], options: dict[str, Any]) -> None:
    continue_to_the_bit(ours, options)


@pytest.mark.parametrize("n", OPTIMIZER)
@pytest.mark.parametrize(("step", "states", "numbers"), STEPS, ids=[s[0].name for s in STEPS])
def test_kernel_tails(
    step: Primitive, states: int, numbers: tuple[Any, ...], n: int, kernel_device: str
) -> None:
    check_step(step, states, numbers, n, kernel_device)
