"""convert_pool_indices: numbers pinned by hand, and round trips."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor
from gpucnn import functional as F
from tests.support import randn

CONVENTIONS = ("torch", "onnx", "tf", "chainer")


def test_one_winner_in_four_conventions() -> None:
    """Cell (3, 2) of channel 1 of image 1, input 4x5, 3 channels, window (1, 1) of 2x2."""
    indices = np.full((2, 2, 2, 3), -1)
    indices[1, 1, 1, 1] = 3 * 5 + 2
    expected = {
        "torch": 17,
        "onnx": ((1 * 3 + 1) * 4 + 3) * 5 + 2,
        "tf": (3 * 5 + 2) * 3 + 1,
        "chainer": 1 * 2 + 0,
    }
    for name, number in expected.items():
        made = gpucnn.convert_pool_indices(indices, "torch", name, input_size=(4, 5), kernel_size=2)
        assert made.dtype == np.int64
        assert made[1, 1, 1, 1] == number
        assert (np.delete(made.reshape(-1), 22) == -1).all()


@pytest.mark.parametrize(("src", "dst"), list(product(CONVENTIONS, CONVENTIONS)))
def test_round_trips(src: str, dst: str) -> None:
    windows = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    _, indices = F.max_pool2d(
        Tensor(randn(2, 9, 7, 3)), (3, 2), (2, 1), (1, 0), dilation=(1, 2), return_indices=True
    )
    options: dict[str, Any] = {"input_size": (9, 7), **windows}
    there = F.convert_pool_indices(indices, "torch", src, **options)
    across = F.convert_pool_indices(there, src, dst, **options)
    back = F.convert_pool_indices(across, dst, "torch", **options)
    np.testing.assert_array_equal(back, indices.numpy())


def test_winners_of_sequences_and_volumes() -> None:
    """Place 5 of 7, channel 1 of 3, image 1; cell (2, 0, 3) of 3x4x5, channel 1 of 2, image 0."""
    expected = {"torch": 5, "onnx": (1 * 3 + 1) * 7 + 5, "tf": 5 * 3 + 1, "chainer": 1}
    for name, number in expected.items():
        indices = np.full((2, 3, 3), -1)
        indices[1, 2, 1] = 5
        made = F.convert_pool_indices(indices, "torch", name, input_size=7, kernel_size=2)
        assert made[1, 2, 1] == number
        assert (made >= 0).sum() == 1
    cell = (2 * 4 + 0) * 5 + 3
    expected = {
        "torch": cell,
        "onnx": 60 + cell,
        "tf": cell * 2 + 1,
        "chainer": (0 * 2 + 0) * 2 + 1,
    }
    for name, number in expected.items():
        indices = np.full((1, 2, 2, 2, 2), -1)
        indices[0, 1, 0, 1, 1] = cell
        made = F.convert_pool_indices(indices, "torch", name, input_size=(3, 4, 5), kernel_size=2)
        assert made[0, 1, 0, 1, 1] == number
        assert (made >= 0).sum() == 1


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize(("src", "dst"), list(product(CONVENTIONS, CONVENTIONS)))
def test_round_trips_of_sequences_and_volumes(src: str, dst: str, dims: int) -> None:
    size, kernel = (5, 6, 9)[-dims:], (2, 3, 2)[-dims:]
    windows = {"stride": (1, 2, 1)[-dims:], "padding": (1, 0, 1)[-dims:], "dilation": 2}
    pool = getattr(F, f"max_pool{dims}d")
    _, indices = pool(Tensor(randn(2, *size, 3)), kernel, **windows, return_indices=True)
    options: dict[str, Any] = {"input_size": size, "kernel_size": kernel, **windows}
    there = F.convert_pool_indices(indices, "torch", src, **options)
    across = F.convert_pool_indices(there, src, dst, **options)
    back = F.convert_pool_indices(across, dst, "torch", **options)
    np.testing.assert_array_equal(back, indices.numpy())


def test_unpooling_takes_the_result() -> None:
    x = Tensor(np.abs(randn(1, 4, 6, 2)))
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    onnx = F.convert_pool_indices(indices, "torch", "onnx", input_size=(4, 6))
    back = F.convert_pool_indices(onnx, "onnx", "torch", input_size=(4, 6))
    np.testing.assert_array_equal(
        F.max_unpool2d(y, back, 2).numpy(), F.max_unpool2d(y, indices, 2).numpy()
    )


INDICES = np.zeros((1, 2, 2, 3), np.int32)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"src": "keras"}, ValueError, "src must be one of torch, onnx, tf, chainer"),
        ({"dst": "keras"}, ValueError, "dst must be one of"),
        ({"dst": "chainer"}, ValueError, "kernel_size is needed"),
        ({"indices": np.zeros((2, 2), int)}, ValueError, "indices must have shape"),
        ({"indices": np.zeros((1, 2, 2, 3))}, TypeError, "indices must be integers"),
        ({"indices": INDICES - 2}, ValueError, "indices must be >= -1"),
        ({"indices": INDICES + 16}, ValueError, "is no cell of a 4 x 4 input"),
        ({"src": "tf"}, ValueError, "is no cell"),
        ({"src": "onnx"}, ValueError, "is no cell"),
        ({"src": "chainer", "indices": INDICES + 4, "kernel_size": 2}, ValueError, "is no cell"),
        ({"dst": "chainer", "kernel_size": 2}, ValueError, "lies outside its window"),
        ({"input_size": 0}, ValueError, "input_size must be >= 1"),
    ],
)  # fmt: skip
def test_bad_arguments(options: Any, error: type[Exception], match: str) -> None:
    options = {"indices": INDICES, "src": "torch", "dst": "onnx", "input_size": 4, **options}
    with pytest.raises(error, match=match):
        gpucnn.convert_pool_indices(**options)
