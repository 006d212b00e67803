"""Activation layers."""

from __future__ import annotations

import numpy as np

from gpucnn import functional as F
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.activation import GELUS, check_positive, check_real
from gpucnn.ops.geometry import choice, integer
from gpucnn.tensor import Tensor


class Identity(Module):
    """The input itself; see F.identity."""

    def forward(self, x: Tensor) -> Tensor:
        return F.identity(x)


class ReLU(Module):
    """max(x, 0); see F.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class LeakyReLU(Module):
    """x, or negative_slope · x where x <= 0; see F.leaky_relu."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = check_real("negative_slope", negative_slope)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(x, self.negative_slope)

    def extra_repr(self) -> str:
        return f"negative_slope={self.negative_slope:g}"


class PReLU(Module):
    """A leaky ReLU with learned slopes: 1, or one for each of num_parameters channels; see F.prelu.

    The slopes start at init.
    """

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        self.num_parameters = integer("num_parameters", num_parameters, 1)
        self.init = check_real("init", init)
        self.weight = Parameter(np.full(self.num_parameters, self.init, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"


class ELU(Module):
    """x, or alpha · (exp(x) − 1) where x <= 0; see F.elu."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = check_real("alpha", alpha)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:g}"


class SELU(Module):
    """The scaled ELU of self-normalising networks; see F.selu."""

    def forward(self, x: Tensor) -> Tensor:
        return F.selu(x)


class Sigmoid(Module):
    """1 / (1 + exp(−x)); see F.sigmoid. Not needed before binary_cross_entropy_with_logits."""

    def forward(self, x: Tensor) -> Tensor:
        return F.sigmoid(x)


class Tanh(Module):
    """tanh(x); see F.tanh."""

    def forward(self, x: Tensor) -> Tensor:
        return F.tanh(x)


class Softplus(Module):
    """log(1 + exp(beta · x)) / beta; see F.softplus."""

    def __init__(self, beta: float = 1.0, threshold: float = 20.0) -> None:
        self.beta = check_positive("beta", beta)
        self.threshold = check_real("threshold", threshold)

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, self.beta, self.threshold)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, threshold={self.threshold:g}"


class GELU(Module):
    """x times the normal distribution function, or its tanh approximation; see F.gelu."""

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = choice("approximate", approximate, GELUS)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x, approximate=self.approximate)

    def extra_repr(self) -> str:
        return f"approximate={self.approximate!r}"


class SiLU(Module):
    """x · sigmoid(x); see F.silu."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Hardswish(Module):
    """x · min(max(x + 3, 0), 6) / 6; see F.hardswish."""

    def forward(self, x: Tensor) -> Tensor:
        return F.hardswish(x)


class Softmax(Module):
    """Softmax over the last axis; see F.softmax. Not needed before cross_entropy."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x)


class LogSoftmax(Module):
    """Logarithm of the softmax over the last axis; see F.log_softmax."""

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(x)
