"""Launches that batch normalisation and its fused blocks share: ``kernels/batch_norm.cu``."""

from __future__ import annotations

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
    moments = empty(x, (4, C, grid[0]))
    launch = KERNELS.storing(x, "batch_norm_statistics")
    launch(grid, block, moments, x, rows, C, each)
    return launch_join_moments(moments, running_mean, running_var, momentum, eps)


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


def launch_join_sums(
    sums: Array, x: Array, delta: Array | None, spread: Array, eps: float
) -> tuple[Array, Array]:
    """dgamma and dbeta from the sums of chunks about the center, (2, C, chunks).

    spread (C): invstd where eps is 0, else the variance.
    """
    _, C, chunks = sums.shape
    dgamma, dbeta = result(x, (C,)), result(x, (C,))
    launch = KERNELS.storing(x, "batch_norm_join_sums")
    launch((C,), (_threads(chunks),), dgamma, dbeta, sums, x, delta, spread, C, chunks, eps)
    return dgamma, dbeta


def _threads(chunks: int) -> int:
    """Of a block: the power of two that covers the chunks, within what a block holds."""
    threads = 32
    while threads < min(chunks, _THREADS):
        threads *= 2
    return threads
