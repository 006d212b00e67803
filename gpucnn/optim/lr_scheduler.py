"""Learning-rate schedules: pure functions of the number of steps taken."""

from __future__ import annotations

import math

from gpucnn.ops.geometry import integer
from gpucnn.optim.optimizer import Optimizer, check_number


class LRScheduler:
    """Base of the schedules: sets ``optimizer.lr`` now and after each :meth:`step`.

    Call ``scheduler.step()`` after ``optimizer.step()``, as in PyTorch.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.steps = 0
        optimizer.lr = self.lr_at(0)

    def lr_at(self, step: int) -> float:
        """The learning rate for the step after ``step`` steps."""
        raise NotImplementedError

    def step(self) -> None:
        """Count one step and set the learning rate of the next."""
        self.steps += 1
        self.optimizer.lr = self.lr_at(self.steps)

    def state_dict(self) -> dict[str, int]:
        """``{"step": steps taken}``."""
        return {"step": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after ``state["step"]`` steps."""
        self.steps = integer("step", int(state["step"]), 0)
        self.optimizer.lr = self.lr_at(self.steps)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))


class OneCycleLR(LRScheduler):
    """One cycle: from max_lr/div_factor up to max_lr, then down to far below where it began.

    The rise takes ``pct_start`` of ``total_steps``; both ways follow half a cosine. The last rate
    is ``max_lr / div_factor / final_div_factor``; later steps keep it. Momentum is not cycled.
    Raises ValueError naming the argument.
    Source: torch.optim.lr_scheduler.OneCycleLR (anneal_strategy="cos", cycle_momentum=False);
    Smith and Topin, arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr = check_number("max_lr", max_lr, 0.0)
        self.total_steps = integer("total_steps", total_steps, 1)
        self.pct_start = check_number("pct_start", pct_start, 0.0, 1.0)
        self.initial_lr = self.max_lr / check_number("div_factor", div_factor, 1.0)
        self.final_lr = self.initial_lr / check_number("final_div_factor", final_div_factor, 1.0)
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        peak = self.pct_start * self.total_steps - 1.0
        last = self.total_steps - 1.0
        if step <= peak:
            return _cosine(self.initial_lr, self.max_lr, step / peak if peak > 0 else 1.0)
        share = (step - peak) / (last - peak) if last > peak else 1.0
        return _cosine(self.max_lr, self.final_lr, min(share, 1.0))


class CosineAnnealingLR(LRScheduler):
    """From the optimizer's rate down to ``eta_min`` along half a cosine in ``t_max`` steps.

    Later steps keep ``eta_min``. Raises ValueError naming the argument.
    Source: torch.optim.lr_scheduler.CosineAnnealingLR (which turns upwards after t_max);
    Loshchilov and Hutter, arXiv:1608.03983.
    """

    def __init__(self, optimizer: Optimizer, t_max: int, eta_min: float = 0.0) -> None:
        self.base_lr = optimizer.lr
        self.t_max = integer("t_max", t_max, 1)
        self.eta_min = check_number("eta_min", eta_min, 0.0)
        super().__init__(optimizer)

    def lr_at(self, step: int) -> float:
        return _cosine(self.base_lr, self.eta_min, min(step / self.t_max, 1.0))
