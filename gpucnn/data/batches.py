"""A dataset in the memory of a device: batches are gathered and augmented there, by one kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn import random
from gpucnn.device import default_device, free_memory, module_of, require, to_device
from gpucnn.ops.batch import gather_batch
from gpucnn.ops.geometry import flag, integer
from gpucnn.precision import chosen_precision
from gpucnn.recording import every_step, per_step
from gpucnn.signature import MAX_ELEMENTS
from gpucnn.tensor import Tensor

if TYPE_CHECKING:
    from gpucnn.data.dataset import Dataset

_SHUFFLE_STREAM: Final = 4 << 32
_ORDERS: Final = 2  # kept on the device, so that a launch of several steps may pass an epoch's end


def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which an epoch visits n images, a permutation drawn from (seed, epoch)."""
    return random.permutation(seed, _SHUFFLE_STREAM + epoch, n)


def resident_bytes(dataset: Dataset) -> int:
    """Device memory that ``dataset.to(device)`` and its batches take."""
    tables = [*dataset.constants, *([] if dataset.blend is None else [dataset.blend])]
    return dataset.nbytes + 4 * _ORDERS * len(dataset) + sum(t.nbytes for t in tables)


def home(dataset: Dataset, device: str | None = None) -> str:
    """The device that training on ``device`` keeps a dataset on: that one, or "cpu".

    On the host stay datasets above half of a GPU's free memory, whose other half is for the model,
    and arrays of more than 2³¹ − 1 elements.
    """
    device = default_device() if device is None else device
    if max(dataset.images.size, dataset.labels.size) > MAX_ELEMENTS:
        return "cpu"
    if device == "cuda" and resident_bytes(dataset) > free_memory() // 2:
        return "cpu"
    return device


class DeviceDataset:
    """Images, labels and constants of a dataset as arrays of a device.

    Attributes:
        dataset: what it was made from.
        device: "cpu", "cuda" or "emulated"; the last shares the dataset's memory, as "cpu" does.
        images, labels: uint8 (N, H, W, C), int32 (N,) or (N, H, W).
        scale, offset: (C,) float32, see ``Dataset.constants``; blend: ``Dataset.blend``.
        nbytes: device memory, with the orders of ``batches``.
    """

    def __init__(self, dataset: Dataset, device: str) -> None:
        require(device)
        self.dataset = dataset
        self.device = device
        self.nbytes = resident_bytes(dataset)
        self.images = to_device(dataset.images, device)
        self.labels = to_device(dataset.labels, device)
        self.scale, self.offset = (to_device(a, device) for a in dataset.constants)
        self.blend = None if dataset.blend is None else to_device(dataset.blend, device)

    def __len__(self) -> int:
        return len(self.dataset)

    def batches(self, batch_size: int, *, seed: int = 0) -> Batches:
        """Training batches, epoch after epoch, from the first of epoch 0 on."""
        return Batches(self, batch_size, seed)


class Batches:
    """Training batches of a dataset on its device, epoch after epoch.

    Each epoch visits the images once, in an order drawn from (seed, epoch); those left over at its
    end, fewer than a batch, wait for the next. ``take`` launches one kernel. What changes from step
    to step, the order and the position, lies in device memory, so that a recorded step can be
    replayed.

    Args:
        data: the dataset on its device.
        batch_size: 1 to its number of images.
        seed: of the orders and of the augmentation.
        shuffle: False to visit the images as the dataset has them.

    Attributes:
        epoch, batch: which batch ``take`` returns next; batch counts within the epoch.

    Raises:
        ValueError, TypeError: an argument out of range.
    """

    def __init__(
        self, data: DeviceDataset, batch_size: int, seed: int = 0, *, shuffle: bool = True
    ) -> None:
        self.data = data
        self.shuffle = flag("shuffle", shuffle)
        self.batch_size = integer("batch_size", batch_size, 1, len(data))
        self.seed = integer("seed", seed, 0)
        self.epoch = self.batch = 0
        plan = data.dataset.plan(self.batch_size, self.seed)
        self._plans = {stored: replace(plan, stored=stored) for stored in (False, True)}
        self._host = np.zeros((_ORDERS, len(data)), np.int32)
        self._order = to_device(self._host.copy(), data.device)
        self._loaded = [-1] * _ORDERS

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return len(self.data) // self.batch_size

    def seek(self, epoch: int, batch: int) -> None:
        """Continue with this batch of this epoch.

        Raises:
            ValueError, TypeError: epoch below 0, or batch outside 0 to batches_per_epoch − 1.
        """
        self.epoch = integer("epoch", epoch, 0)
        self.batch = integer("batch", batch, 0, self.batches_per_epoch - 1)

    def rows(self) -> NDArray[np.int32]:
        """The numbers of the images that ``take`` returns next, on the host."""
        self._load()
        start = self.batch * self.batch_size
        return self._host[self.epoch % _ORDERS, start : start + self.batch_size]

    def take(self) -> tuple[Tensor, Tensor]:
        """The next batch: images float32 (n, H, W, C), normalised, and what the loss takes.

        That is int32 labels (n,) or (n, H, W), or with mixup probabilities (n, classes). The bits
        are those of ``Dataset.training_batch`` on every device; in the precision "bf16" images are
        rounded to bfloat16.
        """
        device, data = self.data.device, self.data
        every_step(self._load)
        position = per_step(self._advance, device)
        arrays = (data.images, data.labels, self._order, position)
        constants = (data.scale, data.offset, data.blend)
        plan = self._plans[chosen_precision() == "bf16"]
        images, target = gather_batch.on(device)(*arrays, *constants, plan)
        return Tensor._wrap(images, device), Tensor._wrap(target, device)

    def _load(self) -> None:
        """See that the order of the epoch is on the device."""
        slot = self.epoch % _ORDERS
        if self._loaded[slot] != self.epoch:
            n = len(self.data)
            self._host[slot] = epoch_order(self.seed, self.epoch, n) if self.shuffle else range(n)
            self._bring(slot)
            self._loaded[slot] = self.epoch

    def _bring(self, slot: int) -> None:
        """Copy an order to where it is read, also by graphs; no part of one that is captured."""
        row = self._order[slot]
        if isinstance(row, np.ndarray):
            row[...] = self._host[slot]
            return
        cuda = module_of(row).cuda
        stream = cuda.get_current_stream()
        capturing = stream.is_capturing()
        row.set(self._host[slot], cuda.Stream.null if capturing else stream)
        if capturing:
            cuda.Stream.null.synchronize()

    def _advance(self) -> Any:
        position = np.array([self.epoch, self.batch], np.int32)
        self.batch += 1
        if self.batch == self.batches_per_epoch:
            self.epoch, self.batch = self.epoch + 1, 0
        return position
