"""conv1d: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONV1D, ConvCase
from gpucnn import functional as F
from gpucnn import nn
from tests.support import assert_close, hundreds, needs_torch, randn
from tests.test_conv3d import check_definition, check_gradients, check_kernels, check_pytorch

cases = pytest.mark.parametrize("case", CONV1D, ids=str)


@cases
def test_definition_is_the_formula(case: ConvCase) -> None:
    check_definition(case)


@pytest.mark.parametrize("variant", ["tiled", "naive"])
@cases
def test_kernels(case: ConvCase, variant: str, kernel_device: str) -> None:
    check_kernels(case, variant, kernel_device)


@cases
def test_gradcheck(case: ConvCase) -> None:
    check_gradients(F.conv1d, case)


@needs_torch
@pytest.mark.parametrize("groups", [1, 3])
def test_cross_product_with_pytorch(groups: int) -> None:
    for kernel, stride, padding, dilation in itertools.product(
        [1, 2, 3, 4], [1, 2, 3], [0, 1, 3], [1, 2]
    ):
        x, w = randn(2, 9, 2 * groups), randn(2 * groups, kernel, 2, seed=1)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        check_pytorch(F.conv1d, x, w, randn(len(w), seed=4), options)


@needs_torch
@given(
    groups=st.sampled_from([(1, 1), (1, 5), (2, 3), (3, 1), (1, 33)]),
    N=st.integers(1, 3),
    width=st.integers(1, 12),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 4),
    padding=st.integers(0, 4),
    dilation=st.integers(1, 3),
    each=st.integers(1, 3),
)
@hundreds
def test_agrees_with_pytorch(
    groups: tuple[int, int],
    N: int,
    width: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    each: int,
) -> None:
    width = max(width, dilation * (kernel - 1) + 1 - 2 * padding)
    count, per_group = groups
    x, w = randn(N, width, count * per_group), randn(count * each, kernel, per_group, seed=1)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": count}
    check_pytorch(F.conv1d, x, w, randn(len(w), seed=4), options)


def test_is_conv2d_of_one_row(device: str) -> None:
    x, w = randn(2, 8, 3), randn(6, 3, 3, seed=1)
    narrow = F.conv1d(*(gpucnn.Tensor(a, device=device) for a in (x, w)), padding=((2, 0),))
    wide = F.conv2d(
        *(gpucnn.Tensor(a[:, None], device=device) for a in (x, w)), padding=((0, 0), (2, 0))
    )
    np.testing.assert_array_equal(narrow.numpy(), wide.numpy()[:, 0])


def test_layer() -> None:
    layer = nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2, bias=False)
    assert layer.weight.shape == (6, 3, 2)
    x = randn(1, 7, 4)
    y = layer(gpucnn.Tensor(x))
    assert y.shape == (1, 4, 6)
    assert_close(y.numpy()[0, 0, 0], (x[0, :2, :2] * layer.weight.numpy()[0, 1:]).sum(), "float32")
    assert repr(layer).startswith("Conv1d(4, 6, kernel_size=(3,), stride=(2,), padding=((1, 1),)")


X, WEIGHT = (2, 6, 4), (8, 3, 4)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((6, 4), WEIGHT, None, {}, ValueError, r"x must have shape \(N, W, C\)"),
        (X, (8, 3, 3, 4), None, {}, ValueError, r"weight must have shape \(OC, K, C/groups\)"),
        (X, (8, 3, 3), None, {}, ValueError, "weight must have 4 channels"),
        (X, WEIGHT, (7,), {}, ValueError, r"bias must have shape \(8,\)"),
        (X, (8, 7, 4), None, {}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"padding": (1, 2)}, ValueError, "padding must be an int or one int"),
        (X, WEIGHT, None, {"padding": ((1, 2), (0, 1))}, ValueError, "padding must be"),
        (X, WEIGHT, None, {"stride": (1, 2)}, ValueError, "stride must be an int or one int"),
        (X, WEIGHT, None, {"groups": 1.5}, TypeError, "groups must be an integer"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.conv1d(*tensors, **options)
