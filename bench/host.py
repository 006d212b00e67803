"""What the host does for an operator call, beside PyTorch's: microseconds of Python and C++.

``python -m bench.host`` calls the operators that a small network is made of, forward (recorded for
a backward pass) and backward, and whole training steps, on arrays of a few numbers.

Ours runs on the ``emulated`` device with the launch cut off where CuPy's begins: checks, tape and
allocation are done, no kernel runs. As in training, the calls before have left plans
(``gpucnn.launch_plan``), so that the arguments of launches are checked and packed already. PyTorch
runs eagerly on CPU tensors of the same shapes, in the same process, in turns, on one thread and
without oneDNN, whose set-up alone would take longer than any of this. So PyTorch's side has its
arithmetic, next to nothing here, and neither side has a launch: what CuPy and the CUDA driver take,
or PyTorch's own launches, come on top. Memory is what the emulator hands out, filled with a
pattern; a GPU's pool is another. Convolutions are those of tensor cores, as on a GPU. A backward
pass is timed by itself, with everything that ``backward()`` does once; in a whole step all
operators share that.

Times are those of the thread, not of the clock, and the least of many turns: what other processes
do shows little.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import rich.console
import rich.table

import gpucnn
from gpucnn import emulator, nn, optim
from gpucnn import functional as F
from gpucnn.device import empty

DEVICE = "emulated"
TURNS = 60
CALLS = 200  # of one side in its turn
MOST_US = 10.0  # aims: of one call,
MOST_RATIO = 0.6  # and beside PyTorch


@dataclass(frozen=True)
class Operator:
    """One operator: the shapes of the inputs that get a gradient, and how both sides call it.

    Shapes are ours, images (N, H, W, C); ``pytorch`` gets images and filters channels first, and
    the module ``torch.nn.functional``.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    ours: Callable[..., Any]
    pytorch: Callable[..., Any]


IMAGES = (2, 2, 2, 8)
LABELS = np.array([0, 2])
_statistics = (np.zeros(8, np.float32), np.ones(8, np.float32))


def channels_first(array: Any) -> Any:
    """An image or filter (N, H, W, C) as PyTorch takes it; others as they are."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array


def _on_device(arrays: Sequence[Any]) -> list[gpucnn.Tensor]:
    return [gpucnn.Tensor(a, device=DEVICE) for a in arrays]


def operators() -> list[Operator]:
    """The operators of the table."""
    import torch

    mean, var = _on_device(_statistics)
    running = [torch.from_numpy(a.copy()) for a in _statistics]
    (labels,) = _on_device([LABELS])
    targets = torch.from_numpy(LABELS)
    return [
        Operator(
            "conv2d 3×3",
            (IMAGES, (8, 3, 3, 8), (8,)),
            lambda x, w, b: F.conv2d(x, w, b, padding=1),
            lambda f, x, w, b: f.conv2d(x, w, b, padding=1),
        ),
        Operator("linear", ((2, 8), (3, 8), (3,)), F.linear, lambda f, x, w, b: f.linear(x, w, b)),
        Operator("relu", (IMAGES,), F.relu, lambda f, x: f.relu(x)),
        Operator(
            "max_pool2d",
            (IMAGES,),
            lambda x: F.max_pool2d(x, 2),
            lambda f, x: f.max_pool2d(x, 2),
        ),
        Operator(
            "batch_norm, training",
            (IMAGES, (8,), (8,)),
            lambda x, g, b: F.batch_norm(x, g, b, mean, var, training=True),
            lambda f, x, g, b: f.batch_norm(x, *running, g, b, training=True),
        ),
        Operator(
            "dropout",
            ((2, 8),),
            lambda x: F.dropout(x, 0.5, training=True),
            lambda f, x: f.dropout(x, 0.5, training=True),
        ),
        Operator("add", (IMAGES, IMAGES), F.add, lambda f, a, b: a + b),
        Operator("reshape", (IMAGES,), lambda x: x.reshape(2, 32), lambda f, x: x.reshape(2, 32)),
        Operator(
            "cross_entropy",
            ((2, 3),),
            lambda x: F.cross_entropy(x, labels),
            lambda f, x: f.cross_entropy(x, targets),
        ),
    ]


def _no_launch(
    kernel: emulator.RawKernel, grid: Any, block: Any, args: Any, shared_mem: int = 0
) -> None:
    pass


@contextlib.contextmanager
def launches_cut_off() -> Iterator[None]:
    """Inside the ``with`` block the ``emulated`` device runs no kernel: outputs stay unwritten."""
    launch = emulator.RawKernel.__call__
    emulator.RawKernel.__call__ = _no_launch  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        emulator.RawKernel.__call__ = launch  # type: ignore[method-assign]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    from torch.backends import mkldnn

    before = mkldnn.set_flags(_enabled=False)
    try:
        yield
    finally:
        mkldnn.set_flags(*before)


@dataclass(frozen=True)
class Sides:
    """A row of the table: how to prepare and run ``CALLS`` calls, ours and PyTorch's.

    A preparation is not timed; what it returns is called once, and that is.
    """

    name: str
    prepare: tuple[Callable[[], Callable[[], None]], Callable[[], Callable[[], None]]]
    calls: int  # operator calls in a run


def _repeat(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def forward_and_backward(op: Operator) -> tuple[Sides, Sides]:
    """The two rows of an operator."""
    import torch

    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape, np.float32) for shape in op.shapes]
    theirs = [channels_first(a) for a in arrays]

    def call_ours() -> Any:
        return op.ours(*(gpucnn.Tensor(a, requires_grad=True, device=DEVICE) for a in arrays))

    def call_theirs() -> Any:
        leaves = (torch.from_numpy(a).requires_grad_() for a in theirs)
        return op.pytorch(torch.nn.functional, *leaves)

    def ours() -> Callable[[], None]:
        leaves = [gpucnn.Tensor(a, requires_grad=True, device=DEVICE) for a in arrays]
        return _repeat(lambda: op.ours(*leaves))

    def pytorch() -> Callable[[], None]:
        leaves = [torch.from_numpy(a).requires_grad_() for a in theirs]
        return _repeat(lambda: op.pytorch(torch.nn.functional, *leaves))

    def back(call: Callable[[], Any], ones: Callable[[Any], Any]) -> Callable[[], None]:
        made = [call() for _ in range(CALLS)]
        dy = ones(made[0])

        def run() -> None:
            for y in made:
                y.backward(dy)

        return run

    def ours_back() -> Callable[[], None]:
        return back(call_ours, lambda y: gpucnn.Tensor(np.ones(y.shape, np.float32), device=DEVICE))

    return (
        Sides(op.name, (ours, pytorch), CALLS),
        Sides(op.name, (ours_back, lambda: back(call_theirs, torch.ones_like)), CALLS),
    )


PARAMETERS = [(8, 3, 3, 8), (8,), (8,), (8,), (3, 8), (3,)]


def optimizer() -> Sides:
    """A step of SGD with momentum, per parameter."""
    import torch

    arrays = [np.zeros(shape, np.float32) for shape in PARAMETERS]
    ours = [gpucnn.Tensor(a, requires_grad=True, device=DEVICE) for a in arrays]
    theirs = [torch.from_numpy(a.copy()).requires_grad_() for a in arrays]
    sgd = optim.SGD(ours, lr=0.1, momentum=0.9)
    rival = torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for p, q in zip(ours, theirs, strict=True):
        p.backward(np.ones(p.shape, np.float32))
        q.grad = torch.ones_like(q)
    return Sides(
        "SGD step, per parameter",
        (lambda: _repeat(sgd.step), lambda: _repeat(rival.step)),
        CALLS * len(PARAMETERS),
    )


LAYERS = 7  # of the network below
STEP_CALLS = 2 * (LAYERS + 1) + 1  # forward and backward with the loss, and the optimizer


def training_step() -> Sides:
    """Training steps of a small network with batch norm, per operator call."""
    import torch

    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8, 3),
    ).to(DEVICE)
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(8, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.5),
        torch.nn.Linear(8, 3),
    )
    x, target = _on_device([np.ones(IMAGES, np.float32), LABELS])
    tx, targets = torch.ones(2, 8, 2, 2), torch.from_numpy(LABELS)
    sgd = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rival = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)

    def ours() -> None:
        loss = F.cross_entropy(model(x), target)
        sgd.zero_grad()
        loss.backward()
        sgd.step()

    def pytorch() -> None:
        loss = torch.nn.functional.cross_entropy(theirs(tx), targets)
        rival.zero_grad()
        loss.backward()
        rival.step()

    return Sides(
        "training step, per operator",
        (lambda: _repeat(ours), lambda: _repeat(pytorch)),
        CALLS * STEP_CALLS,
    )


def allocation() -> Sides:
    """Memory for one small array: at least one to a launch, on ours filled with a pattern."""
    import torch

    like = np.empty(IMAGES, np.float32)
    return Sides(
        "an empty array",
        (
            lambda: _repeat(lambda: empty(like, IMAGES)),
            lambda: _repeat(lambda: torch.empty(IMAGES)),
        ),
        CALLS,
    )


def least_us(rows: Sequence[Sides], turns: int) -> list[tuple[float, float]]:
    """(ours, PyTorch's) microseconds of a call per row, the least of ``turns`` turns."""
    least = [[float("inf"), float("inf")] for _ in rows]
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(turns):
            for row, best in zip(rows, least, strict=True):
                for side, prepare in enumerate(row.prepare):
                    run = prepare()
                    start = time.thread_time_ns()
                    run()
                    us = (time.thread_time_ns() - start) / 1e3 / row.calls
                    best[side] = min(best[side], us)
            gc.collect()
    finally:
        if collecting:
            gc.enable()
    return [(ours, theirs) for ours, theirs in least]


def measure(turns: int = TURNS) -> dict[str, list[tuple[str, float, float]]]:
    """(name, ours, PyTorch's) microseconds of a call: "forward", "backward" and "step" rows."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with launches_cut_off(), gpucnn.precision("tf32"), _without_onednn():
            pairs = [forward_and_backward(op) for op in operators()]
            tables = {
                "forward": [forward for forward, _ in pairs],
                "backward": [backward for _, backward in pairs],
                "step": [allocation(), optimizer(), training_step()],
            }
            times = iter(least_us([row for rows in tables.values() for row in rows], turns))
    finally:
        torch.set_num_threads(threads)
    return {title: [(row.name, *next(times)) for row in rows] for title, rows in tables.items()}


def within(rows: Sequence[tuple[str, float, float]]) -> str:
    """How many rows meet the aims."""
    quick = sum(ours <= MOST_US for _, ours, _ in rows)
    ahead = sum(ours <= MOST_RATIO * theirs for _, ours, theirs in rows)
    return (
        f"{quick} of {len(rows)} within {MOST_US:g} µs, "
        f"{ahead} within {MOST_RATIO:g} × PyTorch's time"
    )


@click.command()
@click.option("--turns", default=TURNS, show_default=True, help="Turns that each side gets.")
@click.option("--csv", "path", type=click.Path(dir_okay=False), help="A file for the rows, too.")
def main(turns: int, path: str | None) -> None:
    """Time what the host does for an operator call, in gpucnn and in PyTorch."""
    import torch

    table = rich.table.Table(title="Host time per call, no launch")
    for name in ("", "gpucnn µs", "PyTorch µs", "ratio"):
        table.add_column(name, justify="right" if name else "left")
    measured = measure(turns)
    rows = []
    for title, times in measured.items():
        table.add_section()
        for name, ours, theirs in times:
            shown = name if title == "step" else f"{name}, {title}"
            rows.append((shown, f"{ours:.2f}", f"{theirs:.2f}", f"{ours / theirs:.2f}"))
            table.add_row(*rows[-1])
    console = rich.console.Console()
    console.print(table)
    for title in ("forward", "backward"):
        console.print(f"{title}: {within(measured[title])}", highlight=False)
    if path is not None:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("call", "gpucnn_us", f"torch_{torch.__version__}_us", "ratio"))
            writer.writerows(rows)


if __name__ == "__main__":
    main()
