"""add and scale."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn.ops.elementwise import add_forward, scale_forward
from tests.support import assert_close, check_kernel, on, randn

SIZES = [1, 3, 4, 5, 1023, 1024, 4099]


@pytest.mark.parametrize("n", SIZES)
def test_kernels(n: int, kernel_device: str) -> None:
    a, b = randn(n), randn(n, seed=1)
    check_kernel(add_forward, kernel_device, [a, b])
    check_kernel(scale_forward, kernel_device, [a, b[:1].copy()])


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_kernels_on_arrays_that_are_not_16_byte_aligned(offset: int, kernel_device: str) -> None:
    a, b = on(kernel_device, randn(103), randn(103, seed=1))
    a, b = a[offset:], b[offset:]
    assert_close(add_forward.on(kernel_device)(a, b), a + b, "exact")


def test_gradcheck() -> None:
    a, b = (gpucnn.Tensor(randn(3, 4, seed=i, dtype=float), requires_grad=True) for i in (0, 1))
    assert gpucnn.gradcheck(F.add, [a, b])


def test_bad_arguments() -> None:
    a = gpucnn.Tensor(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="b must have the shape of a"):
        F.add(a, gpucnn.Tensor(np.zeros((2, 1), np.float32)))
    with pytest.raises(TypeError, match="b must be float32"):
        F.add(a, gpucnn.Tensor(np.zeros((2, 3), np.int32)))
