"""Datasets on a device: batches, epochs, memory, statistics."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import data, random
from gpucnn.data import batches as batches_module
from gpucnn.data.batches import home, resident_bytes
from gpucnn.device import DeviceError
from tests.support import assert_close


def toy(
    augmentation: str = "none", n: int = 40, per_pixel: bool = False, channels: int = 3
) -> data.Dataset:
    """Images whose label is the third that is bright."""
    levels = random.bits(0, n, n * 6 * 7 * channels // 4 + 1).view(np.uint8)
    images = levels[: n * 42 * channels].reshape(n, 6, 7, channels) // 2
    labels = (random.bits(1, n, n) % 3).astype(np.int32)
    for i, label in enumerate(labels):
        images[i, :, 2 * label : 2 * label + 2] += 70
    if per_pixel:
        labels = (images[..., 0] // 86).astype(np.int32)
    options = data.Augmentation.parse(augmentation)
    return data.Dataset("toy", images, labels, ("a", "b", "c"), 0.4, 0.3, options)


AUGMENTED = "flip,shift=1,crop=2,brightness=0.1,contrast=0.1,cutout=2"


@pytest.mark.parametrize(
    ("augmentation", "per_pixel"), [(AUGMENTED, False), (f"{AUGMENTED},mixup=0.3", False),
                                    (AUGMENTED, True), ("none", False)],
)  # fmt: skip
def test_batches_are_the_training_batches_of_the_host(
    augmentation: str, per_pixel: bool, device: str
) -> None:
    train = toy(augmentation, per_pixel=per_pixel)
    batches = train.to(device).batches(12, seed=3)
    assert (len(batches.data), batches.batches_per_epoch) == (40, 3)
    for step in range(8):
        epoch, batch = divmod(step, 3)
        assert (batches.epoch, batches.batch) == (epoch, batch)
        rows = batches.rows().copy()
        images, target = batches.take()
        want_images, want_target = train.training_batch(rows, 3, epoch)
        assert images.device == target.device == device
        assert images.numpy().tobytes() == want_images.tobytes()
        assert target.numpy().tobytes() == want_target.tobytes()
        assert target.dtype == want_target.dtype
        order = random.permutation(3, (4 << 32) + epoch, 40)
        np.testing.assert_array_equal(rows, order[12 * batch : 12 * batch + 12])


def test_seek_goes_anywhere(device: str) -> None:
    batches = toy(AUGMENTED).to(device).batches(7, seed=1)
    seen = [tuple(t.numpy().tobytes() for t in batches.take()) for _ in range(15)]
    assert len(set(seen)) == 15
    for step in (14, 0, 6, 5, 10, 4):
        batches.seek(*divmod(step, 5))
        assert tuple(t.numpy().tobytes() for t in batches.take()) == seen[step]


def test_the_order_stays_in_its_memory() -> None:
    """A replayed graph reads it, maybe of two epochs in one launch."""
    batches = toy().to("cpu").batches(20)
    order = batches._order
    for _ in range(3):
        batches.take()
    assert (batches.epoch, batches.batch) == (1, 1)
    assert batches._order is order
    for epoch in (0, 1):
        np.testing.assert_array_equal(order[epoch], batches_module.epoch_order(0, epoch, 40))


def test_memory_on_a_device() -> None:
    train = toy("mixup=0.2")
    held = train.to("cpu")
    arrays = [held.images, held.labels, held.scale, held.offset, held.blend]
    arrays.append(held.batches(4)._order)
    assert held.nbytes == resident_bytes(train) == sum(a.nbytes for a in arrays)
    assert train.nbytes == 40 * (6 * 7 * 3 + 4)


def test_large_datasets_stay_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    train = toy()
    free = 2 * resident_bytes(train)
    monkeypatch.setattr(batches_module, "free_memory", lambda: free)
    assert [home(train, device) for device in gpucnn.device.DEVICES] == ["cpu", "cuda", "emulated"]
    assert home(train) == "cpu"
    free -= 1
    assert home(train, "cuda") == "cpu"
    assert home(train, "emulated") == "emulated"
    monkeypatch.setattr(batches_module, "MAX_ELEMENTS", train.images.size - 1)
    assert home(train, "emulated") == "cpu"


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((0,), ValueError, "batch_size must be >= 1, got 0"),
        ((41,), ValueError, "batch_size must be at most 40, got 41"),
        ((2.0,), TypeError, "batch_size must be an integer"),
    ],
)
def test_bad_batch_sizes(arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        toy().to("cpu").batches(*arguments)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="device must be one of cpu, cuda, emulated, got 'gpu'"):
        toy().to("gpu")
    with pytest.raises(ValueError, match="seed must be >= 0"):
        toy().to("cpu").batches(4, seed=-1)
    batches = toy().to("cpu").batches(4)
    for epoch, batch, match in (
        (-1, 0, "epoch must be >= 0"),
        (0, -1, "batch must be >= 0"),
        (0, 10, "batch must be at most 9, got 10"),
    ):
        with pytest.raises(ValueError, match=match):
            batches.seek(epoch, batch)


@pytest.mark.skipif(gpucnn.cuda_available(), reason="a GPU is here")
def test_a_device_that_is_not_here() -> None:
    with pytest.raises(DeviceError, match="device 'cuda' cannot be used"):
        toy().to("cuda")


# datasets


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"augmentation": data.Augmentation(crop=6)}, "crop must be less .* 6 x 7, got 6"),
        ({"mean": (0.5, 0.5)}, r"mean must be one number or one for each of 3 channels, got .*\(2"),
        ({"std": (0.5, 0.5, 0.5, 0.5)}, "std must be one number or one for each of 3 channels"),
        ({"std": (0.5, 0.0, 0.5)}, r"std must be > 0, got \[0.5, 0.0, 0.5\]"),
        ({"std": -1.0}, "std must be > 0, got -1.0"),
        ({"mean": float("nan")}, "mean must be finite, got nan"),
    ],
)
def test_datasets_that_do_not_fit_are_refused(change: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        dataclasses.replace(toy(), **change)


def test_mixup_needs_one_label_for_each_image() -> None:
    with pytest.raises(ValueError, match="mixup blends images that have one label each, which toy"):
        toy("mixup=0.2", per_pixel=True)
    train = toy()
    labels = train.labels.copy()
    labels[3] = -100
    with pytest.raises(ValueError, match="mixup blends images that have one label each"):
        dataclasses.replace(train, labels=labels, augmentation=data.Augmentation(mixup=0.2))


def test_channels_are_normalised_one_by_one(device: str) -> None:
    train = toy()
    mean, std = data.statistics(train.images)
    train = dataclasses.replace(train, mean=mean, std=std)
    normal = train.normalize(train.images).astype(np.float64)
    np.testing.assert_allclose(normal.mean(axis=(0, 1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(normal.std(axis=(0, 1, 2)), 1, atol=1e-6)
    batches = train.to(device).batches(40)
    rows = batches.rows().copy()
    images, _ = batches.take()
    assert images.numpy().tobytes() == train.normalize(train.images[rows]).tobytes()


def test_statistics() -> None:
    images = random.bits(3, 0, 300 * 30).view(np.uint8)[: 300 * 90].reshape(300, 5, 6, 3)
    mean, std = data.statistics(images)
    levels = images.reshape(-1, 3) / 255
    assert_close(np.array(mean), levels.mean(axis=0), "float64")
    assert_close(np.array(std), levels.std(axis=0), "float64")
    assert data.statistics(np.full((2, 3, 3, 1), 7, np.uint8)) == ((7 / 255,), (1 / 255,))
    with pytest.raises(ValueError, match="images must not be empty"):
        data.statistics(np.zeros((0, 3, 3, 1), np.uint8))
