"""Concatenation along an axis: ``kernels/concatenate.cu``."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.empty_batch import of_no_images
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.primitive import storing_primitive
from gpucnn.storage import alike
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks

# geometry


def concatenation_axis(arrays: Sequence[Array], axis: int) -> int:
    """``axis`` counted from the front, after a check of all arguments."""
    try:
        number = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis must be an integer, got {axis!r}") from None
    first = arrays[0]
    if not -first.ndim <= number < first.ndim:
        raise ValueError(f"axis must lie between {-first.ndim} and {first.ndim - 1}, got {axis}")
    number %= int(first.ndim)
    for i, a in enumerate(arrays):
        if a.size == 0:
            raise ValueError(f"tensors[{i}] must not be empty, got shape {a.shape}")
        rest = (a.shape[:number], a.shape[number + 1 :])
        if a.ndim != first.ndim or rest != (first.shape[:number], first.shape[number + 1 :]):
            raise ValueError(
                f"tensors[{i}] must have the shape {first.shape} apart from axis {number}, "
                f"got {a.shape}"
            )
    same_float_dtype(**{f"tensors[{i}]": a for i, a in enumerate(arrays)})
    return number


# primitives

_CHUNK = 1 << 17  # elements that a thread copies at once


@storing_primitive(0)
def join_columns(parts: Sequence[Array]) -> Array:
    """y = the matrices (rows, w_i) side by side -> (rows, Σ w_i)."""
    rows, width = len(parts[0]), sum(p.shape[1] for p in parts)
    y = buffers.empty((rows, width), parts[0].dtype)

    def chunk(start: int, stop: int) -> None:
        np.concatenate([p[start:stop] for p in parts], axis=1, out=y[start:stop])

    map_chunks(chunk, rows, max(1, _CHUNK // width))
    return y


@storing_primitive(0)
def cut_columns(y: Array, start: int, width: int) -> Array:
    """Columns start … start + width − 1 of a matrix: (rows, W) -> (rows, width)."""
    x = buffers.empty((len(y), width), y.dtype)

    def chunk(first: int, last: int) -> None:
        np.copyto(x[first:last], y[first:last, start : start + width])

    map_chunks(chunk, len(y), max(1, _CHUNK // width))
    return x


_THREADS = 256

_kernels = KernelFile("concatenate", storage=True)


def _copy(y: Array, x: Array, columns: int, to: int, start: int) -> None:
    rows = x.shape[0]
    grid = (-(-rows * -(-columns // 4) // _THREADS),)
    launch = _kernels.storing(x, "copy_columns")
    launch(grid, (_THREADS,), y, x, rows, columns, y.shape[1], x.shape[1], to, start)


@join_columns.kernel(native=True)
def _launch_join(parts: Sequence[Array]) -> Array:
    parts = alike(*parts)
    y = empty(parts[0], (parts[0].shape[0], sum(p.shape[1] for p in parts)), parts[0].dtype)
    to = 0
    for p in parts:
        _copy(y, p, p.shape[1], to, 0)
        to += p.shape[1]
    return y


@cut_columns.kernel(native=True)
def _launch_cut(y: Array, start: int, width: int) -> Array:
    x = empty(y, (y.shape[0], width), y.dtype)
    _copy(x, y, width, 0, start)
    return x


# tape


class Concatenate(Function):
    """Joins along an axis; each input receives its part of the gradient."""

    activations = ...

    def forward(self, *arrays: Array, axis: int) -> Array:
        axis = concatenation_axis(arrays, axis)
        self.shapes = [a.shape for a in arrays]
        self.rows = math.prod(arrays[0].shape[:axis])
        y = self.run(join_columns, [a.reshape(self.rows, -1) for a in arrays])
        shape = arrays[0].shape
        return y.reshape((*shape[:axis], sum(a.shape[axis] for a in arrays), *shape[axis + 1 :]))

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        dy = dy.reshape(self.rows, -1)
        grads: list[Array | None] = []
        start = 0
        for shape, needed in zip(self.shapes, self.needs, strict=True):
            width = math.prod(shape) // self.rows
            dx = self.run(cut_columns, dy, start, width).reshape(shape) if needed else None
            grads.append(dx)
            start += width
        return tuple(grads)


# public


def concatenate(tensors: Sequence[Tensor], axis: int = -1) -> Tensor:
    """The tensors behind each other along an axis: along the channels by default.

    tensors: one or more of one dtype, float32 (float64 on cpu), equal in shape apart from the axis,
    none empty but for the batch of all of them. axis: an int, negative from the end. Returns a
    tensor whose size along the axis is the sum of theirs; each receives its part of the gradient.

    Raises ValueError or TypeError naming the argument if a shape, dtype or the axis does not fit;
    DeviceError for tensors of two devices.

    Source: numpy.concatenate; torch.cat.
    """
    if not isinstance(tensors, list | tuple):
        raise TypeError(f"tensors must be a list of Tensors, got {type(tensors).__name__}")
    given = list(tensors)
    if not given:
        raise ValueError("tensors must hold at least one tensor, got none")
    for i, t in enumerate(given):
        if not isinstance(t, Tensor):
            raise TypeError(f"tensors[{i}] must be a Tensor, got {type(t).__name__}")
    if all(t.shape[:1] == (0,) for t in given):
        batch = of_no_images(Concatenate, tuple(given), {"axis": axis}, range(len(given)))
        return cast("Tensor", batch)
    return cast("Tensor", Concatenate.apply(*given, axis=axis))
