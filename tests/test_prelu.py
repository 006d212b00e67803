"""prelu: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import PRELU
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.device import DeviceError
from gpucnn.ops.prelu import prelu_backward, prelu_forward
from tests.support import (
    assert_close,
    check_kernel,
    distinct,
    gradients,
    hundreds,
    needs_torch,
    on,
    randn,
    torch,
)

cases = pytest.mark.parametrize(("shape", "slopes"), PRELU, ids=str)


@cases
def test_definition_is_the_formula(shape: tuple[int, ...], slopes: int) -> None:
    x, dy = randn(*shape, dtype=np.float64), randn(*shape, seed=1, dtype=np.float64)
    weight = randn(slopes, seed=2, dtype=np.float64)
    y, dx, dweight = np.empty(shape), np.empty(shape), np.zeros(slopes)
    for i in np.ndindex(shape):
        k = i[-1] if slopes > 1 else 0
        y[i], dx[i] = (x[i], dy[i]) if x[i] > 0 else (weight[k] * x[i], weight[k] * dy[i])
        if x[i] <= 0:
            dweight[k] += x[i] * dy[i]
    assert_close(prelu_forward(x, weight), y, "float64")
    actual = prelu_backward(dy, x, weight)
    assert_close(actual[0], dx, "float64")
    assert_close(actual[1], dweight, "float64", x.size)


@cases
def test_kernels(shape: tuple[int, ...], slopes: int, kernel_device: str) -> None:
    x, dy, weight = randn(*shape), randn(*shape, seed=1), randn(slopes, seed=2)
    check_kernel(prelu_forward, kernel_device, [x, weight])
    check_kernel(prelu_backward, kernel_device, [dy, x, weight], terms=x.size // slopes)


@pytest.mark.parametrize("slopes", [1, 3])
def test_more_than_one_chunk(slopes: int) -> None:
    """The definition cuts its rows; every part must be written and counted."""
    x, dy = randn(50_001, 3), randn(50_001, 3, seed=1)
    weight = randn(slopes, seed=2)
    y, (dx, dweight) = gradients(F.prelu, [x, weight], dy)
    assert_close(y, np.where(x > 0, x, weight * x), "float32")
    assert_close(dx, np.where(x > 0, dy, weight * dy), "float32")
    sums = np.where(x > 0, 0, x.astype(float) * dy).sum(axis=0)
    assert_close(dweight, sums if slopes > 1 else sums.sum(keepdims=True), "float32", x.size)


def test_gradient_at_zero_and_special_numbers(device: str) -> None:
    x = np.array([[0.0, -0.0, np.nan, np.inf, -np.inf, -1e4, 1e4]], np.float32).T
    weight = np.array([-0.5], np.float32)
    y, (dx, _) = gradients(F.prelu, [x, weight], np.ones_like(x), device)
    assert_close(y.T, np.array([[0, 0, np.nan, np.inf, np.inf, 5e3, 1e4]]), "float32")
    assert_close(dx.T, np.array([[-0.5, -0.5, -0.5, 1, -0.5, -0.5, 1]]), "float32")


def test_same_bits_every_time(device: str) -> None:
    arrays = on(device, randn(700, 3), randn(700, 3, seed=1), randn(3, seed=2))
    runs = [prelu_backward.on(device)(*arrays) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("slopes", [1, 4])
def test_gradcheck(slopes: int) -> None:
    x = gpucnn.Tensor(distinct(3, 5, 4, dtype=np.float64), requires_grad=True)
    weight = gpucnn.Tensor(randn(slopes, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(F.prelu, [x, weight])


@needs_torch
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    C=st.integers(1, 40),
    shared=st.booleans(),
    seed=st.integers(0, 9),
)
@hundreds
def test_agrees_with_pytorch(shape: list[int], C: int, shared: bool, seed: int) -> None:
    x, dy = randn(*shape, C, seed=seed), randn(*shape, C, seed=seed + 10)
    weight = randn(1 if shared else C, seed=seed)
    y, (dx, dweight) = gradients(F.prelu, [x, weight], dy)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(weight, requires_grad=True)
    ty = torch.nn.functional.prelu(tx.movedim(-1, 1), tw).movedim(1, -1)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "torch")
    assert_close(dx, tx.grad.numpy(), "torch")
    assert_close(dweight, tw.grad.numpy(), "torch", x.size)


def test_layer(device: str) -> None:
    layer = nn.PReLU(3, init=0.1).to(device)
    x = gpucnn.Tensor(randn(4, 3), device=device)
    layer(x).backward(np.ones((4, 3), np.float32))
    assert layer.weight.grad.shape == (3,)
    assert repr(layer) == "PReLU(num_parameters=3)"


X = np.zeros((2, 3), np.float32)
W = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("x", "weight", "error", "match"),
    [
        (X[:, :0], W, ValueError, "x must not be empty"),
        (np.float32(1), W, ValueError, r"x must have shape \(…, C\)"),
        (X, W[:2], ValueError, r"weight must have shape \(1,\) or \(3,\), got \(2,\)"),
        (X, np.float32(1), ValueError, r"weight must have shape"),
        (X[:, :1], W[:2], ValueError, r"weight must have shape \(1,\), got"),
        (X.astype(np.int32), W, TypeError, "x must be float32"),
        (X, W.astype(np.float64), TypeError, "weight must be float32 like x"),
    ],
)
def test_bad_arguments(x: Any, weight: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        F.prelu(gpucnn.Tensor(x), gpucnn.Tensor(weight))


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"num_parameters": 0}, ValueError, "num_parameters must be >= 1"),
        ({"init": "0.25"}, TypeError, "init must be a number"),
    ],
)
def test_bad_layer(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        nn.PReLU(**arguments)


@pytest.mark.emulated
def test_mixed_devices() -> None:
    with pytest.raises(DeviceError, match="must share a device"):
        F.prelu(gpucnn.Tensor(X, device="emulated"), gpucnn.Tensor(W, device="cpu"))
