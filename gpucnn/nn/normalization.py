"""Normalisation layers; channels are the last axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np

from gpucnn import functional as F
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.batch_norm_partials import Running
from gpucnn.ops.geometry import flag, integer
from gpucnn.ops.group_norm import normalized_axes
from gpucnn.ops.local_response_norm import local_response_norm_window
from gpucnn.optim.optimizer import check_number
from gpucnn.tensor import Tensor


class _BatchNorm(Module):
    _layouts: ClassVar[dict[int, str]] = {}  # of x, by its number of axes

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
    ) -> None:
        C = self.num_features = integer("num_features", num_features, 1)
        flag("affine", affine)
        flag("track_running_stats", track_running_stats)
        self.eps = check_number("eps", eps, np.nextafter(0.0, 1.0))
        self.momentum = momentum
        if momentum is not None:
            self.momentum = check_number("momentum", momentum, 0.0, np.nextafter(1.0, 2.0))
        self.weight = Parameter(np.ones(C, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(C, np.float32)) if affine else None
        self.running_mean = Tensor(np.zeros(C, np.float32)) if track_running_stats else None
        self.running_var = Tensor(np.ones(C, np.float32)) if track_running_stats else None
        if track_running_stats and momentum is None:
            self.num_batches_tracked = Tensor(np.array(0, np.int32))

    @property
    def of_batch(self) -> bool:
        """Whether the statistics are those of the batch."""
        return self.training or self.running_mean is None

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(x, F.batch_norm)

    def running(self, x: Tensor, channels: int) -> Running | None:
        """What a kernel beside x takes that makes this layer's input and its statistics at once.

        None where this layer must look itself, which a plain average and wrong sizes need.
        """
        mean, var = self.running_mean, self.running_var
        if self.momentum is None or channels != self.num_features:
            return None
        if mean is None or var is None:
            return Running(None, None, (self.momentum, self.eps))
        if not mean.device == var.device == x.device or mean.shape != var.shape:
            return None
        return Running(mean.data, var.data, (self.momentum, self.eps))

    def normalise(self, x: Tensor, function: Callable[..., Tensor]) -> Tensor:
        """``function``, of the arguments of F.batch_norm, with this layer's parameters."""
        if x.ndim not in self._layouts or x.shape[-1] != self.num_features:
            layouts = " or ".join(self._layouts.values())
            raise ValueError(f"x must have shape {layouts}, C = {self.num_features}, got {x.shape}")
        momentum, batches = self.momentum, 0
        if momentum is None:
            momentum = 0.0
            if self.training and self.running_mean is not None:
                batches = int(self.num_batches_tracked.item()) + 1
                momentum = 1 / batches
        y = function(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.of_batch,
            momentum=momentum,
            eps=self.eps,
        )
        if batches and x.shape[0]:
            self.num_batches_tracked.data[...] = batches
        return y

    def extra_repr(self) -> str:
        momentum = "None" if self.momentum is None else f"{self.momentum:g}"
        text = f"{self.num_features}, eps={self.eps:g}, momentum={momentum}"
        if self.weight is None:
            text += ", affine=False"
        return text if self.running_mean is not None else text + ", track_running_stats=False"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, L, C), with γ = weight and β = bias; see F.batch_norm.

    momentum: the weight of a new batch in the running statistics; None for the plain average of all
    batches, counted in the buffer num_batches_tracked (reading it waits for the GPU). affine: False
    for no weight and bias. track_running_stats: False for the statistics of the batch at inference,
    too, and no running ones.
    """

    _layouts: ClassVar = {2: "(N, C)", 3: "(N, L, C)"}


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, H, W, C), with γ = weight and β = bias; see F.batch_norm.

    momentum, affine, track_running_stats: as in :class:`BatchNorm1d`.
    """

    _layouts: ClassVar = {4: "(N, H, W, C)"}


class GroupNorm(Module):
    """Group normalisation of (N, …, C) with weight and bias per channel; see F.group_norm.

    num_channels: C, a multiple of num_groups. affine: False for no weight and bias.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True
    ) -> None:
        self.num_groups = integer("num_groups", num_groups, 1)
        self.num_channels = integer("num_channels", num_channels, 1)
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups must divide num_channels {num_channels}, got {num_groups}"
            )
        self.eps = check_number("eps", eps, np.nextafter(0.0, 1.0))
        flag("affine", affine)
        self.weight = Parameter(np.ones(num_channels, np.float32)) if affine else None
        self.bias = Parameter(np.zeros(num_channels, np.float32)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim < 2 or x.shape[-1] != self.num_channels:
            raise ValueError(f"x must have shape (N, …, {self.num_channels}), got {x.shape}")
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        text = f"{self.num_groups}, {self.num_channels}, eps={self.eps:g}"
        return text if self.weight is not None else text + ", affine=False"


class LayerNorm(Module):
    """Normalisation of the last axes with weight and bias per element; see F.layer_norm.

    elementwise_affine: False for no weight and bias. bias: False for none beside the weight.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        self.normalized_shape = normalized_axes(normalized_shape)
        self.eps = check_number("eps", eps, np.nextafter(0.0, 1.0))
        ones = np.ones(self.normalized_shape, np.float32)
        flag("elementwise_affine", elementwise_affine)
        flag("bias", bias)
        self.weight = Parameter(ones) if elementwise_affine else None
        self.bias = Parameter(np.zeros_like(ones)) if elementwise_affine and bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        text = f"{self.normalized_shape}, eps={self.eps:g}"
        if self.weight is None:
            return text + ", elementwise_affine=False"
        return text if self.bias is not None else text + ", bias=False"


class LocalResponseNorm(Module):
    """Local response normalisation; alpha, beta and k are the convention's where None.

    See F.local_response_norm for the formula of each convention.
    """

    def __init__(
        self,
        size: int,
        alpha: float | None = None,
        beta: float | None = None,
        k: float | None = None,
        *,
        region: str = "across",
        convention: str = "torch",
    ) -> None:
        local_response_norm_window(size, alpha, beta, k, region, convention)
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.region, self.convention = region, convention

    def forward(self, x: Tensor) -> Tensor:
        return F.local_response_norm(
            x,
            self.size,
            self.alpha,
            self.beta,
            self.k,
            region=self.region,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        named = {"alpha": self.alpha, "beta": self.beta, "k": self.k}
        given = "".join(f", {name}={v:g}" for name, v in named.items() if v is not None)
        return f"{self.size}{given}, region={self.region!r}, convention={self.convention!r}"
