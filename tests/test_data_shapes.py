"""The shape images: every rule of their making, recomputed from parameters and from pixels."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn.data.shapes import (
    CLASSES,
    SIZE,
    ShapeParameters,
    shape_levels,
    shape_parameters,
    shapes,
)

N = 20_000


@pytest.fixture(scope="module")
def drawn() -> ShapeParameters:
    return shape_parameters(N, seed=1)


def corner_points(p: ShapeParameters, i: int) -> np.ndarray:
    """The outermost points of shape i, (k, 2): corners, or points all around a circle."""
    radius = p.diameter[i] / 2
    if CLASSES[p.labels[i]] == "triangle":
        return p.center[i] + radius * p.corners[i]
    if CLASSES[p.labels[i]] == "circle":
        turn = np.linspace(0, 2 * np.pi, 361)
        return p.center[i] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    half = math.atan2(1, p.aspect[i])
    lead = math.atan2(p.direction[i, 1], p.direction[i, 0])
    turn = np.array([lead + half, lead - half, lead + half + np.pi, lead - half + np.pi])
    return p.center[i] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def test_classes_are_equally_frequent(drawn: ShapeParameters) -> None:
    counts = np.bincount(drawn.labels, minlength=3)
    assert len(counts) == 3
    assert abs(counts - N / 3).max() < 5 * math.sqrt(N * 2 / 9)


def test_diameter(drawn: ShapeParameters) -> None:
    assert drawn.diameter.min() >= 12
    assert drawn.diameter.max() <= 48
    assert drawn.diameter.min() < 12.1
    assert drawn.diameter.max() > 47.9


def test_shapes_lie_wholly_inside_and_reach_every_border(drawn: ShapeParameters) -> None:
    points = [corner_points(drawn, i) for i in range(5000)]
    low = np.array([p.min(axis=0) for p in points])
    high = np.array([p.max(axis=0) for p in points])
    assert low.min() >= -1e-9
    assert high.max() <= SIZE + 1e-9
    assert (low.min(axis=0) < 0.1).all()
    assert (high.max(axis=0) > SIZE - 0.1).all()


def test_half_are_filled_and_outlines_are_one_to_three_pixels(drawn: ShapeParameters) -> None:
    outlined = drawn.outline[drawn.outline > 0]
    assert abs(len(outlined) / N - 0.5) < 5 * 0.5 / math.sqrt(N)
    assert 1 <= outlined.min() < 1.01
    assert 2.99 < outlined.max() <= 3


def test_rectangles_are_one_to_one_to_one_to_three_at_any_angle(drawn: ShapeParameters) -> None:
    assert 1 <= drawn.aspect.min() < 1.01
    assert 2.99 < drawn.aspect.max() <= 3
    angle = np.arctan2(drawn.direction[:, 1], drawn.direction[:, 0])
    counts = np.histogram(angle, bins=12, range=(-np.pi, np.pi))[0]
    assert abs(counts - N / 12).max() < 5 * math.sqrt(N / 12)
    np.testing.assert_allclose((drawn.direction**2).sum(axis=1), 1, atol=1e-9)


def test_triangle_corners_are_a_radian_apart_on_the_circle(drawn: ShapeParameters) -> None:
    np.testing.assert_allclose((drawn.corners**2).sum(axis=2), 1, atol=1e-9)
    angle = np.sort(np.arctan2(drawn.corners[..., 1], drawn.corners[..., 0]), axis=1)
    gaps = np.concatenate([np.diff(angle, axis=1), angle[:, :1] + 2 * np.pi - angle[:, 2:]], axis=1)
    assert 1 - 1e-9 <= gaps.min() < 1.01
    assert gaps.max() > 2 * np.pi - 2.2
    # In the order they are drawn in, each gap is a third of the circle on average.
    turns = np.arctan2(drawn.corners[..., 1], drawn.corners[..., 0])
    in_order = np.mod(np.roll(turns, -1, axis=1) - turns, 2 * np.pi)
    np.testing.assert_allclose(in_order.mean(axis=0), 2 * np.pi / 3, atol=0.03)


def test_contrast(drawn: ShapeParameters) -> None:
    for gray in (drawn.foreground, drawn.background):
        assert 0 <= gray.min() < 0.02
        assert 0.98 < gray.max() <= 1
    contrast = drawn.foreground - drawn.background
    assert 0.25 <= abs(contrast).min() < 0.251
    assert abs((contrast > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(N)


def covered_area(p: ShapeParameters, i: int) -> float:
    """Area of shape i in square pixels, from its corners by the shoelace formula."""

    def area(points: np.ndarray) -> float:
        x, y = points.T
        return abs(float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum())) / 2

    outer = area(corner_points(p, i))
    if p.outline[i] == 0:
        return outer
    # Moving every side inwards by t scales a shape with an incircle of radius r by (r - t) / r;
    # a rectangle loses 2 t of each side.
    t, radius = p.outline[i], p.diameter[i] / 2
    if CLASSES[p.labels[i]] == "rectangle":
        short = 2 * radius / math.hypot(1, p.aspect[i])
        inner = max(short - 2 * t, 0) * max(short * p.aspect[i] - 2 * t, 0)
        return outer - inner
    points = corner_points(p, i)
    perimeter = np.linalg.norm(points - np.roll(points, 1, axis=0), axis=1).sum()
    incircle = radius if CLASSES[p.labels[i]] == "circle" else 2 * outer / perimeter
    return outer * (1 - max(1 - t / incircle, 0) ** 2)


def test_pixels_show_the_drawn_area_place_and_grays() -> None:
    n = 600
    p, (images, labels) = shape_parameters(n, 3), shapes(n, 3)
    np.testing.assert_array_equal(labels, p.labels)
    middle = np.arange(SIZE) + 0.5
    offsets: dict[str, list[np.ndarray]] = {name: [] for name in CLASSES}
    for i in range(n):
        # Clipping at black and white would bias the estimate; these grays are far from both.
        if not (0.15 < p.foreground[i] < 0.85 and 0.15 < p.background[i] < 0.85):
            continue
        image = images[i, ..., 0].astype(np.float64)
        coverage = (image - p.background[i]) / (p.foreground[i] - p.background[i])
        noise = 0.03 / abs(p.foreground[i] - p.background[i])
        points = corner_points(p, i)
        low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
        high = np.ceil(points.max(axis=0)).astype(int)
        box = coverage[low[1] : high[1], low[0] : high[0]]
        # A thin tip rounds off; it stays within a pixel or two of area.
        tolerance = 5 * noise * math.sqrt(box.size) + 0.03 * covered_area(p, i) + 2.5
        assert abs(box.sum() - covered_area(p, i)) < tolerance, i
        outside = coverage.copy()
        outside[max(low[1] - 1, 0) : high[1] + 1, max(low[0] - 1, 0) : high[0] + 1] = np.nan
        background = outside[np.isfinite(outside)]
        assert abs(background.mean()) < 6 * noise / math.sqrt(background.size) + 0.02
        if p.outline[i] == 0:
            place = [
                (box.sum(axis=axis) * middle[low[axis] : high[axis]]).sum() / box.sum()
                for axis in (0, 1)
            ]
            triangle = CLASSES[p.labels[i]] == "triangle"
            expected = points.mean(axis=0) if triangle else p.center[i]
            offsets[CLASSES[p.labels[i]]].append(place - expected)
    for name, found in offsets.items():
        assert len(found) > 20
        assert np.abs(np.median(found, axis=0)).max() < 0.08, name


def test_noise_is_gaussian_of_three_hundredths() -> None:
    p, (images, _) = shape_parameters(400, 5), shapes(400, 5)
    gray = (p.background > 0.2) & (p.background < 0.8)
    corner = images[gray, :8, :8, 0] - p.background[gray, None, None]
    free = corner[np.abs(corner).max(axis=(1, 2)) < 0.14].ravel().astype(np.float64)
    assert free.size > 5000
    assert abs(free.std() - 0.03) < 5 * 0.03 / math.sqrt(2 * free.size)
    kurtosis = (free**4).mean() / free.var() ** 2
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / free.size)


def test_edges_are_anti_aliased() -> None:
    p, (images, _) = shape_parameters(300, 6), shapes(300, 6)
    i = int(np.argmax((p.labels == 1) * (p.outline == 0) * abs(p.foreground - p.background)))
    span = images[i] - p.background[i]
    between = span / (p.foreground[i] - p.background[i])
    partial = ((between > 0.2) & (between < 0.8)).sum()
    perimeter = np.pi * p.diameter[i]
    assert 0.3 * perimeter < partial < 1.2 * perimeter


@settings(max_examples=15, deadline=None)
@given(start=st.integers(0, 60), n=st.integers(1, 20))
def test_an_image_depends_on_its_number_only(start: int, n: int) -> None:
    images, labels = shapes(80, 9)
    piece, piece_labels = shapes(n, 9, start=start)
    np.testing.assert_array_equal(piece, images[start : start + n])
    np.testing.assert_array_equal(piece_labels, labels[start : start + n])


def test_splits_and_seeds_share_no_image() -> None:
    sets = [shape_levels(200, seed, split)[0] for seed in (0, 1) for split in ("train", "test")]
    unique = {image.tobytes() for images in sets for image in images}
    assert len(unique) == 800


def test_splits_share_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    same = shape_parameters(20, 0)
    monkeypatch.setattr("gpucnn.data.shapes.shape_parameters", lambda *_: same)
    train, test = (shape_levels(20, 0, split)[0].astype(int) for split in ("train", "test"))
    difference = (train - test) / 255
    assert difference.std() == pytest.approx(0.03 * math.sqrt(2), rel=0.25)


def test_values_types_and_ranges() -> None:
    images, labels = shapes(50, 0)
    assert images.shape == (50, 72, 72, 1)
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    assert images.min() >= 0
    assert images.max() <= 1
    assert shapes(0, 0)[0].shape == (0, 72, 72, 1)


def test_the_same_pixels_everywhere() -> None:
    """Pinned: a machine or NumPy version that draws other pixels breaks recorded results."""
    images, labels = shape_levels(64, 2024, "test", start=10)
    digest = hashlib.sha256(images.tobytes() + labels.astype("<i4").tobytes()).hexdigest()
    assert digest == "5106f0a49eb144fa20bbdc418a8f0d2dc3cea7bad99dcb74723baa578e2379d9"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1, "seed": 0}, "n must be >= 0, got -1"),
        ({"n": 1, "seed": -3}, "seed must be >= 0, got -3"),
        ({"n": 1, "seed": 0, "start": -1}, "start must be >= 0, got -1"),
        ({"n": 1, "seed": 0, "split": "val"}, "split must be one of train, test, got 'val'"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shapes(**arguments)
