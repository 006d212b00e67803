"""What ``gpucnn bench`` does once its arguments are read."""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from gpucnn.primitive import PRIMITIVES

from . import crosscheck, scaling
from .compare import compare, lines
from .harness.ours import variants_of
from .machine import TENSOR_CORES
from .output import as_json, write_all, write_rows
from .problems import Problem, all_problems, select
from .rivals import COLUMNS as RIVALS
from .rivals import LIBRARIES
from .rows import OK, Row
from .run import Bench, Options, Task, known_variants, open_timer
from .steps import FAMILY, STEPS, Step
from .tables import gap_lines, read_csv, series, short, show

QUICK_GROUPS, FULL_GROUPS = ("typical",), ("layer", "edge")
_SECONDS = {"quick": 0.05, "full": 0.05}
_COMPILE_SECONDS = {"quick": 30.0, "full": 60.0}
_EVERY = 16  # problems between two writes of the table


def _one_of(name: str, given: Iterable[str], known: Sequence[str]) -> tuple[str, ...]:
    """The given names; a usage error lists what exists for one that does not."""
    for value in given:
        if value not in known:
            near = difflib.get_close_matches(value, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            choices = ", ".join(known) or "nothing here"
            raise click.UsageError(
                f"{value!r} is not a {name}, which must be one of {choices}.{hint}"
            )
    return tuple(dict.fromkeys(given))


def _everything(quick: bool) -> list[Problem | Step]:
    return [*STEPS, *all_problems(), *scaling.problems(quick)]


def selected(families: Sequence[str], cases: Sequence[str], quick: bool) -> list[Problem | Step]:
    """The problems to measure: those of the named families, of the named cases or of a group.

    Raises click.UsageError for a name that does not exist.
    """
    everything = _everything(quick)
    known = list(dict.fromkeys(p.family for p in everything))
    families = _one_of("family", families, sorted(known))
    mine = [p for p in everything if not families or p.family in families]
    if cases:
        _one_of("case", cases, list(dict.fromkeys(p.case for p in mine)))
        found = {str(p): p for p in mine if p.case in cases}
        return list(found.values())
    groups = QUICK_GROUPS if quick else FULL_GROUPS
    steps = [s for s in STEPS if s.group == groups[0]]
    problems = [p for group in groups for p in select(all_problems(), families, [group])]
    curves = list(scaling.problems(quick))
    before_edge = [p for p in problems if p.group != "edge"]
    edge = [p for p in problems if p.group == "edge"]
    chosen: list[Problem | Step] = [*steps, *before_edge, *curves, *edge]
    return [p for p in chosen if not families or p.family in families]


def _choose_device(device: str | None) -> str:
    from gpucnn.device import default_device, require

    name = require(device) if device else default_device()
    if name == "emulated":
        raise click.UsageError(
            "the emulated device has no times worth measuring: --device cpu or cuda, or "
            "'gpucnn kernels' for what can be known without a GPU."
        )
    return name


def _against(text: str) -> tuple[str, ...]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    return () if names == ["none"] else _one_of("rival", names, (*LIBRARIES, "none"))


def precisions_of(device: str, given: Sequence[str]) -> tuple[str, ...]:
    """Those asked for, else float32 and the default of tensor cores where the device has them."""
    import gpucnn

    known: tuple[str, ...] = ("fp32",)
    if device == "cuda":
        import cupy

        tensor_cores = int(cupy.cuda.Device().compute_capability) >= TENSOR_CORES
        known = gpucnn.precision.modes if tensor_cores else known
    usual = tuple(name for name in ("fp32", "tf32") if name in known)
    return _one_of(f"precision of {device}", given, known) or usual


def tasks(problems: Sequence[Problem | Step], precisions: Sequence[str]) -> list[Task]:
    """Every problem in float32, then in other precisions what has kernels for them, edges last."""

    def wanted(problem: Problem | Step, precision: str) -> bool:
        return precision == "fp32" or isinstance(problem, Step) or _on_tensor_cores(problem)

    pairs = [(p, precision) for precision in precisions for p in problems if wanted(p, precision)]
    return sorted(pairs, key=lambda pair: pair[0].group == "edge")


def _on_tensor_cores(problem: Problem) -> bool:
    launchers = PRIMITIVES[problem.primitive].launchers
    return "implicit_gemm" in launchers and problem.group != "edge"


def _progress(rows: list[Row], number: int, count: int) -> None:
    for row in rows[:1]:
        head = f"[{number}/{count}] {row['primitive']} {row['case']}"
        times = [
            f"{series(r)} {short(r['median_us'])} µs"
            if r["status"] == OK
            else f"{series(r)} {r['status']}"
            for r in rows
        ]
        click.echo(f"{head}: {', '.join(times)}", err=True)


def _default_folder(device: str) -> Path:
    return Path("runs") / f"bench-{device}-{datetime.datetime.now():%Y%m%d-%H%M%S}"


def _cross_check(device: str, families: Sequence[str]) -> int:
    trouble = crosscheck.unavailable()
    if device != "cuda":
        raise click.UsageError("--cross-check compares two clocks of a GPU, and none is used here.")
    if trouble:
        raise click.UsageError(f"--cross-check: {trouble}.")
    problems = [p for p in all_problems() if not families or p.family in families]
    found = crosscheck.cross_check(open_timer("cuda"), problems)
    for agreement in found:
        click.echo(str(agreement))
    agreed = sum(agreement.agrees for agreement in found)
    click.echo(f"{agreed} of {len(found)} kernels agree within {crosscheck.TOLERANCE:.0%}")
    return 0 if agreed == len(found) else 1


def _read_old(path: Path | None) -> list[Row]:
    return [] if path is None else read_csv(path)


def run(
    families: Sequence[str],
    *,
    cases: Sequence[str],
    variants: Sequence[str],
    precisions: Sequence[str],
    against: str,
    device: str | None,
    quick: bool,
    minutes: float | None,
    out: Path | None,
    compare_with: Path | None,
    as_json_text: bool,
    cross_check: bool,
    make_bench: Callable[[Options], Bench] = Bench,
    pictures: bool = True,
) -> int:
    """Measure, show, write and compare -> the exit code."""
    libraries = _against(against)
    name = _choose_device(device)
    if cross_check:
        _one_of("family", families, sorted({p.family for p in all_problems()}))
        return _cross_check(name, families)
    precisions = precisions_of(name, precisions)
    problems = selected(families, cases, quick)
    variants = _one_of("variant", variants, known_variants(name, problems))
    if variants:
        problems = [p for p in problems if _has_variant(p, name, variants)]
    old = _read_old(compare_with)
    folder = out if out is not None else _default_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    size = "quick" if quick else "full"
    options = Options(
        device=name,
        variants=variants,
        against=libraries,
        seconds=_SECONDS[size],
        compile_seconds=_COMPILE_SECONDS[size],
        minutes=minutes,
    )
    work = tasks(problems, precisions)
    click.echo(f"{len(work)} problems on {name}; results go to {folder}", err=True)
    bench = make_bench(options)

    def report(rows: list[Row], number: int, count: int) -> None:
        _progress(rows, number, count)
        if number % _EVERY == 0:
            write_rows(folder, bench.results)

    results = bench.measure(work, report)
    comparison = lines(compare(results.rows, old)) if compare_with is not None else []
    columns = [column for library in libraries for column in LIBRARIES[library]]
    columns = [c for c in columns if name == "cuda" or c in ("torch", "torch_channels_last")]
    compared = str(compare_with) if compare_with is not None else ""
    files, missing = write_all(folder, results, columns, compared, comparison, pictures)
    if as_json_text:
        click.echo(json.dumps(as_json(results, comparison)))
    else:
        show(results, columns)
        for line in comparison:
            click.echo(line)
    for line in (*gap_lines(results), *missing):
        click.echo(f"note: {line}", err=True)
    click.echo(f"wrote {', '.join(path.name for path in files)} to {folder}", err=True)
    return 130 if results.stopped == "interrupted" else 0


def _has_variant(problem: Any, device: str, variants: Sequence[str]) -> bool:
    if isinstance(problem, Step):
        own: tuple[str, ...] = known_variants(device, [problem])
    else:
        own = variants_of(problem.primitive, device)
    return any(name in own for name in variants)


__all__ = ["FAMILY", "RIVALS", "run", "selected"]
