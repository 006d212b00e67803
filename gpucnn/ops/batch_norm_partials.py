"""Batch normalisation from what a convolution left behind: ``kernels/batch_norm.cu``."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpucnn.device import Array
from gpucnn.ops.batch_norm_launches import launch_join_moments
from gpucnn.primitive import primitive


class Running(NamedTuple):
    """The running statistics (C) that those of a batch go into, or None; momentum and eps if a
    kernel is to make these itself.
    """

    mean: Array | None
    var: Array | None
    join: tuple[float, float] | None = None


# primitives


@primitive
def batch_norm_join_moments(
    moments: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """The statistics of a batch from the moments of its parts; updates the running ones

    moments (4, C, chunks): count, pivot, mean − pivot, sum of squared deviations from the mean ->
    mean − x[0] (C), where x[0] is the pivot of the first chunk, and 1/√(var + eps) (C).
    Source: Chan, Golub and LeVeque (1983).
    """
    counts, pivots, distances, squares = moments.astype(np.float64)
    means, total = pivots + distances, counts.sum(axis=1)
    mean = (counts * means).sum(axis=1) / total
    squares = squares.sum(axis=1) + (counts * (means - mean[:, None]) ** 2).sum(axis=1)
    if running_mean is not None and running_var is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * squares / (total - 1)
    delta, invstd = mean - pivots[:, 0], 1 / np.sqrt(squares / total + eps)
    return delta.astype(moments.dtype), invstd.astype(moments.dtype)


@batch_norm_join_moments.kernel()
def _launch_join_moments(
    moments: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    return launch_join_moments(moments, running_mean, running_var, momentum, eps)
