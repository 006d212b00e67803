"""The committed table of what each kernel takes, and what got worse since it was written.

Registers and spills are compared only where the compiler has the version that the table was written
with; counters of the emulator do not depend on the compiler and are always compared.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpucnn.kernel import nvrtc_version
from gpucnn.xray.measure import Call, KernelKey, Problem, planned
from gpucnn.xray.report import Row

ARCHITECTURES = ("sm_80", "sm_90")
_COMPILED = ("registers", "spilled_bytes", "static_shared")
_COUNTED = ("sectors_per_request", "conflicts_per_request", "worst_conflict", "barriers",
            "sector_bytes")  # fmt: skip
_COMPILED_COLUMNS = tuple(f"{name}_{arch}" for arch in ARCHITECTURES for name in _COMPILED)
COLUMNS = ("file", "kernel", "macros", "problem", "variant", "precision", "threads",
           "dynamic_shared", *_COMPILED_COLUMNS, *_COUNTED, "ideal_sectors_per_request",
           "nvrtc")  # fmt: skip
_LESS_IS_BETTER = ("dynamic_shared", *_COMPILED_COLUMNS, *_COUNTED)

Record = dict[str, str]


def compiler_version() -> str:
    """NVRTC's version as the table holds it, empty without NVRTC."""
    version = nvrtc_version()
    return "" if version is None else f"{version[0]}.{version[1]}"


def records(rows: Iterable[Row]) -> list[Record]:
    """A line of the table for each kernel of rows on ``ARCHITECTURES``."""
    found: dict[tuple[str, str, str], Record] = {}
    for row in rows:
        line = found.setdefault(
            (row.spec.family, row.kernel, row.macros),
            {
                **dict.fromkeys(COLUMNS, ""),
                "file": row.spec.family,
                "kernel": row.kernel,
                "macros": row.macros,
                "problem": str(row.call.problem) if row.call else "",
                "variant": row.call.variant if row.call else "",
                "precision": row.call.precision if row.call else "",
                "threads": _text(row.threads),
                "dynamic_shared": _text(row.dynamic_shared),
                "nvrtc": compiler_version() if row.usage else "",
            },
        )
        if row.usage:
            line[f"registers_{row.arch}"] = _text(row.usage.registers)
            line[f"spilled_bytes_{row.arch}"] = _text(row.usage.spills + row.usage.stack)
            line[f"static_shared_{row.arch}"] = _text(row.usage.static_shared)
        if row.counters:
            c = row.counters
            line["sectors_per_request"] = _text(c.sectors_per_request)
            line["ideal_sectors_per_request"] = _text(c.ideal_sectors_per_request)
            line["conflicts_per_request"] = _text(row.conflicts_per_request or 0.0)
            line["worst_conflict"] = _text(c.worst_conflict)
            line["barriers"] = _text(c.barriers)
            line["sector_bytes"] = _text(row.traffic)
    return list(found.values())


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def same_calls(
    lines: Iterable[Record], keys: Iterable[KernelKey], problems: Iterable[Problem]
) -> dict[KernelKey, Call]:
    """The calls that the lines of these kernels were counted on, as far as they still exist."""
    by_name = {str(problem): problem for problem in problems}
    listed = {_name(line): line for line in lines}
    planned_once = functools.cache(lambda name: planned(by_name[name]))
    found: dict[KernelKey, Call] = {}
    for key in keys:
        line = listed.get(kernel_name(key))
        if line is None or line["problem"] not in by_name:
            continue
        for call in planned_once(line["problem"]):
            same = call.variant == line["variant"] and call.precision == line["precision"]
            if same and call.of(key):
                found[key] = call
    return found


def write_records(path: Path, lines: Sequence[Record]) -> None:
    """Write the table as CSV, by file, kernel and macros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(lines, key=lambda line: [line[c] for c in COLUMNS[:3]]))


def read_records(path: Path) -> list[Record]:
    """Read a table. Raises ValueError if it has other columns."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        lines = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} is not a table of kernels: it must have the columns {COLUMNS}")
    return lines


@dataclass(frozen=True)
class Change:
    """One number of one kernel, before and now."""

    kernel: str
    column: str
    before: str
    now: str

    @property
    def worse(self) -> bool:
        if not self.before or not self.now:
            return False
        return float(self.now) > float(self.before)

    def __str__(self) -> str:
        return f"{self.kernel}: {self.column} {self.before or 'unknown'} -> {self.now or 'unknown'}"


def compare(before: Iterable[Record], now: Iterable[Record]) -> list[Change]:
    """What differs between the lines of one kernel and one problem; an unknown number does not."""
    old = {_name(line): line for line in before}
    changes = []
    for line in now:
        other = old.get(_name(line))
        if other is None or other["problem"] != line["problem"]:
            continue
        for column in _LESS_IS_BETTER:
            of_compiler = column in _COMPILED_COLUMNS
            if of_compiler and line["nvrtc"] != other["nvrtc"]:
                continue
            a, b = other[column], line[column]
            if a and b and a != b:
                changes.append(Change(_name(line), column, a, b))
    return changes


def kernel_name(key: KernelKey) -> str:
    """What the table's reader calls a kernel: ``linear_forward [TILE_GN=32]``."""
    spec, kernel = key
    macros = " ".join(f"{name}={value}" for name, value in spec.macros)
    return f"{kernel} [{macros}]" if macros else kernel


def _name(line: Record) -> str:
    return f"{line['kernel']} [{line['macros']}]" if line["macros"] else line["kernel"]


def unlisted(keys: Iterable[KernelKey], lines: Iterable[Record]) -> tuple[list[str], list[str]]:
    """(kernels that the table lacks, lines of kernels that there are no more)."""
    shipped = {kernel_name(key) for key in keys}
    listed = {_name(line) for line in lines}
    return sorted(shipped - listed), sorted(listed - shipped)
