"""``gpucnn summary``."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import asdict

import click

from gpucnn.cli.options import Name, json_option, model_names, precisions


@click.command(short_help="Show a model's layers and what they cost.")
@click.argument("model", type=Name("model", model_names))
@click.option(
    "--batch-size",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Images, for which a GPU chooses its kernels.",
)
@click.option(
    "--precision",
    type=Name("precision", precisions),
    help="fp32, tf32, bf16 or fp16. Default: that of the device.",
)
@json_option
def summary(model: str, batch_size: int, precision: str | None, as_json: bool) -> None:
    """Print the layers of MODEL: output shape, parameters, multiply-adds, receptive field.

    Multiply-adds are those of convolutions and linear layers for one image; their kernel is the
    variant and tile that this device takes by itself for a batch, "numpy" on the cpu. A layer that
    is computed in one pass with an earlier one names it in the place of a kernel. The receptive
    field is the part of the input, rows x columns, that one output of the layer can see.
    """
    from rich.console import Console
    from rich.table import Table

    from gpucnn import default_device, models
    from gpucnn import precision as use_precision
    from gpucnn.summary import summarize

    shape = models.input_shape(model)
    images = 1 if default_device() == "cpu" else batch_size
    with use_precision(precision) if precision else contextlib.nullcontext():
        rows = summarize(models.create(model), shape, images)
    parameters = sum(row.parameters for row in rows)
    multiply_adds = sum(row.multiply_adds for row in rows)
    if as_json:
        result = {
            "model": model,
            "input_shape": list(shape),
            "parameters": parameters,
            "multiply_adds": multiply_adds,
            "layers": [asdict(row) for row in rows],
        }
        click.echo(json.dumps(result))
        return
    table = Table(title=f"{model}: images of {_sizes(shape)}", title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kernel", overflow="fold")
    for heading in ("output", "parameters", "multiply-\nadds", "receptive\nfield"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        field = "" if row.receptive_field is None else _sizes(row.receptive_field)
        table.add_row(
            f"{row.name} {_shorten(row.layer)}".strip(),
            row.kernel or (f"with {row.fused}" if row.fused else ""),
            _sizes(row.output_shape),
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
            field,
        )
    table.add_section()
    table.add_row("total", "", "", f"{parameters:,}", f"{multiply_adds:,}", "")
    Console().print(table, markup=False)


def _shorten(layer: str) -> str:
    """A layer's repr with equal pairs as one number and without what is the default."""
    shortened = ""
    while shortened != layer:
        shortened, layer = layer, re.sub(r"\((\w+), \1\)", r"\1", layer)
    return re.sub(r", (stride=1|padding=0|eps=1e-05|momentum=0\.1)\b", "", layer)


def _sizes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
