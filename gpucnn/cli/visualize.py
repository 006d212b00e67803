"""``gpucnn visualize``."""

from __future__ import annotations

from pathlib import Path

import click

from gpucnn.cli.options import device_option, moved_data_option


@click.command(short_help="Draw what a trained network does and has learned.")
@click.argument("run", type=click.Path(path_type=Path))
@moved_data_option
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder for the pictures as PNG files. Default: RUN/pictures.",
)
@device_option
def visualize(run: Path, data_dir: Path | None, out: Path | None, device: str | None) -> None:
    """Write RUN/report.html, one page that needs no other file, and its pictures.

    It shows how training went, confusion matrix, precision and recall, the most confident mistakes,
    the first layer's filters, feature maps, saliency and Grad-CAM, activations and gradients, and
    the model with its sizes, receptive fields and fused layers.

    \b
    Example:
      gpucnn visualize runs/mine
    """
    import gpucnn
    from gpucnn import training
    from gpucnn.training.build import load_data
    from gpucnn.visualize.report import write_report

    if device is not None:
        gpucnn.use_device(device)
    model, config, _ = training.load_model(run)
    _, test = load_data(config, data_dir)
    folder = run / "pictures" if out is None else out
    path = write_report(training.RunFolder(run), model, test, folder)
    click.echo(f"report    {path}\npictures  {folder}")
