"""Activations: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import ACTIVATION, ACTIVATION_FUNCTIONS
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.activation import (
    Elementwise,
    activation_backward,
    activation_forward,
    relu_backward,
    relu_forward,
)
from gpucnn.ops.activation_formulas import ACTIVATIONS
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
SELU = 1.6732632423543772, 1.0507009873554805
shapes = pytest.mark.parametrize("shape", ACTIVATION, ids=str)
functions = pytest.mark.parametrize(
    ("name", "options"), ACTIVATION_FUNCTIONS, ids=lambda value: str(value).replace(" ", "")
)


def normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def slow_tanh_gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


# The formula on one number; the gradients come from central differences in test_gradcheck.
FORMULAS: dict[str, Callable[..., float]] = {
    "relu": lambda x: max(x, 0.0),
    "leaky_relu": lambda x, negative_slope=0.01: x if x > 0 else negative_slope * x,
    "elu": lambda x, alpha=1.0: x if x > 0 else alpha * math.expm1(x),
    "selu": lambda x: SELU[1] * (x if x > 0 else SELU[0] * math.expm1(x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
    "softplus": lambda x, beta=1.0, threshold=20.0: (
        x if beta * x > threshold else math.log1p(math.exp(beta * x)) / beta
    ),
    "gelu": lambda x, approximate="none": (
        x * normal(x) if approximate == "none" else slow_tanh_gelu(x)
    ),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
}


def function(name: str, options: dict[str, Any]) -> Callable[..., gpucnn.Tensor]:
    return lambda x: getattr(F, name)(x, **options)


def torch_function(name: str) -> Callable[..., Any]:
    return (
        getattr(torch, name) if name in ("sigmoid", "tanh") else getattr(torch.nn.functional, name)
    )


def test_every_activation_is_in_the_table() -> None:
    assert {name for name, _ in ACTIVATION_FUNCTIONS} == set(FORMULAS)


@functions
@shapes
def test_definition_is_the_formula(
    shape: tuple[int, ...], name: str, options: dict[str, Any]
) -> None:
    x = 4 * randn(*shape, dtype=np.float64)
    expected = np.array([FORMULAS[name](float(v), **options) for v in x.flat]).reshape(shape)
    assert_close(function(name, options)(gpucnn.Tensor(x)).numpy(), expected, "float64")


@shapes
def test_relu_is_exact(shape: tuple[int, ...]) -> None:
    x, dy = randn(*shape, dtype=np.float64), randn(*shape, seed=1, dtype=np.float64)
    y = np.where(x > 0, x, 0)
    assert_close(relu_forward(x), y, "exact")
    assert_close(relu_backward(dy, y), np.where(x > 0, dy, 0), "exact")


@shapes
def test_relu_kernels(shape: tuple[int, ...], kernel_device: str) -> None:
    x, dy = randn(*shape), randn(*shape, seed=1)
    check_kernel(relu_forward, kernel_device, [x], bar="exact")
    check_kernel(relu_backward, kernel_device, [dy, np.maximum(x, 0)], bar="exact")


PARAMETERS = {"leaky_relu": (-0.3,), "elu": (1.5, 1.1), "softplus": (0.7, 3.0)}


@pytest.mark.parametrize("name", ACTIVATIONS)
@shapes
def test_kernels(shape: tuple[int, ...], name: str, kernel_device: str) -> None:
    x, dy, rest = 3 * randn(*shape), randn(*shape, seed=1), PARAMETERS.get(name, ())
    check_kernel(activation_forward, kernel_device, [x], name, rest)
    kept = activation_forward(x, name, rest) if ACTIVATIONS[name].keeps_output else x
    check_kernel(activation_backward, kernel_device, [dy, kept], name, rest)


def test_kernels_of_an_array_that_is_not_aligned(kernel_device: str) -> None:
    x, dy = randn(2, 37), randn(2, 37, seed=1)
    check_kernel(relu_forward, kernel_device, [x[1]], bar="exact")
    check_kernel(relu_backward, kernel_device, [dy[1], x[1]], bar="exact")
    check_kernel(activation_forward, kernel_device, [x[1]], "gelu", ())
    check_kernel(activation_backward, kernel_device, [dy[1], x[1]], "gelu", ())


@functions
def test_more_than_one_chunk(name: str, options: dict[str, Any]) -> None:
    """The definition cuts its work; every part must be written, and right beside its neighbours."""
    x, dy = randn(3, 70_001), randn(3, 70_001, seed=1)
    y, (dx,) = gradients(function(name, options), [x], dy)
    for part in (slice(0, 9), slice(61_060, 61_080), slice(69_990, 70_001)):
        some, (some_dx,) = gradients(function(name, options), [x[:, part]], dy[:, part])
        assert_close(y[:, part], some, "float32")
        assert_close(dx[:, part], some_dx, "float32")
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


def test_special_numbers_of_relu(device: str) -> None:
    """NaN passes, and its gradient passes; the gradient at 0 is 0, also where dy is not finite."""
    for dy in (np.ones_like(SPECIAL), np.full_like(SPECIAL, np.nan), np.full_like(SPECIAL, np.inf)):
        y, (dx,) = gradients(F.relu, [SPECIAL], dy, device)
        assert_close(y, np.array([np.nan, np.inf, 0, 0, 0, 2, 0, 1e-30, 0], np.float32), "exact")
        assert_close(dx, np.where([1, 1, 0, 0, 0, 1, 0, 1, 0], dy, 0), "exact")


FAR = np.array([np.nan, np.inf, -np.inf, 1e4, -1e4, 3e38, -3e38], np.float32)
SATURATED = [np.nan, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "y", "dx"),
    [
        ("leaky_relu", {"negative_slope": 0.5},
         [np.nan, np.inf, -np.inf, 1e4, -5e3, 3e38, -1.5e38], [0.5, 1, 0.5, 1, 0.5, 1, 0.5]),
        ("elu", {"alpha": 2.0}, [np.nan, np.inf, -2, 1e4, -2, 3e38, -2], SATURATED),
        ("selu", {},
         [np.nan, np.inf, -SELU[0] * SELU[1], 1e4 * SELU[1], -SELU[0] * SELU[1], 3e38 * SELU[1],
          -SELU[0] * SELU[1]], [np.nan, SELU[1], 0, SELU[1], 0, SELU[1], 0]),
        ("sigmoid", {}, SATURATED, [np.nan, 0, 0, 0, 0, 0, 0]),
        ("tanh", {}, [np.nan, 1, -1, 1, -1, 1, -1], [np.nan, 0, 0, 0, 0, 0, 0]),
        ("softplus", {}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
        ("softplus", {"threshold": 1e6}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
        ("gelu", {}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
        ("gelu", {"approximate": "tanh"}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
        ("silu", {}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
        ("hardswish", {}, [np.nan, np.inf, 0, 1e4, 0, 3e38, 0], SATURATED),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_far_out(
    name: str, options: dict[str, Any], y: list[float], dx: list[float], dtype: Any, device: str
) -> None:
    """Finite input, finite output and gradient; NaN passes; infinity has the limit."""
    actual, (gradient,) = gradients(
        function(name, options), [FAR.astype(dtype)], np.ones(len(FAR), dtype), device
    )
    assert_close(actual, np.array(y), "float32")
    if np.isnan(dx[0]) and name in ("elu", "selu"):
        gradient, dx = gradient[1:], dx[1:]  # PyTorch, too, has no NaN there
    assert_close(gradient, np.array(dx), "float32")


@pytest.mark.parametrize(
    ("name", "options", "at", "slope"),
    [
        ("relu", {}, 0.0, 0.0),
        ("leaky_relu", {}, 0.0, 0.01),
        ("leaky_relu", {"negative_slope": -2.0}, -0.0, -2.0),
        ("elu", {"alpha": 0.3}, 0.0, 0.3),
        ("selu", {}, 0.0, SELU[0] * SELU[1]),
        ("hardswish", {}, -3.0, 0.0),
        ("hardswish", {}, 3.0, 1.0),
    ],
)
def test_gradient_at_a_kink(
    name: str, options: dict[str, Any], at: float, slope: float, device: str
) -> None:
    x = np.full(5, at, np.float32)
    _, (dx,) = gradients(function(name, options), [x], np.ones_like(x), device)
    assert_close(dx, np.full(5, slope), "float32")


@pytest.mark.parametrize(
    ("name", "options"),
    [("leaky_relu", {"negative_slope": -0.5}), ("elu", {"alpha": -0.5})],
)
def test_negative_slopes_work_from_the_input(
    name: str, options: dict[str, Any], device: str
) -> None:
    """Both signs of x give a positive y there: the output does not say which slope holds."""
    x = np.array([-1, 1, -2, 2], np.float32)
    y, (dx,) = gradients(function(name, options), [x], np.ones_like(x), device)
    assert (y > 0).all()
    below = options.get("negative_slope", 0) or options["alpha"] * np.exp(x[[0, 2]])
    assert_close(dx[[0, 2]], np.broadcast_to(below, 2), "float32")
    assert_close(dx[[1, 3]], np.ones(2), "float32")


def test_small_numbers_are_not_lost(device: str) -> None:
    """exp(x) − 1 and log(1 + exp(x)) without cancellation."""
    x = gpucnn.Tensor(np.array([-1e-6, -1e-20], np.float32), device=device)
    np.testing.assert_allclose(F.elu(x).numpy(), np.expm1(x.numpy().astype(float)), rtol=1e-6)
    x = gpucnn.Tensor(np.array([-15.0, -30.0], np.float32), device=device)
    expected = np.log1p(np.exp(x.numpy().astype(float)))
    np.testing.assert_allclose(F.softplus(x).numpy(), expected, rtol=1e-5)
    expected = np.exp(x.numpy().astype(float))
    np.testing.assert_allclose(F.sigmoid(x).numpy(), expected, rtol=1e-5)


@functions
def test_float32_is_as_good_as_float64(name: str, options: dict[str, Any]) -> None:
    """Where it is computed by another series, or the slope along with y, as well."""
    x = np.linspace(-14, 14, 20_001)
    step = np.ones_like(x)
    y, (dx,) = gradients(function(name, options), [x.astype(np.float32)], step.astype(np.float32))
    expected, (expected_dx,) = gradients(function(name, options), [x], step)
    assert_close(y, expected, "float32")
    assert_close(dx, expected_dx, "float32")


@pytest.mark.parametrize("name", [name for name, a in ACTIVATIONS.items() if a.slope is None])
def test_slope_computed_along_with_y(name: str) -> None:
    parameters = {"elu": (1.5, 1.1)}.get(name, ())
    x, dy = 3 * randn(5, 7, dtype=np.float64), randn(5, 7, seed=1, dtype=np.float64)
    y, (dx,) = gradients(lambda t: Elementwise.apply(t, name=name, parameters=parameters), [x], dy)
    assert_close(y, activation_forward(x, name, parameters), "exact")
    assert_close(dx, activation_backward(dy, x, name, parameters), "exact")


@pytest.mark.parametrize("slope", [0.0, 1e-60, 0.5, 1.0, 1.5, -2.0])
def test_leaky_relu_of_any_slope(slope: float, device: str) -> None:
    x = np.array([-3, -0.5, 0, 0.5, 3, np.inf], np.float32)
    y = F.leaky_relu(gpucnn.Tensor(x, device=device), slope).numpy()
    assert_close(y, np.where(x > 0, x, np.float32(slope) * np.minimum(x, 0)), "float32")


@functions
def test_one_number(name: str, options: dict[str, Any], device: str) -> None:
    x = gpucnn.Tensor(np.float32(3.5), requires_grad=True, device=device)
    y = function(name, options)(x)
    y.backward()
    assert y.shape == ()
    assert y.item() == pytest.approx(FORMULAS[name](3.5, **options), rel=1e-5)
    assert x.grad.shape == ()


def test_identity_is_the_tensor_itself() -> None:
    x = gpucnn.Tensor([1, 2])
    assert F.identity(x) is x
    assert nn.Identity()(x) is x


@functions
def test_gradcheck(name: str, options: dict[str, Any]) -> None:
    x = gpucnn.Tensor(3.9 * distinct(3, 4, 5, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(function(name, options), [x])


@needs_torch
@functions
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    scale=st.sampled_from([0.3, 3, 30]),
    seed=st.integers(0, 9),
)
def test_agrees_with_pytorch(
    name: str, options: dict[str, Any], shape: list[int], scale: float, seed: int
) -> None:
    x = np.float32(scale) * randn(*shape, seed=seed)
    dy = randn(*shape, seed=seed + 10)
    y, (dx,) = gradients(function(name, options), [x], dy)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch_function(name)(tx, **options)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "torch")
    assert_close(dx, tx.grad.numpy(), "torch")


@needs_torch
@given(
    slope=st.floats(-2, 2, width=32),
    alpha=st.floats(-2, 2, width=32),
    beta=st.floats(0.125, 4, width=32),
    threshold=st.floats(-5, 40, width=32),
)
def test_options_agree_with_pytorch(
    slope: float, alpha: float, beta: float, threshold: float
) -> None:
    x, dy = 3 * randn(40), randn(40, seed=1)
    for name, options in [
        ("leaky_relu", {"negative_slope": slope}),
        ("elu", {"alpha": alpha}),
        ("softplus", {"beta": beta, "threshold": threshold}),
    ]:
        y, (dx,) = gradients(function(name, options), [x], dy)
        tx = torch.tensor(x, requires_grad=True)
        ty = torch_function(name)(tx, **options)
        ty.backward(torch.tensor(dy))
        assert_close(y, ty.detach().numpy(), "torch")
        assert_close(dx, tx.grad.numpy(), "torch")


@needs_torch
@pytest.mark.parametrize(
    ("layer", "arguments"),
    [
        ("ReLU", ()), ("LeakyReLU", (0.2,)), ("PReLU", (5, 0.1)), ("ELU", (0.7,)), ("SELU", ()),
        ("Sigmoid", ()), ("Tanh", ()), ("Softplus", (2.0, 5.0)), ("GELU", ("tanh",)), ("GELU", ()),
        ("SiLU", ()), ("Hardswish", ()), ("Identity", ()),
    ],
)  # fmt: skip
def test_layers_are_pytorchs(layer: str, arguments: tuple[Any, ...]) -> None:
    x = 3 * randn(4, 5)
    ours, theirs = getattr(nn, layer)(*arguments), getattr(torch.nn, layer)(*arguments)
    assert_close(ours(gpucnn.Tensor(x)).numpy(), theirs(torch.tensor(x)).detach().numpy(), "torch")
    assert repr(ours).startswith(f"{layer}(")
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_on_the_cuda_path() -> None:
    """Every array stays on its device, and nothing but our kernels computes."""
    x, dy = randn(3, 5), randn(3, 5, seed=1)
    for name, options in ACTIVATION_FUNCTIONS:
        y, (dx,) = gradients(function(name, options), [x], dy, "cuda")
        expected = gradients(function(name, options), [x], dy, "emulated")
        assert_close(y, expected[0], "exact")
        assert_close(dx, expected[1][0], "exact")


@functions
@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.zeros((3, 0), np.float32), ValueError, "x must not be empty"),
        (np.zeros((2, 3), np.int32), TypeError, "x must be float32"),
    ],
)
def test_bad_arrays(
    name: str, options: dict[str, Any], x: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        function(name, options)(gpucnn.Tensor(x))


@pytest.mark.parametrize(
    ("name", "layer", "options", "error", "match"),
    [
        ("leaky_relu", "LeakyReLU", {"negative_slope": "0.1"}, TypeError, "negative_slope must be"),
        ("leaky_relu", "LeakyReLU", {"negative_slope": True}, TypeError, "negative_slope must be"),
        ("leaky_relu", "LeakyReLU", {"negative_slope": np.inf}, ValueError, "negative_slope must"),
        ("elu", "ELU", {"alpha": None}, TypeError, "alpha must be a number"),
        ("elu", "ELU", {"alpha": np.nan}, ValueError, "alpha must be finite"),
        ("softplus", "Softplus", {"beta": 0}, ValueError, "beta must be > 0"),
        ("softplus", "Softplus", {"beta": -1.0}, ValueError, "beta must be > 0"),
        ("softplus", "Softplus", {"threshold": np.inf}, ValueError, "threshold must be finite"),
        ("gelu", "GELU", {"approximate": "erf"}, ValueError, "approximate must be one of none"),
        ("gelu", "GELU", {"approximate": None}, ValueError, "approximate must be one of none"),
    ],
)
def test_bad_options(
    name: str, layer: str, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        function(name, options)(gpucnn.Tensor(randn(3)))
    with pytest.raises(error, match=match):
        getattr(nn, layer)(**options)
