"""What ``gpucnn tune`` does: each candidate kernel of a problem, checked, then timed in turns."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

import gpucnn
from gpucnn import tuning
from gpucnn.tuning import Choice, Line

from .harness.ours import Ours, sets_for
from .harness.timing import Run, interleave, summarise
from .harness.verify import Reference
from .problems import Problem, all_problems
from .run import open_timer
from .tolerances import BARS

GROUPS = ("typical", "layer")
MARGIN = 0.02  # of the time that another kernel must save to be preferred to the rules' choice
_SECONDS = 0.1  # of samples of each candidate


def selected(families: Sequence[str], cases: Sequence[str]) -> list[Problem]:
    """The problems to measure. Raises click.UsageError for a name that does not exist."""
    tunable = [
        p for p in all_problems() if tuning.is_tunable(p.primitive) and (cases or p.group in GROUPS)
    ]
    _known("family", families, [p.family for p in tunable])
    mine = [p for p in tunable if not families or p.family in families]
    _known("case", cases, [p.case for p in mine if p.group in GROUPS])
    return [p for p in mine if not cases or p.case in cases]


def _known(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    names = list(dict.fromkeys(known))
    for name in given:
        if name not in names:
            raise click.UsageError(f"{name!r} is not a {what}, which is one of {', '.join(names)}.")


class Tuner:
    """One run on one GPU. timer: a clock as in ``bench.harness``."""

    def __init__(self, timer: Any, device: str = "cuda", seconds: float = _SECONDS) -> None:
        self.timer, self.device, self.seconds = timer, device, seconds
        self.troubles: list[str] = []

    def tune(self, problem: Problem, mode: str) -> Line | None:
        """Measure the candidates of a problem at a precision; None if there is but one."""
        with gpucnn.precision(mode), contextlib.ExitStack() as stack:
            reference = Reference(problem)
            rules = tuning.rules_choice(problem.primitive, reference.arguments, self._moved)
            found = tuning.candidates(problem.primitive, mode, reference.arguments[-1], rules)
            if rules not in found or len(found) == 1:
                return None
            runs: dict[str, Run] = {}
            for choice in found:
                run = self._ready(reference, choice, mode, stack)
                if run is not None:
                    runs[str(choice)] = run
            if str(rules) not in runs:
                return None
            samples = interleave(runs, self.seconds)
            times = {name: summarise(s, runs[name].timer).median for name, s in samples.items()}
        best, own = min(times, key=lambda name: times[name]), times[str(rules)]
        name = best if times[best] < (1 - MARGIN) * own else str(rules)
        choice = next(c for c in found if str(c) == name)
        return Line(problem.primitive, mode, reference.arguments[-1], choice, times[name], own)

    def _moved(self, array: Any) -> Any:
        return gpucnn.device.to_device(array, self.device)

    def _ready(
        self, reference: Reference, choice: Choice, mode: str, stack: contextlib.ExitStack
    ) -> Run | None:
        """A candidate whose results are right, warm; None, and a trouble, for another one."""
        problem = reference.problem
        sets = sets_for(problem.bytes, self.timer.l2_bytes)
        try:
            ours = Ours(reference, choice.variant, self.device, self.timer, sets)
            stack.callback(ours.free)
            contender = dataclasses.replace(
                ours.contender, name=str(choice), call=_with(choice, ours.contender.call)
            )
            with choice.in_force():
                verdict = reference.compare(ours.first_results(), mode if mode in BARS else "")
            if verdict.trouble:
                self.troubles.append(f"{problem} {choice}: {verdict.trouble}")
                return None
            run: Run = self.timer.prepare(contender)
            return run
        except Exception as error:  # a tile that does not fit this GPU, say: the others go on
            text = " ".join(str(error).split())
            self.troubles.append(f"{problem} {choice}: {type(error).__name__}: {text}"[:200])
            return None


def _with(choice: Choice, call: Callable[[int], Any]) -> Callable[[int], Any]:
    def run(i: int) -> Any:
        with choice.in_force():
            return call(i)

    return run


def measure(tuner: Tuner, tasks: Sequence[tuple[Problem, str]], lines: list[Line]) -> None:
    """Append the line of each problem that has something to choose."""
    for number, (problem, mode) in enumerate(tasks, 1):
        line = tuner.tune(problem, mode)
        if line is None:
            continue
        lines.append(line)
        saved = 1 - line.us / line.rules_us
        kept = f"saves {saved:.0%}" if saved else "the rules' choice"
        head = f"[{number}/{len(tasks)}] {problem} {mode}"
        click.echo(f"{head}: {line.choice}, {line.us:.1f} µs, {kept}", err=True)


def run(
    families: Sequence[str],
    *,
    cases: Sequence[str],
    precisions: Sequence[str],
    out: Path | None,
    make_timer: Callable[[], Any] = lambda: open_timer("cuda"),
) -> int:
    """Measure and write the table -> the exit code."""
    problems = selected(families, cases)
    if not gpucnn.cuda_available():
        raise click.UsageError(
            f"tune measures on a GPU, and none can be used here: {gpucnn.why_cpu()}"
        )
    import cupy

    from .command import precisions_of

    modes = precisions_of("cuda", precisions)
    gpu = tuning.gpu_name(cupy.cuda.runtime.getDevice())
    path = out or tuning.table_path(gpu)
    tuner = Tuner(make_timer())
    lines: list[Line] = []
    stopped = False
    try:
        measure(tuner, [(p, mode) for p in problems for mode in modes], lines)
    except KeyboardInterrupt:
        stopped = True
    tuning.write_table(path, gpu, lines)
    tuning.forget()
    for trouble in tuner.troubles:
        click.echo(f"note: {trouble}", err=True)
    click.echo(f"{len(lines)} problems measured on {gpu}: {path}")
    return 130 if stopped else 0
