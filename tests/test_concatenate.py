"""concatenate and the layers made of branches: loops -> definition -> kernels; PyTorch beside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONCATENATE
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.concatenate import cut_columns, join_columns
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

cases = pytest.mark.parametrize(("shapes", "axis"), CONCATENATE, ids=str)


def arrays(shapes: Any, dtype: Any = np.float32) -> list[np.ndarray]:
    return [randn(*s, seed=i, dtype=dtype) for i, s in enumerate(shapes)]


def concatenate(axis: int) -> Any:
    return lambda *tensors: F.concatenate(tensors, axis)


@cases
def test_definition_is_the_formula(shapes: Any, axis: int) -> None:
    given = arrays(shapes, float)
    axis %= given[0].ndim
    expected = np.empty(
        [sum(s[axis] for s in shapes) if a == axis else n for a, n in enumerate(shapes[0])]
    )
    start = 0
    for a in given:
        for index in np.ndindex(a.shape):
            expected[(*index[:axis], start + index[axis], *index[axis + 1 :])] = a[index]
        start += a.shape[axis]
    actual, grads = gradients(concatenate(axis), given, expected)
    assert_close(actual, expected, "exact")
    for g, a in zip(grads, given, strict=True):
        assert_close(g, a, "exact")


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("widths", [(1,), (3, 5), (4, 8, 4), (4, 3, 300, 1)])
def test_kernels(rows: int, widths: tuple[int, ...], kernel_device: str) -> None:
    parts = [randn(rows, w) for w in widths]
    expected = join_columns(parts)
    y = join_columns.on(kernel_device)(on(kernel_device, *parts))
    assert_close(y, expected, "exact")
    start = 0
    for width in widths:
        check_kernel(cut_columns, kernel_device, [expected], start, width, bar="exact")
        start += width


@cases
def test_gradcheck(shapes: Any, axis: int) -> None:
    given = [gpucnn.Tensor(a, requires_grad=True) for a in arrays(shapes, float)]
    if sum(t.size for t in given) < 600:
        assert gpucnn.gradcheck(concatenate(axis), given)


def check_pytorch(shapes: Any, axis: int, device: str) -> None:
    given = arrays(shapes)
    tensors = [torch.tensor(a, requires_grad=True) for a in given]
    ty = torch.cat(tensors, axis)
    dy = randn(*ty.shape, seed=9)
    ty.backward(torch.tensor(dy))
    y, grads = gradients(concatenate(axis), given, dy, device)
    assert_close(y, ty.detach().numpy(), "exact")
    for g, t in zip(grads, tensors, strict=True):
        assert_close(g, t.grad.numpy(), "exact")


@needs_torch
@cases
def test_agrees_with_pytorch(shapes: Any, axis: int, device: str) -> None:
    check_pytorch(shapes, axis, device)


@needs_torch
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    data=st.data(),
)
@hundreds
def test_drawn_cases_agree_with_pytorch(
    shape: list[int], sizes: list[int], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    at = axis % len(shape)
    check_pytorch([(*shape[:at], n, *shape[at + 1 :]) for n in sizes], axis, "cpu")


def test_only_inputs_that_need_it_get_a_gradient() -> None:
    a, b = gpucnn.Tensor(randn(2, 3), requires_grad=True), gpucnn.Tensor(randn(2, 1))
    F.concatenate([a, b, a]).backward(np.ones((2, 7), np.float32))
    assert_close(a.grad.numpy(), np.full((2, 3), 2.0), "exact")
    assert b.grad is None


@pytest.mark.parametrize(
    ("shapes", "axis", "error", "match"),
    [
        ([], 0, ValueError, "tensors must hold at least one"),
        ([(2, 3), (2, 3)], 2, ValueError, "axis must lie between -2 and 1"),
        ([(2, 3), (2, 3)], 0.5, TypeError, "axis must be an integer"),
        ([(2, 3), (3, 3)], 1, ValueError, r"tensors\[1\] must have the shape \(2, 3\) apart"),
        ([(2, 3), (2, 3, 1)], 0, ValueError, r"tensors\[1\] must have the shape"),
        ([(2, 3), (2, 0)], 1, ValueError, r"tensors\[1\] must not be empty"),
        ([()], 0, ValueError, "axis must lie between"),
    ],
)
def test_bad_arguments(shapes: Any, axis: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        F.concatenate([gpucnn.Tensor(np.zeros(s, np.float32)) for s in shapes], axis)


def test_bad_types() -> None:
    a = gpucnn.Tensor(np.zeros((2, 3), np.float32))
    with pytest.raises(TypeError, match=r"tensors\[1\] must be a Tensor"):
        F.concatenate([a, 1.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"tensors\[1\] must be float32"):
        F.concatenate([a, gpucnn.Tensor(np.zeros((2, 3), np.int32))])


def test_residual(device: str) -> None:
    x = gpucnn.Tensor(randn(2, 3, 4, 5), device=device)
    inner = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.ReLU())
    block = nn.Residual(inner).to(device)
    assert_close(block(x).numpy(), inner(x).numpy() + x.numpy(), "exact")
    wider, projection = nn.Conv2d(5, 7, 3, stride=2, padding=1), nn.Conv2d(5, 7, 1, stride=2)
    block = nn.Residual(wider, projection).to(device)
    y = block(x)
    assert_close(y.numpy(), wider(x).numpy() + projection(x).numpy(), "exact")
    y.backward(np.ones(y.shape, np.float32))
    names = [name for name, _ in block.named_parameters()]
    assert names == ["module.weight", "module.bias", "projection.weight", "projection.bias"]
    assert all(p.grad is not None for p in block.parameters())


def test_concat(device: str) -> None:
    x = gpucnn.Tensor(randn(2, 3, 4, 5), device=device)
    first, second = nn.Conv2d(5, 2, 1), nn.Conv2d(5, 3, 3, padding=1)
    block = nn.Concat(first, second, nn.ReLU()).to(device)
    y = block(x)
    parts = [first(x).numpy(), second(x).numpy(), np.maximum(x.numpy(), 0)]
    assert_close(y.numpy(), np.concatenate(parts, axis=-1), "exact")
    assert [name for name, _ in block.named_parameters()][2] == "1.weight"
    assert repr(block).startswith("Concat(\n  (0): Conv2d(5, 2")


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Residual(F.relu), TypeError, "module must be a Module"),
        (lambda: nn.Residual(nn.ReLU(), 1), TypeError, "projection must be a Module"),
        (lambda: nn.Concat(), ValueError, "branches must hold at least one"),
        (lambda: nn.Concat(nn.ReLU(), 1), TypeError, r"branches\[1\] must be a Module"),
        (lambda: nn.Concat(nn.ReLU(), axis=0.5), TypeError, "axis must be an integer"),
    ],
)
def test_bad_layers(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()
