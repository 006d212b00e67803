"""Whole training steps on the CPU, beside PyTorch's on the same cores.

``python -m bench.cpu_steps`` times forward, loss, backward and Adam of five networks in one
process, in turns, and prints medians. The ratio is that to the faster of PyTorch's two layouts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import rich.console
import rich.table

import gpucnn
from gpucnn.threads import single_threaded_blas, thread_count

from .passes import medians
from .rivals.rival import Gap
from .rivals.torch_rival import Torch
from .run import busy, import_patient_torch
from .steps import Step, our_step

STEPS = [
    Step("lenet5", 128, "layer"),
    Step("shapenet", 64, "typical"),
    Step("shapenet", 256, "layer"),
    Step("fashionnet", 128, "typical"),
    Step("resnet20", 128, "layer"),
]
_RIVALS = ("torch", "torch_channels_last")


def contenders(step: Step) -> list[Callable[[], Any]]:
    """A training step of gpucnn, and those of PyTorch in its two layouts."""
    theirs = {r.contender.name: r for r in _torch().step_rivals(step) if not isinstance(r, Gap)}
    calls = [theirs[name].contender.call for name in _RIVALS]
    return [our_step(step, "cpu"), *(lambda call=call: call(0) for call in calls)]


def _torch() -> Torch:
    return Torch("cpu", None, 0.0)


def matrix_products() -> str:
    """The library that multiplies matrices, and the processor it was told to be on."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return "an unknown BLAS"
    found = [
        f"{library['internal_api']} for {library.get('architecture', 'any processor')}"
        for library in threadpool_info()
        if library["user_api"] == "blas"
    ]
    return ", ".join(dict.fromkeys(found)) or "an unknown BLAS"


@click.command()
@click.option("--calls", default=2, show_default=True, help="Steps of one side in its turn.")
@click.option("--turns", default=10, show_default=True, help="Turns of each side.")
@click.argument("networks", nargs=-1)
def main(networks: tuple[str, ...], calls: int, turns: int) -> None:
    """Time training steps of gpucnn and of PyTorch on this machine's CPU.

    NETWORKS: names such as lenet5; all five by default.
    """
    known = list(dict.fromkeys(step.model for step in STEPS))
    for name in networks:
        if name not in known:
            raise click.UsageError(f"{name!r} is none of {', '.join(known)}.")
    remark = busy(thread_count())
    if remark:
        import_patient_torch()
        click.echo(f"note: {remark}; PyTorch's threads sleep while they wait", err=True)
    table = rich.table.Table(
        title=f"Training steps on the CPU, {thread_count()} threads, {matrix_products()}"
    )
    for name in ("network", "batch", "gpucnn ms", "PyTorch ms", "channels last ms", "ratio"):
        table.add_column(name, justify="left" if name == "network" else "right")
    with gpucnn.use_device("cpu"), single_threaded_blas():
        for step in STEPS:
            if networks and step.model not in networks:
                continue
            ours, *theirs = medians(contenders(step), calls, turns)
            numbers = (f"{ms:.2f}" for ms in (ours, *theirs, ours / min(theirs)))
            table.add_row(step.model, str(step.batch), *numbers)
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
