"""Sums in a fixed order: ``kernels/reduce.cu``. Used by the gradients of other families."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks

# primitives

_ROWS = 4096  # per partial sum: float32 loses little over so few, and a slice of x stays in cache


@primitive
def column_sum(x: Array) -> Array:
    """y[c] = Σ x[…, c]: x (…, C) -> (C). Partial sums over rows are added in order."""
    rows = x.reshape(-1, x.shape[-1])
    ones = np.ones(min(len(rows), _ROWS), x.dtype)

    def part(start: int, stop: int) -> NDArray[Any]:
        return cast("NDArray[Any]", ones[: stop - start] @ rows[start:stop])

    parts = np.stack(map_chunks(part, len(rows), _ROWS))
    return parts.sum(axis=0, dtype=np.float64).astype(x.dtype)


@primitive
def sum_slices(partial: Array, bias: Array | None) -> Array:
    """y = Σ_s partial[s] (+ bias along the last axis), in the order of s: (S, …, C) -> (…, C)."""
    y = partial[0].copy()
    for part in partial[1:]:
        y += part
    return y if bias is None else y + bias


_THREADS = 256
_MOST_CHUNKS = 256

_kernels = KernelFile("reduce")


def column_blocks(rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid, block, rows per chunk) of a kernel that reduces the rows of a (rows, columns) matrix.

    A block is TX columns by 256 / TX rows; grid is (chunks of rows, groups of columns).
    """
    width = 1
    while width < min(columns, 32):
        width *= 2
    each = max(16 * _THREADS // width, -(-rows // _MOST_CHUNKS))
    return (-(-rows // each), -(-columns // width)), (width, _THREADS // width), each


@sum_slices.kernel()
def launch_sum_slices(partial: Array, bias: Array | None) -> Array:
    slices, shape = partial.shape[0], partial.shape[1:]
    if slices == 1 and bias is None:
        return partial.reshape(shape)
    y = empty(partial, shape)
    grid = (-(-y.size // _THREADS),)
    _kernels["sum_slices"](grid, (_THREADS,), y, partial, bias, slices, y.size, shape[-1])
    return y


@column_sum.kernel()
def launch_column_sum(x: Array) -> Array:
    columns = x.shape[-1]
    rows = x.size // columns
    grid, block, each = column_blocks(rows, columns)
    partial = empty(x, (grid[0], columns))
    _kernels["column_sum"](grid, block, partial, x, rows, columns, each)
    return launch_sum_slices(partial, None)
