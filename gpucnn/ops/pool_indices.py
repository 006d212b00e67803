"""Max-pool indices in the conventions of other libraries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import to_host
from gpucnn.ops.geometry import Pair, choice, host_array, resolve_padding, sizes
from gpucnn.recording import reading
from gpucnn.tensor import Tensor

CONVENTIONS = ("torch", "onnx", "tf", "chainer")

Sizes = int | tuple[int, ...]
Paddings = int | tuple[int, ...] | tuple[Pair, ...] | str
Indices = NDArray[np.int64]


def _coordinates(number: Indices, size: Sequence[int]) -> list[Indices]:
    """Those of a cell by its number in raster order; the first is too large past the last cell."""
    found = []
    for n in reversed(size[1:]):
        found.append(number % n)
        number = number // n
    return [number, *reversed(found)]


def _number(at: Sequence[Indices], size: Sequence[int]) -> Indices:
    """The number of a cell in raster order."""
    number = at[0]
    for i, n in zip(at[1:], size[1:], strict=True):
        number = number * n + i
    return number


def _within(at: Sequence[Indices], size: Sequence[int]) -> NDArray[np.bool_]:
    inside = np.ones((), np.bool_)
    for i, n in zip(at, size, strict=True):
        inside = inside & (i >= 0) & (i < n)
    return inside


def convert_pool_indices(
    indices: Any,
    src: str,
    dst: str,
    *,
    input_size: Sizes,
    kernel_size: Sizes | None = None,
    stride: Sizes | None = None,
    padding: Paddings = 0,
    dilation: Sizes = 1,
) -> Indices:
    """The same winners of a max pooling, in the numbers of another library.

    For the winner (h, w) of window (oh, ow) in channel c of image n, and an input of H x W:

    - "torch" (and gpucnn): ``h·W + w``, a cell of the plane (torch.nn.MaxPool2d);
    - "onnx": ``((n·C + c)·H + h)·W + w``, a cell of the whole NCHW input (ONNX MaxPool, storage
      order 0);
    - "tf": ``(h·W + w)·C + c``, an element of the NHWC image (tf.nn.max_pool_with_argmax without
      the batch in its index);
    - "chainer": ``kh·KW + kw``, a cell of the window, where ``h = oh·SH − PT + kh·DH`` (Chainer's
      MaxPooling2D.indexes); needs kernel_size, and the stride (None: kernel_size), padding and
      dilation of the pooling.

    Likewise w and k of sequences, and (d, h, w), as ``(d·H + h)·W + w``, and (kd, kh, kw) of
    volumes.

    indices: (N, OW, C), (N, OH, OW, C) or (N, OD, OH, OW, C) integers, a Tensor or an array: the
    numbers change, the layout does not (an array of torch or ONNX is transposed first). -1, no
    winner, stays -1. input_size: W, (H, W) or (D, H, W) of the input; an int is the size of all
    axes. Returns an int64 array of the shape of indices; onnx numbers may not fit int32.

    Raises ValueError or TypeError naming the argument for an unknown convention, an index that src
    cannot have, and, to "chainer", a winner outside its window.
    """
    for name, value in (("src", src), ("dst", dst)):
        choice(name, value, CONVENTIONS)
    reading("pool indices")
    given = host_array("indices", to_host(indices.data) if isinstance(indices, Tensor) else indices)
    if given.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {given.dtype}")
    if given.ndim not in (3, 4, 5):
        raise ValueError(
            "indices must have shape (N, OW, C), (N, OH, OW, C) or (N, OD, OH, OW, C), "
            f"got {given.shape}"
        )
    dims = given.ndim - 2
    size = sizes("input_size", input_size, dims)
    index = given.astype(np.int64)
    if (index < -1).any():
        raise ValueError(f"indices must be >= -1, got {index.min()}")
    n, *windows, c = np.ogrid[tuple(slice(count) for count in index.shape)]
    C, cells = index.shape[-1], math.prod(size)
    if "chainer" in (src, dst):
        if kernel_size is None:
            raise ValueError('kernel_size is needed for "chainer", got None')
        kernel = sizes("kernel_size", kernel_size, dims)
        steps = kernel if stride is None else sizes("stride", stride, dims)
        spread = sizes("dilation", dilation, dims)
        pads = resolve_padding(padding, size, kernel, steps, spread)
        first = [o * s - low for o, s, (low, _) in zip(windows, steps, pads, strict=True)]

    if src == "chainer":
        taps = _coordinates(index, kernel)
        at = [f + k * d for f, k, d in zip(first, taps, spread, strict=True)]
        valid = index < math.prod(kernel)
    elif src == "onnx":
        at = _coordinates(index - (n * C + c) * cells, size)
        valid = np.ones(index.shape, bool)
    else:
        at = _coordinates(index if src == "torch" else index // C, size)
        valid = (index % C == c) if src == "tf" else np.ones(index.shape, bool)
    valid = (valid & _within(at, size)) | (index < 0)
    if not valid.all():
        bad = tuple(int(i) for i in np.argwhere(~valid)[0])
        shape = " x ".join(map(str, size))
        raise ValueError(
            f'indices: {index[bad]} at {bad} is no cell of a {shape} input for "{src}"'
        )

    if dst == "torch":
        made = _number(at, size)
    elif dst == "onnx":
        made = (n * C + c) * cells + _number(at, size)
    elif dst == "tf":
        made = _number(at, size) * C + c
    else:
        offsets = [i - f for i, f in zip(at, first, strict=True)]
        taps = [o // d for o, d in zip(offsets, spread, strict=True)]
        held = _within(taps, kernel)
        for o, d in zip(offsets, spread, strict=True):
            held = held & (o % d == 0)
        held |= index < 0
        if not held.all():
            bad = tuple(int(i) for i in np.argwhere(~held)[0])
            raise ValueError(f"indices: {index[bad]} at {bad} lies outside its window")
        made = _number(taps, kernel)
    return np.where(index < 0, -1, made)
