"""Every kernel on small awkward shapes, for a checker of memory that watches the process.

``compute-sanitizer --tool memcheck python -m bench.sanitize`` (``make gpu-sanitize``): each array
is an allocation of its own, since a pool would hide what is read or written beside it. Training
steps come first, then one case of each primitive and variant, then the next, until time is over.
Results are compared with the definitions.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click

import gpucnn
from gpucnn.device import to_device, to_host

from .harness.arguments import map_arrays, results
from .harness.ours import implementation, variants_of
from .harness.verify import Reference, compare
from .problems import Problem, all_problems, select
from .steps import Step, expected_losses, first_values

STEPS = (Step("lenet5", 3, "edge"), Step("resnet20", 2, "edge"), Step("segnet_small", 1, "edge"))
_GRAPH_CALLS = 4  # the last one is a replay


class Call(NamedTuple):
    """A primitive's variant on the arguments of a problem."""

    problem: Problem
    variant: str

    def __str__(self) -> str:
        return f"{self.problem} {self.variant}"

    def trouble(self, device: str) -> str:
        """What is wrong with the results, or ""."""
        reference = Reference(self.problem)
        run = implementation(self.problem.primitive, self.variant, device)
        there = map_arrays(reference.arguments, lambda a: to_device(a.copy(), device))
        made = results(run(*there), there, self.problem.updated)
        return reference.compare([to_host(a) for a in made]).trouble


def calls(families: Sequence[str], device: str) -> list[Call]:
    """The edge cases: the first of every primitive and variant, then the second of each, …"""
    rounds: dict[str, list[Problem]] = {}
    for problem in select(all_problems(), families, ["edge"]):
        rounds.setdefault(problem.primitive, []).append(problem)
    found: list[tuple[int, Call]] = []
    for primitive, problems in rounds.items():
        for variant in variants_of(primitive, device):
            found += [(i, Call(p, variant)) for i, p in enumerate(problems)]
    return [call for _, call in sorted(found, key=lambda pair: pair[0])]


def step_troubles(step: Step, device: str) -> Iterator[str]:
    """What is wrong with a training step, eager and as a graph."""
    expected = [expected_losses(step)]
    for name, run in (
        ("eager", step.ours(device)),
        ("graph", gpucnn.cuda_graph(step.ours(device))),
    ):
        trouble = compare([first_values(step, run)], expected, 1, "training").trouble
        for _ in range(_GRAPH_CALLS):
            last = step.value(run())
        if not trouble and not abs(last) < 100:
            trouble = f"the loss after more steps is {last}"
        if trouble:
            yield f"{step} {name}: {trouble}"


def _without_pool() -> None:
    """Every array of CuPy is an allocation of the driver from now on."""
    import cupy

    cupy.cuda.set_allocator(None)
    cupy.cuda.set_pinned_memory_allocator(None)


@click.command()
@click.argument("families", nargs=-1)
@click.option("--minutes", default=4.0, show_default=True, help="Begin nothing more after this.")
@click.option("--device", default="cuda", type=click.Choice(["cuda", "emulated"]))
def main(families: tuple[str, ...], minutes: float, device: str) -> None:
    """Run kernels once each and compare; exits with 1 where one is wrong.

    FAMILIES: conv2d, pool2d, …; all by default, and training steps before them.
    """
    known = {p.family for p in all_problems()}
    for name in families:
        if name not in known:
            raise click.UsageError(f"{name!r} is none of {', '.join(sorted(known))}.")
    if device == "cuda":
        if not gpucnn.cuda_available():
            raise click.UsageError(gpucnn.why_cpu())
        _without_pool()
    until = time.monotonic() + 60 * minutes
    troubles: list[str] = []
    done = 0
    with gpucnn.use_device(device), gpucnn.precision("fp32"):
        for step in () if families else STEPS:
            if time.monotonic() < until:
                troubles += _guarded(lambda step=step: list(step_troubles(step, device)), step)
        found = calls(families, device)
        for call in found:
            if time.monotonic() > until:
                break
            troubles += _guarded(lambda call=call: _named(call, call.trouble(device)), call)
            done += 1
    for trouble in troubles:
        click.echo(trouble)
    click.echo(f"{done} of {len(found)} calls, {len(troubles)} wrong")
    sys.exit(int(bool(troubles)))


def _named(call: Call, trouble: str) -> list[str]:
    return [f"{call}: {trouble}"] if trouble else []


def _guarded(work: Any, what: Any) -> list[str]:
    """What ``work`` returns; an error is a trouble of ``what``."""
    try:
        found: list[str] = work()
    except Exception as error:  # the others are worth a look
        return [f"{what}: {type(error).__name__}: {error}"]
    return found


if __name__ == "__main__":
    main()
