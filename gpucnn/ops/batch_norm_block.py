"""Batch normalisation, a residual and an activation at once: ``kernels/batch_norm_block.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.batch_norm_launches import (
    empty_sums,
    launch_statistics,
    rows_blocks,
    rows_of,
)
from gpucnn.ops.batch_norm_parts import (
    Factors,
    Given,
    activate,
    bend,
    block_gradients,
    blocked,
    invstd_of,
    pack_bits,
    unpack_bits,
    whole_folds,
)
from gpucnn.ops.channels import fold, statistics
from gpucnn.ops.reduce import vector_column_blocks
from gpucnn.primitive import storing_primitive
from gpucnn.threads import map_chunks, scratch

# primitives


@storing_primitive()
def batch_norm_statistics(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """mean − x[0] and invstd = 1/√(var + eps) over all axes but the last

    x (…, C); running_mean, running_var (C) or None, updated in place as by batch_norm_training ->
    (C), (C).
    """
    mean, var = statistics(x)
    delta = mean - x.reshape(-1, x.shape[-1])[0]
    count = x.size // x.shape[-1]
    if running_mean is not None and running_var is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * (count / (count - 1))
    return delta.astype(x.dtype), (1 / np.sqrt(var + eps)).astype(x.dtype)


@storing_primitive(0)
def batch_norm_block_forward(
    x: Array,
    residual: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    keep_bits: bool,
) -> tuple[Array, Array | None]:
    """z = gamma·(x − mean)·invstd + beta + residual, y = negative_slope·z where z <= 0, else z

    x, residual (…, C); gamma, beta (C) or None; mean (C), or None for that of the batch, x[0] +
    delta; delta (C), None where mean is given; spread (C): invstd where eps is 0, else the variance
    -> y (…, C), and with keep_bits, which goes with a residual, whether z <= 0: (rows, ⌈C / 8⌉)
    uint8, bit c % 8 of byte c // 8.
    """
    C = x.shape[-1]
    rows, y = x.reshape(-1, C), buffers.empty_like(x)
    out, added = y.reshape(-1, C), None if residual is None else residual.reshape(-1, C)
    factors = Factors(x, Given(gamma, beta, mean, delta), invstd_of(spread, eps))
    bits = np.empty((len(rows), -(-C // 8)), np.uint8) if keep_bits else None

    def part(start: int, stop: int) -> None:
        folded, k = fold(rows[start:stop])
        z = out[start:stop].reshape(folded.shape)
        factors.normalise(folded, k, z)
        if added is not None:
            np.add(z, added[start:stop].reshape(folded.shape), out=z)
        if bits is None:
            activate(z, negative_slope)
            return
        negative = scratch("block negative", z.shape, np.bool_)
        np.less_equal(z, 0, out=negative)
        bits[start:stop] = pack_bits(negative.reshape(-1, C))
        activate(z, negative_slope)

    map_chunks(part, len(rows), whole_folds(len(rows), C))
    return y, bits


@storing_primitive(0, 1)
def batch_norm_block_backward(
    dy: Array,
    x: Array,
    bits: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    residual: bool,
    sums: bool,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    """g = dy, times negative_slope where z <= 0; dgamma = Σ g·x̂, dbeta = Σ g, x̂ = (x − mean)·invstd

    dx = gamma·invstd·(g − dbeta/m − x̂·dgamma/m), m = rows of x; gamma·invstd·g where mean is given.
    dy, x (…, C); bits as batch_norm_block_forward made them, None where there was no residual; the
    rest (C), and what it was there -> dx, g if ``residual`` wants it, dgamma and dbeta (C) if
    ``sums``; sums is needed unless mean is given.
    """
    C = x.shape[-1]
    rows, gradients = x.reshape(-1, C), dy.reshape(-1, C)
    dresidual = buffers.empty_like(rows) if residual else None

    def route(
        start: int, stop: int, factors: Factors, centred: NDArray[Any], k: int, g: NDArray[Any]
    ) -> None:
        if bits is not None:
            negative = unpack_bits(bits[start:stop], C).view(np.bool_)
        else:  # z <= 0, exactly: the sign of a sum survives its rounding
            scaled = scratch("block scaled", centred.shape, x.dtype)
            np.multiply(centred, factors.of("scale", k), out=scaled)
            negative = scratch("block negative", g.shape, np.bool_)
            np.less_equal(scaled, factors.of("minus_shift", k), out=negative.reshape(scaled.shape))
        if negative_slope == 0:
            blocked(gradients[start:stop], negative, g)
        else:
            np.copyto(g, gradients[start:stop])
            bend(g, negative, negative_slope)

    bent = negative_slope != 1
    g, how = (dresidual, route) if bent else (gradients, None)
    given = gamma, beta, mean, delta, invstd_of(spread, eps)
    dx, dgamma, dbeta = block_gradients(rows, *given, sums, g, how, whole_folds(len(rows), C))
    if dresidual is not None and not bent:
        np.copyto(dresidual, gradients)
    back = None if dresidual is None else dresidual.reshape(x.shape)
    return dx.reshape(x.shape), back, dgamma, dbeta


_kernels = KernelFile("batch_norm_block", storage=True)


@batch_norm_statistics.kernel(native=True)
def _launch_statistics(
    x: Array,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    return launch_statistics(x, running_mean, running_var, momentum, eps)


@batch_norm_block_forward.kernel(native=True)
def _launch_forward(
    x: Array,
    residual: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    keep_bits: bool,
) -> tuple[Array, Array | None]:
    rows, C = rows_of(x)
    y = empty(x, x.shape, x.dtype)
    per_channel = (gamma, beta, mean, delta, spread)
    if not keep_bits:
        grid, block, each = rows_blocks(rows, C)
        launch = _kernels.storing(x, "batch_norm_block_apply")
        launch(grid, block, y, x, residual, *per_channel, rows, C, each, eps, negative_slope)
        return y, None
    bits = empty(x, (rows, -(-C // 8)), np.uint8)
    grid, block, each = rows_blocks(rows, 8 * bits.shape[1], even=True)
    launch = _kernels.storing(x, "batch_norm_block_apply_bits")
    launch(grid, block, y, bits, x, residual, *per_channel, rows, C, each, eps, negative_slope)
    return y, bits


@batch_norm_block_backward.kernel(native=True)
def _launch_backward(
    dy: Array,
    x: Array,
    bits: Array | None,
    gamma: Array | None,
    beta: Array | None,
    mean: Array | None,
    delta: Array | None,
    spread: Array,
    eps: float,
    negative_slope: float,
    residual: bool,
    sums: bool,
) -> tuple[Array, Array | None, Array | None, Array | None]:
    rows, C = rows_of(x)
    given = (bits, gamma, beta, mean, delta, spread)
    dgamma = dbeta = None
    if sums:
        grid, block, each = vector_column_blocks(rows, C)
        made, (dgamma, dbeta) = empty_sums(x, grid)
        launch = _kernels.storing(x, "batch_norm_block_sums")
        launch(grid, block, *made, dy, x, *given, rows, C, each, eps, negative_slope)
    dx = empty(x, x.shape, x.dtype)
    dresidual = empty(x, x.shape, x.dtype) if residual else None
    through = (dgamma, dbeta) if mean is None else (None, None)
    grid, block, each = rows_blocks(rows, C)
    launch = _kernels.storing(x, "batch_norm_block_gradient")
    arrays = (dx, dresidual, dy, x, *given, *through)
    launch(grid, block, *arrays, rows, C, each, eps, negative_slope)
    return dx, dresidual, dgamma, dbeta
