"""What is timed, and the statistics of its samples: the same on every device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

MOST_SAMPLES = 400
FEWEST_SAMPLES = 5
PATIENCE = 10.0  # seconds of one contender, after which even FEWEST_SAMPLES are too many


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call: the median of the samples, and where 20 % and 80 % of them lie.

    timer: what one sample was, "graph of 40" say.
    """

    median: float
    p20: float
    p80: float
    samples: int
    timer: str


def summarise(samples: Sequence[float], timer: str) -> Timing:
    """The statistics of samples in microseconds; ValueError where there is none."""
    if not samples:
        raise ValueError("samples must not be empty")
    p20, median, p80 = (float(v) for v in np.percentile(samples, [20, 50, 80]))
    return Timing(median, p20, p80, len(samples), timer)


@dataclass
class Contender:
    """One implementation of a problem.

    call: computes it on the i-th set of inputs and returns the outputs, without waiting for a GPU.
    sets: how many sets of inputs there are, in different memory.
    stream: a context in which ``call`` launches on the timer's stream.
    record: count -> a function that replays ``count`` calls recorded as one graph; None where that
    is the timer's business or nobody's. eager: time it with what its host does between launches.
    outputs: memory that the calls allocate and that may be overwritten before each sample.
    row: at least how many calls, or replays of a graph of one call, a sample makes in a row, as
    steps of a training run follow each other; 0: as many as the timer needs. parts: how many
    computations of the problem one call is. wait: waits for what ``call`` launched elsewhere than
    on the timer's stream; such a contender is timed by the host's clock.
    """

    name: str
    call: Callable[[int], Any]
    sets: int = 1
    stream: Callable[[], Any] | None = None
    record: Callable[[int], Callable[[], Any]] | None = None
    eager: bool = False
    graph: bool = False
    outputs: Any = None
    row: int = 0
    parts: int = 1
    wait: Callable[[], Any] | None = None


class Run(Protocol):
    """A contender made ready: warm, and with a decision how one sample is taken."""

    timer: str

    def sample(self) -> float:
        """Microseconds of one call."""


class Timer(Protocol):
    """A clock of a device."""

    def prepare(self, contender: Contender) -> Run:
        """Warm a contender up and choose how to sample it."""


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def interleave(runs: Mapping[str, Run], seconds: float) -> dict[str, list[float]]:
    """Samples of every run, one of each per turn, so that they meet the same machine.

    A run takes part until its samples have taken ``seconds`` (of samples and what surrounds them),
    but at least FEWEST_SAMPLES times (unless each takes longer than PATIENCE allows) and at most
    MOST_SAMPLES times.
    """
    samples: dict[str, list[float]] = {name: [] for name in runs}
    spent = dict.fromkeys(runs, 0.0)
    waiting = list(runs)
    with _no_garbage_collection():
        while waiting:
            for name in list(waiting):
                start = time.perf_counter()
                samples[name].append(runs[name].sample())
                spent[name] += time.perf_counter() - start
                count = len(samples[name])
                enough = count >= FEWEST_SAMPLES or spent[name] > PATIENCE
                if count >= MOST_SAMPLES or (enough and spent[name] >= seconds):
                    waiting.remove(name)
    return samples
