"""Where a training run stands, and what ends it early."""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass
from pathlib import Path


class Interrupted(Exception):
    """A signal stopped training after a whole step; the run can be resumed.

    Attributes:
        checkpoint: the file saved, or None where training has no run folder.
        exit_code: 128 + the signal's number, as shells report it.
    """

    def __init__(self, number: int, step: int, checkpoint: Path | None) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name} after step {step}")
        self.checkpoint = checkpoint
        self.exit_code = 128 + number


class Diverged(Exception):
    """The loss or a weight became NaN or infinite; nothing of that is saved."""


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: training steps done.
        epoch: epochs done, their evaluation included.
        loss_sum, correct, seen: over the labels of the current epoch.
        seconds: wall time so far, evaluation and saving included.
    """

    step: int = 0
    epoch: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    seen: int = 0
    seconds: float = 0.0

    @property
    def loss(self) -> float:
        """Mean over the current epoch; NaN before the first label."""
        return self.loss_sum / self.seen if self.seen else math.nan

    @property
    def accuracy(self) -> float:
        """Over the current epoch, 0 to 1; NaN before the first label."""
        return self.correct / self.seen if self.seen else math.nan
