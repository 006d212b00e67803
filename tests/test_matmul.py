"""matmul: loops -> definition; PyTorch on every device."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import MATMUL
from gpucnn import functional as F
from tests.support import assert_close, gradients, hundreds, needs_torch, randn, torch

cases = pytest.mark.parametrize(("M", "K", "N"), MATMUL)


@cases
def test_definition_is_the_formula(M: int, K: int, N: int) -> None:
    a, b = randn(M, K, dtype=float), randn(K, N, seed=1, dtype=float)
    dy = randn(M, N, seed=2, dtype=float)
    y, da, db = np.zeros((M, N)), np.zeros((M, K)), np.zeros((K, N))
    for m, k, n in np.ndindex(M, K, N):
        y[m, n] += a[m, k] * b[k, n]
        da[m, k] += dy[m, n] * b[k, n]
        db[k, n] += dy[m, n] * a[m, k]
    actual, grads = gradients(F.matmul, [a, b], dy)
    assert_close(actual, y, "float64", K)
    assert_close(grads[0], da, "float64", N)
    assert_close(grads[1], db, "float64", M)


def test_gradcheck() -> None:
    a, b = (
        gpucnn.Tensor(randn(*s, seed=i, dtype=float), requires_grad=True)
        for i, s in enumerate([(3, 4), (4, 2)])
    )
    assert gpucnn.gradcheck(lambda a, b: a @ b, [a, b])


def check_pytorch(M: int, K: int, N: int, device: str) -> None:
    a, b, dy = randn(M, K), randn(K, N, seed=1), randn(M, N, seed=2)
    y, grads = gradients(lambda a, b: a @ b, [a, b], dy, device)
    tensors = [torch.tensor(x, requires_grad=True) for x in (a, b)]
    ty = tensors[0] @ tensors[1]
    ty.backward(torch.tensor(dy))
    terms = M + K + N
    assert_close(y, ty.detach().numpy(), "torch", terms)
    for g, t in zip(grads, tensors, strict=True):
        assert_close(g, t.grad.numpy(), "torch", terms)


@needs_torch
@cases
def test_agrees_with_pytorch(M: int, K: int, N: int, device: str) -> None:
    check_pytorch(M, K, N, device)


@needs_torch
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
@hundreds
def test_drawn_cases_agree_with_pytorch(M: int, K: int, N: int) -> None:
    check_pytorch(M, K, N, "cpu")


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [
        ((2,), (2, 3), r"a must have shape \(M, K\)"),
        ((2, 3, 4), (4, 5), "a must have shape"),
        ((3, 0), (0, 2), "a must have shape"),
        ((2, 3), (2, 3), r"b must have shape \(3, N\)"),
        ((2, 3), (3,), r"b must have shape \(3, N\)"),
        ((2, 3), (3, 0), r"b must have shape \(3, N\)"),
    ],
)
def test_bad_shapes(a: Any, b: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        F.matmul(*(gpucnn.Tensor(np.zeros(s, np.float32)) for s in (a, b)))


def test_bad_dtypes() -> None:
    a = gpucnn.Tensor(np.zeros((2, 2), np.float32))
    with pytest.raises(TypeError, match="b must be float32"):
        a @ gpucnn.Tensor(np.zeros((2, 2), np.int32))
    with pytest.raises(TypeError, match="b must be float32"):
        a @ gpucnn.Tensor(np.zeros((2, 2), np.float64), device="cpu")
