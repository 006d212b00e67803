"""Batches of training images: gathered, augmented and normalised."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpucnn.ops.augmentation import Augmentation, shares
from gpucnn.ops.batch import BatchPlan

from ..cases.batches import BATCH, BatchCase
from .problem import Arguments, Problem, normal, size, words

CLASSES = 10

# Data sets of a few batches, so that they are made at once. The usual changes of each.
TYPICAL = {
    "fashion-flip-b128": BatchCase((512, 28, 28, 1), 128, "flip"),
    "cifar-crop-b64": BatchCase((256, 32, 32, 3), 64, "flip,crop=4"),
    "shapes-mixup-b32": BatchCase((64, 72, 72, 1), 32, "flip,shift=2,cutout=8,mixup=0.2"),
    "segmentation-b16": BatchCase((64, 72, 72, 1), 16, "flip,crop=4,padding=reflect", True),
}
LAYERS = {
    "shapes-b256": BatchCase((1024, 72, 72, 1), 256),
    "cifar-crop-b512": BatchCase((2048, 32, 32, 3), 512, "flip,crop=4,cutout=8"),
    "cifar-mixup-b512": BatchCase((2048, 32, 32, 3), 512, "flip,crop=4,contrast=0.2,mixup=0.2"),
    "imagenet-b128": BatchCase((256, 224, 224, 3), 128, "flip,crop=16,brightness=0.2"),
}


def arguments(case: BatchCase, seed: int) -> Arguments:
    """A data set of random levels, with an order for even epochs and one for odd."""
    rng = np.random.default_rng([seed, *case.images])
    M, H, W, C = case.images
    options = Augmentation.parse(case.augmentation)
    images = rng.integers(0, 256, case.images, np.uint8)
    labels = rng.integers(0, CLASSES, (M, H, W) if case.per_pixel else M, np.int32)
    order = np.stack([rng.permutation(M), rng.permutation(M)]).astype(np.int32)
    position = np.array([3, 1], np.int32)
    scale = (1 / (255 * (0.2 + 0.05 * np.abs(normal(seed, 1, C))))).astype(np.float32)
    offset = normal(seed, 2, C)
    blend = shares(options.mixup).copy() if options.mixup else None
    plan = BatchPlan(case.N, CLASSES, seed, options)
    return images, labels, order, position, scale, offset, blend, plan


def gathers(name: str, case: BatchCase, group: str) -> Iterator[Problem]:
    """The one primitive."""
    _, H, W, C = case.images
    options = Augmentation.parse(case.augmentation)
    elements, constants = case.N * H * W * C, words((C,), (C,), (2,))
    labels = (case.N, H, W) if case.per_pixel else (case.N,)
    target = (case.N, CLASSES) if options.mixup else labels
    mixed = (case.N,) if options.mixup else None
    moved = elements + words((elements,), labels, target, (case.N,), mixed) + constants
    each = 2 + 3 * bool(options.brightness or options.contrast)
    flops = elements * (2 * each + 3 if options.mixup else each) + 3 * size(target) * bool(mixed)

    def make(seed: int) -> Arguments:
        return arguments(case, seed)

    yield Problem("batch", "gather_batch", name, group, make, moved, flops)


def problems() -> Iterator[Problem]:
    """Every batch."""
    for case in BATCH:
        yield from gathers(str(case), case, "edge")
    for group, table in (("typical", TYPICAL), ("layer", LAYERS)):
        for name, case in table.items():
            yield from gathers(name, case, group)
