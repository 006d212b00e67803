"""Every network by name: its shapes, and that it trains."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import models, optim
from tests.support import assert_close, randn

CLASSIFIERS = [name for name in models.names() if models.kind(name) == "image"]
SEGMENTERS = [name for name in models.names() if models.kind(name) == "pixel"]


def fall(name: str, target: np.ndarray, steps: int, lr: float) -> float:
    """The loss after some steps on one batch, as a share of the first."""
    gpucnn.seed(0)
    model = models.create(name, num_classes=int(target.max()) + 1)
    optimizer = optim.Adam(model.parameters(), lr=lr)
    x = gpucnn.Tensor(randn(len(target), *models.input_shape(name)))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None for p in model.parameters()), "every parameter takes part"
    return losses[-1] / losses[0]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_train(name: str) -> None:
    steps = 60 if name == "alexnet_mini" else 12  # no batch norm, and dropout
    assert fall(name, np.arange(6) % 3, steps, 2e-3) < 0.6


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_train(name: str) -> None:
    high, wide, _ = models.input_shape(name)
    target = np.zeros((2, high, wide), int)
    target[:, 20:50, 10:40] = 1
    assert fall(name, target, 8, 1e-2) < 0.7


def test_the_autoencoder_trains() -> None:
    gpucnn.seed(0)
    model = models.create("autoencoder")
    optimizer = optim.Adam(model.parameters(), lr=1e-2)
    rows = np.linspace(0, 1, 28, dtype=np.float32)
    x = gpucnn.Tensor(np.stack([np.outer(rows, rows), np.outer(rows, 1 - rows)])[..., None])
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


# Batches that are small where the network takes any size; batch norm wants several values.
SMALL = {
    "shapenet": (1, 72, 72, 1),
    "segnet_small": (2, 19, 16, 1),
    "unet_small": (2, 16, 24, 1),
    "resnet20": (2, 8, 8, 3),
    "resnet9": (4, 8, 8, 3),
    "autoencoder": (2, 12, 8, 1),
}


@pytest.mark.parametrize("name", models.names())
def test_the_kernels_make_the_same_step(name: str, kernel_device: str) -> None:
    """Loss and every gradient of a training step, beside the definitions."""
    gpucnn.seed(0)
    model = models.create(name)
    x = randn(*SMALL.get(name, (2, *models.input_shape(name))))
    steps = []
    for device in ("cpu", kernel_device):
        gpucnn.seed(1)  # of dropout
        model.to(device)
        for p in model.parameters():
            p.grad = None
        y = model(gpucnn.Tensor(x, device=device))
        loss = (y * y).mean()
        loss.backward()
        steps.append((loss.item(), [p.grad.numpy().copy() for p in model.parameters()]))
    (expected, grads), (actual, kernel_grads) = steps
    assert_close(np.array(actual), np.array(expected), "torch")
    names = [n for n, _ in model.named_parameters()]
    for n, a, e in zip(names, kernel_grads, grads, strict=True):
        scale = np.abs(e).max() + np.float32(1e-3)  # a bias before batch norm: all but 0
        assert_close(a / scale, e / scale, "torch", e.size, n)


def test_shapes() -> None:
    for name in CLASSIFIERS:
        model = models.create(name, num_classes=5).eval()
        assert model(gpucnn.Tensor(randn(2, *models.input_shape(name)))).shape == (2, 5)
    for name in SEGMENTERS:
        model = models.create(name, num_classes=5).eval()
        high, wide, channels = models.input_shape(name)
        assert model(gpucnn.Tensor(randn(1, high, wide, channels))).shape == (1, high, wide, 5)
    model = models.create("autoencoder")
    assert model(gpucnn.Tensor(randn(2, 28, 28, 1))).shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    ("name", "parameters"), [("lenet5", 61_706), ("resnet20", 269_722 + 2_752)]
)
def test_published_sizes(name: str, parameters: int) -> None:
    """LeNet-5 fully connected: 61,706. ResNet-20: 269,722, and 2,752 in two projections."""
    assert sum(p.size for p in models.create(name).parameters()) == parameters
