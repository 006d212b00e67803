"""Scores over a dataset: one label per image, and one per pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpucnn import nn, optim
from gpucnn.data.dataset import Dataset
from gpucnn.data.shapes_segmentation import CLASSES, segmentation_levels
from gpucnn.training import Trainer, evaluate
from gpucnn.training.evaluation import mean_iou


def segmentation(n: int, split: str = "train") -> Dataset:
    images, labels = segmentation_levels(n, 0, split)
    return Dataset("pixels", images, labels, CLASSES, mean=0.5, std=0.3)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding="same"), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1)
    )


def test_mean_iou() -> None:
    assert mean_iou(np.array([[3, 1], [2, 4]])) == pytest.approx((3 / 6 + 4 / 7) / 2)
    assert mean_iou(np.array([[3, 0, 0], [0, 5, 0], [0, 0, 0]])) == 1, "an absent class is left out"
    assert mean_iou(np.array([[0, 2], [0, 0]])) == 0
    assert math.isnan(mean_iou(np.zeros((2, 2), int)))


def test_evaluation_counts_every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), segmentation(7)
    whole = evaluate(model, data)
    assert data.per_pixel
    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 3)
    pieces = evaluate(model, data)
    assert pieces.accuracy == whole.accuracy
    assert pieces.mean_iou == whole.mean_iou
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)

    class Perfect(nn.Module):
        def forward(self, x: object) -> object:
            from gpucnn import Tensor

            return Tensor(np.eye(4, dtype=np.float32)[data.labels] * 50)

    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 7)
    perfect = evaluate(Perfect(), data)
    assert (perfect.accuracy, perfect.mean_iou) == (1, 1)
    assert perfect.loss < 1e-6


def test_training_on_labels_of_pixels(capsys: pytest.CaptureFixture[str]) -> None:
    train, test = segmentation(48), segmentation(12, "test")
    model = network()
    before = evaluate(model, test)
    trainer = Trainer(
        model, optim.Adam(model.parameters(), lr=0.02), train, test, epochs=2, batch_size=8
    )
    trainer.fit()
    assert trainer.test_mean_iou == evaluate(model, test).mean_iou
    assert evaluate(model, test).loss < before.loss
    assert "test mean IoU 0." in capsys.readouterr().err


def test_labels_that_fit_neither_images_nor_pixels() -> None:
    images, labels = segmentation_levels(3, 0)
    with pytest.raises(ValueError, match="labels must have one entry per image or per pixel"):
        Dataset("pixels", images, labels[:, :5], CLASSES, mean=0.5, std=0.3)
