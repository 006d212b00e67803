"""``gpucnn predict``."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from gpucnn.cli.options import device_option, json_option

if TYPE_CHECKING:
    from gpucnn.nn import Module
    from gpucnn.training import Config

_AT_ONCE: Final = 256  # pictures in memory
_MAGIC: Final = (b"\x89PNG", b"\xff\xd8\xff", b"BM")
_MOST_BYTES: Final = 1 << 28  # of a picture on standard input


@click.command(short_help="Label pictures with a trained network.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True, type=click.Path())
@device_option
@json_option
def predict(run: Path, images: tuple[str, ...], device: str | None, as_json: bool) -> None:
    """Say what is in each IMAGE (PNG, JPEG or BMP), with the network trained in RUN.

    A folder stands for all such files in it and below it, - for standard input: a picture, or the
    paths of pictures, one per line. How many pictures a second were labelled goes to stderr.

    A picture is turned upright as its EXIF data says, put on white where it is transparent, made
    gray for a gray dataset, and scaled to the run's size with its proportions kept: what is left
    over takes the colour of its border. Fashion-MNIST shows light clothes on black.

    A network that labels pixels gives the share of the pixels of each class, and writes its label
    map to RUN/predictions as a gray picture.

    \b
    Examples:
      gpucnn predict runs/mine runs/mine/examples/*.png
      find . -name '*.jpg' | gpucnn predict runs/mine - --json
    """
    import gpucnn
    from gpucnn import training

    if device is not None:
        gpucnn.use_device(device)
    model, config, _ = training.load_model(run)
    started, results = time.perf_counter(), []
    with _files(images) as files:
        for at in range(0, len(files), _AT_ONCE):
            some = files[at : at + _AT_ONCE]
            for result in _label(model, config, run / "predictions", some, at):
                results.append(result)
                if not as_json:
                    _print(result)
    if as_json:
        click.echo(json.dumps(results))
    if len(results) > 1:
        rate = len(results) / (time.perf_counter() - started)
        click.echo(f"{len(results):,} pictures, {rate:,.0f} per second", err=True)


@contextmanager
def _files(given: Sequence[str]) -> Iterator[list[tuple[str, str]]]:
    """(what to call it, where to read it) of each picture that the arguments name."""
    from gpucnn.data.pictures import SUFFIXES

    found: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in given:
            if name == "-":
                found += _standard_input(Path(folder))
            elif Path(name).is_dir():
                inside = sorted(p for p in Path(name).rglob("*") if p.suffix.lower() in SUFFIXES)
                if not inside:
                    raise ValueError(f"{name}: holds no PNG, JPEG or BMP file")
                found += [(str(path), str(path)) for path in inside]
            else:
                found.append((name, name))
        yield found


def _standard_input(folder: Path) -> list[tuple[str, str]]:
    data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"standard input: holds more than {_MOST_BYTES:,} bytes")
    if data.startswith(_MAGIC):
        copy = folder / "picture"
        copy.write_bytes(data)
        return [("-", str(copy))]
    try:
        lines = [line for line in data.decode().splitlines() if line]
    except UnicodeDecodeError:
        raise ValueError("standard input: neither a picture nor paths") from None
    if not lines:
        raise ValueError("standard input: is empty, expected a picture or paths, one per line")
    return [(line, line) for line in lines]


def _label(
    model: Module, config: Config, folder: Path, files: Sequence[tuple[str, str]], first: int
) -> Iterator[dict[str, Any]]:
    """What the network says of each of these pictures; label maps are written to the folder."""
    import numpy as np

    import gpucnn
    from gpucnn import training
    from gpucnn.data import normalize
    from gpucnn.data.pictures import read_pictures

    levels, troubles = read_pictures([path for _, path in files], config.image_shape)
    for trouble, (name, path) in zip(troubles, files, strict=True):
        if trouble is not None:
            raise ValueError(trouble.replace(path, "standard input" if name == "-" else name))
    with gpucnn.precision(config.precision):
        shares = training.predict(model, normalize(levels, config.mean, config.std))
    masks: list[str | None] = [None] * len(files)
    if shares.ndim == 4:
        labels = shares.argmax(axis=-1)
        folder.mkdir(exist_ok=True)
        masks = [
            _write_mask(folder / f"{number:03d}-{Path(name).stem}.png", label, len(config.classes))
            for number, ((name, _), label) in enumerate(zip(files, labels, strict=True), first)
        ]
        shares = np.eye(len(config.classes))[labels].mean(axis=(1, 2))
    for (name, _), row, mask in zip(files, shares, masks, strict=True):
        # Of a picture's pixels most are background, which says nothing about it.
        best = int(row.argmax()) if mask is None or not row[1:].any() else 1 + int(row[1:].argmax())
        result: dict[str, Any] = {
            "file": name,
            "label": config.classes[best],
            "probabilities": {
                name: float(value) for name, value in zip(config.classes, row, strict=True)
            },
        }
        yield result if mask is None else {**result, "mask": mask}


def _print(result: dict[str, Any]) -> None:
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
