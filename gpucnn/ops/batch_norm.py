"""Batch normalisation over the last axis: ``kernels/batch_norm.cu``."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, empty
from gpucnn.empty_batch import nothing
from gpucnn.fusion import fuses
from gpucnn.ops.batch_norm_launches import (
    KERNELS,
    empty_sums,
    launch_statistics,
    rows_blocks,
    rows_of,
)
from gpucnn.ops.batch_norm_partials import batch_norm_join_moments
from gpucnn.ops.channels import (
    chunk_rows,
    column_sums,
    fold,
    near,
    normalise,
    product_sums,
    statistics,
    tile,
)
from gpucnn.ops.geometry import flag, remembered, same_float_dtype
from gpucnn.ops.reduce import column_blocks
from gpucnn.primitive import storing_primitive
from gpucnn.recording import copied
from gpucnn.tensor import Function, Tensor, no_grad
from gpucnn.threads import map_chunks, scratch

# geometry


@remembered(arrays=slice(0, 5))
def batch_norm_check(
    x: Any, gamma: Any, beta: Any, mean: Any, var: Any, training: Any, momentum: Any, eps: Any
) -> None:
    """Check the arguments of :func:`batch_norm`."""
    if x.ndim < 2:
        raise ValueError(f"x must have shape (N, …, C), at least two axes, got {tuple(x.shape)}")
    if x.size == 0:
        raise ValueError(f"x must not be empty, got shape {tuple(x.shape)}")
    C = x.shape[-1]
    named = {"gamma": gamma, "beta": beta, "running_mean": mean, "running_var": var}
    for name, array in named.items():
        if array is not None and array.shape != (C,):
            raise ValueError(f"{name} must have shape ({C},), got {tuple(array.shape)}")
    same_float_dtype(x=x, **named)
    flag("training", training)
    for name, number in (("momentum", momentum), ("eps", eps)):
        if isinstance(number, bool) or not isinstance(
            number, int | float | np.integer | np.floating
        ):
            raise TypeError(f"{name} must be a number, got {number!r}")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum must lie between 0 and 1, got {momentum}")
    if not 0 < eps <= sys.float_info.max:
        raise ValueError(f"eps must be > 0, got {eps}")
    if (mean is None) != (var is None):
        raise ValueError("running_mean and running_var must be given both, or both be None")
    if not training and mean is None:
        raise ValueError("running_mean must be given unless training=True, got None")
    if training and x.size == C:
        raise ValueError(
            f"x must hold more than one value per channel with training=True, got shape "
            f"{tuple(x.shape)}: the variance of one value is 0"
        )


# primitives


def _or(value: Array | None, otherwise: float, like: NDArray[Any]) -> NDArray[Any]:
    return np.full(like.shape, otherwise) if value is None else value.astype(np.float64)


@storing_primitive(0)
def batch_norm_training(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    """y = gamma·(x − mean)·invstd + beta, invstd = 1/√(var + eps), over all axes but the last

    x (…, C); gamma, beta, running_mean, running_var (C) or None -> y (…, C), mean − x[0] (C),
    invstd (C). var is the biased variance. In place: running = (1 − momentum)·running +
    momentum·batch, with the unbiased variance. The mean is kept as its distance from the first row
    of x: far from 0, float32 could not hold it well enough (Ioffe and Szegedy, arXiv:1502.03167).
    """
    mean, var = statistics(x)
    invstd = 1 / np.sqrt(var + eps)
    count = x.size // x.shape[-1]
    if running_mean is not None and running_var is not None:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_var[...] = (1 - momentum) * running_var + momentum * var * (count / (count - 1))
    first = x.reshape(-1, x.shape[-1])[0]
    delta = mean - first
    scale = _or(gamma, 1, mean) * invstd
    y = normalise(x, first, scale, _or(beta, 0, mean) - delta * scale)
    return y, delta.astype(x.dtype), invstd.astype(x.dtype)


@storing_primitive(0)
def batch_norm_apply(
    x: Array, gamma: Array | None, beta: Array | None, delta: Array, invstd: Array
) -> Array:
    """y = gamma·(x − x[0] − delta)·invstd + beta: x (…, C), the rest (C) -> y (…, C)."""
    first = x.reshape(-1, x.shape[-1])[0]
    scale = invstd.astype(np.float64) * (1 if gamma is None else gamma)
    shift = (0 if beta is None else beta) - delta * scale
    return normalise(x, first, scale, shift)


@storing_primitive(0)
def batch_norm_inference(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float
) -> tuple[Array, Array]:
    """y = gamma·(x − mean)·invstd + beta with given statistics -> y (…, C), invstd (C)."""
    invstd = 1 / np.sqrt(var.astype(np.float64) + eps)
    y = normalise(x, mean, _or(gamma, 1, mean) * invstd, _or(beta, 0, mean))
    return y, invstd.astype(x.dtype)


@storing_primitive()
def batch_norm_sums(
    dy: Array, x: Array, mean: Array | None, delta: Array | None, invstd: Array
) -> tuple[Array, Array]:
    """dgamma = Σ dy·(x − mean)·invstd and dbeta = Σ dy, over all axes but the last

    dy, x (…, C); mean (C), or None for that of the batch, x[0] + delta; delta (C), None where mean
    is given; invstd (C) -> dgamma (C), dbeta (C).
    """
    folded, k = fold(x)
    C = x.shape[-1]
    gradients = dy.reshape(folded.shape)
    first = cast("NDArray[Any]", mean if delta is None else x.reshape(-1, C)[0])
    direct = near(first * invstd, x)
    c = tile(first, k, x.dtype)

    def part(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]]:
        rows, given = gradients[start:stop], folded[start:stop]
        if not direct:
            moved = scratch("batch_norm centred", rows.shape, x.dtype)
            given = np.subtract(given, c, out=moved)
        return product_sums(given, rows, C), column_sums(rows, C)

    parts = map_chunks(part, len(folded), chunk_rows(folded))
    products = np.stack([p for p, _ in parts]).sum(axis=0)
    dbeta = np.stack([s for _, s in parts]).sum(axis=0)
    if direct:
        products -= first * dbeta
    if delta is not None:
        products -= delta * dbeta
    return (products * invstd).astype(x.dtype), dbeta.astype(x.dtype)


@storing_primitive(0)
def batch_norm_data_gradient(
    dy: Array,
    x: Array,
    gamma: Array | None,
    delta: Array,
    invstd: Array,
    dgamma: Array,
    dbeta: Array,
) -> Array:
    """dx = gamma·invstd·(dy − dbeta/m − x̂·dgamma/m), m = rows of x, x̂ = (x − x[0] − delta)·invstd

    dy, x (…, C); the rest (C) -> dx (…, C): the statistics depend on x.
    """
    folded, k = fold(x)
    dx = buffers.empty_like(x)
    out, gradients = dx.reshape(folded.shape), dy.reshape(folded.shape)
    first = x.reshape(-1, x.shape[-1])[0]
    m = x.size // x.shape[-1]
    scale = _or(gamma, 1, invstd) * invstd
    slope = -scale * invstd * dgamma / m
    level = -scale * dbeta / m - slope * delta
    direct = near(first * invstd, x)
    if direct:
        level = level - slope * first
    c, a, b, d = (tile(v, k, x.dtype) for v in (first, scale, slope, level))

    def part(start: int, stop: int) -> None:
        given, rows = folded[start:stop], out[start:stop]
        scaled = scratch("batch_norm centred", rows.shape, x.dtype)
        if not direct:
            given = np.subtract(given, c, out=rows)
        np.multiply(given, b, out=rows)
        np.multiply(gradients[start:stop], a, out=scaled)
        np.add(rows, scaled, out=rows)
        np.add(rows, d, out=rows)

    map_chunks(part, len(folded), chunk_rows(folded))
    return dx


@storing_primitive(0)
def batch_norm_fixed_gradient(dy: Array, gamma: Array | None, invstd: Array) -> Array:
    """dx = gamma·invstd·dy: the gradient where the statistics do not depend on x."""
    folded, k = fold(dy)
    dx = buffers.empty_like(dy)
    out = dx.reshape(folded.shape)
    a = tile(_or(gamma, 1, invstd) * invstd, k, dy.dtype)

    def part(start: int, stop: int) -> None:
        np.multiply(folded[start:stop], a, out=out[start:stop])

    map_chunks(part, len(folded), chunk_rows(folded))
    return dx


@batch_norm_training.kernel(native=True)
def _launch_training(
    x: Array,
    gamma: Array | None,
    beta: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array, Array]:
    delta, invstd = launch_statistics(x, running_mean, running_var, momentum, eps)
    return _launch_apply(x, gamma, beta, delta, invstd), delta, invstd


@batch_norm_apply.kernel(native=True)
def _launch_apply(
    x: Array, gamma: Array | None, beta: Array | None, delta: Array, invstd: Array
) -> Array:
    rows, C = rows_of(x)
    y = empty(x, x.shape, x.dtype)
    grid, block, each = rows_blocks(rows, C)
    launch = KERNELS.storing(x, "batch_norm_normalise")
    launch(grid, block, y, x, gamma, beta, delta, invstd, rows, C, each)
    return y


@batch_norm_inference.kernel(native=True)
def _launch_inference(
    x: Array, gamma: Array | None, beta: Array | None, mean: Array, var: Array, eps: float
) -> tuple[Array, Array]:
    rows, C = rows_of(x)
    y, invstd = empty(x, x.shape, x.dtype), empty(x, (C,))
    grid, block, each = rows_blocks(rows, C)
    launch = KERNELS.storing(x, "batch_norm_inference")
    launch(grid, block, y, invstd, x, gamma, beta, mean, var, rows, C, each, eps)
    return y, invstd


@batch_norm_sums.kernel(native=True)
def _launch_sums(
    dy: Array, x: Array, mean: Array | None, delta: Array | None, invstd: Array
) -> tuple[Array, Array]:
    rows, C = rows_of(x)
    grid, block, each = column_blocks(rows, C)
    made, gradients = empty_sums(x, grid)
    given = dy, x, mean, delta, invstd
    KERNELS.storing(x, "batch_norm_sums")(grid, block, *made, *given, rows, C, each)
    return gradients


@batch_norm_data_gradient.kernel(native=True)
def _launch_data_gradient(
    dy: Array,
    x: Array,
    gamma: Array | None,
    delta: Array,
    invstd: Array,
    dgamma: Array,
    dbeta: Array,
) -> Array:
    rows, C = rows_of(x)
    dx = empty(x, x.shape, x.dtype)
    grid, block, each = rows_blocks(rows, C)
    launch = KERNELS.storing(x, "batch_norm_data_gradient")
    launch(grid, block, dx, dy, x, gamma, delta, invstd, dgamma, dbeta, rows, C, each)
    return dx


@batch_norm_fixed_gradient.kernel(native=True)
def _launch_fixed_gradient(dy: Array, gamma: Array | None, invstd: Array) -> Array:
    rows, C = rows_of(dy)
    dx = empty(dy, dy.shape, dy.dtype)
    grid, block, each = rows_blocks(rows, C)
    launch = KERNELS.storing(dy, "batch_norm_fixed_gradient")
    launch(grid, block, dx, dy, gamma, invstd, rows, C, each)
    return dx


# tape


def statistics_of(
    function: Function,
    moments: Any,
    running_mean: Array | None,
    running_var: Array | None,
    momentum: float,
    eps: float,
) -> tuple[Array, Array]:
    """mean − x[0] and invstd from what the kernel that made x left behind: moments or these two."""
    if isinstance(moments, tuple):
        return moments
    made = function.run(batch_norm_join_moments, moments, running_mean, running_var, momentum, eps)
    return cast("tuple[Array, Array]", made)


def undelivered(
    function: Function, gradients: tuple[Array, Array]
) -> tuple[Array | None, Array | None]:
    """The gradients in gamma and beta, None for those that were delivered before their turn."""
    dgamma, dbeta = gradients
    return (
        None if function.delivers(1) else dgamma,
        None if function.delivers(2) else dbeta,
    )


class BatchNorm(Function):
    """batch_norm and its gradients in x, gamma and beta."""

    activations = (0,)
    fuses = True  # whether another operation's kernel may make its sums
    gradients: tuple[Array, Array] | None = None  # in gamma and beta, by the kernel that made dy

    def forward(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        *,
        training: bool,
        momentum: float,
        eps: float,
        moments: Any = None,
    ) -> Array:
        batch_norm_check(x, gamma, beta, running_mean, running_var, training, momentum, eps)
        if any(self.needs[3:]):
            raise ValueError("running_mean and running_var must not require a gradient")
        self.training = training
        self.mean: Array | None = None
        self.delta: Array | None = None
        if training and moments is not None:
            self.delta, self.invstd = statistics_of(
                self, moments, running_mean, running_var, momentum, eps
            )
            y = self.run(batch_norm_apply, x, gamma, beta, self.delta, self.invstd)
        elif training:
            y, self.delta, self.invstd = self.run(
                batch_norm_training, x, gamma, beta, running_mean, running_var, momentum, eps
            )
        else:
            y, self.invstd = self.run(
                batch_norm_inference, x, gamma, beta, running_mean, running_var, eps
            )
        if self.recording:
            self.x, self.gamma, self.fuses = x, gamma, fuses()
            if not training and running_mean is not None:
                self.mean = copied(running_mean)  # it may be updated before the backward pass
        return y

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        needs_x, needs_gamma, needs_beta = self.needs[:3]
        dx = dgamma = dbeta = None
        if self.gradients is not None:
            dgamma, dbeta = self.gradients
        elif needs_gamma or needs_beta or self.training:
            dgamma, dbeta = self.run_for(
                (1, 2), batch_norm_sums, dy, self.x, self.mean, self.delta, self.invstd
            )
        if needs_x and self.training:
            dx = self.run(
                batch_norm_data_gradient,
                dy, self.x, self.gamma, self.delta, self.invstd, dgamma, dbeta,
            )  # fmt: skip
        elif needs_x:
            dx = self.run(batch_norm_fixed_gradient, dy, self.gamma, self.invstd)
        if self.gradients is not None:
            return dx, *undelivered(self, self.gradients), None, None
        return dx, dgamma, dbeta, None, None


# public


def batch_norm(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch normalisation: each channel gets the mean beta and the standard deviation gamma.

    ``y = gamma · (x − mean) / √(var + eps) + beta`` per channel of the last axis. With
    ``training=True`` mean and var are those of x over all other axes (var the biased one), and the
    running statistics are updated in place: ``running = (1 − momentum)·running + momentum·batch``,
    where the batch's variance is the unbiased one, m/(m − 1)·var for m values. With
    ``training=False`` mean and var are the running ones. The gradient of training goes through mean
    and var. This is PyTorch's convention: what Keras and Caffe call momentum is 1 − momentum here,
    and Keras keeps the biased variance.

    x: (N, C), (N, H, W, C) or any (N, …, C), float32 (float64 on cpu). gamma, beta: (C), None for 1
    and 0. running_mean, running_var: (C); both may be None with ``training=True``. momentum: 0 to
    1. eps: > 0. Returns a tensor of the shape of x.

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit, for
    images without a pixel, and in training for one value per channel; DeviceError for two devices.
    An empty batch leaves the running statistics alone.

    Source: Ioffe and Szegedy, arXiv:1502.03167; torch.nn.functional.batch_norm.
    """
    options = {"training": training, "momentum": momentum, "eps": eps}
    inputs = (x, gamma, beta, running_mean, running_var)
    if isinstance(x, Tensor) and x.shape[:1] == (0,):
        # Two blank images pass the checks; what they do to the statistics is thrown away.
        dtype = np.float32 if is_bfloat16(x.data) else x.dtype
        blank = Tensor(np.zeros((2, *x.shape[1:]), dtype), device=x.device)
        copies = [
            Tensor._wrap(copied(t.data), t.device) if isinstance(t, Tensor) else t
            for t in (running_mean, running_var)
        ]
        with no_grad():
            BatchNorm.apply(blank, gamma, beta, *copies, **options)
        return nothing(inputs, x.shape)
    moments = x._moments if training is True and isinstance(x, Tensor) else None
    return cast("Tensor", BatchNorm.apply(*inputs, **options, moments=moments))
