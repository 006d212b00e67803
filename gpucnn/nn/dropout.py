"""Dropout layers: active in training mode only."""

from __future__ import annotations

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.dropout import check_dropout
from gpucnn.tensor import Tensor


class Dropout(Module):
    """Elements become 0 with probability p, the others are divided by 1 − p; see F.dropout."""

    def __init__(self, p: float = 0.5) -> None:
        check_dropout(p, True, None)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=self.training)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class Dropout2d(Dropout):
    """Channels of (N, H, W, C) become 0 with probability p; see F.dropout2d."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout2d(x, self.p, training=self.training)
