"""Batch normalisation with what follows it: residual, activation and max pooling, as one function.

The arithmetic is that of ``batch_norm_block`` and, with a pool, ``batch_norm_block_pool``.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from gpucnn.device import Array
from gpucnn.fusion import fuses
from gpucnn.ops.activation import Activation, check_real, leaky_relu, relu
from gpucnn.ops.batch_norm import (
    batch_norm,
    batch_norm_check,
    batch_norm_data_gradient,
    statistics_of,
    undelivered,
)
from gpucnn.ops.batch_norm_block import (
    batch_norm_block_backward,
    batch_norm_block_forward,
    batch_norm_statistics,
)
from gpucnn.ops.batch_norm_block_pool import (
    batch_norm_block_pool_backward,
    batch_norm_block_pool_forward,
    block_pool_geometry,
)
from gpucnn.ops.elementwise import add
from gpucnn.ops.geometry import Padding, Pair, choice, same_float_dtype
from gpucnn.ops.pool2d import max_pool2d
from gpucnn.recording import copied
from gpucnn.tensor import Tensor

ACTIVATIONS = ("none", "relu", "leaky_relu")


class Pooling(NamedTuple):
    """The arguments of max_pool2d."""

    kernel_size: int | Pair
    stride: int | Pair | None = None
    padding: int | Pair | Padding | str = 0
    edge: str = "drop"


class FusedBatchNorm(Activation):
    """batch_norm, + residual, activation, max_pool2d; and the gradients in all that has one.

    negative_slope: 0 for relu, 1 for no activation. In training ``moments`` spare the pass over x
    for the statistics. Between forward and backward it keeps x, statistics, and of what it made
    only bits of z <= 0 (with a residual, or on the cpu) or one byte per pooled output.
    """

    activations = (0, 5)
    gradients: tuple[Array, Array] | None = None  # in gamma and beta, by the kernel that made dy

    def forward(
        self,
        x: Array,
        gamma: Array | None,
        beta: Array | None,
        running_mean: Array | None,
        running_var: Array | None,
        residual: Array | None,
        *,
        training: bool,
        momentum: float,
        eps: float,
        negative_slope: float,
        pooling: Pooling | None = None,
        moments: Any = None,
    ) -> Array:
        batch_norm_check(x, gamma, beta, running_mean, running_var, training, momentum, eps)
        if any(self.needs[3:5]):
            raise ValueError("running_mean and running_var must not require a gradient")
        if residual is not None:
            if residual.shape != x.shape:
                raise ValueError(f"residual must have shape {x.shape}, got {residual.shape}")
            same_float_dtype(x=x, residual=residual)
        geometry = None if pooling is None else block_pool_geometry(x, *pooling)
        mean = delta = None
        if training:
            running = running_mean, running_var
            if moments is None:
                delta, spread = self.run(batch_norm_statistics, x, *running, momentum, eps)
            else:
                delta, spread = statistics_of(self, moments, *running, momentum, eps)
            eps = 0.0
        else:
            mean, spread = cast("Array", running_mean), cast("Array", running_var)
            if self.recording:  # they may be updated before the backward pass
                mean, spread = copied(mean), copied(spread)
        arguments = (x, residual, gamma, beta, mean, delta, spread, eps, negative_slope)
        if geometry is not None:
            y, route = self.run(batch_norm_block_pool_forward, *arguments, geometry)
        else:
            # On the cpu bits are read faster than z is computed again.
            spoilt = residual is not None or self.device == "cpu"
            keep_bits = self.recording and negative_slope != 1 and spoilt
            y, route = self.run(batch_norm_block_forward, *arguments, keep_bits)
        if self.recording:
            self.fuses = fuses()
            self.x, self.gamma, self.beta, self.route = x, gamma, beta, route
            self.mean, self.delta, self.spread, self.eps = mean, delta, spread, eps
            self.negative_slope, self.geometry = negative_slope, geometry
        return cast("Array", y)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        _, needs_gamma, needs_beta, _, _, residual = self.needs
        if self.passed and self.gradients is not None:
            dx = self.run(
                batch_norm_data_gradient,
                *(dy, self.x, self.gamma, self.delta, self.spread, *self.gradients),
            )
            own = undelivered(self, self.gradients)
            return dx, *own, None, None, dy if residual else None
        if self.passed:
            self.negative_slope, self.route = 1.0, None
        sums = needs_gamma or needs_beta or self.mean is None
        statistics = (self.mean, self.delta, self.spread, self.eps, self.negative_slope)
        if self.geometry is not None:
            dx, dresidual, dgamma, dbeta = self.run_for(
                (1, 2),
                batch_norm_block_pool_backward,
                dy, self.x, self.route, self.gamma, *statistics, residual, sums, self.geometry,
            )  # fmt: skip
        else:
            alone = self.negative_slope == 1  # then the residual's gradient is dy
            dx, dresidual, dgamma, dbeta = self.run_for(
                (1, 2),
                batch_norm_block_backward,
                dy, self.x, self.route, self.gamma, self.beta, *statistics,
                residual and not alone, sums,
            )  # fmt: skip
            if residual and alone:
                dresidual = dy
        return dx, dgamma, dbeta, None, None, dresidual

    @property
    def invstd(self) -> Array:
        """1/√(var + eps), of a batch."""
        return self.spread

    def from_output(self) -> tuple[str, float] | None:
        if self.geometry is not None or self.negative_slope < 0 or self.negative_slope == 1:
            return None
        return ("leaky_relu", self.negative_slope) if self.negative_slope else ("relu", 0.0)


def batch_norm_block(
    x: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    residual: Tensor | None = None,
    *,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "relu",
    negative_slope: float = 0.01,
    kernel_size: int | Pair | None = None,
    stride: int | Pair | None = None,
    padding: int | Pair | Padding | str = 0,
    edge: str = "drop",
) -> Tensor:
    """Batch normalisation, a residual, an activation and max pooling in one pass over memory.

    ``max_pool2d(activation(batch_norm(x, …) + residual), kernel_size, …)``: the values, gradients
    and running statistics of these functions one after the other, to rounding, with about half of
    their memory traffic. What is kept for the backward pass is x and at most a bit per element, or
    a byte per pooled output.

    x, gamma, beta, running_mean, running_var, training, momentum, eps: as in
    :func:`~gpucnn.functional.batch_norm`. residual: None, or a tensor of the shape of x, which is
    added before the activation. activation: "relu", "leaky_relu" with negative_slope, or "none".
    kernel_size: None for no pooling, which takes x of any shape (N, …, C); else kernel_size,
    stride, padding and edge ("drop" or "ceil") are those of
    :func:`~gpucnn.functional.max_pool2d`, x is (N, H, W, C), and a window has at most 127 cells.
    Returns a tensor of the shape of x, or (N, OH, OW, C).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit, as
    the functions above do; DeviceError for two devices.

    Source: Ioffe and Szegedy, arXiv:1502.03167; the fusion follows Jung et al., arXiv:1807.01702.
    """
    choice("activation", activation, ACTIVATIONS)
    slope = {"none": 1.0, "relu": 0.0}.get(activation)
    slope = check_real("negative_slope", negative_slope) if slope is None else slope
    pooling = None if kernel_size is None else Pooling(kernel_size, stride, padding, edge)
    options: dict[str, Any] = {"training": training, "momentum": momentum, "eps": eps}
    inputs = (x, gamma, beta, running_mean, running_var)
    if isinstance(x, Tensor) and x.shape[:1] == (0,):
        y = batch_norm(*inputs, **options)
        y = y if residual is None else add(y, residual)
        if activation != "none":
            y = relu(y) if activation == "relu" else leaky_relu(y, slope)
        return y if pooling is None else max_pool2d(y, *pooling[:3], edge=edge)
    moments = x._moments if training is True and isinstance(x, Tensor) else None
    options |= {"negative_slope": slope, "pooling": pooling, "moments": moments}
    return cast("Tensor", FusedBatchNorm.apply(*inputs, residual, **options))
