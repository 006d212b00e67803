"""Which kernels a name means."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Sequence

from gpucnn import kernel
from gpucnn.xray.measure import KernelKey, Problem, plan


def all_kernels() -> list[KernelKey]:
    """Every kernel of every specialisation that an operator has declared."""
    return [(s, name) for s in kernel.specialisations() for name in kernel.signatures(s.family)]


def find_kernels(name: str) -> list[KernelKey]:
    """The kernels of a name: a kernel, else a file, else all files of a family (``conv2d``).

    Raises ValueError, with close names and the names there are.
    """
    keys = all_kernels()
    for found in (
        [key for key in keys if key[1] == name],
        [key for key in keys if key[0].family == name],
        [key for key in keys if key[0].family.startswith(f"{name}_")],
    ):
        if found:
            return found
    files = sorted({spec.family for spec, _ in keys})
    names = [*files, *dict.fromkeys(kernel_name for _, kernel_name in keys)]
    raise ValueError(
        f"{name!r} is not a kernel.{_near(name, names)} Files: {', '.join(files)}; "
        "'gpucnn kernels' lists the kernels."
    )


def find_problems(
    case: str, problems: Iterable[Problem], keys: Collection[KernelKey] = ()
) -> list[Problem]:
    """The problems of a case (``16to32-b16``), or the one of a full name (``add[16-b8]``).

    keys: kernels that the user named, whose cases an error lists. Raises ValueError, with close
    names, and the cases or families there are.
    """
    problems = list(problems)
    found = [p for p in problems if case in (p.case, str(p))]
    if found:
        return found
    if keys:
        launched = plan(p for p in problems if p.group != "layer")
        primitives = {c.problem.primitive for key in keys for c in launched.get(key, ())}
        problems = [p for p in problems if p.primitive in primitives]
        listed = dict.fromkeys(p.case for p in problems if p.group != "edge")
        known = f"Cases: {', '.join(listed)}, and those of the tests."
    else:
        families = dict.fromkeys(p.family for p in problems)
        known = f"A NAME beside it lists its cases: {', '.join(families)}."
    every = [*dict.fromkeys(p.case for p in problems), *map(str, problems)]
    raise ValueError(f"{case!r} is not a case of these kernels.{_near(case, every)} {known}")


def _near(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
