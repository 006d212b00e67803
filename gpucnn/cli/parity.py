"""``gpucnn parity``: float32 on a device against float64."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gpucnn.cli.bench_package import bench_module
from gpucnn.cli.options import Name, device_option, json_option
from gpucnn.precision import precision as precision_modes


def families() -> Sequence[str]:
    """The operator families that have problems."""
    import gpucnn.functional  # noqa: F401  registers every primitive

    problems = bench_module("problems").all_problems()
    return sorted({str(problem.family) for problem in problems})


@click.command(short_help="Errors of float32 against float64, operator by operator.")
@click.argument("family", required=False, type=Name("family", families))
@device_option
@click.option(
    "--csv", "csv_file", type=click.Path(dir_okay=False, path_type=Path), help="Write rows as CSV."
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Runs that must agree to the bit.",
)
@click.option(
    "--precision",
    type=click.Choice(precision_modes.modes),
    default="fp32",
    show_default=True,
    help="How tensor cores multiply matrices.",
)
@json_option
def parity(
    family: str | None,
    device: str | None,
    csv_file: Path | None,
    runs: int,
    precision: str,
    as_json: bool,
) -> None:
    """Compare float32 on a device with the NumPy definitions in float64, operator by operator.

    For each operator and pass of FAMILY (all by default): the largest relative error; the largest
    error in units in the last place (ULP) of the value, which is large where terms cancel; in those
    of the array's largest value over the square root of the sum's length, which is about 1 where
    sums lose what they must; the exponent with which the error grows with the length of the sum (0
    not at all, 0.5 at random, 1 with every term); and whether 20 runs agree to the bit.

    \b
    gpucnn parity
    gpucnn parity conv2d --device emulated --csv parity.csv
    """
    from gpucnn import use_device
    from gpucnn.device import default_device

    chosen = device or default_device()
    if csv_file is not None and not csv_file.absolute().parent.is_dir():
        raise click.BadParameter(f"folder of {csv_file} does not exist.", param_hint="--csv")
    measure = bench_module("parity")
    problems = bench_module("problems")
    of_family = problems.select(problems.all_problems(), [family] if family else ())
    with use_device(chosen):
        rows = measure.parity(
            of_family,
            chosen,
            runs=runs,
            precision=precision,
            say=lambda text: click.echo(f"{text} ...", err=True),
        )
    if csv_file is not None:
        measure.write_csv(rows, csv_file)
        click.echo(f"rows written to {csv_file}", err=True)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    else:
        _print(rows, chosen)


def _print(rows: Sequence[Any], device: str) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gpucnn.xray.tables import console

    wrong = any(row.mismatches for row in rows)
    precision = rows[0].precision
    numbers = "float32" if precision == "fp32" else f"float32 with products in {precision}"
    table = Table(
        title=f"{numbers} on {device} against float64", title_justify="left", box=box.SIMPLE_HEAD
    )
    table.add_column("operator and pass", overflow="fold")
    for heading in ("relative", "ULP", "scaled ULP", "growth", *(("mismatches",) if wrong else ())):
        table.add_column(heading, justify="right")
    table.add_column(f"{rows[0].runs} runs")
    for row in rows:
        rung = "" if row.variant in ("numpy", "default") else row.variant
        family = "" if row.family in row.primitive else row.family
        name = ", ".join(part for part in (row.primitive, family, rung) if part)
        table.add_row(
            name,
            f"{row.relative:.1e}",
            f"{row.ulp:.3g}",
            f"{row.scaled_ulp:.2f}",
            "" if row.growth is None else f"{row.growth:.2f}",
            *((Text(str(row.mismatches), "red"),) if wrong else ()),
            Text("same bits", "green") if row.same_bits else Text("differ", "red"),
        )
    console().print(table)
