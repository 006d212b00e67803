"""Fully connected layers and what leads to them."""

from __future__ import annotations

import math

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import flag, integer
from gpucnn.tensor import Tensor


class Linear(Module):
    """Fully connected layer with weight (out, in) and bias (out); see F.linear.

    Weight and bias start as U(±1/√in_features), as in torch.nn.Linear.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        bound = 1.0 / math.sqrt(self.in_features)
        shape = (self.out_features, self.in_features)
        self.weight = init.uniform_(Parameter(np.empty(shape, np.float32)), bound)
        self.bias = None
        if flag("bias", bias):
            self.bias = init.uniform_(Parameter(np.empty(shape[0], np.float32)), bound)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        return text if self.bias is not None else text + ", bias=False"


class Flatten(Module):
    """(N, …) to (N, features), in memory order: for images H, W, C with C fastest."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1)
