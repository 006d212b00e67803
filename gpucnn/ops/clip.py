"""Gradient clipping over flat buffers: ``kernels/clip.cu``."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from gpucnn.arrivals import arrivals
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.ops.optimizer_parts import Parts
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks, scratch

# geometry

_MOST_CHUNKS = 1024


def _chunk(n: int) -> int:
    """Elements per partial sum, a multiple of 4."""
    return max(16 * THREADS, -(-n // (4 * _MOST_CHUNKS)) * 4)


# primitives

_CHUNK = 1 << 15  # elements: a buffer and its squares in float64 fit a core's cache


@primitive
def clip_norm(gradients: Sequence[Array], max_norm: float) -> Array:
    """In place: g *= min(1, max_norm/(‖g‖ + 1e-6)) over all buffers (n) together -> ‖g‖, 0-d.

    ‖g‖ is the square root of the sum of squares, added in float64. Source:
    torch.nn.utils.clip_grad_norm_.
    """
    total = 0.0
    for g in gradients:

        def part(start: int, stop: int, g: Array = g) -> float:
            wide = scratch("clip", (stop - start,), np.float64)
            wide[...] = g[start:stop]
            return float(np.dot(wide, wide))

        total += sum(map_chunks(part, g.size, _CHUNK))
    norm = math.sqrt(total)
    share = max_norm / (norm + 1e-6)
    coefficient = 1.0 if share > 1.0 else share
    for g in gradients:

        def scale(start: int, stop: int, g: Array = g) -> None:
            g[start:stop] *= g.dtype.type(coefficient)

        map_chunks(scale, g.size, _CHUNK)
    return np.asarray(norm, gradients[0].dtype)


@primitive
def clip_value(gradients: Sequence[Array], limit: float) -> None:
    """In place: g = min(max(g, −limit), limit), NaN stays; buffers (n).

    Source: torch.nn.utils.clip_grad_value_.
    """
    for g in gradients:

        def part(start: int, stop: int, g: Array = g) -> None:
            np.clip(g[start:stop], -limit, limit, out=g[start:stop])

        map_chunks(part, g.size, _CHUNK)


_kernels = KernelFile("clip")


@clip_norm.kernel()
def _launch_clip_norm(gradients: Sequence[Array], max_norm: float) -> Array:
    chunks = [-(-g.size // _chunk(g.size)) for g in gradients]
    like = gradients[0]
    partial = empty(like, (sum(chunks),), np.float64)
    start = 0
    for g, count in zip(gradients, chunks, strict=True):
        sums = partial[start : start + count]
        _kernels["sum_of_squares"]((count,), (THREADS,), sums, g, g.size, _chunk(g.size))
        start += count
    norm, coefficient = empty(like, (1,)), empty(like, (1,))
    finish = _kernels["clip_coefficient"]
    finish((1,), (THREADS,), norm, coefficient, partial, partial.size, max_norm)
    launch_scale(gradients, coefficient)
    return norm.reshape(())


def launch_gradient_norm(g: Array, parts: Parts, max_norm: float) -> tuple[Array, Array]:
    """‖g‖ over the parts of a flat buffer g (n), 0-d, and the coefficient of :func:`clip_norm` (1).

    Gradients that lie in slices are added, in place. The coefficient is for the step to multiply
    the gradients by.
    """
    count = parts.table.shape[0]
    partial = empty(g, (min(count, _MOST_CHUNKS),), np.float64)
    norm, coefficient = empty(g, (1,)), empty(g, (1,))
    arrays = norm, coefficient, partial, arrivals(g, 1), g, parts.table, parts.slices
    _kernels["gradient_norm"](partial.shape, (THREADS,), *arrays, count, max_norm)
    return norm.reshape(()), coefficient


def launch_scale(gradients: Sequence[Array], coefficient: Array) -> None:
    """g *= coefficient (1), in place."""
    for g in gradients:
        _kernels["clip_scale"](four_each(g.size), (THREADS,), g, coefficient, g.size)


@clip_value.kernel()
def _launch_clip_value(gradients: Sequence[Array], limit: float) -> None:
    for g in gradients:
        _kernels["clip_clamp"](four_each(g.size), (THREADS,), g, g.size, limit)
