"""Wrong calls raise in Python, before a launch; launchers match their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.kernel import FILES, KernelFile, without_running
from gpucnn.primitive import Primitive

N = 8


def launch(*args: Any) -> None:
    FILES["elementwise"]["add"]((1,), (256,), *args)


@pytest.mark.emulated
def test_a_right_call() -> None:
    y, a, b = (np.full(N, v, np.float32) for v in (0, 1, 2))
    launch(y, a, b, N)
    np.testing.assert_array_equal(y, 3)


def array(dtype: Any = np.float32, n: int = N) -> np.ndarray:
    return np.zeros(n, dtype)


WRONG = [
    ((array(), array(), array()), TypeError, "add"),
    ((array(), array(), array(), N, N), TypeError, "add"),
    ((array(), array(np.float64), array(), N), TypeError, "a"),
    ((array(), array(np.int32), array(), N), TypeError, "a"),
    ((array(), array(n=2 * N)[::2], array(), N), ValueError, "a"),
    ((array(), array(), array(), 2**31), ValueError, "n"),
    ((array(), array(), array(), 1.5), TypeError, "n"),
    ((array(), 3, array(), N), TypeError, "a"),
]


@pytest.mark.parametrize(("args", "error", "match"), WRONG)
def test_wrong_calls(args: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        launch(*args)


@pytest.mark.emulated
@pytest.mark.parametrize(("args", "error", "match"), WRONG)
def test_wrong_calls_after_right_ones(args: Any, error: type[Exception], match: str) -> None:
    launch(array(), array(), array(), N)
    with pytest.raises(error, match=match):
        launch(*args)


@pytest.mark.parametrize("grid", [(0,), (1, 0), (2**31,), (1, 65536), (1, 1, 65536), (-1,)])
def test_grids_that_no_gpu_takes(grid: tuple[int, ...]) -> None:
    """An empty one is an invalid configuration, and CuPy wraps one that is too large."""
    add = FILES["elementwise"]["add"]
    with without_running(), pytest.raises(ValueError, match=r"add: grid .* must lie within"):
        add(grid, (256,), array(), array(), array(), N)


def test_too_many_elements() -> None:
    """Past 2^31 elements offsets would wrap; the check needs no memory."""
    huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (2**31,), (0,))
    with pytest.raises(ValueError, match="split the batch"):
        launch(huge, array(), array(), N)


def test_unknown_kernel() -> None:
    with pytest.raises(KeyError, match="has no kernel 'conquer', only "):
        FILES["elementwise"]["conquer"]


def test_a_launcher_with_another_signature_is_refused() -> None:
    made = Primitive(lambda x, y: None)
    with pytest.raises(TypeError, match="must have the signature"):
        made.kernel()(lambda x, z: None)


def test_use_variant() -> None:
    with pytest.raises(
        ValueError, match=r"conv2d is one of tiled, naive, .*, direct, winograd, got 'fast'"
    ):
        gpucnn.use_variant(conv2d="fast")
    with pytest.raises(ValueError, match="'softmax' has no variants"):
        gpucnn.use_variant(softmax="naive")
    made = gpucnn.functional.conv2d  # the family exists
    assert made is not None
    from gpucnn.ops.conv2d import conv2d_forward

    default = conv2d_forward.on("emulated")
    with gpucnn.use_variant(conv2d="naive"):
        assert conv2d_forward.on("emulated") is conv2d_forward.launchers["naive"]
        with gpucnn.use_variant(conv2d=None):
            assert conv2d_forward.on("emulated") is default
    assert conv2d_forward.on("emulated") is default


def test_kernel_files_are_one_object_per_family() -> None:
    assert all(isinstance(file, KernelFile) and file.family == name for name, file in FILES.items())
