"""Parameter groups: options of their own, one launch each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucnn.optim import SGD, Adam, AdamW, Nadam, Optimizer, RMSprop, weight_decay_groups
from tests.optimizers import float64_numbers, parameters, reference, set_gradients
from tests.support import assert_close, needs_torch, torch

__all__ = ["float64_numbers"]

GROUPS = {
    SGD: [{"lr": 0.05, "momentum": 0.9}, {"momentum": 0.0}, {"weight_decay": 0.1}],
    Adam: [{"betas": (0.8, 0.9)}, {"lr": 0.02, "weight_decay": 0.1}, {"eps": 1e-3}],
    RMSprop: [{"centered": True, "eps": 1e-3}, {"momentum": 0.5}, {"lr": 0.02}],
    Nadam: [{"betas": (0.8, 0.9)}, {"momentum_decay": 0.1}, {"lr": 0.02}],
}


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@pytest.mark.parametrize("ours", GROUPS)
def test_parameter_groups_are_pytorchs(ours: type[Optimizer]) -> None:
    params = parameters("cpu", np.float64)
    tensors = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]

    def grouped(items: list[Any]) -> list[dict[str, Any]]:
        parts = (items[2:], items[:1], items[1:2])
        return [{"params": part, **o} for part, o in zip(parts, GROUPS[ours], strict=True)]

    optimizer = ours(grouped(params), lr=0.01)
    theirs = reference(ours, grouped(tensors), {"lr": 0.01})
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in theirs.param_groups]
    for step in range(20):
        optimizer.zero_grad()
        set_gradients(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        optimizer.step()
        theirs.step()
        optimizer.param_groups[1]["lr"] = theirs.param_groups[1]["lr"] = 0.01 / (step + 1)
    for p, t in zip(params, tensors, strict=True):
        assert_close(p.numpy(), t.detach().numpy(), "float64", 20)


def test_groups_take_one_launch_each_and_lr_sets_them_all() -> None:
    params = parameters("cpu")
    optimizer = SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.5}], lr=0.1)
    assert optimizer.lr == 0.1
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.5]
    set_gradients(params, 0)
    assert len(optimizer.gradient_runs()) == 2
    params[2].grad = None
    assert [run.size for run in optimizer.gradient_runs()] == [128, 128]
    optimizer.lr = 0.25
    assert [g["lr"] for g in optimizer.param_groups] == [0.25, 0.25]


def test_weight_decay_groups_exempt_vectors() -> None:
    params = parameters("cpu")
    groups = weight_decay_groups(params, 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert [[t.shape for t in g["params"]] for g in groups] == [
        [(3, 5), (2, 3, 3, 4)],
        [(7,), (1,)],
    ]
    assert len(weight_decay_groups(params[1:3], 0.1)) == 1
    optimizer = AdamW(groups, lr=0.1)
    for p in params:
        p.backward(np.zeros(p.shape, np.float32))
    before = [p.numpy().copy() for p in params]
    optimizer.step()
    for p, b in zip(params, before, strict=True):
        assert_close(p.numpy(), b * (0.99 if p.ndim > 1 else 1), "float32")
