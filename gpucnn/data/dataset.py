"""Labelled images in memory, and the batches that training takes from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.augmentation import Augmentation, shares
from gpucnn.ops.batch import BatchPlan, gather_batch
from gpucnn.ops.loss import IGNORE_INDEX

if TYPE_CHECKING:
    from gpucnn.data.batches import DeviceDataset

_COUNTED: Final = 1 << 18  # pixels at a time: NumPy makes 8 bytes of each

Statistic = float | tuple[float, ...]  # of all channels, or of each


def _constants(
    mean: Statistic, std: Statistic, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(scale, offset), (C,) each: level · scale − offset = (level / 255 − mean) / std."""
    means, stds = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    for name, values in (("mean", means), ("std", stds)):
        if values.shape not in ((), (channels,)):
            raise ValueError(
                f"{name} must be one number or one for each of {channels} channels, got shape "
                f"{values.shape}"
            )
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got {values.tolist()}")
    if not (stds > 0).all():
        raise ValueError(f"std must be > 0, got {stds.tolist()}")
    scale, offset = 1.0 / (255.0 * stds), means / stds
    return tuple(np.broadcast_to(a, (channels,)).astype(np.float32) for a in (scale, offset))  # type: ignore[return-value]


@dataclass(frozen=True)
class Dataset:
    """Labelled 8-bit images.

    Attributes:
        name: of the dataset.
        images: uint8 (N, H, W, C).
        labels: int32 (N,), or one per pixel (N, H, W); indices into ``classes``, or -100 for what
            has no label: it is neither trained on nor counted.
        classes: the name of each label.
        mean, std: of the gray levels divided by 255, over the training images: one number, or one
            for each channel (see ``statistics``).
        augmentation: random changes for training batches, or None.

    Raises:
        ValueError: shapes, labels or statistics that do not fit each other, a crop as large as the
            images, or mixup where not every image has one label.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    mean: Statistic
    std: Statistic
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be uint8 (N, H, W, C), got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.shape not in (self.images.shape[:1], self.images.shape[:3]):
            raise ValueError(
                f"labels must have one entry per image or per pixel, got images of shape "
                f"{self.images.shape} and labels of shape {self.labels.shape}"
            )
        known = self.labels[self.labels != IGNORE_INDEX]
        if known.size and not 0 <= known.min() <= known.max() < len(self.classes):
            raise ValueError(
                f"labels must be 0 to {len(self.classes) - 1}, or {IGNORE_INDEX} for none, got "
                f"{known.min()} to {known.max()}"
            )
        _constants(self.mean, self.std, self.images.shape[3])
        if self.augmentation is not None:
            self.augmentation.check_images(*self.images.shape[1:3])
            if self.augmentation.mixup and (self.per_pixel or known.size < len(self)):
                raise ValueError(
                    f"mixup blends images that have one label each, which {self.name} has not"
                )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def per_pixel(self) -> bool:
        """Whether every pixel has a label of its own."""
        return self.labels.ndim == 3

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of every image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def nbytes(self) -> int:
        """Memory of the images and labels, in bytes."""
        return int(self.images.nbytes + self.labels.nbytes)

    @property
    def constants(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(scale, offset) of each channel: level · scale − offset is normalised."""
        return _constants(self.mean, self.std, self.images.shape[3])

    @property
    def blend(self) -> NDArray[np.float32] | None:
        """The shares that mixup draws from, or None."""
        mixup = 0 if self.augmentation is None else self.augmentation.mixup
        return shares(float(mixup)) if mixup else None

    def plan(self, n: int, seed: int) -> BatchPlan:
        """What ``gather_batch`` needs to know of training batches of ``n`` images."""
        return BatchPlan(n, len(self.classes), seed, self.augmentation or Augmentation())

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Gray levels uint8 (N, H, W, C) -> float32 of mean 0 and deviation 1 over the dataset."""
        return normalize(images, self.mean, self.std)

    def batch(self, rows: NDArray[Any] | slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The images and labels of some rows, normalized: float32 (n, H, W, C), int32 (n,)."""
        return self.normalize(self.images[rows]), self.labels[rows]

    def training_batch(
        self, rows: NDArray[Any], seed: int, epoch: int
    ) -> tuple[NDArray[np.float32], NDArray[Any]]:
        """As ``batch``, augmented: how image i changes depends on (seed, epoch, i) only.

        With mixup the images are blended with their neighbours in ``rows``, and in the place of
        labels come the probabilities of the classes, float32 (n, classes).
        """
        images, target = gather_batch(
            self.images,
            self.labels,
            np.asarray(rows)[None],
            np.array([epoch, 0], np.int32),
            *self.constants,
            self.blend,
            self.plan(len(rows), seed),
        )
        return images, target

    def to(self, device: str) -> DeviceDataset:
        """A copy in the memory of a device, which gathers and augments batches there.

        Raises:
            ValueError: unknown device.
            DeviceError: the device cannot be used.
        """
        from gpucnn.data.batches import DeviceDataset

        return DeviceDataset(self, device)


def normalize(images: NDArray[np.uint8], mean: Statistic, std: Statistic) -> NDArray[np.float32]:
    """``(images / 255 - mean) / std`` as float32.

    images: uint8 (N, H, W, C). mean, std: one number, or one for each channel.

    Raises:
        ValueError: a statistic of another length, not finite, or a deviation that is not above 0.
    """
    scale, offset = _constants(mean, std, images.shape[-1])
    scaled = images.astype(np.float32)
    scaled *= scale
    scaled -= offset
    return scaled


def statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of images uint8 (N, H, W, C), levels 0 to 1.

    Exact up to the last rounding: the levels are counted. A channel of one level has the deviation
    of one level, 1/255, so that it can be divided by.

    Raises:
        ValueError: no images.
    """
    if not images.size:
        raise ValueError(f"images must not be empty, got shape {images.shape}")
    flat, levels = images.reshape(-1, images.shape[-1]), np.arange(256)
    counts = np.zeros((images.shape[-1], 256), np.int64)
    for start in range(0, len(flat), _COUNTED):
        for c, channel in enumerate(flat[start : start + _COUNTED].T):
            counts[c] += np.bincount(channel, minlength=256)
    n = len(flat)
    means, deviations = [], []
    for c in range(images.shape[-1]):
        total = int(counts[c] @ levels)
        spread = n * int(counts[c] @ (levels * levels)) - total * total  # n² times the variance
        means.append(total / (255 * n))
        deviations.append((spread or n * n) ** 0.5 / (255 * n))
    return tuple(means), tuple(deviations)
