"""Fashion-MNIST: 28 x 28 gray images of ten kinds of clothing, 60,000 to train and 10,000 to test.

Source: Xiao, Rasul, Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", arXiv 1708.07747.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.idx import read_idx

CLASSES: Final = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
SIZE: Final = 28
DEFAULT_DIR: Final = Path("/usr/share/datasets/fashion-mnist")
_PREFIXES: Final = {"train": "train", "test": "t10k"}


def fashion_mnist(
    split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read one split from its two gzipped IDX files.

    Args:
        split: "train" or "test".
        data_dir: folder of the four ``*-ubyte.gz`` files; by default where Debian's package
            ``dataset-fashion-mnist`` puts them.

    Returns:
        images uint8 (N, 28, 28, 1), labels int32 (N,) that index ``CLASSES``.

    Raises:
        ValueError: a file is missing or damaged, has another image size, the counts of images and
            labels differ, or a label is 10 or more.
    """
    if split not in _PREFIXES:
        raise ValueError(f"split must be one of {', '.join(_PREFIXES)}, got {split!r}")
    folder = DEFAULT_DIR if data_dir is None else Path(data_dir)
    paths = {
        kind: folder / f"{_PREFIXES[split]}-{kind}-idx{rank}-ubyte.gz"
        for kind, rank in (("images", 3), ("labels", 1))
    }
    for path in paths.values():
        if not path.is_file():
            raise ValueError(
                f"{path} is missing: install Debian's package dataset-fashion-mnist, or get the "
                "four *-ubyte.gz files from https://github.com/zalandoresearch/fashion-mnist and "
                "name their folder with --data (data_dir)"
            )
    images = read_idx(paths["images"], rank=3)
    labels = read_idx(paths["labels"], rank=1)
    if images.shape[1:] != (SIZE, SIZE):
        raise ValueError(
            f"{paths['images']}: images must be {SIZE} x {SIZE}, found "
            f"{images.shape[1]} x {images.shape[2]}"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{paths['labels']}: holds {len(labels)} labels for the {len(images)} images of "
            f"{paths['images'].name}, the counts must be equal"
        )
    if labels.max() >= len(CLASSES):
        raise ValueError(
            f"{paths['labels']}: labels must be 0 to {len(CLASSES) - 1}, found {labels.max()}"
        )
    return images[..., None], labels.astype(np.int32)
