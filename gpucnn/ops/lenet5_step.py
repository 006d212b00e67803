"""A whole training step of LeNet-5: ``kernels/lenet5_step.cu``."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.adam import adam_step
from gpucnn.ops.cross_entropy import cross_entropy_reduced
from gpucnn.primitive import primitive

# geometry

MOST_CLASSES = 16
IMAGE = (28, 28, 1)
ALIGNMENT = 64  # elements, between the starts of two parameters


def parameter_shapes(classes: int) -> tuple[tuple[int, ...], ...]:
    """Weight and bias of each layer in turn."""
    return (
        (6, 5, 5, 1), (6,), (16, 5, 5, 6), (16,),
        (120, 400), (120,), (84, 120), (84,), (classes, 84), (classes,),
    )  # fmt: skip


def parameter_offsets(classes: int) -> list[int]:
    """Where each parameter begins in a flat buffer, and where the last one's place ends."""
    places = (-(-math.prod(s) // ALIGNMENT) * ALIGNMENT for s in parameter_shapes(classes))
    return [0, *itertools.accumulate(places)]


def _parameters(flat: NDArray[Any], classes: int) -> list[NDArray[Any]]:
    shapes, starts = parameter_shapes(classes), parameter_offsets(classes)
    return [
        flat[start : start + math.prod(shape)].reshape(shape)
        for start, shape in zip(starts, shapes, strict=False)
    ]


# primitives


def _windows(x: NDArray[Any]) -> NDArray[Any]:
    """The 5×5 windows of (N,H,W,C) as rows (N·OH·OW, 25·C)."""
    found = sliding_window_view(x, (5, 5), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    rows: NDArray[Any] = found.reshape(math.prod(found.shape[:3]), -1)
    return rows


def _pooled(t: NDArray[Any]) -> NDArray[Any]:
    N, H, W, C = t.shape
    mean: NDArray[Any] = t.reshape(N, H // 2, 2, W // 2, 2, C).mean(axis=(2, 4))
    return mean


def _unpooled(d: NDArray[Any], t: NDArray[Any]) -> NDArray[Any]:
    """The gradient before the tanh whose output t was pooled, as rows of channels."""
    spread = (d / 4).repeat(2, axis=1).repeat(2, axis=2)
    rows: NDArray[Any] = (spread * (1 - t * t)).reshape(-1, t.shape[-1])
    return rows


@primitive
def lenet5_step(
    p: Array,
    m: Array,
    v: Array,
    x: Array,
    target: Array,
    numbers: Array,
    meeting: Array,
    classes: int,
    ignore_index: int,
) -> tuple[Array, Array]:
    """In place: the step of Adam for LeNet-5 and the mean cross-entropy of a batch

    p, m, v (n): parameters and moments as :func:`adam_step` takes them, each parameter at its place
    of :func:`parameter_offsets`; x (N,28,28,1), target int32 (N), numbers (7)
    :meth:`AdamStep.adam`; meeting int32 (1), 0 before the first call, which no two calls at a time
    share -> loss () and scores (N,classes), both of before the step.

    conv 5×5 to 6, padding 2 – tanh – mean of 2×2 – conv 5×5 to 16 – tanh – mean of 2×2 – linear to
    120 – tanh – to 84 – tanh – to classes. Rows of the target ignore_index cost nothing. Source:
    LeCun et al., "Gradient-based learning applied to document recognition", 1998.
    """
    N = len(x)
    w1, b1, w2, b2, f1, g1, f2, g2, f3, g3 = _parameters(p, classes)
    gradients = np.zeros_like(p)
    dw1, db1, dw2, db2, df1, dg1, df2, dg2, df3, dg3 = _parameters(gradients, classes)

    columns1 = _windows(np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0))))
    t1 = np.tanh(columns1 @ w1.reshape(6, -1).T + b1).reshape(N, 28, 28, 6)
    columns2 = _windows(_pooled(t1))
    t2 = np.tanh(columns2 @ w2.reshape(16, -1).T + b2).reshape(N, 10, 10, 16)
    features = _pooled(t2).reshape(N, 400)
    h1 = np.tanh(features @ f1.T + g1)
    h2 = np.tanh(h1 @ f2.T + g2)
    scores = h2 @ f3.T + g3
    loss, d3 = cross_entropy_reduced(scores, target, None, 0.0, ignore_index, True, True)

    d2 = (d3 @ f3) * (1 - h2 * h2)
    d1 = (d2 @ f2) * (1 - h1 * h1)
    for dw, db, d, inputs in ((df3, dg3, d3, h2), (df2, dg2, d2, h1), (df1, dg1, d1, features)):
        dw[...] = d.T @ inputs
        db[...] = d.sum(axis=0)
    d = _unpooled((d1 @ f1).reshape(N, 5, 5, 16), t2)
    dw2[...] = (d.T @ columns2).reshape(dw2.shape)
    db2[...] = d.sum(axis=0)
    back = (d @ w2.reshape(16, -1)).reshape(N, 10, 10, 5, 5, 6)
    pooled = np.zeros((N, 14, 14, 6), p.dtype)
    for kh, kw in itertools.product(range(5), range(5)):
        pooled[:, kh : kh + 10, kw : kw + 10] += back[:, :, :, kh, kw]
    d = _unpooled(pooled, t1)
    dw1[...] = (d.T @ columns1).reshape(dw1.shape)
    db1[...] = d.sum(axis=0)
    adam_step(p, m, v, None, gradients, numbers)
    return loss, scores


_kernels = KernelFile("lenet5_step")
_THREADS = 512
_RECORD = 3424  # floats that an image leaves behind
_BLOCK = 38_816  # bytes that a block works on,
_ROOM = 46_688  # the least room behind them,
_ROW = 1600  # and that of an output's weights in the first linear layer
_ROWS = 120
_EMULATED = 3, 227 * 1024  # blocks, and shared memory of each, as on sm_90


@functools.cache
def _sizes(gpu: int | None) -> tuple[int, int, int]:
    """(blocks, bytes of shared memory of each, rows of weights in that); None: the emulator."""
    blocks, most = _EMULATED
    if gpu is not None:
        import cupy

        most = int(cupy.cuda.Device(gpu).attributes["MaxSharedMemoryPerBlockOptin"])
    if most < _BLOCK + _ROOM:
        raise ValueError(
            f"lenet5_step needs {_BLOCK + _ROOM} bytes of shared memory for a block, this GPU has "
            f"{most}: use_variant(lenet5_step=None)"
        )
    rows = min(_ROWS, (most - _BLOCK) // _ROW)
    shared = _BLOCK + max(_ROOM, rows * _ROW)
    if gpu is not None:
        blocks = _kernels["lenet5_step"].resident_blocks((_THREADS,), shared)
    return blocks, shared, rows


@lenet5_step.kernel("persistent")
def _launch(
    p: Array,
    m: Array,
    v: Array,
    x: Array,
    target: Array,
    numbers: Array,
    meeting: Array,
    classes: int,
    ignore_index: int,
) -> tuple[Array, Array]:
    N = x.shape[0]
    blocks, shared, rows = _sizes(None if isinstance(x, np.ndarray) else x.device.id)
    loss, scores, records = empty(x, (1,)), empty(x, (N, classes)), empty(x, (N, _RECORD))
    arrays = (p, m, v, loss, scores, records, meeting, x, target, numbers)
    options = (N, classes, rows, ignore_index)
    _kernels["lenet5_step"]((blocks,), (_THREADS,), *arrays, *options, shared_mem=shared)
    return loss.reshape(()), scores
