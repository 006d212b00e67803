"""``gpucnn datasets`` and ``gpucnn models``."""

from __future__ import annotations

import json
from typing import Any

import click

from gpucnn.cli.options import json_option


@click.command(short_help="List the datasets that train knows by name.")
@json_option
def datasets(as_json: bool) -> None:
    """List the datasets that gpucnn train knows by name, and what it also takes."""
    from gpucnn.data.sources import SOURCES

    if as_json:
        click.echo(json.dumps({each.name: each.about for each in SOURCES}))
        return
    own = (
        ("FOLDER", "a folder of PNG, JPEG or BMP pictures for each class, or train and test"),
        ("FILE.npz", "x (N, H, W) or (N, H, W, C) and y (N,), or x_train, y_train, x_test, y_test"),
    )
    _print([*((each.name, each.about) for each in SOURCES), *own])


@click.command(short_help="List the networks.")
@json_option
def models(as_json: bool) -> None:
    """List the networks: what they were made for, their parameters, what they are."""
    from gpucnn import models

    found: list[dict[str, Any]] = []
    for name in models.names():
        network = models.create(name)
        found.append(
            {
                "name": name,
                "images": list(models.input_shape(name)),
                "labels": models.kind(name),
                "parameters": sum(p.size for p in network.parameters()),
                "about": (getattr(models, name).__doc__ or "").strip().splitlines()[0],
            }
        )
    if as_json:
        click.echo(json.dumps(found))
        return
    _print([(m["name"], f"{m['parameters']:>9,} parameters  {m['about']}") for m in found])


def _print(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, about in rows:
        click.echo(f"{name:<{width}}  {about}")
