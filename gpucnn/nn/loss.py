"""Losses as modules: called with (input, target)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.loss import IGNORE_INDEX, check_reduction
from gpucnn.tensor import Tensor


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(reduction)
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


class _ClassLoss(_Loss):
    """weight is a buffer, so that it moves with the module."""

    def __init__(self, weight: Any, reduction: str) -> None:
        super().__init__(reduction)
        self.weight = None if weight is None else Tensor(np.asarray(weight, np.float32))


class CrossEntropyLoss(_ClassLoss):
    """Cross-entropy of scores against class indices or probabilities; see F.cross_entropy."""

    def __init__(
        self,
        weight: Any = None,
        ignore_index: int = IGNORE_INDEX,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class NLLLoss(_ClassLoss):
    """Negative log-likelihood of log-probabilities; see F.nll_loss."""

    def __init__(
        self, weight: Any = None, ignore_index: int = IGNORE_INDEX, reduction: str = "mean"
    ) -> None:
        super().__init__(weight, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class MultiMarginLoss(_ClassLoss):
    """Hinge loss of several classes; see F.multi_margin_loss."""

    def __init__(
        self, p: int = 1, margin: float = 1.0, weight: Any = None, reduction: str = "mean"
    ) -> None:
        super().__init__(weight, reduction)
        self.p = p
        self.margin = margin

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.multi_margin_loss(
            input,
            target,
            p=self.p,
            margin=self.margin,
            weight=self.weight,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        return f"p={self.p}, margin={self.margin:g}, {super().extra_repr()}"
