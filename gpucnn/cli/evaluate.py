"""``gpucnn evaluate``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from gpucnn.cli.options import (
    DatasetName,
    device_option,
    json_option,
    moved_data_option,
    skip_unreadable_option,
)


@click.command(short_help="Judge a trained network by a dataset.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("dataset", type=DatasetName(), required=False)
@moved_data_option
@skip_unreadable_option
@device_option
@json_option
def evaluate(
    run: Path,
    dataset: str | None,
    data_dir: Path | None,
    skip_unreadable: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Judge the network trained in RUN by the test images of DATASET, by default the run's own.

    Of a folder of class folders or an .npz file without test images all count. Its classes must be
    among the run's. Pictures are scaled and normalised as in the run.

    \b
    Examples:
      gpucnn evaluate runs/mine
      gpucnn evaluate runs/mine other/pictures --json
    """
    import gpucnn
    from gpucnn import training
    from gpucnn.training.build import load_data, load_for
    from gpucnn.visualize.report import measure

    if device is not None:
        gpucnn.use_device(device)
    model, config, checkpoint = training.load_model(run)
    if dataset is None:
        _, test = load_data(config, data_dir)
    else:
        test = load_for(config, dataset, data_dir, skip_unreadable)
    started = time.perf_counter()
    with gpucnn.precision(config.precision):
        judged = training.evaluate(model, test)
        seconds = time.perf_counter() - started
        classes = measure(model, test).classes(test.classes)
    if as_json:
        result: dict[str, Any] = {
            "run": str(run),
            "checkpoint": str(checkpoint),
            "dataset": test.name,
            "images": len(test),
            **judged._asdict(),
            "images_per_second": len(test) / seconds,
            "classes": {
                c.name: {"count": c.count, "precision": c.precision, "recall": c.recall}
                for c in classes
            },
        }
        click.echo(json.dumps(result))
        return
    click.echo(
        f"accuracy {judged.accuracy:.2%}  loss {judged.loss:.4f}  mean IoU {judged.mean_iou:.4f}  "
        f"on {len(test):,} images of {test.name}"
    )
    width = max(len(c.name) for c in classes)
    click.echo(f"{'class':<{width}}  labels  precision  recall")
    for c in classes:
        shown = ("–" if share is None else f"{share:.1%}" for share in (c.precision, c.recall))
        precision, recall = shown
        click.echo(f"{c.name:<{width}}  {c.count:>6,}  {precision:>9}  {recall:>6}")
    click.echo(f"{len(test) / seconds:,.0f} images per second", err=True)
