"""Losses of pairs of numbers: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from bench.cases import ACTIVATION, REGRESSION_LOSS
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError
from gpucnn.ops.regression_formulas import LOSSES
from gpucnn.ops.regression_loss import regression_loss_backward, regression_loss_forward
from tests.support import assert_close, check_kernel, needs_torch, randn, torch

functions = pytest.mark.parametrize(
    ("name", "options"), REGRESSION_LOSS, ids=lambda value: str(value).replace(" ", "")
)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
shapes = pytest.mark.parametrize("shape", ACTIVATION, ids=str)
DISTANCES = ("l1_loss", "mse_loss", "huber_loss", "smooth_l1_loss")
PARAMETERS = {"huber_loss": (0.4, 2.5)}


def pair_for(
    name: str, shape: tuple[int, ...], log_target: bool = False, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and targets that the loss is meant for."""
    x, t = randn(*shape, dtype=dtype), randn(*shape, seed=1, dtype=dtype)
    if name in ("hinge_loss",):
        t = np.where(t > 0, 1, -1)
    elif name.startswith(("binary", "bce")):
        t = np.clip(np.abs(t), 0, 1)
    elif name.startswith("kl_div"):
        x = -np.abs(x)
        t = -np.abs(t) if log_target or name == "kl_div_log" else np.clip(t, 0, None)
    return x, t.astype(dtype)


def huber(d: float, delta: float) -> float:
    return 0.5 * d * d if abs(d) <= delta else delta * (abs(d) - 0.5 * delta)


def divergence(x: float, t: float, log_target: bool = False) -> float:
    if log_target:
        return math.exp(t) * (t - x)
    return t * (math.log(t) - x) if t else 0.0


# The formula on one pair; the gradients come from central differences in test_gradcheck.
FORMULAS: dict[str, Callable[..., float]] = {
    "l1_loss": lambda x, t: abs(x - t),
    "mse_loss": lambda x, t: (x - t) ** 2,
    "huber_loss": lambda x, t, delta=1.0: huber(x - t, delta),
    "smooth_l1_loss": lambda x, t, beta=1.0: huber(x - t, beta) / beta if beta else abs(x - t),
    "binary_cross_entropy_with_logits": lambda x, t: (
        -t * math.log(1 / (1 + math.exp(-x))) - (1 - t) * math.log(1 / (1 + math.exp(x)))
    ),
    "hinge_loss": lambda x, t: max(0.0, 1 - t * x),
    "kl_div": divergence,
}


def step(
    name: str, x: np.ndarray, target: Any, device: str = "cpu", dy: Any = None, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """(loss, gradient of x)."""
    scores = Tensor(x, requires_grad=True, device=device)
    loss = getattr(F, name)(scores, target, **options)
    loss.backward(dy)
    return loss.numpy(), scores.grad.numpy()


def test_every_loss_is_in_the_table() -> None:
    assert {name for name, _ in REGRESSION_LOSS} == set(FORMULAS)


@functions
@shapes
def test_definition_is_the_formula(
    shape: tuple[int, ...], name: str, options: dict[str, Any]
) -> None:
    x, t = pair_for(name, shape, options.get("log_target", False), np.float64)
    pairs = zip(x.flat, t.flat, strict=True)
    expected = np.array([FORMULAS[name](float(a), float(b), **options) for a, b in pairs])
    loss = getattr(F, name)
    actual = loss(Tensor(x), t, reduction="none", **options).numpy()
    assert_close(actual, expected.reshape(shape), "float64")
    assert_close(loss(Tensor(x), t, **options).numpy(), expected.mean(), "float64")
    total = loss(Tensor(x), t, reduction="sum", **options).numpy()
    assert_close(total, expected.sum(), "float64", x.size)


@pytest.mark.parametrize("name", LOSSES)
@shapes
def test_kernels(shape: tuple[int, ...], name: str, kernel_device: str) -> None:
    x, t = pair_for(name, shape)
    arrays, rest = [x, t], (name, PARAMETERS.get(name, ()), 0.25)
    check_kernel(regression_loss_forward, kernel_device, arrays, *rest, True, True, terms=x.size)
    check_kernel(regression_loss_forward, kernel_device, arrays, *rest, False, True)
    arrays = [randn(*shape, seed=2), x, t]
    check_kernel(regression_loss_backward, kernel_device, arrays, *rest[:2])


@pytest.mark.parametrize("name", ["bce_with_logits_loss", "hinge_loss"])
@pytest.mark.parametrize("n", [1023, 1025, 5001])
def test_several_blocks_and_a_tail(name: str, n: int, kernel_device: str) -> None:
    """What lies past the end would cost something: it must not be counted."""
    x, t = pair_for(name, (2, n))
    arrays, rest = [x[1], t[1]], (name, (), 1.0)
    check_kernel(regression_loss_forward, kernel_device, arrays, *rest, True, True, terms=n)


@functions
@reductions
def test_devices(name: str, options: dict[str, Any], reduction: str, device: str) -> None:
    x, t = pair_for(name, (3, 7, 5), options.get("log_target", False))
    dy = randn(3, 7, 5, seed=3) if reduction == "none" else np.float32(-1.5)
    options = {**options, "reduction": reduction}
    expected = step(name, x.astype(np.float64), t, "cpu", dy.astype(np.float64), **options)
    for target in (t, Tensor(t, device=device)):
        actual = step(name, x, target, device, dy, **options)
        assert actual[0].shape == (x.shape if reduction == "none" else ())
        assert_close(actual[0], expected[0], "float32", x.size)
        assert_close(actual[1], expected[1], "float32")


@functions
def test_more_than_one_chunk(name: str, options: dict[str, Any]) -> None:
    x, t = pair_for(name, (70_001,), options.get("log_target", False))
    ends = [(0, 30_000), (30_000, 70_001)]
    for reduction in ("sum", "none"):
        given = {**options, "reduction": reduction}
        dy = None if reduction == "sum" else np.ones_like(x)
        whole = step(name, x, t, "cpu", dy, **given)
        parts = [
            step(name, x[a:b], t[a:b], "cpu", None if dy is None else dy[a:b], **given)
            for a, b in ends
        ]
        if reduction == "sum":
            np.testing.assert_allclose(whole[0], parts[0][0] + parts[1][0], rtol=1e-5)
        else:
            assert_close(whole[0], np.concatenate([p[0] for p in parts]), "float32")
        assert_close(whole[1], np.concatenate([p[1] for p in parts]), "float32")


@pytest.mark.parametrize(
    ("name", "options", "x", "t", "loss", "dx"),
    [
        ("l1_loss", {}, 1e4, -1e4, 2e4, 1),
        ("l1_loss", {}, 0.5, 0.5, 0, 0),
        ("l1_loss", {}, -np.inf, 0, np.inf, -1),
        ("mse_loss", {}, 1e4, -1e4, 4e8, 4e4),
        ("mse_loss", {}, 3, 1, 4, 4),
        ("huber_loss", {}, 1e4, -1e4, 2e4 - 0.5, 1),
        ("huber_loss", {"delta": 2.0}, 3, 1, 2, 2),
        ("huber_loss", {"delta": 2.0}, -3, 1, 6, -2),
        ("huber_loss", {}, np.inf, 0, np.inf, 1),
        ("smooth_l1_loss", {"beta": 2.0}, 3, 1, 1, 1),
        ("smooth_l1_loss", {"beta": 0.0}, 1, 1, 0, 0),
        ("smooth_l1_loss", {"beta": 1e-30}, 1, 3, 2, -1),
        ("smooth_l1_loss", {"beta": 1e-45}, 1, 3, 2, -1),
        ("binary_cross_entropy_with_logits", {}, 1e4, 1, 0, 0),
        ("binary_cross_entropy_with_logits", {}, -1e4, 1, 1e4, -1),
        ("binary_cross_entropy_with_logits", {}, 1e4, 0, 1e4, 1),
        ("binary_cross_entropy_with_logits", {}, 0, 0.5, math.log(2), 0),
        ("binary_cross_entropy_with_logits", {}, np.inf, 0, np.inf, 1),
        ("hinge_loss", {}, 1e4, -1, 10001, 1),
        ("hinge_loss", {}, 1e4, 1, 0, 0),
        ("hinge_loss", {}, 1, 1, 0, 0),
        ("hinge_loss", {}, -1, -1, 0, 0),
        ("hinge_loss", {}, 0.25, 1, 0.75, -1),
        ("kl_div", {}, -1e4, 0.5, 0.5 * (math.log(0.5) + 1e4), -0.5),
        ("kl_div", {}, -1.0, 0, 0, 0),
        ("kl_div", {}, -np.inf, 0, 0, 0),
        ("kl_div", {"log_target": True}, -1e4, 0, 1e4, -1),
        ("kl_div", {"log_target": True}, -1.0, -np.inf, 0, 0),
        ("kl_div", {"log_target": True}, -np.inf, -1e4, 0, 0),
    ],
    ids=str,
)
@reductions
def test_extreme_numbers_and_kinks(
    name: str,
    options: dict[str, Any],
    x: float,
    t: float,
    loss: float,
    dx: float,
    reduction: str,
    device: str,
) -> None:
    scores, target = np.full((1, 3), x, np.float32), np.full((1, 3), t, np.float32)
    dy = np.ones_like(scores) if reduction == "none" else None
    actual = step(name, scores, target, device, dy, reduction=reduction, **options)
    expected = {"none": np.full((1, 3), loss), "sum": 3 * loss, "mean": loss}[reduction]
    assert_close(actual[0], np.array(expected), "float32")
    assert_close(actual[1], np.full((1, 3), dx / (3 if reduction == "mean" else 1)), "float32")


@functions
def test_nan_passes(name: str, options: dict[str, Any], device: str) -> None:
    x = np.array([np.nan, -0.5], np.float32)
    t = np.array([0.0 if name == "kl_div" else 1.0, 1.0], np.float32)
    loss, dx = step(name, x, t, device, np.ones(2, np.float32), reduction="none", **options)
    assert np.isnan(loss).tolist() == [True, False]
    assert np.isfinite(dx[1])
    if name != "kl_div":  # whose gradient does not depend on x
        assert np.isnan(dx[0])


@pytest.mark.parametrize("name", DISTANCES)
@reductions
def test_gradient_of_the_target(name: str, reduction: str, device: str) -> None:
    x, t = pair_for(name, (4, 5))
    dy = randn(4, 5, seed=3) if reduction == "none" else None
    for needs in ((True, True), (False, True)):
        scores = Tensor(x, requires_grad=needs[0], device=device)
        target = Tensor(t, requires_grad=True, device=device)
        getattr(F, name)(scores, target, reduction=reduction).backward(dy)
        dx = step(name, x, t, device, dy, reduction=reduction)[1]
        assert_close(target.grad.numpy(), -dx, "float32")
        if needs[0]:
            assert_close(scores.grad.numpy(), dx, "float32")
        else:
            assert scores.grad is None


def test_one_number(device: str) -> None:
    loss, dx = step("mse_loss", np.float32(3), np.float32(1), device)
    assert (loss, dx) == (4, 4)
    loss, dx = step("mse_loss", np.float32(3), 1, device, np.float32(2), reduction="none")
    assert (loss, dx) == (4, 8)


def test_kl_batchmean(device: str) -> None:
    x, t = pair_for("kl_div", (4, 5))
    total, dx = step("kl_div", x, t, device, reduction="sum")
    loss, dmean = step("kl_div", x, t, device, reduction="batchmean")
    assert_close(loss, total / 4, "float32", 20)
    assert_close(dmean, dx / 4, "float32")


def test_hinge_one_vs_all(device: str) -> None:
    """The sum over a row with targets -1 and 1: the number that Caffe and Chainer give."""
    x = np.array([[0.1, 0.2, 0.4, 0.8]], np.float32)
    loss, _ = step("hinge_loss", x, [[-1, -1, -1, 1]], device, reduction="sum")
    assert_close(loss, np.float32(3.9), "float32")
    labels = Tensor([[-1, -1, -1, 1]], device=device)
    assert_close(step("hinge_loss", x, labels, device, reduction="sum")[0], loss, "exact")


@functions
def test_same_bits_every_time(name: str, options: dict[str, Any], device: str) -> None:
    x, t = pair_for(name, (41, 97), options.get("log_target", False))
    runs = [step(name, x, t, device, **options) for _ in range(2)]
    assert runs[0][0].tobytes() == runs[1][0].tobytes()
    assert runs[0][1].tobytes() == runs[1][1].tobytes()


@functions
@reductions
def test_gradcheck(name: str, options: dict[str, Any], reduction: str) -> None:
    log_target = options.get("log_target", False)
    x, t = pair_for(name, (3, 4, 5), log_target, np.float64)
    scores = Tensor(x, requires_grad=True)
    options = {**options, "reduction": reduction}
    loss = getattr(F, name)
    assert gpucnn.gradcheck(lambda u: loss(u, t, **options), [scores])
    if name in DISTANCES:
        target = Tensor(t, requires_grad=True)
        assert gpucnn.gradcheck(lambda u, v: loss(u, v, **options), [scores, target])


def torch_loss(name: str, x: Any, t: Any, reduction: str, **options: Any) -> Any:
    if name == "hinge_loss":
        rows = torch.clamp(1 - t * x, min=0)
        return {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[reduction]()
    return getattr(torch.nn.functional, name)(x, t, reduction=reduction, **options)


mean_warning = pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # of torch's kl_div


@needs_torch
@mean_warning
@functions
@reductions
@given(
    shape=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    scale=st.sampled_from([0.1, 1, 30]),
    width=st.sampled_from([0.05, 1.0, 20.0]),
)
@settings(max_examples=20)
def test_agrees_with_pytorch(
    name: str,
    options: dict[str, Any],
    reduction: str,
    shape: list[int],
    scale: float,
    width: float,
) -> None:
    options = {k: v if isinstance(v, bool) or v == 0 else width for k, v in options.items()}
    x, t = pair_for(name, tuple(shape), options.get("log_target", False))
    x *= np.float32(scale)
    dy = randn(*shape, seed=1) if reduction == "none" else np.float32(1.5)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch_loss(name, tx, torch.tensor(t), reduction, **options)
    ty.backward(torch.tensor(dy))
    loss, dx = step(name, x, t, "cpu", dy, reduction=reduction, **options)
    assert_close(loss, ty.detach().numpy(), "torch", x.size)
    assert_close(dx, tx.grad.numpy(), "torch")


LAYERS = [
    ("L1Loss", {}),
    ("MSELoss", {"reduction": "sum"}),
    ("HuberLoss", {"delta": 0.5}),
    ("SmoothL1Loss", {"beta": 0.5, "reduction": "none"}),
    ("BCEWithLogitsLoss", {}),
    ("KLDivLoss", {"reduction": "batchmean"}),
    ("KLDivLoss", {"log_target": True}),
]


@needs_torch
@mean_warning
@pytest.mark.parametrize(("layer", "options"), LAYERS)
def test_layers_are_pytorchs(layer: str, options: dict[str, Any]) -> None:
    x, t = pair_for("kl_div", (4, 5), options.get("log_target", False))
    ours, theirs = getattr(nn, layer)(**options), getattr(torch.nn, layer)(**options)
    expected = theirs(torch.tensor(x), torch.tensor(t)).numpy()
    assert_close(ours(Tensor(x), t).numpy(), expected, "torch", 20)
    assert repr(ours).startswith(f"{layer}(")


def test_hinge_layer() -> None:
    x, t = pair_for("hinge_loss", (4, 5))
    y = nn.HingeLoss("none")(Tensor(x), t)
    assert_close(y.numpy(), np.maximum(0, 1 - x * t), "float32")


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_on_the_cuda_path() -> None:
    """Every array stays on its device, and nothing but our kernels computes."""
    for name, options in REGRESSION_LOSS:
        x, t = pair_for(name, (3, 5), options.get("log_target", False))
        for reduction in ("mean", "none"):
            given = {**options, "reduction": reduction}
            dy = None if reduction == "mean" else np.ones_like(x)
            actual = step(name, x, Tensor(t, device="cuda"), "cuda", dy, **given)
            expected = step(name, x, t, "emulated", dy, **given)
            assert_close(actual[0], expected[0], "exact")
            assert_close(actual[1], expected[1], "exact")
    scores, labels = randn(4, 3), np.array([0, 2, -100, 1])
    for loss, target in (
        (F.cross_entropy, labels),
        (F.nll_loss, labels),
        (F.multi_margin_loss, abs(labels) % 3),
        (F.cross_entropy, abs(scores)),
    ):
        for reduction in ("mean", "sum", "none"):
            tensors = [Tensor(scores, requires_grad=True, device=d) for d in ("cuda", "emulated")]
            for x in tensors:
                given = Tensor(target, device=x.device)
                y = loss(x, given, weight=[1, 2, 3], reduction=reduction)
                y.backward(np.ones(y.shape, np.float32))
            assert_close(tensors[0].grad.numpy(), tensors[1].grad.numpy(), "exact")


X = np.zeros((2, 3), np.float32)


@functions
@pytest.mark.parametrize(
    ("x", "t", "given", "error", "match"),
    [
        (X[:, :0], X[:, :0], {}, ValueError, "input must not be empty"),
        (X.astype(np.int32), X + 1, {}, TypeError, "input must be float32"),
        (X, X[0] + 1, {}, ValueError, r"target must have shape \(2, 3\), got \(3,\)"),
        (X, 1.0, {}, ValueError, r"target must have shape \(2, 3\), got \(\)"),
        (X, "up", {}, TypeError, "target must be numbers"),
        (X, X + 1, {"reduction": "avg"}, ValueError, "reduction must be one of mean, "),
    ],
)
def test_bad_arguments(
    name: str,
    options: dict[str, Any],
    x: Any,
    t: Any,
    given: Any,
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        getattr(F, name)(Tensor(x), t, **options, **given)


@pytest.mark.parametrize(
    ("name", "layer", "options", "error", "match"),
    [
        ("huber_loss", "HuberLoss", {"delta": 0}, ValueError, "delta must be > 0"),
        ("huber_loss", "HuberLoss", {"delta": np.inf}, ValueError, "delta must be finite"),
        ("huber_loss", "HuberLoss", {"delta": "1"}, TypeError, "delta must be a number"),
        ("smooth_l1_loss", "SmoothL1Loss", {"beta": -1}, ValueError, "beta must be >= 0"),
        ("smooth_l1_loss", "SmoothL1Loss", {"beta": np.nan}, ValueError, "beta must be finite"),
        ("kl_div", "KLDivLoss", {"log_target": 1}, TypeError, "log_target must be True or False"),
        ("mse_loss", "MSELoss", {"reduction": "batchmean"}, ValueError, "reduction must be one"),
    ],
)
def test_bad_options(
    name: str, layer: str, options: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        getattr(F, name)(Tensor(X), X, **options)
    with pytest.raises(error, match=match):
        getattr(nn, layer)(**options)


@pytest.mark.parametrize(
    ("name", "t", "error", "match"),
    [
        ("hinge_loss", X, ValueError, r"target must be -1 or 1, got 0.0 at \(0, 0\)"),
        ("hinge_loss", X > 0, TypeError, "target must be numbers, -1 or 1"),
        (
            "mse_loss",
            Tensor(X.astype(np.float64), device="cpu"),
            TypeError,
            "target must be float32 like input",
        ),
        ("mse_loss", Tensor(X[:1], requires_grad=True), ValueError, "target must have shape"),
        ("kl_div", Tensor(X, requires_grad=True), ValueError, "target receives no gradient"),
        ("hinge_loss", Tensor(X + 1, requires_grad=True), ValueError, "target receives no grad"),
    ],
)
def test_bad_targets(name: str, t: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(F, name)(Tensor(X), t)


@functions
@pytest.mark.emulated
def test_mixed_devices(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="target must be on 'emulated' like input"):
        getattr(F, name)(Tensor(X, device="emulated"), Tensor(X + 1, device="cpu"), **options)
