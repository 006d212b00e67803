"""broadcast_to, and what arithmetic broadcasts: loops -> definition; PyTorch on every device."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import BROADCAST
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.ops.broadcast import copies
from tests.support import assert_close, gradients, hundreds, needs_torch, randn, torch

Shape = tuple[int, ...]
cases = pytest.mark.parametrize(("small", "large"), BROADCAST, ids=str)


@cases
def test_definition_is_the_rule(small: Shape, large: Shape) -> None:
    x, dy = randn(*small, dtype=float), randn(*large, seed=1, dtype=float)
    y, dx = np.empty(large), np.zeros(small)
    for index in np.ndindex(large):
        own = index[len(large) - len(small) :]
        own = tuple(i if n > 1 else 0 for i, n in zip(own, small, strict=True))
        y[index] = x[own]
        dx[own] += dy[index]
    actual, grads = gradients(lambda t: F.broadcast_to(t, large), [x], dy)
    assert_close(actual, y, "exact")
    assert_close(grads[0], dx, "float64", y.size)


@cases
def test_devices(small: Shape, large: Shape, kernel_device: str) -> None:
    x, dy = randn(*small), randn(*large, seed=1)
    y, (dx,) = gradients(lambda t: F.broadcast_to(t, large), [x], dy, kernel_device)
    assert_close(y, np.broadcast_to(x, large), "exact")
    wide = gradients(lambda t: F.broadcast_to(t, large), [x.astype(float)], dy.astype(float))
    assert_close(dx, wide[1][0], "float32", y.size)


@cases
def test_gradcheck(small: Shape, large: Shape) -> None:
    x = Tensor(randn(*small, dtype=float), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: F.broadcast_to(t, large), [x])


def test_neighbouring_axes_are_one_step() -> None:
    assert copies((2, 1, 1, 5), (2, 3, 4, 5)) == [(2, 12, 5)]
    assert copies((), (2, 3)) == [(1, 6, 1)]
    assert copies((1, 3, 1), (2, 3, 4)) == [(3, 4, 1), (1, 2, 12)]
    assert copies((3, 1), (3, 1)) == []


def test_its_own_shape_is_the_tensor_itself() -> None:
    x = Tensor(randn(2, 3))
    assert F.broadcast_to(x, (2, 3)) is x


OPERATORS = {"add": operator.add, "subtract": operator.sub, "multiply": operator.mul}


def check_pytorch(name: str, a: np.ndarray, b: np.ndarray, device: str) -> None:
    """The function and its gradients, a and b each way round."""
    for arrays in ([a, b], [b, a]):
        tensors = [torch.tensor(v, requires_grad=True) for v in arrays]
        ty = OPERATORS[name](*tensors)
        dy = randn(*ty.shape, seed=9)
        ty.backward(torch.tensor(dy))
        y, grads = gradients(getattr(F, name), arrays, dy, device)
        assert_close(y, ty.detach().numpy(), "torch")
        for g, t in zip(grads, tensors, strict=True):
            assert_close(g, t.grad.numpy(), "torch", dy.size)


@needs_torch
@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("a", "b"),
    [*((large, small) for small, large in BROADCAST[::2]), ((3, 1), (1, 4)), ((2, 1, 3), (5, 1))],
    ids=str,
)
def test_arithmetic_is_pytorchs(a: Shape, b: Shape, name: str, device: str) -> None:
    check_pytorch(name, randn(*a), randn(*b, seed=1), device)


@needs_torch
@given(data=st.data())
@hundreds
def test_drawn_arithmetic_is_pytorchs(data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 4), max_size=5))

    def part() -> list[int]:
        kept = [n if data.draw(st.booleans()) else 1 for n in shape]
        return kept[data.draw(st.integers(0, len(kept))) :]

    a, b = part(), part()
    check_pytorch(
        data.draw(st.sampled_from(sorted(OPERATORS))), randn(*a), randn(*b, seed=1), "cpu"
    )


def test_channels_are_scaled_by_what_the_image_says(device: str) -> None:
    """Squeeze and excitation, and the normalisation of rows: the usual reasons to broadcast."""
    x = randn(2, 3, 4, 5)
    t = Tensor(x, device=device)
    mean = x.mean(axis=(1, 2), keepdims=True)
    assert_close((t * t.mean((1, 2), keepdims=True)).numpy(), x * mean, "float32", 12)
    assert_close((t - t.mean((1, 2), keepdims=True)).numpy(), x - mean, "float32", 12)


@pytest.mark.parametrize(
    ("shape", "error", "match"),
    [
        ((2, 4), ValueError, r"shape: x of shape \(2, 3\) cannot be broadcast to \(2, 4\)"),
        ((3,), ValueError, "shape: x of shape"),
        ((2, 3, 1), ValueError, "shape: x of shape"),
        ((2, 0, 2, 3), ValueError, "shape must be >= 1"),
        ((-1, 2, 3), ValueError, "shape must be >= 0"),
        ((2.0, 2, 3), TypeError, "shape must be an integer"),
        (6, TypeError, "shape must be a tuple of sizes"),
    ],
)
def test_bad_arguments(shape: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        F.broadcast_to(Tensor(np.zeros((2, 3), np.float32)), shape)


def test_bad_arrays() -> None:
    with pytest.raises(ValueError, match="x must not be empty"):
        F.broadcast_to(Tensor(np.zeros((3, 0), np.float32)), (2, 3, 0))
    with pytest.raises(TypeError, match="x must be float32"):
        F.broadcast_to(Tensor([1, 2]), (3, 2))
