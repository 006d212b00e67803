"""Gradients of parameters: kernels write them into the optimizer's buffer, nothing copies them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim, recording
from gpucnn.device import address, empty, into, result
from tests.support import assert_close, distinct


def net() -> nn.Sequential:
    """Every layer whose gradients are offered memory; first and middle layers."""
    gpucnn.seed(5)
    return nn.Sequential(
        *(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 9, 3, padding=1), nn.Tanh(), nn.ConvTranspose2d(9, 8, 2, stride=2)),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Flatten()),
        *(nn.Linear(8 * 8 * 6, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def gradients(model: nn.Module, device: str, times: int = 1) -> dict[str, np.ndarray]:
    for i in range(times):
        x = gpucnn.Tensor(distinct(2, 7, 6, 2, seed=i), device=device)
        y = model(x)
        (y * y).sum().backward()
    return {name: p.grad.numpy().copy() for name, p in model.named_parameters() if p.grad}


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("times", [1, 2])
def test_no_gradient_is_copied(
    times: int, fuse: bool, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gpucnn.fusion(fuse):
        expected = gradients(net().to(kernel_device), kernel_device, times)
        model = net().to(kernel_device)
        optimizer = optim.SGD(model.parameters(), 0.1)
        copies: list[Any] = []
        assign = recording.assign
        monkeypatch.setattr(
            recording, "assign", lambda to, what: copies.append(to.shape) or assign(to, what)
        )
        found = gradients(model, kernel_device, times)
    assert len(copies) == (times - 1) * len(found)  # sums with what was there
    for name, gradient in expected.items():
        assert_close(found[name], gradient, "exact", what=name)
    start, size = address(optimizer._gradients.buffer), optimizer._gradients.buffer.nbytes
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert start <= address(p.grad.data) < start + size, name


def test_a_weight_in_two_layers(kernel_device: str) -> None:
    """Its second gradient is added to the first, which lies in the buffer already."""
    found = []
    for with_optimizer in (False, True):
        w = gpucnn.Tensor(distinct(8, 3, 3, 8), requires_grad=True, device=kernel_device)
        if with_optimizer:
            optim.SGD([w], 0.1)
        x = gpucnn.Tensor(distinct(1, 5, 5, 8), device=kernel_device)
        y = F.conv2d(F.conv2d(x, w, padding=1), w, padding=1)
        y.sum().backward()
        assert w.grad is not None
        found.append(w.grad.numpy().copy())
    assert_close(found[1], found[0], "exact")


def test_a_parameter_that_is_both_factors(kernel_device: str) -> None:
    found = []
    for with_optimizer in (False, True):
        w = gpucnn.Tensor(distinct(8, 8), requires_grad=True, device=kernel_device)
        if with_optimizer:
            optim.SGD([w], 0.1)
        F.linear(w, w).sum().backward()
        assert w.grad is not None
        found.append(w.grad.numpy().copy())
    assert_close(found[1], found[0], "exact")


def test_memory_is_offered_once_and_only_where_it_fits(kernel_device: str) -> None:
    like = gpucnn.device.to_device(np.zeros(1, np.float32), kernel_device)
    home, other = empty(like, (2, 3)), empty(like, (4,))
    with into(home, None, other):
        assert address(result(like, (6,))) == address(home)
        assert address(result(like, (4,))) != address(other)
        assert address(result(like, (5,))) != address(other)
        assert address(result(like, (4,))) != address(other)
    assert address(result(like, (6,))) != address(home)
