"""Element-wise arithmetic: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import ELEMENTWISE, ELEMENTWISE_VECTOR
from gpucnn import functional as F
from gpucnn.ops.elementwise import (
    add_forward,
    add_vector,
    affine_forward,
    multiply_forward,
    multiply_vector,
    scale_forward,
    subtract_forward,
)
from tests.support import (
    assert_close,
    check_kernel,
    gradients,
    hundreds,
    needs_torch,
    on,
    randn,
    torch,
)

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
}
names = pytest.mark.parametrize("name", OPERATORS)


@pytest.mark.parametrize("n", ELEMENTWISE)
def test_kernels(n: int, kernel_device: str) -> None:
    a, b = randn(n), randn(n, seed=1)
    for step in (add_forward, subtract_forward, multiply_forward):
        check_kernel(step, kernel_device, [a, b])
    check_kernel(scale_forward, kernel_device, [a, b[:1].copy()])
    check_kernel(affine_forward, kernel_device, [a], -0.75, 0.5)


@pytest.mark.parametrize("shape", ELEMENTWISE_VECTOR)
def test_vector_kernels(shape: tuple[int, ...], kernel_device: str) -> None:
    a, b = randn(*shape), randn(shape[-1], seed=1)
    check_kernel(add_vector, kernel_device, [a, b], 1.0)
    check_kernel(add_vector, kernel_device, [a, b], -1.0)
    check_kernel(multiply_vector, kernel_device, [a, b])


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_kernels_on_arrays_that_are_not_16_byte_aligned(offset: int, kernel_device: str) -> None:
    a, b = on(kernel_device, randn(103), randn(103, seed=1))
    a, b = a[offset:], b[offset:]
    assert_close(add_forward.on(kernel_device)(a, b), a + b, "exact")


@names
def test_definition_is_the_formula(name: str) -> None:
    operation = OPERATORS[name]
    a = randn(3, 5, dtype=float)
    for b in (randn(3, 5, seed=1, dtype=float), randn(5, seed=2, dtype=float)):
        expected = np.empty(a.shape)
        for i, j in np.ndindex(a.shape):
            expected[i, j] = operation(a[i, j], b[i, j] if b.ndim == 2 else b[j])
        actual = getattr(F, name)(gpucnn.Tensor(a), gpucnn.Tensor(b))
        assert_close(actual.numpy(), expected, "float64")
    for number in (2.5, -3, np.float32(0.5), np.int64(2)):
        actual = getattr(F, name)(gpucnn.Tensor(a), number)
        assert_close(actual.numpy(), operation(a, float(number)), "float64")


@names
def test_gradcheck(name: str) -> None:
    function = getattr(F, name)
    for shape in ((3, 4), (4,)):
        a, b = (
            gpucnn.Tensor(randn(*s, seed=i, dtype=float), requires_grad=True)
            for i, s in enumerate([(3, 4), shape])
        )
        assert gpucnn.gradcheck(function, [a, b])
    assert gpucnn.gradcheck(lambda t: function(t, -1.5), [a])
    assert gpucnn.gradcheck(lambda t: function(t, t), [a])
    assert gpucnn.gradcheck(F.negate, [a])


EXPRESSIONS: list[Callable[[Any, Any, Any], Any]] = [
    lambda a, b, v: a * b - a + 2,
    lambda a, b, v: 1.5 - a * v + b * 0.5,
    lambda a, b, v: -(a + v) * (b - v) - 3,
    lambda a, b, v: np.float32(2) * a + np.int64(3) + (1 - b) * a,
]


@needs_torch
@pytest.mark.parametrize("index", range(len(EXPRESSIONS)))
def test_operators_are_pytorchs(index: int, device: str) -> None:
    expression = EXPRESSIONS[index]
    given = [randn(3, 5), randn(3, 5, seed=1), randn(5, seed=2)]
    dy = randn(3, 5, seed=3)
    y, grads = gradients(expression, given, dy, device)
    tensors = [torch.tensor(a, requires_grad=True) for a in given]
    ty = expression(*tensors)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "torch")
    for g, t in zip(grads, [t for t in tensors if t.grad is not None], strict=True):
        assert_close(g, t.grad.numpy(), "torch", 3)


@needs_torch
@given(
    name=st.sampled_from(sorted(OPERATORS)),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    kind=st.sampled_from(["same", "vector", "number"]),
)
@hundreds
def test_drawn_cases_agree_with_pytorch(name: str, shape: list[int], kind: str) -> None:
    a, dy = randn(*shape), randn(*shape, seed=3)
    b: Any = {"same": randn(*shape, seed=1), "vector": randn(shape[-1], seed=2), "number": 1.25}[
        kind
    ]
    arrays = [a] if kind == "number" else [a, b]

    def apply(function: Callable[..., Any], *tensors: Any) -> Any:
        return function(tensors[0], b if kind == "number" else tensors[1])

    y, grads = gradients(lambda *t: apply(getattr(F, name), *t), arrays, dy)
    tensors = [torch.tensor(x, requires_grad=True) for x in arrays]
    ty = apply(OPERATORS[name], *tensors)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "torch")
    for g, t in zip(grads, tensors, strict=True):
        assert_close(g, t.grad.numpy(), "torch", a.size)


@names
def test_nan_and_infinity_pass(name: str, device: str) -> None:
    a = np.array([[np.nan, np.inf, -np.inf, 1e38], [0, 1, np.nan, 2]], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for b in (a[::-1].copy(), a[0].copy(), 3.0):
            other = gpucnn.Tensor(b, device=device) if isinstance(b, np.ndarray) else b
            actual = getattr(F, name)(gpucnn.Tensor(a, device=device), other)
            assert_close(actual.numpy(), OPERATORS[name](a, np.float32(b)), "float32")


@names
def test_bad_arguments(name: str) -> None:
    function = getattr(F, name)
    a = gpucnn.Tensor(np.zeros((2, 3), np.float32))
    for shape in [(2,), (3, 2), (4, 3), (2, 2, 2)]:
        with pytest.raises(ValueError, match=f"{name}: b must have the shape of a"):
            function(a, gpucnn.Tensor(np.zeros(shape, np.float32)))
    with pytest.raises(TypeError, match="b must be float32"):
        function(a, gpucnn.Tensor(np.zeros((2, 3), np.int32)))
    with pytest.raises(TypeError, match="a must be float32"):
        function(gpucnn.Tensor(np.zeros((2, 3), np.int32)), 1.0)
    for b in ("1", None, True, [1.0]):
        with pytest.raises(TypeError, match="b must be a Tensor or a number"):
            function(a, b)
    empty = gpucnn.Tensor(np.zeros((3, 0), np.float32))
    for b in (empty, 1.0):
        with pytest.raises(ValueError, match="a must not be empty"):
            function(empty, b)
    with pytest.raises(ValueError, match="b must not be empty"):
        function(a, empty)


def test_division_by_a_number(device: str) -> None:
    a = gpucnn.Tensor(randn(3, 5), requires_grad=True, device=device)
    y = a / 4
    y.backward(np.ones((3, 5), np.float32))
    assert_close(y.numpy(), a.numpy() / 4, "exact")
    assert_close(a.grad.numpy(), np.full((3, 5), 0.25), "exact")
    assert_close((a / 3.0).numpy(), a.numpy() / 3, "float32")
    with pytest.raises(ValueError, match="b must not be 0"):
        a / 0
    with pytest.raises(TypeError, match="b must be a number"):
        a / a


@pytest.mark.emulated
def test_two_devices() -> None:
    a = gpucnn.Tensor(np.zeros(3, np.float32))
    with pytest.raises(gpucnn.DeviceError, match="must share a device"):
        a * gpucnn.Tensor(np.zeros(3, np.float32), device="emulated")
