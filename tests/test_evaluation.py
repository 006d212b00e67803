"""Scores over a dataset: one label per image, and one per pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpucnn import nn, optim
from gpucnn.data.dataset import Dataset
from gpucnn.data.shapes_segmentation import CLASSES, segmentation_levels
from gpucnn.training import Trainer, evaluate, predict
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


def test_every_module_gets_its_own_mode_back() -> None:
    """A frozen batch norm stays frozen; dropout is off while it counts."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.BatchNorm2d(6), nn.Dropout(0.9), nn.Conv2d(6, 4, 1)
    )
    data = segmentation(3)
    model.train()
    model[1].eval()
    modes = [module.training for _, module in model.named_modules()]
    images, _ = data.batch(slice(None))
    first = predict(model, images)
    np.testing.assert_array_equal(predict(model, images), first)
    assert [module.training for _, module in model.named_modules()] == modes
    with pytest.raises(ValueError, match="target must have shape"):
        evaluate(model, data)  # no padding: fewer outputs than labels
    assert [module.training for _, module in model.named_modules()] == modes


def test_predictions_are_probabilities_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (images, _) = network(), segmentation(7).batch(slice(None))
    whole = predict(model, images)
    assert whole.shape == (7, 72, 72, 4)
    np.testing.assert_allclose(whole.sum(axis=-1), 1, rtol=1e-5)
    monkeypatch.setattr("gpucnn.training.evaluation.EVALUATION_BATCH", 3)
    np.testing.assert_allclose(predict(model, images), whole, atol=1e-6)


def test_pixels_without_a_label_do_not_count() -> None:
    model, data = network(), segmentation(4)
    whole = evaluate(model, data)
    left = data.labels.copy()
    left[:, :36] = -100
    right = data.labels.copy()
    right[:, 36:] = -100
    halves = [
        evaluate(model, Dataset("half", data.images, labels, CLASSES, mean=0.5, std=0.3))
        for labels in (left, right)
    ]
    assert np.mean([h.loss for h in halves]) == pytest.approx(whole.loss, rel=1e-5)
    assert np.mean([h.accuracy for h in halves]) == pytest.approx(whole.accuracy)
