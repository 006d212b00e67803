"""Seconds per training epoch on the CPU, beside PyTorch's on the same cores.

``python -m bench.epoch [shapes|fashion-mnist …] [--out FILE]`` trains the dataset's own network
with gpucnn and the same layers with PyTorch (channels_last, fused Adam), in one process, in turns
of a few steps, and prints the medians. Needs PyTorch: ``make test`` installs it.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

import gpucnn
from gpucnn import functional as F
from gpucnn import nn, optim
from gpucnn.data import SHAPES_TRAIN_IMAGES
from gpucnn.threads import single_threaded_blas, thread_count
from gpucnn.training.recipes import recipe

from .report import machine, show

IMAGES = {"shapes": SHAPES_TRAIN_IMAGES, "fashion-mnist": 60_000}
TURNS, STEPS = 9, 8

# Layers with PyTorch's names and defaults.
ACTIVATIONS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.Sigmoid,
    nn.Tanh,
    nn.Softplus,
    nn.GELU,
    nn.SiLU,
    nn.Hardswish,
)


def as_torch(model: nn.Module) -> torch.nn.Module:
    """The PyTorch modules of a Sequential of gpucnn layers."""
    layers: list[torch.nn.Module] = []
    for _, m in model.named_children():
        if isinstance(m, nn.Conv2d):
            assert not isinstance(m.padding, str)
            pads = (m.padding[0][0], m.padding[1][0])
            layers.append(
                torch.nn.Conv2d(
                    m.in_channels,
                    m.out_channels,
                    m.kernel_size,
                    m.stride,
                    pads,
                    m.dilation,
                    m.groups,
                    m.bias is not None,
                )
            )
        elif isinstance(m, nn.BatchNorm2d):
            layers.append(torch.nn.BatchNorm2d(m.num_features, m.eps, m.momentum))
        elif isinstance(m, ACTIVATIONS):
            layers.append(getattr(torch.nn, type(m).__name__)())
        elif isinstance(m, nn.AvgPool2d):
            layers.append(torch.nn.AvgPool2d(m.kernel_size, m.stride))
        elif isinstance(m, nn.MaxPool2d):
            layers.append(torch.nn.MaxPool2d(m.kernel_size, m.stride))
        elif isinstance(m, nn.Flatten):
            layers.append(torch.nn.Flatten())
        elif isinstance(m, nn.Linear):
            layers.append(torch.nn.Linear(m.in_features, m.out_features, m.bias is not None))
        else:
            raise TypeError(f"no PyTorch layer for {m!r}")
    return torch.nn.Sequential(*layers)


def our_step(name: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """One training step of gpucnn on the ``cpu`` device."""
    model = gpucnn.models.create(name)
    optimizer = optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        loss = F.cross_entropy(model(gpucnn.Tensor(x)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def torch_step(name: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    """The same step of PyTorch, at its best settings for a CPU."""
    model = as_torch(gpucnn.models.create(name)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    images = torch.tensor(x.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    targets = torch.tensor(labels, dtype=torch.long)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def seconds_per_step(steps: list[Callable[[], None]]) -> list[float]:
    """The median time of each step, measured in turns."""
    times: list[list[float]] = [[] for _ in steps]
    for turn in range(TURNS + 1):
        for i, step in enumerate(steps):
            step()  # whoever ran before has left the caches and the threads to itself
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            if turn:
                times[i].append((time.perf_counter() - start) / STEPS)
    return [statistics.median(t) for t in times]


@click.command()
@click.argument("datasets", nargs=-1, type=click.Choice(sorted(IMAGES)))
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the rows as CSV."
)
def main(datasets: tuple[str, ...], out: Path | None) -> None:
    """Time a training epoch of gpucnn and of PyTorch on this machine's CPU."""
    torch.set_num_threads(thread_count())
    gpucnn.use_device("cpu")
    rows = []
    for dataset in datasets or tuple(sorted(IMAGES)):
        defaults = recipe(dataset)
        name, batch = defaults.model, defaults.batch_size
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch, *gpucnn.models.input_shape(name))).astype(np.float32)
        labels = rng.integers(0, 3, batch).astype(np.int32)
        gc.disable()
        with single_threaded_blas():
            ours, theirs = seconds_per_step(
                [our_step(name, x, labels), torch_step(name, x, labels)]
            )
        gc.enable()
        steps = IMAGES[dataset] // batch
        rows.append(
            {
                "dataset": dataset,
                "model": name,
                "images": IMAGES[dataset],
                "batch": batch,
                "gpucnn_seconds": round(ours * steps, 2),
                "torch_seconds": round(theirs * steps, 2),
                "ratio": round(ours / theirs, 2),
                **machine(),
            }
        )
    show("Training epoch on the CPU", rows, out)


if __name__ == "__main__":
    main()
