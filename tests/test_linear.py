"""linear: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import LINEAR, LinearCase
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.nn import linear as linear_layers
from gpucnn.ops.linear import (
    linear_data_gradient,
    linear_forward,
    linear_geometry,
    linear_weight_gradient,
)
from gpucnn.summary import summarize
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

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


@pytest.mark.parametrize("variant", ["tiled", "register_tiled", "implicit_gemm"])
@cases
def test_kernels(case: LinearCase, variant: str, kernel_device: str) -> None:
    x, w, b = arrays(case)
    s = linear_geometry(x, w, b)
    dy = randn(case.M, case.O, seed=5)
    with gpucnn.use_variant(linear=variant):
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
    check_pytorch(case, device)


@needs_torch
@given(st.builds(LinearCase, *[st.integers(1, 40)] * 3, bias=st.booleans()))
@hundreds
def test_drawn_cases_agree_with_pytorch(case: LinearCase) -> None:
    check_pytorch(case, "cpu")


def check_pytorch(case: LinearCase, device: str) -> None:
    inputs = [a for a in arrays(case) if a is not None]
    dy = randn(case.M, case.O, seed=5)
    y, grads = gradients(F.linear, inputs, dy, device)
    tensors = [torch.tensor(a, requires_grad=True) for a in inputs]
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
        ((3, 0), (5, 4), None, ValueError, "x must have shape"),
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


def lazy(bias: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(None, 4, bias))


def test_a_layer_that_takes_the_features_of_its_first_input(device: str) -> None:
    """From then on it is the layer of that size: same names, same draw, same gradients."""
    x, dy = Tensor(randn(2, 5, 6, 1), device=device), randn(2, 4, seed=1)
    outputs, grads = [], []
    for features in (24, None):
        gpucnn.seed(3)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(features, 4)).to(device)
        y = model(x)
        y.backward(dy)
        outputs.append(y.numpy())
        grads.append({name: p.grad.numpy() for name, p in model.named_parameters()})
    assert_close(outputs[1], outputs[0], "exact")
    assert list(grads[1]) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    for name, grad in grads[0].items():
        assert_close(grads[1][name], grad, "exact")
    assert repr(model[2]) == "Linear(24, 4)"
    with pytest.raises(ValueError, match="x must have 24 features"):
        model(Tensor(randn(2, 5, 5, 1), device=device))


def test_no_parameters_before_the_first_input() -> None:
    model = lazy()
    assert repr(model[2]) == "Linear(None, 4)"
    message = r"2 Linear\(None, 4\) has no parameters before its first forward pass"
    for ask in (lambda: optim.SGD(model.parameters(), 0.1), model.state_dict):
        with pytest.raises(RuntimeError, match=message):
            ask()
    with pytest.raises(AttributeError, match=r"Linear\(None, 4\) has no weight before"):
        _ = model[2].weight
    with pytest.raises(ValueError, match=r"x must have shape \(N, in_features\), got \(2, 3, 4\)"):
        model[2](Tensor(randn(2, 3, 4)))
    assert [row.parameters for row in summarize(model, (5, 6, 1))] == [20, 0, 100]
    optimizer = optim.SGD(model.parameters(), 0.1)
    assert len(optimizer.params) == 4


@pytest.mark.parametrize("bias", [True, False])
def test_loading_sizes_the_layer(bias: bool) -> None:
    source = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 4, bias))
    model = lazy(bias)
    model.load_state_dict(source.state_dict())
    x = Tensor(randn(2, 5, 6, 1))
    assert_close(model(x).numpy(), source(x).numpy(), "exact")
    alone = nn.Linear(None, 4, bias)
    alone.load_state_dict(source[2].state_dict())
    assert repr(alone) == repr(source[2])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"2.weight": np.zeros((5, 24))}, r"state\['2.weight'\] must have shape \(4, 24\)"),
        ({"2.weight": np.zeros(24)}, "missing 2.weight|unknown 2.bias"),
        ({"0.bias": np.zeros(3)}, r"state\['0.bias'\] must have shape \(2,\)"),
        ({"2.weight": None}, "missing 2.weight"),
    ],
)
def test_loading_what_does_not_fit_leaves_the_layer_without_a_size(
    change: dict[str, Any], match: str
) -> None:
    state = {**nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 4)).state_dict()}
    state = {name: value for name, value in {**state, **change}.items() if value is not None}
    model = lazy()
    with pytest.raises(ValueError, match=match):
        model.load_state_dict(state)
    assert repr(model[2]) == "Linear(None, 4)"
    assert model(Tensor(randn(1, 9, 9, 1))).shape == (1, 4)


@pytest.mark.emulated
def test_the_parameters_are_made_where_the_model_was_moved() -> None:
    model = lazy().to("emulated")
    model.load_state_dict(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(24, 4)).state_dict()
    )
    assert {p.device for p in model.parameters()} == {"emulated"}


def test_docstring_example() -> None:
    assert doctest.testmod(linear_layers).attempted > 0
    assert doctest.testmod(linear_layers).failed == 0
