"""Datasets: drawn shapes, MNIST, Fashion-MNIST and CIFAR-10, and pictures of one's own."""

from __future__ import annotations

from gpucnn.data.batches import Batches, DeviceDataset
from gpucnn.data.dataset import Dataset, normalize, statistics
from gpucnn.data.sources import (
    SEGMENTATION_TEST_IMAGES,
    SEGMENTATION_TRAIN_IMAGES,
    SHAPES_TEST_IMAGES,
    SHAPES_TRAIN_IMAGES,
    Files,
    Source,
    Splits,
    is_folder,
    is_path,
    load,
    load_splits,
    load_test,
    names,
    source,
)
from gpucnn.data.split import split
from gpucnn.ops.augmentation import Augmentation

__all__ = [
    "SEGMENTATION_TEST_IMAGES",
    "SEGMENTATION_TRAIN_IMAGES",
    "SHAPES_TEST_IMAGES",
    "SHAPES_TRAIN_IMAGES",
    "Augmentation",
    "Batches",
    "Dataset",
    "DeviceDataset",
    "Files",
    "Source",
    "Splits",
    "is_folder",
    "is_path",
    "load",
    "load_splits",
    "load_test",
    "names",
    "normalize",
    "source",
    "split",
    "statistics",
]
