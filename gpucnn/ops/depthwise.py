"""Convolutions whose groups have one input channel: the NumPy definitions without matrix products.

An output row is a vector of OW·OC numbers, and the cells that a tap (kd, kh, kw) reads for it are
another: a row of the padded image, shifted by the tap.
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.threads import scratch

_FEW = 4  # output channels of a group: from here on matrix products are worth their copies
_BAND = 1 << 14  # outputs whose products with one tap stay in cache


def is_depthwise(s: ConvGeometry) -> bool:
    """Whether groups have one input channel and few outputs are made from it."""
    return s.G > 1 and s.CG == 1 and s.OCG < _FEW


def _repeated(x: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """Images (…, C) as (…, C, 1), to go into or come from (…, C, OCG)."""
    return x.reshape(-1, s.D, s.H, s.W, s.C, 1)


def _by_channel(images: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """Images (…, OC) as (…, C, OCG), a view."""
    return images.reshape(*images.shape[:-1], s.C, s.OCG)


def _inside(padded: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """The view of the images within their padding."""
    return padded[:, s.PF : s.PF + s.D, s.PT : s.PT + s.H, s.PL : s.PL + s.W]


def _padded(s: ConvGeometry, n: int, dtype: Any) -> NDArray[Any]:
    """Zeros for images and their padding, one channel per output channel, in a scratch buffer."""
    axes = (
        (s.OD, s.SD, s.KD, s.DD, s.PF + s.D),
        (s.OH, s.SH, s.KH, s.DH, s.PT + s.H),
        (s.OW, s.SW, s.KW, s.DW, s.PL + s.W),
    )
    high = (max((o - 1) * step + (k - 1) * d + 1, end) for o, step, k, d, end in axes)
    padded = scratch("depthwise padded", (n, *high, s.OC), dtype)
    padded[...] = 0
    return padded


def _columns(kw: int, s: ConvGeometry) -> slice:
    """The columns of a padded image that tap kw reads."""
    return slice(kw * s.DW, kw * s.DW + (s.OW - 1) * s.SW + 1, s.SW)


def _rows(x: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """What each tap reads for each row of outputs: a view (n, OD, OH, KD, KH, KW, OW·OC)."""
    padded = _padded(s, len(x), x.dtype)
    _by_channel(_inside(padded, s), s)[...] = _repeated(x, s)
    n, d, h, w, c = padded.strides
    tap = w * s.DW
    if s.SW > 1:  # the columns of each tap, side by side
        shape = (s.KW, *padded.shape[:3], s.OW, s.OC)
        gathered = scratch("depthwise columns", shape, x.dtype)
        for kw in range(s.KW):
            gathered[kw] = padded[:, :, :, _columns(kw, s)]
        padded = gathered
        tap, n, d, h, w, c = padded.strides
    return as_strided(
        padded,
        (len(x), s.OD, s.OH, s.KD, s.KH, s.KW, s.OW * s.OC),
        (n, d * s.SD, h * s.SH, d * s.DD, h * s.DH, tap, c),
        writeable=False,
    )


def _taps(w: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """The weights of each tap along a row of outputs: (KD, KH, KW, OW·OC)."""
    taps = w.reshape(s.OC, s.KD, s.KH, s.KW).transpose(1, 2, 3, 0)
    return np.tile(taps, s.OW)


def _outputs(y: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """Outputs by row: (n, OD, OH, OW·OC)."""
    return y.reshape(-1, s.OD, s.OH, s.OW * s.OC)


def scratch_elements(s: ConvGeometry) -> int:
    """Of one image, about."""
    across = s.W if s.SW == 1 else s.W + s.KW * s.OW
    return s.D * s.H * across * s.OC


def forward(x: NDArray[Any], w: NDArray[Any], s: ConvGeometry, y: NDArray[Any]) -> None:
    """y of conv2d_forward, without bias, of a few images."""
    np.einsum("ndhabkj,abkj->ndhj", _rows(x, s), _taps(w, s), out=_outputs(y, s))


def data_gradient(dy: NDArray[Any], w: NDArray[Any], s: ConvGeometry, dx: NDArray[Any]) -> None:
    """dx of conv2d_data_gradient of a few images."""
    padded = _padded(s, len(dy), dy.dtype)
    taps, gradients = _taps(w, s), _outputs(dy, s)
    band = max(1, _BAND // (s.OW * s.OC))
    for n, od, top in np.ndindex(len(dy), s.OD, math.ceil(s.OH / band)):
        rows = gradients[n, od, top * band : (top + 1) * band]
        share = scratch("depthwise share", rows.shape, dy.dtype)
        for kd, kh, kw in np.ndindex(s.KD, s.KH, s.KW):
            np.multiply(rows, taps[kd, kh, kw], out=share)
            first = top * band * s.SH + kh * s.DH
            plane = padded[n, od * s.SD + kd * s.DD]
            cells = plane[first : first + (len(rows) - 1) * s.SH + 1 : s.SH, _columns(kw, s)]
            # With a stride of 1 a row of cells is one run, and so it is for NumPy's loop.
            cells = cells.reshape(share.shape) if s.SW == 1 else cells
            np.add(cells, share.reshape(cells.shape), out=cells)
    np.sum(_by_channel(_inside(padded, s), s), axis=-1, out=_repeated(dx, s)[..., 0])


def weight_gradient(dy: NDArray[Any], x: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """dw of conv2d_weight_gradient, the share of a few images: (OC, KD, KH, KW)."""
    sums = np.einsum("ndhabkj,ndhj->abkj", _rows(x, s), _outputs(dy, s))
    sums = sums.reshape(s.KD, s.KH, s.KW, s.OW, s.OC).sum(axis=3)
    return cast("NDArray[Any]", sums.transpose(3, 0, 1, 2))
