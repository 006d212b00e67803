"""Optimizer steps and gradient clipping, which update flat buffers in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpucnn.ops.adam import AdamStep

from ..cases import CLIP, OPTIMIZER
from .problem import Arguments, Problem, label, normal, words

TYPICAL = {"100k": 100_000}
LAYERS = {"1M": 1_000_000, "10M": 10_000_000}

ADAM = AdamStep(1e-3, 0.9, 0.999, 1e-8, 1e-2, True, 10)
ADAM_L2 = AdamStep(1e-3, 0.9, 0.999, 1e-8, 1e-2, False, 10)


class Step(NamedTuple):
    """One step: what it takes and its operations per element.

    buffers: p parameters, g gradients (for ema the parameters), m a mean, v a mean of squares
    (>= 1), - an absent one; all but g are updated. numbers: what the primitive takes of rates and
    decays, an array. An exponential average counts 3 operations, that of a square 4,
    g + weight_decay·p counts 2.
    """

    primitive: str
    variant: str
    buffers: str
    numbers: Sequence[float]
    flops: int


STEPS = [
    Step("sgd_step", "", "pmg", (0.1, 0.9, 1e-4, 0.0), 6),
    Step("sgd_step", "nesterov", "pmg", (0.1, 0.9, 1e-4, 1.0), 8),
    Step("sgd_step", "plain", "p-g", (0.1, 0.0, 0.0, 0.0), 4),
    Step("adagrad_step", "", "pvg", (0.01, 1e-10, 1e-4), 9),
    Step("adadelta_step", "", "pvvg", (1.0, 0.9, 1e-6, 1e-4), 18),
    Step("rmsprop_step", "", "pv--g", (0.01, 0.99, 1e-8, 0.0, 1e-4, 0.0), 11),
    Step("rmsprop_step", "centered", "pvmmg", (0.01, 0.99, 1e-8, 0.9, 1e-4, 1.0), 19),
    Step("lion_step", "", "pmg", (1e-4, 0.9, 0.99, 1 - 1e-6), 10),
    Step("ema_step", "", "mg", (1 - 0.999,), 3),
    Step("adam_step", "", "pmv-g", ADAM.adam(), 16),
    Step("adam_step", "amsgrad", "pmvvg", ADAM_L2.adam(), 17),
    Step("nadam_step", "", "pmvg", ADAM_L2.nadam(1e-3, 9e-3), 18),
    Step("adamax_step", "", "pmvg", ADAM_L2.adamax(), 12),
]


def _buffer(kind: str, seed: int, at: int, n: int) -> np.ndarray | None:
    if kind == "-":
        return None
    values: np.ndarray = normal(seed, at, n)
    if kind == "v":  # larger than any squared mean: their difference, a variance, stays above 0
        np.square(values, out=values)
        values += 1
    elif kind == "m":
        values *= 0.1
    return values


def _step(name: str, n: int, group: str, step: Step) -> Problem:
    def make(seed: int) -> Arguments:
        buffers = (_buffer(kind, seed, at, n) for at, kind in enumerate(step.buffers))
        return *buffers, np.array(step.numbers, np.float32)

    updated = tuple(i for i, kind in enumerate(step.buffers) if kind not in "-g")
    family = "adam" if step.primitive.startswith(("adam", "nadam")) else "optimizer"
    moved = (len(updated) + len(step.buffers.replace("-", ""))) * words((n,))
    moved += words((len(step.numbers),))
    rest = (moved, step.flops * n, 1, updated)
    return Problem(family, step.primitive, label(name, step.variant), group, make, *rest)


def clip(name: str, sizes: Sequence[int], group: str) -> Iterator[Problem]:
    n = sum(sizes)

    def gradients(seed: int) -> list[np.ndarray]:
        return [normal(seed, i, size) for i, size in enumerate(sizes)]

    moved = words((n,), (n,))
    for primitive, limit, extra, flops, terms in (
        ("clip_norm", 1.0, words(()), 3, n),
        ("clip_value", 0.5, 0, 2, 1),
    ):
        rest = (moved + extra, flops * n, terms, (0,))

        def make(seed: int, limit: float = limit) -> Arguments:
            return gradients(seed), limit

        yield Problem("clip", primitive, name, group, make, *rest)


def problems() -> Iterator[Problem]:
    """Every optimizer step, and clipping of several buffers together."""
    rows = [(str(n), n, "edge") for n in OPTIMIZER]
    rows += [(name, n, "typical") for name, n in TYPICAL.items()]
    rows += [(name, n, "layer") for name, n in LAYERS.items()]
    for row in rows:
        for step in STEPS:
            yield _step(*row, step)
    for sizes in CLIP:
        name = label(sizes) if len(sizes) < 9 else f"{len(sizes)}buffers"
        yield from clip(name, sizes, "edge")
    for name, n, group in rows[len(OPTIMIZER) :]:
        yield from clip(name, [n], group)
