"""Datasets by name, Fashion-MNIST's files, batches and augmentation."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from gpucnn import data, random
from gpucnn.data.mnist import FASHION_MNIST


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes(), 1))


def write_fashion(folder: Path, train: int = 40, test: int = 20) -> None:
    for prefix, n in (("train", train), ("t10k", test)):
        levels = random.bits(0, n, n * 196).view(np.uint8).reshape(n, 28, 28)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", levels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", np.arange(n) % 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_fashion(tmp_path)
    return tmp_path


def test_reads_the_four_files(folder: Path) -> None:
    train, test = data.load("fashion-mnist", data_dir=folder)
    assert train.images.shape == (40, 28, 28, 1)
    assert test.images.shape == (20, 28, 28, 1)
    assert train.labels.tolist() == [i % 10 for i in range(40)]
    assert train.classes[9] == "Ankle boot"
    assert train.augmentation is not None
    assert test.augmentation is None


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is missing: install .* dataset-fashion-mnist, or get"):
        data.load("fashion-mnist", data_dir=tmp_path)


def test_counts_must_be_equal(folder: Path) -> None:
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(39))
    with pytest.raises(ValueError, match="holds 39 labels for the 40 images"):
        data.load("fashion-mnist", data_dir=folder)


def test_labels_must_be_in_range(folder: Path) -> None:
    write_idx(folder / "t10k-labels-idx1-ubyte.gz", np.arange(20))
    with pytest.raises(ValueError, match="labels must be 0 to 9, found 19"):
        data.load("fashion-mnist", data_dir=folder)


def test_image_size_must_be_28(folder: Path) -> None:
    write_idx(folder / "train-images-idx3-ubyte.gz", np.zeros((40, 28, 27)))
    with pytest.raises(ValueError, match="images must be 28 x 28, found 28 x 27"):
        data.load("fashion-mnist", data_dir=folder)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.load("emnist"),
            "dataset must be one of shapes, shapes-segmentation, fashion-mnist, mnist, cifar10, an",
        ),
        (lambda: data.load("shapes", images=0), "images must be >= 1, got 0"),
        (lambda: data.load("shapes", data_dir="x"), "data_dir must be left out"),
        (lambda: FASHION_MNIST.read("val"), "split must be one of train, test, got 'val'"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_more_images_than_the_files_hold(folder: Path) -> None:
    with pytest.raises(ValueError, match="images must be at most 40, got 41"):
        data.load("fashion-mnist", data_dir=folder, images=41)


@pytest.mark.skipif(
    FASHION_MNIST.default_dir is None or not FASHION_MNIST.default_dir.is_dir(),
    reason="dataset-fashion-mnist is not installed",
)
def test_the_installed_files() -> None:
    train, test = data.load("fashion-mnist")
    assert len(train) == 60_000
    assert len(test) == 10_000
    assert np.bincount(train.labels).tolist() == [6000] * 10
    normalized = train.normalize(train.images)
    assert abs(float(normalized.mean())) < 1e-3
    assert abs(float(normalized.std()) - 1) < 1e-3


def test_shapes_are_normalized_and_split() -> None:
    train, test = data.load("shapes", seed=3, images=1000)
    assert (len(train), len(test)) == (1000, 2000)
    assert train.image_shape == (72, 72, 1)
    normalized = train.normalize(train.images)
    assert abs(float(normalized.mean())) < 0.05
    assert abs(float(normalized.std()) - 1) < 0.05
    again, _ = data.load("shapes", seed=3, images=50)
    np.testing.assert_array_equal(again.images, train.images[:50])


def dataset(augmentation: data.Augmentation | None) -> data.Dataset:
    images = random.bits(1, 0, 30 * 12).view(np.uint8).reshape(30, 6, 8, 1)
    labels = (np.arange(30) % 3).astype(np.int32)
    return data.Dataset("toy", images, labels, ("a", "b", "c"), 0.5, 0.25, augmentation)


def test_batch_normalizes() -> None:
    toy = dataset(None)
    images, labels = toy.batch(np.array([4, 2]))
    assert images.dtype == np.float32
    expected = (toy.images[[4, 2]].astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images, expected, atol=1e-6)
    assert labels.tolist() == [1, 2]


def test_augmentation_flips_and_shifts_by_whole_pixels() -> None:
    (image,) = dataset(None).images[:1]
    copies = np.repeat(image[None], 600, axis=0)
    augment, labels = data.Augmentation(flip=True, shift=2), np.zeros(600, np.int32)
    toy = data.Dataset("toy", copies, labels, ("a",), 0.0, 1 / 255, augment)
    changed, _ = toy.training_batch(np.arange(600), seed=2, epoch=0)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="edge")
    windows = {
        (flip, dy, dx): padded[dy : dy + 6, dx : dx + 8][:, :: -1 if flip else 1].tobytes()
        for flip in (False, True)
        for dy in range(5)
        for dx in range(5)
    }
    assert len(set(windows.values())) == 50
    found = {levels.tobytes() for levels in np.rint(changed).astype(np.uint8)}
    assert found == set(windows.values())


def test_flips_and_shifts_are_drawn_from_the_bits_of_one_word() -> None:
    """Bit 0 mirrors, bits 8 to 19 and 20 to 31 shift: what runs have been trained with."""
    toy = dataset(data.Augmentation(flip=True, shift=1))
    changed, _ = toy.training_batch(np.arange(30), seed=1, epoch=2)
    for i, word in enumerate(random.bits(1, (3 << 32) + 2, 30)):
        down, across = int(word >> 20) * 3 >> 12, int(word >> 8 & 0xFFF) * 3 >> 12
        padded = np.pad(toy.images[i], ((1, 1), (1, 1), (0, 0)), mode="edge")
        image = padded[down : down + 6, across : across + 8]
        image = image[:, ::-1] if word & 1 else image
        np.testing.assert_array_equal(changed[i], toy.normalize(image[None])[0])


def test_augmentation_depends_on_seed_epoch_and_image_only() -> None:
    toy = dataset(data.Augmentation(flip=True, shift=1))
    whole, _ = toy.training_batch(np.arange(30), seed=1, epoch=2)
    part, _ = toy.training_batch(np.array([17, 3]), seed=1, epoch=2)
    np.testing.assert_array_equal(part, whole[[17, 3]])
    for seed, epoch in ((1, 3), (2, 2)):
        assert (toy.training_batch(np.arange(30), seed, epoch)[0] != whole).any()


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), np.uint8), [0, 0], "images must be uint8"),
        (np.zeros((2, 4, 4, 1), np.float32), [0, 0], "images must be uint8"),
        (np.zeros((2, 4, 4, 1), np.uint8), [0], "one entry per image"),
        (
            np.zeros((2, 4, 4, 1), np.uint8),
            [0, 2],
            "labels must be 0 to 1, or -100 for none, got 0 to 2",
        ),
        (
            np.zeros((2, 4, 4, 1), np.uint8),
            [-1, 1],
            "labels must be 0 to 1, or -100 for none, got -1 to 1",
        ),
    ],
)
def test_inconsistent_datasets_are_refused(images, labels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data.Dataset("toy", images, np.array(labels, np.int32), ("a", "b"), 0.5, 0.25)
