"""How well a model does on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucnn import functional as F
from gpucnn.data.dataset import Dataset
from gpucnn.nn import Module
from gpucnn.nn.module import inference
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.tensor import Tensor, no_grad
from gpucnn.threads import single_threaded_blas

EVALUATION_BATCH: Final = 250


class Evaluation(NamedTuple):
    """Over all labels of a dataset: one per image, or one per pixel.

    Attributes:
        loss: mean cross-entropy.
        accuracy: share of the labels that were predicted, 0 to 1.
        mean_iou: intersection over union of the pixels (or images) labelled and predicted with a
            class, averaged over the classes that occur in either, 0 to 1.
    """

    loss: float
    accuracy: float
    mean_iou: float


def mean_iou(confusion: NDArray[np.int64]) -> float:
    """From counts (C, C), rows labelled and columns predicted; NaN without any count.

    ``IoU_c = n_cc / (Σ_j n_cj + Σ_j n_jc − n_cc)``. Source: Everingham et al., "The PASCAL visual
    object classes challenge", 2015.
    """
    hits = np.diagonal(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    present = union > 0
    return float(np.mean(hits[present] / union[present])) if present.any() else float("nan")


def evaluate(
    model: Module,
    dataset: Dataset,
    *,
    device: str | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Evaluate a model over a dataset, in evaluation mode.

    What has no label does not count. Every module's own mode is restored afterwards, also if
    ``before_batch`` raises to stop early.

    Raises:
        ValueError: the dataset holds no label.
    """
    classes = len(dataset.classes)
    loss_sum = 0.0
    confusion = np.zeros(classes * classes, np.int64)
    with inference(model), no_grad(), single_threaded_blas():
        for at in range(0, len(dataset), EVALUATION_BATCH):
            if before_batch is not None:
                before_batch()
            images, labels = dataset.batch(slice(at, at + EVALUATION_BATCH))
            kept = labels != IGNORE_INDEX
            if not kept.any():
                continue
            logits = model(Tensor(images, device=device))
            loss_sum += F.cross_entropy(logits, labels).item() * int(kept.sum())
            predicted = logits.numpy().argmax(axis=-1)
            confusion += np.bincount(
                labels[kept] * classes + predicted[kept], minlength=classes * classes
            )
    table = confusion.reshape(classes, classes)
    total = int(table.sum())
    if not total:
        raise ValueError(f"dataset: {dataset.name} holds no label to evaluate by")
    return Evaluation(loss_sum / total, int(np.trace(table)) / total, mean_iou(table))


def predict(
    model: Module, images: NDArray[np.float32], *, device: str | None = None
) -> NDArray[np.float32]:
    """The probability of each class: normalized images (N, H, W, C) -> (N, …, classes).

    In evaluation mode; every module's own mode is restored afterwards.
    """
    with inference(model), no_grad(), single_threaded_blas():
        parts = [
            F.softmax(model(Tensor(images[at : at + EVALUATION_BATCH], device=device))).numpy()
            for at in range(0, len(images), EVALUATION_BATCH)
        ]
    return np.concatenate(parts)
