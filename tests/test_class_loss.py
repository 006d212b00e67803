"""nll_loss and multi_margin_loss: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from bench.cases import CLASS_LOSS
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.class_loss import HINGES, nll_forward
from tests.support import assert_close, check_kernel, distinct, needs_torch, on, randn, torch
from tests.test_loss import labels_for, positive

cases = pytest.mark.parametrize("shape", CLASS_LOSS, ids=str)
weighted = pytest.mark.parametrize("weighted", [False, True])
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
powers = pytest.mark.parametrize("p", [1, 2])
conventions = pytest.mark.parametrize("convention", HINGES)


def step(
    loss: Callable[..., Tensor],
    x: np.ndarray,
    target: Any,
    device: str = "cpu",
    dy: Any = None,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient of x)."""
    t = Tensor(x, requires_grad=True, device=device)
    y = loss(t, target, **options)
    y.backward(dy)
    return y.numpy(), t.grad.numpy()


@cases
@weighted
def test_nll_definition_is_the_formula(shape: tuple[int, ...], weighted: bool) -> None:
    C = shape[-1]
    x, target = randn(*shape, dtype=np.float64).reshape(-1, C), labels_for(shape).reshape(-1)
    target[1::3] = -7
    weight = positive(C, np.float64) if weighted else None
    losses, dx = np.zeros((len(x), 2)), np.zeros(x.shape)
    for r, y in enumerate(target):
        if y != -7:
            w = 1 if weight is None else weight[y]
            losses[r], dx[r, y] = (-w * x[r, y], w), -w
    actual = nll_forward(x, target, weight, -7, True)
    assert_close(actual[0], losses, "float64")
    assert_close(actual[1], dx, "float64")
    assert nll_forward(x, target, weight, -7, False)[1] is None


def slow_hinge(x: np.ndarray, y: int, p: int, margin: float, convention: str) -> tuple[float, Any]:
    """(loss, gradient) of one row, from its terms: class -> bound that it exceeds."""
    loss, dx = 0.0, np.zeros(len(x))
    others = [c for c in range(len(x)) if c != y]
    if convention == "crammer_singer":
        others = [max(others, key=lambda c: (x[c], -c))] if others else []
    if convention == "one_vs_all":
        terms = [
            ({c: 1 if c != y else -1}, margin + (x[c] if c != y else -x[c])) for c in range(len(x))
        ]
    else:
        terms = [({c: 1, y: -1}, margin - x[y] + x[c]) for c in others]
    for signs, excess in terms:
        if excess > 0:
            loss += excess**p
            for c, sign in signs.items():
                dx[c] += sign * p * excess ** (p - 1)
    return loss, dx


@cases
@weighted
@powers
@conventions
def test_hinge_definitions_are_the_formulas(
    shape: tuple[int, ...], weighted: bool, p: int, convention: str
) -> None:
    C = shape[-1]
    x, target = randn(*shape, dtype=np.float64).reshape(-1, C), labels_for(shape).reshape(-1)
    x[:, -1] = x[:, 0]  # a tie
    weight = positive(C, np.float64) if weighted else None
    losses, dx = np.ones((len(x), 2)), np.zeros(x.shape)
    for r, y in enumerate(target):
        w = (1 if weight is None else weight[y]) / (C if convention == "torch" else 1)
        loss, slopes = slow_hinge(x[r], y, p, 0.7, convention)
        losses[r, 0], dx[r] = w * loss, w * slopes
    actual = HINGES[convention](x, target, weight, p, 0.7, True)
    assert_close(actual[0], losses, "float64", C)
    assert_close(actual[1], dx, "float64", C)
    assert HINGES[convention](x, target, weight, p, 0.7, False)[1] is None


@cases
@weighted
@conventions
def test_hinge_kernels(
    shape: tuple[int, ...], weighted: bool, convention: str, kernel_device: str
) -> None:
    C = shape[-1]
    x, target = randn(*shape).reshape(-1, C), labels_for(shape).reshape(-1)
    x[:, -1] = x[:, 0]
    arrays = [x, target, positive(C) if weighted else None]
    for p in (1, 2):
        check_kernel(HINGES[convention], kernel_device, arrays, p, 0.7, True, terms=C)
    assert (
        HINGES[convention].on(kernel_device)(*on(kernel_device, *arrays), 1, 1.0, False)[1] is None
    )


@cases
@weighted
def test_kernels(shape: tuple[int, ...], weighted: bool, kernel_device: str) -> None:
    C = shape[-1]
    x, target = randn(*shape).reshape(-1, C), labels_for(shape).reshape(-1)
    arrays = [x, target, positive(C) if weighted else None]
    target[1::3] = -100
    check_kernel(nll_forward, kernel_device, arrays, -100, True)
    x, target, weight = on(kernel_device, *arrays)
    assert nll_forward.on(kernel_device)(x, target, weight, -100, False)[1] is None


@reductions
@weighted
def test_devices(weighted: bool, reduction: str, device: str) -> None:
    x, target = randn(2, 3, 4, 5), labels_for((2, 3, 4, 5))
    dy = randn(2, 3, 4, seed=1) if reduction == "none" else np.float32(-1.5)
    for loss in (F.nll_loss, F.multi_margin_loss):
        options = {"reduction": reduction, "weight": positive(5) if weighted else None}
        expected = step(loss, x.astype(np.float64), target, "cpu", dy.astype(np.float64), **options)
        actual = step(loss, x, Tensor(target, device=device), device, dy, **options)
        assert actual[0].shape == ((2, 3, 4) if reduction == "none" else ())
        assert_close(actual[0], expected[0], "float32", x.size)
        assert_close(actual[1], expected[1], "float32", 5)


@pytest.mark.parametrize(
    ("convention", "expected", "slopes"),
    [
        ("torch", 0.325, [0.25, 0.25, 0.25, -0.75]),
        ("crammer_singer", 0.6, [0, 0, 1, -1]),
        ("one_vs_all", 3.9, [1, 1, 1, -1]),
    ],
)
def test_a_number_to_hold_on_to(
    convention: str, expected: float, slopes: list[float], device: str
) -> None:
    """Libraries mean different losses by this name; PyTorch's gives 0.325 here."""
    x = np.array([[0.1, 0.2, 0.4, 0.8]], np.float32)
    loss, dx = step(F.multi_margin_loss, x, [3], device, convention=convention)
    assert_close(loss, np.float32(expected), "float32")
    assert_close(dx, np.array([slopes]), "float32")


@powers
@conventions
def test_gradient_at_the_margin_is_zero(p: int, convention: str, device: str) -> None:
    x = np.array([[0.0, 1.0, -5.0]], np.float32)
    if convention == "one_vs_all":
        x[0, 0] = -1
    loss, dx = step(F.multi_margin_loss, x, [1], device, p=p, convention=convention)
    assert loss == 0
    assert_close(dx, np.zeros((1, 3)), "exact")


@conventions
def test_hinges_of_special_scores(convention: str, device: str) -> None:
    """A NaN makes its row NaN; the first of equal worst classes receives the gradient."""
    x = np.array([[0, np.nan, 1], [np.nan, 0, 1], [2, 2, 2], [1e4, -1e4, 0]], np.float32)
    loss, dx = step(
        F.multi_margin_loss,
        x,
        [0, 0, 1, 1],
        device,
        np.ones(4, np.float32),
        reduction="none",
        convention=convention,
    )
    assert np.isnan(loss).tolist() == [True, True, False, False]
    assert np.isfinite(dx[2:]).all()
    if convention == "crammer_singer":
        assert_close(dx[2:], np.array([[1, -1, 0], [1, -1, 0]]), "exact")
        assert_close(loss[3], np.float32(20001), "float32")


@powers
def test_extreme_scores(p: int, device: str) -> None:
    x = np.array([[1e4, -1e4, np.nan], [1e4, -1e4, 0]], np.float32)
    loss, dx = step(
        F.multi_margin_loss, x, [1, 1], device, np.ones(2, np.float32), p=p, reduction="none"
    )
    assert np.isnan(loss[0])
    assert np.isnan(dx[0, 1:]).all()
    expected = sum((1 + 1e4 + v) ** p for v in (1e4, 0)) / 3
    assert_close(loss[1], np.float32(expected), "float32")
    assert np.isfinite(dx[1]).all()
    loss, dx = step(F.nll_loss, x, [2, 1], device, np.ones(2, np.float32), reduction="none")
    assert_close(loss, np.array([np.nan, 1e4]), "float32")
    assert_close(dx, np.array([[0, 0, -1], [0, -1, 0]]), "exact")


def test_nothing_kept(device: str) -> None:
    loss, dx = step(F.nll_loss, randn(3, 4), [-100] * 3, device)
    assert np.isnan(loss)
    assert_close(dx, np.zeros((3, 4)), "exact")


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1, -(2**31)])
def test_a_label_that_the_kernel_cannot_use(bad: int, kernel_device: str) -> None:
    """Where nobody could check it: NaN in its row, no access outside the row."""
    x, target = on(kernel_device, randn(3, 4), np.array([1, bad, 3], np.int32))
    for made, rest in ((nll_forward, (-100,)), *((h, (1, 1.0)) for h in HINGES.values())):
        for losses, dx in (
            made.on(kernel_device)(x, target, None, *rest, True),
            made(to_host(x), to_host(target), None, *rest, True),
        ):
            assert np.isnan(to_host(losses)[:, 0]).tolist() == [False, True, False]
            assert np.isnan(to_host(dx)).all(axis=1).tolist() == [False, True, False]
            assert np.isfinite(to_host(dx)[[0, 2]]).all()


def test_same_bits_every_time(device: str) -> None:
    x, target = randn(900, 3), labels_for((900, 3))
    for loss in (F.nll_loss, F.multi_margin_loss):
        runs = [step(loss, x, target, device) for _ in range(2)]
        assert runs[0][0].tobytes() == runs[1][0].tobytes()
        assert runs[0][1].tobytes() == runs[1][1].tobytes()


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (nn.CrossEntropyLoss, {}),
        (nn.CrossEntropyLoss, {"weight": [1, 2, 3, 4], "ignore_index": 2, "label_smoothing": 0.1}),
        (nn.NLLLoss, {"weight": [1, 2, 3, 4], "ignore_index": 1, "reduction": "sum"}),
        (nn.MultiMarginLoss, {"convention": "crammer_singer", "margin": 0.5}),
        (nn.MultiMarginLoss, {"p": 2, "margin": 0.5, "weight": [1, 2, 3, 4], "reduction": "none"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_layers(layer: type[nn.Module], options: dict[str, Any], device: str) -> None:
    functions = {
        nn.CrossEntropyLoss: F.cross_entropy,
        nn.NLLLoss: F.nll_loss,
        nn.MultiMarginLoss: F.multi_margin_loss,
    }
    x, target = randn(3, 4), [0, 2, 3]
    criterion = layer(**options).to(device)
    y = criterion(Tensor(x, device=device), target)
    expected = functions[layer](Tensor(x.astype(np.float64)), target, **options)
    assert_close(y.numpy(), expected.numpy(), "float32", 4)
    assert repr(criterion).startswith(f"{layer.__name__}(")
    assert not list(criterion.parameters())
    with pytest.raises(ValueError, match="reduction must be one of"):
        layer(reduction="avg")


def test_more_than_one_chunk() -> None:
    x, target = randn(30_001, 3), labels_for((30_001, 3))
    loss, dx = step(F.multi_margin_loss, x, target, reduction="sum")
    parts = [
        step(F.multi_margin_loss, x[s], target[s], reduction="sum")
        for s in (slice(0, 20_000), slice(20_000, 30_001))
    ]
    np.testing.assert_allclose(loss, parts[0][0] + parts[1][0], rtol=1e-5)
    assert_close(dx, np.concatenate([parts[0][1], parts[1][1]]), "exact")


@reductions
@weighted
def test_gradcheck(weighted: bool, reduction: str) -> None:
    x = Tensor(2 * distinct(2, 3, 4, dtype=np.float64), requires_grad=True)
    target = labels_for((2, 3, 4))
    options = {"reduction": reduction, "weight": positive(4) if weighted else None}
    for p in (1, 2):
        assert gpucnn.gradcheck(
            lambda t, p=p: F.multi_margin_loss(t, target, p=p, margin=0.3711, **options), [x]
        )
    for hinge in HINGES:
        given = {**options, "convention": hinge, "margin": 0.3711}
        assert gpucnn.gradcheck(lambda t, given=given: F.multi_margin_loss(t, target, **given), [x])
    target[0, 1] = -100
    assert gpucnn.gradcheck(lambda t: F.nll_loss(t, target, **options), [x])


@needs_torch
@reductions
@weighted
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    C=st.integers(1, 40),
    margin=st.sampled_from([-0.5, 0.0, 1.0, 2.5]),
    p=st.sampled_from([1, 2]),
    ignored=st.booleans(),
)
@settings(max_examples=40)
def test_agrees_with_pytorch(
    shape: list[int], C: int, margin: float, p: int, ignored: bool, weighted: bool, reduction: str
) -> None:
    x, target = randn(*shape, C), labels_for((*shape, C), seed=C)
    options: dict[str, Any] = {"reduction": reduction}
    theirs = dict(options)
    if weighted:
        options["weight"], theirs["weight"] = positive(C), torch.tensor(positive(C))
    dy = randn(*shape, seed=1) if reduction == "none" else np.float32(1.5)

    labels = torch.tensor(target.astype(np.int64).reshape(-1))
    skip = {"ignore_index": C // 2} if ignored else {}
    both = [
        (F.nll_loss, torch.nn.functional.nll_loss, skip),
        (F.multi_margin_loss, torch.nn.functional.multi_margin_loss, {"p": p, "margin": margin}),
    ]
    for ours, other, extra in both:
        tx = torch.tensor(x.reshape(-1, C), requires_grad=True)
        ty = other(tx, labels, **extra, **theirs)
        ty.backward(torch.tensor(dy.reshape(ty.shape)))
        loss, dx = step(ours, x, target, "cpu", dy, **extra, **options)
        assert_close(loss.reshape(ty.shape), ty.detach().numpy(), "torch", x.size)
        assert_close(dx.reshape(-1, C), tx.grad.numpy(), "torch", C)


X = np.zeros((2, 3), np.float32)
FITS = [
    (X[0], [0, 1, 2], {}, ValueError, "input must have shape"),
    (X.astype(np.int32), [0, 1], {}, TypeError, "input must be float32"),
    (X, [0, 3], {}, ValueError, "target: the label at 1 is 3, allowed are 0 to 2"),
    (X, [0], {}, ValueError, r"target must have shape \(2,\), got \(1,\)"),
    (X, X, {}, TypeError, "target must be integers"),
    (X, [0, 1], {"reduction": "avg"}, ValueError, "reduction must be one of mean, sum, none"),
    (X, [0, 1], {"weight": [1.0]}, ValueError, r"weight must have shape \(3,\)"),
]


@pytest.mark.parametrize(
    ("loss", "x", "target", "options", "error", "match"),
    [
        *((F.nll_loss, *case) for case in FITS),
        *((F.multi_margin_loss, *case) for case in FITS),
        (F.nll_loss, X, [0, 1], {"ignore_index": 1.5}, TypeError, "ignore_index must be an int"),
        (F.multi_margin_loss, X, [0, -100], {}, ValueError, "target: the label at 1 is -100"),
        (
            F.multi_margin_loss,
            X,
            [0, 1],
            {"convention": "caffe"},
            ValueError,
            "convention must be one of torch, crammer_singer, one_vs_all, got 'caffe'",
        ),
        (F.multi_margin_loss, X, [0, 1], {"p": 3}, ValueError, "p must be 1 or 2, got 3"),
        (F.multi_margin_loss, X, [0, 1], {"p": True}, ValueError, "p must be 1 or 2"),
        (F.multi_margin_loss, X, [0, 1], {"margin": "1"}, TypeError, "margin must be a number"),
        (F.multi_margin_loss, X, [0, 1], {"margin": np.inf}, ValueError, "margin must be finite"),
    ],
)
def test_bad_arguments(
    loss: Any, x: Any, target: Any, options: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        loss(Tensor(x), target, **options)


@pytest.mark.emulated
def test_mixed_devices() -> None:
    for loss in (F.nll_loss, F.multi_margin_loss):
        with pytest.raises(DeviceError, match="target must be on 'emulated' like input"):
            loss(Tensor(X, device="emulated"), Tensor([0, 1], device="cpu"))
