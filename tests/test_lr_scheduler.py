"""Learning-rate schedules against PyTorch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.optim import (
    SGD,
    CosineAnnealingLR,
    ExponentialLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    Optimizer,
    ReduceLROnPlateau,
    StepLR,
    WarmupLR,
)
from tests.support import needs_torch, torch

RATES = [0.5, 0.02]  # of two parameter groups


def sgd() -> SGD:
    return SGD(
        [
            {"params": gpucnn.Tensor(np.zeros(2, np.float32), requires_grad=True), "lr": lr}
            for lr in RATES
        ],
        lr=1.0,
    )


def torch_sgd() -> Any:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr} for lr in RATES], lr=1.0)


def rates(optimizer: Any) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


def theirs(name: str, *args: Any, **options: Any) -> Callable[[Any], Any]:
    return lambda optimizer: getattr(torch.optim.lr_scheduler, name)(optimizer, *args, **options)


def warm(steps: int, factor: float, then: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def build(optimizer: Any) -> Any:
        module = torch.optim.lr_scheduler
        rise = module.LinearLR(optimizer, start_factor=factor, total_iters=steps)
        return module.SequentialLR(optimizer, [rise, then(optimizer)], milestones=[steps])

    return build


SCHEDULES: dict[str, tuple[Callable[[Optimizer], LRScheduler], Callable[[Any], Any], int]] = {
    "step": (lambda o: StepLR(o, 3), theirs("StepLR", 3), 20),
    "step gamma": (lambda o: StepLR(o, 1, 0.7), theirs("StepLR", 1, 0.7), 20),
    "multi-step": (
        lambda o: MultiStepLR(o, [2, 5, 5, 11], 0.5),
        theirs("MultiStepLR", [2, 5, 5, 11], 0.5),
        20,
    ),
    "no milestone": (lambda o: MultiStepLR(o, []), theirs("MultiStepLR", []), 5),
    "exponential": (lambda o: ExponentialLR(o, 0.9), theirs("ExponentialLR", 0.9), 30),
    "cosine": (
        lambda o: CosineAnnealingLR(o, 20, eta_min=0.01),
        theirs("CosineAnnealingLR", 20, eta_min=0.01),
        20,
    ),
    **{
        f"one cycle {total} {share}": (
            lambda o, total=total, share=share: OneCycleLR(o, [0.3, 2.0], total, pct_start=share),
            theirs(
                "OneCycleLR", [0.3, 2.0], total_steps=total, pct_start=share, cycle_momentum=False
            ),
            total - 1,
        )
        for total, share in [(100, 0.3), (37, 0.25), (10, 0.5)]
    },
    "warm-up, step": (
        lambda o: WarmupLR(StepLR(o, 2), 5),
        warm(5, 1 / 3, theirs("StepLR", 2)),
        20,
    ),
    "warm-up, cosine": (
        lambda o: WarmupLR(CosineAnnealingLR(o, 12), 4, start_factor=0.01),
        warm(4, 0.01, theirs("CosineAnnealingLR", 12)),
        16,
    ),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


@needs_torch
@schedules
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_is_pytorchs(name: str) -> None:
    build, build_theirs, steps = SCHEDULES[name]
    optimizer, reference = sgd(), torch_sgd()
    ours, other = build(optimizer), build_theirs(reference)
    for step in range(steps + 1):
        assert rates(optimizer) == pytest.approx(rates(reference), rel=1e-9), step
        if step < steps:
            reference.step()
            other.step()
            ours.step()


@schedules
def test_a_resumed_schedule_continues_to_the_bit(name: str) -> None:
    build, _, steps = SCHEDULES[name]
    optimizer, again = sgd(), sgd()
    ours = build(optimizer)
    for _ in range(steps // 2):
        ours.step()
    resumed = build(again)
    resumed.load_state_dict(json.loads(json.dumps(ours.state_dict())))
    assert rates(again) == rates(optimizer)
    assert rates(again) == [ours.lr_at(steps // 2, i) for i in (0, 1)]
    for _ in range(3):
        ours.step()
        resumed.step()
        assert rates(again) == rates(optimizer)


def test_the_ends_are_kept() -> None:
    optimizer = sgd()
    for schedule, last in (
        (OneCycleLR(optimizer, 0.3, 10), 0.3 / 25 / 1e4),
        (CosineAnnealingLR(optimizer, 10, eta_min=0.125), 0.125),
    ):
        for _ in range(12):
            schedule.step()
        assert optimizer.lr == pytest.approx(last)


def test_warmup_begins_where_it_says() -> None:
    optimizer = sgd()
    schedule = WarmupLR(ExponentialLR(optimizer, 0.5), 4, start_factor=0.0)
    seen = []
    for _ in range(7):
        seen.append(optimizer.lr)
        schedule.step()
    assert seen == [0.0, 0.125, 0.25, 0.375, 0.5, 0.25, 0.125]


METRICS = [5.0, 4.0, 4.0, 3.9999, 4.0, 4.1, float("nan"), 3.0, 2.9, 2.9, 2.9, 2.9, 2.9, 2.9, 2.8]
PLATEAUS: list[dict[str, Any]] = [
    {"patience": 2},
    {"patience": 0, "factor": 0.5},
    {"patience": 1, "cooldown": 3, "factor": 0.3},
    {"patience": 1, "threshold": 0.5, "threshold_mode": "abs"},
    {"patience": 1, "mode": "max", "min_lr": 0.1},
    {"patience": 0, "mode": "max", "threshold": 0.1, "threshold_mode": "abs"},
    {"patience": 0, "min_lr": [0.2, 0.001], "eps": 1e-3},
]


@needs_torch
@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_is_pytorchs_and_resumes(options: dict[str, Any]) -> None:
    optimizer, reference = sgd(), torch_sgd()
    ours = ReduceLROnPlateau(optimizer, **options)
    other = torch.optim.lr_scheduler.ReduceLROnPlateau(reference, **options)
    for i, metric in enumerate(METRICS * 2):
        ours.step(gpucnn.Tensor(metric) if i % 2 else metric)
        other.step(np.float32(metric) if i % 2 else metric)
        assert rates(optimizer) == pytest.approx(rates(reference), rel=1e-12), i
        state = json.loads(json.dumps(ours.state_dict()))
        optimizer = sgd()
        ours = ReduceLROnPlateau(optimizer, **options)
        ours.load_state_dict(state)
        assert ours.state_dict() == state
    assert rates(optimizer) != RATES


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda o: StepLR(o, 0), ValueError, "step_size must be"),
        (lambda o: StepLR(o, 1.5), TypeError, "step_size must be"),
        (lambda o: StepLR(o, 1, gamma=-1), ValueError, "gamma must be"),
        (lambda o: MultiStepLR(o, [3, 2]), ValueError, "milestones must increase"),
        (lambda o: MultiStepLR(o, [-1]), ValueError, r"milestones\[0\] must be"),
        (lambda o: ExponentialLR(o, float("nan")), ValueError, "gamma must be"),
        (lambda o: OneCycleLR(o, 1.0, 0), ValueError, "total_steps must be"),
        (lambda o: OneCycleLR(o, -1.0, 10), ValueError, "max_lr must be"),
        (lambda o: OneCycleLR(o, [1.0], 10), ValueError, "max_lr must be a number or 2"),
        (lambda o: CosineAnnealingLR(o, 0), ValueError, "t_max must be"),
        (lambda o: WarmupLR(o, 3), TypeError, "schedule must be"),
        (lambda o: WarmupLR(StepLR(o, 1), 0), ValueError, "warmup_steps must be"),
        (lambda o: WarmupLR(StepLR(o, 1), 2, 1.5), ValueError, "start_factor must"),
        (lambda o: ReduceLROnPlateau(o, "least"), ValueError, "mode must be one of min, max"),
        (lambda o: ReduceLROnPlateau(o, factor=1.0), ValueError, "factor must be"),
        (lambda o: ReduceLROnPlateau(o, patience=-1), ValueError, "patience must be"),
        (lambda o: ReduceLROnPlateau(o, threshold=-1), ValueError, "threshold must be"),
        (lambda o: ReduceLROnPlateau(o, threshold_mode=1), ValueError, "threshold_mode must be"),
        (lambda o: ReduceLROnPlateau(o, cooldown=-1), ValueError, "cooldown must be"),
        (lambda o: ReduceLROnPlateau(o, min_lr=[1.0]), ValueError, "min_lr must be a number or"),
        (lambda o: ReduceLROnPlateau(o, eps=-1), ValueError, "eps must be"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(sgd())
