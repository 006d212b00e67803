"""What a training step is as one graph: launches, memory planned once, host time of a replay.

``python -m bench.graphs`` records steps of five networks (forward, loss, backward, Adam) on the
``emulated`` device without running a kernel: the launches and the arrays are those of a GPU, and
counts need none. Columns:

- launches: kernels of a step in float32, which a CUDA graph holds as nodes. They write the
  gradients of these networks' parameters into the optimizer's buffers: nothing is copied there.
- MB unshared, at once, planned: all arrays of the step added up; the most that is in use at one
  moment, which no plan can undercut; the arena. Without what lives on: the parameters, their
  gradients, the optimizer's state.
- MB slices, copies: what the optimizer's launch reads and writes besides, and keeps: gradients in
  slices, filters with their channels exchanged.
- host µs: microseconds of Python for a replay, of the thread and not of the clock, the least of
  several turns. What CuPy and the driver take comes on top: one launch of a graph, one copy of the
  step's numbers, and a copy for each argument (these steps have none).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

import gpucnn
from bench.steps import STEPS, Step, our_step
from gpucnn import kernel
from gpucnn.graph import CudaGraph, MemoryPlan

DEVICE = "emulated"
CASES = ("lenet5-b128", "shapenet-b256", "resnet20-b128", "resnet9-b4", "unet_small-b16")
TURNS, CALLS = 9, 200
_MEGA = 1e6


@dataclass(frozen=True)
class Counts:
    """One step: its launches, its memory, bytes that the optimizer keeps, and microseconds of host
    time of a replay.
    """

    case: str
    launches: int
    memory: MemoryPlan
    slices: int
    copies: int
    host_us: float

    def row(self) -> str:
        """A line of the table."""
        planned = self.memory.unshared_bytes, self.memory.live_bytes, self.memory.bytes
        sizes = *planned, self.slices, self.copies
        figures = " | ".join(f"{size / _MEGA:.2f}" for size in sizes)
        return f"| {self.case} | {self.launches} | {figures} | {self.host_us:,.0f} |"


HEAD = """\
| step | launches | MB unshared | MB at once | MB planned | MB slices | MB copies | host µs |
|---|---|---|---|---|---|---|---|"""


def _host_us(call: Callable[[], Any]) -> float:
    """Microseconds of this thread for one call, the least of several turns."""
    best = float("inf")
    for _ in range(TURNS):
        start = time.thread_time()
        for _ in range(CALLS):
            call()
        best = min(best, (time.thread_time() - start) / CALLS * 1e6)
    return best


def count(step: Step, timed: bool = True) -> Counts:
    """Record a step and count; without the time if it is not wanted."""
    graph = gpucnn.cuda_graph(our_step(step, DEVICE))
    kept = {"slices": 0, "copies": 0}

    def look(launch: kernel.Launch, arguments: Sequence[Any]) -> None:
        for parameter, value in zip(launch.kernel.signature.parameters, arguments, strict=True):
            if parameter.name in kept and isinstance(value, np.ndarray):
                kept[parameter.name] = value.nbytes

    with kernel.standing_in(look):
        while not graph.launches:
            graph()
            if graph.reason:
                raise RuntimeError(f"{step.case} is no graph: {graph.reason}")
    host = _host_us(_without_launches(graph)) if timed else 0.0
    assert graph.memory is not None
    return Counts(step.case, graph.launches, graph.memory, **kept, host_us=host)


def _without_launches(graph: CudaGraph) -> Callable[[], Any]:
    """What a replay does on the host besides launching."""
    recorded = graph._last
    assert recorded is not None
    recorded.graph._operations.clear()  # type: ignore[attr-defined]
    return graph


def table(cases: tuple[str, ...] = CASES) -> str:
    """The Markdown table."""
    chosen = [next(s for s in STEPS if s.case == case) for case in cases]
    return "\n".join([HEAD, *(count(step).row() for step in chosen)])


@click.command()
@click.option("--write", type=click.Path(path_type=Path), help="Write the table to this file.")
def main(write: Path | None) -> None:
    """Count launches, memory and host time of training steps as graphs."""
    found = table()
    if write is not None:
        write.parent.mkdir(parents=True, exist_ok=True)
        write.write_text(f"{__doc__}\n{found}\n", encoding="utf-8")
    click.echo(found)


if __name__ == "__main__":
    main()
