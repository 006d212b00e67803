"""Max-pool indices in the conventions of other libraries."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import to_host
from gpucnn.ops.geometry import Padding, Pair, choice, host_array, pair, resolve_padding
from gpucnn.tensor import Tensor

CONVENTIONS = ("torch", "onnx", "tf", "chainer")


def _grid(shape: tuple[int, ...]) -> tuple[NDArray[np.int64], ...]:
    """The coordinates n, oh, ow, c, each in a shape that broadcasts to (N, OH, OW, C)."""
    n, oh, ow, c = np.ogrid[tuple(slice(size) for size in shape)]
    return n, oh, ow, c


def convert_pool_indices(
    indices: Any,
    src: str,
    dst: str,
    *,
    input_size: int | Pair,
    kernel_size: int | Pair | None = None,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    dilation: int | Pair = 1,
) -> NDArray[np.int64]:
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

    indices: (N, OH, OW, C) integers, a Tensor or an array: the numbers change, the layout does not
    (an array of torch or ONNX is transposed first). -1, no winner, stays -1. input_size: (H, W) of
    the input. Returns an int64 array of that shape; onnx numbers may not fit int32.

    Raises ValueError or TypeError naming the argument for an unknown convention, an index that src
    cannot have, and, to "chainer", a winner outside its window.
    """
    for name, value in (("src", src), ("dst", dst)):
        choice(name, value, CONVENTIONS)
    given = host_array("indices", to_host(indices.data) if isinstance(indices, Tensor) else indices)
    if given.dtype.kind not in "iu":
        raise TypeError(f"indices must be integers, got {given.dtype}")
    if given.ndim != 4:
        raise ValueError(f"indices must have shape (N, OH, OW, C), got {given.shape}")
    H, W = pair("input_size", input_size)
    index = given.astype(np.int64)
    if (index < -1).any():
        raise ValueError(f"indices must be >= -1, got {index.min()}")
    n, oh, ow, c = _grid(index.shape)
    C = index.shape[3]
    if "chainer" in (src, dst):
        if kernel_size is None:
            raise ValueError('kernel_size is needed for "chainer", got None')
        KH, KW = pair("kernel_size", kernel_size)
        SH, SW = (KH, KW) if stride is None else pair("stride", stride)
        DH, DW = pair("dilation", dilation)
        rows, columns = resolve_padding(padding, (H, W), (KH, KW), (SH, SW), (DH, DW))
        top, left = oh * SH - rows[0], ow * SW - columns[0]

    if src == "chainer":
        h, w = top + index // KW * DH, left + index % KW * DW
        valid = index < KH * KW
    elif src == "onnx":
        cell = index - (n * C + c) * H * W
        h, w = cell // W, cell % W
        valid = cell >= 0
    else:
        cell = index if src == "torch" else index // C
        h, w = cell // W, cell % W
        valid = (index % C == c) if src == "tf" else np.ones(index.shape, bool)
    valid = (valid & (h >= 0) & (h < H) & (w >= 0) & (w < W)) | (index < 0)
    if not valid.all():
        at = tuple(int(i) for i in np.argwhere(~valid)[0])
        raise ValueError(
            f'indices: {index[at]} at {at} is no cell of a {H} x {W} input for "{src}"'
        )

    if dst == "torch":
        made = h * W + w
    elif dst == "onnx":
        made = ((n * C + c) * H + h) * W + w
    elif dst == "tf":
        made = (h * W + w) * C + c
    else:
        kh, kw = (h - top) // DH, (w - left) // DW
        held = (kh >= 0) & (kh < KH) & ((h - top) % DH == 0)
        held = (held & (kw >= 0) & (kw < KW) & ((w - left) % DW == 0)) | (index < 0)
        if not held.all():
            at = tuple(int(i) for i in np.argwhere(~held)[0])
            raise ValueError(f"indices: {index[at]} at {at} lies outside its window")
        made = kh * KW + kw
    return np.where(index < 0, -1, made)
