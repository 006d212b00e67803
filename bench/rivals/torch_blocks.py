"""Fused blocks of batch normalisation in PyTorch: its functions one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.ops.batch_norm_block_pool import NEGATIVE, NOWHERE

from .expression import Expression, channels_first, channels_last, expression
from .torch_images import pool_windows


def _images(x: Any) -> Any:
    """(…, C) -> (N, C, …), or (M, C); None passes."""
    return x if x is None or x.ndim < 3 else channels_first(x)


def _back(y: Any) -> Any:
    return channels_last(y) if y.ndim > 2 else y


def _statistics(x: Any, mean: Any, delta: Any, spread: Any, eps: float) -> tuple[Any, Any]:
    """Mean and 1 / deviation."""
    mean = x.reshape(-1, x.shape[-1])[0] + delta if mean is None else mean
    return mean, spread if eps == 0 else (spread + np.float32(eps)) ** -0.5


def _chain(torch: Any, slope: float, windows: Any) -> Any:
    """(x, residual, gamma, beta, mean, variance) -> before the pool, y and its indices or None."""
    f = torch.nn.functional

    def run(x: Any, residual: Any, *vectors: Any) -> Any:
        gamma, beta, mean, var = vectors
        a = f.batch_norm(x, mean, var, gamma, beta, False, 0.0, 0.0)
        a = a if residual is None else a + residual
        if slope != 1:
            a = f.leaky_relu(a, slope) if slope else f.relu(a)
        if windows is None:
            return a, a, None
        return a, *torch.ops.aten.max_pool2d_with_indices(a, *windows)

    return run


def _forward(
    torch: Any, x: Any, residual: Any, gamma: Any, beta: Any, found: Any, slope: float,
    windows: Any, route: bool,
) -> Expression:  # fmt: skip
    """route: the primitive tells where its gradient goes, which PyTorch does in its own way."""
    chain, (mean, invstd) = _chain(torch, slope, windows), found
    inputs = [_images(x), _images(residual), gamma, beta, mean, invstd**-2]
    rest = [None] if route else []
    return Expression(inputs, lambda *t: chain(*t)[1], lambda r: [_back(r[0]), *rest])


@expression("batch_norm_block_forward")
def _block(
    torch: Any, x: Any, residual: Any, gamma: Any, beta: Any, mean: Any, delta: Any, spread: Any,
    eps: float, slope: float, keep_bits: bool,
) -> Expression:  # fmt: skip
    found = _statistics(x, mean, delta, spread, eps)
    return _forward(torch, x, residual, gamma, beta, found, slope, None, keep_bits)


@expression("batch_norm_block_pool_forward")
def _block_pool(
    torch: Any, x: Any, residual: Any, gamma: Any, beta: Any, mean: Any, delta: Any, spread: Any,
    eps: float, slope: float, geometry: Any,
) -> Expression | None:  # fmt: skip
    windows = pool_windows(geometry)
    if windows is None:
        return None
    found = _statistics(x, mean, delta, spread, eps)
    return _forward(torch, x, residual, gamma, beta, found, slope, windows, True)


def _backward(
    torch: Any, dy: Any, x: Any, gamma: Any, found: Any, slope: float, a: Any, pooled: Any
) -> Expression:
    """Of a block in training without a residual; a: what came out of its activation."""
    aten = torch.ops.aten
    indices, windows = pooled

    def run(dy: Any, x: Any, gamma: Any, mean: Any, invstd: Any, a: Any, indices: Any) -> Any:
        g = dy
        if indices is not None:
            g = aten.max_pool2d_with_indices_backward(g, a, *windows, indices)
        if slope == 0:
            g = aten.threshold_backward(g, a, 0)
        elif slope != 1:
            g = aten.leaky_relu_backward(g, a, slope, False)
        every = [True, True, True]
        return aten.native_batch_norm_backward(
            g, x, gamma, None, None, mean, invstd, True, 0.0, every
        )

    def results(r: list[Any]) -> list[Any]:
        return [_back(r[0]), *r[1:]]

    mean, invstd = found
    return Expression([_images(dy), _images(x), gamma, mean, invstd, a, indices], run, results)


def _made(torch: Any, x: Any, gamma: Any, beta: Any, found: Any, slope: float, windows: Any) -> Any:
    """What the forward pass leaves for the backward one, as host arrays."""
    arrays = (_images(x), None, gamma, beta, found[0], found[1] ** -2)
    tensors = [None if v is None else torch.from_numpy(np.ascontiguousarray(v)) for v in arrays]
    return [None if t is None else t.numpy() for t in _chain(torch, slope, windows)(*tensors)]


@expression("batch_norm_block_backward")
def _block_backward(
    torch: Any, dy: Any, x: Any, bits: Any, gamma: Any, beta: Any, mean: Any, delta: Any,
    spread: Any, eps: float, slope: float, residual: bool, sums: bool,
) -> Expression | None:  # fmt: skip
    if residual or mean is not None or gamma is None:
        return None
    found = _statistics(x, mean, delta, spread, eps)
    a, _, _ = _made(torch, x, gamma, beta, found, slope, None)
    return _backward(torch, dy, x, gamma, found, slope, a, (None, None))


@expression("batch_norm_block_pool_backward")
def _block_pool_backward(
    torch: Any, dy: Any, x: Any, codes: Any, gamma: Any, mean: Any, delta: Any, spread: Any,
    eps: float, slope: float, residual: bool, sums: bool, geometry: Any,
) -> Expression | None:  # fmt: skip
    s, windows = geometry, pool_windows(geometry)
    overlap = s.SH < s.KH or s.SW < s.KW or s.PT or s.PL
    if windows is None or overlap or residual or mean is not None or gamma is None:
        return None
    cell = np.where(codes == NOWHERE, 0, codes % NEGATIVE).astype(np.int64)
    h = np.arange(s.OH)[:, None, None] * s.SH + cell // s.KW
    w = np.arange(s.OW)[:, None] * s.SW + cell % s.KW
    a = np.zeros(x.shape, x.dtype)  # of which the sign alone is read
    n, c = np.arange(s.N)[:, None, None, None], np.arange(s.C)
    a[n, h, w, c] = np.where(codes < NEGATIVE, 1, -1)
    pooled = channels_first(h * s.W + w), windows
    found = _statistics(x, mean, delta, spread, eps)
    return _backward(torch, dy, x, gamma, found, slope, channels_first(a), pooled)
