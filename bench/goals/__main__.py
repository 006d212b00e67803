"""``python -m bench.goals``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import gpucnn

from . import committed, stages
from .stages import STAGES, Options


@click.command(epilog="\n\n".join(f"{name}: {stage.what}." for name, stage in STAGES.items()))
@click.argument("names", metavar="[STAGE]...", nargs=-1, type=click.Choice(list(STAGES)))
@click.option(
    "--minutes",
    default=9.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of all stages together; what is running then is ended.",
)
@click.option(
    "--out",
    default=Path("runs/goals"),
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results: goals.jsonl grows as they come, goals.md says what is met.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of Fashion-MNIST's files, if it is not where Debian's package puts them.",
)
@click.option(
    "--write", is_flag=True, help="Count anew and rewrite bench/results/goals.md; no GPU."
)
@click.option("--pytorch", is_flag=True, help="With --write: count PyTorch's memory anew, too.")
@click.option("--inside", is_flag=True, hidden=True, help="Run the one stage in this process.")
def main(
    names: tuple[str, ...],
    minutes: float,
    out: Path,
    data: Path | None,
    write: bool,
    pytorch: bool,
    inside: bool,
) -> None:
    """Measure the goals on a GPU, stage after stage: by default all, the most telling first."""
    if write:
        committed.write(pytorch)
        return
    if not gpucnn.cuda_available():
        raise click.UsageError(
            f"the goals are measured on a GPU, and none can be used: {gpucnn.why_cpu()}"
        )
    options = Options(out, data)
    if inside:
        (name,) = names
        stages.inside(name, 60 * minutes, options)
        return
    broken = stages.run(names or tuple(STAGES), minutes, options)
    click.echo(f"{stages.write_table(out)}: {broken} stages are not complete", err=True)
    sys.exit(int(broken > 0))


if __name__ == "__main__":
    main()
