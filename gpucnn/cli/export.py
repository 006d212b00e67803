"""``gpucnn export``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpucnn.cli.options import json_option

if TYPE_CHECKING:
    from gpucnn.nn import Module


@click.command(short_help="Write a trained network for other programs.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@json_option
def export(run: Path, file: Path, as_json: bool) -> None:
    """Write the network trained in RUN to FILE: NAME.onnx or NAME.safetensors.

    .onnx: opset 17. The input "images" is float32 (N, C, H, W) with any N, normalised as (level /
    255 - mean) / std; mean, std and classes are in the file's metadata. Where onnxruntime is
    installed, its outputs are compared with the network's.

    .safetensors: the weights as the same network in PyTorch takes them, with
    model.load_state_dict(safetensors.torch.load_file("NAME.safetensors")).

    \b
    Example:
      gpucnn export runs/mine mine.onnx
    """
    from gpucnn import training
    from gpucnn.interop import onnx, torch

    kinds = (".onnx", ".safetensors")
    if file.suffix not in kinds:
        raise click.UsageError(f"FILE must end in {' or '.join(kinds)}, got {file.name}.")
    model, config, checkpoint = training.load_model(run)
    error = None
    try:
        if file.suffix == ".safetensors":
            torch.save_for_torch(model, file, config.image_shape)
        else:
            metadata = {
                "classes": json.dumps(config.classes),
                "mean": json.dumps(config.mean),
                "std": json.dumps(config.std),
            }
            onnx.export(model, file, config.image_shape, metadata=metadata)
            error = _difference(model, file, config.image_shape)
    except OSError as trouble:
        raise click.ClickException(f"{file}: cannot be written ({trouble.strerror})") from None
    size = file.stat().st_size
    if as_json:
        result: dict[str, Any] = {"file": str(file), "bytes": size, "checkpoint": str(checkpoint)}
        click.echo(json.dumps({**result, "largest_difference": error}))
        return
    click.echo(f"{file}  {size:,} bytes, the weights of {checkpoint}")
    if error is not None:
        click.echo(f"onnxruntime computes the same scores up to {error:.1e}")


def _difference(model: Module, file: Path, image_shape: tuple[int, int, int]) -> float | None:
    """The largest difference between our scores and onnxruntime's, as a share of the largest score;
    None where onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import numpy as np
    import onnxruntime

    from gpucnn.interop.onnx import INPUT
    from gpucnn.training import scores

    images = np.random.default_rng(0).standard_normal((4, *image_shape)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {INPUT: np.moveaxis(images, -1, 1)})
    ours = np.moveaxis(scores(model, images), -1, 1)
    return float(np.abs(ours - theirs).max() / np.abs(ours).max())
