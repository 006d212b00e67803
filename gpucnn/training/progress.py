"""What training shows on stderr: a progress bar on a terminal, else one line per epoch."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Shows the progress of a fit; use as a context manager around it.

    Args:
        total: number of steps of the whole run.
        console: where to write; by default stderr, where NO_COLOR is honoured.
    """

    def __init__(self, total: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._total = total
        self._images = 0
        self._busy = 0.0
        self._since: float | None = None
        self._progress: Progress | None = None

    def __enter__(self) -> Reporter:
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn(
                    "{task.percentage:>3.0f} %  loss {task.fields[loss]:.4f}  "
                    "accuracy {task.fields[accuracy]:.1%}  "
                    "{task.fields[speed]:,.0f} images/s"
                ),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
                transient=True,
            )
            self._progress.start()
        self.resume_clock()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def pause_clock(self) -> None:
        """Stop counting time for images/s, which is about training steps."""
        if self._since is not None:
            self._busy += time.perf_counter() - self._since
            self._since = None

    def resume_clock(self) -> None:
        """Count time again."""
        self._since = time.perf_counter()

    @property
    def images_per_second(self) -> float:
        """Training images per second of this fit so far."""
        busy = self._busy
        if self._since is not None:
            busy += time.perf_counter() - self._since
        return self._images / busy if busy else 0.0

    def add_images(self, n: int) -> None:
        """Count ``n`` more training images towards images/s."""
        self._images += n

    def step(self, step: int, epoch: str, loss: float, accuracy: float) -> None:
        """``step`` training steps are done since the start of the run."""
        if self._progress is None:
            return
        shown: dict[str, Any] = {
            "epoch": epoch,
            "loss": loss,
            "accuracy": accuracy,
            "speed": self.images_per_second,
        }
        if not self._progress.tasks:
            # The first completed count is where time left is measured from.
            self._progress.add_task("", total=self._total, completed=step, **shown)
        else:
            self._progress.update(self._progress.tasks[0].id, completed=step, **shown)

    def line(self, text: str) -> None:
        """Write one line, above the bar where there is one."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
