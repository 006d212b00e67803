"""Sums, means and maxima: loops -> definitions -> kernels; PyTorch beside them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import AXIS_REDUCE, REDUCE
from gpucnn import functional as F
from gpucnn.ops.reduce import axis_max, axis_sum, column_sum, spread, sum_slices
from tests.support import (
    assert_close,
    check_kernel,
    distinct,
    gradients,
    hundreds,
    needs_torch,
    randn,
    torch,
)

SHAPES = [(1, 1), (5, 3), (2, 3, 4, 5), (1000, 1), (300, 33), (9000, 2), (7, 100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_column_sum(shape: tuple[int, ...], kernel_device: str) -> None:
    x = randn(*shape)
    rows = x.size // shape[-1]
    expected = np.zeros(shape[-1])
    for row in x.reshape(rows, -1):
        expected += row
    assert_close(column_sum(x.astype(np.float64)), expected, "float64", rows)
    check_kernel(column_sum, kernel_device, [x], terms=rows)


@pytest.mark.parametrize(("slices", "bias"), [(1, False), (1, True), (5, False), (5, True)])
def test_sum_slices(slices: int, bias: bool, kernel_device: str) -> None:
    partial = randn(slices, 7, 11)
    b = randn(11, seed=1) if bias else None
    expected = partial.astype(np.float64).sum(axis=0) + (0 if b is None else b)
    assert_close(sum_slices(partial.astype(np.float64), b), expected, "float64", slices)
    check_kernel(sum_slices, kernel_device, [partial, b], terms=slices)


def test_column_sum_keeps_its_precision() -> None:
    """A running float32 sum of these numbers stops growing at 2^24."""
    x = np.ones((2**24 + 2**20, 1), np.float32)
    assert column_sum(x)[0] == len(x)


NAMES = ["sum", "mean", "max"]
cases = pytest.mark.parametrize(("shape", "axis"), REDUCE, ids=str)


def reduced(name: str, x: np.ndarray, axes: tuple[int, ...], keepdims: bool) -> np.ndarray:
    """One output element at a time, from the list of the elements behind it."""
    found: dict[tuple[int, ...], list[float]] = {}
    for index in np.ndindex(x.shape):
        key = tuple(0 if a in axes else i for a, i in enumerate(index))
        found.setdefault(key, []).append(float(x[index]))
    y = np.empty([1 if a in axes else n for a, n in enumerate(x.shape)])
    for key, values in found.items():
        if name == "max":
            y[key] = max(values)
        else:
            y[key] = math.fsum(values) / (len(values) if name == "mean" else 1)
    return y if keepdims else y.reshape([n for a, n in enumerate(x.shape) if a not in axes])


def all_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return tuple(a % ndim for a in (axis if isinstance(axis, tuple) else (axis,)))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("name", NAMES)
@cases
def test_definition_is_the_formula(shape: Any, axis: Any, name: str, keepdims: bool) -> None:
    x = randn(*shape, dtype=float)
    axes = all_axes(axis, x.ndim)
    actual = getattr(F, name)(gpucnn.Tensor(x), axis, keepdims=keepdims)
    bar = "exact" if name == "max" else "float64"
    assert_close(actual.numpy(), reduced(name, x, axes, keepdims), bar, x.size)
    method = getattr(gpucnn.Tensor(x), name)(axis, keepdims)
    assert_close(method.numpy(), actual.numpy(), "exact")


@pytest.mark.parametrize("shape", AXIS_REDUCE, ids=str)
def test_kernels(shape: tuple[int, int, int], kernel_device: str) -> None:
    O, R, C = shape
    x, dy = randn(*shape), randn(O, C, seed=1)
    check_kernel(axis_sum, kernel_device, [x], 0.25, terms=R)
    check_kernel(axis_max, kernel_device, [x], bar="exact")
    check_kernel(axis_max, kernel_device, [np.round(x)], bar="exact")
    if x.size < 5000:
        check_kernel(spread, kernel_device, [dy, None], R, 0.5)
        check_kernel(spread, kernel_device, [dy, axis_max(x)[1]], R, 1.0)


@pytest.mark.parametrize("name", NAMES)
@cases
def test_gradcheck(shape: Any, axis: Any, name: str) -> None:
    if math.prod(shape) > 500:
        return
    x = gpucnn.Tensor(distinct(*shape, dtype=float), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: getattr(F, name)(t, axis), [x])


def torch_reduce(name: str, t: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    return (torch.amax if name == "max" else getattr(torch, name))(t, dim=axes, keepdim=keepdims)


@needs_torch
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "axis"), [c for c in REDUCE if math.prod(c[0]) < 3000], ids=str)
def test_agrees_with_pytorch(shape: Any, axis: Any, name: str, device: str) -> None:
    check_pytorch(name, shape, axis, False, device)


@needs_torch
@given(
    name=st.sampled_from(NAMES),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    data=st.data(),
    keepdims=st.booleans(),
)
@hundreds
def test_drawn_cases_agree_with_pytorch(
    name: str, shape: list[int], data: st.DataObject, keepdims: bool
) -> None:
    n = len(shape)
    axes = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n, unique=True))
    check_pytorch(name, shape, tuple(axes), keepdims, "cpu")


def check_pytorch(name: str, shape: Any, axis: Any, keepdims: bool, device: str) -> None:
    x = distinct(*shape)
    axes = all_axes(axis, x.ndim)
    t = torch.tensor(x, requires_grad=True)
    ty = torch_reduce(name, t, axes, keepdims)
    dy = randn(*ty.shape, seed=1)
    ty.backward(torch.tensor(dy))
    y, grads = gradients(lambda x: getattr(F, name)(x, axis, keepdims=keepdims), [x], dy, device)
    assert_close(y, ty.detach().numpy(), "torch", x.size)
    assert_close(grads[0], t.grad.numpy(), "torch")


def test_ties_send_the_gradient_to_the_first_maximum(device: str) -> None:
    for shape, axis in [((2, 3, 4), 1), ((2, 3, 4), None), ((2, 3, 4), (0, 2)), ((5000,), 0)]:
        x = gpucnn.Tensor(np.zeros(shape, np.float32), requires_grad=True, device=device)
        y = F.max(x, axis)
        y.backward(np.full(y.shape, 2, np.float32))
        axes = all_axes(axis, len(shape))
        expected = np.zeros(shape)
        expected[tuple(slice(1) if a in axes else slice(None) for a in range(len(shape)))] = 2
        assert_close(x.grad.numpy(), expected, "exact")


def test_maxima_of_nan_and_infinity(device: str) -> None:
    inf, nan = np.inf, np.nan
    rows = [[-inf, -inf, -inf], [1, nan, inf], [nan, nan, 2], [-inf, 3, -inf], [5, nan, 1]]
    x = np.array(rows, np.float32)
    y, index = axis_max.on(device)(gpucnn.Tensor(x[:, :, None], device=device).data)
    y, index = gpucnn.Tensor(y, device=device).numpy(), gpucnn.Tensor(index, device=device).numpy()
    assert_close(y[:, 0], np.array([-inf, nan, nan, 3, nan]), "exact")
    assert index[:, 0].tolist() == [0, 1, 0, 1, 1]
    assert np.isnan(F.sum(gpucnn.Tensor(x, device=device)).numpy())


def test_sums_keep_their_precision(device: str) -> None:
    """A running float32 sum of 0.1 is off by 1e-4 after 60000 terms."""
    n = 60000 if device == "emulated" else 10_000_000
    x = gpucnn.Tensor(np.full((2, n), 0.1, np.float32), device=device)
    assert_close(F.mean(x, 1).numpy(), np.full(2, np.float32(0.1), float), "float32")
    assert_close(F.mean(x).numpy(), np.asarray(float(np.float32(0.1))), "float32")


@pytest.mark.parametrize("name", NAMES)
def test_bad_arguments(name: str) -> None:
    function = getattr(F, name)
    x = gpucnn.Tensor(np.zeros((2, 3), np.float32))
    for axis in (2, -3, (0, 5)):
        with pytest.raises(ValueError, match="axis must lie between -2 and 1"):
            function(x, axis)
    for axis in ((0, 0), (1, -1)):
        with pytest.raises(ValueError, match="axis must not name an axis twice"):
            function(x, axis)
    with pytest.raises(ValueError, match="axis must name at least one axis"):
        function(x, ())
    for axis in (0.5, "0", (None,)):
        with pytest.raises(TypeError, match="axis must be None, an int or several"):
            function(x, axis)
    with pytest.raises(ValueError, match="x must not be empty"):
        function(gpucnn.Tensor(np.zeros((2, 0), np.float32)))
    with pytest.raises(TypeError, match="x must be float32"):
        function(gpucnn.Tensor([1, 2]))


def test_every_set_of_axes() -> None:
    x = randn(2, 3, 2, 3, dtype=float)
    for n in range(1, 5):
        for axes in itertools.combinations(range(4), n):
            for name in NAMES:
                actual = getattr(F, name)(gpucnn.Tensor(x), axes)
                assert_close(actual.numpy(), reduced(name, x, axes, False), "float64", 36)
