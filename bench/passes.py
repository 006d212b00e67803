"""Forward and backward passes on the CPU, beside PyTorch's on the same cores.

``python -m bench.passes`` times LeNet-5, shapenet and a block of one 16→32-channel 3×3 convolution
with batch norm and ReLU, without loss and optimizer, in one process, in turns, and prints medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import click
import numpy as np
import rich.console
import rich.table

import gpucnn
from gpucnn.threads import single_threaded_blas, thread_count

from .rivals.torch_models import as_torch
from .steps import BLOCK, Step

NETWORKS = ("lenet5", "shapenet", BLOCK)
BATCH = 64
TURNS = 20


def passes(step: Step) -> list[Callable[[], None]]:
    """One forward and backward pass of gpucnn, and the same of PyTorch (channels last)."""
    import torch

    model, (images, _) = step.build(), step.batch_of_images()
    theirs = as_torch(model).to(memory_format=torch.channels_last)
    x = gpucnn.Tensor(images)
    tx = torch.tensor(images.transpose(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
    dy, tdy = np.ones(model(x).shape, np.float32), torch.ones_like(theirs(tx))

    def ours() -> None:
        for p in model.parameters():
            p.grad = None
        model(x).backward(dy)

    def pytorch() -> None:
        theirs.zero_grad()
        theirs(tx).backward(tdy)

    return [ours, pytorch]


def medians(contenders: Sequence[Callable[[], object]], calls: int, turns: int) -> list[float]:
    """Milliseconds of a call, in turns of ``calls`` calls behind one that is not timed."""
    times: list[list[float]] = [[] for _ in contenders]
    for _ in range(turns):
        for i, run in enumerate(contenders):
            run()  # whoever ran before has left the caches and the threads to itself
            start = time.perf_counter()
            for _ in range(calls):
                run()
            times[i].append((time.perf_counter() - start) / calls * 1e3)
    return [statistics.median(t) for t in times]


@click.command()
@click.option("--calls", default=5, show_default=True, help="Calls of one side in its turn.")
def main(calls: int) -> None:
    """Time forward and backward passes of gpucnn and of PyTorch on this machine's CPU."""
    import torch

    torch.set_num_threads(thread_count())
    table = rich.table.Table(title=f"Forward + backward on the CPU, {thread_count()} threads")
    for name in ("network", "batch", "gpucnn ms", "PyTorch ms", "ratio"):
        table.add_column(name, justify="left" if name == "network" else "right")
    with gpucnn.use_device("cpu"), single_threaded_blas():
        for network in NETWORKS:
            ours, theirs = medians(passes(Step(network, BATCH, "typical")), calls, TURNS)
            numbers = (f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}")
            table.add_row(network, str(BATCH), *numbers)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
