"""``gpucnn kernels``: the x-ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpucnn.cli.bench_package import bench_module
from gpucnn.cli.options import json_option

if TYPE_CHECKING:
    from gpucnn.xray.gpus import GPU
    from gpucnn.xray.measure import Call, KernelKey, Problem
    from gpucnn.xray.report import Row, Tools

_DEFAULT_ARCH = "sm_90"
_MANY = 20  # kernels: where they are not in the cache, they take minutes


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _say(text: str) -> None:
    """Progress: one line that replaces itself in a terminal, nothing elsewhere."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{text[:100]}", nl=False, err=True)


def _said() -> None:
    if sys.stderr.isatty():
        click.echo("\r\x1b[K", nl=False, err=True)


@click.command(short_help="X-ray the kernels: registers, occupancy, memory requests, roofline.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--arch",
    "archs",
    multiple=True,
    help="Compile for sm_75, sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120; may be repeated. "
    f"Default: {_DEFAULT_ARCH}; with a NAME also all of them side by side.",
)
@click.option("--gpu", help="Predict times on T4, A10, A100, L4, RTX 4090, H100, H200 or B200.")
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="The arithmetic of whole calls: fp32, or on tensor cores dense tf32, bf16 or fp16.",
)
@click.option("--problem", "case", help="Count this case of bench/problems: 16to32-b16, say.")
@click.option("--annotate", is_flag=True, help="Print the source with the counters in the margin.")
@click.option(
    "--write-table",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the table that the tests compare with, of every kernel.",
)
@click.option(
    "--compare",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Say what changed since this table was written; exit with 1 if something got worse.",
)
@json_option
def kernels(
    names: tuple[str, ...],
    archs: tuple[str, ...],
    gpu: str | None,
    precision: str,
    case: str | None,
    annotate: bool,
    write_table: Path | None,
    compare: Path | None,
    as_json: bool,
) -> int:
    """Say all that can be known of the CUDA kernels without a GPU.

    NAME is a kernel, a file of kernels/ or a family; without one, every kernel gets a line. NVRTC
    says registers, spills and shared memory, from which occupancy follows; the disassembler the
    instructions; the emulator runs each kernel on a case and counts bytes, 32-byte sectors per
    request, bank conflicts, barriers and FLOPs. What is not installed is left out, with a note.

    \b
    gpucnn kernels
    gpucnn kernels conv2d --problem 16to32-b16 --gpu H200
    gpucnn kernels conv2d_tiled --annotate
    """
    from gpucnn.xray import report, select
    from gpucnn.xray.compiled import ARCHITECTURES
    from gpucnn.xray.gpus import find_gpu

    for arch in archs:
        if arch not in ARCHITECTURES:
            raise click.BadParameter(
                f"{arch!r} is not one of {', '.join(ARCHITECTURES)}.", param_hint="'--arch'"
            )
    if annotate and not names:
        raise click.UsageError("--annotate needs a NAME: a kernel or a file.")
    if annotate and as_json:
        raise click.UsageError("--annotate cannot stand beside --json.")
    if write_table and compare:
        raise click.UsageError("--write-table cannot stand beside --compare.")
    if (write_table or compare) and (names or case or archs):
        raise click.UsageError("--write-table and --compare are about every kernel: leave out "
                               "NAME, --problem and --arch.")  # fmt: skip
    target = find_gpu(gpu) if gpu else None
    if target is not None:
        target.rate(precision)
    elif precision != "fp32":
        raise click.UsageError("--precision belongs to --gpu.")
    keys = list(dict.fromkeys(k for name in names for k in select.find_kernels(name)))
    tools = report.Tools.here()
    if not tools.compiler and not tools.emulator:
        click.echo(f"Error: {'; '.join(tools.missing())}", err=True)
        return 1
    problems = bench_module("problems").all_problems()
    if write_table or compare:
        return _table(write_table, compare, tools, problems)
    if case:
        problems, keys = _of_case(case, problems, keys)
    else:
        problems = [p for p in problems if p.group != "layer"]
        keys = keys or select.all_kernels()
    if annotate and not tools.emulator:
        raise click.ClickException("; ".join(tools.missing()))
    for note in tools.missing():
        _note(note)
    chosen = report.choose(keys, problems)
    rows = _examine(keys, chosen, archs or (_DEFAULT_ARCH,), tools)
    if annotate:
        _annotate(rows)
    elif as_json:
        _json(rows, tools, target)
    else:
        _print(rows, bool(names or case), tools, target)
        if names and not archs and tools.compiler:
            _print_architectures(keys, chosen, tools)
        if target is not None and (names or case):
            _print_roofline(rows, case, target, precision)
    return 0


def _of_case(
    case: str, problems: Sequence[Problem], keys: list[KernelKey]
) -> tuple[list[Problem], list[KernelKey]]:
    """The problems of a case, and those kernels that they launch."""
    from gpucnn.xray.measure import plan
    from gpucnn.xray.select import find_problems

    found = find_problems(case, problems, keys)
    _say(f"which kernels does {case} launch?")
    launched = list(plan(found))
    _said()
    both = [key for key in launched if not keys or key in keys]
    if not both:
        names = ", ".join(dict.fromkeys(name for _, name in launched))
        raise ValueError(f"{case!r} launches {names} and none of the kernels named")
    return found, both


def _examine(
    keys: Sequence[KernelKey], chosen: Mapping[KernelKey, Call], archs: Sequence[str], tools: Tools
) -> list[Row]:
    from gpucnn.emulator import CompileError, KernelFault, Unsupported
    from gpucnn.xray.report import examine

    if len(keys) > _MANY:
        click.echo(f"x-raying {len(keys)} kernels ...", err=True)
    try:
        return examine(keys, chosen, archs, tools, _say)
    except (RuntimeError, CompileError, KernelFault, Unsupported) as error:
        raise click.ClickException(str(error)) from None
    finally:
        _said()


def _json(rows: Sequence[Row], tools: Tools, gpu: GPU | None) -> None:
    from dataclasses import asdict

    from gpucnn.xray.record import compiler_version
    from gpucnn.xray.report import as_dict

    result: dict[str, Any] = {
        "nvrtc": compiler_version() or None,
        "tools": asdict(tools),
        "gpu": asdict(gpu) if gpu else None,
        "kernels": [as_dict(row, gpu) for row in rows],
    }
    click.echo(json.dumps(result))


def _print(rows: Sequence[Row], details: bool, tools: Tools, gpu: GPU | None) -> None:
    from gpucnn.xray import tables

    out = tables.console()
    for table in tables.overviews(rows, tools, gpu, out.width):
        out.print(table)
    if tools.emulator:
        out.print(tables.MEANING, style="dim")
    if details and tools.disassembler:
        out.print(tables.instructions(rows))
    if details and tools.emulator:
        out.print(tables.sites(rows))


def _print_architectures(
    keys: Sequence[KernelKey], chosen: Mapping[KernelKey, Call], tools: Tools
) -> None:
    from dataclasses import replace

    from gpucnn.xray import tables
    from gpucnn.xray.compiled import ARCHITECTURES

    only = replace(tools, emulator=False, disassembler=False)
    rows, out = _examine(keys, chosen, ARCHITECTURES, only), tables.console()
    for table in tables.architectures(rows, out.width):
        out.print(table)


def _print_roofline(rows: Sequence[Row], case: str | None, gpu: GPU, precision: str) -> None:
    """Whole calls of the primitives that launch these kernels: the case, else the larger sizes."""
    from gpucnn.xray import tables

    primitives = {row.call.problem.primitive for row in rows if row.call}
    problems = [
        p
        for p in bench_module("problems").all_problems()
        if p.primitive in primitives
        and (case in (p.case, str(p)) if case else p.group in ("typical", "layer"))
    ]
    tables.console().print(tables.roofline(problems, gpu, precision))


def _annotate(rows: Sequence[Row]) -> None:
    from gpucnn.xray.annotate import annotated

    shown: dict[str, Row] = {}
    for row in rows:  # one specialisation of each kernel: the first that a problem reaches
        if row.counters is not None and row.kernel not in shown:
            shown[row.kernel] = row
    for row in shown.values():
        click.echo(f"{row.kernel} [{row.macros}] on {row.call}")
    if not shown:
        raise click.ClickException("no problem reaches these kernels, so nothing was counted")
    click.echo("")
    for line in annotated([row.counters for row in shown.values() if row.counters]):
        click.echo(line)


def _table(
    write: Path | None, against: Path | None, tools: Tools, problems: Sequence[Problem]
) -> int:
    from gpucnn.xray import record, report, select

    for note in tools.missing():
        _note(note)
    keys = select.all_kernels()
    if against is not None:
        before = record.read_records(against)
        same = record.same_calls(before, keys, problems)
        now = record.records(_examine(keys, same, record.ARCHITECTURES, tools))
        changes = record.compare(before, now)
        for change in changes:
            click.echo(f"{'worse ' if change.worse else 'better'}  {change}")
        new, gone = record.unlisted(keys, before)
        click.echo(f"{len(changes)} numbers changed, {len(new)} kernels are new, {len(gone)} gone",
                   err=True)  # fmt: skip
        return 1 if any(change.worse for change in changes) else 0
    if not (tools.compiler and tools.emulator):
        raise click.ClickException("the table needs both NVRTC and the emulator")
    chosen = report.choose(keys, [p for p in problems if p.group != "layer"])
    lines = record.records(_examine(keys, chosen, record.ARCHITECTURES, tools))
    assert write is not None
    record.write_records(write, lines)
    click.echo(f"{len(lines)} kernels written to {write}", err=True)
    return 0
