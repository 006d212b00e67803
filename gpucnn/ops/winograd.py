"""Winograd's minimal filtering F(4×4, 3×3) for convolutions on the CPU, as matrix products.

Along one axis, four neighbouring outputs y of three taps g read six inputs d. Seen as a product of
polynomials, evaluated at the points 0, ±1/√2, ±√2 and ∞ and interpolated,

    y = Aᵀ[(G g) ⊙ (Bᵀ d)],  six multiplications where the definition has twelve.

Along both axes a tile of 4×4 outputs takes 36 products instead of 144. The sums over channels come
between the products and Aᵀ, so that the convolution is 36 matrix products of tiles × channels. The
gradient of the filter is the adjoint: Gᵀ[(Bᵀ d) ⊙ (A dy)], summed over tiles.

    point   row of Bᵀ                     row of G, divided by      column of Aᵀ
      0      1  0  −5/2    0  1  0        1  0  0           1       1  0   0   0
     ±p      0 ∓p/q −1/q ±p   1  0        1 ±p  p²  2p²(p² − q²)    1 ±p   p² ±p³      q = 1/p²
      ∞      0  1    0  −5/2  0  1        0  0  1           1       0  0   0   1

with both squares p² = 1/2 and 2 the inverse of the other, 1/q. The points are near 1 and their
powers stay small: float32 loses half as much as with the usual 0, ±1, ±2. The transforms are sums
of whole rows of images; that is why images lie innermost here, beside the channels. They spread an
infinity or a NaN over its tile: where a result is not finite, the caller computes the definition.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.channels import pixels
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.threads import scratch

Floats = NDArray[Any]

_M = 4  # outputs of a tile along an axis
_R = 6  # its inputs, and the products made of them
_SQUARES = (0.5, 2.0)  # of the points
_POINTS = (math.sqrt(_SQUARES[0]), math.sqrt(_SQUARES[1]))

_SUMS = 11  # multiply-adds of a matrix product in the time of one element's transforms
_PIXELS = 16  # per channel: for fewer the transforms of the filters would count
_UNIT = 1 << 14  # elements of one of the 36 parts of a chunk


def _filter_transform() -> NDArray[np.float64]:
    """G."""
    rows = [[1.0, 0.0, 0.0]]
    for point, square, other in zip(_POINTS, _SQUARES, _SQUARES[::-1], strict=True):
        divisor = 2 * square * (square - other)
        rows += [[1 / divisor, sign * point / divisor, square / divisor] for sign in (1, -1)]
    return np.array([*rows, [0.0, 0.0, 1.0]])


_G = _filter_transform()


def _tiles(size: int) -> int:
    return -(-size // _M)


def is_plain_3x3(s: ConvGeometry) -> bool:
    """3×3 taps of images in one group, without stride or dilation."""
    return (s.dims, s.G, s.KH, s.KW, s.SH, s.SW, s.DH, s.DW) == (2, 1, 3, 3, 1, 1, 1, 1)


def cost(s: ConvGeometry) -> float:
    """The time of an output pixel, in multiply-adds of a filter's tap; infinite where not possible.

    The definition takes C·OC, and its windows have to be unfolded.
    """
    if not is_plain_3x3(s) or s.outputs < _PIXELS * max(s.C, s.OC):
        return math.inf
    cells = _tiles(s.OH) * _tiles(s.OW) * _M * _M
    return cells / (s.OH * s.OW) * (s.C * s.OC / 4 + _SUMS * (s.C + s.OC))


def _part(s: ConvGeometry, n: int) -> int:
    """Elements of a row of tiles in one of the 36 parts."""
    return n * _tiles(s.OW) * max(s.C, s.OC)


def images_per_chunk(s: ConvGeometry) -> int:
    """Images whose parts stay in the cache; half of a batch at most, for two threads."""
    return max(1, min(_UNIT // (_tiles(s.OH) * _part(s, 1)), -(-s.N // 2)))


def _bands(s: ConvGeometry, n: int) -> list[tuple[int, int]]:
    """(first row of tiles, rows of tiles): pieces of a few images that stay in the cache."""
    rows = max(1, 2 * _UNIT // _part(s, n))
    return [(t, min(rows, _tiles(s.OH) - t)) for t in range(0, _tiles(s.OH), rows)]


# One axis, the first: arrays (6 or 4, …).


def _column(numbers: tuple[float, float], like: Floats) -> Floats:
    """Two numbers, one each for the two halves (2, …) of an array."""
    return np.array(numbers, like.dtype).reshape(2, *(1,) * (like.ndim - 1))


def _to_six(d: Floats, v: Floats) -> None:
    """v = Bᵀ d."""
    a = scratch("winograd sums", (6, *d.shape[1:]), d.dtype)
    b = scratch("winograd terms", (2, *d.shape[1:]), d.dtype)
    np.multiply(d[:4], 2, out=a[:4])
    np.subtract(d[2:], a[:4], out=a[:4])  # d2 - 2·d0, d3 - 2·d1, d4 - 2·d2, d5 - 2·d3
    np.multiply(d[1:3], 0.5, out=a[4:])
    np.subtract(d[3:5], a[4:], out=a[4:])  # d3 - d1/2, d4 - d2/2
    np.multiply(a[:2], 0.5, out=b)
    np.subtract(a[2:4], b, out=v[::5])
    odd, even = a[1::3], a[2::3]
    np.multiply(odd, _column(_POINTS, odd), out=odd)
    np.add(even, odd, out=v[1:5:2])
    np.subtract(even, odd, out=v[2:5:2])


def _to_four(m: Floats, y: Floats) -> None:
    """y = Aᵀ m."""
    a = scratch("winograd sums", (2, 2, *m.shape[1:]), m.dtype)
    np.add(m[1:5:2], m[2:5:2], out=a[0])
    np.subtract(m[1:5:2], m[2:5:2], out=a[1])
    np.multiply(a[1], _column(_POINTS, a[1]), out=a[1])
    np.add(a[:, 0], a[:, 1], out=y[:2])
    np.multiply(a[:, 0], _SQUARES[0], out=a[:, 0])
    np.multiply(a[:, 1], _SQUARES[1], out=a[:, 1])
    np.add(a[:, 0], a[:, 1], out=y[2:])
    np.add(y[::3], m[::5], out=y[::3])


def _from_four(dy: Floats, z: Floats) -> None:
    """z = A dy."""
    a = scratch("winograd sums", (2, 2, *dy.shape[1:]), dy.dtype)
    for sums, square in zip(a, _SQUARES, strict=True):
        np.multiply(dy[2:], square, out=sums)
        np.add(dy[:2], sums, out=sums)  # dy0 + p²·dy2, dy1 + p²·dy3
    even, odd = a[:, 0], a[:, 1]
    np.multiply(odd, _column(_POINTS, odd), out=odd)
    np.add(even, odd, out=z[1:5:2])
    np.subtract(even, odd, out=z[2:5:2])
    np.copyto(z[::5], dy[::3])


# Both axes


def _every_fourth(rows: Floats, count: int, tiles: int) -> Floats:
    """A view (count, …, tiles, run) of contiguous rows (…, rows, run): [j, …, t] is row 4·t + j."""
    *outer, row, item = rows.strides
    shape = (count, *rows.shape[:-2], tiles, rows.shape[-1])
    strides = (row, *outer, _M * row, item)
    return cast("Floats", np.ndarray(shape, rows.dtype, rows, 0, strides))


def fill(padded: Floats, images: Floats, top: int, left: int) -> None:
    """Images (n, H, W, C) into (rows, columns, n, C), the first pixel at (top, left); else 0."""
    high, wide = padded.shape[:2]
    images = images.transpose(1, 2, 0, 3)
    first, last = max(top, 0), min(top + images.shape[0], high)
    right = min(left + images.shape[1], wide)
    padded[:first] = 0
    padded[last:] = 0
    padded[first:last, :left] = 0
    padded[first:last, right:] = 0
    inside = images[first - top : last - top, : right - left]
    np.copyto(pixels(padded[first:last, left:right]), pixels(inside))


def _inputs(x: Floats, s: ConvGeometry, first: int, tiles: int) -> Floats:
    """Bᵀ x B of some rows of tiles of a few images: (6, 6, tiles · images, C)."""
    n, across = len(x), _tiles(s.OW)
    high, wide = _M * tiles + 2, _M * across + 2
    padded = scratch("winograd padded", (high, wide, n, s.C), x.dtype)
    fill(padded, x, s.PT - _M * first, s.PL)
    down = scratch("winograd down", (_R, tiles, wide, n * s.C), x.dtype)
    _to_six(_every_fourth(padded.reshape(high, -1), _R, tiles), down.reshape(_R, tiles, -1))
    v = scratch("winograd inputs", (_R, _R, tiles, across, n * s.C), x.dtype)
    _to_six(_every_fourth(down, _R, across), v)
    return v.reshape(_R, _R, -1, s.C)


def _outputs(m: Floats, s: ConvGeometry, y: Floats) -> None:
    """y = Aᵀ m A: m (6, 6, tiles · images, OC) -> y (n, rows, OW, OC)."""
    n, high, across = *y.shape[:2], _tiles(s.OW)
    tiles = _tiles(high)
    down = scratch("winograd down", (_R, tiles, across, _M, n * s.OC), m.dtype)
    _to_four(m.reshape(_R, _R, tiles, across, -1), down.transpose(3, 0, 1, 2, 4))
    images = scratch("winograd padded", (tiles, _M, across * _M * n * s.OC), m.dtype)
    _to_four(down.reshape(_R, tiles, -1), images.transpose(1, 0, 2))
    whole = images.reshape(_M * tiles, _M * across, n, s.OC)
    np.copyto(pixels(y), pixels(whole[:high, : s.OW]).transpose(2, 0, 1, 3))


def _gradients(dy: Floats, s: ConvGeometry, first: int, tiles: int) -> Floats:
    """A dy Aᵀ of some rows of tiles: (6, 6, tiles · images, OC)."""
    n, across = len(dy), _tiles(s.OW)
    high, wide = _M * tiles, _M * across
    padded = scratch("winograd padded", (high, wide, n, s.OC), dy.dtype)
    fill(padded, dy, -_M * first, 0)
    down = scratch("winograd down", (_R, tiles, wide, n * s.OC), dy.dtype)
    _from_four(_every_fourth(padded.reshape(high, -1), _M, tiles), down.reshape(_R, tiles, -1))
    z = scratch("winograd outputs", (_R, _R, tiles, across, n * s.OC), dy.dtype)
    _from_four(_every_fourth(down, _M, across), z)
    return z.reshape(_R, _R, -1, s.OC)


def filters(w: Floats, s: ConvGeometry) -> Floats:
    """G w Gᵀ: w (OC, 3, 3, C) -> (6, 6, C, OC)."""
    g = _G.astype(w.dtype)
    taps = np.ascontiguousarray(w.transpose(1, 2, 3, 0)).reshape(3, -1)
    down = (g @ taps).reshape(_R, 3, -1).transpose(1, 0, 2)
    both = g @ np.ascontiguousarray(down).reshape(3, -1)
    return cast("Floats", both.reshape(_R, _R, s.C, s.OC))


def _taps(total: Floats, s: ConvGeometry) -> Floats:
    """The adjoint of :func:`filters`: (6, 6, C, OC) -> (OC, 3, 3, C)."""
    g = np.ascontiguousarray(_G.T.astype(total.dtype))
    down = (g @ total.reshape(_R, -1)).reshape(3, _R, -1).transpose(1, 0, 2)
    both = g @ np.ascontiguousarray(down).reshape(_R, -1)
    return cast("Floats", both.reshape(3, 3, s.C, s.OC).transpose(3, 0, 1, 2))


def forward(x: Floats, g: Floats, s: ConvGeometry, y: Floats) -> bool:
    """y = the convolution with :func:`filters`; False where it is not finite.

    x (n,H,W,C), g (6,6,C,OC), y (n,OH,OW,OC), a few images.
    """
    for first, tiles in _bands(s, len(x)):
        v = _inputs(x, s, first, tiles)
        m = scratch("winograd outputs", (*v.shape[:3], s.OC), x.dtype)
        np.matmul(v, g, out=m)
        _outputs(m, s, y[:, _M * first : _M * (first + tiles)])
    return bool(np.isfinite(np.vdot(y, y)))


def weight_gradient(dy: Floats, x: Floats, s: ConvGeometry) -> Floats | None:
    """The gradient (OC, 3, 3, C) of the filter by a few images; None where it is not finite."""
    total: Any = 0
    for first, tiles in _bands(s, len(x)):
        v = _inputs(x, s, first, tiles)
        total = total + np.matmul(v.mT, _gradients(dy, s, first, tiles))
    dw = _taps(total, s)
    return dw if np.isfinite(np.vdot(dw, dw)) else None
