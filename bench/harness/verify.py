"""A kernel is timed once its results are those of the NumPy definition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.primitive import PRIMITIVES
from gpucnn.threads import map_chunks

from ..problems import Problem
from ..tolerances import BARS, float32_bar
from .arguments import results, widened

_CHUNK = 1 << 18


@dataclass(frozen=True)
class Verdict:
    """error: the largest |actual − expected| of all outputs; trouble: what is wrong, or ""."""

    error: float
    trouble: str


def _worst(actual: Any, expected: Any, bar: str, terms: int) -> tuple[float, float, int]:
    """(largest error, largest excess over the tolerance, where that is) of arrays of one shape."""
    a, e, limit = actual.reshape(-1), expected.reshape(-1), BARS[bar]

    def part(start: int, stop: int) -> tuple[float, float, int]:
        own, wanted = a[start:stop].astype(np.float64), e[start:stop].astype(np.float64)
        with np.errstate(invalid="ignore"):
            off = np.abs(own - wanted)
            off[(own == wanted) | (np.isnan(own) & np.isnan(wanted))] = 0
            off[np.isnan(off)] = np.inf  # a NaN on one side, or infinities of two signs
            excess = off - (limit.atol * np.sqrt(terms) + limit.rtol * np.abs(wanted))
            excess[np.isnan(excess)] = np.where(off[np.isnan(excess)] > 0, np.inf, -1)
        at = int(excess.argmax())
        return float(off.max()), float(excess[at]), start + at

    parts = map_chunks(part, a.size, _CHUNK)
    return max(p[0] for p in parts), *max((p[1:] for p in parts), key=lambda p: p[0])


def compare(
    actual: Sequence[Any], expected: Sequence[Any], terms: int = 1, bar: str = "float32"
) -> Verdict:
    """Compare host arrays by a tolerance; integers must match exactly.

    None among ``actual`` is a result that was not computed and is not compared.
    """
    if len(actual) != len(expected):
        return Verdict(np.inf, f"{len(actual)} outputs, not {len(expected)}")
    worst = 0.0
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if a is None:
            continue
        a, e = np.asarray(a), np.asarray(e)
        if a.shape != e.shape:
            return Verdict(np.inf, f"output {i} has shape {a.shape}, not {e.shape}")
        if not a.size:
            continue
        error, excess, at = _worst(a, e, bar if e.dtype.kind == "f" else "exact", terms)
        worst = max(worst, error)
        if excess > 0:
            where = tuple(int(k) for k in np.unravel_index(at, a.shape))
            found = f"{a[where]:.9g}, not {e[where]:.9g}"
            return Verdict(error, f"output {i} at {where} is {found}")
    return Verdict(worst, "")


class Reference:
    """A problem's arguments, drawn once, and what the NumPy definition makes of them in float64."""

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        self.problem = problem
        self.arguments = problem.make(seed)
        wide = widened(self.arguments)
        returned = PRIMITIVES[problem.primitive].definition(*wide)
        self.expected = [np.asarray(r) for r in results(returned, wide, problem.updated)]

    def compare(self, actual: Sequence[Any], bar: str = "") -> Verdict:
        """Compare results, host arrays in the order of the definition's, with the definition's.

        bar: by default that of float32 for the length of the problem's sums.
        """
        terms = self.problem.terms
        return compare(actual, self.expected, terms, bar or float32_bar(terms))


def same_bits(first: Sequence[Any], second: Sequence[Any]) -> bool:
    """Whether two results of one kernel on the same inputs, C-contiguous, agree to the bit."""

    def raw(a: Any) -> Any:
        return np.asarray(a).reshape(-1).view(np.uint8)

    return len(first) == len(second) and all(
        a.shape == b.shape and np.array_equal(raw(a), raw(b))
        for a, b in zip(first, second, strict=True)
    )
