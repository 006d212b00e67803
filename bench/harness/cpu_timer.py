"""The clock of the ``cpu`` device, for NumPy and for its rivals on the same cores."""

from __future__ import annotations

import time

from .timing import Contender

_SAMPLE = 2e-3  # seconds: a sample holds as many calls as fit
_LONG = 0.05  # seconds: such a call brings its own data into the caches


class CpuRun:
    """Some calls in a row between two readings of the clock."""

    def __init__(self, contender: Contender) -> None:
        self._contender = contender
        self._call(0)
        start = time.perf_counter()
        self._call(0)
        once = time.perf_counter() - start
        self._calls = max(1, int(_SAMPLE / max(once, 1e-9)))
        self._warm = once < _LONG
        self.timer = f"{self._calls} calls" if self._calls > 1 else "1 call"

    def _call(self, i: int) -> None:
        self._contender.call(i % self._contender.sets)

    def sample(self) -> float:
        """Microseconds of one call."""
        if self._warm:  # whoever ran before has left the caches and the threads to itself
            self._call(0)
        start = time.perf_counter()
        for i in range(self._calls):
            self._call(i)
        return (time.perf_counter() - start) / self._calls * 1e6


class CpuTimer:
    """Reads ``time.perf_counter``."""

    def prepare(self, contender: Contender) -> CpuRun:
        """Warm a contender up and see how many calls a sample holds."""
        return CpuRun(contender)
