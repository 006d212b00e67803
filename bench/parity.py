"""How far float32 is from float64: every operator and pass of a device against the definition.

Errors of a result a whose float64 value is e:

- *relative*: the largest ``|a − e| / |e|`` over the e that are more than 2⁻²⁴ of the array's
  largest. Where terms cancel, e is small against them and this is large, however good the
  arithmetic is;
- *ULP*: the same in units in the last place of float32 at e, ``|a − e| / ulp(e)``;
- *scaled ULP*: ``|a − e|`` in units in the last place of the largest e of the array, over √terms,
  ``terms`` the length of the sum behind an output: cancellation does not show, and what a sum of
  that length loses at random counts as 1. Arrays whose largest e is below 2⁻¹⁴ of the largest input
  are left out: everything in them cancels;
- *growth*: the p with which the error grows like ``terms**p``, fitted to the root mean square of
  ``a − e`` over that of e. 0: as many terms as one likes for the same digits; 0.5: every addition
  rounds, and the roundings add up at random; 1: they add up.

Integers (indices) must be equal; ``mismatches`` counts those that are not.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn.device import to_device, to_host
from gpucnn.primitive import PRIMITIVES
from gpucnn.storage import handed_over

from .harness.arguments import flat, in_float32, map_arrays, results
from .harness.verify import Reference, same_bits
from .problems import Problem, select
from .series import series

RUNS = 20
_SEEDS = 3  # of each point of a series
# The longest sums: an emulated one takes about a second.
_LONGEST = {"cpu": 4**7, "emulated": 4**5, "cuda": 4**8}
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Row:
    """One operator and pass on a device; growth is None where no sum can be made longer."""

    family: str
    primitive: str
    variant: str
    device: str
    precision: str
    cases: int
    relative: float
    ulp: float
    scaled_ulp: float
    worst: str
    mismatches: int
    growth: float | None
    longest: int | None
    same_bits: bool
    runs: int


@dataclass(frozen=True)
class _Errors:
    relative: float
    ulp: float
    scaled_ulp: float
    mismatches: int


def _ulp(values: Any) -> Any:
    """The distance of float32 numbers at these float64 ones."""
    return np.spacing(np.maximum(np.abs(values), _TINY).astype(np.float32)).astype(np.float64)


def _largest(value: Any) -> float:
    """The largest number of an array of them, 0 for what is none."""
    numbers = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size
    return float(np.abs(value).max()) if numbers else 0.0


def _errors(actual: Any, expected: Any, terms: int, inputs: float) -> _Errors:
    """inputs: the largest of them."""
    if expected.dtype.kind != "f":
        return _Errors(0.0, 0.0, 0.0, int((actual.reshape(expected.shape) != expected).sum()))
    a, e = actual.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    finite = np.isfinite(e)
    mismatches = int((np.isnan(a) != np.isnan(e)).sum() + (a != e)[np.isinf(e)].sum())
    a, e = a[finite], e[finite]
    off = np.abs(a - e)
    if not off.size:
        return _Errors(0.0, 0.0, 0.0, mismatches)
    here = np.abs(e) > 2.0**-24 * np.abs(e).max()
    relative = (off[here] / np.abs(e[here])).max(initial=0)
    ulp = (off[here] / _ulp(e[here])).max(initial=0)
    largest = np.abs(e).max()
    scaled = 0.0
    if largest > 2.0**-14 * inputs:
        scaled = off.max() / _ulp(largest) / np.sqrt(terms)
    return _Errors(float(relative), float(ulp), float(scaled), mismatches)


def _computed(
    problem: Problem, arguments: tuple[Any, ...], run: Callable[..., Any], device: str
) -> list[Any]:
    arguments = handed_over(problem.family, arguments)
    on_device = map_arrays(arguments, lambda a: to_device(a.copy(), device))
    made = results(run(*on_device), on_device, problem.updated)
    return [np.array(in_float32(to_host(a)), order="C") for a in made]


def _growth(primitive: str, run: Callable[..., Any], device: str, longest: int) -> float | None:
    """The exponent of the error in the length of the sum, None without such a sum."""
    lengths, errors = [], []
    for problem in series(primitive, longest):
        for seed in range(_SEEDS):
            reference = Reference(problem, seed)
            actual = _computed(problem, reference.arguments, run, device)
            worst = max(_spread(a, e) for a, e in zip(actual, reference.expected, strict=True))
            lengths.append(np.log(problem.terms))
            errors.append(np.log(max(worst, 2.0**-30)))
    if len(set(lengths)) < 2:
        return None
    return float(np.polyfit(lengths, errors, 1)[0])


def _spread(actual: Any, expected: Any) -> float:
    """Root mean square of the error over that of the values; 0 for integers."""
    if expected.dtype.kind != "f":
        return 0.0
    off = actual.astype(np.float64).reshape(expected.shape) - expected
    size = np.sqrt(np.mean(np.square(expected)))
    return float(np.sqrt(np.mean(np.square(off))) / size) if size else 0.0


def _variants(primitive: str, device: str) -> list[tuple[str, Callable[..., Any]]]:
    """(name, function) of what computes a primitive on a device: each rung that has a name."""
    made = PRIMITIVES[primitive]
    if device == "cpu":
        return [("numpy", made.definition)]
    named = {name: run for name, run in made.launchers.items() if name}
    return list(named.items()) or [("default", made.on(device))]


def _row(
    family: str,
    primitive: str,
    variant: tuple[str, Callable[..., Any]],
    device: str,
    problems: Sequence[Problem],
    runs: int,
    precision: str,
) -> Row:
    name, run = variant
    worst: dict[str, float] = dict.fromkeys(("relative", "ulp", "scaled_ulp"), 0.0)
    case, mismatches = problems[0].case, 0
    for problem in problems:
        reference = Reference(problem)
        actual = _computed(problem, reference.arguments, run, device)
        inputs = max(_largest(a) for a in flat(list(reference.arguments)))
        for a, e in zip(actual, reference.expected, strict=True):
            found = _errors(a, e, problem.terms, inputs)
            mismatches += found.mismatches
            if found.scaled_ulp > worst["scaled_ulp"]:
                case = problem.case
            worst = {key: max(value, getattr(found, key)) for key, value in worst.items()}
    largest = max(problems, key=lambda p: (p.bytes, p.flops))
    longest = _LONGEST[device]
    growth = _growth(primitive, run, device, longest) if family == _family(primitive) else None
    return Row(
        family,
        primitive,
        name,
        device,
        precision,
        len(problems),
        worst["relative"],
        worst["ulp"],
        worst["scaled_ulp"],
        case,
        mismatches,
        growth,
        longest if growth is not None else None,
        _same(largest, run, device, runs),
        runs,
    )


def _family(primitive: str) -> str:
    return PRIMITIVES[primitive].family


def _same(problem: Problem, run: Callable[..., Any], device: str, runs: int) -> bool:
    """Whether ``runs`` runs on the same inputs give the same bits."""
    arguments = problem.make(0)
    first = _computed(problem, arguments, run, device)
    return all(
        same_bits(first, _computed(problem, arguments, run, device)) for _ in range(runs - 1)
    )


def parity(
    problems: Iterable[Problem],
    device: str,
    *,
    runs: int = RUNS,
    precision: str = "fp32",
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """A row per operator, pass and rung of the primitives of the problems.

    The edge and typical cases are run; emulated, only the edge cases. precision: of matrix
    products on tensor cores. say: told what comes next.
    """
    groups = ("edge",) if device == "emulated" else ("edge", "typical")
    by_pass: dict[tuple[str, str], list[Problem]] = {}
    for problem in select(problems, groups=groups):
        by_pass.setdefault((problem.family, problem.primitive), []).append(problem)
    rows = []
    with gpucnn.precision(precision):
        for (family, primitive), cases in by_pass.items():
            for variant in _variants(primitive, device):
                say(f"{primitive}, {variant[0]}")
                rows.append(_row(family, primitive, variant, device, cases, runs, precision))
    return rows


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """One line per row, with a heading."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
