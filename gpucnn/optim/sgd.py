"""Steps along the gradient: SGD with momentum, and Lion."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from gpucnn.device import Array
from gpucnn.ops.geometry import flag
from gpucnn.ops.optimizer import lion_step, sgd_step
from gpucnn.ops.optimizer_parts import Parts
from gpucnn.optim.optimizer import Optimizer, check_betas, check_number
from gpucnn.tensor import Tensor


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov momentum and weight decay.

    ``g += weight_decay·p;  v = momentum·v + g;  p −= lr·v``, or with Nesterov momentum
    ``p −= lr·(g + momentum·v)``. The rate is not part of v, as in PyTorch: Caffe, Keras and Chainer
    accumulate lr·g, which differs when the rate changes.

    lr, weight_decay: >= 0. momentum: in [0, 1). nesterov needs momentum > 0.
    Source: torch.optim.SGD with dampening 0; Sutskever et al., ICML 2013.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
        )

    def _check(self, group: dict[str, Any]) -> None:
        group["momentum"] = check_number("momentum", group["momentum"], 0.0, 1.0)
        group["weight_decay"] = check_number("weight_decay", group["weight_decay"], 0.0)
        group["nesterov"] = flag("nesterov", group["nesterov"])
        if group["nesterov"] and not group["momentum"]:
            raise ValueError("nesterov=True needs momentum > 0")

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        return group["lr"], group["momentum"], group["weight_decay"], float(group["nesterov"])

    def _form(self, group: dict[str, Any]) -> Hashable:
        return bool(group["momentum"])

    @property
    def _state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("momentum_buffer",) if self._any("momentum") else ()

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        velocity = state["momentum_buffer"] if self._any("momentum") else None
        sgd_step.on(self.device)(p, velocity, g, numbers, parts, scale)


class Lion(Optimizer):
    """Lion: steps of one size, the sign of an interpolation between momentum and gradient.

    ``p *= 1 − lr·weight_decay;  p −= lr·sign(β₁m + (1−β₁)g);  m = β₂m + (1−β₂)g``, with
    ``sign(0) = 0``. Takes a learning rate 3 to 10 times smaller than AdamW's and a weight decay as
    many times larger.

    lr, weight_decay: >= 0. betas: both in [0, 1).
    Source: Chen et al., arXiv:2302.06675, algorithm 2.
    """

    _state_names = ("exp_avg",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, weight_decay=weight_decay)

    def _check(self, group: dict[str, Any]) -> None:
        group["betas"] = check_betas(group["betas"])
        group["weight_decay"] = check_number("weight_decay", group["weight_decay"], 0.0)

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        return group["lr"], *group["betas"], 1.0 - group["lr"] * group["weight_decay"]

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        lion_step.on(self.device)(p, state["exp_avg"], g, numbers, parts, scale)
