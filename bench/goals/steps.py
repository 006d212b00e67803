"""Stages that time whole training steps and parts of them, ours and rivals' in turns."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..problems import Problem, all_problems
from ..run import Bench, Options, Task
from ..steps import GRAPH, STEPS, Step
from .journal import Journal
from .parts import BLOCKS, UPDATES

# What the goals name, the most telling first; the convolutions of the larger networks in bf16.
PRECISIONS = {
    "lenet5-b128": "tf32",
    "resnet20-b128": "bf16",
    "resnet9-b512": "bf16",
    "shapenet-b256": "tf32",
    "unet_small-b16": "tf32",
    "segnet_small-b16": "tf32",
}
LOSSES = ("digits-128x10", "imagenet-4096x1000", "pixels-262144x4")
_SECONDS = 0.25  # of samples of each contender

# Bound by memory, with more bytes than any L2 cache holds, but for a few; the last take the host
# seconds to check.
COPYING = {
    "relu_forward": "resnet9-64",
    "relu_backward": "resnet9-64",
    "batch_norm_training": "resnet9-64",
    "batch_norm_sums": "resnet9-64",
    "batch_norm_data_gradient": "resnet9-64",
    "batch_norm_apply": "resnet9-64",
    "max_pool2d_forward": "resnet9-64",
    "max_pool2d_backward": "resnet9-64",
    "max_unpool2d_forward": "resnet9-64",
    "max_unpool2d_backward": "resnet9-64",
    "avg_pool2d_forward": "resnet9-64",
    "avg_repeat_forward": "resnet9-64",
    "dropout_forward": "resnet9-64",
    "add_forward": "resnet9-64",
    "adam_step": "10M",
    "local_response_norm_forward": "alexnet-96",
    "local_response_norm_backward": "alexnet-96",
    "batch_norm_block_forward": "resnet20-16",
    "batch_norm_block_backward": "resnet20-16",
    "batch_norm_block_pool_forward": "resnet9-128-pool",
    "batch_norm_block_pool_backward": "resnet9-128-pool",
}


def networks() -> list[Task]:
    """The steps of the goals, in their precisions."""
    by_case = {s.case: s for s in STEPS}
    return [(by_case[case], precision) for case, precision in PRECISIONS.items()]


def compiled_networks() -> list[Task]:
    """First those whose goals name a compiled rival."""
    named = ("resnet9-b512", "resnet20-b128")
    return sorted(networks(), key=lambda task: task[0].case not in named)


def parts() -> list[Task]:
    """Blocks, losses and updates."""
    losses = [
        p
        for p in all_problems()
        if p.primitive == "cross_entropy_reduced" and p.case in LOSSES and p.group == "layer"
    ]
    return [(p, "fp32") for p in losses] + [(s, "tf32") for s in (*BLOCKS, *UPDATES)]


def copying() -> list[Task]:
    """What must run at the speed of a copy."""
    known = {(p.primitive, p.case): p for p in all_problems()}
    return [(known[key], "fp32") for key in COPYING.items()]


def counted_kernels() -> list[Problem]:
    """What is bound by memory, at the sizes of small networks."""
    wanted = [*COPYING, "cross_entropy_reduced"]
    typical = {p.primitive: p for p in reversed(all_problems()) if p.group == "typical"}
    return [typical[name] for name in wanted]


def measure(
    journal: Journal,
    tasks: Sequence[Task],
    until: float,
    *,
    against: tuple[str, ...] = ("torch",),
    compile_seconds: float = 0.0,
    variants: tuple[str, ...] = (),
) -> None:
    """Measure tasks until a moment of ``time.monotonic``; lines are written after each."""
    options = Options(
        device="cuda",
        against=against,
        seconds=_SECONDS,
        compile_seconds=compile_seconds,
        variants=variants,
    )
    bench = Bench(options)
    journal.machine(bench.results.machine)
    said = 0
    for number, (problem, precision) in enumerate(tasks):
        if time.monotonic() > until:
            late = ", ".join(str(p) for p, _ in tasks[number:])
            journal.note(f"no time was left for {late}")
            return
        journal.rows(bench.measure([(problem, precision)], lambda *_: None).rows)
        bench.results.rows.clear()
        gaps = list(bench.results.gaps)
        for name, reason in gaps[said:]:
            journal.note(f"{problem}, {name}: {reason}")
        said = len(gaps)


def only(case: str) -> Step:
    """A step by its case, of the goals' networks."""
    return next(s for s in STEPS if s.case == case)


__all__ = ["GRAPH", "compiled_networks", "copying", "measure", "networks", "only", "parts"]
