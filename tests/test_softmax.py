"""softmax and log_softmax: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import SOFTMAX
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.softmax import (
    log_softmax_backward,
    log_softmax_forward,
    softmax_backward,
    softmax_forward,
)
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

shapes = pytest.mark.parametrize("shape", SOFTMAX, ids=str)


@shapes
def test_definition_is_the_formula(shape: tuple[int, ...]) -> None:
    x, dy = (randn(*shape, seed=i, dtype=np.float64) for i in range(2))
    y, dx = np.empty(shape), np.zeros(shape)
    C = shape[-1]
    for row in np.ndindex(shape[:-1]):
        total = sum(math.exp(v) for v in x[row])
        for c in range(C):
            y[(*row, c)] = math.exp(x[(*row, c)]) / total
        for c, j in np.ndindex(C, C):  # the Jacobian: y_j·([c = j] − y_c)
            dx[(*row, c)] += dy[(*row, j)] * y[(*row, j)] * ((c == j) - y[(*row, c)])
    assert_close(softmax_forward(x), y, "float64")
    assert_close(softmax_backward(dy, y), dx, "float64", C)


@shapes
def test_log_definition_is_the_formula(shape: tuple[int, ...]) -> None:
    x, dy = (randn(*shape, seed=i, dtype=np.float64) for i in range(2))
    y, dx = np.empty(shape), np.empty(shape)
    C = shape[-1]
    for row in np.ndindex(shape[:-1]):
        total = sum(math.exp(v) for v in x[row])
        for c in range(C):
            y[(*row, c)] = math.log(math.exp(x[(*row, c)]) / total)
        all_dy = sum(dy[row])
        for c in range(C):  # the Jacobian: [c = j] − softmax_c
            dx[(*row, c)] = dy[(*row, c)] - math.exp(y[(*row, c)]) * all_dy
    assert_close(log_softmax_forward(x), y, "float64")
    assert_close(log_softmax_backward(dy, y), dx, "float64", C)


@shapes
def test_log_kernels(shape: tuple[int, ...], kernel_device: str) -> None:
    x, dy = 3 * randn(*shape), randn(*shape, seed=1)
    check_kernel(log_softmax_forward, kernel_device, [x], terms=shape[-1])
    check_kernel(log_softmax_backward, kernel_device, [dy, log_softmax_forward(x)], terms=shape[-1])


@shapes
def test_kernels(shape: tuple[int, ...], kernel_device: str) -> None:
    x, dy = 3 * randn(*shape), randn(*shape, seed=1)
    check_kernel(softmax_forward, kernel_device, [x])
    check_kernel(softmax_backward, kernel_device, [dy, softmax_forward(x)], terms=shape[-1])


def test_more_than_one_chunk() -> None:
    """The definition cuts its rows; every part must be written."""
    x, dy = randn(30_001, 5, dtype=np.float64), randn(30_001, 5, seed=1, dtype=np.float64)
    y = softmax_forward(x)
    assert_close(y, np.exp(x) / np.exp(x).sum(axis=1, keepdims=True), "float64")
    expected = y * (dy - (dy * y).sum(axis=1, keepdims=True))
    assert_close(softmax_backward(dy, y), expected, "float64")
    assert_close(log_softmax_forward(x), np.log(y), "float64")
    expected = dy - y * dy.sum(axis=1, keepdims=True)
    assert_close(log_softmax_backward(dy, np.log(y)), expected, "float64")


NAN = [np.nan] * 3
functions = pytest.mark.parametrize("function", [F.softmax, F.log_softmax])


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1e4, -1e4, 0], [1, 0, 0]),
        ([1e30, -1e30, 1e30], [0.5, 0, 0.5]),
        ([-np.inf, 1, 1], [0, 0.5, 0.5]),
        ([-np.inf, -np.inf, -np.inf], NAN),
        ([np.inf, 1, 2], NAN),
        ([np.nan, 1, 2], NAN),
        ([1e-40, 0, 0], [1 / 3] * 3),
    ],
)
def test_special_numbers(row: list[float], expected: list[float], device: str) -> None:
    x = np.array([row, [0, 0, 0]], np.float32)
    y, (dx,) = gradients(F.softmax, [x], np.ones_like(x), device)
    assert_close(y, np.array([expected, [1 / 3] * 3]), "float32")
    assert_close(dx, np.array([NAN if np.isnan(expected[0]) else [0] * 3, [0] * 3]), "float32")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([1e4, -1e4, 0], [0, -2e4, -1e4]),
        ([1e30, -1e30, 1e30], [-math.log(2), -2e30, -math.log(2)]),
        ([120, 0, 0], [0, -120, -120]),
        ([-np.inf, 1, 1], [-np.inf, -math.log(2), -math.log(2)]),
        ([-np.inf, -np.inf, -np.inf], NAN),
        ([np.inf, 1, 2], NAN),
        ([np.nan, 1, 2], NAN),
    ],
)
def test_special_numbers_of_the_logarithm(
    row: list[float], expected: list[float], device: str
) -> None:
    """Where log(softmax(x)) is −inf or 0, log_softmax still has the number."""
    x = np.array([row, [0, 0, 0]], np.float32)
    y, (dx,) = gradients(F.log_softmax, [x], np.ones_like(x), device)
    assert_close(y, np.array([expected, [-math.log(3)] * 3]), "float32")
    slopes = NAN if np.isnan(expected[0]) else [1 - 3 * math.exp(v) for v in expected]
    assert_close(dx, np.array([slopes, [0] * 3]), "float32")


@functions
def test_same_bits_every_time(function: Any, device: str) -> None:
    x, dy = randn(7, 333), randn(7, 333, seed=1)
    runs = [gradients(function, [x], dy, device) for _ in range(2)]
    assert runs[0][0].tobytes() == runs[1][0].tobytes()
    assert runs[0][1][0].tobytes() == runs[1][1][0].tobytes()


@functions
@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 2, 3, 2)], ids=str)
def test_gradcheck(shape: tuple[int, ...], function: Any) -> None:
    x = gpucnn.Tensor(randn(*shape, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(function, [x])


def test_layers() -> None:
    x = gpucnn.Tensor(randn(3, 4))
    assert_close(nn.LogSoftmax()(x).numpy(), np.log(nn.Softmax()(x).numpy()), "float32")


@needs_torch
@functions
@given(
    shape=st.lists(st.integers(1, 5), min_size=0, max_size=3),
    C=st.integers(1, 70),
    scale=st.sampled_from([0.1, 1, 30]),
)
@hundreds
def test_agrees_with_pytorch(function: Any, shape: list[int], C: int, scale: float) -> None:
    x, dy = np.float32(scale) * randn(*shape, C), randn(*shape, C, seed=1)
    tx = torch.tensor(x, requires_grad=True)
    ty = getattr(torch, function.__name__)(tx, -1)
    ty.backward(torch.tensor(dy))
    y, (dx,) = gradients(function, [x], dy)
    assert_close(y, ty.detach().numpy(), "torch")
    assert_close(dx, tx.grad.numpy(), "torch", C)


@functions
@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((3, 0), np.float32), ValueError, "x must have shape"),
        (np.float32(1), ValueError, "x must have shape"),
        (np.zeros((2, 3), np.int32), TypeError, "x must be float32"),
    ],
)
def test_bad_arguments(function: Any, x: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        function(gpucnn.Tensor(x))
