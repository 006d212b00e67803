"""Adam and its relatives."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gpucnn.device import Array
from gpucnn.ops.adam import AdamStep, adam_step, adamax_step, nadam_step
from gpucnn.ops.geometry import flag
from gpucnn.ops.optimizer_parts import Parts
from gpucnn.optim.optimizer import Optimizer, check_betas, check_number
from gpucnn.tensor import Tensor


class Adam(Optimizer):
    """Adam; ``weight_decay`` is L2 regularisation, added to the gradient.

    ``m += (1−β₁)(g−m);  v = β₂v + (1−β₂)g²;  p −= lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + eps)``.
    eps stands beside the corrected root, as in PyTorch and the paper's algorithm; Keras adds it to
    the uncorrected one.

    lr, eps, weight_decay: >= 0. betas: both in [0, 1).
    Source: torch.optim.Adam; Kingma and Ba, arXiv:1412.6980.
    """

    _decoupled = False
    _state_names: tuple[str, ...] = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _check(self, group: dict[str, Any]) -> None:
        group["betas"] = check_betas(group["betas"])
        for name in ("eps", "weight_decay"):
            group[name] = check_number(name, group[name], 0.0)

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        return self._moments(group).adam()

    def _moments(self, group: dict[str, Any]) -> AdamStep:
        beta1, beta2 = group["betas"]
        return AdamStep(
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=group.get("decoupled_weight_decay", self._decoupled),
            step=self.steps,
        )

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        moments = state["exp_avg"], state["exp_avg_sq"], state.get("max_exp_avg_sq")
        adam_step.on(self.device)(p, *moments, g, numbers, parts, scale)


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 − lr·weight_decay`` before each step.

    Source: torch.optim.AdamW; Loshchilov and Hutter, arXiv:1711.05101.
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)


class AMSGrad(Adam):
    """Adam with the largest v so far in place of v: ``w = max(w, v);  p −= lr·m̂/(√ŵ + eps)``.

    ŵ = w/(1−β₂ᵗ): the maximum is taken before the correction, as in PyTorch.
    Source: torch.optim.Adam with amsgrad=True; Reddi, Kale and Kumar, arXiv:1904.09237.
    """

    _state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class Nadam(Adam):
    """Adam with Nesterov momentum, in PyTorch's form.

    ``p −= (lr·(1−μ_t)/(1−μ_1⋯μ_t)·g + lr·μ_{t+1}/(1−μ_1⋯μ_{t+1})·m)/(√(v/(1−β₂ᵗ)) + eps)`` with
    ``μ_t = β₁·(1 − ½·0.96^(t·momentum_decay))``; m and v as in :class:`Adam`. Keras has a
    momentum_decay of 1. weight_decay is added to the gradient, or with decoupled_weight_decay
    ``p *= 1 − lr·weight_decay``.

    lr, eps, weight_decay, momentum_decay: >= 0. betas: both in [0, 1).
    Source: torch.optim.NAdam; Dozat, ICLR workshop 2016.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
    ) -> None:
        self._products: dict[tuple[float, float], tuple[int, float]] = {}
        Optimizer.__init__(
            self, params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay,
            momentum_decay=momentum_decay, decoupled_weight_decay=decoupled_weight_decay,
        )  # fmt: skip

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        group["momentum_decay"] = check_number("momentum_decay", group["momentum_decay"], 0.0)
        decoupled = "decoupled_weight_decay"
        group[decoupled] = flag(decoupled, group[decoupled])

    @staticmethod
    def _momentum(beta1: float, decay: float, step: int) -> float:
        return beta1 * (1.0 - 0.5 * math.pow(0.96, step * decay))

    def _product(self, beta1: float, decay: float) -> float:
        """μ_1⋯μ_t, multiplied in this order also after a resume."""
        done, product = self._products.get((beta1, decay), (0, 1.0))
        if done > self.steps:
            done, product = 0, 1.0
        for step in range(done + 1, self.steps + 1):
            product *= self._momentum(beta1, decay, step)
        self._products[beta1, decay] = self.steps, product
        return product

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        beta1, decay = group["betas"][0], group["momentum_decay"]
        now = self._momentum(beta1, decay, self.steps)
        then = self._momentum(beta1, decay, self.steps + 1)
        product = self._product(beta1, decay)
        return self._moments(group).nadam(
            group["lr"] * (1.0 - now) / (1.0 - product),
            group["lr"] * then / (1.0 - product * then),
        )

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        nadam_step.on(self.device)(
            p, state["exp_avg"], state["exp_avg_sq"], g, numbers, parts, scale
        )


class Adamax(Adam):
    """Adam by the largest gradient: ``u = max(β₂u, |g| + eps);  p −= lr/(1−β₁ᵗ)·m/u``.

    m as in :class:`Adam`; weight_decay is added to the gradient. eps must be > 0 where gradients
    may be 0.
    Source: torch.optim.Adamax; Kingma and Ba, arXiv:1412.6980, section 7.
    """

    _state_names = ("exp_avg", "exp_inf")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        return self._moments(group).adamax()

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        moments = state["exp_avg"], state["exp_inf"]
        adamax_step.on(self.device)(p, *moments, g, numbers, parts, scale)
