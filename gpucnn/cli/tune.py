"""``gpucnn tune``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Measure which kernels are fastest on this GPU, and remember it.")
@click.argument("families", metavar="[FAMILY]...", nargs=-1)
@click.option(
    "--case",
    "cases",
    metavar="CASE",
    multiple=True,
    help="Only this case; may be given several times.",
)
@click.option(
    "--precision",
    "precisions",
    metavar="PRECISION",
    multiple=True,
    help="fp32, tf32, bf16 or fp16; may be given several times. Default: fp32 and tf32.",
)
@click.option(
    "--out",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the table here. Default: the user's cache folder, from where later runs read it.",
)
@click.pass_context
def tune(
    ctx: click.Context,
    families: tuple[str, ...],
    cases: tuple[str, ...],
    precisions: tuple[str, ...],
    out: Path | None,
) -> None:
    """Time every kernel and tile on the layers of known networks: FAMILY conv2d, linear, …

    The fastest of each problem goes into a table of this GPU and these kernels, which later runs
    read; a problem that is not in it takes the kernel that the built-in rules choose. Tiles leave
    every bit as it is; another kernel adds in another order and may change the last bits of forward
    passes and data gradients. GPUCNN_TUNED=0 ignores the table; use_variant comes before it.

    \b
    Examples:
      gpucnn tune
      gpucnn tune conv2d --case I-vgg-128 --precision tf32
    """
    from gpucnn.cli.bench_package import bench_module

    ctx.exit(bench_module("tune").run(families, cases=cases, precisions=precisions, out=out))
