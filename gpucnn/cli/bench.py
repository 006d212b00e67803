"""``gpucnn bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpucnn.cli.options import finite, json_option


@click.command(short_help="Time kernels against the machine's limits and other libraries.")
@click.argument("families", metavar="[FAMILY]...", nargs=-1)
@click.option(
    "--case",
    "cases",
    metavar="CASE",
    multiple=True,
    help="Only this case, of any size; may be given several times.",
)
@click.option(
    "--variant",
    "variants",
    metavar="VARIANT",
    multiple=True,
    help="Only this variant, such as naive or tiled; may be given several times.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="PRECISION",
    multiple=True,
    help="fp32 or, on a GPU, tf32, bf16 or fp16; may be given several times. Default: fp32 and, on "
    "a GPU that has it, tf32.",
)
@click.option(
    "--against",
    default="torch,cupy",
    show_default=True,
    help="Libraries to compare with, separated by commas; none for no rival.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where to measure. Default: GPUCNN_DEVICE, or cuda where a GPU works, else cpu.",
)
@click.option("--quick", is_flag=True, help="Only layers of small networks: one or two minutes.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    help="Begin no further problem after this time. Default: no limit.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results. Default: runs/bench-DEVICE-TIME.",
)
@click.option(
    "--compare",
    "compare_with",
    metavar="OLD.csv",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The table of an earlier run: say what got faster or slower, and the noise.",
)
@click.option(
    "--cross-check",
    is_flag=True,
    help="Time ten kernels with NVBench (pip install cuda-bench) too, and compare the clocks.",
)
@json_option
@click.pass_context
def bench(ctx: click.Context, /, families: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Time operators, their variants and whole training steps: FAMILY conv2d, training_step, …

    Each implementation is first compared with its NumPy definition and is not timed if it is wrong.
    Rivals are timed in turns with ours, in the same process; one that is missing leaves a gap.
    Without a GPU the NumPy definitions are timed against PyTorch on the CPU, where --quick is the
    set to begin with: the full one is made for GPUs.

    The folder of the results gets bench.csv, bench.md, bench.html, machine.json and PNG plots.
    Ctrl-C keeps what was measured and exits with 130.

    \b
    Examples:
      gpucnn bench --quick
      gpucnn bench conv2d --variant naive --variant tiled
      gpucnn bench conv2d --case 16to32-b16 --against none
      gpucnn bench --quick --compare runs/before/bench.csv
    """
    from gpucnn.cli.bench_package import bench_module

    ctx.exit(bench_module("command").run(families, as_json_text=as_json, **given))
