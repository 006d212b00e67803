"""A second clock: the same kernels timed by NVBench (the package ``cuda-bench``) and by ours."""

from __future__ import annotations

import importlib.util
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness.ours import Ours, variants_of
from .harness.timing import interleave, summarise
from .harness.verify import Reference
from .problems import Problem

KERNELS = 10
TOLERANCE = 0.05
_LEAST_BYTES, _MOST_BYTES = 1 << 28, 1 << 30  # above 50 µs on any GPU, so both time one call
_SECONDS = 0.5


def unavailable() -> str:
    """Why NVBench cannot be used, or ""."""
    try:
        found = importlib.util.find_spec("cuda.bench") is not None
    except ImportError:
        found = False
    return "" if found else "cuda-bench is not installed; pip install cuda-bench"


@dataclass(frozen=True)
class Agreement:
    """One kernel on both clocks, in microseconds."""

    name: str
    ours_us: float
    theirs_us: float

    @property
    def difference(self) -> float:
        """Ours by theirs, less 1."""
        return self.ours_us / self.theirs_us - 1

    @property
    def agrees(self) -> bool:
        """Whether they differ by at most TOLERANCE."""
        return abs(self.difference) <= TOLERANCE

    def __str__(self) -> str:
        verdict = "agree" if self.agrees else f"differ by more than {TOLERANCE:.0%}"
        times = f"ours {self.ours_us:,.1f} µs, NVBench {self.theirs_us:,.1f} µs"
        return f"{self.name}: {times}, {self.difference:+.1%}: {verdict}"


def chosen(problems: Sequence[Problem]) -> list[Problem]:
    """Ten problems of different primitives, each large enough to be timed call by call."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if _LEAST_BYTES <= problem.bytes <= _MOST_BYTES and not problem.updated:
            found.setdefault(problem.primitive, problem)
    return list(found.values())[:KERNELS]


def cross_check(timer: Any, problems: Sequence[Problem]) -> list[Agreement]:
    """Time the chosen problems on both clocks, once their results are right.

    Raises ValueError if a kernel is wrong.
    """
    return [_both(timer, problem) for problem in chosen(problems)]


def _both(timer: Any, problem: Problem) -> Agreement:
    reference = Reference(problem)
    variant = variants_of(problem.primitive, "cuda")[0]
    case = Ours(reference, variant, "cuda", timer, sets=1)
    verdict = reference.compare(case.first_results())
    if verdict.trouble:
        raise ValueError(f"{problem} is wrong: {verdict.trouble}")
    run = timer.prepare(case.contender)
    own = summarise(interleave({"": run}, _SECONDS)[""], run.timer)
    theirs = _nvbench_us(timer, case, str(problem))
    case.free()
    return Agreement(str(problem), own.median, theirs)


def _nvbench_us(timer: Any, case: Ours, name: str) -> float:
    """The median of NVBench's cold measurements: one call, L2 flushed before."""
    from cuda import bench
    from cuda.bench.results import BenchmarkResult

    cupy = timer.cupy

    def measure(state: Any) -> None:
        def launch(given: Any) -> None:
            stream = cupy.cuda.ExternalStream(given.get_stream().addressof())
            with stream, case.contender.outputs.using():
                case.contender.call(0)

        state.exec(launch, batched=False)

    made = bench.register(measure)
    made.set_name(name)
    made.set_timeout(10 * _SECONDS)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        # every benchmark registered so far would run again, were it not named
        arguments = ["--benchmark", name, "--jsonbin", str(path), "--markdown", "stderr"]
        bench.run_all_benchmarks(["gpucnn", *arguments])
        centers = BenchmarkResult.from_json(path)[name].centers(statistics.median)
    (seconds,) = [value for value in centers.values() if value is not None]
    return float(seconds) * 1e6
