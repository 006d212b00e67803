"""What a kernel can stand in for: those primitives, or kernels of ours, that are one launch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpucnn.kernel import Kernel, Launch, standing_in
from gpucnn.primitive import PRIMITIVES
from gpucnn.signature import Parameter

from ..problems import Problem, all_problems

Dims = Mapping[str, int]
_PLAINEST = ("naive", "tiled")  # the rung whose parameters are asked for, where there are several


@dataclass(frozen=True)
class Case:
    """A problem that our launcher solves by one launch, and that launch's sizes."""

    problem: Problem
    launch: Launch
    dims: Dims

    @property
    def features(self) -> tuple[str, ...]:
        """What makes it awkward."""
        return tuple(name for name, test in _FEATURES.items() if test(self.dims))


@dataclass(frozen=True)
class Target:
    """A primitive, the launcher whose launch is replaced, and its cases.

    name: what ``--as`` calls it: the primitive, or our kernel where a primitive has several.
    """

    name: str
    primitive: str
    variant: str
    kernel: Kernel
    cases: tuple[Case, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What expressions may use: the integer parameters, and ``outputs``, ``threads``."""
        return *(p.name for p in _integers(self.kernel)), "outputs", "threads"


def _integers(kernel: Kernel) -> list[Parameter]:
    parameters = kernel.signature.parameters
    return [p for p in parameters if not p.pointer and p.type not in ("float", "double")]


def is_output(parameter: Parameter) -> bool:
    """Whether a kernel writes what the parameter points to."""
    return parameter.pointer and not parameter.const


def dims_of(kernel: Kernel, arguments: Sequence[Any]) -> dict[str, int]:
    """The integers of a launch by name, and ``outputs``, the elements of its first output."""
    paired = list(zip(kernel.signature.parameters, arguments, strict=True))
    dims = {p.name: int(a) for p, a in paired if p in _integers(kernel)}
    dims["outputs"] = next((a.size for p, a in paired if is_output(p) and a is not None), 1)
    return dims


def _any(dims: Dims, names: str, test: Any) -> bool:
    return any(name in dims and test(dims[name]) for name in names.split())


def _larger_window(d: Dims) -> bool:
    return any(k in d and n in d and d[k] > d[n] for k, n in (("KH", "H"), ("KW", "W")))


def _leftover(d: Dims) -> bool:
    """Whether windows more than a cell apart leave out the last cells."""
    axes = (("H", "KH", "OH", "SH", "PT", "DH"), ("W", "KW", "OW", "SW", "PL", "DW"))
    return any(
        d[s] > 1 and (d[o] - 1) * d[s] + (d[k] - 1) * d.get(dilation, 1) + 1 - d.get(p, 0) < d[n]
        for n, k, o, s, p, dilation in axes
        if {n, k, o, s} <= d.keys()
    )


_FEATURES: dict[str, Callable[[Dims], bool]] = {
    "K > H": _larger_window,
    "stride": lambda d: _any(d, "SD SH SW", lambda n: n > 1),
    "stride that does not divide": _leftover,
    "padding": lambda d: _any(d, "PF PT PL", lambda n: n > 0),
    "dilation": lambda d: _any(d, "DD DH DW", lambda n: n > 1),
    "groups": lambda d: _any(d, "G", lambda n: n > 1),
    "C = 1": lambda d: _any(d, "C", lambda n: n == 1),
    "N = 1": lambda d: _any(d, "N", lambda n: n == 1),
}
FEATURES = (*_FEATURES, "NaN", "ties")


def _launches(problem: Problem, variant: str) -> list[tuple[Launch, Dims]]:
    """What a launcher launches for a problem, without running it."""
    found: list[tuple[Launch, Dims]] = []

    def clear(launch: Launch, arguments: Sequence[Any]) -> None:
        found.append((launch, dims_of(launch.kernel, arguments)))
        for parameter, array in zip(launch.kernel.signature.parameters, arguments, strict=True):
            if is_output(parameter) and array is not None:
                array[...] = 0

    with standing_in(clear):
        PRIMITIVES[problem.primitive].launchers[variant](*problem.make(0))
    return found


def cases_of(problem: Problem, variant: str) -> list[Case]:
    """The problem as a case, if it takes one launch."""
    launches = _launches(problem, variant)
    return [Case(problem, *launches[0])] if len(launches) == 1 else []


@functools.cache
def _found(primitive: str) -> tuple[dict[str, Target], tuple[str, ...]]:
    """(targets by the name of our kernel, all kernels that the primitive launches)."""
    made = PRIMITIVES[primitive]
    variant = next(name for name in (*_PLAINEST, *made.launchers) if name in made.launchers)
    problems = [p for p in all_problems() if p.primitive == primitive and p.group == "edge"]
    own = [p for p in problems if p.family == made.family] or problems
    cases: dict[str, list[Case]] = {}
    kernels: dict[str, None] = {}
    for problem in own:
        launches = _launches(problem, variant)
        kernels.update(dict.fromkeys(launch.kernel.name for launch, _ in launches))
        if len(launches) == 1:
            case = Case(problem, *launches[0])
            cases.setdefault(case.launch.kernel.name, []).append(case)
    by_kernel = {
        name: Target(name, primitive, variant, found[0].launch.kernel, tuple(found))
        for name, found in cases.items()
    }
    return by_kernel, tuple(kernels)


def targets() -> dict[str, Target]:
    """Everything that ``--as`` takes."""
    found: dict[str, Target] = {}
    for primitive in PRIMITIVES:
        by_kernel, _ = _found(primitive)
        for target in by_kernel.values():
            name = primitive if len(by_kernel) == 1 else target.name
            if name in found:  # one kernel for two primitives: forward and backward of a loss
                name = f"{primitive}:{target.name}"
            found[name] = Target(
                name, target.primitive, target.variant, target.kernel, target.cases
            )
    return found


def why_not(primitive: str) -> str:
    """Why a primitive is not among the targets under its own name."""
    by_kernel, kernels = _found(primitive)
    if by_kernel:
        names = ", ".join(name for name, t in targets().items() if t.primitive == primitive)
        return f"{primitive} has a kernel per function, so --as takes one of {names}"
    together = ", ".join(kernels)
    return (
        f"{primitive} takes several kernels one after another ({together}), which one kernel "
        "cannot stand in for"
    )
