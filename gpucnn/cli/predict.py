"""``gpucnn predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gpucnn.cli.options import device_option, json_option


@click.command(short_help="Label pictures with a trained network.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@device_option
@json_option
def predict(run: Path, images: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Say what is in each IMAGE (PNG or JPEG), with the network trained in RUN.

    A picture is turned upright as its EXIF data says, put on white where it is transparent, made
    gray for a gray dataset, and scaled to the run's size with its proportions kept: what is left
    over takes the colour of its border. Fashion-MNIST shows light clothes on black.

    A network that labels pixels gives the share of the pixels of each class, and writes its label
    map to RUN/predictions as a gray picture.

    \b
    Example:
      gpucnn predict runs/mine runs/mine/examples/*.png
    """
    import numpy as np

    import gpucnn
    from gpucnn import training
    from gpucnn.data import normalize
    from gpucnn.data.pictures import read_picture

    if device is not None:
        gpucnn.use_device(device)
    model, config, _ = training.load_model(run)
    levels = np.stack([read_picture(path, config.image_shape) for path in images])
    with gpucnn.precision(config.precision):
        shares = training.predict(model, normalize(levels, config.mean, config.std))
    masks: list[str | None] = [None] * len(images)
    if shares.ndim == 4:
        labels = shares.argmax(axis=-1)
        folder = run / "predictions"
        folder.mkdir(exist_ok=True)
        masks = [
            _write_mask(folder / f"{number:03d}-{Path(path).stem}.png", label, len(config.classes))
            for number, (path, label) in enumerate(zip(images, labels, strict=True))
        ]
        shares = np.eye(len(config.classes))[labels].mean(axis=(1, 2))
    results: list[dict[str, Any]] = []
    for path, row, mask in zip(images, shares, masks, strict=True):
        # Of a picture's pixels most are background, which says nothing about it.
        best = int(row.argmax()) if mask is None or not row[1:].any() else 1 + int(row[1:].argmax())
        result: dict[str, Any] = {
            "file": path,
            "label": config.classes[best],
            "probabilities": {
                name: float(value) for name, value in zip(config.classes, row, strict=True)
            },
        }
        results.append(result if mask is None else {**result, "mask": mask})
    if as_json:
        click.echo(json.dumps(results))
        return
    for result in results:
        ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
        shown = "  ".join(f"{name} {value:.1%}" for name, value in ranked)
        mask = f"  {result['mask']}" if "mask" in result else ""
        click.echo(f"{click.format_filename(result['file'])}: {result['label']}  ({shown}){mask}")


def _write_mask(path: Path, labels: Any, classes: int) -> str:
    """Write a label map (H, W) as a gray PNG, black for class 0 and white for the last."""
    import numpy as np

    from gpucnn.data.pictures import write_picture

    levels = np.linspace(0, 255, classes).round().astype(np.uint8)
    write_picture(path, levels[labels][..., None])
    return str(path)
