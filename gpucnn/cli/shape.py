"""``gpucnn shape``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import click

from gpucnn.cli.options import json_option


@click.command(short_help="Work out the sizes of a chain of layers, formula by formula.")
@click.argument("chain", metavar="LAYERS")
@click.option(
    "--in", "given", metavar="HxWxC", default="72x72x1", show_default=True, help="The images."
)
@json_option
def shape(chain: str, given: str, as_json: bool) -> None:
    """Work out the sizes behind LAYERS, with the numbers put into the formulas.

    Layers are separated by |: conv and tconv (transposed convolution), pool (avgpool, sumpool),
    unpool, globalpool, flatten, linear, relu, bn and other layers that keep sizes. Options: k
    kernel, s stride, p padding (psame), d dilation, c channels, g groups, o output padding;
    edge=drop, ceil or zero for pools. k3x5 is 3 high and 5 wide.

    \b
    Example:
      gpucnn shape "conv c16 k5 s2 p2 | pool 2 edge=zero | tconv k4 s2 p1" --in 72x72x1
    """
    from gpucnn.visualize.sizes import parse_shape, steps

    start = parse_shape(given)
    found = steps(chain, start)
    if as_json:
        layers: list[dict[str, Any]] = [asdict(step) for step in found]
        click.echo(json.dumps({"in": list(start), "layers": layers}))
        return
    click.echo(f"images  {_sizes(start)}")
    for step in found:
        click.echo(f"\n{step.layer}  ->  {_sizes(step.shape)}")
        for line in step.formulas:
            click.echo(f"    {line}")


def _sizes(sizes: tuple[int, ...]) -> str:
    return " x ".join(map(str, sizes))
