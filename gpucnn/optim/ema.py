"""An exponential moving average of the weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array, module_of, to_host
from gpucnn.ops.optimizer import ema_step
from gpucnn.optim.optimizer import Optimizer, check_number, check_optimizer, step_numbers
from gpucnn.recording import assign, copied, per_step


class EMA:
    """The moving average of an optimizer's parameters: ``e = decay·e + (1 − decay)·p`` per update.

    It starts at the parameters' present values. Call ``update()`` after ``optimizer.step()``, and
    evaluate between ``apply()`` and ``restore()``, or inside ``with ema.applied():``. Buffers such
    as running statistics are not averaged.

    decay: in [0, 1). Raises ValueError naming the argument.
    Source: torch.optim.swa_utils.get_ema_multi_avg_fn; Polyak and Juditsky, SIAM J. Control Optim.
    30 (1992).
    """

    def __init__(self, optimizer: Optimizer, decay: float = 0.999) -> None:
        check_optimizer(optimizer)
        self.decay = check_number("decay", decay, 0.0, 1.0)
        self.optimizer = optimizer
        self.updates = 0
        self._average: Array = optimizer._flat.copy()
        self._weights: Array | None = None

    def _not_applied(self, what: str) -> None:
        if self._weights is not None:
            raise RuntimeError(f"{what} needs the trained weights: call restore() first")

    def update(self) -> None:
        """Move the average towards the parameters."""
        self._not_applied("update()")
        share = per_step(self._next_update, self.optimizer.device)
        ema_step.on(self.optimizer.device)(self._average, self.optimizer._flat, share)

    def _next_update(self) -> NDArray[Any]:
        self.updates += 1
        return step_numbers(self.optimizer.device, [1.0 - self.decay])

    def apply(self) -> None:
        """Put the average in place of the parameters, and keep these for :meth:`restore`."""
        self._not_applied("apply()")
        self._weights = copied(self.optimizer._flat)
        assign(self.optimizer._flat, self._average)
        self.optimizer.parameters_changed()

    def restore(self) -> None:
        """Put the trained parameters back, to the bit."""
        if self._weights is None:
            raise RuntimeError("restore() needs apply() before it")
        assign(self.optimizer._flat, self._weights)
        self.optimizer.parameters_changed()
        self._weights = None

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The average in place of the parameters, inside a ``with`` block."""
        self.apply()
        try:
            yield
        finally:
            self.restore()

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """``updates`` (int64, 0-d) and the average cut per parameter, ``average.<index>``."""
        state: dict[str, NDArray[Any]] = {"updates": np.asarray(self.updates, np.int64)}
        for i in range(len(self.optimizer.params)):
            state[f"average.{i}"] = np.array(to_host(self.optimizer._view(self._average, i)))
        return state

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what :meth:`state_dict` gave; ValueError naming a missing or unfit entry."""
        expected = self.state_dict()
        if set(state) != set(expected):
            odd = sorted(set(state) ^ set(expected))
            raise ValueError(f"EMA state does not fit, entries differ: {', '.join(odd[:5])}")
        for name, value in state.items():
            if np.shape(value) != expected[name].shape:
                raise ValueError(
                    f"EMA state {name!r} must have shape {expected[name].shape}, "
                    f"got {np.shape(value)}"
                )
        self.updates = int(state["updates"])
        xp = module_of(self._average)
        for i in range(len(self.optimizer.params)):
            self.optimizer._view(self._average, i)[...] = xp.asarray(state[f"average.{i}"])
