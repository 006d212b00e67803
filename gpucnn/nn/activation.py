"""Activation layers."""

from __future__ import annotations

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.tensor import Tensor


class ReLU(Module):
    """max(x, 0); see F.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Softmax(Module):
    """Softmax over the last axis; see F.softmax. Not needed before cross_entropy."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x)
