"""linear: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import LINEAR, LinearCase
from gpucnn import functional as F
from gpucnn.ops.linear import (
    linear_data_gradient,
    linear_forward,
    linear_geometry,
    linear_weight_gradient,
)
from tests.support import assert_close, check_kernel, gradients, needs_torch, randn, torch

cases = pytest.mark.parametrize("case", LINEAR, ids=str)


def arrays(case: LinearCase, dtype: Any = np.float32) -> list[Any]:
    bias = randn(case.O, seed=2, dtype=dtype) if case.bias else None
    return [randn(case.M, case.I, dtype=dtype), randn(case.O, case.I, seed=1, dtype=dtype), bias]


@cases
def test_definition_is_the_formula(case: LinearCase) -> None:
    x, w, b = arrays(case, np.float64)
    s = linear_geometry(x, w, b)
    dy = randn(case.M, case.O, seed=5, dtype=np.float64)
    y, dx, dw = np.zeros((case.M, case.O)), np.zeros(x.shape), np.zeros(w.shape)
    for m, o in np.ndindex(y.shape):
        y[m, o] = 0 if b is None else b[o]
        for i in range(case.I):
            y[m, o] += x[m, i] * w[o, i]
            dx[m, i] += dy[m, o] * w[o, i]
            dw[o, i] += dy[m, o] * x[m, i]
    assert_close(linear_forward(x, w, b, s), y, "float64", case.I)
    assert_close(linear_data_gradient(dy, w, s), dx, "float64", case.O)
    assert_close(linear_weight_gradient(dy, x, s), dw, "float64", case.M)


@cases
def test_kernels(case: LinearCase, kernel_device: str) -> None:
    x, w, b = arrays(case)
    s = linear_geometry(x, w, b)
    dy = randn(case.M, case.O, seed=5)
    check_kernel(linear_forward, kernel_device, [x, w, b], s, terms=case.I)
    check_kernel(linear_data_gradient, kernel_device, [dy, w], s, terms=case.O)
    check_kernel(linear_weight_gradient, kernel_device, [dy, x], s, terms=case.M)


@cases
def test_gradcheck(case: LinearCase) -> None:
    if case.M * case.O * case.I > 3000:
        case = LinearCase(3, 20, 4, case.bias)
    inputs = [
        gpucnn.Tensor(a, requires_grad=True) for a in arrays(case, np.float64) if a is not None
    ]
    assert gpucnn.gradcheck(F.linear, inputs)


@needs_torch
@cases
def test_agrees_with_pytorch(case: LinearCase, device: str) -> None:
    given = [a for a in arrays(case) if a is not None]
    dy = randn(case.M, case.O, seed=5)
    y, grads = gradients(F.linear, given, dy, device)
    tensors = [torch.tensor(a, requires_grad=True) for a in given]
    ty = torch.nn.functional.linear(*tensors)
    ty.backward(torch.tensor(dy))
    terms = case.I + case.O + case.M
    assert_close(y, ty.detach().numpy(), "torch", terms)
    for a, t in zip(grads, tensors, strict=True):
        assert_close(a, t.grad.numpy(), "torch", terms)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "match"),
    [
        ((2, 3, 4), (5, 4), None, ValueError, r"x must have shape \(N, in_features\)"),
        ((0, 4), (5, 4), None, ValueError, "x must have shape"),
        ((2, 4), (5, 4, 1), None, ValueError, "weight must have shape"),
        ((2, 3), (5, 4), None, ValueError, "x must have 4 features"),
        ((2, 4), (5, 4), (4,), ValueError, r"bias must have shape \(5,\)"),
    ],
)
def test_bad_arguments(x: Any, weight: Any, bias: Any, error: type[Exception], match: str) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.linear(*tensors)


def test_bad_dtype() -> None:
    x, w = gpucnn.Tensor(np.zeros((2, 4), np.int32)), gpucnn.Tensor(np.zeros((5, 4), np.float32))
    with pytest.raises(TypeError, match="x must be float32"):
        F.linear(x, w)
