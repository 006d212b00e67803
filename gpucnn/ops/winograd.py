"""Winograd's minimal filtering for 3×3 convolutions on the CPU, as matrix products.

Along one axis, m neighbouring outputs y of three taps g read r = m + 2 inputs d. Seen as a product
of polynomials, evaluated at r − 1 points p and at ∞ and interpolated (Toom and Cook),

    y = Aᵀ[(G g) ⊙ (Bᵀ d)],  r multiplications where the definition has 3·m.

Along both axes a tile of 4×4 outputs takes 36 products instead of 144. The sums over channels come
between the products and Aᵀ, so that the convolution is r·r matrix products of tiles × channels. The
gradient of the filter is the adjoint: Gᵀ[(Bᵀ d) ⊙ (A dy)], summed over tiles.

    point   row of Bᵀ (powers of t)   row of G, divided by      column of Aᵀ
      p     Π (t − other points)      1 p p²   Π (p − others)   1 p … p^(m−1)
      ∞     Π (t − points)            0 0 1           1         0 … 0 1

Points near 1 keep the powers small: 0, ±1/√2 and ±√2 (without −√2 for m = 3) lose half as much in
float32 as the usual 0, ±1, ±2. The transforms are small matrices times long runs of memory: that is
why images lie innermost here, beside the channels. They spread an infinity or a NaN over its tile:
where a result is not finite, the caller computes the definition.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.channels import pixels
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.threads import scratch

Floats = NDArray[Any]

K = 3
_POINTS = (0, math.sqrt(0.5), -math.sqrt(0.5), math.sqrt(2), -math.sqrt(2))  # the first m + 1
_SIZES = (3, 4)  # m

_SUMS = 3  # multiply-adds of a matrix product in the time of one element's transforms
_CHANNELS = 15  # rounding errors are hidden among those of a sum of 9·15 terms, not of fewer
_PIXELS = 16  # per channel: enough for the time of the filters not to count
_UNIT = 1 << 19  # elements of the products' inputs of a piece
_RUN = 256  # numbers: enough for a small matrix times a run of memory


class Axis(NamedTuple):
    """Tiles along one axis: their outputs m and inputs r, how many there are, the matrices."""

    m: int
    r: int
    tiles: int
    BT: Floats
    G: Floats
    AT: Floats


@functools.cache
def axis(outputs: int, dtype: Any) -> Axis:
    """The tiles of the size that takes the fewest products, and of those the smaller."""
    m = min(_SIZES, key=lambda m: (-(-outputs // m) * (m + 2), m))
    points, tiles = _POINTS[: m + 1], -(-outputs // m)
    others = [[q for q in points if q != p] for p in points]
    BT = np.zeros((m + 2, m + 2))
    for row, roots in zip(BT, [*others, points], strict=True):
        row[: len(roots) + 1] = np.poly(roots)[::-1]
    pairs = zip(points, others, strict=True)
    G = [[p**k / math.prod(p - q for q in o) for k in range(K)] for p, o in pairs]
    AT = np.array([[*(p**k for p in points), float(k == m - 1)] for k in range(m)])
    matrices = (np.ascontiguousarray(a, dtype) for a in (BT, [*G, [0, 0, 1]], AT))
    return Axis(m, m + 2, tiles, *matrices)


def _axes(s: ConvGeometry, dtype: Any) -> tuple[Axis, Axis]:
    return axis(s.OH, np.dtype(dtype)), axis(s.OW, np.dtype(dtype))


def is_plain_3x3(s: ConvGeometry) -> bool:
    """3×3 taps of images in one group, without stride or dilation."""
    return (s.dims, s.G, s.KH, s.KW, s.SH, s.SW, s.DH, s.DW) == (2, 1, 3, 3, 1, 1, 1, 1)


def may_pay(s: ConvGeometry) -> bool:
    """Whether there are pixels enough for the filters, and terms enough for the rounding."""
    enough = s.outputs >= _PIXELS * max(s.C, s.OC) and min(s.C, s.OC) >= _CHANNELS
    return enough and is_plain_3x3(s)


def cost(s: ConvGeometry) -> float:
    """The time of an output pixel, in multiply-adds of a filter's tap; infinite where not possible.

    The definition takes C·OC, and its windows have to be unfolded.
    """
    if not may_pay(s):
        return math.inf
    products = math.prod(a.r * a.tiles for a in _axes(s, np.float32))
    return products / (s.OH * s.OW) * (s.C * s.OC / 9 + _SUMS * (s.C + s.OC))


def _row(s: ConvGeometry, n: int) -> int:
    """Elements of the products' inputs or outputs of a row of tiles."""
    down, across = _axes(s, np.float32)
    return down.r * across.r * across.tiles * n * max(s.C, s.OC)


def images_per_chunk(s: ConvGeometry) -> int:
    """Images whose parts stay in the cache; half of a batch at most, for two threads."""
    tiles = _axes(s, np.float32)[0].tiles
    least = -(-_RUN // min(s.C, s.OC))
    return max(1, min(max(least, _UNIT // (tiles * _row(s, 1))), -(-s.N // 2)))


def bands(rows: int, tiles: int) -> list[tuple[int, int]]:
    """(first row of tiles, rows of tiles): pieces of ``rows`` rows, at least one."""
    rows = max(1, rows)
    return [(t, min(rows, tiles - t)) for t in range(0, tiles, rows)]


def runs(a: Floats, tiles: int, step: int, count: int) -> Floats:
    """A view (…, tiles, count, run) of contiguous rows (…, rows, run): [t, j] is row step·t + j."""
    *outer, row, item = a.strides
    shape = (*a.shape[:-2], tiles, count, a.shape[-1])
    return cast("Floats", np.ndarray(shape, a.dtype, a, 0, (*outer, step * row, row, item)))


def fill(padded: Floats, images: Floats, top: int, left: int) -> None:
    """Images (n, H, W, C) into (rows, columns, n, C), the first pixel at (top, left); else 0."""
    high, wide = padded.shape[:2]
    images = images.transpose(1, 2, 0, 3)
    begin = min(max(-top, 0), len(images))
    end = max(begin, min(high - top, len(images)))
    first, last = max(begin + top, 0), max(end + top, 0)
    right = min(left + images.shape[1], wide)
    padded[:first] = 0
    padded[last:] = 0
    padded[first:last, :left] = 0
    padded[first:last, right:] = 0
    inside = images[begin:end, : right - left]
    np.copyto(pixels(padded[first:last, left:right]), pixels(inside))


def _transformed(
    name: str, images: Floats, at: tuple[int, int], down: tuple[Any, ...], across: tuple[Any, ...]
) -> Floats:
    """Tiles of a few images, transformed along both axes: (r, r, tiles · images, channels).

    down, across: (tiles, rows from one to the next, their matrix).
    """
    n, C = len(images), images.shape[-1]
    (tiles, step, left), (columns, stride, right) = down, across
    high, wide = (tiles - 1) * step + left.shape[1], (columns - 1) * stride + right.shape[1]
    padded = scratch("winograd padded", (high, wide, n, C), images.dtype)
    fill(padded, images, *at)
    half = scratch("winograd half", (len(left), tiles, wide, n * C), images.dtype)
    rows = runs(padded.reshape(high, -1), tiles, step, left.shape[1])
    np.matmul(left, rows, out=half.reshape(len(left), tiles, -1).swapaxes(0, 1))
    whole = scratch(name, (len(left), len(right), tiles, columns, n * C), images.dtype)
    pieces = runs(half, columns, stride, right.shape[1])
    np.matmul(right, pieces, out=whole.transpose(0, 2, 3, 1, 4))
    return whole.reshape(len(left), len(right), -1, C)


def _inputs(x: Floats, s: ConvGeometry, first: int, tiles: int) -> Floats:
    """Bᵀ x B of some rows of tiles of a few images: (r, r, tiles · images, C)."""
    down, across = _axes(s, x.dtype)
    at = s.PT - down.m * first, s.PL
    each = (tiles, down.m, down.BT), (across.tiles, across.m, across.BT)
    return _transformed("winograd inputs", x, at, *each)


def _gradients(dy: Floats, s: ConvGeometry, first: int, tiles: int) -> Floats:
    """A dy Aᵀ of some rows of tiles: (r, r, tiles · images, OC)."""
    down, across = _axes(s, dy.dtype)
    each = (tiles, down.m, down.AT.T), (across.tiles, across.m, across.AT.T)
    return _transformed("winograd outputs", dy, (-down.m * first, 0), *each)


def _outputs(m: Floats, s: ConvGeometry, tiles: int, y: Floats) -> None:
    """y = Aᵀ m A: m (r, r, tiles · images, OC) -> y (n, rows, OW, OC)."""
    down, across = _axes(s, m.dtype)
    n, high = y.shape[:2]
    m = m.reshape(down.r, across.r, tiles, across.tiles, n * s.OC).transpose(0, 2, 3, 1, 4)
    half = scratch("winograd half", (down.r, tiles, across.tiles, across.m, n * s.OC), m.dtype)
    np.matmul(across.AT, m, out=half)
    wide = across.tiles * across.m
    images = scratch("winograd padded", (tiles, down.m, wide * n * s.OC), m.dtype)
    np.matmul(down.AT, half.reshape(down.r, tiles, -1).swapaxes(0, 1), out=images)
    whole = images.reshape(tiles * down.m, wide, n, s.OC)
    np.copyto(pixels(y), pixels(whole[:high, : s.OW]).transpose(2, 0, 1, 3))


def filters(w: Floats, s: ConvGeometry) -> Floats:
    """G w Gᵀ: w (OC, 3, 3, C) -> (r, r, C, OC)."""
    down, across = _axes(s, w.dtype)
    taps = np.ascontiguousarray(w.transpose(1, 2, 3, 0)).reshape(K, -1)
    half = (down.G @ taps).reshape(down.r, K, -1)
    return cast("Floats", np.matmul(across.G, half).reshape(down.r, across.r, s.C, s.OC))


def _taps(total: Floats, s: ConvGeometry) -> Floats:
    """The adjoint of :func:`filters`: (r, r, C, OC) -> (OC, 3, 3, C)."""
    down, across = _axes(s, total.dtype)
    half = np.matmul(across.G.T, total.reshape(down.r, across.r, -1))
    both = down.G.T @ half.reshape(down.r, -1)
    return cast("Floats", both.reshape(K, K, s.C, s.OC).transpose(3, 0, 1, 2))


def forward(x: Floats, g: Floats, s: ConvGeometry, y: Floats) -> bool:
    """y = the convolution with :func:`filters`; False where it is not finite.

    x (n,H,W,C), g (r,r,C,OC), y (n,OH,OW,OC), a few images.
    """
    down = _axes(s, x.dtype)[0]
    for first, tiles in bands(2 * _UNIT // _row(s, len(x)), down.tiles):
        v = _inputs(x, s, first, tiles)
        m = scratch("winograd outputs", (*v.shape[:3], s.OC), x.dtype)
        np.matmul(v, g, out=m)
        _outputs(m, s, tiles, y[:, down.m * first : down.m * (first + tiles)])
    return bool(np.isfinite(np.vdot(y, y)))


def weight_gradient(dy: Floats, x: Floats, s: ConvGeometry) -> Floats | None:
    """The gradient (OC, 3, 3, C) of the filter by a few images; None where it is not finite."""
    total: Any = 0
    rows = _axes(s, x.dtype)[0].tiles
    for first, tiles in bands(2 * _UNIT // _row(s, len(x)), rows):
        v = _inputs(x, s, first, tiles)
        total = total + np.matmul(v.mT, _gradients(dy, s, first, tiles))
    dw = _taps(total, s)
    return dw if np.isfinite(np.vdot(dw, dw)) else None
