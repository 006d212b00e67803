"""Launches that batch normalisation and its fused blocks share: ``kernels/batch_norm.cu``."""

from __future__ import annotations

from gpucnn.arrivals import JOINED_AT_ONCE, chunk_arrivals
from gpucnn.device import Array, empty, result
from gpucnn.kernel import KernelFile
from gpucnn.ops.reduce import column_blocks

_THREADS = 256
_ROWS_EACH = 8  # of a thread in an element-wise pass: several loads in flight

KERNELS = KernelFile("batch_norm", storage=True)


def rows_blocks(
    rows: int, C: int, rows_each: int = _ROWS_EACH, even: bool = False
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(grid, block, rows per chunk) of an element-wise pass whose threads keep their channels.

    A thread keeps four channels, or one where C is no multiple of 4; a warp reads whole rows. even:
    an even number of threads to a row, so that neighbours stay together.
    """
    columns = C // 4 if C % 4 == 0 else C
    groups = -(-columns // 32)
    width = -(-columns // groups)
    width += even and width % 2
    each = rows_each * (_THREADS // width)
    return (-(-rows // each), groups), (width, _THREADS // width), each


def rows_of(x: Array) -> tuple[int, int]:
    return x.size // x.shape[-1], x.shape[-1]


def launch_statistics(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """mean − x[0] and invstd of the batch, and its share of the running statistics."""
    rows, C = rows_of(x)
    grid, block, each = column_blocks(rows, C)
    delta, invstd = empty(x, (C,)), empty(x, (C,))
    moments, arrived = empty(x, (4, C, grid[0])), chunk_arrivals(x, grid[1], grid[0])
    launch = KERNELS.storing(x, "batch_norm_statistics")
    launch(
        grid, block, delta, invstd, running_mean, running_var, moments, arrived, x,
        rows, C, each, momentum, eps,
    )  # fmt: skip
    return delta, invstd


def launch_join_moments(
    moments: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """:func:`launch_statistics` from the moments of chunks, (4, C, chunks)."""
    _, C, chunks = moments.shape
    delta, invstd = empty(moments, (C,)), empty(moments, (C,))
    KERNELS["batch_norm_join_moments"](
        (C,), (_threads(chunks),), delta, invstd, running_mean, running_var, moments,
        C, chunks, momentum, eps,
    )  # fmt: skip
    return delta, invstd


def empty_sums(
    x: Array, grid: tuple[int, int]
) -> tuple[tuple[Array, Array, Array, Array], tuple[Array, Array]]:
    """What a pass over (chunks, groups of columns) writes that sums gradients: dgamma, dbeta (C),
    the sums of the chunks and counters; and the first two again.
    """
    C = x.shape[-1]
    gradients = result(x, (C,)), result(x, (C,))
    return (*gradients, empty(x, (2, C, grid[0])), chunk_arrivals(x, grid[1], grid[0])), gradients


def _threads(chunks: int) -> int:
    """Of a block: a warp for each group of chunks, within what a block holds."""
    return min(_THREADS, 32 * -(-chunks // JOINED_AT_ONCE))
