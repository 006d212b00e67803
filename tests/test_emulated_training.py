"""A small CNN trains on every device, from one seed, through every rung of the convolution."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.optim import SGD, AdamW, Optimizer
from tests.support import assert_close, randn

STEPS = 5


def losses(device: str, optimizer: type[Optimizer]) -> list[float]:
    """Cross-entropy of each step of a two-layer CNN (with batch norm and pooling) on 8×8 images."""
    gpucnn.seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * 2 * 6, 3),
    ).to(device)
    options = {"momentum": 0.9, "nesterov": True} if optimizer is SGD else {}
    step = optimizer(model.parameters(), lr=0.05, **options)
    values = []
    for i in range(STEPS):
        x = gpucnn.Tensor(randn(6, 8, 8, 1, seed=i % 2), device=device)
        step.zero_grad()
        loss = F.cross_entropy(model(x), np.arange(6) % 3)
        loss.backward()
        step.step()
        values.append(float(loss.item()))
    return values


@pytest.mark.parametrize("variant", gpucnn.primitive.variants("conv2d"))
@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_losses_agree_at_every_step(
    optimizer: type[Optimizer], variant: str, kernel_device: str
) -> None:
    expected = losses("cpu", optimizer)
    with gpucnn.use_variant(conv2d=variant):
        actual = losses(kernel_device, optimizer)
    assert_close(np.array(actual), np.array(expected), "training")
    assert expected[-1] < expected[0], "it learns"


def test_training_is_bitwise_reproducible(device: str) -> None:
    assert losses(device, SGD) == losses(device, SGD)


@pytest.mark.parametrize("mode", ["tf32", "bf16", "fp16"])
def test_training_with_rounded_operands(mode: str, kernel_device: str) -> None:
    """It learns, to the same bits each time, and not to those of float32."""
    with gpucnn.use_variant(conv2d="implicit_gemm", linear="implicit_gemm"):
        exact = losses(kernel_device, SGD)
        with gpucnn.precision(mode):
            first, second = losses(kernel_device, SGD), losses(kernel_device, SGD)
    assert first == second
    assert first != exact
    assert first[-1] < first[0]
