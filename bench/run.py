"""Measure: check each implementation against its definition, then time it beside its rivals."""

from __future__ import annotations

import dataclasses
import gc
import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn.kernel import observe_launches
from gpucnn.threads import thread_count
from gpucnn.tuning import kernel_label

from .harness.cpu_timer import CpuTimer
from .harness.launch_facts import launch_facts
from .harness.ours import DEFAULT, Ours, sets_for, variants_of
from .harness.timing import Contender, Run, Timing, interleave, summarise
from .harness.verify import Reference, compare
from .machine import Machine, measure_cpu, measure_cuda
from .problems import Problem
from .rivals import Gap, Rival, open_rivals
from .rows import (
    FAILED,
    OUT_OF_MEMORY,
    WRONG,
    Row,
    add_ratios,
    add_timing,
    definition_hash,
    empty_row,
    file_hash,
    kernel_hash,
)
from .steps import (
    GRAPH_8,
    GRAPHS,
    PARTS,
    PERSISTENT,
    ROW,
    Step,
    as_variant,
    expected_losses,
    first_values,
    our_step,
    step_variants,
)
from .tolerances import BARS

Task = tuple[Problem | Step, str]  # what to measure, and its precision

_BY_PRECISION = (DEFAULT, "implicit_gemm")  # the others compute in float32 whatever is chosen
_OF_RIVALS = ("fp32", "tf32")  # how they multiply float32 arrays
_OF_STEPS = (*_OF_RIVALS, "bf16")  # what they train in
_GRAPH_CALLS = 5  # the first three run, note and record, the others replay
_POOL_LIMIT = 1 << 33  # bytes that CuPy's own pool may keep


@dataclass
class Options:
    """How a run measures. seconds: of each contender. minutes: after them no problem is begun."""

    device: str = "cpu"
    variants: tuple[str, ...] = ()
    against: tuple[str, ...] = ("torch", "cupy")
    seconds: float = 0.1
    compile_seconds: float = 60.0
    minutes: float | None = None


@dataclass
class Results:
    """The rows so far, the rivals that are missing and why, and whether the run came to its end."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    gaps: Counter[tuple[str, str]] = field(default_factory=Counter)
    unmeasured: list[str] = field(default_factory=list)
    stopped: str = ""


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def busy(threads: int) -> str:
    """Whether others compute on this machine, as a sentence; "" where it is quiet or not known."""
    if not hasattr(os, "getloadavg"):
        return ""
    load = os.getloadavg()[0]
    if load < 0.7 * threads:
        return ""
    return f"the machine was busy before the run (load {load:.1f} on {threads} threads)"


def import_patient_torch() -> None:
    """Import PyTorch with threads that sleep where they wait for each other.

    Spinning is faster on a quiet machine; on a busy one it takes the cores from those waited for,
    and a call of microseconds takes several of the scheduler's time slices.
    """
    if "torch" in sys.modules or "OMP_WAIT_POLICY" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "passive"  # read once, when the library is loaded
    try:
        importlib.import_module("torch")
    except Exception:  # whoever needs it leaves a gap
        pass
    finally:
        del os.environ["OMP_WAIT_POLICY"]


def open_timer(device: str) -> Any:
    """The clock of a device."""
    if device == "cpu":
        return CpuTimer()
    from .harness.cuda_timer import CudaTimer

    return CudaTimer()


class Bench:
    """One run on one device."""

    def __init__(self, options: Options, timer: Any = None, machine: Machine | None = None) -> None:
        self.options = options
        self.timer: Any = open_timer(options.device) if timer is None else timer
        remark = busy(thread_count())
        if remark and options.device == "cpu" and "torch" in options.against:
            import_patient_torch()
        if machine is None:
            cuda = options.device == "cuda"
            machine = measure_cuda(self.timer) if cuda else measure_cpu()
        self.results = Results(dataclasses.replace(machine, remark=remark))
        self._rivals, gaps = open_rivals(
            options.against, options.device, self.timer, options.compile_seconds
        )
        self._precision = "fp32"
        self._reference: dict[str, Any] | None = None
        for gap in gaps:
            self.results.gaps[gap.name, gap.reason] += 1

    def measure(
        self, tasks: Sequence[Task], report: Callable[[list[Row], int, int], None]
    ) -> Results:
        """Measure every problem; ``report`` gets its rows, its number and how many there are.

        An interrupt from the keyboard ends the run and keeps what was measured.
        """
        start = time.monotonic()
        try:
            with gpucnn.use_device(self.options.device):
                for number, (problem, precision) in enumerate(tasks, 1):
                    spent = (time.monotonic() - start) / 60
                    if self.options.minutes is not None and spent > self.options.minutes:
                        self.results.unmeasured = [str(p) for p, _ in tasks[number - 1 :]]
                        self.results.stopped = f"the {self.options.minutes:g} minutes are over"
                        break
                    rows = self.rows_of(problem, precision)
                    self.results.rows += rows
                    report(rows, number, len(tasks))
        except KeyboardInterrupt:
            self.results.stopped = "interrupted"
        return self.results

    def rows_of(self, problem: Problem | Step, precision: str = "fp32") -> list[Row]:
        """The rows of one problem: of each variant, and of each rival that takes part."""
        self._precision = precision
        for opened in self._rivals.values():
            if precision in _OF_STEPS and hasattr(opened, "use_precision"):
                opened.use_precision(precision)
        with gpucnn.precision(precision):
            try:
                if isinstance(problem, Step):
                    rows = self._step_rows(problem)
                else:
                    rows = self._rows(problem)
            except Exception as error:  # nothing that one problem does may end the run
                rows = [self._failed(problem, "", error)]
        self._clean_up()
        add_ratios(rows)
        return rows

    def _clean_up(self) -> None:
        gc.collect()
        if self.options.device == "cuda":
            pool = self.timer.cupy.get_default_memory_pool()
            if pool.total_bytes() > _POOL_LIMIT:
                pool.free_all_blocks()
        for opened in self._rivals.values():
            if hasattr(opened, "release"):
                opened.release()

    def _row(self, problem: Any, variant: str) -> Row:
        return empty_row(problem, variant, self.results.machine, self._precision)

    def _failed(self, problem: Any, variant: str, error: BaseException) -> Row:
        row = self._row(problem, variant)
        row["status"] = OUT_OF_MEMORY if _is_out_of_memory(error) else FAILED
        return row | {"note": _one_line(error)}

    def _bar(self, otherwise: str) -> str:
        """The tolerance: that of a precision below float32's, else the given one."""
        return self._precision if self._precision in BARS else otherwise

    def _variants(self, problem: Problem) -> list[str]:
        known = variants_of(problem.primitive, self.options.device)
        wanted = self.options.variants
        if self._precision != "fp32":
            known = tuple(name for name in known if name in _BY_PRECISION)
        return [name for name in known if not wanted or name in wanted]

    def _rows(self, problem: Problem) -> list[Row]:
        variants = self._variants(problem)
        if not variants:
            return []
        reference = Reference(problem)
        l2 = getattr(self.timer, "l2_bytes", 0)
        sets = sets_for(problem.bytes, l2) if self.options.device == "cuda" else 1
        rows, ours, rivals = [], {}, {}
        for variant in variants:
            row, case = self._checked(reference, variant, sets)
            rows.append(row)
            if case is not None:
                ours[variant] = case
        if ours and problem.group != "edge":
            rivals = self._checked_rivals(reference, sets)
        timings = self._times(
            problem, rows, {name: case.contender for name, case in ours.items()}, rivals
        )
        for row in rows:
            case = ours.get(row["variant"])
            if case is None:
                continue
            if row["variant"] in timings and not case.last_results_hold():
                row |= {"status": WRONG, "note": "the last timed call left other results"}
            elif row["variant"] in timings:
                add_timing(row, timings[row["variant"]], self.results.machine)
            case.free()
        return rows + self._rival_rows(problem, rivals, timings)

    def _checked(self, reference: Reference, variant: str, sets: int) -> tuple[Row, Ours | None]:
        """The row of a variant, and the variant itself if its results are right."""
        problem, device = reference.problem, self.options.device
        row = self._row(problem, variant)
        try:
            case = Ours(reference, variant, device, self.timer, sets)
            verdict = reference.compare(case.first_results(), self._bar(""))
            row["max_error"] = float(f"{verdict.error:.3g}")
            if device == "cuda":
                row["source_hash"] = kernel_hash(one.kernel.spec for one in case.launches)
                row["kernel"] = kernel_label(case.launches)
                row |= launch_facts(self.timer.cupy, case.launches)
            else:
                row["source_hash"] = definition_hash(problem.primitive)
        except Exception as error:  # a row says so, and the rest goes on
            return self._failed(problem, variant, error), None
        if verdict.trouble:
            case.free()
            return row | {"status": WRONG, "note": verdict.trouble}, None
        return row, case

    def _opponents(self, problem: Problem | Step) -> dict[str, Any]:
        """The libraries that compute in the precision at hand; each of the others is a gap."""
        if isinstance(problem, Step):
            if self._precision in _OF_STEPS:
                rivals = self._rivals.items()
                return {name: opened for name, opened in rivals if hasattr(opened, "step_rivals")}
        elif self._precision in _OF_RIVALS:
            return self._rivals
        for library in self._rivals:
            self.results.gaps[library, f"no {self._precision} products of float32 arrays"] += 1
        return {}

    def _checked_rivals(self, reference: Reference, sets: int) -> dict[str, tuple[Rival, float]]:
        """The rivals whose results are right, with their largest errors."""
        found: dict[str, tuple[Rival, float]] = {}
        bar = self._bar("torch")
        for library, opened in self._opponents(reference.problem).items():
            try:
                offered = opened.rivals(reference.problem.primitive, reference.arguments, sets)
            except Exception as error:
                offered = [Gap(library, _one_line(error))]
            self._keep_right_ones(offered, lambda got: reference.compare(got, bar), found)
        return found

    def _keep_right_ones(
        self, offered: Iterable[Rival | Gap], check: Callable[..., Any], found: dict[str, Any]
    ) -> None:
        for rival in offered:
            if isinstance(rival, Gap):
                self.results.gaps[rival.name, rival.reason] += 1
                continue
            name = rival.contender.name
            try:
                verdict = check(rival.results())
            except Exception as error:
                self.results.gaps[name, _one_line(error)] += 1
                continue
            if verdict.trouble:
                self.results.gaps[name, f"computes something else: {verdict.trouble}"] += 1
            else:
                found[name] = rival, verdict.error

    def _prepare(self, contender: Contender) -> Run | Exception:
        try:
            ready: Run = self.timer.prepare(contender)
            return ready
        except Exception as error:  # a row or a gap says so
            return error

    def _times(
        self,
        problem: Any,
        rows: list[Row],
        ours: dict[str, Contender],
        rivals: dict[str, tuple[Rival, float]],
    ) -> dict[str, Timing]:
        """The timings of all that can be made ready, measured in turns."""
        runs: dict[str, Run] = {}
        for name, contender in ours.items():
            ready = self._prepare(contender)
            if isinstance(ready, Exception):
                failed = self._failed(problem, name, ready)
                next(row for row in rows if row["variant"] == name).update(
                    status=failed["status"], note=failed["note"]
                )
            else:
                runs[name] = ready
        for name, (rival, _) in rivals.items():
            ready = self._prepare(rival.contender)
            if isinstance(ready, Exception):
                self.results.gaps[name, _one_line(ready)] += 1
            else:
                runs[name] = ready
        if not any(name in runs for name in ours):
            return {}
        for row in rows:
            host = getattr(runs.get(row["variant"]), "host_us", None)
            row["host_us"] = "" if host is None else round(host, 2)
        samples = interleave(runs, self.options.seconds)
        return {name: summarise(s, runs[name].timer) for name, s in samples.items()}

    def _rival_rows(
        self, problem: Any, rivals: dict[str, tuple[Rival, float]], timings: dict[str, Timing]
    ) -> list[Row]:
        rows = []
        for name, (_, error) in rivals.items():
            if name in timings:
                row = self._row(problem, name)
                row["max_error"] = float(f"{error:.3g}")
                add_timing(row, timings[name], self.results.machine)
                rows.append(row)
        return rows

    def _step_rows(self, step: Step) -> list[Row]:
        opponents, cuda = self._opponents(step), self.options.device == "cuda"
        expected = self._expected(step, opponents)
        own: dict[str, Contender] = {}
        rows, last = [], {}
        for variant in step.variants if cuda else step_variants("cpu"):
            if self.options.variants and variant not in self.options.variants:
                continue
            row, run = self._checked_step(step, variant, expected)
            rows.append(row)
            if run is None:
                continue

            def call(_: int, name: str = variant, run: Callable[[], Any] = run) -> Any:
                last[name] = run()
                return last[name]

            own[variant] = Contender(
                variant, call, eager=cuda, row=ROW * cuda, parts=_parts(variant)
            )
        rivals: dict[str, tuple[Rival, float]] = {}
        for library, opened in opponents.items() if own else ():
            try:
                offered = opened.step_rivals(step)
            except Exception as error:
                offered = [Gap(library, _one_line(error))]
            self._keep_right_ones(
                offered, lambda got: compare(got, expected, 1, self._bar("training")), rivals
            )
        timings = self._times(step, rows, own, rivals) if own else {}
        for row in rows:
            variant = row["variant"]
            if variant not in timings:
                continue
            made = last[variant]
            if np.isfinite(step.value(made[-1] if _parts(variant) > 1 else made)):
                add_timing(row, timings[variant], self.results.machine)
            else:
                row |= {"status": WRONG, "note": "the loss is not finite after the last step"}
        return [*rows, *self._rival_rows(step, rivals, timings)]

    def _expected(self, step: Step, opponents: dict[str, Any]) -> list[Any]:
        """The first losses in float64: on a GPU PyTorch's, which takes seconds less."""
        library = opponents.get("torch") or self._reference_library()
        if library is not None:
            try:
                found: list[Any] = library.reference(step)
                return found
            except Exception as error:
                self.results.gaps["torch", f"no float64 losses: {_one_line(error)}"] += 1
        return [expected_losses(step)]

    def _reference_library(self) -> Any:
        """PyTorch on a GPU where it is no rival, or None."""
        if self.options.device == "cuda" and self._reference is None:
            opened, _ = open_rivals(("torch",), "cuda", self.timer, 0.0)
            self._reference = opened
        return (self._reference or {}).get("torch")

    def _checked_step(
        self, step: Step, variant: str, expected: list[Any]
    ) -> tuple[Row, Callable[[], Any] | None]:
        """A row, and what computes the step; None where that fails or its losses are wrong."""
        row, launches = self._row(step, variant), []  # type: tuple[Row, list[Any]]
        try:
            run = as_variant(our_step(step, self.options.device), variant)
            if variant in GRAPHS:
                run = gpucnn.cuda_graph(run, steps=_parts(variant))
            with observe_launches(launches.append):
                values = self._values(step, run, variant)
            verdict = compare([values[: len(expected[0])]], expected, 1, self._bar("training"))
        except Exception as error:
            return self._failed(step, variant, error), None
        row["max_error"] = float(f"{verdict.error:.3g}")
        row["source_hash"] = (
            kernel_hash(one.kernel.spec for one in launches)
            if launches
            else file_hash(*sorted((Path(gpucnn.__file__).parent / "ops").glob("*.py")))
        )
        if verdict.trouble:
            return row | {"status": WRONG, "note": f"losses: {verdict.trouble}"}, None
        return row, run

    def _values(self, step: Step, run: Any, variant: str) -> Any:
        """The losses of the first steps; of a graph, RuntimeError unless they are those of eager
        steps to the bit, also where they come from replays.
        """
        if variant not in GRAPHS:
            return first_values(step, run)
        values: list[float] = []
        eager = as_variant(our_step(step, self.options.device), variant)
        for _ in range(_GRAPH_CALLS):
            made = run()
            parts = made if _parts(variant) > 1 else [made]
            values += [step.value(result) for result in parts]
            for value in values[-len(parts) :]:
                wanted = step.value(eager())
                if not value == wanted:
                    raise RuntimeError(f"a graph gives {value}, eager steps {wanted}")
        if not run.replays:
            raise RuntimeError(run.reason or "no graph was recorded")
        return np.array(values)


def _parts(variant: str) -> int:
    """The steps of one call."""
    return PARTS if variant in (GRAPH_8, PERSISTENT) else 1


def known_variants(device: str, problems: Iterable[Problem | Step]) -> tuple[str, ...]:
    """Every name that ``--variant`` takes for these problems on a device."""

    def names() -> Iterator[str]:
        for problem in problems:
            if isinstance(problem, Step):
                yield from step_variants(device)
            else:
                yield from variants_of(problem.primitive, device)

    return tuple(dict.fromkeys(names()))
