"""Datasets: seeded shape images, for classification and segmentation, and Fashion-MNIST."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from gpucnn.data import fashion_mnist as _fashion_mnist
from gpucnn.data import shapes as _shapes
from gpucnn.data import shapes_segmentation as _shapes_segmentation
from gpucnn.data.batches import Batches, DeviceDataset
from gpucnn.data.dataset import Dataset, normalize, statistics
from gpucnn.ops.augmentation import Augmentation

__all__ = [
    "Augmentation",
    "Batches",
    "Dataset",
    "DeviceDataset",
    "load",
    "names",
    "normalize",
    "statistics",
]

_Loader = Callable[[str | os.PathLike[str] | None, int, int | None], tuple[Dataset, Dataset]]

SHAPES_TRAIN_IMAGES: Final = 24_000
SHAPES_TEST_IMAGES: Final = 2_000


SEGMENTATION_TRAIN_IMAGES: Final = 12_000
SEGMENTATION_TEST_IMAGES: Final = 400


def _refuse_folder(data_dir: str | os.PathLike[str] | None) -> None:
    if data_dir is not None:
        raise ValueError(f"data_dir must be left out: shapes are drawn, not read, got {data_dir}")


def _load_segmentation(
    data_dir: str | os.PathLike[str] | None, seed: int, images: int | None
) -> tuple[Dataset, Dataset]:
    _refuse_folder(data_dir)

    def split(name: str, n: int) -> Dataset:
        levels, labels = _shapes_segmentation.segmentation_levels(n, seed, name)
        classes = _shapes_segmentation.CLASSES
        return Dataset("shapes-segmentation", levels, labels, classes, mean=0.5, std=0.304)

    train_images = SEGMENTATION_TRAIN_IMAGES if images is None else images
    return split("train", train_images), split("test", SEGMENTATION_TEST_IMAGES)


def _load_shapes(
    data_dir: str | os.PathLike[str] | None, seed: int, images: int | None
) -> tuple[Dataset, Dataset]:
    _refuse_folder(data_dir)

    def split(name: str, n: int) -> Dataset:
        levels, labels = _shapes.shape_levels(n, seed, name)
        return Dataset("shapes", levels, labels, _shapes.CLASSES, mean=0.5, std=0.304)

    train_images = SHAPES_TRAIN_IMAGES if images is None else images
    return split("train", train_images), split("test", SHAPES_TEST_IMAGES)


def _load_fashion_mnist(
    data_dir: str | os.PathLike[str] | None, seed: int, images: int | None
) -> tuple[Dataset, Dataset]:
    def split(name: str, limit: int | None, augmentation: Augmentation | None) -> Dataset:
        levels, labels = _fashion_mnist.fashion_mnist(name, data_dir)
        if limit is not None and limit > len(levels):
            raise ValueError(f"images must be at most {len(levels)}, got {limit}")
        return Dataset(
            "fashion-mnist",
            levels[:limit],
            labels[:limit],
            _fashion_mnist.CLASSES,
            mean=0.2860,
            std=0.3530,
            augmentation=augmentation,
        )

    return split("train", images, Augmentation(flip=True)), split("test", None, None)


_LOADERS: Final[dict[str, _Loader]] = {
    "shapes": _load_shapes,
    "shapes-segmentation": _load_segmentation,
    "fashion-mnist": _load_fashion_mnist,
}


def names() -> tuple[str, ...]:
    """The names that ``load`` knows."""
    return tuple(_LOADERS)


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    images: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Load a dataset by name.

    Args:
        name: "shapes" (drawn from the seed; 2,000 test images), "shapes-segmentation" (likewise,
            400 test images, one label per pixel) or "fashion-mnist".
        data_dir: folder of the dataset's files, for "fashion-mnist".
        seed: of the drawn images, an integer >= 0.
        images: number of training images, >= 1: by default 24,000 shapes, 12,000 for
            segmentation, or all of a file.

    Returns:
        The training and the test dataset.

    Raises:
        ValueError: unknown name, bad argument, or files that are missing or damaged.
    """
    if name not in _LOADERS:
        raise ValueError(f"dataset must be one of {', '.join(_LOADERS)}, got {name!r}")
    if images is not None and images < 1:
        raise ValueError(f"images must be >= 1, got {images}")
    return _LOADERS[name](data_dir, seed, images)
