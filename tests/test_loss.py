"""cross_entropy: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CROSS_ENTROPY
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.loss import cross_entropy_forward, scale_rows
from tests.support import assert_close, check_kernel, needs_torch, on, randn, torch

cases = pytest.mark.parametrize(("shape", "smoothing"), CROSS_ENTROPY, ids=str)


def labels_for(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Class indices of the rows of ``shape``; the first and the last class appear."""
    labels = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1]).astype(np.int32)
    labels.flat[0], labels.flat[-1] = 0, shape[-1] - 1
    return labels


def step(
    x: np.ndarray, target: Any, device: str = "cpu", dy: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient of x)."""
    t = Tensor(x, requires_grad=True, device=device)
    loss = F.cross_entropy(t, target, **options)
    loss.backward(dy)
    return loss.numpy(), t.grad.numpy()


def torch_step(
    x: np.ndarray, target: np.ndarray, dy: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    tx = torch.tensor(x, requires_grad=True)
    labels = torch.tensor(target.astype(np.int64))
    loss = torch.nn.functional.cross_entropy(tx.movedim(-1, 1), labels, **options)
    loss.backward(None if dy is None else torch.tensor(dy))
    return loss.detach().numpy(), tx.grad.numpy()


@cases
def test_definition_is_the_formula(shape: tuple[int, ...], smoothing: float) -> None:
    C = shape[-1]
    x, target = randn(*shape, dtype=np.float64).reshape(-1, C), labels_for(shape).reshape(-1)
    loss, dx = np.empty(len(x)), np.empty(x.shape)
    for r, row in enumerate(x):
        total = sum(math.exp(v) for v in row)
        q = [(1 - smoothing) * (c == target[r]) + smoothing / C for c in range(C)]
        loss[r] = -0.5 * sum(q[c] * math.log(math.exp(row[c]) / total) for c in range(C))
        dx[r] = [0.5 * (math.exp(row[c]) / total - q[c]) for c in range(C)]
    actual = cross_entropy_forward(x, target, smoothing, 0.5, True)
    assert_close(actual[0], loss, "float64", C)
    assert_close(actual[1], dx, "float64")
    without = cross_entropy_forward(x, target, smoothing, 0.5, False)
    assert_close(without[0], actual[0], "exact")
    assert without[1] is None


@cases
def test_kernels(shape: tuple[int, ...], smoothing: float, kernel_device: str) -> None:
    C = shape[-1]
    x, target = 3 * randn(*shape).reshape(-1, C), labels_for(shape).reshape(-1)
    rest = smoothing, 1 / len(x), True
    check_kernel(cross_entropy_forward, kernel_device, [x, target], *rest, terms=C)
    check_kernel(scale_rows, kernel_device, [x, randn(len(x), seed=1)])
    loss, dx = cross_entropy_forward.on(kernel_device)(*on(kernel_device, x, target), 0.1, 1, False)
    assert dx is None
    assert_close(loss, cross_entropy_forward(x, target, 0.1, 1, False)[0], "float32", C)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@cases
def test_devices(shape: tuple[int, ...], smoothing: float, reduction: str, device: str) -> None:
    x, target = randn(*shape), labels_for(shape)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    dy = randn(*shape[:-1], seed=1) if reduction == "none" else np.float32(-2.5)
    expected = step(x.astype(np.float64), target, "cpu", dy.astype(np.float64), **options)
    actual = step(x, Tensor(target, device=device), device, dy, **options)
    assert actual[0].shape == (shape[:-1] if reduction == "none" else ())
    assert_close(actual[0], expected[0], "float32", x.size)
    assert_close(actual[1], expected[1], "float32", shape[-1])


def test_more_than_one_chunk(device: str) -> None:
    """More rows than one part of the definition and one block of the sum take."""
    x, target = randn(9000, 3), labels_for((9000, 3))
    below = x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True))
    rows = np.arange(9000)
    loss, dx = step(x, target, device)
    assert_close(loss, -below[rows, target].mean(), "float32", 9000)
    expected = np.exp(below)
    expected[rows, target] -= 1
    assert_close(dx, expected / 9000, "float32")


@pytest.mark.parametrize(
    ("row", "label", "expected"),
    [
        ([1e8, 1e8], 0, math.log(2)),
        ([1e30, -1e30], 1, 2e30),
        ([1e4, -1e4], 1, 2e4),
        ([-1e4, 1e4], 1, 0.0),
        ([-np.inf, 1.0], 1, 0.0),
        ([-np.inf, 1.0], 0, np.inf),
        ([np.inf, 1.0], 0, np.nan),
        ([np.inf, 1.0], 1, np.nan),
        ([np.nan, 1.0], 1, np.nan),
        ([-np.inf, -np.inf], 0, np.nan),
    ],
)
def test_special_numbers(row: list[float], label: int, expected: float, device: str) -> None:
    loss, dx = step(np.array([row], np.float32), [label], device)
    assert_close(loss, np.float32(expected), "float32")
    assert np.isnan(dx).all() if np.isnan(expected) else np.isfinite(dx).all()


def test_a_bad_row_leaves_the_others_alone(device: str) -> None:
    x = randn(5, 4)
    x[2, 1] = np.nan
    loss, dx = step(x, [0, 1, 2, 3, 0], device, np.ones(5, np.float32), reduction="none")
    assert np.isnan(loss).tolist() == [False, False, True, False, False]
    assert np.isnan(dx).any(axis=1).tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_label_that_the_kernel_cannot_use(bad: int, kernel_device: str) -> None:
    """Where nobody could check it: NaN in its row, no access outside the row."""
    x, target = on(kernel_device, randn(3, 4), np.array([1, bad, 3], np.int32))
    for result in (
        cross_entropy_forward.on(kernel_device)(x, target, 0.1, 1.0, True),
        cross_entropy_forward(to_host(x), to_host(target), 0.1, 1.0, True),
    ):
        for array in result:
            values = to_host(array).reshape(3, -1)
            assert np.isnan(values[1]).all()
            assert np.isfinite(values[[0, 2]]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int32, np.int64, np.uint64])
def test_targets_of_any_integer_type(dtype: Any, device: str) -> None:
    x = randn(4, 3)
    expected = step(x.astype(np.float64), np.array([0, 2, 1, 2]))[0]
    for target in (np.array([0, 2, 1, 2], dtype), [0, 2, 1, 2]):
        assert_close(step(x, target, device)[0], expected, "float32")
    tensor = Tensor(np.array([0, 2, 1, 2], dtype), device=device)
    assert_close(step(x, tensor, device)[0], expected, "float32")


def test_same_bits_every_time(device: str) -> None:
    x, target = randn(9000, 3), labels_for((9000, 3))
    runs = [step(x, target, device, label_smoothing=0.1) for _ in range(2)]
    assert runs[0][0].tobytes() == runs[1][0].tobytes()
    assert runs[0][1].tobytes() == runs[1][1].tobytes()


def test_nothing_is_kept_without_a_gradient(device: str) -> None:
    x = Tensor(randn(4, 3), device=device)
    assert not F.cross_entropy(x, [0, 1, 2, 0]).requires_grad
    x.requires_grad = True
    with gpucnn.no_grad():
        assert not F.cross_entropy(x, [0, 1, 2, 0]).requires_grad


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(1, 1), (4, 3), (2, 2, 3, 5)], ids=str)
def test_gradcheck(shape: tuple[int, ...], smoothing: float, reduction: str) -> None:
    x, target = Tensor(randn(*shape, dtype=np.float64), requires_grad=True), labels_for(shape)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    assert gpucnn.gradcheck(lambda t: F.cross_entropy(t, target, **options), [x])


@needs_torch
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    C=st.integers(1, 40),
    smoothing=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    scale=st.sampled_from([0.1, 1, 30]),
)
def test_agrees_with_pytorch(
    shape: list[int], C: int, smoothing: float, reduction: str, scale: float
) -> None:
    x = np.float32(scale) * randn(*shape, C)
    target = labels_for((*shape, C), seed=C)
    dy = randn(*shape, seed=1) if reduction == "none" else np.float32(1.5)
    options = {"label_smoothing": smoothing, "reduction": reduction}
    expected, actual = torch_step(x, target, dy, **options), step(x, target, "cpu", dy, **options)
    assert_close(actual[0], expected[0], "torch", x.size)
    assert_close(actual[1], expected[1], "torch", C)


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("x", "target", "options", "error", "match"),
    [
        (X[0], [0, 1, 2], {}, ValueError, "input must have shape"),
        (X[:0], [], {}, ValueError, "input must have shape"),
        (X.astype(np.int32), [0, 1], {}, TypeError, "input must be float32"),
        (X, [0, 3], {}, ValueError, "target: the label at 1 is 3, allowed are 0 to 2"),
        (X, [-1, 0], {}, ValueError, "target: the label at 0 is -1, allowed are 0 to 2"),
        (X, [0, 2**40], {}, ValueError, f"target: the label at 1 is {2**40}"),
        (X, [0], {}, ValueError, r"target must have shape \(2,\), got \(1,\)"),
        (X, 1, {}, ValueError, r"target must have shape \(2,\)"),
        (X, [[0], [1]], {}, ValueError, r"target must have shape \(2,\)"),
        (X, [0.0, 1.0], {}, TypeError, "target must be integers"),
        (X, [True, False], {}, TypeError, "target must be integers"),
        (X, ["cat", "dog"], {}, TypeError, "target must be integers"),
        (X, [0, 1], {"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none"),
        (X, [0, 1], {"reduction": None}, ValueError, "reduction must be one of"),
        (X, [0, 1], {"label_smoothing": 1.5}, ValueError, "label_smoothing must lie between"),
        (X, [0, 1], {"label_smoothing": -0.1}, ValueError, "label_smoothing must lie between"),
        (X, [0, 1], {"label_smoothing": float("nan")}, ValueError, "label_smoothing must lie"),
        (X, [0, 1], {"label_smoothing": "0.1"}, TypeError, "label_smoothing must be a number"),
    ],
)
def test_bad_arguments(
    x: Any, target: Any, options: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        F.cross_entropy(Tensor(x), target, **options)


def test_the_place_of_a_bad_label_in_an_image(device: str) -> None:
    target = np.zeros((2, 3, 4), np.int32)
    target[1, 2, 0] = 7
    x = Tensor(randn(2, 3, 4, 5), device=device)
    with pytest.raises(ValueError, match=r"the label at \(1, 2, 0\) is 7, allowed are 0 to 4"):
        F.cross_entropy(x, target)


@pytest.mark.emulated
def test_labels_of_a_tensor_are_checked_on_the_cpu() -> None:
    for device in ("cpu", "emulated"):
        target = Tensor([0, 3], device=device)
        with pytest.raises(ValueError, match="target: the label at 1 is 3"):
            F.cross_entropy(Tensor(X, device=device), target)


@pytest.mark.gpu
def test_labels_of_a_tensor_on_a_gpu_are_not_checked_by_the_host() -> None:
    x = Tensor(X, requires_grad=True, device="cuda")
    loss = F.cross_entropy(x, Tensor([0, 3], device="cuda"), reduction="none")
    assert np.isnan(loss.numpy()).tolist() == [False, True]


@pytest.mark.emulated
def test_mixed_devices() -> None:
    x, target = Tensor(X, device="emulated"), Tensor([0, 1], device="cpu")
    with pytest.raises(DeviceError, match="target must be on 'emulated' like input"):
        F.cross_entropy(x, target)
