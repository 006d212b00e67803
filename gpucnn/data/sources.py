"""Where datasets come from: by name, or from files of one's own."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpucnn.data import cifar10 as _cifar10
from gpucnn.data import folder as _folder
from gpucnn.data import npz as _npz
from gpucnn.data import shapes as _shapes
from gpucnn.data import shapes_segmentation as _shapes_segmentation
from gpucnn.data.dataset import Dataset, statistics
from gpucnn.data.mnist import FASHION_MNIST, MNIST, Family
from gpucnn.data.split import split
from gpucnn.ops.augmentation import Augmentation

SHAPES_TRAIN_IMAGES: Final = 24_000
SHAPES_TEST_IMAGES: Final = 2_000
SEGMENTATION_TRAIN_IMAGES: Final = 12_000
SEGMENTATION_TEST_IMAGES: Final = 400
_VALIDATION: Final = 1  # the draw that sets validation images aside, after that of the tests
_FEWER: Final = 2  # the draw of fewer training images than there are
_MOST_PIXELS: Final = 1 << 22  # of a picture
TEST_SHARE: Final = 0.2  # of images of one's own, where no test images are told apart


class Splits(NamedTuple):
    """A dataset's parts. Attributes:
    train: to learn from.
    validation: to choose by while training, or None.
    test: to judge by in the end.
    """

    train: Dataset
    validation: Dataset | None
    test: Dataset


_Pair = tuple[Dataset, Dataset]
_Levels = tuple[NDArray[np.uint8], NDArray[np.int32]]


@dataclass(frozen=True)
class Files:
    """How the files of a dataset are to be read.

    Attributes:
        data_dir: their folder, for a dataset known by name.
        seed: of drawn images, and of the split of one's own.
        images: number of training images, or None for the default.
        size: (H, W) that pictures are scaled to, or None for that of all of them.
        gray: whether pictures become gray.
        skip_unreadable: whether pictures that cannot be read are left out.
    """

    data_dir: str | os.PathLike[str] | None = None
    seed: int = 0
    images: int | None = None
    size: tuple[int, int] | None = None
    gray: bool = False
    skip_unreadable: bool = False


@dataclass(frozen=True)
class Source:
    """A dataset that ``load`` knows by name.

    Attributes:
        name: of the dataset.
        about: what is in it, in a few words.
        read: its training and test images.
        own_files: whether it needs a folder of files.
    """

    name: str
    about: str
    read: Callable[[Files], _Pair]
    own_files: bool


def _drawn(files: Files) -> None:
    if files.data_dir is not None:
        raise ValueError(
            f"data_dir must be left out: shapes are drawn, not read, got {files.data_dir}"
        )


def _read_segmentation(files: Files) -> _Pair:
    _drawn(files)

    def part(name: str, n: int) -> Dataset:
        levels, labels = _shapes_segmentation.segmentation_levels(n, files.seed, name)
        classes = _shapes_segmentation.CLASSES
        return Dataset("shapes-segmentation", levels, labels, classes, mean=0.5, std=0.304)

    train_images = SEGMENTATION_TRAIN_IMAGES if files.images is None else files.images
    return part("train", train_images), part("test", SEGMENTATION_TEST_IMAGES)


def _read_shapes(files: Files) -> _Pair:
    _drawn(files)

    def part(name: str, n: int) -> Dataset:
        levels, labels = _shapes.shape_levels(n, files.seed, name)
        return Dataset("shapes", levels, labels, _shapes.CLASSES, mean=0.5, std=0.304)

    train_images = SHAPES_TRAIN_IMAGES if files.images is None else files.images
    return part("train", train_images), part("test", SHAPES_TEST_IMAGES)


def _first(levels: _Levels, limit: int | None) -> _Levels:
    images, labels = levels
    if limit is not None and limit > len(images):
        raise ValueError(f"images must be at most {len(images)}, got {limit}")
    return images[:limit], labels[:limit]


def _read_mnist(
    family: Family, mean: float, std: float, augmentation: Augmentation | None
) -> Callable[[Files], _Pair]:
    def read(files: Files) -> _Pair:
        train = _first(family.read("train", files.data_dir), files.images)
        test = family.read("test", files.data_dir)
        name, classes = family.name, family.classes
        return (
            Dataset(name, *train, classes, mean, std, augmentation),
            Dataset(name, *test, classes, mean, std),
        )

    return read


def _read_cifar10(files: Files) -> _Pair:
    train = _cifar10.cifar10("train", files.data_dir)
    constants = statistics(train[0])
    changes = Augmentation.parse("flip,crop=4")
    test = _cifar10.cifar10("test", files.data_dir)
    classes = _cifar10.CLASSES
    return (
        Dataset("cifar10", *_first(train, files.images), classes, *constants, changes),
        Dataset("cifar10", *test, classes, *constants),
    )


SOURCES: Final = (
    Source("shapes", "72x72 gray triangles, circles and rectangles, drawn", _read_shapes, False),
    Source(
        "shapes-segmentation",
        "72x72 gray, one or two shapes, a class for each pixel, drawn",
        _read_segmentation,
        False,
    ),
    Source(
        "fashion-mnist",
        "28x28 gray, ten kinds of clothing, four IDX files",
        _read_mnist(FASHION_MNIST, 0.2860, 0.3530, Augmentation(flip=True)),
        True,
    ),
    Source(
        "mnist",
        "28x28 gray, ten handwritten digits, four IDX files",
        _read_mnist(MNIST, 0.1307, 0.3081, None),
        True,
    ),
    Source("cifar10", "32x32 colour, ten classes, six binary files", _read_cifar10, True),
)
_BY_NAME: Final = {each.name: each for each in SOURCES}


def names() -> tuple[str, ...]:
    """The names that ``load`` knows."""
    return tuple(_BY_NAME)


def source(name: str) -> Source:
    """What is known of a dataset of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"dataset must be one of {', '.join(_BY_NAME)}, an .npz file or a folder of class "
            f"folders, got {name!r}"
        )
    return _BY_NAME[name]


def is_path(name: str) -> bool:
    """Whether a dataset is meant to be a file or folder rather than one known by name."""
    return name not in _BY_NAME and (
        name.endswith(".npz") or os.sep in name or Path(name).is_dir() or Path(name).is_file()
    )


def is_folder(name: str) -> bool:
    """Whether a dataset is meant to be a folder of pictures."""
    return is_path(name) and not name.endswith(".npz")


def load(name: str | os.PathLike[str], **options: Any) -> tuple[Dataset, Dataset]:
    """The training and the test part of :func:`load_splits`, with the same arguments."""
    parts = load_splits(name, **options)
    return parts.train, parts.test


def load_splits(
    name: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    images: int | None = None,
    validation: float | None = None,
    size: tuple[int, int] | None = None,
    gray: bool = False,
    skip_unreadable: bool = False,
) -> Splits:
    """Load a dataset by name, or one's own from a file or folder.

    Args:
        name: "shapes" (drawn from the seed; 2,000 test images), "shapes-segmentation" (likewise,
            400 test images, one label per pixel), "fashion-mnist", "mnist", "cifar10"; the path of
            an ``.npz`` (:func:`gpucnn.data.npz.read_npz`); or that of a folder with a folder of
            PNG, JPEG or BMP pictures for each class, or with such folders called "train", "test"
            and maybe "validation". A fifth of the images of one's own is for testing where nothing
            says which.
        data_dir: folder of the files of "fashion-mnist", "mnist" or "cifar10".
        seed: of drawn images and of splits, an integer >= 0.
        images: number of training images, >= 1: by default 24,000 shapes, 12,000 for
            segmentation, or all there are.
        validation: share of the training images that is set aside, above 0 and below 1; None for
            the part that the files call so, if there is one.
        size: (H, W) that pictures of a folder are scaled to; may be left out if they are all of one
            size.
        gray: make pictures of a folder gray.
        skip_unreadable: leave out pictures of a folder that cannot be read, and warn.

    Images of one's own are normalised by the statistics of the training images, channel by channel.

    Raises:
        ValueError: unknown name, bad argument, or files that are missing or damaged.
    """
    if images is not None and images < 1:
        raise ValueError(f"images must be >= 1, got {images}")
    files = Files(data_dir, seed, images, size, gray, skip_unreadable)
    text = os.fspath(name)
    pictures = is_folder(text)
    for option, given in (("size", size), ("gray", gray), ("skip_unreadable", skip_unreadable)):
        if given and not pictures:
            raise ValueError(f"{option} is for a folder of pictures, {text} is none")
    if not is_path(text):
        train, test = source(text).read(files)
        parts = Splits(train, None, test)
    elif data_dir is not None:
        raise ValueError(f"data_dir must be left out: {text} is a path itself, got {data_dir}")
    else:
        path = Path(text)
        levels, classes = _read_pictures(path, files) if pictures else _read_arrays(path)
        parts = _own(_own_name(path), levels, classes, files)
    if validation is None:
        return parts
    if parts.validation is not None:
        raise ValueError(f"validation must be left out: {text} has such a part, got {validation}")
    train, aside = split(parts.train, validation, seed, _VALIDATION)
    return parts._replace(train=train, validation=aside)


def load_test(name: str | os.PathLike[str], files: Files) -> Dataset:
    """The images to judge a network by: those for testing, or all of one's own that come as one.

    Raises:
        ValueError: as :func:`load_splits`.
    """
    text = os.fspath(name)
    if not is_path(text):
        return load(text, **vars(files))[1]
    path = Path(text)
    levels, classes = _read_pictures(path, files) if is_folder(text) else _read_arrays(path)
    images, labels = levels["all"] if "all" in levels else levels["test"]
    return Dataset(_own_name(path), images, labels, classes, mean=0.5, std=0.5)


def _own(name: str, levels: dict[str, _Levels], classes: tuple[str, ...], files: Files) -> Splits:
    """The parts of one's own images, which are split here if they come as one."""
    shapes = {part: images.shape[1:] for part, (images, _) in levels.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{name}: the images of all parts must have one size, got {shapes}")
    parts = {
        part: Dataset(name, *given, classes, mean=0.5, std=0.5) for part, given in levels.items()
    }
    if "all" in parts:
        parts["train"], parts["test"] = split(parts["all"], TEST_SHARE, files.seed)
    train = parts["train"]
    if files.images is not None:
        _first((train.images, train.labels), files.images)  # are there as many?
        if files.images < len(train):  # they lie class by class: a share of each
            share = files.images / len(train)
            parts["train"] = split(train, share, files.seed, _FEWER)[1]
    mean, std = statistics(parts["train"].images)
    known = {part: replace(data, mean=mean, std=std) for part, data in parts.items()}
    return Splits(known["train"], known.get("validation"), known["test"])


def _own_name(path: Path) -> str:
    return path.stem if path.suffix == ".npz" else path.resolve().name


def _read_arrays(path: Path) -> tuple[dict[str, _Levels], tuple[str, ...]]:
    parts = _npz.read_npz(path)
    highest = max(int(labels.max()) for _, labels in parts.values())
    return parts, tuple(map(str, range(highest + 1)))


def _read_pictures(path: Path, files: Files) -> tuple[dict[str, _Levels], tuple[str, ...]]:
    parts = _folder.class_folders(path)
    size = files.size
    if size is None:
        sizes = {_folder.common_size(classes) for classes in parts.values()}
        size = sizes.pop() if len(sizes) == 1 else None
        if size is None:
            raise ValueError(
                f"{path}: the pictures differ in size; --size says what to make of them"
            )
    if min(size) < 1 or math.prod(size) > _MOST_PIXELS:
        raise ValueError(f"size must be 1 to {_MOST_PIXELS:,} pixels, got {size[0]} x {size[1]}")
    shape = (*size, 1 if files.gray else 3)
    read = {
        part: _folder.read_classes(classes, shape, skip_unreadable=files.skip_unreadable)
        for part, classes in parts.items()
    }
    left_out = [reason for pictures in read.values() for reason in pictures.unreadable]
    if left_out:
        shown = "\n  ".join(left_out)
        total = sum(len(files) for classes in parts.values() for files in classes.values())
        warnings.warn(f"left out {len(left_out)} of {total} pictures:\n  {shown}", stacklevel=3)
    levels = {part: (pictures.images, pictures.labels) for part, pictures in read.items()}
    return levels, tuple(next(iter(parts.values())))
