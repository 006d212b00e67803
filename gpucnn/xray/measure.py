"""Which launch shows a kernel best, and what the emulator counts of it.

A problem is one call of a primitive (``bench/problems``). Running its launchers without executing
the kernels says which kernels they launch, with which grid, block and shared memory; the problem
that stands for a kernel is then run emulated and counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from gpucnn.kernel import Launch, Specialisation, observe_launches, without_running
from gpucnn.precision import precision
from gpucnn.primitive import PRIMITIVES
from gpucnn.storage import handed_over
from gpucnn.xray.counters import LaunchCounters, Site, count


class Problem(Protocol):
    """What the x-ray needs of a row of ``bench/problems``."""

    @property
    def family(self) -> str: ...
    @property
    def primitive(self) -> str: ...
    @property
    def case(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def make(self) -> Callable[[int], tuple[Any, ...]]: ...
    @property
    def bytes(self) -> int: ...
    @property
    def flops(self) -> int: ...


# Operations: part of a second of the emulator, some ten seconds, and too many.
MOST_WORK = 20_000_000
TOO_MUCH_WORK = 1_000_000_000

KernelKey = tuple[Specialisation, str]


@dataclass(frozen=True)
class Call:
    """A problem run by one of its primitive's launchers at a precision, and what that launches."""

    problem: Problem
    variant: str
    launches: tuple[Launch, ...]
    precision: str = precision.modes[0]

    @property
    def default(self) -> bool:
        """Whether this launcher runs where nobody chose another one."""
        return self.variant == next(iter(PRIMITIVES[self.problem.primitive].launchers))

    def __str__(self) -> str:
        other = self.precision if self.precision != precision.modes[0] else ""
        return ", ".join(part for part in (str(self.problem), self.variant, other) if part)

    @property
    def work(self) -> int:
        """Operations that an emulator has to do: about what is moved, computed and started."""
        return max(self.problem.flops, self.problem.bytes // 4, _threads(self.launches))

    def of(self, kernel: KernelKey) -> list[Launch]:
        """The launches of one kernel."""
        return [x for x in self.launches if (x.kernel.spec, x.kernel.name) == kernel]


def _threads(launches: Iterable[Launch]) -> int:
    return sum(math.prod(launch.grid) * math.prod(launch.block) for launch in launches)


def planned(problem: Problem) -> list[Call]:
    """The calls of a problem, without executing a kernel.

    One per launcher, and one more for each precision at which it launches something else.
    """
    arguments, calls = problem.make(0), []
    with precision("bf16"):
        stored = handed_over(problem.family, arguments)
    for variant, launcher in PRIMITIVES[problem.primitive].launchers.items():
        known: set[tuple[Launch, ...]] = set()
        for mode in precision.modes:
            launches: list[Launch] = []
            with precision(mode), without_running(), observe_launches(launches.append):
                launcher(*(stored if mode == "bf16" else arguments))
            if tuple(launches) not in known:
                calls.append(Call(problem, variant, tuple(launches), mode))
            known.add(tuple(launches))
    return calls


def plan(problems: Iterable[Problem]) -> dict[KernelKey, list[Call]]:
    """Each kernel with the calls that launch it."""
    found: dict[KernelKey, list[Call]] = {}
    for problem in problems:
        for call in planned(problem):
            for key in dict.fromkeys((x.kernel.spec, x.kernel.name) for x in call.launches):
                found.setdefault(key, []).append(call)
    return found


def representative(kernel: KernelKey, calls: Iterable[Call]) -> Call:
    """The call that shows a kernel as it is used, and large enough.

    Of those within ``MOST_WORK``, else the smallest; one of the default launcher before one of a
    launcher that somebody has to choose, and of these one with some arithmetic per byte, which such
    launchers are for; a typical problem before an edge case; the one that starts most threads of
    the kernel.
    """

    def rank(call: Call) -> tuple[bool, bool, bool, bool, int]:
        fits = call.work <= MOST_WORK
        meant = call.default or call.problem.flops >= 8 * call.problem.bytes
        size = _threads(call.of(kernel)) if fits else -call.work
        return fits, call.default, meant, call.problem.group == "typical", size

    return max(calls, key=rank)


def counted(call: Call) -> dict[KernelKey, LaunchCounters]:
    """The counters of each kernel that a call launches, its launches summed.

    Raises RuntimeError if the emulator cannot run here, KernelFault if a kernel is faulty.
    """
    problem = call.problem
    with precision(call.precision), count() as found:
        arguments = handed_over(problem.family, problem.make(0))
        PRIMITIVES[problem.primitive].launchers[call.variant](*arguments)
    by_kernel: dict[KernelKey, list[LaunchCounters]] = {}
    for launch in found.launches:
        if launch.spec is not None:
            by_kernel.setdefault((launch.spec, launch.kernel), []).append(launch)
    return {key: merged(launches) for key, launches in by_kernel.items()}


_SUMS = ("requests", "lanes", "bytes", "sectors", "ideal_sectors", "coalesced", "wavefronts",
         "conflicts")  # fmt: skip


def merged(launches: Iterable[LaunchCounters]) -> LaunchCounters:
    """Several launches of one kernel as one: sums, and the most barriers that a block passes."""
    every = list(launches)
    return replace(
        every[0],
        sites=joined_sites(site for launch in every for site in launch.sites),
        events=[event for launch in every for event in launch.events],
        arithmetic=[entry for launch in every for entry in launch.arithmetic],
        barriers=max(launch.barriers for launch in every),
        read_footprint=sum(launch.read_footprint for launch in every),
        written_footprint=sum(launch.written_footprint for launch in every),
    )


def joined_sites(sites: Iterable[Site]) -> list[Site]:
    """The sites with those of one source line, space and access summed."""
    joined: dict[tuple[str, int, str, str], Site] = {}
    for site in sites:
        key = (site.file, site.line, site.space, site.access)
        total = joined.get(key)
        if total is None:
            joined[key] = replace(site)
            continue
        for name in _SUMS:
            setattr(total, name, getattr(total, name) + getattr(site, name))
        total.worst_conflict = max(total.worst_conflict, site.worst_conflict)
    return list(joined.values())
