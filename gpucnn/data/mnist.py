"""MNIST and its relatives: 28 x 28 gray images in four IDX files, 60,000 to train, 10,000 to test.

Sources: LeCun, Cortes and Burges, "The MNIST database of handwritten digits"; Xiao, Rasul,
Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv
1708.07747.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.idx import read_idx

SIZE: Final = 28
_PREFIXES: Final = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class Family:
    """Attributes:
    name: what the dataset is called.
    classes: the names of its ten labels.
    default_dir: where its files are if nothing else is said, or None.
    hint: how to get them.
    """

    name: str
    classes: tuple[str, ...]
    default_dir: Path | None
    hint: str

    def read(
        self, split: str = "train", data_dir: str | os.PathLike[str] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
        """Read one split from its two IDX files, ``*-ubyte.gz`` or plain ``*-ubyte``.

        Args:
            split: "train" or "test".
            data_dir: folder of the four files; ``default_dir`` if None.

        Returns:
            images uint8 (N, 28, 28, 1), labels int32 (N,) that index ``classes``.

        Raises:
            ValueError: a file is missing or damaged, has another image size, the counts of images
                and labels differ, or a label is 10 or more.
        """
        if split not in _PREFIXES:
            raise ValueError(f"split must be one of {', '.join(_PREFIXES)}, got {split!r}")
        folder = self.default_dir if data_dir is None else Path(data_dir)
        if folder is None:
            raise ValueError(f"data_dir must name the folder of {self.name}'s files: {self.hint}")
        stem = folder / f"{_PREFIXES[split]}-"
        paths = {
            kind: self._file(f"{stem}{kind}-idx{rank}-ubyte")
            for kind, rank in (("images", 3), ("labels", 1))
        }
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
        if labels.max() >= len(self.classes):
            raise ValueError(
                f"{paths['labels']}: labels must be 0 to {len(self.classes) - 1}, found "
                f"{labels.max()}"
            )
        return images[..., None], labels.astype(np.int32)

    def _file(self, stem: str) -> Path:
        zipped, plain = Path(f"{stem}.gz"), Path(stem)
        if zipped.is_file() or not plain.is_file():
            if not zipped.is_file():
                raise ValueError(f"{zipped} is missing: {self.hint}")
            return zipped
        return plain


FASHION_MNIST: Final = Family(
    "fashion-mnist",
    (
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
    ),
    Path("/usr/share/datasets/fashion-mnist"),
    "install Debian's package dataset-fashion-mnist, or get the four *-ubyte.gz files from "
    "https://github.com/zalandoresearch/fashion-mnist and name their folder with --data (data_dir)",
)
MNIST: Final = Family(
    "mnist",
    tuple("0123456789"),
    None,
    "get the four *-ubyte.gz files of the MNIST database and name their folder with --data "
    "(data_dir)",
)
