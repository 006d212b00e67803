"""cross_entropy: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from bench.cases import CROSS_ENTROPY
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.loss import (
    cross_entropy_forward,
    cross_entropy_probabilities,
    mean_of_rows,
    scale_mean,
    scale_rows,
)
from tests.support import assert_close, check_kernel, needs_torch, on, randn, torch

cases = pytest.mark.parametrize(("shape", "smoothing"), CROSS_ENTROPY, ids=str)


def labels_for(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Class indices of the rows of ``shape``; the first and the last class appear."""
    labels = np.random.default_rng(seed).integers(0, shape[-1], shape[:-1]).astype(np.int32)
    labels.flat[0], labels.flat[-1] = 0, shape[-1] - 1
    return labels


def probabilities_for(shape: tuple[int, ...], seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Rows that sum to 1; some classes have probability 0."""
    values = np.abs(randn(*shape, seed=seed, dtype=np.float64))
    values[..., 1::3] = 0
    return (values / values.sum(axis=-1, keepdims=True)).astype(dtype)


def positive(C: int, dtype: Any = np.float32) -> np.ndarray:
    """Weights of classes."""
    return np.abs(randn(C, seed=5, dtype=dtype)) + np.asarray(0.1, dtype)


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
    if target.dtype.kind == "f":
        wanted = torch.tensor(target).movedim(-1, 1)
    else:
        wanted = torch.tensor(target.astype(np.int64))
    if "weight" in options:
        options["weight"] = torch.tensor(options["weight"])
    loss = torch.nn.functional.cross_entropy(tx.movedim(-1, 1), wanted, **options)
    loss.backward(None if dy is None else torch.tensor(dy))
    return loss.detach().numpy(), tx.grad.numpy()


weighted = pytest.mark.parametrize("weighted", [False, True])


@cases
@weighted
def test_definition_is_the_formula(
    shape: tuple[int, ...], smoothing: float, weighted: bool
) -> None:
    C = shape[-1]
    x, target = randn(*shape, dtype=np.float64).reshape(-1, C), labels_for(shape).reshape(-1)
    target[1::3] = -100
    weight = positive(C, np.float64) if weighted else None
    w = np.ones(C) if weight is None else weight
    losses, dx = np.zeros((len(x), 2)), np.zeros(x.shape)
    for r, row in enumerate(x):
        y = target[r]
        if y == -100:
            continue
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        losses[r] = (1 - smoothing) * w[y] * -math.log(p[y]), w[y]
        losses[r, 0] += smoothing / C * sum(w[c] * -math.log(p[c]) for c in range(C))
        for j in range(C):
            dx[r, j] = (1 - smoothing) * w[y] * (p[j] - (j == y))
            dx[r, j] += smoothing / C * sum(w[c] * (p[j] - (j == c)) for c in range(C))
    rest = weight, smoothing, -100
    actual = cross_entropy_forward(x, target, *rest, True)
    assert_close(actual[0], losses, "float64", C)
    assert_close(actual[1], dx, "float64", C)
    without = cross_entropy_forward(x, target, *rest, False)
    assert_close(without[0], actual[0], "exact")
    assert without[1] is None


@cases
@weighted
def test_definition_with_probabilities_is_the_formula(
    shape: tuple[int, ...], smoothing: float, weighted: bool
) -> None:
    C = shape[-1]
    x = randn(*shape, dtype=np.float64).reshape(-1, C)
    t = probabilities_for(shape, dtype=np.float64).reshape(-1, C)
    weight = positive(C, np.float64) if weighted else None
    w = np.ones(C) if weight is None else weight
    losses, dx = np.ones((len(x), 2)), np.zeros(x.shape)
    for r, row in enumerate(x):
        total = sum(math.exp(v) for v in row)
        p = [math.exp(v) / total for v in row]
        v = [w[c] * ((1 - smoothing) * t[r, c] + smoothing / C) for c in range(C)]
        losses[r, 0] = sum(v[c] * -math.log(p[c]) for c in range(C))
        for j in range(C):
            dx[r, j] = p[j] * sum(v) - v[j]
    actual = cross_entropy_probabilities(x, t, weight, smoothing, True)
    assert_close(actual[0], losses, "float64", C)
    assert_close(actual[1], dx, "float64", C)
    assert cross_entropy_probabilities(x, t, weight, smoothing, False)[1] is None


@cases
@weighted
def test_kernels(
    shape: tuple[int, ...], smoothing: float, weighted: bool, kernel_device: str
) -> None:
    C = shape[-1]
    x, target = 3 * randn(*shape).reshape(-1, C), labels_for(shape).reshape(-1)
    t = probabilities_for(shape).reshape(-1, C)
    target[1::3] = -100
    weight = positive(C) if weighted else None
    rest = smoothing, -100, True
    check_kernel(cross_entropy_forward, kernel_device, [x, target, weight], *rest, terms=C)
    arrays = [x, t, weight]
    check_kernel(cross_entropy_probabilities, kernel_device, arrays, smoothing, True, terms=C)
    arrays = on(kernel_device, x, target, weight)
    losses, dx = cross_entropy_forward.on(kernel_device)(*arrays, 0.1, -100, False)
    assert dx is None
    expected = cross_entropy_forward(x, target, weight, 0.1, -100, False)[0]
    assert_close(losses, expected, "float32", C)


def test_kernels_of_reductions(kernel_device: str) -> None:
    x, one = randn(37, 5), np.array([-1.5], np.float32)
    check_kernel(scale_rows, kernel_device, [x, randn(37, seed=1)])
    for totals in ([3.0, 4.0], [0.0, 0.0], [np.nan, 2.0]):
        check_kernel(mean_of_rows, kernel_device, [np.array(totals, np.float32)])
        check_kernel(scale_mean, kernel_device, [x, one, np.array(totals, np.float32)])


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
    for losses, dx in (
        cross_entropy_forward.on(kernel_device)(x, target, None, 0.1, -100, True),
        cross_entropy_forward(to_host(x), to_host(target), None, 0.1, -100, True),
    ):
        assert np.isnan(to_host(losses)[:, 0]).tolist() == [False, True, False]
        assert to_host(losses)[:, 1].tolist() == [1, 0, 1]
        assert np.isnan(to_host(dx)).all(axis=1).tolist() == [False, True, False]
        assert np.isfinite(to_host(dx)[[0, 2]]).all()


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_weights_and_ignored_rows_on_devices(
    probabilities: bool, reduction: str, device: str
) -> None:
    shape = (2, 3, 4, 5)
    x, dy = randn(*shape), np.float32(2)
    options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.2}
    if probabilities:
        target = probabilities_for(shape)
    else:
        target = labels_for(shape)
        target[0, 1] = options["ignore_index"] = 7
    if reduction == "none":
        dy = randn(*shape[:-1], seed=1)
    expected = step(
        x.astype(np.float64), target, "cpu", dy.astype(np.float64), weight=positive(5), **options
    )
    w = Tensor(positive(5), device=device)
    actual = step(x, Tensor(target, device=device), device, dy, weight=w, **options)
    assert_close(actual[0], expected[0], "float32", x.size)
    assert_close(actual[1], expected[1], "float32", 5)
    if not probabilities:
        assert not actual[1][0, 1].any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_rows_ignored(smoothing: float, device: str) -> None:
    """The mean of nothing is NaN, as in PyTorch; the gradient is 0, the sum is 0."""
    x, options = randn(3, 4), {"label_smoothing": smoothing}
    loss, dx = step(x, [-100] * 3, device, **options)
    assert np.isnan(loss)
    assert_close(dx, np.zeros((3, 4)), "exact")
    loss, dx = step(x, [-100] * 3, device, reduction="sum", **options)
    assert loss == 0
    assert_close(dx, np.zeros((3, 4)), "exact")


def test_the_mean_divides_by_the_weights_of_the_kept_rows(device: str) -> None:
    x = np.zeros((3, 2), np.float32)
    loss, dx = step(x, [0, 1, 9], device, weight=[1.0, 3.0], ignore_index=9)
    assert_close(loss, np.float32(math.log(2)), "float32")
    expected = [[-0.5 / 4, 0.5 / 4], [1.5 / 4, -1.5 / 4], [0, 0]]
    assert_close(dx, np.array(expected), "float32")


def test_a_class_that_cannot_be_costs_nothing_at_minus_infinity(device: str) -> None:
    x = np.array([[-np.inf, 0.0, 0.0]], np.float32)
    loss, dx = step(x, np.array([[0.0, 0.5, 0.5]], np.float32), device)
    assert_close(loss, np.float32(math.log(2)), "float32")
    assert_close(dx, np.zeros((1, 3)), "float32")


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


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("probabilities", [False, True])
def test_gradcheck_with_weights(probabilities: bool, reduction: str) -> None:
    x, shape = Tensor(randn(2, 3, 4, dtype=np.float64), requires_grad=True), (2, 3, 4)
    target = probabilities_for(shape, dtype=np.float64) if probabilities else labels_for(shape)
    if not probabilities:
        target[1, 1] = -100
    options = {"weight": positive(4), "label_smoothing": 0.3, "reduction": reduction}
    assert gpucnn.gradcheck(lambda t: F.cross_entropy(t, target, **options), [x])


@needs_torch
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", ["labels", "ignoring", "probabilities"])
@weighted
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    C=st.integers(1, 40),
    scale=st.sampled_from([0.1, 1, 30]),
)
@settings(max_examples=10)
def test_agrees_with_pytorch(
    shape: list[int],
    C: int,
    smoothing: float,
    reduction: str,
    scale: float,
    kind: str,
    weighted: bool,
) -> None:
    x = np.float32(scale) * randn(*shape, C)
    options: dict[str, Any] = {"label_smoothing": smoothing, "reduction": reduction}
    if kind == "probabilities":
        target = probabilities_for((*shape, C), seed=C)
    else:
        target = labels_for((*shape, C), seed=C)
    if kind == "ignoring":
        options["ignore_index"] = C // 2
    if weighted:
        options["weight"] = positive(C)
    dy = randn(*shape, seed=1) if reduction == "none" else np.float32(1.5)
    expected, actual = torch_step(x, target, dy, **options), step(x, target, "cpu", dy, **options)
    assert_close(actual[0], expected[0], "torch", x.size)
    assert_close(actual[1], expected[1], "torch", C)


X = np.zeros((2, 3), np.float32)
TRAINED = Tensor(np.ones(3, np.float32), requires_grad=True, device="cpu")


@pytest.mark.parametrize(
    ("x", "target", "options", "error", "match"),
    [
        (X[0], [0, 1, 2], {}, ValueError, "input must have shape"),
        (X[:, :0], [], {}, ValueError, "input must have shape"),
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
        (X, [0, 1], {"weight": [1, 2]}, ValueError, r"weight must have shape \(3,\), got \(2,\)"),
        (X, [0, 1], {"weight": "heavy"}, TypeError, "weight must be numbers"),
        (
            X,
            [0, 1],
            {"weight": Tensor([1, 2, 3], device="cpu")},
            TypeError,
            "weight must be float32",
        ),
        (X, [0, 1], {"weight": TRAINED}, ValueError, "weight receives no gradient"),
        (X, [0, 1], {"ignore_index": 0.5}, TypeError, "ignore_index must be an integer"),
        (X, [0, 1], {"ignore_index": 2**31}, ValueError, "ignore_index must fit int32"),
        (X, [0, -100], {"ignore_index": 3}, ValueError, "target: the label at 1 is -100"),
        (X, X[:1], {}, ValueError, r"target must have shape \(2, 3\), got \(1, 3\)"),
        (X, X, {"ignore_index": 1}, ValueError, "ignore_index goes with class indices"),
        (X, Tensor(X, requires_grad=True), {}, ValueError, "target receives no gradient"),
        (X, Tensor(X.astype(np.float64)), {}, TypeError, "target must be float32 like input"),
    ],
)
def test_bad_arguments(
    x: Any, target: Any, options: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        F.cross_entropy(Tensor(x), target, **options)


@pytest.mark.parametrize(
    ("labels", "hint"),
    [([1, 3, 2], ": classes count from 0, these labels seem to count from 1$"), ([0, 3, 2], "2$")],
)
def test_labels_that_count_from_one(labels: list[int], hint: str) -> None:
    with pytest.raises(ValueError, match=f"the label at 1 is 3, allowed are 0 to .*{hint}"):
        F.cross_entropy(Tensor(randn(3, 3)), labels)


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
