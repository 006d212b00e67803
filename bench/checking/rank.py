"""A foreign kernel in the x-ray beside our own, and timed beside them where there is a GPU."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.kernel import Kernel, Launch, nvrtc_version, standing_in
from gpucnn.primitive import PRIMITIVES
from gpucnn.signature import convert_arguments
from gpucnn.xray.compiled import Usage, compiled
from gpucnn.xray.counters import LaunchCounters, count
from gpucnn.xray.measure import Call
from gpucnn.xray.report import Row

from ..problems import Problem, all_problems
from .run import Configuration, checks, solve
from .source import nvrtc_refuses
from .target import Case, Target, cases_of

YOURS = "yours"
_SECONDS = 0.2  # of timing, per kernel
_MOST_WORK = 3_000_000  # operations: about a second of the emulator


@dataclass(frozen=True)
class Standing:
    """One kernel on one case. us: the median time on the GPU, None without one."""

    name: str
    row: Row
    us: float | None

    @property
    def key(self) -> tuple[float, float]:
        """What the ranking goes by: the time; else the memory traffic asked for, then conflicts."""
        counters = self.row.counters
        conflicts = counters.bank_conflicts if counters else 0
        return (self.us or 0.0) or float(self.row.traffic or 0), conflicts


@dataclass(frozen=True)
class Ranking:
    """The kernels on one case, the best first."""

    problem: Problem
    standings: tuple[Standing, ...]
    note: str  # why something is missing, or ""


def _work(case: Case) -> int:
    return max(case.problem.flops, case.problem.bytes // 4)


def representative(target: Target, without: Sequence[str]) -> Case:
    """The case of the ranking: it shows a kernel well, and is counted in about a second.

    Raises ValueError where ``without`` leaves no case.
    """
    cases = [check.case for check in checks(target, without) if not check.variant]
    if not cases:
        raise ValueError(f"--without leaves no case of {target.name}")
    for problem in all_problems():
        if problem.primitive == target.primitive and problem.group == "typical":
            cases += [
                case
                for case in cases_of(problem, target.variant)
                if case.launch.kernel.name == target.kernel.name
                and not {*case.features} & {*without}
            ]
    return max(
        (case for case in cases if _work(case) <= _MOST_WORK),
        key=lambda case: (case.problem.group == "typical", _work(case)),
        default=cases[0],
    )


def _launcher(
    target: Target, kernel: Kernel, configuration: Configuration, launched: list[Launch]
) -> Callable[..., Any]:
    """Our launcher with its one launch done by the foreign kernel."""
    original = PRIMITIVES[target.primitive].launchers[target.variant]

    def instead(replaced: Launch, given: Sequence[Any]) -> None:
        launch = configuration.launch(kernel, replaced, given)
        launched[:] = [launch]
        launch.kernel.run(launch, convert_arguments(kernel.signature, given))

    def launcher(*arguments: Any) -> Any:
        with standing_in(instead):
            return original(*arguments)

    return launcher


@contextlib.contextmanager
def as_variant(
    target: Target, kernel: Kernel, configuration: Configuration
) -> Iterator[list[Launch]]:
    """Inside the ``with`` block the foreign kernel is the variant YOURS -> its last launch."""
    launchers, launched = PRIMITIVES[target.primitive].launchers, list[Launch]()
    launchers[YOURS] = _launcher(target, kernel, configuration, launched)
    try:
        yield launched
    finally:
        del launchers[YOURS]


def _counted(case: Case, variant: str) -> LaunchCounters | None:
    """The counters of the one launch that a variant makes, None if it makes several."""
    with count() as counted:
        PRIMITIVES[case.problem.primitive].launchers[variant](*case.problem.make(0))
    return counted.launches[0] if len(counted.launches) == 1 else None


def _usage(kernel: Kernel, arch: str) -> Usage | None:
    """Registers and the like, None where NVRTC is missing or refuses the kernel."""
    if nvrtc_version() is None or nvrtc_refuses(kernel, arch):
        return None
    return compiled(kernel.spec, arch).usage.get(kernel.name)


def _times(case: Case, variants: Sequence[str]) -> dict[str, float]:
    """Median microseconds on the GPU."""
    from ..harness.ours import DEFAULT, Ours
    from ..harness.timing import interleave, summarise
    from ..harness.verify import Reference
    from ..run import open_timer

    timer, reference = open_timer("cuda"), Reference(case.problem)
    ready = {v: Ours(reference, v or DEFAULT, "cuda", timer, 1) for v in variants}
    for ours in ready.values():
        ours.first_results()
    samples = interleave({v: timer.prepare(o.contender) for v, o in ready.items()}, _SECONDS)
    return {v: summarise(found, "").median for v, found in samples.items()}


def rank(
    target: Target,
    kernel: Kernel,
    configuration: Configuration,
    arch: str,
    case: Case,
    *,
    cuda: bool = False,
) -> Ranking:
    """Count the kernel and our rungs on a case, emulated; with ``cuda`` also time them."""
    made = PRIMITIVES[target.primitive]
    named = [name for name in made.launchers if name] or [""]
    standings = []
    with as_variant(target, kernel, configuration) as launched:
        times = _times(case, [*named, YOURS]) if cuda else {}
        for variant in (*named, YOURS):
            own = launched if variant == YOURS else _launches(case, variant)
            counters = _counted(case, variant)
            if len(own) != 1 or counters is None:
                continue
            row = Row(
                kernel=own[0].kernel.name,
                spec=own[0].kernel.spec,
                arch=arch,
                usage=_usage(own[0].kernel, arch),
                mix=None,
                call=Call(case.problem, variant, tuple(own)),
                threads=math.prod(counters.block),
                dynamic_shared=counters.shared_mem,
                counters=counters,
            )
            standings.append(Standing(variant or "ours", row, times.get(variant)))
    refused = nvrtc_refuses(kernel, arch)
    note = f"NVRTC does not compile {kernel.name}: {refused.splitlines()[0]}" if refused else ""
    return Ranking(case.problem, tuple(sorted(standings, key=lambda s: s.key)), note)


def _launches(case: Case, variant: str) -> list[Launch]:
    """The launch of ours that a variant makes, none if it makes several."""
    return [found.launch for found in cases_of(case.problem, variant)]


def writing_lines(
    target: Target,
    case: Case,
    arguments: tuple[Any, ...],
    kernel: Kernel,
    configuration: Configuration,
) -> list[int]:
    """The lines of the foreign kernel's file that write to global memory; [] if it faults."""
    from gpucnn import emulator

    def run(launch: Launch, given: Sequence[Any]) -> None:
        launch.kernel.run(launch, given)

    try:
        with count() as counted:
            solve(target, case, arguments, kernel, configuration, run)
    except emulator.KernelFault:
        return []
    sites = (site for launch in counted.launches for site in launch.sites)
    name = f"{kernel.spec.family}."
    return sorted(
        {
            s.line
            for s in sites
            if (s.space, s.access) == ("global", "write") and s.file.startswith(name)
        }
    )
