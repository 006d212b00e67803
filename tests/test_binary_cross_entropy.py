"""Weights of binary_cross_entropy_with_logits: loops -> definition -> kernels; PyTorch beside them.

Without weights it is one of the losses of ``test_regression_loss``.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError
from gpucnn.ops.binary_cross_entropy import weighted_bce_backward, weighted_bce_forward
from tests.support import assert_close, check_kernel, needs_torch, randn, torch

reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
# (input, weight, pos_weight): None, one number, the last axes, or all of them
SHAPES: list[tuple[tuple[int, ...], Any, Any]] = [
    ((5,), (), None),
    ((7, 3), (3,), None),
    ((7, 3), None, (3,)),
    ((2, 3, 4, 5), (5,), (1,)),
    ((2, 3, 4, 5), (4, 5), (5,)),
    ((2, 3, 4, 5), (2, 3, 4, 5), (5,)),
    ((1030, 1), (1,), (1030, 1)),
    ((41, 33), (33,), (33,)),
]
shapes = pytest.mark.parametrize(("shape", "weight", "pos_weight"), SHAPES, ids=str)


def numbers(shape: Any, seed: int, dtype: Any = np.float32) -> np.ndarray | None:
    if shape is None:
        return None
    values = 0.1 + np.abs(randn(math.prod(shape), seed=seed, dtype=dtype))
    return values.reshape(shape)


def targets(shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    return np.clip(np.abs(randn(*shape, seed=1, dtype=dtype)), 0, 1)


def flat(weight: np.ndarray | None) -> np.ndarray | None:
    return None if weight is None else weight.reshape(-1)


@shapes
def test_definition_is_the_formula(shape: tuple[int, ...], weight: Any, pos_weight: Any) -> None:
    x, t = 3 * randn(*shape, dtype=np.float64), targets(shape, np.float64)
    given = numbers(weight, 2, np.float64), numbers(pos_weight, 3, np.float64)
    w, p = (np.broadcast_to(1.0 if v is None else v, shape) for v in given)
    loss, slope = np.empty(shape), np.empty(shape)
    for i in itertools.product(*map(range, shape)):
        s = 1 / (1 + math.exp(-x[i]))
        loss[i] = -w[i] * (p[i] * t[i] * math.log(s) + (1 - t[i]) * math.log(1 - s))
        slope[i] = -w[i] * (p[i] * t[i] * (1 - s) - (1 - t[i]) * s)
    arguments = x, t, *map(flat, given)
    actual = weighted_bce_forward(*arguments, 1.0, False, True)
    assert_close(actual[0], loss, "float64")
    assert_close(actual[1], slope, "float64")
    total, dx = weighted_bce_forward(*arguments, 0.5, True, False)
    assert_close(total, 0.5 * loss.sum(), "float64", x.size)
    assert dx is None
    dy = randn(*shape, seed=4, dtype=np.float64)
    assert_close(weighted_bce_backward(dy, *arguments), dy * slope, "float64")


@shapes
def test_kernels(shape: tuple[int, ...], weight: Any, pos_weight: Any, kernel_device: str) -> None:
    arrays = [3 * randn(*shape), targets(shape)]
    arrays += [flat(numbers(weight, 2)), flat(numbers(pos_weight, 3))]
    for add in (True, False):
        terms = arrays[0].size if add else 1
        check_kernel(weighted_bce_forward, kernel_device, arrays, 0.25, add, True, terms=terms)
    check_kernel(weighted_bce_backward, kernel_device, [randn(*shape, seed=4), *arrays])


@reductions
def test_devices(reduction: str, device: str) -> None:
    x, t, w, p = randn(3, 4, 5), targets((3, 4, 5)), numbers((5,), 2), numbers((5,), 3)
    dy = randn(3, 4, 5, seed=4) if reduction == "none" else None
    made = []
    for place, dtype in (("cpu", np.float64), (device, np.float32)):
        scores = Tensor(x.astype(dtype), requires_grad=True, device=place)
        weights = {"weight": w, "pos_weight": Tensor(p.astype(dtype), device=place)}
        loss = F.binary_cross_entropy_with_logits(scores, t, reduction=reduction, **weights)
        loss.backward(dy)
        made.append((loss.numpy(), scores.grad.numpy()))
    assert_close(made[1][0], made[0][0], "float32", x.size)
    assert_close(made[1][1], made[0][1], "float32")


@pytest.mark.parametrize("weight", [(7,), (70_001, 7), ()], ids=str)
def test_more_than_one_chunk(weight: Any) -> None:
    """Pieces that begin in the middle of the weights."""
    x, t, w = randn(70_001, 7), targets((70_001, 7)), numbers(weight, 2)
    loss = F.binary_cross_entropy_with_logits(Tensor(x), t, weight=w, reduction="none").numpy()
    plain = F.binary_cross_entropy_with_logits(Tensor(x), t, reduction="none").numpy()
    assert_close(loss, plain * w, "float32")


def test_finite_far_out(device: str) -> None:
    x, t = np.array([1e4, -1e4, 1e4, -1e4], np.float32), np.array([1, 1, 0, 0], np.float32)
    scores = Tensor(x, requires_grad=True, device=device)
    loss = F.binary_cross_entropy_with_logits(
        scores, t, weight=2.0, pos_weight=3.0, reduction="none"
    )
    loss.backward(np.ones(4, np.float32))
    assert_close(loss.numpy(), np.array([0, 6e4, 2e4, 0]), "float32")
    assert_close(scores.grad.numpy(), np.array([0, -6, 2, 0]), "float32")


def test_nan_passes(device: str) -> None:
    x = Tensor(np.array([np.nan, 1], np.float32), requires_grad=True, device=device)
    loss = F.binary_cross_entropy_with_logits(x, [1, 1], pos_weight=[2, 2], reduction="none")
    loss.backward(np.ones(2, np.float32))
    assert np.isnan(loss.numpy()).tolist() == [True, False]
    assert np.isnan(x.grad.numpy()).tolist() == [True, False]


@reductions
@shapes
def test_gradcheck(shape: tuple[int, ...], weight: Any, pos_weight: Any, reduction: str) -> None:
    shape = shape if math.prod(shape) < 200 else (2, shape[-1])
    weight, pos_weight = (
        v if v is None or len(v) < 2 or v[0] < 20 else () for v in (weight, pos_weight)
    )
    x, t = Tensor(randn(*shape, dtype=np.float64), requires_grad=True), targets(shape, np.float64)
    w, p = numbers(weight, 2, np.float64), numbers(pos_weight, 3, np.float64)
    options = {"weight": w, "pos_weight": p, "reduction": reduction}
    assert gpucnn.gradcheck(lambda u: F.binary_cross_entropy_with_logits(u, t, **options), [x])


@needs_torch
@reductions
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    axes=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    scale=st.sampled_from([0.1, 1, 30]),
)
def test_agrees_with_pytorch(
    shape: list[int], axes: tuple[int, int], scale: float, reduction: str
) -> None:
    """Weights of the last axes of input, as many as are drawn; 5 stands for none."""
    x, t = np.float32(scale) * randn(*shape), targets(tuple(shape))
    weights: dict[str, Any] = {}
    for seed, (name, n) in enumerate(zip(("weight", "pos_weight"), axes, strict=True), start=2):
        if n < 5:
            weights[name] = numbers(tuple(shape[max(0, len(shape) - n) :]), seed)
    dy = randn(*shape, seed=1) if reduction == "none" else np.float32(1.5)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.binary_cross_entropy_with_logits(
        tx, torch.tensor(t), reduction=reduction, **{k: torch.tensor(v) for k, v in weights.items()}
    )
    ty.backward(torch.tensor(dy))
    scores = Tensor(x, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(scores, t, reduction=reduction, **weights)
    loss.backward(dy)
    assert_close(loss.numpy(), ty.detach().numpy(), "torch", x.size)
    assert_close(scores.grad.numpy(), tx.grad.numpy(), "torch")


@needs_torch
def test_layer_is_pytorchs() -> None:
    x, t, w, p = randn(4, 5), targets((4, 5)), numbers((5,), 2), numbers((5,), 3)
    theirs = torch.nn.BCEWithLogitsLoss(torch.tensor(w), pos_weight=torch.tensor(p))
    expected = theirs(torch.tensor(x), torch.tensor(t)).numpy()
    ours = nn.BCEWithLogitsLoss(w, pos_weight=p)
    assert_close(ours(Tensor(x), t).numpy(), expected, "torch", 20)
    assert not list(ours.parameters())


@pytest.mark.emulated
def test_weights_move_with_the_layer() -> None:
    layer = nn.BCEWithLogitsLoss([1, 2], "sum", [3, 4]).to("emulated")
    loss = layer(Tensor(np.zeros((3, 2), np.float32), device="emulated"), np.ones((3, 2)))
    assert_close(loss.numpy(), np.array(3 * (3 + 8) * math.log(2)), "float32", 6)


X = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        ([1, 2], ValueError, r"must be one number or have the shape of input, \(2, 3\), or of its"),
        (np.ones((2, 1)), ValueError, r"or of its last axes, got \(2, 1\)"),
        (np.ones((1, 2, 3)), ValueError, r"got \(1, 2, 3\)"),
        (["a", "b", "c"], TypeError, "must be numbers"),
        (Tensor(np.ones(3), device="cpu"), TypeError, "must be float32 like input"),
        (
            Tensor(np.ones(3, np.float32), requires_grad=True, device="cpu"),
            ValueError,
            "receives no gradient",
        ),
    ],
)
def test_bad_weights(name: str, value: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=f"{name}.*{match}"):
        F.binary_cross_entropy_with_logits(Tensor(X, device="cpu"), X, **{name: value})


@pytest.mark.emulated
@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_weight_of_another_device(name: str) -> None:
    weight = Tensor(np.ones(3, np.float32), device="cpu")
    with pytest.raises(DeviceError, match=f"{name} must be on 'emulated' like input"):
        F.binary_cross_entropy_with_logits(Tensor(X, device="emulated"), X, **{name: weight})
