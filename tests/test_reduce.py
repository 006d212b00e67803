"""column_sum and sum_slices."""

from __future__ import annotations

import numpy as np
import pytest

from gpucnn.ops.reduce import column_sum, sum_slices
from tests.support import assert_close, check_kernel, randn

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
