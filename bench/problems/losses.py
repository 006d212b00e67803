"""Softmax and losses; targets are in range, probabilities add up to one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpucnn.ops.softmax import log_softmax_forward, softmax_forward

from ..cases import ACTIVATION, CLASS_LOSS, CROSS_ENTROPY, SOFTMAX
from .problem import Arguments, Problem, Shape, draws, label, normal, size, words

# (rows, classes)
TYPICAL: dict[str, tuple[int, int]] = {"8192x10": (8192, 10), "512x200": (512, 200)}
# Digits, ImageNet, the pixels of a segmentation of 16 images of 128² into 4 classes.
LAYERS: dict[str, tuple[int, int]] = {
    "digits-128x10": (128, 10),
    "imagenet-4096x1000": (4096, 1000),
    "pixels-262144x4": (262144, 4),
}

# Boxes, images of an autoencoder, pixels of a binary segmentation.
TYPICAL_PAIRS: dict[str, Shape] = {"64-b1024": (1024, 64)}
LAYERS_PAIRS: dict[str, Shape] = {
    "boxes-512x4": (512, 4),
    "mnist-512x28x28x1": (512, 28, 28, 1),
    "pixels-16x512x512x1": (16, 512, 512, 1),
}

# name -> parameters, and the operations of the formula and of its slope
PAIR_COSTS: dict[str, tuple[tuple[float, ...], int, int]] = {
    "l1_loss": ((), 2, 1),
    "mse_loss": ((), 2, 1),
    "huber_loss": ((0.7, 1.0), 6, 3),
    "bce_with_logits_loss": ((), 8, 4),
    "hinge_loss": ((), 3, 2),
    "kl_div": ((), 3, 1),
    "kl_div_log": ((), 3, 1),
}


def softmax(name: str, x: Shape, group: str) -> Iterator[Problem]:
    def backward(forward: Callable[..., Any]) -> Callable[[int], Arguments]:
        return lambda seed: (normal(seed, 1, *x), forward(normal(seed, 0, *x)))

    for primitive, make, arrays, flops in (
        ("softmax_forward", draws(x), 2, 5),
        ("softmax_backward", backward(softmax_forward), 3, 4),
        ("log_softmax_forward", draws(x), 2, 5),
        ("log_softmax_backward", backward(log_softmax_forward), 3, 4),
    ):
        moved = arrays * words(x)
        yield Problem("softmax", primitive, name, group, make, moved, flops * size(x), x[-1])


def _labels(seed: int, rows: int, classes: int) -> np.ndarray:
    return np.random.default_rng([seed, 9]).integers(0, classes, rows, np.int32)


def _weights(seed: int, classes: int, weighted: bool) -> np.ndarray | None:
    return np.abs(normal(seed, 3, classes)) if weighted else None


def cross_entropy(
    name: str, rows: int, C: int, smoothing: float, group: str, weighted: bool, gradient: bool
) -> Iterator[Problem]:
    def indices(seed: int) -> Arguments:
        target, weight = _labels(seed, rows, C), _weights(seed, C, weighted)
        return normal(seed, 0, rows, C), target, weight, smoothing, -100, gradient

    def probabilities(seed: int) -> Arguments:
        target, weight = softmax_forward(normal(seed, 1, rows, C)), _weights(seed, C, weighted)
        return normal(seed, 0, rows, C), target, weight, smoothing, gradient

    x, losses = (rows, C), (rows, 2)
    dx, weight = x if gradient else None, (C,) if weighted else None
    each = 4 + gradient + (2 if smoothing else 0)  # max, −, exp, +; ·; and the mean of log p
    for primitive, make, target, flops in (
        ("cross_entropy_forward", indices, (rows,), each),
        ("cross_entropy_probabilities", probabilities, x, each + 2),
    ):
        moved = words(x, target, weight, losses, dx)
        yield Problem("loss", primitive, name, group, make, moved, flops * size(x) + 3 * rows, C)


def reduced(
    name: str, rows: int, C: int, smoothing: float, group: str, weighted: bool, gradient: bool
) -> Iterator[Problem]:
    """The mean or, without a gradient, the sum of the losses of rows, and the way back."""

    def forward(seed: int) -> Arguments:
        target, weight = _labels(seed, rows, C), _weights(seed, C, weighted)
        return normal(seed, 0, rows, C), target, weight, smoothing, -100, gradient, gradient

    def backward(seed: int) -> Arguments:
        return normal(seed, 0, rows, C), normal(seed, 1, 1)

    x, family = (rows, C), "cross_entropy"
    dx, weight = x if gradient else None, (C,) if weighted else None
    moved = words(x, (rows,), weight, (1,), dx)
    flops = (4 + gradient + (2 if smoothing else 0)) * size(x) + 3 * rows
    primitive = "cross_entropy_reduced"
    yield Problem(family, primitive, name, group, forward, moved, flops, rows + C)
    if gradient:
        rest = (words(x, x, (1,)), size(x), 1, (0,))
        yield Problem(family, "cross_entropy_backward", name, group, backward, *rest)


def class_loss(
    name: str, rows: int, C: int, group: str, weighted: bool, gradient: bool
) -> Iterator[Problem]:
    x, losses = (rows, C), (rows, 2)
    dx, weight = x if gradient else None, (C,) if weighted else None

    def nll(seed: int) -> Arguments:
        values, target = log_softmax_forward(normal(seed, 0, *x)), _labels(seed, rows, C)
        return values, target, _weights(seed, C, weighted), -100, gradient

    def margin(p: int) -> Callable[[int], Arguments]:
        def make(seed: int) -> Arguments:
            values, target = normal(seed, 0, *x), _labels(seed, rows, C)
            return values, target, _weights(seed, C, weighted), p, 1.0, gradient

        return make

    read = (rows,)  # one score per row
    moved = words(read, read, weight, losses, dx)
    yield Problem("class_loss", "nll_forward", name, group, nll, moved, 2 * rows)
    for p in (1, 2):
        moved, flops = words(x, read, weight, losses, dx), size(x) * (2 + p + 2 * gradient)
        for hinge in ("multi_margin_forward", "crammer_singer_forward", "one_vs_all_forward"):
            yield Problem("class_loss", hinge, f"{name},p={p}", group, margin(p), moved, flops, C)


def _means(name: str, rows: int, C: int, group: str) -> Iterator[Problem]:
    """What follows the losses of rows."""
    x = (rows, C)

    def totals(seed: int) -> np.ndarray:
        return np.array([abs(normal(seed, 2, 1)[0]) * rows, rows], np.float32)

    def scale_mean(seed: int) -> Arguments:
        return normal(seed, 0, *x), normal(seed, 1, 1), totals(seed)

    moved = words((2,), (1,))
    mean = "mean_of_rows"
    yield Problem("loss", mean, name, group, lambda seed: (totals(seed),), moved, 1)
    moved, flops = words(x, x, (1,), (2,)), size(x) + 1
    yield Problem("loss", "scale_mean", name, group, scale_mean, moved, flops)
    moved = words(x, x, (rows,))
    yield Problem("loss", "scale_rows", name, group, draws(x, (rows,)), moved, size(x))


def _pair(seed: int, loss: str, shape: Shape) -> Arguments:
    x, t = normal(seed, 0, *shape), normal(seed, 1, *shape)
    if loss == "hinge_loss":
        return x, np.where(t < 0, np.float32(-1), np.float32(1))
    if loss == "bce_with_logits_loss":
        return x, 1 / (1 + np.exp(-t))
    if loss.startswith("kl_div"):
        x = log_softmax_forward(x)
        return x, log_softmax_forward(t) if loss == "kl_div_log" else softmax_forward(t)
    return x, t


def pairs(name: str, shape: Shape, loss: str, group: str) -> Iterator[Problem]:
    n = size(shape)
    parameters, formula, slope = PAIR_COSTS[loss]

    def forward(factor: float, add: bool) -> Callable[[int], Arguments]:
        return lambda seed: (*_pair(seed, loss, shape), loss, parameters, factor, add, add)

    def backward(seed: int) -> Arguments:
        return normal(seed, 2, *shape), *_pair(seed, loss, shape), loss, parameters

    case, family = f"{loss},{name}", "regression_loss"
    primitive, moved = "regression_loss_forward", words(shape, shape, shape)
    rest = (moved + words(()), n * (formula + 2 + slope + 1), n)
    yield Problem(family, primitive, case, group, forward(1 / n, True), *rest)
    rest = (moved, n * (formula + 1), 1)
    yield Problem(family, primitive, f"{case},each", group, forward(1.0, False), *rest)
    moved, primitive = words(shape, shape, shape, shape), "regression_loss_backward"
    yield Problem(family, primitive, case, group, backward, moved, n * (slope + 1))


def _weighted_bce(name: str, shape: Shape, group: str) -> Iterator[Problem]:
    """With a weight and a pos_weight of each class."""
    n, C = size(shape), shape[-1:]

    def pair(seed: int) -> Arguments:
        weights = (abs(normal(seed, stream, *C)) for stream in (3, 4))
        return *_pair(seed, "bce_with_logits_loss", shape), *weights

    def forward(factor: float, add: bool) -> Callable[[int], Arguments]:
        return lambda seed: (*pair(seed), factor, add, add)

    def backward(seed: int) -> Arguments:
        return normal(seed, 2, *shape), *pair(seed)

    family, primitive, moved = (
        "binary_cross_entropy",
        "weighted_bce_forward",
        words(shape, shape, shape, C, C),
    )
    mean = forward(1 / n, True)
    yield Problem(family, primitive, name, group, mean, moved + words(()), 20 * n, n)
    yield Problem(family, primitive, f"{name},each", group, forward(1.0, False), moved, 13 * n)
    moved, primitive = words(shape, shape, shape, shape, C, C), "weighted_bce_backward"
    yield Problem(family, primitive, name, group, backward, moved, 9 * n)


def problems() -> Iterator[Problem]:
    """Every softmax and loss."""
    for shape in SOFTMAX:
        yield from softmax(label(shape), shape, "edge")
    for shape, smoothing in CROSS_ENTROPY:
        name, rows = label(shape, {"smoothing": smoothing}), size(shape[:-1])
        yield from cross_entropy(name, rows, shape[-1], smoothing, "edge", False, True)
        yield from reduced(name, rows, shape[-1], smoothing, "edge", False, True)
        name = f"{name},weighted,loss"
        yield from cross_entropy(name, rows, shape[-1], smoothing, "edge", True, False)
        yield from reduced(name, rows, shape[-1], smoothing, "edge", True, False)
    for shape in CLASS_LOSS:
        rows, C = size(shape[:-1]), shape[-1]
        yield from class_loss(label(shape), rows, C, "edge", False, True)
        yield from class_loss(f"{label(shape)},weighted,loss", rows, C, "edge", True, False)
        yield from _means(label(shape), rows, C, "edge")
    for group, table in (("typical", TYPICAL), ("layer", LAYERS)):
        for name, (rows, C) in table.items():
            yield from softmax(name, (rows, C), group)
            yield from cross_entropy(name, rows, C, 0.0, group, False, True)
            yield from reduced(name, rows, C, 0.0, group, False, True)
            yield from class_loss(name, rows, C, group, False, True)
            yield from _means(name, rows, C, group)
    for loss in PAIR_COSTS:
        for shape in ACTIVATION:
            yield from pairs(label(shape), shape, loss, "edge")
        for group, shapes in (("typical", TYPICAL_PAIRS), ("layer", LAYERS_PAIRS)):
            for name, pair_shape in shapes.items():
                yield from pairs(name, pair_shape, loss, group)
    for shape in ACTIVATION:
        yield from _weighted_bce(label(shape), shape, "edge")
    for group, shapes in (("typical", TYPICAL_PAIRS), ("layer", LAYERS_PAIRS)):
        for name, pair_shape in shapes.items():
            yield from _weighted_bce(name, pair_shape, group)
