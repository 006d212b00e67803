"""The data gradient of a convolution on the CPU: what each tap of the window gives back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.unfold import by_group, in_cache, inside, padded_shape
from gpucnn.threads import scratch

Floats = NDArray[Any]

_FEW = 8  # channels: fewer are too short a run of memory to be added to


def images_innermost(s: ConvGeometry) -> bool:
    """Whether a run of memory holds one channel of many images, instead of many channels."""
    return s.G == 1 and s.C < _FEW and s.K > s.C


def images_per_chunk(s: ConvGeometry, itemsize: int) -> int:
    """Images whose scratch stays in the cache."""
    outputs = s.outputs // s.N
    cells = math.prod(padded_shape(s, 1)) + outputs * s.C
    return in_cache((outputs * s.K if images_innermost(s) else cells) * itemsize)


def arrange(w: Floats, s: ConvGeometry) -> Floats:
    """w (OC,KH,KW,C/G) as :func:`add_up` takes it."""
    filters = w.reshape(s.G, s.OCG, s.KD, s.KH, s.KW, s.CG)
    if images_innermost(s):
        return np.ascontiguousarray(filters.reshape(s.OC, s.K).T)
    return np.ascontiguousarray(filters.transpose(2, 3, 4, 0, 1, 5))


def add_up(dy: Floats, taps: Floats, s: ConvGeometry, dx: Floats) -> None:
    """dx of a few images: to the cells that a tap reads, dy times the tap is added."""
    add = _by_images if images_innermost(s) else _by_channels
    add(dy, taps, s, dx.reshape(-1, s.D, s.H, s.W, s.C))


def _cells(padded: Floats, s: ConvGeometry, tap: tuple[int, ...]) -> Floats:
    """The view of the cells that a tap reads, of padded volumes (…, depth, height, width, …)."""
    front, top, left = tap[0] * s.DD, tap[1] * s.DH, tap[2] * s.DW
    return padded[
        :,
        front : front + (s.OD - 1) * s.SD + 1 : s.SD,
        top : top + (s.OH - 1) * s.SH + 1 : s.SH,
        left : left + (s.OW - 1) * s.SW + 1 : s.SW,
    ]


def _by_channels(dy: Floats, taps: Floats, s: ConvGeometry, dx: Floats) -> None:
    n = len(dx)
    padded = scratch("conv2d padded", padded_shape(s, n), dy.dtype)
    padded[...] = 0
    product = scratch("conv2d columns", (n, s.OD, s.OH, s.OW, s.C), dy.dtype)
    outputs = by_group(dy, s, s.OCG)
    for tap in np.ndindex(s.KD, s.KH, s.KW):
        np.matmul(outputs, taps[tap], out=by_group(product, s, s.CG))
        cells = _cells(padded, s, tap)
        cells += product
    dx[...] = inside(padded, s)


def _by_images(dy: Floats, taps: Floats, s: ConvGeometry, dx: Floats) -> None:
    n, outputs = len(dx), (s.OD, s.OH, s.OW)
    gradients = scratch("conv2d gradients", (s.OC, *outputs, n), dy.dtype)
    np.copyto(gradients, dy.reshape(n, *outputs, s.OC).transpose(4, 1, 2, 3, 0))
    products = scratch("conv2d columns", (s.KD, s.KH, s.KW, s.C, *outputs, n), dy.dtype)
    np.matmul(taps, gradients.reshape(s.OC, -1), out=products.reshape(s.K, -1))
    padded = scratch("conv2d padded", (s.C, *padded_shape(s, n)[1:4], n), dy.dtype)
    padded[...] = 0
    for tap in np.ndindex(s.KD, s.KH, s.KW):
        cells = _cells(padded, s, tap)
        cells += products[tap]
    np.copyto(dx, inside(padded, s).transpose(4, 1, 2, 3, 0))
