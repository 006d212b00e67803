"""Gray 72 x 72 images of one triangle, circle or rectangle, drawn from a seed.

Image ``i`` depends on ``(seed, split, i)`` alone: not on how many images are asked for, nor in
which pieces. Its geometry and noise come from the counter-based generator in ``gpucnn.random``, and
the drawing uses only correctly rounded arithmetic, so every machine draws the same pixels.

Each shape is a signed distance function: negative inside, in pixels. A pixel's coverage, and so its
anti-aliasing, is ``clip(0.5 - distance, 0, 1)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpucnn import random

CLASSES: Final = ("triangle", "circle", "rectangle")
SIZE: Final = 72
NOISE: Final = 0.03
SPLITS: Final = ("train", "test")

_PARAMETER_STREAM: Final = 1 << 32
_NOISE_STREAM: Final = 2 << 32
DRAWS: Final = 16  # uniform numbers reserved for one shape
FILL_DRAW: Final = 2  # which of them decides: below a half the shape is filled
DIAMETERS: Final = (12.0, 48.0)
_NOISE_WORDS: Final = SIZE * SIZE // 2  # each 32-bit word gives the noise of two pixels
_CHUNK: Final = 32  # images drawn at a time: the working set stays in the cache
_FILLED: Final = 128.0  # the outline width that fills every shape: more than twice its depth


@dataclass(frozen=True)
class ShapeParameters:
    """What was drawn, one row per image; lengths are in pixels, (0, 0) is the upper left corner.

    Pixel (row, column) covers the square from (column, row) to (column + 1, row + 1) in (x, y).

    Attributes:
        labels: index into ``CLASSES``, int32 (n,).
        diameter: of the circumscribed circle, float64 (n,), 12 to 48.
        center: of the circumscribed circle, (x, y), float64 (n, 2).
        outline: width of the outline, float64 (n,), 1 to 3, or 0 where the shape is filled.
        aspect: long side over short side of a rectangle, float64 (n,), 1 to 3.
        direction: unit vector (x, y) of a rectangle's long side, float64 (n, 2).
        corners: unit vectors (x, y) from the centre to the corners of a triangle, float64
            (n, 3, 2); any two are at least 1 rad apart.
        foreground, background: gray, float64 (n,), 0 to 1, at least 0.25 apart.
    """

    labels: NDArray[np.int32]
    diameter: NDArray[np.float64]
    center: NDArray[np.float64]
    outline: NDArray[np.float64]
    aspect: NDArray[np.float64]
    direction: NDArray[np.float64]
    corners: NDArray[np.float64]
    foreground: NDArray[np.float64]
    background: NDArray[np.float64]


def _unit_vector(angle: NDArray[np.float64]) -> NDArray[np.float64]:
    """(cos, sin) of angles in [-pi, 3 pi), stacked on a last axis, by Taylor series.

    The libraries' sine and cosine differ in the last bit between machines; sums of products don't.
    """
    x = np.where(angle > math.pi, angle - 2 * math.pi, angle)
    square = x * x
    cosine, sine = np.ones_like(x), np.ones_like(x)
    for k in range(26, 0, -2):
        cosine = 1.0 - square * cosine / (k * (k - 1))
        sine = 1.0 - square * sine / (k * (k + 1))
    return np.stack([cosine, x * sine], axis=-1)


def split_index(split: str) -> int:
    """0 for "train", 1 for "test"; ValueError for another name."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    return SPLITS.index(split)


def _rectangle_sides(
    diameter: NDArray[np.float64], aspect: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    short = diameter / np.sqrt(1.0 + aspect * aspect)
    return short * aspect, short


def shape_parameters(n: int, seed: int, split: str = "train", start: int = 0) -> ShapeParameters:
    """Draw the geometry and grays of images ``start`` to ``start + n - 1`` of a split.

    Class, filled or outlined, diameter, aspect, angles and place are uniform; the place is uniform
    over all that keep the whole shape inside the image. The two grays are uniform over the pairs
    that are at least 0.25 apart.
    """
    stream = _PARAMETER_STREAM + split_index(split)
    draws = random.uniform(seed, stream, n * DRAWS, start * DRAWS)
    return parameters_from(draws.reshape(n, DRAWS), *DIAMETERS)


def parameters_from(
    uniform: NDArray[np.float32], smallest: float, largest: float
) -> ShapeParameters:
    """What :func:`shape_parameters` makes of uniform numbers (n, DRAWS) in [0, 1).

    smallest, largest: the circumscribed diameters, in pixels.
    """
    u = uniform.astype(np.float64).T
    labels = np.floor(u[0] * len(CLASSES)).astype(np.int32)
    diameter = smallest + (largest - smallest) * u[1]
    outline = np.where(u[FILL_DRAW] < 0.5, 0.0, 1.0 + 2.0 * u[3])
    aspect = 1.0 + 2.0 * u[4]
    turn = math.pi * (2.0 * u[5] - 1.0)
    direction = _unit_vector(turn)

    # Three gaps of 1 rad each; the remaining 2 pi - 3 rad is cut at two uniform places.
    spare = 2 * math.pi - 3.0
    cut = np.sort(u[6:8], axis=0) * spare
    first = turn + 1.0 + cut[0]
    second = first + 1.0 + (cut[1] - cut[0])
    corners = np.stack([direction, _unit_vector(first), _unit_vector(second)], axis=1)

    radius = (diameter / 2.0)[:, None]
    long, short = _rectangle_sides(diameter, aspect)
    reach = (np.abs(direction) * long[:, None] + np.abs(direction[:, ::-1]) * short[:, None]) / 2.0
    label = labels[:, None]
    low = np.select(
        [label == 0, label == 1], [corners.min(axis=1) * radius, -radius], default=-reach
    )
    high = np.select(
        [label == 0, label == 1], [corners.max(axis=1) * radius, radius], default=reach
    )
    center = u[8:10].T * (SIZE - (high - low)) - low

    # Contrast c has density proportional to 1 - c on 0.25 to 1; the darker gray is uniform below.
    contrast = 1.0 - 0.75 * np.sqrt(u[10])
    dark = u[11] * (1.0 - contrast)
    swap = u[12] < 0.5
    foreground = np.where(swap, dark, dark + contrast)
    background = np.where(swap, dark + contrast, dark)
    return ShapeParameters(
        labels, diameter, center, outline, aspect, direction, corners, foreground, background
    )


def _planes(normal: NDArray[np.float64], offset: NDArray[np.float64]) -> NDArray[np.float32]:
    """``normal . (x, y) - offset`` at every pixel centre: (n, 2), (n,) -> (n, SIZE, SIZE)."""
    at = np.arange(SIZE) + 0.5
    across = (normal[:, 0, None] * at - offset[:, None]).astype(np.float32)
    down = (normal[:, 1, None] * at).astype(np.float32)
    return down[:, :, None] + across[:, None, :]


def _triangle_distance(p: ShapeParameters, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    corner = p.center[rows, None] + p.corners[rows] * (p.diameter[rows] / 2.0)[:, None, None]
    distance: NDArray[np.float32] | None = None
    for i in range(3):
        a, b = corner[:, i], corner[:, (i + 1) % 3]
        edge = b - a
        length = np.sqrt(edge[:, 0] * edge[:, 0] + edge[:, 1] * edge[:, 1])
        # The corners go round with growing angle, so the outward normal is (dy, -dx).
        normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1) / length[:, None]
        side = _planes(normal, normal[:, 0] * a[:, 0] + normal[:, 1] * a[:, 1])
        distance = side if distance is None else np.maximum(distance, side, out=distance)
    assert distance is not None
    return distance


def _circle_distance(p: ShapeParameters, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    at = np.arange(SIZE) + 0.5
    across, down = ((at - p.center[rows, axis, None]) ** 2 for axis in (0, 1))
    distance = down.astype(np.float32)[:, :, None] + across.astype(np.float32)[:, None, :]
    np.sqrt(distance, out=distance)
    distance -= (p.diameter[rows] / 2.0).astype(np.float32)[:, None, None]
    return distance


def _rectangle_distance(p: ShapeParameters, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    along = p.direction[rows]
    sides = _rectangle_sides(p.diameter[rows], p.aspect[rows])
    distances = []
    for normal, side in zip(
        (along, np.stack([-along[:, 1], along[:, 0]], axis=1)), sides, strict=True
    ):
        center = p.center[rows]
        axis = _planes(normal, normal[:, 0] * center[:, 0] + normal[:, 1] * center[:, 1])
        np.abs(axis, out=axis)
        axis -= (side / 2.0).astype(np.float32)[:, None, None]
        distances.append(axis)
    return np.maximum(distances[0], distances[1], out=distances[0])


@lru_cache(maxsize=1)
def _noise_table() -> NDArray[np.float32]:
    """255 NOISE z for the 65,536 equally likely normal quantiles z, in gray levels.

    The decimals that could differ between machines are rounded away.
    """
    normal = NormalDist(0.0, 255.0 * NOISE)
    upper = [round(normal.inv_cdf((2**15 + k + 0.5) / 2**16), 4) for k in range(2**15)]
    half = np.array(upper, dtype=np.float32)
    return np.concatenate([-half[::-1], half])


def coverage(p: ShapeParameters) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, 0 to 1: float32 (n, SIZE, SIZE)."""
    distance = np.empty((len(p.labels), SIZE, SIZE), dtype=np.float32)
    for label, function in enumerate((_triangle_distance, _circle_distance, _rectangle_distance)):
        rows = np.flatnonzero(p.labels == label)
        distance[rows] = function(p, rows)
    # An outline of width t is the band where -t <= distance <= 0.
    half_width = (np.where(p.outline > 0, p.outline, _FILLED) / 2).astype(np.float32)[:, None, None]
    distance += half_width
    np.abs(distance, out=distance)
    covered: NDArray[np.float32] = np.subtract(half_width + np.float32(0.5), distance, out=distance)
    np.clip(covered, 0.0, 1.0, out=covered)
    return covered


def noise_words(seed: int, stream: int, count: int, start: int) -> NDArray[np.uint16]:
    """The random words behind the noise of images ``start`` to ``start + count - 1``."""
    words = random.bits(seed, stream, count * _NOISE_WORDS, start * _NOISE_WORDS)
    return words.astype("<u4").view("<u2")


def finish(levels: NDArray[np.float32], noise: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Add noise to gray levels, 0.5 to 255.5, in place and cut them to 8 bits: (n, SIZE, SIZE)."""
    levels += np.take(_noise_table(), noise).reshape(levels.shape)
    np.clip(levels, 0.0, 255.0, out=levels)
    rounded: NDArray[np.uint8] = levels.astype(np.uint8)
    return rounded


def _draw(p: ShapeParameters, noise: NDArray[np.uint16]) -> NDArray[np.uint8]:
    levels = coverage(p)
    levels *= (255.0 * (p.foreground - p.background)).astype(np.float32)[:, None, None]
    # The half makes the later truncation round to the nearest gray level.
    levels += (255.0 * p.background + 0.5).astype(np.float32)[:, None, None]
    return finish(levels, noise)


def shape_levels(
    n: int, seed: int, split: str = "train", start: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw shape images as 8-bit gray levels: (uint8 (n, 72, 72, 1), labels int32 (n,)).

    Raises:
        ValueError: for a negative n, seed or start, or an unknown split.
    """
    for name, value in (("n", n), ("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    stream = _NOISE_STREAM + split_index(split)
    images = np.empty((n, SIZE, SIZE, 1), dtype=np.uint8)
    labels = np.empty(n, dtype=np.int32)
    for at in range(0, n, _CHUNK):
        count = min(_CHUNK, n - at)
        parameters = shape_parameters(count, seed, split, start + at)
        noise = noise_words(seed, stream, count, start + at)
        images[at : at + count, ..., 0] = _draw(parameters, noise)
        labels[at : at + count] = parameters.labels
    return images, labels


def shapes(
    n: int, seed: int, split: str = "train", start: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Draw ``n`` labelled shape images, from number ``start`` of a split on.

    One triangle, circle or rectangle lies wholly inside each image, filled or as an outline of 1 to
    3 px, with a circumscribed diameter of 12 to 48 px; Gaussian noise of sigma 0.03 is added and
    the result rounded to one of 256 gray levels. "train" and "test" share no random numbers.

    Args:
        n: number of images.
        seed: an integer >= 0.
        split: "train" or "test".
        start: number of the first image.

    Returns:
        images float32 (n, 72, 72, 1) in 0 to 1, labels int32 (n,) that index ``CLASSES``.

    Raises:
        ValueError: for a negative n, seed or start, or an unknown split.
    """
    levels, labels = shape_levels(n, seed, split, start)
    images: NDArray[np.float32] = levels.astype(np.float32) / np.float32(255.0)
    return images, labels
