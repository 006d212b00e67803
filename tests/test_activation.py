"""relu: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import ACTIVATION
from gpucnn import functional as F
from gpucnn.ops.activation import relu_backward, relu_forward
from tests.support import (
    assert_close,
    check_kernel,
    distinct,
    gradients,
    needs_torch,
    randn,
    torch,
)

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 2.0, -2.0, 1e-30, -1e-30], np.float32)
shapes = pytest.mark.parametrize("shape", ACTIVATION, ids=str)


@shapes
def test_definition_is_the_formula(shape: tuple[int, ...]) -> None:
    x, dy = randn(*shape, dtype=np.float64), randn(*shape, seed=1, dtype=np.float64)
    y, dx = np.zeros(shape), np.zeros(shape)
    for i in np.ndindex(shape):
        if x[i] > 0:
            y[i], dx[i] = x[i], dy[i]
    assert_close(relu_forward(x), y, "exact")
    assert_close(relu_backward(dy, y), dx, "exact")


@shapes
def test_kernels(shape: tuple[int, ...], kernel_device: str) -> None:
    x, dy = randn(*shape), randn(*shape, seed=1)
    check_kernel(relu_forward, kernel_device, [x], bar="exact")
    check_kernel(relu_backward, kernel_device, [dy, np.maximum(x, 0)], bar="exact")


def test_kernels_of_an_array_that_is_not_aligned(kernel_device: str) -> None:
    x, dy = randn(2, 37), randn(2, 37, seed=1)
    check_kernel(relu_forward, kernel_device, [x[1]], bar="exact")
    check_kernel(relu_backward, kernel_device, [dy[1], x[1]], bar="exact")


def test_more_than_one_chunk() -> None:
    """The definition cuts its work; every part must be written."""
    x, dy = randn(3, 70_001), randn(3, 70_001, seed=1)
    y = relu_forward(x)
    assert_close(y, np.where(x > 0, x, 0), "exact")
    assert_close(relu_backward(dy, y), np.where(x > 0, dy, 0), "exact")


def test_special_numbers(device: str) -> None:
    """NaN passes, and its gradient passes; the gradient at 0 is 0, also where dy is not finite."""
    for dy in (np.ones_like(SPECIAL), np.full_like(SPECIAL, np.nan), np.full_like(SPECIAL, np.inf)):
        y, (dx,) = gradients(F.relu, [SPECIAL], dy, device)
        assert_close(y, np.array([np.nan, np.inf, 0, 0, 0, 2, 0, 1e-30, 0], np.float32), "exact")
        assert_close(dx, np.where([1, 1, 0, 0, 0, 1, 0, 1, 0], dy, 0), "exact")


def test_one_number(device: str) -> None:
    x = gpucnn.Tensor(np.float32(3), requires_grad=True, device=device)
    y = F.relu(x)
    y.backward()
    assert y.shape == ()
    assert y.item() == 3
    assert x.grad.item() == 1


def test_gradcheck() -> None:
    x = gpucnn.Tensor(distinct(3, 4, 5, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(F.relu, [x])


@needs_torch
@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_agrees_with_pytorch(shape: list[int], seed: int) -> None:
    x, dy = randn(*shape, seed=seed), randn(*shape, seed=seed + 10)
    y, (dx,) = gradients(F.relu, [x], dy)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.relu(tx)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "exact")
    assert_close(dx, tx.grad.numpy(), "exact")


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((0, 3), np.float32), ValueError, "x must not be empty"),
        (np.zeros((2, 3), np.int32), TypeError, "x must be float32"),
    ],
)
def test_bad_arguments(x: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        F.relu(gpucnn.Tensor(x))
