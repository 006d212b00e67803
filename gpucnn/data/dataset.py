"""Labelled images in memory, and the batches that training takes from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpucnn import random
from gpucnn.ops.loss import IGNORE_INDEX

_AUGMENTATION_STREAM: Final = 3 << 32


@dataclass(frozen=True)
class Augmentation:
    """Random changes that keep a label: mirroring left to right, and shifting by whole pixels.

    Attributes:
        flip: whether to mirror every other image, by chance.
        shift: largest shift up, down, left and right, in pixels; the border is repeated.
    """

    flip: bool = False
    shift: int = 0

    def __call__(self, images: NDArray[np.uint8], words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Change images (N, H, W, C) by one random 32-bit word (N,) each; returns a new array."""
        height, width = images.shape[1:3]
        if self.shift:
            places = np.uint32(2 * self.shift + 1)
            down = ((words >> np.uint32(20)) * places >> np.uint32(12)).astype(np.intp)
            across = ((words >> np.uint32(8) & np.uint32(0xFFF)) * places >> np.uint32(12)).astype(
                np.intp
            )
            border = (self.shift, self.shift)
            padded = np.pad(images, ((0, 0), border, border, (0, 0)), mode="edge")
            windows = sliding_window_view(padded, (height, width), axis=(1, 2))
            picked: NDArray[np.uint8] = windows[np.arange(len(images)), down, across]
            images = np.moveaxis(picked, 1, 3)
        mirrored = (words & np.uint32(1)).astype(bool)
        if self.flip:
            images = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
        return np.ascontiguousarray(images)


@lru_cache(maxsize=2)
def _augmentation_words(seed: int, epoch: int, n: int) -> NDArray[np.uint32]:
    return random.bits(seed, _AUGMENTATION_STREAM + epoch, n)


@dataclass(frozen=True)
class Dataset:
    """Labelled 8-bit images.

    Attributes:
        name: of the dataset.
        images: uint8 (N, H, W, C).
        labels: int32 (N,), or one per pixel (N, H, W); indices into ``classes``, or -100 for what
            has no label: it is neither trained on nor counted.
        classes: the name of each label.
        mean, std: of the gray levels divided by 255, over the training images.
        augmentation: random changes for training batches, or None.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    mean: float
    std: float
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

    def normalize(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Gray levels uint8 (N, H, W, C) -> float32 of mean 0 and deviation 1 over the dataset."""
        return normalize(images, self.mean, self.std)

    def batch(self, rows: NDArray[Any] | slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """The images and labels of some rows, normalized: float32 (n, H, W, C), int32 (n,)."""
        return self.normalize(self.images[rows]), self.labels[rows]

    def training_batch(
        self, rows: NDArray[Any], seed: int, epoch: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """As ``batch``, augmented: how image i changes depends on (seed, epoch, i) only."""
        images = self.images[rows]
        if self.augmentation is not None:
            images = self.augmentation(images, _augmentation_words(seed, epoch, len(self))[rows])
        return self.normalize(images), self.labels[rows]


def normalize(images: NDArray[np.uint8], mean: float, std: float) -> NDArray[np.float32]:
    """``(images / 255 - mean) / std`` as float32."""
    scaled = images.astype(np.float32)
    scaled *= np.float32(1.0 / (255.0 * std))
    scaled -= np.float32(mean / std)
    return scaled
