"""Winograd's F(2, 3) along the height, for 3×3 convolutions of few channels on the CPU.

Two outputs above each other need four rows of inputs d and, instead of six products of a row with
a row of the filter g, four:

    m0 = (d0 − d2)·g0,  m1 = (d1 + d2)·(g0 + g1 + g2)/2,  m2 = (d2 − d1)·(g0 − g1 + g2)/2,
    m3 = −(d1 − d3)·g2;  y0 = m0 + m1 + m2,  y1 = m1 − m2 + m3.

Along the width the convolution stays what it is. Pixels beside each other are one run of memory, so
that windows which begin three pixels apart are the rows of a matrix without a copy; three such
matrices hold all windows. Images lie between rows and columns here: the sums are over long runs.
It rounds no more than the definition does. An infinity or a NaN spoils the outputs above and below
it: where a result is not finite, the caller computes the definition.

Source: Lavin and Gray, "Fast algorithms for convolutional neural networks", arXiv:1509.09308.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.winograd import fill, is_plain_3x3
from gpucnn.threads import scratch

Floats = NDArray[Any]

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]])
_K = 3

_CHANNELS = 8  # for fewer there is little to multiply
_SUMS = 2  # multiply-adds of a matrix product in the time of one element's sums
_UNIT = 1 << 16  # elements of one of the four parts of a chunk


def cost(s: ConvGeometry) -> float:
    """As :func:`gpucnn.ops.winograd.cost`."""
    if not is_plain_3x3(s) or min(s.C, s.OC) < _CHANNELS:
        return math.inf
    cells = 2 * _pairs(s.OH) * (s.OW + _K - 1)
    return cells / (s.OH * s.OW) * (s.C * s.OC * 2 / 3 + _SUMS * (s.C + s.OC))


def _pairs(rows: int) -> int:
    return -(-rows // 2)


def _part(s: ConvGeometry, n: int) -> int:
    """Elements of a pair of rows of outputs in one of the four parts."""
    return n * (s.OW + _K - 1) * max(s.C, s.OC)


def images_per_chunk(s: ConvGeometry) -> int:
    """Images whose parts stay in the cache; half of a batch at most, for two threads."""
    return max(1, min(_UNIT // (_pairs(s.OH) * _part(s, 1)), -(-s.N // 2)))


def _bands(s: ConvGeometry, n: int) -> list[tuple[int, int]]:
    """(first pair of rows, pairs): pieces of a few images that stay in the cache."""
    pairs = max(1, 2 * _UNIT // _part(s, n))
    return [(t, min(pairs, _pairs(s.OH) - t)) for t in range(0, _pairs(s.OH), pairs)]


def _inputs(x: Floats, s: ConvGeometry, first: int, pairs: int) -> Floats:
    """What is multiplied, of some pairs of rows, as overlapping windows: (4, 3, windows, 3·C)."""
    n, wide = len(x), s.OW + _K - 1
    padded = scratch("winograd padded", (2 * pairs + 2, n, wide, s.C), x.dtype)
    fill(padded.swapaxes(1, 2), x, s.PT - 2 * first, s.PL)
    pixels = pairs * n * wide
    v = scratch("winograd inputs", (4, pixels + 2 * _K, s.C), x.dtype)
    v[:, pixels:] = 0
    parts = v[:, :pixels].reshape(4, pairs, -1)
    low = padded[:-2].reshape(pairs, 2, -1).swapaxes(0, 1)  # d0, d1
    high = padded[2:].reshape(pairs, 2, -1).swapaxes(0, 1)  # d2, d3
    np.subtract(low, high, out=parts[::3])
    np.add(low[1], high[0], out=parts[1])
    np.subtract(high[0], low[1], out=parts[2])
    part, pixel, item = v.strides
    shape = (4, _K, -(-pixels // _K), _K * s.C)
    return cast("Floats", np.ndarray(shape, v.dtype, v, 0, (part, pixel, _K * pixel, item)))


def _products(s: ConvGeometry, n: int, pairs: int, dtype: Any) -> tuple[Floats, Floats]:
    """Memory of the four parts of outputs: (4, pairs, n, OW + 2, OC), and as matrices (4, 3, …)."""
    pixels = pairs * n * (s.OW + _K - 1)
    windows = -(-pixels // _K)
    m = scratch("winograd outputs", (4, windows * _K, s.OC), dtype)
    m[:, pixels:] = 0
    parts = m[:, :pixels].reshape(4, pairs, n, -1, s.OC)
    return parts, m.reshape(4, windows, _K, s.OC).swapaxes(1, 2)


def filters(w: Floats, s: ConvGeometry) -> Floats:
    """The filter's side of the products: w (OC, 3, 3, C) -> (4, 1, 3·C, OC)."""
    taps = np.ascontiguousarray(w.transpose(1, 2, 3, 0)).reshape(_K, -1)
    return cast("Floats", (_G.astype(w.dtype) @ taps).reshape(4, 1, -1, s.OC))


def forward(x: Floats, g: Floats, s: ConvGeometry, y: Floats) -> bool:
    """y = the convolution with :func:`filters`; False where it is not finite.

    x (n,H,W,C), g (4,1,3·C,OC), y (n,OH,OW,OC), a few images.
    """
    n = len(x)
    for first, pairs in _bands(s, n):
        v = _inputs(x, s, first, pairs)
        m, matrices = _products(s, n, pairs, x.dtype)
        np.matmul(v, g, out=matrices)
        sums = scratch("winograd padded", (2, *m.shape[1:]), m.dtype)
        np.add(m[1], m[2], out=sums[0])
        np.subtract(m[1], m[2], out=sums[1])
        rows = y[:, 2 * first : 2 * (first + pairs)]
        for i, part in enumerate((m[0], m[3])):
            out = rows[:, i::2].swapaxes(0, 1)
            at = np.s_[: len(out), :, : s.OW]
            np.add(part[at], sums[i][at], out=out)
    return bool(np.isfinite(np.vdot(y, y)))


def weight_gradient(dy: Floats, x: Floats, s: ConvGeometry) -> Floats | None:
    """The gradient (OC, 3, 3, C) of the filter by a few images; None where it is not finite."""
    n, total = len(x), cast("Any", 0)
    for first, pairs in _bands(s, n):
        v = _inputs(x, s, first, pairs)
        z, matrices = _products(s, n, pairs, x.dtype)
        rows = dy[:, 2 * first : 2 * (first + pairs)]
        for i, part in enumerate((z[0], z[3])):
            given = rows[:, i::2].swapaxes(0, 1)
            part[: len(given), :, : s.OW] = given
            part[len(given) :] = 0
            part[:, :, s.OW :] = 0
        np.add(z[0], z[3], out=z[1])
        np.subtract(z[0], z[3], out=z[2])
        total = total + np.matmul(v.mT, matrices)
    dw = np.ascontiguousarray(_G.T.astype(x.dtype)) @ total.sum(axis=1).reshape(4, -1)
    if not np.isfinite(np.vdot(dw, dw)):
        return None
    return cast("Floats", dw.reshape(_K, _K, s.C, s.OC).transpose(3, 0, 1, 2))
