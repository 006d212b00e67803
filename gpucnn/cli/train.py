"""``gpucnn train``."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

from gpucnn.cli.options import (
    DatasetName,
    Name,
    dataset_names,
    device_option,
    finite,
    json_option,
    model_names,
    optimizer_names,
    parsed_augmentation,
    parsed_size,
    precisions,
    program,
    skip_unreadable_option,
)

if TYPE_CHECKING:
    from gpucnn import training

# What may stand beside --resume: it changes where the run happens, not what it computes.
_RESUMABLE: Final = {"dataset", "resume", "data_dir", "device", "graph", "report", "as_json"}


@click.command(short_help="Train a network on a dataset.")
@click.argument("dataset", type=DatasetName(), required=False)
@click.option(
    "--data",
    "data_dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of the dataset's files. Default: where Debian's package puts them.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help="Number of training images. Default: 24,000 shapes, 12,000 for segmentation, or all of "
    "Fashion-MNIST.",
)
@click.option(
    "--size",
    metavar="HxW",
    callback=parsed_size,
    help="Scale the pictures of a folder to this size, height x width. May be left out if they are "
    "all of one size.",
)
@click.option("--gray", is_flag=True, help="Make the pictures of a folder gray.")
@skip_unreadable_option
@click.option(
    "--model", type=Name("model", model_names), help="Network. Default: the dataset's own."
)
@device_option
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of the drawn images, initial weights, shuffles and augmentation.",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Passes over the training images. Default: 3 for shapes, 5 for segmentation, 5 for "
    "fashion-mnist.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    help="Images per training step. Default: 64 for shapes, 16 for segmentation, 128 for "
    "fashion-mnist.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    callback=finite,
    help="Highest learning rate of the one-cycle schedule. Default: suits dataset and optimizer.",
)
@click.option(
    "--optimizer",
    type=Name("optimizer", optimizer_names),
    help="sgd, momentum, nesterov, adagrad, adadelta, rmsprop, adam, amsgrad, adamw, adamax, nadam "
    "or lion. Default: adam.",
)
@click.option(
    "--momentum",
    type=click.FloatRange(0, 1, max_open=True),
    help="Of sgd, momentum, nesterov and rmsprop. Default: 0.9 for momentum and nesterov, else 0.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    callback=finite,
    help="Default: 5e-4 for sgd, momentum and nesterov, 0.01 for adamw, else 0.",
)
@click.option(
    "--precision",
    type=Name("precision", precisions),
    help="fp32, tf32, bf16 or fp16: how matrix products compute, and with bf16 what activations "
    "are stored in. Kept with the run. Default: tf32 on GPUs that have it, else fp32.",
)
@click.option(
    "--clip",
    "clip_norm",
    metavar="NORM",
    type=click.FloatRange(min=0),
    callback=finite,
    help="Scale the gradients of each step so that their common norm is at most this. Default: "
    "leave them.",
)
@click.option(
    "--augment",
    "augmentation",
    metavar="CHANGES",
    callback=parsed_augmentation,
    help="Random changes of training images: any of flip, vertical-flip, shift=2, crop=4, "
    "padding=reflect, brightness=0.2, contrast=0.2, cutout=8, mixup=0.2, with commas; or none. "
    "Default: flip for fashion-mnist, else none.",
)
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Run folder, new or empty. Default: runs/DATASET-MODEL-TIME.",
)
@click.option(
    "--resume",
    metavar="RUN",
    type=click.Path(path_type=Path),
    help="Continue the run in this folder from its latest checkpoint, to the bit.",
)
@click.option(
    "--graph/--no-graph",
    default=None,
    help="Record a training step and replay it, as one CUDA graph over memory planned once; no "
    "result changes. Default: on cuda.",
)
@click.option(
    "--report/--no-report",
    default=True,
    show_default=True,
    help="Write report.html at the end, where matplotlib and jinja2 are installed.",
)
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    /,
    dataset: str | None,
    resume: Path | None,
    report: bool,
    as_json: bool,
    **arguments: Any,
) -> None:
    """Train a network on DATASET, one of those of gpucnn datasets or one of your own.

    shapes draws 72x72 gray images of triangles, circles and rectangles; shapes-segmentation labels
    each pixel of images of one or two of them; fashion-mnist and mnist read four IDX files, cifar10
    six binary ones. Your own are a folder with a folder of PNG, JPEG or BMP pictures for each class
    (or such folders called train and test), or an .npz file of x and y; where nothing says which
    images are for testing, a fifth is. What is not given comes from defaults that suit the dataset.

    Everything is kept in a run folder: config.json, environment.json, metrics.jsonl, checkpoints/.
    Ctrl-C finishes the step, saves and prints the command that continues; a second Ctrl-C stops
    at once.

    \b
    Examples:
      gpucnn train shapes
      gpucnn train fashion-mnist --epochs 3 --out runs/mine
      gpucnn train fashion-mnist --augment flip,shift=2,cutout=8
      gpucnn train my/pictures --size 64 --augment flip
      gpucnn train --resume runs/mine
    """
    from gpucnn import training

    if resume is None:
        if dataset is None:
            raise click.UsageError(
                f"Missing argument DATASET: one of {', '.join(dataset_names())}, or your own."
            )
        trainer = training.start(dataset, **arguments)
    else:
        _refuse_beside_resume(ctx)
        trainer = training.resume(
            resume,
            data_dir=arguments["data_dir"],
            device=arguments["device"],
            graph=arguments["graph"],
        )
    run = trainer.run
    assert run is not None
    if dataset is not None and dataset not in (trainer.train.name, run.read_config().dataset):
        raise click.UsageError(
            f"the run in {run.path} trains on {trainer.train.name}, not {dataset}."
        )

    folder = shlex.quote(str(run.path))
    if trainer.finished:
        click.echo(
            f"{run.path} is finished: epoch {trainer.epochs} of {trainer.epochs} is done.", err=True
        )
    else:
        begun = f"resumes at step {trainer.progress.step}" if resume else "starts"
        click.echo(
            f"{run.path} {begun}: {len(trainer.train):,} images, epochs: {trainer.epochs} of "
            f"{trainer.steps_per_epoch} steps, device {trainer.device}{_where(trainer)}",
            err=True,
        )
        try:
            trainer.fit()
        except training.Interrupted as stop:
            click.echo(
                f"Stopped by {stop}, saved {stop.checkpoint}.\n"
                f"Resume with: {program()} train --resume {folder}",
                err=True,
            )
            ctx.exit(stop.exit_code)
        except training.Diverged as trouble:
            click.echo(
                f"Error: {trouble}; the last good checkpoint is {run.latest_checkpoint()}, "
                "a smaller --lr may help",
                err=True,
            )
            ctx.exit(3)
    accuracy, seconds = trainer.test_accuracy, round(trainer.progress.seconds, 3)
    examples = training.write_examples(run, trainer.test)
    page = _report(trainer) if report else None
    if as_json:
        result = {"run": str(run.path), "test_accuracy": accuracy, "seconds": seconds}
        if page is not None:
            result["report"] = str(page)
        if trainer.test.per_pixel:
            result["test_mean_iou"] = trainer.test_mean_iou
        click.echo(json.dumps(result))
        return
    score = f"test accuracy  {accuracy:.2%}"
    if trainer.test.per_pixel:
        score = f"test mean IoU  {trainer.test_mean_iou:.4f}, accuracy {accuracy:.2%}"
    click.echo(
        f"{score} on {len(trainer.test):,} images, "
        f"epochs: {trainer.epochs}, {seconds:.1f} s\n"
        f"run folder     {run.path}" + (f"\nreport         {page}" if page else "")
    )
    if examples:
        files = " ".join(shlex.quote(str(path)) for path in examples[:3])
        click.echo(f"try next       {program()} predict {folder} {files}")
    else:
        click.echo(
            f"try next       {program()} predict {folder} IMAGE.png"
            "   (reading pictures needs: pip install 'gpucnn[plot]')"
        )


def _report(trainer: training.Trainer) -> Path | None:
    """Write the report of a run, where what it takes is installed."""
    if any(importlib.util.find_spec(name) is None for name in ("matplotlib", "jinja2")):
        click.echo("No report.html: it needs pip install 'gpucnn[plot,report]'", err=True)
        return None
    from gpucnn.visualize.report import write_report

    assert trainer.run is not None
    return write_report(trainer.run, trainer.model, trainer.test)


def _where(trainer: training.Trainer) -> str:
    """Where the training images are, where that is worth knowing."""
    data = trainer.batches.data
    if trainer.device != "cuda":
        return ""
    if data.device != "cuda":
        return f" (the {data.nbytes / 1e6:,.0f} MB of images stay on the host: too large for it)"
    return f" ({data.nbytes / 1e6:,.0f} MB of images in its memory)"


def _refuse_beside_resume(ctx: click.Context) -> None:
    given = [
        parameter.opts[-1]
        for parameter in ctx.command.params
        if parameter.name not in _RESUMABLE
        and ctx.get_parameter_source(parameter.name or "") is not ParameterSource.DEFAULT
    ]
    if given:
        raise click.UsageError(
            f"{', '.join(given)} cannot stand beside --resume: a resumed run keeps the arguments "
            "it was started with; only --data, --device, --graph, --report and --json may be given."
        )
