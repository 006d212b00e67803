"""Products of float32 made of three TF32 ones: errors beside those of float32, infinity and NaN."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import gpucnn
from gpucnn.device import to_host
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from tests.support import assert_close, on, randn

M, N = 16, 16


def product(direction: str, a: np.ndarray, b: np.ndarray, device: str) -> np.ndarray:
    """(M, K) times (K, N) as that pass of a convolution with windows of 1 x 1."""
    K = len(b)
    if direction == "weight_gradient":
        dy, x = np.ascontiguousarray(a.T).reshape(1, 1, K, M), b.reshape(1, 1, K, N)
        s = conv2d_geometry(x, np.empty((M, 1, 1, N), np.float32), None, 1, 0, 1, 1)
        made = conv2d_weight_gradient.on(device)(*on(device, dy, x), s)
    elif direction == "data_gradient":
        dy, w = a.reshape(1, 1, M, K), b.reshape(K, 1, 1, N)
        s = conv2d_geometry(np.empty((1, 1, M, N), np.float32), w, None, 1, 0, 1, 1)
        made = conv2d_data_gradient.on(device)(*on(device, dy, w), s)
    else:
        x, w = a.reshape(1, 1, M, K), np.ascontiguousarray(b.T).reshape(N, 1, 1, K)
        s = conv2d_geometry(x, w, None, 1, 0, 1, 1)
        made = conv2d_forward.on(device)(*on(device, x, w, None), s)
    return np.asarray(to_host(made)).reshape(M, N)


def one_by_one(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """In float32: multiply-adds, each rounded once, in the order of k."""
    sums = np.zeros((M, N), np.float32)
    for column, row in zip(a.T.astype(np.float64), b.astype(np.float64), strict=True):
        sums = (np.outer(column, row) + sums).astype(np.float32)
    return sums


SIGNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "both signs": lambda v: v,
    "activations": lambda v: np.maximum(v, 0) if len(v) == M else v,
    "positive": np.abs,
}
DIRECTIONS = ("forward", "data_gradient", "weight_gradient")


@pytest.mark.parametrize(
    ("K", "signs"),
    [*((K, signs) for K in (8, 72, 288, 1152, 4608) for signs in SIGNS), (20000, "positive")],
)
def test_errors_are_within_four_times_those_of_float32(
    K: int, signs: str, kernel_device: str
) -> None:
    """Against float64, in the mean and at most. Tensor cores' own long sums err 8 to 150 times."""
    a, b = (SIGNS[signs](v) for v in (randn(M, K), randn(K, N, seed=1)))
    exact = a.astype(np.float64) @ b
    plain = np.abs(one_by_one(a, b) - exact)
    with gpucnn.use_variant(conv2d="implicit_gemm"), gpucnn.precision("fp32"):
        for direction in DIRECTIONS:
            error = np.abs(product(direction, a, b, kernel_device) - exact)
            assert np.sqrt((error**2).mean()) <= 4 * np.sqrt((plain**2).mean()), direction
            assert error.max() <= 4 * plain.max(), direction


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_infinity_nan_and_the_largest_numbers(direction: str, kernel_device: str) -> None:
    """As in float32, beside numbers that are TF32 ones already, zero and others."""
    largest = np.finfo(np.float32).max
    a, b = randn(M, 40), randn(40, N, seed=1)
    for m, special in enumerate((np.inf, -np.inf, np.nan, largest, -largest, 2.0**127, -np.nan)):
        a[m, 3 + m] = special
        b[3 + m, :5] = 1, -0.5, 0, 2, 1e-30
    a[9, 20], b[20, 6], b[21, 6] = np.inf, np.inf, -1  # infinity times infinity
    a[10, 22], a[10, 24], b[22, 6], b[24, 6] = np.inf, np.inf, 1, -1  # less infinity
    with np.errstate(invalid="ignore", over="ignore"):
        expected = (a.astype(np.float64) @ b).astype(np.float32)
    assert np.isnan(expected[[0, 1, 2, 10], [2, 2, 0, 6]]).all()
    assert np.isinf(expected[[0, 1, 9, 3, 4], [0, 1, 6, 3, 3]]).all()
    with gpucnn.use_variant(conv2d="implicit_gemm"), gpucnn.precision("fp32"):
        assert_close(product(direction, a, b, kernel_device), expected, "float32", 40)
