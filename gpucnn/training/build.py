"""From a run's arguments to a trainer, for a new run and for one that is resumed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import data, models, optim
from gpucnn.data.pictures import pictures_available, write_picture
from gpucnn.nn import Module
from gpucnn.precision import check_precision
from gpucnn.threads import thread_count
from gpucnn.training.checkpoint import load_checkpoint
from gpucnn.training.recipes import (
    OPTIMIZERS,
    learning_rate,
    optimizer_options,
    own_recipe,
    recipe,
)
from gpucnn.training.run import Config, RunFolder, make_default_folder
from gpucnn.training.trainer import Trainer


def make_optimizer(
    name: str, model: Module, lr: float, options: Mapping[str, Any] | None = None
) -> optim.Optimizer:
    """One of ``OPTIMIZERS`` for the parameters of a model, with its default options or others.

    Raises:
        ValueError: unknown name, or an option out of range.
        TypeError: an option that the optimizer does not have.
    """
    chosen = optimizer_options(name) if options is None else options
    return OPTIMIZERS[name].optimizer(model.parameters(), lr=lr, **chosen)


def _check_fit(model: str, dataset: data.Dataset) -> None:
    labelled = "pixel" if dataset.per_pixel else "image"
    if models.kind(model) != labelled:
        fitting = ", ".join(name for name in models.names() if models.kind(name) == labelled)
        raise ValueError(
            f"model {model} does not give one label per {labelled}, as {dataset.name} has; "
            f"{fitting} do"
        )


def _create(config: Config) -> Module:
    try:
        return models.create(config.model, len(config.classes), config.image_shape)
    except ValueError as error:
        raise ValueError(f"model {config.model}: {error}") from None


def _make_trainer(
    config: Config,
    run: RunFolder | None,
    train: data.Dataset,
    test: data.Dataset,
    graph: bool | None,
) -> Trainer:
    gpucnn.seed(config.seed)
    model = _create(config).to(config.device)
    optimizer = make_optimizer(config.optimizer, model, config.lr, config.optimizer_options)
    trainer = Trainer(
        model,
        optimizer,
        train,
        test,
        epochs=config.epochs,
        batch_size=config.batch_size,
        seed=config.seed,
        run=run,
        device=config.device,
        graph=graph,
        precision=config.precision,
        clip_norm=config.clip_norm,
    )
    # A cycle of a single step would be its own end, where the rate is next to nothing.
    trainer.scheduler = optim.OneCycleLR(optimizer, config.lr, max(trainer.total_steps, 2))
    return trainer


def start(
    dataset: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    images: int | None = None,
    model: str | None = None,
    device: str | None = None,
    seed: int = 0,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    optimizer: str | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    clip_norm: float | None = None,
    augmentation: data.Augmentation | None = None,
    out: str | os.PathLike[str] | None = None,
    graph: bool | None = None,
    precision: str | None = None,
    size: tuple[int, int] | None = None,
    gray: bool = False,
    skip_unreadable: bool = False,
) -> Trainer:
    """Make a new run folder and the trainer that fills it; what is None comes from the recipe.

    dataset, data_dir, images, size, gray, skip_unreadable: as of :func:`gpucnn.data.load`.

    graph: as of :class:`Trainer`; it changes no result and is not kept in the run folder.
    precision, clip_norm: as of :class:`Trainer`; kept with the run, which is resumed with them.

    Raises:
        ValueError: an argument out of range, an unknown name, a momentum for an optimizer without
            one, missing or damaged data, a model that does not take the dataset's images, or an
            ``out`` that is not new or empty.
        DeviceError: the device cannot be used.
    """
    own = data.is_path(dataset)
    if not own:
        data.source(dataset)
    options = {} if optimizer is None else optimizer_options(optimizer, momentum, weight_decay)
    if model is not None:
        models.input_shape(model)
    check_precision(precision)
    thread_count()  # a wrong GPUCNN_THREADS is an error before there is a folder
    if device is not None:
        gpucnn.use_device(device)
    reading = data.Files(data_dir, seed, images, size, gray, skip_unreadable)
    train, test = data.load(dataset, **vars(reading))
    defaults = own_recipe(train) if own else recipe(dataset)
    model = model or defaults.model
    if optimizer is None:
        optimizer = defaults.optimizer
        options = optimizer_options(optimizer, momentum, weight_decay)
    if augmentation is not None:
        train = dataclasses.replace(train, augmentation=augmentation)
    _check_fit(model, train)
    # --images may leave fewer than the recipe's batch; a batch size that was asked for is kept.
    fitting_batch = min(defaults.batch_size, len(train))
    config = Config(
        dataset=os.path.abspath(dataset) if own else dataset,
        data_dir=None if data_dir is None else os.path.abspath(data_dir),
        size=train.image_shape[:2] if data.is_folder(dataset) else None,
        gray=gray,
        skip_unreadable=skip_unreadable,
        images=len(train),
        model=model,
        device=gpucnn.default_device(),
        seed=seed,
        epochs=defaults.epochs if epochs is None else epochs,
        batch_size=fitting_batch if batch_size is None else batch_size,
        optimizer=optimizer,
        optimizer_options=options,
        lr=learning_rate(optimizer, defaults) if lr is None else lr,
        classes=train.classes,
        image_shape=train.image_shape,
        mean=train.mean,
        std=train.std,
        augmentation=str(train.augmentation or data.Augmentation()),
        precision=precision,
        clip_norm=clip_norm,
    )
    trainer = _make_trainer(config, None, train, test, graph)
    path = make_default_folder(train.name, model) if out is None else out
    trainer.run = RunFolder.create(path, config)
    return trainer


def resume(
    path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | None = None,
    graph: bool | None = None,
) -> Trainer:
    """The trainer of an existing run, restored from its latest checkpoint.

    Args:
        path: the run folder.
        data_dir: where the dataset's files are now, if they moved.
        device: another device than the run's; the bits may then differ from an unbroken run.
        graph: as of :class:`Trainer`.

    Raises:
        ValueError: no run there, or its config, data or checkpoint cannot be read.
        DeviceError: the device cannot be used.
    """
    run = RunFolder.open(path)
    config = run.read_config()
    if data_dir is not None:
        config = dataclasses.replace(config, data_dir=os.path.abspath(data_dir))
    config = dataclasses.replace(config, device=device or config.device)
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"{run.path} holds no checkpoint to resume from; start the run again")
    gpucnn.use_device(config.device)
    train, test = load_data(config)
    trainer = _make_trainer(config, run, train, test, graph)
    trainer.restore(checkpoint)
    return trainer


def load_data(
    config: Config, data_dir: str | os.PathLike[str] | None = None
) -> tuple[data.Dataset, data.Dataset]:
    """The training and the test images of a run.

    data_dir: where the dataset's files are now, if they moved.

    Raises:
        ValueError: they cannot be read.
    """
    train, test = data.load(
        config.dataset,
        data_dir=config.data_dir if data_dir is None else data_dir,
        seed=config.seed,
        images=config.images,
        size=config.size,
        gray=config.gray,
        skip_unreadable=config.skip_unreadable,
    )
    if config.augmentation is not None:
        augmentation = data.Augmentation.parse(config.augmentation)
        train = dataclasses.replace(train, augmentation=augmentation)
    return train, test


def load_for(
    config: Config,
    dataset: str,
    data_dir: str | os.PathLike[str] | None = None,
    skip_unreadable: bool = False,
) -> data.Dataset:
    """The test images of another dataset as the network of a run takes them.

    Its labels are matched with the run's classes by name; those of an ``.npz``, which has none, by
    number.

    Raises:
        ValueError: they cannot be read, have another size, or classes that the run does not know.
    """
    high, wide, channels = config.image_shape
    pictures = data.is_folder(dataset)
    files = data.Files(
        data_dir=data_dir,
        seed=config.seed,
        size=(high, wide) if pictures else None,
        gray=pictures and channels == 1,
        skip_unreadable=pictures and skip_unreadable,
    )
    test = data.load_test(dataset, files)
    if test.image_shape != config.image_shape:
        wanted, found = (" x ".join(map(str, s)) for s in (config.image_shape, test.image_shape))
        raise ValueError(f"the run takes images of {wanted}, {test.name} has {found}")
    known = {name: number for number, name in enumerate(config.classes)}
    names = test.classes
    if dataset.endswith(".npz") and not set(names) <= known.keys():
        names = config.classes[: len(names)] if len(names) <= len(known) else names
    strange = [name for name in names if name not in known]
    if strange:
        raise ValueError(
            f"{test.name} has classes that the run does not know: {', '.join(strange[:10])}; it "
            f"knows {', '.join(config.classes)}"
        )
    table = np.array([known[name] for name in names], np.int32)
    kept = test.labels >= 0
    labels = np.where(kept, table[np.where(kept, test.labels, 0)], test.labels)
    return dataclasses.replace(
        test, labels=labels, classes=config.classes, mean=config.mean, std=config.std
    )


def load_model(path: str | os.PathLike[str]) -> tuple[Module, Config, Path]:
    """The model of a run, with its latest weights, in evaluation mode, on the default device.

    Returns:
        The model, the run's arguments and the checkpoint that was read.

    Raises:
        ValueError: no run there, no checkpoint yet, or one of its files cannot be read.
    """
    run = RunFolder.open(path)
    config = run.read_config()
    checkpoint = run.latest_checkpoint()
    if checkpoint is None:
        raise ValueError(f"{run.path} holds no checkpoint yet")
    weights = load_checkpoint(checkpoint).group("model")
    model = _create(config)
    try:
        model.load_state_dict(weights)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{checkpoint}: does not fit model {config.model} ({error})") from None
    model.to(gpucnn.default_device())
    model.eval()
    return model, config, checkpoint


def write_examples(run: RunFolder, test: data.Dataset) -> list[Path]:
    """Write test images to ``examples/`` of the run, to try predictions on.

    The first of each class, or the first three where every pixel has a class of its own.

    Returns:
        The PNG files; none where Pillow is not installed.
    """
    if not pictures_available():
        return []
    folder = run.path / "examples"
    folder.mkdir(exist_ok=True)
    written = []
    if test.per_pixel:
        for number, levels in enumerate(test.images[:3], start=1):
            written.append(folder / f"image-{number}.png")
            write_picture(written[-1], levels)
        return written
    for label, name in enumerate(test.classes):
        path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.png"
        rows = (test.labels == label).nonzero()[0]
        if len(rows):
            write_picture(path, test.images[rows[0]])
            written.append(path)
    return written
