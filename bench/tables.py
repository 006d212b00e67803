"""Rows as CSV, as Markdown and on the terminal."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .machine import Machine
from .rivals import COLUMNS as RIVALS
from .rows import COLUMNS, OK, Row
from .run import Results

GAP = "–"  # a rival that did not take part, a column that makes no sense here

_NUMBERS = {
    *("median_us", "p20_us", "p80_us", "gb_s", "gflop_s", "floor_us", "floor_share", "max_error"),
    *("registers", "shared_bytes", "occupancy", "host_us", "samples", "bytes", "flops", "threads"),
    *(f"ratio_{name}" for name in RIVALS),
}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One tidy table: a row per implementation of a problem, what is not known left empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Row]:
    """The rows of :func:`write_csv`; ValueError for a file that is no such table."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        known = reader.fieldnames or ()
        ratios = {f"ratio_{name}" for name in RIVALS}  # rivals came one after the other
        missing = [name for name in COLUMNS if name not in known and name not in ratios]
        if missing:
            raise ValueError(f"{path} is not a table of gpucnn bench: no {', '.join(missing[:3])}")
        rows = [dict(row) for row in reader]

    def number(name: str, text: str) -> Any:
        if name not in _NUMBERS or text == "":
            return text
        try:
            value = float(text)
        except ValueError:
            raise ValueError(f"{path}: {name} must be a number, got {text!r}") from None
        return int(value) if value.is_integer() and "." not in text and "e" not in text else value

    return [{name: number(name, row.get(name) or "") for name in COLUMNS} for row in rows]


def machine_title(row: Row | Machine) -> str:
    """What the times were measured on, in a few words."""
    get = row.get if isinstance(row, dict) else lambda name: getattr(row, name)
    if get("device") == "cuda":
        return f"{get('gpu')}, driver {get('driver')}, CuPy {get('cupy')}"
    return f"{get('processor')}, {get('threads')} threads, no GPU"


def title(machine: Machine) -> str:
    """The heading of a run; on the CPU it says so."""
    subject = "CUDA kernels" if machine.device == "cuda" else "NumPy definitions on the CPU"
    return f"gpucnn bench: {subject} ({machine_title(machine)}), {machine.date}"


def roofs(machine: Machine) -> str:
    """The measured roofs in one sentence."""
    peaks = ", ".join(f"{v:,.0f} GFLOP/s {name}" for name, v in machine.peak_gflop_s.items())
    text = f"measured in this run: copy {machine.copy_gb_s:,.1f} GB/s, {peaks}"
    over = machine.overheads
    if over:
        text += (
            f"; an empty kernel {over['node_us']:.2f} µs in a graph, "
            f"{over['launch_us']:.2f} µs launched from Python"
        )
    return text


class Column(NamedTuple):
    """A column as people read it."""

    name: str
    header: str
    text: Callable[[Row], str]


def series(row: Row) -> str:
    """The variant of a row, with its precision where that is not float32."""
    precision = row["precision"]
    return str(row["variant"]) if precision == "fp32" else f"{row['variant']} {precision}"


def short(value: float) -> str:
    """Three digits or all those before the point, thousands separated."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _number(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: GAP if row[name] == "" else format(row[name], form)


def _rate(name: str) -> Callable[[Row], str]:
    return lambda row: GAP if row[name] == "" else short(row[name])


def _time(row: Row) -> str:
    if row["status"] != OK:
        return str(row["status"])
    return short(row["median_us"])


def _spread(row: Row) -> str:
    if row["status"] != OK:
        return GAP
    return f"{short(row['p20_us'])}–{short(row['p80_us'])}"


def _floor(row: Row) -> str:
    return GAP if row["floor_us"] == "" else short(row["floor_us"])


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: GAP if row[name] == "" else f"{row[name]:.0%}"


VIEW = (
    Column("primitive", "primitive", lambda row: row["primitive"]),
    Column("case", "case", lambda row: row["case"]),
    Column("variant", "variant", series),
    Column("kernel", "kernel", lambda row: row["kernel"]),
    Column("median_us", "µs", _time),
    Column("p20_us", "p20–p80", _spread),
    Column("gb_s", "GB/s", _rate("gb_s")),
    Column("gflop_s", "GFLOP/s", _rate("gflop_s")),
    Column("floor_us", "floor µs", _floor),
    Column("floor_share", "of floor", _share("floor_share")),
    *(Column(f"ratio_{name}", f"× {name}", _number(f"ratio_{name}", ".2f")) for name in RIVALS),
    Column("max_error", "max error", _number("max_error", ".1e")),
    Column("registers", "registers", _number("registers", "d")),
    Column("shared_bytes", "shared B", _number("shared_bytes", "d")),
    Column("occupancy", "occupancy", _share("occupancy")),
)


def columns_for(rows: Sequence[Row], against: Iterable[str] = RIVALS) -> list[Column]:
    """The columns that make sense for these rows; those of the rivals asked for always stay."""
    kept = {"median_us", "p20_us", *(f"ratio_{name}" for name in against)}
    return [c for c in VIEW if c.name in kept or any(row[c.name] != "" for row in rows)]


def families(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by family, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append(row)
    return found


def gap_lines(results: Results) -> list[str]:
    """One line per rival and reason for its absence, and what the run did not come to."""
    lines = [
        f"{name}: {reason}" + (f" ({count} times)" if count > 1 else "")
        for (name, reason), count in sorted(results.gaps.items())
    ]
    if results.stopped:
        lines.append(f"the run is not complete: {results.stopped}")
    if results.unmeasured:
        lines.append(f"not measured: {len(results.unmeasured)} problems")
    return lines


def notes(rows: Iterable[Row]) -> list[str]:
    """One line per row that is no time."""
    return [
        f"{row['primitive']} {row['case']} {series(row)}: {row['status']}: {row['note']}"
        for row in rows
        if row["status"] != OK
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def markdown_table(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """A table of the rows."""
    lines = [
        "| " + " | ".join(c.header for c in columns) + " |",
        "|" + "|".join("---" if i < 3 else "---:" for i in range(len(columns))) + "|",
    ]
    lines += ["| " + " | ".join(_cell(c.text(row)) for c in columns) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def markdown(results: Results, against: Iterable[str] = RIVALS) -> str:
    """The whole run: a heading, the roofs, a table per family, what is missing and why."""
    parts = [f"# {title(results.machine)}\n", f"{roofs(results.machine)}.\n"]
    if results.machine.remark:
        parts.append(f"Not to be trusted: {results.machine.remark}.\n")
    for family, rows in families(results.rows).items():
        table = markdown_table(rows, columns_for(rows, against))
        parts += [f"## {family}\n", table]
    problems = notes(results.rows)
    if problems:
        parts += ["## Not timed\n", "".join(f"- {line}\n" for line in problems)]
    gaps = gap_lines(results)
    if gaps:
        parts += ["## Gaps\n", "".join(f"- {line}\n" for line in gaps)]
    return "\n".join(parts)


# What a narrow terminal does without, the first one first.
_LESS_TELLING = (
    *("shared_bytes", "registers", "occupancy", "gb_s", "kernel", "floor_us", "gflop_s", "p20_us"),
    "floor_share",
)


def _terminal_table(family: str, rows: Sequence[Row], columns: Sequence[Column]) -> Any:
    """A table whose headings take several lines and whose numbers and names are not broken."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=family, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        words = column.header.replace("torch_", "torch\n").replace("channels_", "channels\n")
        words = words.replace(" ", "\n", i >= 3)
        justify: Literal["left", "right"] = "left" if i < 3 else "right"
        table.add_column(words, justify=justify, no_wrap=i >= 2, overflow="fold")
    before: tuple[str, ...] = ()
    for row in rows:
        style = "" if row["status"] == OK else "red"
        cells = [column.text(row) for column in columns]
        cells[0] = cells[0].removeprefix(f"{family}_")
        name = tuple(cells[:2])
        table.add_row(
            *(Text(c, style) for c in (("", "") if name == before else name)),
            *(Text(c, style) for c in cells[2:]),
        )
        before = name
    return table


def show(results: Results, against: Iterable[str] = RIVALS) -> None:
    """Print a table per family; a narrow terminal gets the columns that say most."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(Text(title(results.machine), "bold"))
    console.print(Text(roofs(results.machine)))
    if results.machine.remark:
        console.print(Text(f"not to be trusted: {results.machine.remark}", "red"))
    left_out: dict[str, None] = {}
    unbounded = console.options.update(max_width=1000)
    for family, rows in families(results.rows).items():
        columns = columns_for(rows, against)
        table = _terminal_table(family, rows, columns)
        for name in _LESS_TELLING:
            if Measurement.get(console, unbounded, table).maximum <= console.width:
                break
            left_out |= {c.header: None for c in columns if c.name == name}
            columns = [c for c in columns if c.name != name]
            table = _terminal_table(family, rows, columns)
        console.print(table)
    if left_out:
        console.print(Text(f"not shown on {console.width} columns: {', '.join(left_out)}", "dim"))
    for line in notes(results.rows):
        console.print(Text(line, "red"))
