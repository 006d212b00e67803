"""Fully connected layers and what leads to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from gpucnn import functional as F
from gpucnn.device import default_device
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import flag, integer
from gpucnn.tensor import Tensor


class Linear(Module):
    """Fully connected layer with weight (out, in) and bias (out); see F.linear.

    Weight and bias start as U(±1/√in_features), as in torch.nn.Linear.

    in_features: with None the layer takes the features of its first input, or of the state that is
    loaded into it; before that it has no parameters, and asking for them is a RuntimeError. Run the
    model on an example before making its optimizer.

    >>> import gpucnn
    >>> model = gpucnn.nn.Sequential(gpucnn.nn.Flatten(), gpucnn.nn.Linear(None, 10))
    >>> model(gpucnn.Tensor([[[[0.5]] * 7] * 7])).shape
    (1, 10)
    >>> model[1]
    Linear(49, 10)
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int | None, out_features: int, bias: bool = True) -> None:
        self.in_features = None if in_features is None else integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        self._has_bias = flag("bias", bias)
        if self.in_features is None:
            self._unsized, self._home = True, default_device()
        else:
            self._make(self.in_features)

    def _make(self, in_features: int) -> None:
        """Draw the parameters."""
        self.in_features, self._unsized = integer("in_features", in_features, 1), False
        bound = 1.0 / math.sqrt(in_features)
        self.weight = init.uniform_(self._parameter(self.out_features, in_features), bound)
        self.bias = (
            init.uniform_(self._parameter(self.out_features), bound) if self._has_bias else None
        )

    def _parameter(self, *shape: int) -> Parameter:
        return Parameter(np.zeros(shape, np.float32), device=self._home)

    def _take_size(self, path: str, state: Mapping[str, Any]) -> bool:
        shape = np.shape(state.get(f"{path}.weight" if path else "weight", 0))
        if not self._unsized or len(shape) != 2 or not shape[1]:
            return False
        self.in_features, self._unsized = shape[1], False
        self.weight = self._parameter(self.out_features, shape[1])
        self.bias = self._parameter(self.out_features) if self._has_bias else None
        return True

    def _forget_size(self) -> None:
        self.in_features, self._unsized = None, True
        del self.weight, self.bias

    def __getattr__(self, name: str) -> NoReturn:
        if name in ("weight", "bias"):
            raise AttributeError(f"{self!r} has no {name} before its first forward pass")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def forward(self, x: Tensor) -> Tensor:
        if self._unsized:
            if x.ndim != 2:
                raise ValueError(f"x must have shape (N, in_features), got {x.shape}")
            self._make(x.shape[1])
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        return text if self._has_bias else text + ", bias=False"


class Flatten(Module):
    """(N, …) to (N, features), in memory order: for images H, W, C with C fastest."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], math.prod(x.shape[1:]))
