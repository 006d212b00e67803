"""Learning-rate schedules: pure functions of the number of steps taken, and one of a metric."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from typing import Any

from gpucnn.ops.geometry import choice, integer
from gpucnn.optim.optimizer import Optimizer, check_number, check_optimizer
from gpucnn.recording import every_step


class LRScheduler:
    """Base of the schedules: sets the rate of each parameter group now and after each :meth:`step`.

    Each group starts from its own rate. Call ``scheduler.step()`` after ``optimizer.step()``, as in
    PyTorch.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer)
        self.optimizer = optimizer
        self.steps = 0
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._apply()

    def lr_at(self, step: int, group: int = 0) -> float:
        """The learning rate of a parameter group for the step after ``step`` steps."""
        raise NotImplementedError

    def _apply(self) -> None:
        for i, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.lr_at(self.steps, i)

    def step(self) -> None:
        """Count one step and set the learning rates of the next."""
        every_step(self._advance)

    def _advance(self) -> None:
        self.steps += 1
        self._apply()

    def state_dict(self) -> dict[str, int]:
        """``{"step": steps taken}``."""
        return {"step": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after ``state["step"]`` steps."""
        self.steps = integer("step", int(state["step"]), 0)
        self._apply()


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


def _per_group(name: str, value: Any, optimizer: Optimizer) -> list[float]:
    """One number >= 0 for all parameter groups, or a list with one for each."""
    check_optimizer(optimizer)
    count = len(optimizer.param_groups)
    if not isinstance(value, tuple | list):
        return [check_number(name, value, 0.0)] * count
    if len(value) != count:
        raise ValueError(f"{name} must be a number or {count}, one per group, got {len(value)}")
    return [check_number(f"{name}[{i}]", v, 0.0) for i, v in enumerate(value)]


class StepLR(LRScheduler):
    """The rate times ``gamma`` after every ``step_size`` steps: ``lr·gamma^⌊t/step_size⌋``.

    Raises ValueError or TypeError naming the argument. Source: torch.optim.lr_scheduler.StepLR.
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = integer("step_size", step_size, 1)
        self.gamma = check_number("gamma", gamma, 0.0)
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """The rate times ``gamma`` at each of the ``milestones``, increasing step counts.

    Raises ValueError or TypeError naming the argument.
    Source: torch.optim.lr_scheduler.MultiStepLR.
    """

    def __init__(self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1) -> None:
        try:
            given = list(milestones)
        except TypeError:
            raise TypeError(f"milestones must be step counts, got {milestones!r}") from None
        self.milestones = [integer(f"milestones[{i}]", m, 0) for i, m in enumerate(given)]
        if self.milestones != sorted(self.milestones):
            raise ValueError(f"milestones must increase, got {self.milestones}")
        self.gamma = check_number("gamma", gamma, 0.0)
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma ** bisect.bisect_right(self.milestones, step)


class ExponentialLR(LRScheduler):
    """The rate times ``gamma`` after every step: ``lr·gamma^t``.

    Raises ValueError naming the argument. Source: torch.optim.lr_scheduler.ExponentialLR.
    """

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = check_number("gamma", gamma, 0.0)
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return self.base_lrs[group] * self.gamma**step


class OneCycleLR(LRScheduler):
    """One cycle: from max_lr/div_factor up to max_lr, then down to far below where it began.

    The rise takes ``pct_start`` of ``total_steps``; both ways follow half a cosine. The last rate
    is ``max_lr / div_factor / final_div_factor``; later steps keep it. max_lr is a number or a list
    with one per parameter group. Momentum is not cycled. Raises ValueError naming the argument.
    Source: torch.optim.lr_scheduler.OneCycleLR (anneal_strategy="cos", cycle_momentum=False);
    Smith and Topin, arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lrs = _per_group("max_lr", max_lr, optimizer)
        self.total_steps = integer("total_steps", total_steps, 1, 2**53)
        self.pct_start = check_number("pct_start", pct_start, 0.0, 1.0)
        self.div_factor = check_number("div_factor", div_factor, 1.0)
        self.final_div_factor = check_number("final_div_factor", final_div_factor, 1.0)
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        highest = self.max_lrs[group]
        first = highest / self.div_factor
        peak = self.pct_start * self.total_steps - 1.0
        last = self.total_steps - 1.0
        if step <= peak:
            return _cosine(first, highest, step / peak if peak > 0 else 1.0)
        share = (step - peak) / (last - peak) if last > peak else 1.0
        return _cosine(highest, first / self.final_div_factor, min(share, 1.0))


class CosineAnnealingLR(LRScheduler):
    """From the optimizer's rate down to ``eta_min`` along half a cosine in ``t_max`` steps.

    Later steps keep ``eta_min``. Raises ValueError naming the argument.
    Source: torch.optim.lr_scheduler.CosineAnnealingLR (which turns upwards after t_max);
    Loshchilov and Hutter, arXiv:1608.03983.
    """

    def __init__(self, optimizer: Optimizer, t_max: int, eta_min: float = 0.0) -> None:
        self.t_max = integer("t_max", t_max, 1, 2**53)
        self.eta_min = check_number("eta_min", eta_min, 0.0)
        super().__init__(optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        return _cosine(self.base_lrs[group], self.eta_min, min(step / self.t_max, 1.0))


class WarmupLR(LRScheduler):
    """A linear rise over ``warmup_steps`` to where another schedule begins, then that schedule.

    Step t < warmup_steps has ``schedule.lr_at(0)`` times ``start_factor + (1 − start_factor)·t /
    warmup_steps``, later ones ``schedule.lr_at(t − warmup_steps)``. Step this schedule alone, not
    the one inside. start_factor: 0 to 1.

    Raises ValueError or TypeError naming the argument. Source: torch.optim.lr_scheduler.LinearLR
    followed by ``schedule`` in a SequentialLR; Goyal et al., arXiv:1706.02677.
    """

    def __init__(
        self, schedule: LRScheduler, warmup_steps: int, start_factor: float = 1.0 / 3.0
    ) -> None:
        if not isinstance(schedule, LRScheduler):
            raise TypeError(
                f"schedule must be a schedule of the step count, got {type(schedule).__name__}"
            )
        self.schedule = schedule
        self.warmup_steps = integer("warmup_steps", warmup_steps, 1, 2**53)
        self.start_factor = check_number("start_factor", start_factor, 0.0)
        if self.start_factor > 1.0:
            raise ValueError(f"start_factor must lie between 0 and 1, got {start_factor!r}")
        super().__init__(schedule.optimizer)

    def lr_at(self, step: int, group: int = 0) -> float:
        if step >= self.warmup_steps:
            return self.schedule.lr_at(step - self.warmup_steps, group)
        share = self.start_factor + (1.0 - self.start_factor) * step / self.warmup_steps
        return self.schedule.lr_at(0, group) * share


class ReduceLROnPlateau:
    """The rates times ``factor`` when a metric has not improved for more than ``patience`` steps.

    A metric improves on the best so far if it is below ``best·(1 − threshold)`` (mode "min",
    threshold_mode "rel"), below ``best − threshold`` ("abs"), or above ``best·(1 + threshold)`` and
    ``best + threshold`` with mode "max". After a reduction, ``cooldown`` steps pass in which
    nothing is counted. Rates do not fall below ``min_lr`` (a number or one per parameter group),
    and a change of ``eps`` or less is not made.

    Raises ValueError or TypeError naming the argument.
    Source: torch.optim.lr_scheduler.ReduceLROnPlateau.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        check_optimizer(optimizer)
        self.optimizer = optimizer
        self.mode = choice("mode", mode, ("min", "max"))
        self.threshold_mode = choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self.factor = check_number("factor", factor, 0.0, 1.0)
        self.patience = integer("patience", patience, 0)
        self.threshold = check_number("threshold", threshold, 0.0)
        self.cooldown = integer("cooldown", cooldown, 0)
        self.min_lrs = _per_group("min_lr", min_lr, optimizer)
        self.eps = check_number("eps", eps, 0.0)
        self.steps = self.bad_steps = self.cooldown_left = 0
        self.best: float | None = None

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return value < math.inf if self.mode == "min" else value > -math.inf
        sign = -1.0 if self.mode == "min" else 1.0
        if self.threshold_mode == "rel":
            bound = self.best * (1.0 + sign * self.threshold)
        else:
            bound = self.best + sign * self.threshold
        return value < bound if self.mode == "min" else value > bound

    def step(self, metric: float) -> None:
        """Take note of a metric (a number or a one-element tensor), and reduce the rates if due."""
        value = float(metric.item() if hasattr(metric, "item") else metric)
        self.steps += 1
        if self._improves(value):
            self.best, self.bad_steps = value, 0
        else:
            self.bad_steps += 1
        if self.cooldown_left:
            self.cooldown_left -= 1
            self.bad_steps = 0
        if self.bad_steps > self.patience:
            for group, least in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                reduced = max(group["lr"] * self.factor, least)
                if group["lr"] - reduced > self.eps:
                    group["lr"] = reduced
            self.cooldown_left, self.bad_steps = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """Counters, the best metric and the rates: JSON values."""
        return {
            "step": self.steps,
            "bad_steps": self.bad_steps,
            "cooldown_left": self.cooldown_left,
            "best": self.best,
            "lrs": [float(group["lr"]) for group in self.optimizer.param_groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, the optimizer's rates included."""
        lrs = _per_group("lrs", list(state["lrs"]), self.optimizer)
        best = state["best"]
        self.steps = integer("step", int(state["step"]), 0)
        self.bad_steps = integer("bad_steps", int(state["bad_steps"]), 0)
        self.cooldown_left = integer("cooldown_left", int(state["cooldown_left"]), 0)
        self.best = None if best is None else float(best)
        for group, lr in zip(self.optimizer.param_groups, lrs, strict=True):
            group["lr"] = lr
