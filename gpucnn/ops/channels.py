"""NumPy arithmetic per channel, the last axis, that is fast also when there are few channels."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.threads import map_chunks, scratch

_LONG_ROW = 1 << 13  # elements: over rows this long a NumPy loop is hardly overhead
SHORT_ROW = 1 << 8  # elements: enough for the matrix product that adds rows up
_CHUNK = 1 << 19  # elements, at most: threads seldom wait for the interpreter
_LITTLE = 1 << 16  # elements: for less a second thread would hardly begin
# Standard deviations from 0 up to which float32 need not be centred first: where squares are added
# up, which lose two digits per digit of it, and elsewhere. Sums of a few rows may cancel anyhow.
_NEAR_SQUARES, _NEAR = 2.0, 6.0
_MANY = 256  # rows


@functools.cache
def divisor(n: int, most: int) -> int:
    """The largest divisor of n that is at most ``most``, and at least 1."""
    return next((k for k in range(min(n, most), 1, -1) if n % k == 0), 1)


def fold(x: NDArray[Any], length: int = _LONG_ROW) -> tuple[NDArray[Any], int]:
    """x (…, C) as (rows / k, k·C) and k, so that rows are long also when C is small."""
    C = x.shape[-1]
    k = divisor(x.size // C, length // C)
    return x.reshape(-1, k * C), k


def pixels(images: NDArray[Any]) -> NDArray[Any]:
    """Images whose element is a whole pixel: NumPy copies it in one go. A view (…, 1)."""
    return images.view(np.dtype((np.void, images.shape[-1] * images.itemsize)))


def column_sums(x: NDArray[Any], C: int) -> NDArray[Any]:
    """Per channel, the sum over a piece of x, in float64."""
    rows, k = fold(x.reshape(-1, C), SHORT_ROW)
    sums = np.ones(len(rows), rows.dtype) @ rows
    return cast("NDArray[Any]", sums.reshape(k, C).sum(axis=0, dtype=np.float64))


def tile(v: NDArray[Any], k: int, dtype: Any) -> NDArray[Any]:
    """v (C) k times in a row."""
    out = np.empty((k, len(v)), dtype)
    out[...] = v
    return out.reshape(-1)


def rows_per_chunk(rows: int, width: int) -> int:
    """How many of ``rows`` rows make a chunk: half of them at most, for two threads."""
    if rows * width <= _LITTLE:
        return rows
    return max(1, min(_CHUNK // width, -(-rows // 2)))


def chunk_rows(folded: NDArray[Any]) -> int:
    """:func:`rows_per_chunk` of an array of two axes."""
    return rows_per_chunk(*folded.shape)


def product_sums(x: NDArray[Any], y: NDArray[Any], C: int) -> NDArray[Any]:
    """Per channel, the sum of x·y over pieces of folded arrays, in float64."""
    sums = np.einsum("rc,rc->c", x, y)
    return cast("NDArray[Any]", sums.reshape(-1, C).sum(axis=0, dtype=np.float64))


def near(distance: NDArray[Any], x: NDArray[Any]) -> bool:
    """Whether channels lie so near 0, in standard deviations, that sums over x cancel little."""
    return x.size >= _MANY * x.shape[-1] and bool((np.abs(distance) <= _NEAR).all())


def statistics(x: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The mean and the biased variance of each channel, in float64.

    A chunk far from 0 is centred on its own mean before it is squared, and the chunks are joined in
    order by the formula of Chan, Golub and LeVeque (1983): no cancellation, whatever the mean.
    """
    folded, k = fold(x)
    C = x.shape[-1]

    def part(start: int, stop: int) -> tuple[int, NDArray[Any], NDArray[Any]]:
        rows = folded[start:stop]
        n = len(rows) * k
        mean = column_sums(rows, C) / n
        squares = product_sums(rows, rows, C) - n * mean * mean
        if n >= _MANY and (mean * mean * n <= _NEAR_SQUARES**2 * squares).all():
            return n, mean, squares
        center = mean.astype(x.dtype)
        moved = scratch("batch_norm centred", rows.shape, x.dtype)
        np.subtract(rows, tile(center, k, x.dtype), out=moved)
        excess = column_sums(moved, C)
        squares = product_sums(moved, moved, C) - excess * excess / n
        return n, center + excess / n, squares

    parts = map_chunks(part, len(folded), chunk_rows(folded))
    counts = np.array([n for n, _, _ in parts], np.float64)[:, None]
    means = np.stack([mean for _, mean, _ in parts])
    total = counts.sum()
    mean = (counts * means).sum(axis=0) / total
    squares = np.stack([part[2] for part in parts]) + counts * (means - mean) ** 2
    return mean, squares.sum(axis=0) / total


def normalise(
    x: NDArray[Any], center: NDArray[Any], scale: NDArray[Any], shift: NDArray[Any]
) -> NDArray[Any]:
    """y = (x - center)·scale + shift, one number each per channel."""
    folded, k = fold(x)
    y = buffers.empty_like(x)
    out = y.reshape(folded.shape)
    direct = near(center * scale, x)
    if direct:
        shift = shift - center * scale
    c, a, b = (tile(v, k, x.dtype) for v in (center, scale, shift))

    def part(start: int, stop: int) -> None:
        given, rows = folded[start:stop], out[start:stop]
        if not direct:
            np.subtract(given, c, out=rows)
            given = rows
        np.multiply(given, a, out=rows)
        np.add(rows, b, out=rows)

    map_chunks(part, len(folded), chunk_rows(folded))
    return y
