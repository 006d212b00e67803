"""Images of one or two filled shapes and the labels of their pixels."""

from __future__ import annotations

import numpy as np
import pytest

from gpucnn.data import shapes_segmentation
from gpucnn.data.shapes_segmentation import CLASSES, segmentation_levels

N = 300


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return segmentation_levels(N, 7)


def test_shapes_and_types(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    assert (images.shape, images.dtype) == ((N, 72, 72, 1), np.uint8)
    assert (labels.shape, labels.dtype) == ((N, 72, 72), np.int32)
    assert CLASSES == ("background", "triangle", "circle", "rectangle")
    assert set(np.unique(labels)) == {0, 1, 2, 3}


def test_an_image_depends_on_its_number_alone(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    some = segmentation_levels(40, 7, start=50)
    assert np.array_equal(some[0], images[50:90])
    assert np.array_equal(some[1], labels[50:90])
    assert not np.array_equal(segmentation_levels(5, 7, "test")[0], images[:5])
    assert not np.array_equal(segmentation_levels(5, 8)[0], images[:5])


def test_every_image_holds_one_or_two_shapes(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    _, labels = drawn
    counts = [len(np.unique(image)) - 1 for image in labels]
    assert set(counts) == {1, 2}
    # Two shapes by chance, of different classes twice out of three.
    assert sum(c == 2 for c in counts) / N == pytest.approx(1 / 3, abs=0.1)


def test_sizes(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """A single circle's extent is its diameter; nothing lies outside the image."""
    _, labels = drawn
    extents = []
    for image in labels:
        if set(np.unique(image)) == {0, 2}:
            rows = np.flatnonzero((image == 2).any(axis=1))
            columns = np.flatnonzero((image == 2).any(axis=0))
            high, wide = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
            area = np.pi * high * wide / 4
            if (
                abs(high - wide) <= 1 and abs((image == 2).sum() / area - 1) < 0.03
            ):  # one circle, not two that touch
                extents.append(high)
    assert 19 <= min(extents) < 24
    assert 40 < max(extents) <= 45


def test_shapes_stand_out_from_the_background(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = drawn
    for image, label in zip(images[..., 0], labels, strict=True):
        background = np.median(image[label == 0])
        for kind in np.unique(label[label > 0]):
            inside = image[label == kind].astype(float)
            assert abs(np.median(inside) - background) > 0.25 * 255 - 8


def test_labels_follow_the_edges(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    """In an image of one shape, a label says which of two grays the pixel is nearer to."""
    images, labels = drawn
    for image, label in zip(images[..., 0].astype(float), labels, strict=True):
        if len(np.unique(label)) != 2:
            continue
        inside = image[label > 0]
        background = np.median(image[label == 0])
        if np.std(inside) > 40:  # two shapes of one class
            continue
        nearer = np.abs(image - np.median(inside)) < np.abs(image - background)
        assert np.mean(nearer == (label > 0)) > 0.98


def test_bad_arguments() -> None:
    for arguments in ({"n": -1, "seed": 0}, {"n": 1, "seed": -1}, {"n": 1, "seed": 0, "start": -1}):
        with pytest.raises(ValueError, match="must be >= 0"):
            segmentation_levels(**arguments)
    with pytest.raises(ValueError, match="split must be one of"):
        segmentation_levels(1, 0, "validation")
    assert shapes_segmentation.DIAMETERS == (20.0, 44.0)
