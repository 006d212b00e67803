"""Parts of a dataset, drawn by seed."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from gpucnn import random
from gpucnn.data.dataset import Dataset

_STREAM: Final = 5 << 32


def split(dataset: Dataset, share: float, seed: int, part: int = 0) -> tuple[Dataset, Dataset]:
    """Set a share of a dataset aside.

    Where images have one label, each class gives the same share, rounded; which of its images
    depends on (seed, part) alone. Both parts keep the order of the images.

    Args:
        dataset: at least two images.
        share: of the images that are set aside, above 0 and below 1; at least one, and one stays.
        seed: an integer >= 0.
        part: which draw it is, so that two parts of one dataset are drawn independently.

    Returns:
        What stays, and what was set aside, which is not augmented.

    Raises:
        ValueError: an argument out of range.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be above 0 and below 1, got {share}")
    n = len(dataset)
    if n < 2:
        raise ValueError(f"dataset must hold two images or more to split it, got {n}")
    order = random.permutation(seed, _STREAM + part, n)
    groups = np.zeros(n, np.int64) if dataset.per_pixel else dataset.labels[order]
    by_group = order[np.argsort(groups, kind="stable")]
    # Evenly spaced along the classes: each gives its share, and the whole is rounded once.
    taken = max(1, min(n - 1, round(share * n)))
    at = (np.arange(taken) * n + n // 2) // taken
    aside = np.zeros(n, np.bool_)
    aside[by_group[at]] = True
    return _rows(dataset, ~aside), replace(_rows(dataset, aside), augmentation=None)


def _rows(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return replace(dataset, images=dataset.images[rows], labels=dataset.labels[rows])
