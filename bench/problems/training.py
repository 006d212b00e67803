"""A whole training step of LeNet-5 as one primitive."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from gpucnn.ops.lenet5_step import IMAGE, parameter_offsets, parameter_shapes
from gpucnn.ops.loss import IGNORE_INDEX

from ..cases import LENET5_STEP
from .optimizers import ADAM
from .problem import Arguments, Problem, label, normal, words

# Multiply-adds of an image by layer, but for the last, and values that pass a tanh: a tanh and 4
# operations for its gradient each.
_PRODUCTS = (784 * 6 * 25, 100 * 16 * 150, 120 * 400, 84 * 120)
_CURVED = 784 * 6 + 100 * 16 + 120 + 84


def _flat(seed: int, stream: int, classes: int, scale: float) -> np.ndarray:
    """A flat buffer with zeros between the parameters."""
    flat = np.zeros(parameter_offsets(classes)[-1], np.float32)
    drawn = normal(seed, stream, flat.size)
    for start, shape in zip(parameter_offsets(classes), parameter_shapes(classes), strict=False):
        stretch = slice(start, start + math.prod(shape))
        flat[stretch] = scale * drawn[stretch]
    return flat


def _step(n: int, classes: int, group: str) -> Problem:
    def make(seed: int) -> Arguments:
        p, m, v = (_flat(seed, i, classes, scale) for i, scale in enumerate((0.05, 0.01, 1.0)))
        labels = np.random.default_rng([seed, 3]).integers(0, classes, n).astype(np.int32)
        batch = normal(seed, 4, n, *IMAGE), labels, np.array(ADAM.adam(), np.float32)
        return p, m, v * v, *batch, np.zeros(1, np.int32), classes, IGNORE_INDEX

    size = parameter_offsets(classes)[-1]
    moved = 6 * words((size,)) + words((n, *IMAGE), (n,), (7,), (1,), (), (n, classes))
    products = 3 * (sum(_PRODUCTS) + 84 * classes) - _PRODUCTS[0]
    parameters = sum(math.prod(shape) for shape in parameter_shapes(classes))
    flops = n * (2 * products + 5 * _CURVED + 6 * classes) + 16 * parameters
    case = label({"n": n, "classes": classes})
    return Problem(
        "lenet5_step", "lenet5_step", case, group, make, moved, flops, 784 * n, updated=(0, 1, 2)
    )


def problems() -> Iterator[Problem]:
    """Odd batches, and those of a training run."""
    for n, classes in LENET5_STEP:
        yield _step(n, classes, "edge")
    yield _step(8, 10, "typical")
    for n in (128, 512):
        yield _step(n, 10, "layer")
