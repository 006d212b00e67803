"""Winograd's minimal filtering along the height, for 3×3 convolutions of few channels on the CPU.

m outputs above each other take r = m + 2 products of a row of inputs with a row of filters instead
of 3·m: the sums and the points are those of :mod:`gpucnn.ops.winograd`. They are read from the
images and written to them, whole rows at a time. Along the width the convolution stays what it is.
Pixels beside each other are one run of memory, so that windows which begin three pixels apart are
the rows of a matrix without a copy; three such matrices hold all windows. A row ends in the zeros
that the next begins with. Transforms along one axis are half of those along both, which with few
channels cost more than the products; they round less, too. An infinity or a NaN spoils its tile:
where a result is not finite, the caller computes the definition.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.winograd import Axis, K, axis, bands, may_pay
from gpucnn.threads import scratch

Floats = NDArray[Any]

_SUMS = 1.7  # multiply-adds of a matrix product in the time of one element's transforms
_UNIT = 1 << 19  # elements of the products' inputs or outputs of a piece


def cost(s: ConvGeometry) -> float:
    """As :func:`gpucnn.ops.winograd.cost`."""
    if not may_pay(s):
        return math.inf
    down = axis(s.OH, np.float32)
    cells = down.r * down.tiles * _period(s) / (s.OH * s.OW)
    return cells * (s.C * s.OC / 3 + _SUMS * (s.C + s.OC))


def _seen(s: ConvGeometry) -> int:
    """The columns of the images that a window reads."""
    return min(s.W, s.OW + K - 1 - s.PL)


def _period(s: ConvGeometry) -> int:
    """Cells from one row of padded images to the next, in which a window may end."""
    right = s.OW + K - 1 - s.PL - _seen(s)
    return max(_seen(s) + max(s.PL, right), s.OW)


def _row(s: ConvGeometry, n: int) -> int:
    """Elements of the products' inputs or outputs of a row of tiles."""
    return axis(s.OH, np.float32).r * n * _period(s) * max(s.C, s.OC)


def images_per_chunk(s: ConvGeometry) -> int:
    """Images whose parts stay in the cache; half of a batch at most, for two threads."""
    each = axis(s.OH, np.float32).tiles * _row(s, 1)
    return max(1, min(_UNIT // each, -(-s.N // 2)))


@functools.cache
def _alike(
    tiles: int, step: int, count: int, top: int, high: int
) -> tuple[tuple[int, int, int, int], ...]:
    """Tiles of which an image of ``high`` rows has the same rows: (first, how many, rows from, to).

    Tile t begins in row step·t − top and has ``count`` rows.
    """
    spans = [
        (begin := min(max(0, top - step * t), count), max(begin, min(count, high + top - step * t)))
        for t in range(tiles)
    ]
    found, first = [], 0
    for rows, alike in itertools.groupby(spans):
        number = len(list(alike))
        found.append((first, number, *rows))
        first += number
    return tuple(found)


def _tiles(
    images: Floats, columns: int, tiles: int, step: int, count: int, top: int
) -> Iterator[tuple[slice, slice, Floats | None]]:
    """Tiles of ``count`` rows of a few images (n, rows, width, channels), those alike together.

    Tile t begins in row step·t − top. (which tiles, which of their rows the images have, these as a
    view (tiles, n, rows, columns · channels), None if there are none), in order.
    """
    n, high, _, channels = images.shape
    image, row, _, item = images.strides
    for first, number, begin, end in _alike(tiles, step, count, top, high):
        view = None
        if begin < end:
            shape = (number, n, end - begin, columns * channels)
            strides, at = (step * row, image, row, item), (step * first - top + begin) * row
            view = np.ndarray(shape, images.dtype, images, at, strides)
        yield slice(first, first + number), slice(begin, end), view


def _parts(name: str, s: ConvGeometry, shape: tuple[int, int, int], C: int, dtype: Any) -> Any:
    """Memory of r parts of some rows of tiles of n images, shape = (r, tiles, n): the parts
    (r, tiles, n, cells, C), and (r, cells, C) with a few cells of 0 at the end.
    """
    cells = math.prod(shape[1:]) * _period(s)
    whole = scratch(name, (shape[0], -(-cells // K) * K + K, C), dtype)
    whole[:, cells:] = 0
    return whole[:, :cells].reshape(*shape, -1, C), whole


def _transform(
    matrix: Floats, images: Floats, columns: int, step: int, top: int, left: int, parts: Floats
) -> None:
    """parts (r, tiles, n, cells, channels) = matrix × the tiles of images; 0 beside them."""
    parts[:, :, :, :left] = 0
    parts[:, :, :, left + columns :] = 0
    r, tiles, n, _, channels = parts.shape
    inside = parts.reshape(r, tiles, n, -1)
    inside = inside[..., left * channels : (left + columns) * channels].transpose(1, 2, 0, 3)
    for which, rows, given in _tiles(images, columns, tiles, step, matrix.shape[1], top):
        if given is None:
            inside[which] = 0
        else:
            np.matmul(matrix[:, rows], given, out=inside[which])


def _inputs(x: Floats, s: ConvGeometry, down: Axis, first: int, tiles: int) -> Floats:
    """What is multiplied, of some rows of tiles, as overlapping windows: (r, 3, windows, 3·C)."""
    r = down.r
    parts, whole = _parts("winograd inputs", s, (r, tiles, len(x)), s.C, x.dtype)
    _transform(down.BT, x, _seen(s), down.m, s.PT - down.m * first, s.PL, parts)
    part, pixel, item = whole.strides
    shape = (r, K, whole.shape[1] // K - 1, K * s.C)
    return cast("Floats", np.ndarray(shape, x.dtype, whole, 0, (part, pixel, K * pixel, item)))


def _products(s: ConvGeometry, down: Axis, tiles: int, n: int, dtype: Any) -> tuple[Floats, Floats]:
    """Memory of the parts of outputs: (r, tiles, n, cells, OC), and as matrices (r, 3, …)."""
    parts, whole = _parts("winograd outputs", s, (down.r, tiles, n), s.OC, dtype)
    return parts, whole[:, :-K].reshape(down.r, -1, K, s.OC).swapaxes(1, 2)


def filters(w: Floats, s: ConvGeometry) -> Floats:
    """The filter's side of the products: w (OC, 3, 3, C) -> (r, 1, 3·C, OC)."""
    down = axis(s.OH, w.dtype)
    taps = np.ascontiguousarray(w.transpose(1, 2, 3, 0)).reshape(K, -1)
    return cast("Floats", (down.G @ taps).reshape(down.r, 1, -1, s.OC))


def forward(x: Floats, g: Floats, s: ConvGeometry, y: Floats) -> bool:
    """y = the convolution with :func:`filters`; False where it is not finite.

    x (n,H,W,C), g (r,1,3·C,OC), y (n,OH,OW,OC), a few images.
    """
    n, down = len(x), axis(s.OH, x.dtype)
    for first, tiles in bands(2 * _UNIT // _row(s, n), down.tiles):
        v = _inputs(x, s, down, first, tiles)
        parts, matrices = _products(s, down, tiles, n, x.dtype)
        np.matmul(v, g, out=matrices)
        sums = parts.reshape(down.r, tiles, n, -1)[..., : s.OW * s.OC].transpose(1, 2, 0, 3)
        for which, rows, out in _tiles(y, s.OW, tiles, down.m, down.m, -down.m * first):
            np.matmul(down.AT[rows], sums[which], out=out)
    return bool(np.isfinite(np.vdot(y, y)))


def weight_gradient(dy: Floats, x: Floats, s: ConvGeometry) -> Floats | None:
    """The gradient (OC, 3, 3, C) of the filter by a few images; None where it is not finite."""
    n, down, total = len(x), axis(s.OH, x.dtype), cast("Any", 0)
    for first, tiles in bands(2 * _UNIT // _row(s, n), down.tiles):
        v = _inputs(x, s, down, first, tiles)
        parts, matrices = _products(s, down, tiles, n, x.dtype)
        _transform(down.AT.T, dy, s.OW, down.m, -down.m * first, 0, parts)
        total = total + np.matmul(v.mT, matrices)
    dw = down.G.T @ total.sum(axis=1).reshape(down.r, -1)
    if not np.isfinite(np.vdot(dw, dw)):
        return None
    return cast("Floats", dw.reshape(K, K, s.C, s.OC).transpose(3, 0, 1, 2))
