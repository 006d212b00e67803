"""What ``gpucnn check`` prints."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from gpucnn.kernel import Kernel
from gpucnn.primitive import PRIMITIVES
from gpucnn.xray.report import as_dict as row_as_dict
from gpucnn.xray.tables import console, number

from .rank import Ranking
from .run import THREADS, Outcome
from .source import source_parameters
from .target import Target


@dataclass(frozen=True)
class Report:
    """A run of a file's kernel; lines: (number, text) of the source lines behind a failure."""

    file: Path
    target: Target
    kernel: Kernel
    outcomes: Sequence[Outcome]
    lines: tuple[tuple[int, str], ...]
    ranking: Ranking | None

    @property
    def wrong(self) -> Outcome | None:
        """The first outcome that is not right."""
        return next((o for o in self.outcomes if o.trouble is not None), None)


def print_report(report: Report, as_json: bool) -> None:
    """All cases, and the first failing one or the ranking; or one JSON object."""
    if as_json:
        click.echo(json.dumps(_as_dict(report)))
        return
    _print_cases(report)
    if report.wrong is not None:
        _print_failure(report, report.wrong)
    right = sum(o.trouble is None for o in report.outcomes)
    click.echo(f"{right} of {len(report.outcomes)} cases are right.")
    if report.ranking is not None:
        click.echo()
        _print_ranking(report.ranking)


def _print_cases(report: Report) -> None:
    target = report.target
    own = "" if target.name == target.primitive else f" of {target.primitive}"
    place = f"{report.kernel.name} in the place of {target.kernel.name}{own}"
    table = Table(title=Text(f"{report.file.name}: {place}"), title_justify="left")
    for heading in ("case", "with", "device", "result"):
        table.add_column(heading, overflow="fold")
    table.add_column("largest error", justify="right")
    for o in report.outcomes:
        kind, error = "ok", f"{o.error:.1e}"
        if o.trouble is not None:
            kind, error = "wrong" if o.trouble.kind == "value" else o.trouble.kind, ""
        result = Text(kind, "red" if o.trouble else "green")
        table.add_row(Text(o.check.name), ", ".join(o.check.features), o.device, result, error)
    console().print(table)


def _print_failure(report: Report, first: Outcome) -> None:
    assert first.trouble is not None
    features = f" ({', '.join(first.check.features)})" if first.check.features else ""
    click.echo(f"First failing case: {first.check.name}{features}, {first.device}")
    click.echo(f"  {first.trouble.message}")
    what = "written at " if first.trouble.kind == "value" else ""
    for line, text in report.lines:
        click.echo(f"  {what}{report.file.name}:{line}: {text}")


_HEADINGS = (
    "registers", "global KB", "x minimum", "sectors/request", "ideal", "bank conflicts",
    "barriers", "FLOPs",
)  # fmt: skip


def _print_ranking(ranking: Ranking) -> None:
    timed = any(s.us is not None for s in ranking.standings)
    by = "median time" if timed else "the memory traffic that the source asks for"
    table = Table(title=Text(f"{ranking.problem}, by {by}"), title_justify="left")
    table.add_column("#", justify="right")
    table.add_column("kernel")
    for heading in (*(("us",) if timed else ()), *_HEADINGS):
        table.add_column(heading, justify="right")
    for place, s in enumerate(ranking.standings, start=1):
        c, traffic = s.row.counters, s.row.traffic
        if c is None or traffic is None:
            continue
        cells = (
            *((number(s.us),) if timed else ()),
            number(s.row.usage.registers if s.row.usage else None),
            f"{traffic / 1000:,.0f}",
            number(traffic / ranking.problem.bytes),
            number(c.sectors_per_request),
            number(c.ideal_sectors_per_request),
            number(c.bank_conflicts),
            number(c.barriers),
            number(c.flops),
        )
        name = s.row.kernel if s.name == "ours" else f"{s.row.kernel} ({s.name})"
        table.add_row(str(place), name, *cells)
    console().print(table)
    if ranking.note:
        click.echo(ranking.note)


def _as_dict(report: Report) -> dict[str, Any]:
    cases = [
        {
            "case": o.check.name,
            "features": list(o.check.features),
            "device": o.device,
            "ok": o.trouble is None,
            "error": o.error if o.trouble is None else None,
        }
        for o in report.outcomes
    ]
    ranking = None
    if report.ranking is not None:
        kernels = [
            {"name": s.name, "us": s.us, **row_as_dict(s.row)} for s in report.ranking.standings
        ]
        shown = report.ranking
        ranking = {"case": str(shown.problem), "kernels": kernels, "note": shown.note}
    return {
        "ok": report.wrong is None,
        "file": str(report.file),
        "kernel": report.kernel.name,
        "as": report.target.name,
        "cases": cases,
        "first_failure": _failure(report),
        "ranking": ranking,
    }


def _failure(report: Report) -> dict[str, Any] | None:
    wrong = report.wrong
    if wrong is None or wrong.trouble is None:
        return None
    trouble = wrong.trouble
    return {
        "case": wrong.check.name,
        "features": list(wrong.check.features),
        "device": wrong.device,
        "kind": trouble.kind,
        "message": trouble.message,
        "array": trouble.array,
        "index": list(trouble.index),
        "expected": _number(trouble.expected),
        "found": _number(trouble.found),
        "lines": [{"line": line, "text": text} for line, text in report.lines],
    }


def _number(value: float | None) -> float | str | None:
    """A number that JSON has: NaN and infinities as words."""
    return value if value is None or value - value == 0 else str(value)


def print_signatures(targets: Mapping[str, Target], as_json: bool) -> None:
    """The parameters that a kernel must have to stand in for each target."""
    rows = [
        {
            "as": name,
            "definition": inspect.getdoc(PRIMITIVES[target.primitive].definition) or "",
            "parameters": source_parameters(target.kernel),
            "names": list(target.names),
            "block": str(THREADS),
            "grid": "outputs/threads",
        }
        for name, target in targets.items()
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        click.echo(f"{row['as']}\n{_indented(str(row['definition']))}\n")
        click.echo('    extern "C" __global__ void my_kernel(')
        click.echo(f"{_indented(str(row['parameters']), 8)})\n")
        click.echo(f"    --block, --grid and --shared may use {', '.join(row['names'])}\n")
    click.echo(
        "outputs is the number of elements of the first array, threads that of the threads of a\n"
        f"block; a / b rounds up. Without options a kernel is launched with --block {THREADS}\n"
        "--grid outputs/threads, a thread for each output. A pointer is null where the definition\n"
        "says None."
    )


def _indented(text: str, spaces: int = 4) -> str:
    lines = inspect.cleandoc(text).splitlines()
    return "\n".join(f"{' ' * spaces}{line}".rstrip() for line in lines)
