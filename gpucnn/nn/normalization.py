"""Normalisation layers; channels are the last axis."""

from __future__ import annotations

import numpy as np

from gpucnn import functional as F
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import integer
from gpucnn.ops.local_response_norm import local_response_norm_window
from gpucnn.optim.optimizer import check_number
from gpucnn.tensor import Tensor


class _BatchNorm(Module):
    _rank = 0
    _layout = ""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.num_features = integer("num_features", num_features, 1)
        self.eps = check_number("eps", eps, 0.0)
        self.momentum = check_number("momentum", momentum, 0.0, np.nextafter(1.0, 2.0))
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Tensor(np.zeros(num_features, np.float32))
        self.running_var = Tensor(np.ones(num_features, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self._rank:
            raise ValueError(f"x must have shape {self._layout}, got {x.shape}")
        return F.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum:g}"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) with γ = weight, β = bias and running statistics."""

    _rank = 2
    _layout = "(N, C)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, H, W, C) with γ = weight, β = bias and running statistics."""

    _rank = 4
    _layout = "(N, H, W, C)"


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
