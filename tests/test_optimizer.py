"""Optimizers and schedules against PyTorch's trajectories."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.ops.optimizer import AdamStep, SGDStep, adam_step, sgd_step
from gpucnn.optim import SGD, Adam, AdamW, CosineAnnealingLR, OneCycleLR, Optimizer
from tests.support import assert_close, needs_torch, on, randn, torch

SHAPES = [(3, 5), (7,), (1,), (2, 3, 3, 4)]

CONFIGS: list[tuple[str, type[Optimizer], dict[str, Any]]] = [
    ("sgd", SGD, {"lr": 0.05}),
    ("sgd decay", SGD, {"lr": 0.05, "weight_decay": 0.1}),
    ("momentum", SGD, {"lr": 0.02, "momentum": 0.9}),
    (
        "nesterov",
        SGD,
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ),
    ("adam", Adam, {"lr": 0.01}),
    (
        "adam decay",
        Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    ("adamw", AdamW, {"lr": 0.01, "weight_decay": 0.1}),
]
configs = pytest.mark.parametrize(
    ("ours", "options"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS]
)


def parameters(device: str, dtype: Any = np.float32) -> list[gpucnn.Tensor]:
    return [
        gpucnn.Tensor(randn(*s, seed=i, dtype=dtype), requires_grad=True, device=device)
        for i, s in enumerate(SHAPES)
    ]


def set_gradients(params: list[gpucnn.Tensor], step: int) -> None:
    """Through the tape, as training does: d/dp of the sum of p times noise."""
    for i, p in enumerate(params):
        p.grad = None
        p.backward(randn(*p.shape, seed=100 * step + i, dtype=p.dtype) + p.numpy())


@needs_torch
@configs
def test_100_steps_of_pytorch(ours: type[Optimizer], options: dict[str, Any]) -> None:
    params = parameters("cpu", np.float64)
    tensors = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]
    optimizer, reference = (
        ours(params, **options),
        getattr(torch.optim, ours.__name__)(tensors, **options),
    )
    for step in range(100):
        optimizer.zero_grad()
        set_gradients(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        optimizer.step()
        reference.step()
    for p, t in zip(params, tensors, strict=True):
        assert_close(p.numpy(), t.detach().numpy(), "float64", 100)


@configs
def test_kernels_follow_the_definition(
    ours: type[Optimizer], options: dict[str, Any], kernel_device: str
) -> None:
    runs = []
    for device in ("cpu", kernel_device):
        params = parameters(device)
        optimizer = ours(params, **options)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        runs.append([p.numpy() for p in params])
    for a, e in zip(runs[1], runs[0], strict=True):
        assert_close(a, e, "float32", 3)


@pytest.mark.parametrize("n", [1, 3, 4, 1021])
def test_kernel_tails(n: int, kernel_device: str) -> None:
    p, g, m, v = randn(n), randn(n, seed=1), randn(n, seed=2), np.abs(randn(n, seed=3))
    wide = [a.astype(np.float64) for a in (p, m, v, g)]
    step = AdamStep(0.1, 0.9, 0.99, 1e-8, 0.1, True, 3)
    adam_step(*wide, step)
    arrays = on(kernel_device, *(a.copy() for a in (p, m, v, g)))
    adam_step.on(kernel_device)(*arrays, step)
    for a, e in zip(arrays, wide, strict=True):
        assert_close(a, e, "float32")
    wide = [a.astype(np.float64) for a in (p, g)]
    sgd_step(wide[0], None, wide[1], SGDStep(0.1, 0.0, 0.1, False))
    arrays = on(kernel_device, p.copy(), g)
    sgd_step.on(kernel_device)(arrays[0], None, arrays[1], SGDStep(0.1, 0.0, 0.1, False))
    assert_close(arrays[0], wide[0], "float32")


def test_parameters_without_gradient_are_left_alone() -> None:
    params = parameters("cpu")
    optimizer = Adam(params, lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    before = [p.numpy().copy() for p in params]
    params[0].grad = params[2].grad = None
    optimizer.step()
    changed = [not np.array_equal(p.numpy(), b) for p, b in zip(params, before, strict=True)]
    assert changed == [False, True, False, True]


def test_gradients_accumulate_into_the_flat_buffer() -> None:
    params = parameters("cpu")
    SGD(params, lr=1.0)
    set_gradients(params, 0)
    first = [p.grad.numpy().copy() for p in params]
    for p in params:
        p.backward(np.ones(p.shape, np.float32))
    for p, f in zip(params, first, strict=True):
        assert p.grad.data is p._gradient_home
        assert_close(p.grad.numpy(), f + 1, "float32")


@pytest.mark.parametrize("ours", [SGD, Adam])
def test_state_continues_to_the_bit(ours: type[Optimizer]) -> None:
    options = {"momentum": 0.9} if ours is SGD else {}

    def run(steps: range, state: Any = None) -> tuple[list[np.ndarray], dict[str, Any]]:
        params = parameters("cpu")
        optimizer = ours(params, lr=0.01, **options)
        if state is not None:
            for p, a in zip(params, state[0], strict=True):
                p.data[...] = a
            optimizer.load_state_dict(state[1])
        for step in steps:
            set_gradients(params, step)
            optimizer.step()
        return [p.numpy().copy() for p in params], optimizer.state_dict()

    whole, half = run(range(10)), run(range(5))
    rest = run(range(5, 10), half)
    assert all(np.array_equal(a, b) for a, b in zip(whole[0], rest[0], strict=True))
    assert all(np.array_equal(whole[1][k], rest[1][k]) for k in whole[1])


def bad(build: Callable[[list[gpucnn.Tensor]], Any], error: type[Exception], match: str) -> Any:
    return pytest.param(build, error, match, id=match)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        bad(lambda p: SGD([], 0.1), ValueError, "params must hold at least one"),
        bad(lambda p: SGD([p[0], p[0]], 0.1), ValueError, "twice"),
        bad(lambda p: SGD([1.0], 0.1), TypeError, r"params\[0\] must be a Tensor"),
        bad(lambda p: SGD([p[0].detach()], 0.1), ValueError, r"params\[0\] must be a leaf"),
        bad(lambda p: SGD(p, -0.1), ValueError, "lr must be"),
        bad(lambda p: SGD(p, float("nan")), ValueError, "lr must be"),
        bad(lambda p: SGD(p, 0.1, momentum=1.0), ValueError, "momentum must be"),
        bad(lambda p: SGD(p, 0.1, nesterov=True), ValueError, "nesterov=True needs"),
        bad(lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be"),
        bad(lambda p: Adam(p, betas=0.9), ValueError, "betas must be a pair"),
        bad(lambda p: Adam(p, eps=-1), ValueError, "eps must be"),
        bad(lambda p: AdamW(p, weight_decay=-1), ValueError, "weight_decay must be"),
        bad(lambda p: Adam(p).load_state_dict({}), ValueError, "entries differ"),
        bad(lambda p: OneCycleLR(SGD(p, 0.1), 1.0, 0), ValueError, "total_steps must be"),
        bad(lambda p: OneCycleLR(SGD(p, 0.1), -1.0, 10), ValueError, "max_lr must be"),
        bad(lambda p: CosineAnnealingLR(SGD(p, 0.1), 0), ValueError, "t_max must be"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(parameters("cpu"))


@needs_torch
def test_a_moved_parameter_is_noticed() -> None:
    params = parameters("cpu")
    optimizer = SGD(params, lr=0.1)
    SGD(params, lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"params\[0\] has been moved"):
        optimizer.step()


@needs_torch
@pytest.mark.parametrize(("total", "share"), [(100, 0.3), (37, 0.25), (10, 0.5)])
def test_one_cycle_is_pytorchs(total: int, share: float) -> None:
    optimizer = SGD(parameters("cpu"), lr=1.0)
    reference = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        reference, 0.3, total_steps=total, pct_start=share, cycle_momentum=False
    )
    ours = OneCycleLR(optimizer, 0.3, total, pct_start=share)
    for step in range(total - 1):
        assert optimizer.lr == pytest.approx(theirs.get_last_lr()[0], rel=1e-12), step
        reference.step()
        theirs.step()
        ours.step()
    assert optimizer.lr == pytest.approx(0.3 / 25 / 1e4)
    ours.step()
    ours.step()
    assert optimizer.lr == pytest.approx(0.3 / 25 / 1e4)


@needs_torch
def test_cosine_is_pytorchs() -> None:
    optimizer = SGD(parameters("cpu"), lr=0.5)
    reference = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(reference, 20, eta_min=0.01)
    ours = CosineAnnealingLR(optimizer, 20, eta_min=0.01)
    for step in range(21):
        assert optimizer.lr == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), step
        reference.step()
        theirs.step()
        ours.step()
    assert optimizer.lr == 0.01
    resumed = CosineAnnealingLR(SGD(parameters("cpu"), lr=0.5), 20, eta_min=0.01)
    resumed.load_state_dict({"step": 7})
    assert resumed.optimizer.lr == ours.lr_at(7)
