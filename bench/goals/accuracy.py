"""Seconds to an accuracy on Fashion-MNIST: ours by the trainer, PyTorch's by the same recipe.

Both begin with the same weights and see the images in the same order; both keep them on the device
as 8-bit levels, augment there, replay each step as a CUDA graph and are evaluated after each epoch.
The clock starts when the data are in the host's memory and the networks are built: copies to the
GPU, first steps, recording and evaluation are in the time, imports and reading files are not.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import gpucnn
from gpucnn import data, models, optim
from gpucnn.data.batches import epoch_order
from gpucnn.training import Trainer
from gpucnn.training.progress import Reporter
from gpucnn.training.recipes import recipe

from .journal import Journal

DATASET = "fashion-mnist"
GOAL = 0.93
EPOCHS = 40
AUGMENTATION = data.Augmentation(flip=True, cutout=8)
_EVALUATED = 1000  # images of a batch


class Epoch(NamedTuple):
    """How far a run has come: seconds since its start, and the accuracy on the test images."""

    seconds: float
    accuracy: float


class _Watch(Reporter):
    """Notes the accuracy after each epoch, shows nothing."""

    def __init__(self, trainer: Trainer, start: float) -> None:
        super().__init__(trainer.total_steps)
        self._trainer, self._start = trainer, start
        self.epochs: list[Epoch] = []

    def __enter__(self) -> _Watch:
        self.resume_clock()
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, step: int, epoch: str, loss: float, accuracy: float) -> None:
        pass

    def line(self, text: str) -> None:
        self.epochs.append(Epoch(time.perf_counter() - self._start, self._trainer.test_accuracy))


def ours(train: data.Dataset, test: data.Dataset, epochs: int, device: str) -> list[Epoch]:
    """Our training run."""
    own, model = recipe(DATASET), _network()
    start = time.perf_counter()
    model.to(device)
    optimizer = optim.Adam(model.parameters(), lr=own.lr)
    trainer = Trainer(
        model, optimizer, train, test, epochs=epochs, batch_size=own.batch_size, device=device
    )
    trainer.scheduler = optim.OneCycleLR(optimizer, own.lr, trainer.total_steps)
    watch = _Watch(trainer, start)
    trainer.fit(watch)
    return watch.epochs


def _network() -> Any:
    gpucnn.seed(0)
    with gpucnn.use_device("cpu"):
        return models.create(recipe(DATASET).model)


class _Torch:
    """PyTorch's training: step on a batch of row numbers, evaluate."""

    def __init__(
        self, library: Any, twin: Any, train: data.Dataset, test: data.Dataset, total: int
    ) -> None:
        own, torch = recipe(DATASET), library.torch
        self._torch, self._library, self._twin = torch, library, twin
        self._augmentation = train.augmentation or data.Augmentation()
        statistics = (
            torch.tensor(np.array(v, np.float32)).reshape(-1, 1, 1) for v in (train.mean, train.std)
        )
        self._mean, self._std = (v.to(library.device) for v in statistics)
        self._train, self._test = (self._there(d) for d in (train, test))
        twin.to(library.device).to(memory_format=torch.channels_last)
        graph = library.device == "cuda"
        lr = torch.tensor(own.lr, device=library.device) if graph else own.lr
        options = {"capturable": True} if graph else {}
        self._optimizer = torch.optim.Adam(twin.parameters(), lr=lr, fused=True, **options)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, own.lr, total_steps=total, cycle_momentum=False
        )
        self.rows = torch.zeros(own.batch_size, dtype=torch.long, device=library.device)

    def _there(self, dataset: data.Dataset) -> tuple[Any, Any]:
        torch, device = self._torch, self._library.device
        images = torch.from_numpy(np.ascontiguousarray(np.moveaxis(dataset.images, -1, 1)))
        return images.to(device), torch.from_numpy(dataset.labels).long().to(device)

    def _normalised(self, levels: Any) -> Any:
        x = (levels.float() / 255 - self._mean) / self._std
        return x.contiguous(memory_format=self._torch.channels_last)

    def _augmented(self, x: Any) -> Any:
        torch, wanted = self._torch, self._augmentation
        N, _, H, W = x.shape
        if wanted.flip:
            flipped = torch.rand(N, 1, 1, 1, device=x.device) < 0.5
            x = torch.where(flipped, x.flip(3), x)
        if wanted.cutout:
            corner = torch.rand(2, N, 1, device=x.device)
            top, left = ((corner[i] * n).floor() - wanted.cutout // 2 for i, n in enumerate((H, W)))
            rows, columns = (torch.arange(n, device=x.device)[None] for n in (H, W))
            inside = ((rows >= top) & (rows < top + wanted.cutout))[:, :, None]
            inside = inside & ((columns >= left) & (columns < left + wanted.cutout))[:, None]
            x = x.masked_fill(inside[:, None], 0)  # the mean, once normalised
        return x

    def step(self) -> None:
        """One step on the images in ``rows``."""
        images, labels = self._train
        x = self._augmented(self._normalised(images[self.rows]))
        loss = self._torch.nn.functional.cross_entropy(self._twin(x), labels[self.rows])
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def advance(self) -> None:
        """The learning rate of the next step."""
        self._schedule.step()

    def accuracy(self) -> float:
        """On the test images."""
        images, labels = self._test
        self._twin.eval()
        with self._torch.no_grad():
            hits = [
                (self._twin(self._normalised(x)).argmax(1) == y).sum()
                for x, y in zip(images.split(_EVALUATED), labels.split(_EVALUATED), strict=True)
            ]
        self._twin.train()
        return float(sum(h.item() for h in hits)) / len(labels)


def theirs(library: Any, train: data.Dataset, test: data.Dataset, epochs: int) -> Iterator[Epoch]:
    """PyTorch's training run, epoch after epoch."""
    from ..rivals.torch_models import as_torch

    torch, batch = library.torch, recipe(DATASET).batch_size
    twin, per_epoch = as_torch(_network()), len(train) // batch
    start = time.perf_counter()
    made = _Torch(library, twin, train, test, epochs * per_epoch)
    step, done, total = made.step, 0, epochs * per_epoch
    for epoch in range(epochs):
        order = torch.from_numpy(np.array(epoch_order(0, epoch, len(train)))).to(library.device)
        for i in range(per_epoch):
            made.rows.copy_(order[i * batch : (i + 1) * batch])
            if library.device == "cuda" and done == _WARM_UP:
                step = _recorded(torch, made.step)
            step()
            done += 1
            if done < total:
                made.advance()
        accuracy = made.accuracy()
        yield Epoch(time.perf_counter() - start, accuracy)


_WARM_UP = 3  # eager steps before the graph is recorded


def _recorded(torch: Any, step: Any) -> Any:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _report(journal: Journal, side: str, epochs: Sequence[Epoch]) -> None:
    reached = next((e.seconds for e in epochs if e.accuracy >= GOAL), None)
    best = max(e.accuracy for e in epochs)
    note = f"{len(epochs)} epochs, best {best:.2%}, at the end {epochs[-1].accuracy:.2%}"
    if reached is None:
        journal.note(f"{side} did not reach {GOAL:.0%}: {note}")
    else:
        journal.figure(f"fashion-mnist/{side}", reached, "s", note)
    journal.figure(f"fashion-mnist/{side}/all", epochs[-1].seconds, "s", note)


def measure(journal: Journal, until: float, folder: Path | None = None) -> None:
    """Both runs; PyTorch's second, as far as time allows. folder: of the data set's files."""
    try:
        train, test = data.load(DATASET, data_dir=folder)
    except ValueError as error:
        journal.note(f"unmeasured: {error}")
        return
    train = dataclasses.replace(train, augmentation=AUGMENTATION)
    _report(journal, "ours", ours(train, test, EPOCHS, "cuda"))
    from ..rivals.torch_rival import Torch
    from ..run import open_timer

    library = Torch("cuda", open_timer("cuda"), 0.0)
    library.use_precision("tf32")
    found: list[Epoch] = []
    with library.on_stream():
        for epoch in theirs(library, train, test, EPOCHS):
            found.append(epoch)
            if time.monotonic() > until:
                journal.note(f"PyTorch's run was cut short after {len(found)} epochs")
                break
    _report(journal, "torch", found)
