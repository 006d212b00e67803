"""Group normalisation, and layer normalisation, its one-group case: ``kernels/group_norm.cu``."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.channels import column_sums, divisor
from gpucnn.ops.geometry import integer, not_empty, same_float_dtype
from gpucnn.ops.reduce import column_blocks, launch_sum_slices
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks, scratch

# geometry


def _check_eps(eps: Any) -> None:
    if isinstance(eps, bool) or not isinstance(eps, int | float | np.integer | np.floating):
        raise TypeError(f"eps must be a number, got {eps!r}")
    if not 0 < eps <= sys.float_info.max:
        raise ValueError(f"eps must be finite and > 0, got {eps}")


def _check_arrays(x: Any, weight: Any, bias: Any, shape: tuple[int, ...]) -> None:
    for name, array in (("weight", weight), ("bias", bias)):
        if array is not None:
            check_tensor(name, array)
        if array is not None and array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    same_float_dtype(x=x, weight=weight, bias=bias)


def normalized_axes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """normalized_shape of :func:`layer_norm` as a tuple of sizes, each >= 1."""
    sizes = normalized_shape if isinstance(normalized_shape, tuple | list) else (normalized_shape,)
    if not sizes:
        raise ValueError(f"normalized_shape must hold at least one size, got {normalized_shape!r}")
    return tuple(integer("normalized_shape", size, 1) for size in sizes)


# primitives

_CHUNK = 1 << 17  # elements: threads change hands after each pass over this many


def _samples_per_chunk(x: NDArray[Any]) -> int:
    return max(1, _CHUNK * len(x) // x.size)


_LONG_ROW = 1 << 13  # elements: over rows this long a NumPy loop is hardly overhead


def _fold(x: NDArray[Any]) -> NDArray[Any]:
    """x (n, P, C) as (n, P/k, k·C), so that rows are long also when C is small."""
    n, P, C = x.shape
    k = divisor(P, _LONG_ROW // C)
    return x.reshape(n, P // k, k * C)


def _group_means(v: NDArray[Any], groups: int, C: int) -> NDArray[Any]:
    """The mean per sample and group of folded v (n, Q, k·C): (n, G), in float64."""
    n, Q, L = v.shape
    sums = v[:, 0] if Q == 1 else np.matmul(np.ones(Q, v.dtype), v)
    if L > C:
        sums = sums.reshape(n, L // C, C).sum(axis=1)
    each = C // groups
    totals = sums.reshape(-1, each) @ np.ones(each, v.dtype)
    return cast("NDArray[Any]", totals.reshape(n, groups).astype(np.float64) / (Q * L // groups))


def _spread(v: NDArray[Any], like: NDArray[Any], C: int) -> NDArray[Any]:
    """v (n, G) or (C) as it stands beside a folded array (n, Q, k·C)."""
    times = like.shape[2] // C
    v = v.astype(like.dtype, copy=False)
    if v.ndim == 1:
        return np.tile(v, times)
    if v.shape[1] > 1:
        v = np.tile(np.repeat(v, C // v.shape[1], axis=1), times)
    return v[:, None]


def _xhat(x: NDArray[Any], statistics: NDArray[Any], C: int, out: NDArray[Any]) -> NDArray[Any]:
    """(x − center − rest)·invstd of a folded piece of x."""
    center, rest, invstd = (_spread(statistics[..., i], x, C) for i in range(3))
    np.subtract(x, center, out=out)
    np.subtract(out, rest, out=out)
    return cast("NDArray[Any]", np.multiply(out, invstd, out=out))


@primitive
def group_norm_forward(
    x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
) -> tuple[Array, Array]:
    """y = (x − mean)·invstd·weight + bias, invstd = 1/√(var + eps), per sample and group

    x (N, P, C), C in groups of C/G; weight, bias (C) or None -> y (N, P, C), statistics (N, G, 3):
    center, rest, invstd. var is the biased variance. The mean is center + rest: far from 0, one
    float32 does not hold it well enough.
    """
    N, _, C = x.shape
    y, statistics = buffers.empty_like(x), np.empty((N, groups, 3), x.dtype)
    folded, results = _fold(x), _fold(y)

    def part(start: int, stop: int) -> None:
        rows, out = folded[start:stop], results[start:stop]
        center = _group_means(rows, groups, C).astype(x.dtype)
        np.subtract(rows, _spread(center, rows, C), out=out)
        rest = _group_means(out, groups, C)
        squares = np.multiply(out, out, out=scratch("group_norm squares", out.shape, x.dtype))
        var = _group_means(squares, groups, C) - rest * rest
        own = statistics[start:stop]
        own[..., 0], own[..., 1], own[..., 2] = center, rest, 1 / np.sqrt(var + eps)
        np.subtract(out, _spread(own[..., 1], out, C), out=out)
        np.multiply(out, _spread(own[..., 2], out, C), out=out)
        if weight is not None:
            np.multiply(out, _spread(weight, out, C), out=out)
        if bias is not None:
            np.add(out, _spread(bias, out, C), out=out)

    with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity pass
        map_chunks(part, N, _samples_per_chunk(x))
    return y, statistics


@primitive
def group_norm_data_gradient(dy: Array, x: Array, weight: Array | None, statistics: Array) -> Array:
    """dx = invstd·(g − mean(g) − x̂·mean(g·x̂)), g = dy·weight, means per sample and group

    dy, x (N, P, C); weight (C) or None; statistics (N, G, 3) -> dx (N, P, C).
    """
    N, _, C = x.shape
    groups = statistics.shape[1]
    dx = buffers.empty_like(x)
    inputs, gradients, results = _fold(x), _fold(dy), _fold(dx)

    def part(start: int, stop: int) -> None:
        out, own, g = results[start:stop], statistics[start:stop], gradients[start:stop]
        xhat = scratch("group_norm xhat", out.shape, x.dtype)
        _xhat(inputs[start:stop], own, C, xhat)
        if weight is not None:
            g = np.multiply(g, _spread(weight, out, C), out=out)
        product = np.multiply(g, xhat, out=scratch("group_norm squares", out.shape, x.dtype))
        level, slope = _group_means(g, groups, C), _group_means(product, groups, C)
        np.subtract(g, _spread(level, out, C), out=out)
        np.multiply(xhat, _spread(slope, out, C), out=xhat)
        np.subtract(out, xhat, out=out)
        np.multiply(out, _spread(own[..., 2], out, C), out=out)

    with np.errstate(invalid="ignore", over="ignore"):
        map_chunks(part, N, _samples_per_chunk(x))
    return dx


@primitive
def group_norm_sums(dy: Array, x: Array, statistics: Array) -> tuple[Array, Array]:
    """dweight = Σ dy·x̂ and dbias = Σ dy over samples and pixels: (N, P, C) -> (C), (C)."""
    N, _, C = x.shape
    inputs, gradients = _fold(x), _fold(dy)

    def part(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows = gradients[start:stop]
        product = scratch("group_norm xhat", rows.shape, x.dtype)
        _xhat(inputs[start:stop], statistics[start:stop], C, product)
        np.multiply(product, rows, out=product)
        return column_sums(product, C), column_sums(rows, C)

    with np.errstate(invalid="ignore", over="ignore"):
        parts = map_chunks(part, N, _samples_per_chunk(x))
    dweight, dbias = (np.stack([p[i] for p in parts]).sum(axis=0).astype(x.dtype) for i in range(2))
    return dweight, dbias


_THREADS = 256
_LONGEST = 1024  # values of a group that a warp takes; they stay in the L1 cache

_kernels = KernelFile("group_norm")


def _blocks(x: Array, groups: int) -> tuple[tuple[int], tuple[int], int]:
    """(grid, block, threads per group)."""
    N, P, C = x.shape
    lanes = 32 if P * (C // groups) <= _LONGEST else _THREADS
    return (-(-N * groups * lanes // _THREADS),), (_THREADS,), lanes


@group_norm_forward.kernel()
def _launch_forward(
    x: Array, weight: Array | None, bias: Array | None, groups: int, eps: float
) -> tuple[Array, Array]:
    y, statistics = empty(x, x.shape), empty(x, (x.shape[0], groups, 3))
    grid, block, lanes = _blocks(x, groups)
    launch = _kernels["group_norm_forward"]
    launch(grid, block, y, statistics, x, weight, bias, *x.shape, groups, lanes, eps)
    return y, statistics


@group_norm_data_gradient.kernel()
def _launch_data_gradient(dy: Array, x: Array, weight: Array | None, statistics: Array) -> Array:
    dx, groups = empty(x, x.shape), statistics.shape[1]
    grid, block, lanes = _blocks(x, groups)
    launch = _kernels["group_norm_data_gradient"]
    launch(grid, block, dx, dy, x, weight, statistics, *x.shape, groups, lanes)
    return dx


@group_norm_sums.kernel()
def _launch_sums(dy: Array, x: Array, statistics: Array) -> tuple[Array, Array]:
    N, P, C = x.shape
    grid, block, each = column_blocks(N * P, C)
    products, sums = empty(x, (grid[0], C)), empty(x, (grid[0], C))
    launch = _kernels["group_norm_sums"]
    launch(grid, block, products, sums, dy, x, statistics, N * P, P, C, statistics.shape[1], each)
    return launch_sum_slices(products, None), launch_sum_slices(sums, None)


# tape


class GroupNorm(Function):
    """group_norm and layer_norm on x seen as (N, P, C), and the gradients in all three inputs."""

    batched = (0,)

    def forward(
        self,
        x: Array,
        weight: Array | None,
        bias: Array | None,
        *,
        view: tuple[int, int, int],
        groups: int,
        eps: float,
    ) -> Array:
        self.shapes = tuple(None if a is None else a.shape for a in (x, weight, bias))
        x = x.reshape(view)
        weight, bias = (None if a is None else a.reshape(-1) for a in (weight, bias))
        y, statistics = self.run(group_norm_forward, x, weight, bias, groups, eps)
        if self.recording:
            self.x, self.weight, self.statistics = x, weight, statistics
        return y.reshape(self.shapes[0])

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        dy = dy.reshape(self.x.shape)
        grads: list[Array | None] = [None, None, None]
        if self.needs[0]:
            grads[0] = self.run(group_norm_data_gradient, dy, self.x, self.weight, self.statistics)
        if any(self.needs[1:]):
            grads[1:] = self.run(group_norm_sums, dy, self.x, self.statistics)
        return tuple(
            None if g is None or shape is None else g.reshape(shape)
            for g, shape in zip(grads, self.shapes, strict=True)
        )


# public


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each sample's group of channels gets mean 0 and deviation 1, then each channel its own.

    ``y = (x − mean) / √(var + eps) · weight[c] + bias[c]``; mean and var (the biased one) are those
    of the C/num_groups channels of a group over all pixels of one sample. Nothing depends on the
    batch, in training and inference alike. num_groups=C is instance normalisation.

    x: (N, …, C), at least two axes, float32 (float64 on cpu). num_groups: divides C. weight, bias:
    (C), None for 1 and 0. eps: > 0. Returns a tensor of the shape of x.

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit, for
    empty rows, and for one value in all; DeviceError for two devices.

    Source: Wu and He, arXiv:1803.08494; torch.nn.functional.group_norm.
    """
    check_tensor("x", x)
    groups = integer("num_groups", num_groups, 1)
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"x must have shape (N, …, C) and not be empty, got {x.shape}")
    N, C, pixels = max(x.shape[0], 1), x.shape[-1], math.prod(x.shape[1:-1])
    if C % groups:
        raise ValueError(f"num_groups must divide the {C} channels of x, got {groups}")
    _check_eps(eps)
    _check_arrays(x, weight, bias, (C,))
    if N * pixels * C == groups:
        raise ValueError(
            f"x must hold more than one value per group, got shape {x.shape} and {groups} groups: "
            "the variance of one value is 0"
        )
    options = {"view": (N, pixels, C), "groups": groups, "eps": float(eps)}
    return cast("Tensor", GroupNorm.apply(x, weight, bias, **options))


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Each row of the last axes gets mean 0 and deviation 1, then each element its own.

    ``y = (x − mean) / √(var + eps) · weight + bias``; mean and var (the biased one) are those of
    the last axes, which normalized_shape names: an int for the last axis, or their sizes in order.

    x: (…, *normalized_shape), float32 (float64 on cpu). weight, bias: normalized_shape, None for 1
    and 0. eps: > 0. Returns a tensor of the shape of x; a row of one value gives bias.

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit, and
    for empty rows; DeviceError for two devices.

    Source: Ba, Kiros and Hinton, arXiv:1607.06450; torch.nn.functional.layer_norm.
    """
    check_tensor("x", x)
    sizes = normalized_axes(normalized_shape)
    not_empty("x", x)
    if x.shape[x.ndim - len(sizes) :] != sizes or x.ndim < len(sizes):
        raise ValueError(f"normalized_shape must be the last axes of x {x.shape}, got {sizes}")
    _check_eps(eps)
    _check_arrays(x, weight, bias, sizes)
    length = math.prod(sizes)
    rows = math.prod(max(n, 1) for n in x.shape[: -len(sizes)])
    options = {"view": (rows, 1, length), "groups": 1, "eps": float(eps)}
    return cast("Tensor", GroupNorm.apply(x, weight, bias, **options))
