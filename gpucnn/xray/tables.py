"""The x-ray as tables for a terminal."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gpucnn.xray.annotate import access_code
from gpucnn.xray.counters import Site
from gpucnn.xray.gpus import GPU
from gpucnn.xray.measure import Problem
from gpucnn.xray.report import Row, Tools
from gpucnn.xray.roofline import predict

_WIDE = 400  # columns of a pipe or a file


def console() -> Console:
    """Stdout as wide as the terminal, and wide enough for every table where it is none."""
    return _console(None if sys.stdout.isatty() else _WIDE)


def _console(width: int | None) -> Console:
    return Console(width=width, markup=False, emoji=False, highlight=False)  # text as it is


def number(value: float | None, digits: int = 2) -> str:
    """A number as short as it reads well; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}f}"


Thing = TypeVar("Thing")


def _of(thing: Thing | None, get: Callable[[Thing], float | None]) -> float | None:
    """What is known of a thing; None where there is no thing."""
    return None if thing is None else get(thing)


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for heading in left:
        least = 24 if heading == "macros" else None
        table.add_column(heading, overflow="fold", no_wrap=heading == "kernel", min_width=least)
    for heading in right:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


MEANING = """\
least: the distinct 32-byte sectors touched. sectors / least: how often one is asked for.
sectors/request, ideal: what a warp's request touches, and the fewest that could hold its words.
conflicts: wavefronts of shared memory beyond the fewest possible. FLOP/byte: over the least bytes.
floor: each sector moved once. uncached: no request served by a cache."""

Column = tuple[str, Callable[[Row], "str | Text"]]


def _flag(text: str, bad: bool) -> Text:
    return Text(text, "red" if bad else "")


def _spills(row: Row) -> Text:
    spills = row.usage.spills + row.usage.stack if row.usage else 0
    return _flag(number(spills) if row.usage else "", spills > 0)


def _occupied(row: Row) -> Text:
    occupied = row.occupancy
    return _flag(percent(_of(occupied, lambda o: o.share)), bool(occupied and occupied.share < 0.5))


def _sectors(row: Row) -> Text:
    c = row.counters
    if c is None or not c.global_requests:
        return Text("")
    found, ideal = c.sectors_per_request, c.ideal_sectors_per_request
    return _flag(f"{found:.2f} / {ideal:.2f}", found > 1.25 * ideal)


def _conflicts(row: Row) -> Text:
    conflicts = row.conflicts_per_request
    return _flag(number(conflicts), bool(conflicts and conflicts > 0.1))


def _shared(row: Row) -> str:
    """Static and dynamic bytes."""
    if row.usage is None or not row.dynamic_shared:
        return number(row.shared)
    return f"{row.usage.static_shared:,}+{row.dynamic_shared:,}"


_COMPILED: list[Column] = [
    ("regis-\nters", lambda row: number(_of(row.usage, lambda u: u.registers))),
    ("spilled\nbytes", _spills),
    ("shared\nbytes", _shared),
    ("occu-\npancy", _occupied),
]
_MIX: list[Column] = [("math\n/load", lambda row: number(_of(row.mix, lambda m: m.math_per_load)))]
_BYTES: list[Column] = [
    ("read\nKB", lambda row: number(_of(row.counters, lambda c: c.read_bytes / 1e3), 1)),
    ("written\nKB", lambda row: number(_of(row.counters, lambda c: c.written_bytes / 1e3), 1)),
    ("least\nKB", lambda row: number(_of(row.footprint, lambda b: b / 1e3), 1)),
    ("sectors\n/ least", lambda row: number(row.traffic_ratio)),
]
_REQUESTS: list[Column] = [
    ("sectors/\nrequest, ideal", _sectors),
    ("coal-\nesced", lambda row: percent(_of(row.counters, lambda c: c.coalesced_share))),
    ("conflicts\n/request", _conflicts),
    ("bar-\nriers", lambda row: number(_of(row.counters, lambda c: c.barriers))),
]
_MATH: list[Column] = [
    ("MFLOP", lambda row: number(_of(row.counters, lambda c: c.flops / 1e6))),
    ("FLOP\n/byte", lambda row: number(row.intensity)),
]
_ON: list[Column] = [("counted on", lambda row: str(row.call or "no problem reaches it"))]


def _predicted(gpu: GPU) -> list[Column]:
    def us(row: Row, which: int) -> str:
        both = row.predictions(gpu)
        return number(_of(both, lambda b: b[which].us))

    return [
        (f"{gpu.name}\nfloor µs", lambda row: us(row, 0)),
        ("uncached\nµs", lambda row: us(row, 1)),
    ]


def overviews(rows: Sequence[Row], tools: Tools, gpu: GPU | None, width: int) -> list[Table]:
    """What the compiler, the disassembler and the emulator say.

    In one table, a line for each row, if it can be shown in ``width`` columns; else in several, and
    the macros stand below their kernel.
    """
    groups = []
    if tools.compiler:
        groups.append(_COMPILED)
    if tools.disassembler:
        groups.append(_MIX)
    if tools.emulator:
        groups += [_BYTES, _REQUESTS, _MATH + (_predicted(gpu) if gpu else []), _ON]
    every = _overview(rows, [column for group in groups for column in group])
    if _least_width(every) <= width:
        return [every]
    shown: list[list[Column]] = []
    for group in groups:
        together = [*shown[-1], *group] if shown else group
        if shown and _least_width(_overview(rows, together, narrow=True)) <= width:
            shown[-1] = together
        else:
            shown.append(group)
    return [_overview(rows, columns, narrow=True) for columns in shown]


def _named(row: Row) -> str:
    """The kernel, and its macros below it."""
    below = textwrap.indent(textwrap.fill(row.macros, 28), "  ")
    return f"{row.kernel}\n{below}".rstrip()


def _least_width(table: Table) -> int:
    console = _console(10_000)
    return Measurement.get(console, console.options, table).minimum


def _overview(rows: Sequence[Row], columns: Sequence[Column], narrow: bool = False) -> Table:
    archs = dict.fromkeys(row.arch for row in rows)
    titles = [f"compiled for {', '.join(archs)}"] if columns[0] in _COMPILED + _MIX else []
    titles += ["counted by the emulator"] if columns[-1] not in _COMPILED + _MIX else []
    several = ["arch"] if len(archs) > 1 else []
    left = ["kernel", *([] if narrow else ["macros"]), *several]
    numbers = [name for name, _ in columns if name != _ON[0][0]]
    table = _table(", ".join(titles), left, numbers)
    if len(numbers) < len(columns):
        table.add_column(_ON[0][0], overflow="fold")
    for row in rows:
        named = [_named(row)] if narrow else [row.kernel, row.macros]
        named += [row.arch] if several else []
        table.add_row(*named, *(cell(row) for _, cell in columns))
    return table


def architectures(rows: Sequence[Row], width: int) -> list[Table]:
    """Registers and occupancy of each kernel, architectures side by side if there is room."""
    archs = list(dict.fromkeys(row.arch for row in rows))
    at_once = max(1, (width - 58) // 12)
    by_kernel: dict[tuple[Any, str], list[Row]] = {}
    for row in rows:
        by_kernel.setdefault((row.spec, row.kernel), []).append(row)
    tables = []
    for start in range(0, len(archs), at_once):
        some = archs[start : start + at_once]
        title = "registers, occupancy and what limits it"
        table = _table(title, ["kernel"], ["threads", "shared", *some])
        for found in by_kernel.values():
            cells = [_resident(row) for row in found if row.arch in some]
            table.add_row(_named(found[0]), number(found[0].threads), _shared(found[0]), *cells)
        tables.append(table)
    return tables


def _resident(row: Row) -> str:
    occupied = row.occupancy
    limits = "\n".join(occupied.limits) if occupied and occupied.share < 1 else ""
    registers = row.usage.registers if row.usage else ""
    return f"{registers}  {percent(_of(occupied, lambda o: o.share))}\n{limits}".rstrip()


def instructions(rows: Sequence[Row]) -> Table:
    """The instructions of each kernel's main loop, or of all of it where it has no loop."""
    table = _table("instructions, most frequent first", ["kernel", "where", "count"], [])
    for row in rows:
        if row.mix:
            mix = row.mix.loop or row.mix.all
            counts = ", ".join(f"{count} {name}" for name, count in mix.items())
            table.add_row(_named(row), "main loop" if row.mix.loop else "all", counts)
    return table


def sites(rows: Sequence[Row]) -> Table:
    """The source lines that access memory: requests, sectors and bank conflicts of each."""
    right = ("requests", "bytes\n/lane", "sectors,\nideal", "conflicts,\nworst")
    title = "requests by source line: loads and stores, global (g) and shared (s)"
    table = _table(title, ["line", ""], right)
    for row in rows:
        if row.counters is None:
            continue
        table.add_row(Text(_named(row), "bold"))
        for site in row.counters.sites:
            table.add_row(
                f"{PurePosixPath(site.file).name}:{site.line}",
                access_code(site),
                number(site.requests),
                f"{site.bytes_per_lane:g}",
                *_site_cells(site),
            )
        table.add_section()
    return table


def _site_cells(site: Site) -> tuple[Text, Text]:
    if site.space == "global":
        found, ideal = site.sectors_per_request, site.ideal_sectors_per_request
        return _flag(f"{found:.2f}, {ideal:.2f}", found > 1.25 * ideal), Text("")
    conflicts = site.conflicts / site.requests
    worst = f", {site.worst_conflict}-way" if site.worst_conflict > 1 else ""
    return Text(""), _flag(f"{conflicts:.2f}{worst}", conflicts > 0.1)


def roofline(problems: Sequence[Problem], gpu: GPU, precision: str) -> Table:
    """The least time of whole calls on a GPU: every array moved once, every FLOP computed once."""
    right = ("MB", "GFLOP", "FLOP\n/byte", "memory µs", "math µs", "predicted µs", "bound by")
    table = _table(
        f"predicted for {gpu.name} in {precision}: {gpu.bandwidth:g} GB/s, "
        f"{gpu.rate(precision) / 1e12:g} TFLOP/s, one launch",
        ["primitive", "case"],
        right,
    )
    for problem in problems:
        expected = predict(gpu, problem.bytes, problem.flops, precision=precision)
        table.add_row(
            problem.primitive,
            problem.case,
            number(problem.bytes / 1e6),
            number(problem.flops / 1e9, 3),
            number(problem.flops / problem.bytes),
            number(expected.memory_us),
            number(expected.math_us),
            number(expected.us),
            expected.bound,
        )
    return table
