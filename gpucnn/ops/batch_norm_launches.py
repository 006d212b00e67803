"""Launches that batch normalisation and its fused blocks share: ``kernels/batch_norm.cu``."""

from __future__ import annotations

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.reduce import column_blocks
from gpucnn.ops.softmax import row_blocks

_THREADS = 256
_ROWS_EACH = 8  # of a thread in an element-wise pass: several loads in flight

KERNELS = KernelFile("batch_norm")


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
    mean, squares = empty(x, (C, grid[0])), empty(x, (C, grid[0]))
    KERNELS["batch_norm_statistics"](grid, block, mean, squares, x, rows, C, each)
    running = running_mean, running_var
    return launch_join(x, rows, mean, squares, None, None, each, *running, momentum, eps)


def launch_join(
    x: Array,
    rows: int,
    mean: Array,
    squares: Array,
    pivot: Array | None,
    counts: Array | None,
    each: int,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """:func:`launch_statistics` from those of chunks of ``each`` rows, or of ``counts``."""
    C, chunks = mean.shape
    delta, invstd = empty(x, (C,)), empty(x, (C,))
    KERNELS["batch_norm_finish_statistics"](
        *row_blocks(C), delta, invstd, running_mean, running_var, mean, squares, x, pivot, counts,
        rows, C, each, chunks, momentum, eps,
    )  # fmt: skip
    return delta, invstd


def launch_finish_sums(
    products: Array, sums: Array, x: Array, delta: Array | None, spread: Array, eps: float
) -> tuple[Array, Array]:
    """dgamma and dbeta from the partial sums (C, chunks) about the center.

    spread (C): invstd where eps is 0, else the variance.
    """
    C, chunks = sums.shape
    dgamma, dbeta = empty(x, (C,)), empty(x, (C,))
    launch = KERNELS["batch_norm_finish_sums"]
    launch(*row_blocks(C), dgamma, dbeta, products, sums, x, delta, spread, C, chunks, eps)
    return dgamma, dbeta
