"""How well a model does on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import functional as F
from gpucnn.data.batches import Batches, home
from gpucnn.data.dataset import Dataset
from gpucnn.device import Array, default_device, to_host
from gpucnn.graph import CudaGraph, cuda_graph
from gpucnn.nn import Module
from gpucnn.nn.module import inference
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.storage import as_input
from gpucnn.tensor import Tensor, no_grad
from gpucnn.threads import single_threaded_blas

EVALUATION_BATCH: Final = 250
_MOST_WAITING: Final = 1 << 26  # bytes of logits


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


class Evaluator:
    """Evaluates a model over one dataset, as after each epoch.

    Args:
        model: takes normalized images (N, H, W, C), returns logits (N, classes).
        dataset: with at least one label. What has no label does not count.
        device: where the model is; the default device if None.
        graph: whether the images live on the device, where batches are gathered, and the forward
            pass of a batch is recorded once and replayed (:func:`gpucnn.cuda_graph`); images that
            leave the device too little memory stay on the host. None for yes on ``cuda`` and no
            elsewhere.

    Raises:
        ValueError: the dataset holds no label.
    """

    def __init__(
        self,
        model: Module,
        dataset: Dataset,
        *,
        device: str | None = None,
        graph: bool | None = None,
    ) -> None:
        self.model, self.dataset = model, dataset
        self.device = default_device() if device is None else device
        graph = self.device == "cuda" if graph is None else graph
        self._labelled = (dataset.labels != IGNORE_INDEX).reshape(len(dataset), -1).any(axis=1)
        if not self._labelled.any():
            raise ValueError(f"dataset: {dataset.name} holds no label to evaluate by")
        self._forward: Callable[..., tuple[Tensor, Tensor]] = self._batch
        self._batches: Batches | None = None
        if graph:
            self._forward = cuda_graph(self._batch, device=self.device)
            if len(dataset) >= EVALUATION_BATCH and home(dataset, self.device) == self.device:
                plain = replace(dataset, augmentation=None)
                resident = plain.to(self.device)
                self._batches = Batches(resident, EVALUATION_BATCH, shuffle=False)

    def _batch(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and mean loss of the batch given, else of the next one on the device."""
        images, labels = given or cast("Batches", self._batches).take()
        logits = self.model(as_input(images))
        return logits, F.cross_entropy(logits, labels)

    def __call__(self, before_batch: Callable[[], None] | None = None) -> Evaluation:
        """Evaluate, in evaluation mode.

        Every module's own mode is restored afterwards, also if ``before_batch``, which is called
        before each batch, raises to stop early.
        """
        results = _Results(self.dataset)
        with inference(self.model), no_grad(), single_threaded_blas():
            for at in range(0, len(self.dataset), EVALUATION_BATCH):
                if before_batch is not None:
                    before_batch()
                rows = slice(at, at + EVALUATION_BATCH)
                if not self._labelled[rows].any():
                    continue
                resident = self._batches
                if resident is not None and rows.stop <= len(self.dataset):
                    resident.seek(0, at // EVALUATION_BATCH)
                    made = self._forward()
                else:
                    batch = self.dataset.batch(rows)
                    made = self._forward(*(Tensor(a, device=self.device) for a in batch))
                # The next replay writes into the same memory.
                results.add(rows, *(t.data.copy() if self._copies else t.data for t in made))
        return results.evaluation()

    @property
    def _copies(self) -> bool:
        return isinstance(self._forward, CudaGraph)


class _Results:
    """What came of batches, counted when there is much of it: that waits for the GPU."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.classes = len(dataset.classes)
        self.loss_sum = 0.0
        self.confusion = np.zeros(self.classes * self.classes, np.int64)
        self._waiting: list[tuple[slice, Array, Array]] = []
        self._bytes = 0

    def add(self, rows: slice, logits: Array, loss: Array) -> None:
        """Logits and mean loss of some rows of the dataset."""
        self._waiting.append((rows, logits, loss))
        self._bytes += logits.nbytes
        if self._bytes > _MOST_WAITING:
            self._count()

    def _count(self) -> None:
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        for rows, logits, loss in waiting:
            labels = self.dataset.labels[rows]
            kept = labels != IGNORE_INDEX
            self.loss_sum += float(to_host(loss)) * int(kept.sum())
            predicted = Tensor._wrap(logits, "").numpy().argmax(axis=-1)
            pairs = labels[kept] * self.classes + predicted[kept]
            self.confusion += np.bincount(pairs, minlength=self.confusion.size)

    def evaluation(self) -> Evaluation:
        self._count()
        table = self.confusion.reshape(self.classes, self.classes)
        total = int(table.sum())
        return Evaluation(self.loss_sum / total, int(np.trace(table)) / total, mean_iou(table))


def evaluate(
    model: Module,
    dataset: Dataset,
    *,
    device: str | None = None,
    before_batch: Callable[[], None] | None = None,
) -> Evaluation:
    """Evaluate a model over a dataset once: see :class:`Evaluator`.

    Raises:
        ValueError: the dataset holds no label.
    """
    return Evaluator(model, dataset, device=device, graph=False)(before_batch)


def scores(
    model: Module, images: NDArray[np.float32], *, device: str | None = None
) -> NDArray[np.float32]:
    """What a model returns: normalized images (N, H, W, C) -> (N, …, classes).

    In evaluation mode; every module's own mode is restored afterwards.
    """
    with inference(model), no_grad(), single_threaded_blas():
        parts = [
            model(as_input(Tensor(images[at : at + EVALUATION_BATCH], device=device))).numpy()
            for at in range(0, len(images), EVALUATION_BATCH)
        ]
    return np.concatenate(parts)


def predict(
    model: Module, images: NDArray[np.float32], *, device: str | None = None
) -> NDArray[np.float32]:
    """The probability of each class, as :func:`scores` are shaped."""
    return F.softmax(Tensor(scores(model, images, device=device), device="cpu")).numpy()
