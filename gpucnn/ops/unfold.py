"""The windows of a convolution as the rows of matrices, on the CPU."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gpucnn.ops.channels import pixels
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.threads import scratch

UNFOLDING = 4  # multiply-adds of a matrix product in the time that one element is unfolded

_CHUNK_BYTES = 1 << 21  # of scratch per thread: cached, and much more work than NumPy's calls are
_SHORT_RUN = 12  # floats: below this a copy of one row of a window is mostly loop overhead


def in_cache(size: int) -> int:
    """How many images of ``size`` bytes of scratch make a chunk."""
    return max(1, _CHUNK_BYTES // size)


def padded_shape(s: ConvGeometry, n: int) -> tuple[int, int, int, int, int]:
    """Images that hold every cell that a window touches, from (-PF, -PT, -PL) on."""
    deep = max((s.OD - 1) * s.SD + (s.KD - 1) * s.DD + 1, s.PF + s.D)
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    return n, deep, high, wide, s.C


def inside(padded: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """The view of the images within their padding."""
    return padded[:, s.PF : s.PF + s.D, s.PT : s.PT + s.H, s.PL : s.PL + s.W]


def windows(x: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """A view (G, N, OD, OH, OW, KD, KH, KW, CG) of the zero-padded windows of a few images."""
    x = x.reshape(-1, s.D, s.H, s.W, s.C)
    shape = padded_shape(s, len(x))
    if shape[1:] != x.shape[1:]:
        padded = scratch("conv2d padded", shape, x.dtype)
        back, bottom, right = s.PF + s.D, s.PT + s.H, s.PL + s.W
        padded[:, : s.PF] = 0
        padded[:, back:] = 0
        volume = padded[:, s.PF : back]
        volume[:, :, : s.PT] = 0
        volume[:, :, bottom:] = 0
        volume[:, :, s.PT : bottom, : s.PL] = 0
        volume[:, :, s.PT : bottom, right:] = 0
        volume[:, :, s.PT : bottom, s.PL : right] = x
        x = padded
    n, d, h, w, c = x.strides
    return as_strided(
        x,
        (s.G, len(x), s.OD, s.OH, s.OW, s.KD, s.KH, s.KW, s.CG),
        (s.CG * c, n, d * s.SD, h * s.SH, w * s.SW, d * s.DD, h * s.DH, w * s.DW, c),
        writeable=False,
    )


def _unfold(view: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """Windows as matrices (G, pixels, K), a view of a scratch buffer or of the images."""
    count = math.prod(view.shape[1:5])
    if s.G == 1 and view.flags.c_contiguous and s.K == s.C:
        return view.reshape(1, count, s.C)
    if s.KW * s.CG < _SHORT_RUN:
        columns = scratch("conv2d columns", (s.G, s.K, count), view.dtype)
        into = columns.reshape(s.G, *view.shape[5:], *view.shape[1:5])
        np.copyto(into, view.transpose(0, 5, 6, 7, 8, 1, 2, 3, 4))
        return cast("NDArray[Any]", columns.transpose(0, 2, 1))
    columns = scratch("conv2d columns", (s.G, count, s.K), view.dtype)
    into = columns.reshape(view.shape)
    if s.G == 1 and s.DW == 1:  # the pixels of a row of a window are one run
        shape = (*view.shape[:-2], s.KW * s.C)
        view = as_strided(view, shape, (*view.strides[:-2], view.itemsize), writeable=False)
        into = into.reshape(shape)
    np.copyto(pixels(into), pixels(view))
    return columns


def unfolded(
    x: NDArray[Any], y: NDArray[Any], s: ConvGeometry
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The unfolded windows of a few images, and the outputs (…, OC) that belong to them.

    Planes or rows of outputs at a time where the windows of an image are too many for the cache.
    """
    view, y = windows(x, s), y.reshape(-1, s.OD, s.OH, s.OW, s.OC)
    rows = max(1, _CHUNK_BYTES // (len(x) * s.OW * s.K * s.G * x.itemsize))
    planes = max(1, rows // s.OH)
    if len(x) > 1:
        rows, planes = s.OH, s.OD
    for od, oh in itertools.product(range(0, s.OD, planes), range(0, s.OH, rows)):
        deep, high = slice(od, od + planes), slice(oh, oh + rows)
        yield _unfold(view[:, :, deep, high], s), y[:, deep, high]


def by_group(y: NDArray[Any], s: ConvGeometry, channels: int) -> NDArray[Any]:
    """Images (…, G * channels) as matrices (G, pixels, channels), a view."""
    return cast("NDArray[Any]", y.reshape(-1, s.G, channels).transpose(1, 0, 2))
