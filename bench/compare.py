"""Two runs beside each other: what got faster or slower, and whether the noise explains it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .rivals import COLUMNS as RIVALS
from .rows import KEY, OK, Row
from .tables import series, short

FASTER, SLOWER, SAME = "faster", "slower", "within the noise"
_LEAST = 0.02  # of the old median: less is no change, however quiet the machine


@dataclass(frozen=True)
class Change:
    """One row of both runs. ratio: old ÷ new median, above 1 is faster."""

    row: Row
    old: Row
    verdict: str

    @property
    def ratio(self) -> float:
        return float(self.old["median_us"] / self.row["median_us"])

    @property
    def noise(self) -> float:
        """Half the distance of p20 and p80 by the median, the larger of the two runs."""
        return max((r["p80_us"] - r["p20_us"]) / 2 / r["median_us"] for r in (self.row, self.old))

    def __str__(self) -> str:
        row, old = self.row, self.old
        times = f"{short(old['median_us'])} → {short(row['median_us'])} µs"
        name = f"{row['primitive']} {row['case']} {series(row)}"
        return f"{name}: {times}, ×{self.ratio:.2f}, noise ±{self.noise:.1%}: {self.verdict}"


@dataclass(frozen=True)
class Comparison:
    """changes: rows of both runs, the largest change first; added, removed: rows of one of them."""

    changes: list[Change]
    added: list[Row]
    removed: list[Row]
    machines: tuple[str, str]


def key(row: Row) -> tuple[str, ...]:
    """What a row is found by in another run."""
    return tuple(str(row[name]) for name in KEY)


def verdict(row: Row, old: Row) -> str:
    """Faster or slower where the p20–p80 ranges do not touch and the medians differ by 2 %."""
    new_us, old_us = row["median_us"], old["median_us"]
    if abs(new_us - old_us) < _LEAST * old_us:
        return SAME
    if row["p80_us"] < old["p20_us"]:
        return FASTER
    return SLOWER if row["p20_us"] > old["p80_us"] else SAME


def _machine(rows: Sequence[Row]) -> str:
    return str(rows[0]["gpu"] or rows[0]["processor"]) if rows else ""


def compare(new: Sequence[Row], old: Sequence[Row]) -> Comparison:
    """The timed rows of two runs, rivals left out."""

    def timed(rows: Iterable[Row]) -> dict[tuple[str, ...], Row]:
        return {key(r): r for r in rows if r["status"] == OK and r["variant"] not in RIVALS}

    after, before = timed(new), timed(old)
    changes = [
        Change(row, before[k], verdict(row, before[k])) for k, row in after.items() if k in before
    ]
    changes.sort(key=lambda c: (c.verdict == SAME, -max(c.ratio, 1 / c.ratio)))
    return Comparison(
        changes,
        [row for k, row in after.items() if k not in before],
        [row for k, row in before.items() if k not in after],
        (_machine(old), _machine(new)),
    )


def lines(comparison: Comparison) -> list[str]:
    """The comparison in words."""
    counts = {v: sum(c.verdict == v for c in comparison.changes) for v in (FASTER, SLOWER, SAME)}
    found = [
        f"{counts[FASTER]} faster, {counts[SLOWER]} slower, {counts[SAME]} within the noise; "
        f"{len(comparison.added)} new, {len(comparison.removed)} not measured now"
    ]
    before, now = comparison.machines
    if before != now and before and now:
        found.append(f"two machines: {before} then, {now} now")
    return found + [str(c) for c in comparison.changes if c.verdict != SAME]
