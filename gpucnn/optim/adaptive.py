"""Steps divided by the running size of the gradient: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from gpucnn.device import Array
from gpucnn.ops.geometry import flag
from gpucnn.ops.optimizer import adadelta_step, adagrad_step, rmsprop_step
from gpucnn.ops.optimizer_parts import Parts
from gpucnn.optim.optimizer import Optimizer, check_number
from gpucnn.tensor import Tensor


class Adagrad(Optimizer):
    """Adagrad: ``g += weight_decay·p;  s += g²;  p −= lr_t·g/(√s + eps)``.

    ``lr_t = lr/(1 + (t − 1)·lr_decay)`` in step t, and s starts at initial_accumulator_value.

    lr, lr_decay, weight_decay, initial_accumulator_value, eps: >= 0.
    Source: torch.optim.Adagrad; Duchi, Hazan and Singer, JMLR 12 (2011).
    """

    _state_names = ("sum",)

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        start = check_number("initial_accumulator_value", initial_accumulator_value, 0.0)
        super().__init__(params, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)
        if start:
            self._state["sum"][...] = start

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("lr_decay", "weight_decay", "eps"):
            group[name] = check_number(name, group[name], 0.0)

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        lr = group["lr"] / (1.0 + (self.steps - 1) * group["lr_decay"])
        return lr, group["eps"], group["weight_decay"]

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        adagrad_step.on(self.device)(p, state["sum"], g, numbers, parts, scale)


class Adadelta(Optimizer):
    """Adadelta: ``s = ρs + (1−ρ)g²;  Δ = g·√(u+eps)/√(s+eps);  u = ρu + (1−ρ)Δ²;  p −= lr·Δ``.

    g includes weight_decay·p. lr is 1, as in PyTorch and the paper: with Keras' 0.001 nearly
    nothing moves.

    lr, weight_decay, eps: >= 0. rho: in [0, 1).
    Source: torch.optim.Adadelta; Zeiler, arXiv:1212.5701.
    """

    _state_names = ("square_avg", "acc_delta")

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def _check(self, group: dict[str, Any]) -> None:
        group["rho"] = check_number("rho", group["rho"], 0.0, 1.0)
        for name in ("eps", "weight_decay"):
            group[name] = check_number(name, group[name], 0.0)

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        return group["lr"], group["rho"], group["eps"], group["weight_decay"]

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        adadelta_step.on(self.device)(
            p, state["square_avg"], state["acc_delta"], g, numbers, parts, scale
        )


class RMSprop(Optimizer):
    """RMSprop: ``s = αs + (1−α)g²;  v = momentum·v + g/(√s + eps);  p −= lr·v``.

    g includes weight_decay·p. centered divides by the standard deviation instead: √(s − m²) with
    ``m = αm + (1−α)g``. eps stands outside the root and α is 0.99, as in PyTorch; Keras has eps
    inside the root and 0.9.

    lr, weight_decay, eps: >= 0. alpha, momentum: in [0, 1).
    Source: torch.optim.RMSprop; Tieleman and Hinton (2012); centered: Graves, arXiv:1308.0850.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay,
            momentum=momentum, centered=centered,
        )  # fmt: skip

    def _check(self, group: dict[str, Any]) -> None:
        for name in ("alpha", "momentum"):
            group[name] = check_number(name, group[name], 0.0, 1.0)
        for name in ("eps", "weight_decay"):
            group[name] = check_number(name, group[name], 0.0)
        group["centered"] = flag("centered", group["centered"])

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        names = ("lr", "alpha", "eps", "momentum", "weight_decay", "centered")
        return [float(group[name]) for name in names]

    def _form(self, group: dict[str, Any]) -> Hashable:
        return group["centered"], group["momentum"] > 0

    @property
    def _state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        mean = ("grad_avg",) if self._any("centered") else ()
        velocity = ("momentum_buffer",) if self._any("momentum") else ()
        return ("square_avg", *mean, *velocity)

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        mean = state["grad_avg"] if self._any("centered") else None
        velocity = state["momentum_buffer"] if self._any("momentum") else None
        rmsprop_step.on(self.device)(
            p, state["square_avg"], mean, velocity, g, numbers, parts, scale
        )
