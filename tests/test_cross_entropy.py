"""cross_entropy, averaged or added up: sums of rows -> definition -> kernels; launches."""

from __future__ import annotations

import numpy as np
import pytest

from bench.cases import CROSS_ENTROPY
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.kernel import observe_launches
from gpucnn.ops.cross_entropy import cross_entropy_backward, cross_entropy_reduced
from gpucnn.ops.loss import cross_entropy_forward
from tests.support import assert_close, check_kernel, on, randn

# (rows, classes): each number of lanes, rows that end within a warp; one block and several of them
SHAPES = [(1, 1), (7, 3), (37, 5), (129, 10), (70, 17), (33, 40), (5000, 4), (700, 33), (9, 2000)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def labels_of(rows: int, C: int) -> np.ndarray:
    """Labels, every fifth of them to ignore."""
    labels = np.random.default_rng([rows, C]).integers(0, C, rows, np.int32)
    labels[4::5] = -100
    return labels


def weights_of(C: int) -> np.ndarray:
    return np.abs(randn(C, seed=5)) + np.float32(0.5)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("case", CROSS_ENTROPY, ids=str)
def test_definition_is_the_sum_of_the_rows(
    case: tuple[tuple[int, ...], float], weighted: bool, mean: bool
) -> None:
    shape, smoothing = case
    C, rows = shape[-1], int(np.prod(shape[:-1]))
    x, labels = randn(rows, C, dtype=np.float64), labels_of(rows, C)
    weight = weights_of(C).astype(np.float64) if weighted else None
    arguments = (x, labels, weight, smoothing, -100)
    losses, slopes = cross_entropy_forward(*arguments, True)
    loss, count = losses.sum(axis=0)
    divisor = count if mean else 1.0
    y, dx = cross_entropy_reduced(*arguments, mean, True)
    assert_close(y, loss / divisor, "float64", rows)
    assert_close(dx, slopes / divisor, "float64", rows)
    y, none = cross_entropy_reduced(*arguments, mean, False)
    assert none is None
    assert_close(y, loss / divisor, "float64", rows)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("gradient", [True, False])
@pytest.mark.parametrize(("weighted", "smoothing"), [(True, 0.1), (False, 0.0)])
@shapes
def test_kernels(
    shape: tuple[int, int],
    weighted: bool,
    smoothing: float,
    gradient: bool,
    mean: bool,
    kernel_device: str,
) -> None:
    rows, C = shape
    weight = weights_of(C) if weighted else None
    arrays = [3 * randn(*shape), labels_of(rows, C), weight]
    rest = (smoothing, -100, mean, gradient)
    check_kernel(cross_entropy_reduced, kernel_device, arrays, *rest, terms=rows)


@pytest.mark.parametrize("rows", [3, 5000])
def test_a_label_that_the_kernel_cannot_use(rows: int, kernel_device: str) -> None:
    """NaN in the loss and in its row, no access outside the row, and it does not count."""
    labels = labels_of(rows, 4)
    labels[1] = 4
    x, target = on(kernel_device, randn(rows, 4), labels)
    y, dx = cross_entropy_reduced.on(kernel_device)(x, target, None, 0.1, -100, True, True)
    assert np.isnan(to_host(y))
    bad = np.isnan(to_host(dx)).all(axis=1)
    assert bad[1]
    assert bad.sum() == 1
    labels[1] = -100
    expected = cross_entropy_reduced(randn(rows, 4), labels, None, 0.1, -100, True, True)[1]
    assert_close(to_host(dx)[~bad], expected[~bad], "float32")


@pytest.mark.parametrize("rows", [6, 5000])
def test_nothing_counts(rows: int, device: str) -> None:
    """The mean of nothing is NaN and its gradient 0; the sum is 0. So also where weights are 0."""
    x = randn(rows, 4)
    for label, weight in ((-100, None), (0, [0.0, 1, 1, 1])):
        labels = np.full(rows, label, np.int32)
        for reduction in ("mean", "sum"):
            t = Tensor(x, requires_grad=True, device=device)
            loss = F.cross_entropy(t, labels, weight=weight, reduction=reduction)
            loss.backward()
            assert np.isnan(loss.item()) if reduction == "mean" else loss.item() == 0
            assert t.grad is not None
            assert not t.grad.numpy().any()


def test_a_gradient_that_is_not_one(device: str) -> None:
    for dy in (1.0, -2.5, 0.0, np.nan):
        x = Tensor(randn(9, 4), requires_grad=True, device=device)
        F.cross_entropy(x, labels_of(9, 4)).backward(np.float32(dy))
        expected = cross_entropy_reduced(randn(9, 4), labels_of(9, 4), None, 0.0, -100, True, True)
        assert x.grad is not None
        assert_close(x.grad.numpy(), dy * expected[1], "float32")


def test_the_kernel_of_the_gradient(kernel_device: str) -> None:
    for factor in (1.0, 0.5, np.inf):
        dx, dy = on(kernel_device, randn(7, 5), np.array([factor], np.float32))
        cross_entropy_backward.on(kernel_device)(dx, dy)
        assert_close(dx, randn(7, 5) * np.float32(factor), "exact")


@pytest.mark.parametrize(
    ("shape", "training", "evaluation"),
    [
        ((128, 10), ["reduced"], ["reduced"]),
        ((5000, 10), ["count", "reduced"], ["reduced"]),
    ],
)
def test_launches(
    shape: tuple[int, int], training: list[str], evaluation: list[str], kernel_device: str
) -> None:
    """A batch of digits takes one launch for loss and gradient; a factor before it one more."""
    for gradient, expected in ((True, training), (False, evaluation)):
        names: list[str] = []
        x = Tensor(randn(*shape), requires_grad=gradient, device=kernel_device)
        labels = Tensor(labels_of(*shape), device=kernel_device)
        with observe_launches(lambda launch: names.append(launch.kernel.name)):  # noqa: B023
            loss = F.cross_entropy(x, labels)
            if gradient:
                loss.backward()
        assert names == [f"cross_entropy_{name}" for name in expected]
        if gradient:
            names.clear()
            with observe_launches(lambda launch: names.append(launch.kernel.name)):  # noqa: B023
                F.cross_entropy(x, labels).backward(np.float32(0.5))
            assert names[-2:] == ["cross_entropy_backward", "add"]


def test_same_bits_every_time(device: str) -> None:
    x, labels = randn(9000, 3), labels_of(9000, 3)
    runs = []
    for _ in range(2):
        t = Tensor(x, requires_grad=True, device=device)
        loss = F.cross_entropy(t, labels, label_smoothing=0.1)
        loss.backward()
        assert t.grad is not None
        runs.append(loss.numpy().tobytes() + t.grad.numpy().tobytes())
    assert runs[0] == runs[1]
