"""Gray 72 x 72 images of one or two filled shapes, and the label of every pixel.

Drawn like the images of ``gpucnn.data.shapes``, from a seed, image by image. A second shape covers
the first. A pixel belongs to the last shape that covers half of it or more, else to the background.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from gpucnn import random
from gpucnn.data import shapes

CLASSES: Final = ("background", *shapes.CLASSES)
DIAMETERS: Final = (20.0, 44.0)

_SHAPES: Final = 2
_PARAMETER_STREAM: Final = 5 << 32
_NOISE_STREAM: Final = 6 << 32
_CHUNK: Final = 32
_SECOND_GRAY: Final = 13  # numbers of the second shape that a filled shape does not need
_TWO: Final = 14


def _second_gray(
    uniform: NDArray[np.float64], background: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Uniform over the grays at least 0.25 from the background."""
    below = np.maximum(background - 0.25, 0.0)
    above = np.maximum(0.75 - background, 0.0)
    at = uniform * (below + above)
    gray: NDArray[np.float64] = np.where(at < below, at, at - below + background + 0.25)
    return gray


def segmentation_levels(
    n: int, seed: int, split: str = "train", start: int = 0
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Draw images ``start`` to ``start + n - 1`` of a split with their label maps.

    Each image holds one or two filled shapes, by chance, with circumscribed diameters of 20 to
    44 px, wholly inside; their grays are at least 0.25 from the background's.

    Returns:
        images uint8 (n, 72, 72, 1), labels int32 (n, 72, 72) that index ``CLASSES``.

    Raises:
        ValueError: for a negative n, seed or start, or an unknown split.
    """
    for name, value in (("n", n), ("seed", seed), ("start", start)):
        if value < 0:
            raise ValueError(f"{name} must be >= 0, got {value}")
    index = shapes.split_index(split)
    images = np.empty((n, shapes.SIZE, shapes.SIZE, 1), np.uint8)
    labels = np.zeros((n, shapes.SIZE, shapes.SIZE), np.int32)
    draws = _SHAPES * shapes.DRAWS
    for at in range(0, n, _CHUNK):
        count = min(_CHUNK, n - at)
        first = start + at
        uniform = random.uniform(seed, _PARAMETER_STREAM + index, count * draws, first * draws)
        uniform = uniform.reshape(count, _SHAPES, shapes.DRAWS)
        uniform[:, :, shapes.FILL_DRAW] = 0.0
        below, above = (shapes.parameters_from(uniform[:, i], *DIAMETERS) for i in range(_SHAPES))
        spare = uniform[:, 1].astype(np.float64)
        two = spare[:, _TWO] < 0.5
        levels = np.empty((count, shapes.SIZE, shapes.SIZE), np.float32)
        levels[...] = (255.0 * below.background + 0.5)[:, None, None]
        grays = (below.foreground, _second_gray(spare[:, _SECOND_GRAY], below.background))
        for shape, gray, drawn in zip(
            (below, above), grays, (np.ones(count, bool), two), strict=True
        ):
            covered = shapes.coverage(shape) * drawn[:, None, None]
            levels += covered * ((255.0 * gray + 0.5).astype(np.float32)[:, None, None] - levels)
            np.copyto(
                labels[at : at + count], shape.labels[:, None, None] + 1, where=covered >= 0.5
            )
        noise = shapes.noise_words(seed, _NOISE_STREAM + index, count, first)
        images[at : at + count, ..., 0] = shapes.finish(levels, noise)
    return images, labels
