"""Pooling of sequences: what is said of it here; PyTorch and devices in test_pool3d."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor
from gpucnn import functional as F
from tests.support import assert_close, distinct, randn


@pytest.mark.parametrize("pool", ["max", "avg", "sum"])
def test_is_the_image_of_one_row(pool: str, device: str) -> None:
    x = randn(2, 9, 3)
    one, two = getattr(F, f"{pool}_pool1d"), getattr(F, f"{pool}_pool2d")
    y = one(Tensor(x, device=device), 3, 2, 1)
    expected = two(Tensor(x[:, None], device=device), (1, 3), (1, 2), (0, 1))
    assert_close(y.numpy(), expected.numpy()[:, 0], "exact")


@pytest.mark.parametrize("pool", ["max", "avg", "sum"])
def test_gradcheck(pool: str) -> None:
    x = Tensor(distinct(2, 7, 2, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: getattr(F, f"{pool}_pool1d")(t, 3, 2, 1, edge="ceil"), [x])


def test_sequences_at_the_edge(device: str) -> None:
    x = Tensor(np.array([-1, -2, -3], np.float32).reshape(1, 3, 1), device=device)

    def flat(y: Any) -> Any:
        return y.numpy().reshape(-1).tolist()

    assert flat(F.max_pool1d(x, 2)) == [-1]
    assert flat(F.max_pool1d(x, 2, edge="ceil")) == [-1, -3]
    y, indices = F.max_pool1d(x, 2, edge="zero", return_indices=True)
    assert flat(y) == [-1, 0]
    assert flat(indices) == [0, -1]
    assert flat(F.avg_pool1d(x, 2, edge="zero")) == [-1.5, -1.5]
    assert flat(F.sum_pool1d(x, 3, 1, "same")) == [-3, -6, -5]
    assert flat(F.avg_pool1d(x, 2, 1, ((1, 0),), count_include_pad=False)) == [-1, -1.5, -2.5]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"x": (2, 6, 5, 4)}, ValueError, r"x must have shape \(N, W, C\)"),
        ({"x": (2, 0, 4)}, ValueError, "x must not be empty"),
        ({"kernel_size": (2, 2)}, ValueError, "kernel_size must be an int or one int"),
        ({"kernel_size": 8}, ValueError, "kernel_size: a window of 8"),
        ({"stride": 0}, ValueError, "stride must be >= 1"),
        ({"padding": 2}, ValueError, "padding must be smaller than the window"),
        ({"edge": "round"}, ValueError, "edge must be one of drop, ceil, zero"),
    ],
)
def test_bad_arguments_of_sequences(options: Any, error: type[Exception], match: str) -> None:
    options = {"kernel_size": 2, "x": (2, 7, 3), **options}
    x = Tensor(np.zeros(options.pop("x"), np.float32))
    for pool in (F.max_pool1d, F.avg_pool1d, F.sum_pool1d):
        with pytest.raises(error, match=match):
            pool(x, **options)


def test_bad_dtype_and_dilation() -> None:
    for pool in (F.max_pool1d, F.avg_pool1d, F.sum_pool1d):
        with pytest.raises(TypeError, match="x must be float32"):
            pool(Tensor(np.zeros((2, 7, 3), np.int32)), 2)
    with pytest.raises(ValueError, match="dilation must be >= 1"):
        F.max_pool1d(Tensor(np.zeros((1, 4, 2), np.float32)), 2, dilation=0)
