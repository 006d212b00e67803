"""Losses as modules: called with (input, target)."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.activation import check_positive, check_real
from gpucnn.ops.class_loss import HINGES
from gpucnn.ops.geometry import choice, flag, host_array
from gpucnn.ops.loss import IGNORE_INDEX, REDUCTIONS, check_reduction
from gpucnn.ops.regression_loss import KL_REDUCTIONS
from gpucnn.tensor import Tensor


class _Loss(Module):
    _reductions: tuple[str, ...] = REDUCTIONS

    def __init__(self, reduction: str = "mean") -> None:
        check_reduction(reduction, self._reductions)
        self.reduction = reduction

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"


def _buffer(weight: Any) -> Tensor | None:
    return None if weight is None else Tensor(np.asarray(weight, np.float32))


class L1Loss(_Loss):
    """Mean absolute error; see F.l1_loss."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class MSELoss(_Loss):
    """Mean squared error; see F.mse_loss."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class HuberLoss(_Loss):
    """Squared near 0, linear beyond delta; see F.huber_loss."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction)
        self.delta = check_positive("delta", delta)

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.huber_loss(input, target, delta=self.delta, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"delta={self.delta:g}, {super().extra_repr()}"


class SmoothL1Loss(_Loss):
    """The Huber loss divided by its threshold beta; see F.smooth_l1_loss."""

    def __init__(self, reduction: str = "mean", beta: float = 1.0) -> None:
        super().__init__(reduction)
        self.beta = check_real("beta", beta)
        if beta < 0:
            raise ValueError(f"beta must be >= 0, got {beta}")

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.smooth_l1_loss(input, target, beta=self.beta, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}, {super().extra_repr()}"


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of scores; see F.binary_cross_entropy_with_logits.

    The weights are buffers, so that they move with the module.
    """

    def __init__(self, weight: Any = None, reduction: str = "mean", pos_weight: Any = None) -> None:
        super().__init__(reduction)
        self.weight = _buffer(weight)
        self.pos_weight = _buffer(pos_weight)

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class HingeLoss(_Loss):
    """max(0, 1 − t·x) with targets −1 and 1; see F.hinge_loss."""

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.hinge_loss(input, target, reduction=self.reduction)


class KLDivLoss(_Loss):
    """Divergence of log-probabilities from a target; see F.kl_div."""

    _reductions = KL_REDUCTIONS

    def __init__(self, reduction: str = "mean", log_target: bool = False) -> None:
        super().__init__(reduction)
        self.log_target = flag("log_target", log_target)

    def forward(self, input: Tensor, target: Any) -> Tensor:
        return F.kl_div(input, target, log_target=self.log_target, reduction=self.reduction)

    def extra_repr(self) -> str:
        return f"log_target={self.log_target}, {super().extra_repr()}"


class _ClassLoss(_Loss):
    """weight is a buffer, so that it moves with the module."""

    def __init__(self, weight: Any, reduction: str) -> None:
        super().__init__(reduction)
        self.weight: Tensor | None = None
        if weight is not None:
            given = host_array("weight", weight)
            if given.dtype.kind not in "fiu" or given.ndim != 1:
                raise ValueError(f"weight must be numbers, one for each class, got {weight!r}")
            self.weight = Tensor(given.astype(np.float32))


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
    """Hinge loss of several classes in one of three conventions; see F.multi_margin_loss."""

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Any = None,
        reduction: str = "mean",
        convention: str = "torch",
    ) -> None:
        super().__init__(weight, reduction)
        self.convention = choice("convention", convention, HINGES)
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
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        options = f"p={self.p}, margin={self.margin:g}, {super().extra_repr()}"
        return options + f", convention={self.convention!r}"
