"""Forward and backward passes on the CPU, beside PyTorch's on the same cores.

``python -m bench.cpu [networks|activations …] [--out FILE]`` times LeNet-5, shapenet and a block of
one 16→32-channel 3×3 convolution with batch norm and ReLU, or each activation alone on 36×36 images
of 32 channels, in one process, in turns, and prints the medians.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch

import gpucnn
from gpucnn import models, nn
from gpucnn.threads import single_threaded_blas, thread_count

from .epoch import ACTIVATIONS, as_torch, seconds_per_step
from .report import machine, show

BATCH = 64


def block() -> nn.Sequential:
    """Convolution 16→32, 3×3, with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())


Cases = dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]

NETWORKS: Cases = {
    "lenet5": (models.lenet5, (28, 28, 1)),
    "shapenet": (models.shapenet, (72, 72, 1)),
    "block 16-32 3x3": (block, (32, 32, 16)),
}
GROUPS: dict[str, Cases] = {
    "networks": NETWORKS,
    "activations": {
        layer.__name__: (functools.partial(nn.Sequential, layer()), (36, 36, 32))
        for layer in ACTIVATIONS
    },
}


def pair_of_steps(
    build: Callable[[], nn.Module], shape: tuple[int, int, int]
) -> list[Callable[[], None]]:
    """One forward and backward pass of gpucnn, and the same of PyTorch."""
    model = build()
    theirs = as_torch(model).to(memory_format=torch.channels_last)
    images = np.random.default_rng(0).standard_normal((BATCH, *shape)).astype(np.float32)
    alone = not list(model.parameters())
    x = gpucnn.Tensor(images, requires_grad=alone)
    tx = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    tx.requires_grad_(alone)
    dy = np.ones(model(x).shape, np.float32)
    tdy = torch.ones_like(theirs(tx))

    def ours() -> None:
        for p in (x, *model.parameters()):
            p.grad = None
        model(x).backward(dy)

    def pytorch() -> None:
        tx.grad = None
        theirs.zero_grad()
        theirs(tx).backward(tdy)

    return [ours, pytorch]


@click.command()
@click.argument("groups", nargs=-1, type=click.Choice(sorted(GROUPS)))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write rows as CSV.")
def main(groups: tuple[str, ...], out: Path | None) -> None:
    """Time forward and backward passes of gpucnn and of PyTorch on this machine's CPU."""
    torch.set_num_threads(thread_count())
    gpucnn.use_device("cpu")
    rows = []
    timed = [pair for group in groups or ("networks",) for pair in GROUPS[group].items()]
    for name, (build, shape) in timed:
        with single_threaded_blas():
            ours, theirs = seconds_per_step(pair_of_steps(build, shape))
        rows.append(
            {
                "network": name,
                "batch": BATCH,
                "gpucnn_ms": round(ours * 1e3, 2),
                "torch_ms": round(theirs * 1e3, 2),
                "ratio": round(ours / theirs, 2),
                **machine(),
            }
        )
    show("Forward + backward on the CPU", rows, out)


if __name__ == "__main__":
    main()
