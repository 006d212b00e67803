"""transpose: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import TRANSPOSE
from gpucnn import functional as F
from gpucnn.kernel import observe_launches
from gpucnn.ops.transpose import ends_exchanged, exchanges, transpose_forward
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

Axes = tuple[int, ...]
cases = pytest.mark.parametrize(("shape", "axes"), TRANSPOSE, ids=str)


@cases
def test_definition_is_the_formula(shape: Axes, axes: Axes) -> None:
    x = randn(*shape, dtype=float)
    expected = np.empty([shape[a] for a in axes])
    for index in np.ndindex(shape):
        expected[tuple(index[a] for a in axes)] = x[index]
    y = transpose_forward(x, axes)
    assert y.flags.c_contiguous
    assert_close(y, expected, "exact")


@cases
def test_kernels(shape: Axes, axes: Axes, kernel_device: str) -> None:
    check_kernel(transpose_forward, kernel_device, [randn(*shape)], axes, bar="exact")


def test_every_permutation_of_five_axes() -> None:
    """The exchanges alone, done by NumPy."""
    shape = (2, 1, 3, 4, 2)
    x = randn(*shape)
    for axes in itertools.permutations(range(5)):
        y = x
        for B, R, C, S in exchanges(shape, axes):
            y = y.reshape(B, R, C, S).swapaxes(1, 2)
        assert np.array_equal(y.reshape(-1), x.transpose(axes).reshape(-1)), axes


def test_common_permutations_take_one_exchange() -> None:
    shape = (2, 5, 7, 3)
    assert exchanges(shape, (0, 3, 1, 2)) == [(2, 35, 3, 1)]
    assert exchanges(shape, (0, 2, 3, 1)) == [(2, 5, 21, 1)]
    assert exchanges(shape, (1, 0, 2, 3)) == [(1, 2, 5, 21)]
    assert exchanges((4, 1, 3), (1, 0, 2)) == []


@pytest.mark.parametrize(
    ("shape", "axes", "sizes"),
    [
        ((2, 40, 9, 35), (0, 3, 2, 1), (2, 40, 9, 35)),
        ((1, 5, 7, 3), (0, 3, 2, 1), (1, 5, 7, 3)),
        ((33, 3, 2, 34), (3, 1, 2, 0), (1, 33, 6, 34)),
        ((2, 3, 5, 7), (0, 1, 3, 2), None),
        ((5, 7), (1, 0), None),
        ((2, 3, 4, 5), (3, 2, 1, 0), None),
    ],
    ids=str,
)
def test_the_ends_of_three_axes_change_places_at_once(
    shape: Axes, axes: Axes, sizes: Any, kernel_device: str
) -> None:
    assert ends_exchanged(shape, axes) == sizes
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        check_kernel(transpose_forward, kernel_device, [randn(*shape)], axes, bar="exact")
    assert (names == ["transpose_tiles"]) is (len(exchanges(shape, axes)) == 1 or sizes is not None)


@cases
def test_gradcheck(shape: Axes, axes: Axes) -> None:
    if np.prod(shape) < 1000:
        x = gpucnn.Tensor(randn(*shape, dtype=float), requires_grad=True)
        assert gpucnn.gradcheck(lambda t: F.transpose(t, axes) * F.transpose(t, axes), [x])


@needs_torch
@cases
def test_agrees_with_pytorch(shape: Axes, axes: Axes, device: str) -> None:
    check_pytorch(shape, axes, device)


@needs_torch
@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=5), data=st.data())
@hundreds
def test_drawn_cases_agree_with_pytorch(shape: list[int], data: st.DataObject) -> None:
    check_pytorch(tuple(shape), tuple(data.draw(st.permutations(range(len(shape))))), "cpu")


def check_pytorch(shape: Axes, axes: Axes, device: str) -> None:
    x = randn(*shape)
    dy = randn(*(shape[a] for a in axes), seed=1)
    y, grads = gradients(lambda t: F.transpose(t, axes), [x], dy, device)
    t = torch.tensor(x, requires_grad=True)
    ty = t.permute(axes)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), "exact")
    assert_close(grads[0], t.grad.numpy(), "exact")


def test_the_method_takes_axes_as_numpy_does() -> None:
    x = gpucnn.Tensor(randn(2, 3, 4))
    assert x.transpose().shape == (4, 3, 2)
    assert x.transpose(1, 0, 2).shape == x.transpose((1, 0, 2)).shape == (3, 2, 4)
    assert x.transpose(-1, 0, 1).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("axes", "error", "match"),
    [
        ((0, 1), ValueError, "axes must name each of 3 axes once"),
        ((0, 1, 1), ValueError, "axes must name each"),
        ((0, 1, 3), ValueError, "axes must lie between -3 and 2"),
        ((0, 1, 0.5), TypeError, "axes must be integers"),
    ],
)
def test_bad_axes(axes: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        F.transpose(gpucnn.Tensor(randn(2, 3, 4)), axes)


def test_bad_arrays() -> None:
    with pytest.raises(ValueError, match="x must not be empty"):
        F.transpose(gpucnn.Tensor(np.zeros((2, 0), np.float32)))
    with pytest.raises(TypeError, match="x must be float32"):
        F.transpose(gpucnn.Tensor([[1, 2]]))
