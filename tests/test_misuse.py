"""Warnings of what runs, but is hardly meant."""

from __future__ import annotations

import io
import sys
import types
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
from rich.console import Console

import gpucnn
from gpucnn import MisuseWarning, Tensor, kernel, nn, optim
from gpucnn import functional as F
from gpucnn.data import Dataset, batches
from gpucnn.training import Trainer, evaluate
from gpucnn.training.progress import Reporter
from tests import fake_cupy
from tests.support import randn


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize(
    ("function", "match"),
    [(F.softmax, "applied twice it trains slowly"), (F.log_softmax, "or use nll_loss")],
)
@pytest.mark.parametrize("target", [[0, 2], np.full((2, 3), 1 / 3, np.float32)])
def test_a_softmax_before_the_loss_is_warned_of_once(
    function: Any, match: str, target: Any
) -> None:
    x = Tensor(randn(2, 3), requires_grad=True)
    F.cross_entropy(F.relu(x), target)
    F.nll_loss(F.log_softmax(x), [0, 2])
    with pytest.warns(MisuseWarning, match=match) as caught:
        F.cross_entropy(function(x), target)
    assert [w.filename for w in caught] == [__file__]
    F.cross_entropy(function(x), target)


def test_a_zero_that_wins_at_the_edge_is_warned_of_once(device: str, unwarned: None) -> None:
    """Only where the edge is "zero" and the values of a window are negative."""
    x = Tensor(np.full((1, 3, 3, 1), -1, np.float32), device=device)
    F.max_pool2d(x, 2, edge="ceil")
    F.max_pool2d(x, 3, 2, 1, edge="zero")  # complete windows: padding never competes
    F.max_pool2d(Tensor(np.zeros((1, 3, 3, 1), np.float32), device=device), 2, edge="zero")
    with pytest.warns(MisuseWarning, match='edge="zero" found windows') as caught:
        F.max_pool2d(x, 2, edge="zero")
    assert [w.filename for w in caught] == [__file__]
    F.max_pool2d(x, 2, edge="zero")


@pytest.mark.usefixtures("unwarned")
def test_only_the_first_calls_look_for_zeros_at_the_edge() -> None:
    positive, negative = (Tensor(np.full((1, 3, 3, 1), v, np.float32)) for v in (1, -1))
    for _ in range(4):
        F.max_pool2d(positive, 2, edge="zero")
    F.max_pool2d(negative, 2, edge="zero")


@pytest.mark.emulated
@pytest.mark.usefixtures("unwarned")
def test_zeros_at_the_edge_on_the_cuda_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back while a graph is captured."""
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    kernel._cuda_kernel.cache_clear()
    x = Tensor(np.full((1, 3, 3, 1), -1, np.float32), device="cuda")
    capturing = types.SimpleNamespace(is_capturing=lambda: True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cupy.cuda, "get_current_stream", lambda: capturing)
            F.max_pool2d(x, 2, edge="zero")
        with pytest.warns(MisuseWarning, match='edge="zero"'):
            F.max_pool2d(x, 2, edge="zero")
    finally:
        kernel._cuda_kernel.cache_clear()


@pytest.mark.parametrize("size", [(3, 2, 2), (2, 3, 2), (2, 2, 3)])
def test_a_zero_that_wins_at_the_edge_is_warned_of(
    size: tuple[int, ...], device: str, unwarned: None
) -> None:
    x = Tensor(np.full((1, *size, 1), -1, np.float32), device=device)
    F.max_pool3d(x, 2, edge="ceil")
    with pytest.warns(MisuseWarning, match='edge="zero" found windows'):
        F.max_pool3d(x, 2, edge="zero")


def separable(n: int, labelled: slice) -> Dataset:
    """Bright and dark images of which only some have a label."""
    images = (np.arange(n, dtype=np.uint8) % 2 * 200)[:, None, None, None] + np.zeros(
        (1, 2, 2, 1), np.uint8
    )
    labels = np.full(n, -100, np.int32)
    labels[labelled] = np.arange(n)[labelled] % 2
    return Dataset("separable", images, labels, ("dark", "bright"), 0.5, 0.5)


def silent(trainer: Trainer) -> Reporter:
    return Reporter(trainer.total_steps, Console(file=io.StringIO()))


@pytest.mark.usefixtures("unwarned")
def test_training_behind_a_softmax_is_warned_of_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Softmax())
    data = separable(8, slice(None))
    trainer = Trainer(model, optim.SGD(model.parameters(), 0.1), data, data, epochs=2, batch_size=4)
    with pytest.warns(MisuseWarning, match="leave the softmax out of the model") as caught:
        trainer.fit(silent(trainer))
    assert len(caught) == 1


@pytest.mark.parametrize("make", [optim.Adam, optim.AdamW, partial(optim.SGD, momentum=0.9)])
@pytest.mark.usefixtures("unwarned")
def test_a_batch_without_labels_changes_nothing_but_the_schedule(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean loss of no label is NaN, and would make every weight NaN."""
    monkeypatch.setattr(batches, "epoch_order", lambda seed, epoch, n: np.arange(n))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    optimizer = make(model.parameters(), lr=0.1)
    train, test = separable(8, slice(0, 4)), separable(8, slice(None))
    trainer = Trainer(model, optimizer, train, test, epochs=2, batch_size=4)
    trainer.scheduler = optim.ExponentialLR(optimizer, 0.5)
    trainer._step()
    before = [*model.state_dict().values(), *optimizer.state_dict().values()]
    with pytest.warns(MisuseWarning, match="the batch of step 2 holds no label"):
        trainer._step()
    after = [*model.state_dict().values(), *optimizer.state_dict().values()]
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)
    assert (trainer.progress.step, optimizer.steps, optimizer.lr) == (2, 1, 0.025)


@pytest.mark.usefixtures("unwarned")
def test_training_with_labels_missing() -> None:
    """Steps without a label are skipped, and what has no label is not counted."""
    gpucnn.seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    train, test = separable(40, slice(0, 10)), separable(8, slice(0, 6))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, train, test, epochs=4, batch_size=2)
    with pytest.warns(MisuseWarning, match="holds no label") as caught:
        assert trainer.fit(silent(trainer)) == 1
    assert len(caught) == 1
    assert trainer.progress.step == 80
    assert 0 < optimizer.steps < 80


def test_a_first_epoch_without_any_label() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    train, test = separable(4, slice(0, 0)), separable(4, slice(None))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, train, test, epochs=1, batch_size=2)
    rows: list[dict[str, Any]] = []
    trainer.run = types.SimpleNamespace(  # type: ignore[assignment]
        log=rows.append, locked=nullcontext, rewind_metrics=lambda *_: None
    )
    trainer.save = lambda: None  # type: ignore[method-assign]
    trainer.fit(silent(trainer))
    assert [row["train_loss"] for row in rows] == [None]
    assert optimizer.steps == 0


def test_datasets_without_labels() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    unlabelled = separable(4, slice(0, 0))
    with pytest.raises(ValueError, match="dataset: separable holds no label"):
        evaluate(model, unlabelled)
    with pytest.raises(ValueError, match="test must hold a label"):
        Trainer(
            model, optim.SGD(model.parameters(), 0.1), separable(4, slice(None)), unlabelled,
            epochs=1, batch_size=2,
        )  # fmt: skip
    images = np.zeros((3, 2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match=r"labels must be 0 to 1, or -100 for none, got 0 to 2"):
        Dataset("odd", images, np.array([0, -100, 2], np.int32), ("a", "b"), 0.5, 0.5)
