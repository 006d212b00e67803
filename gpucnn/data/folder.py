"""Pictures of one's own: a folder with a folder of PNG, JPEG or BMP files for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.idx import available_memory
from gpucnn.data.pictures import picture_size, read_pictures

SPLITS: Final = {"train": ("train", "training"), "test": ("test", "testing"),
                 "validation": ("validation", "val", "valid")}  # fmt: skip
_SHOWN: Final = 10  # unreadable files that a message names


@dataclass(frozen=True)
class Pictures:
    """Attributes:
    images: uint8 (N, H, W, C).
    labels: int32 (N,).
    unreadable: why each file that was left out could not be read.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int32]
    unreadable: tuple[str, ...]


def class_folders(folder: str | os.PathLike[str]) -> dict[str, dict[str, list[Path]]]:
    """The files of each class of each split.

    A folder whose folders are called "train" and "test", and maybe "validation", holds these
    splits; in any other each folder is a class. What begins with a dot is passed over.

    Returns:
        "all", or "train", "test" and maybe "validation" -> class -> its files, in order of name.

    Raises:
        ValueError: no folder there, fewer than two classes, a class without a file, files beside
            the class folders, or splits whose classes differ.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    names = {path.name.lower(): path for path in _folders(root)}
    found = {
        split: next((names[name] for name in known if name in names), None)
        for split, known in SPLITS.items()
    }
    if found["train"] is None or found["test"] is None:
        return {"all": _classes(root)}
    spare = [p.name for p in names.values() if p not in found.values()]
    if spare:
        raise ValueError(f"{root}: holds train and test, and besides {', '.join(sorted(spare))}")
    splits = {split: _classes(path) for split, path in found.items() if path is not None}
    for split, classes in splits.items():
        differing = sorted(set(classes) ^ set(splits["train"]))
        if differing:
            raise ValueError(
                f"{root}: {split} and train must have the same classes, only one of them has "
                f"{', '.join(differing[:_SHOWN])}"
            )
    return splits


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ValueError(f"{folder}: cannot be read ({error.strerror or error})") from None


def _folders(folder: Path) -> list[Path]:
    entries = _visible(folder)
    files = [path.name for path in entries if not path.is_dir()]
    if files and any(path.is_dir() for path in entries):
        raise ValueError(
            f"{folder}: pictures belong into a folder for each class, beside them lies {files[0]}"
        )
    return [path for path in entries if path.is_dir()]


def _classes(folder: Path) -> dict[str, list[Path]]:
    classes = {path.name: _visible(path) for path in _folders(folder)}
    if len(classes) < 2:
        raise ValueError(
            f"{folder}: must hold a folder for each of two classes or more, found {len(classes)}"
        )
    for name, files in classes.items():
        if not files:
            raise ValueError(f"{folder / name}: holds no picture")
        inner = next((path for path in files if path.is_dir()), None)
        if inner is not None:
            raise ValueError(f"{inner}: a class folder holds pictures, not folders")
    return classes


def common_size(classes: dict[str, list[Path]]) -> tuple[int, int] | None:
    """(height, width) of all pictures that can be read; None if they differ.

    Raises:
        ValueError: none of them can be read.
    """
    sizes: set[tuple[int, int]] = set()
    trouble = ""
    for path in (path for files in classes.values() for path in files):
        try:
            sizes.add(picture_size(path))
        except ValueError as error:
            trouble = trouble or str(error)
        if len(sizes) > 1:
            return None
    if not sizes:
        raise ValueError(trouble)
    return sizes.pop()


def read_classes(
    classes: dict[str, list[Path]],
    image_shape: tuple[int, int, int],
    *,
    skip_unreadable: bool = False,
) -> Pictures:
    """Read the pictures of all classes, scaled to one size; labels number the classes in order.

    Raises:
        ValueError: pictures that cannot be read, unless they are to be skipped; none that can; or
            more than the memory here holds.
    """
    files: Sequence[tuple[int, Path]] = [
        (label, path) for label, paths in enumerate(classes.values()) for path in paths
    ]
    size = len(files) * int(np.prod(image_shape))
    limit = available_memory() // 2
    if size > limit:
        sizes = " x ".join(map(str, image_shape))
        raise ValueError(
            f"{len(files):,} pictures of {sizes} take {size:,} bytes, the memory here allows "
            f"{limit:,}"
        )
    images, troubles = read_pictures([path for _, path in files], image_shape)
    unreadable = tuple(trouble for trouble in troubles if trouble is not None)
    if unreadable and not skip_unreadable:
        more = len(unreadable) - _SHOWN
        shown = "\n  ".join([*unreadable[:_SHOWN], *([f"and {more} more"] if more > 0 else [])])
        raise ValueError(
            f"{len(unreadable)} of {len(files)} pictures cannot be read; --skip-unreadable leaves "
            f"them out:\n  {shown}"
        )
    kept = np.array([trouble is None for trouble in troubles])
    labels = np.array([label for label, _ in files], np.int32)[kept]
    missing = [name for label, name in enumerate(classes) if not (labels == label).any()]
    if missing:
        raise ValueError(f"no picture of the class {missing[0]} can be read: {unreadable[0]}")
    return Pictures(images if kept.all() else images[kept], labels, unreadable)
