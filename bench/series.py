"""The same operator with longer and longer sums behind each output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from .cases import Conv2dCase, ConvCase, LinearCase, LocalResponseNormCase, Pool2dCase
from .problems import (
    Problem,
    convolution,
    elements,
    linear,
    losses,
    normalization,
    optimizers,
    pooling,
    reduction,
)

GROUP = "series"
ROWS = 16  # outputs beside each other, so that errors can be averaged
_SQUARES = (2, 4, 8, 16, 32, 64)  # sides of windows: 4 … 4096 terms

Build = Callable[[str, int], Iterable[Problem]]


def _conv(name: str, C: int, OC: int, N: int) -> Iterator[Problem]:
    case = Conv2dCase((N, 2, 2, C), (OC, 1, 1, C), bias=False)
    return convolution.passes("conv2d", 2, name, case, GROUP)


def _transposed(name: str, n: int) -> Iterator[Problem]:
    return convolution.transposed(name, ConvCase((4, 2, 2, n), (n, 1, 1, 4), bias=False), GROUP)


def _local(name: str, C: int, OC: int, N: int) -> Iterator[Problem]:
    return convolution.local(name, ConvCase((N, 2, 2, C), (OC, 1, 1, C), bias=False), GROUP)


def _linear(name: str, M: int, I: int, O: int) -> Iterator[Problem]:
    return linear.passes(name, LinearCase(M, I, O, bias=False), GROUP)


def _window(make: Any, name: str, side: int) -> Iterator[Problem]:
    problems: Iterator[Problem] = make(name, Pool2dCase((2, side, side, 8), side), GROUP)
    return problems


def _window_back(name: str, side: int) -> Iterator[Problem]:
    """What is unpooled is one cell, whose window has side × side."""
    return pooling.avg_unpool(name, Pool2dCase((2, 1, 1, 8), side), GROUP)


def _across(name: str, n: int) -> Iterator[Problem]:
    case = LocalResponseNormCase((4, n), n if n % 2 else n + 1, {"alpha": 1.0})
    return normalization.local_response_norm(name, case, GROUP)


def _entropy(name: str, n: int) -> Iterator[Problem]:
    return losses.cross_entropy(name, ROWS, n, 0.0, GROUP, False, True)


def _classes(name: str, n: int) -> Iterator[Problem]:
    return losses.class_loss(name, ROWS, n, GROUP, False, True)


def _loss(name: str, n: int) -> Iterator[Problem]:
    return losses.pairs(name, (n,), "mse_loss", GROUP)


# primitive -> problems by the length of the sum behind an output
_BY_LENGTH: dict[str, Build] = {
    "conv2d_forward": lambda name, n: _conv(name, n, 8, 4),
    "conv2d_data_gradient": lambda name, n: _conv(name, 8, n, 4),
    "conv2d_weight_gradient": lambda name, n: _conv(name, 8, 8, max(1, n // 4)),
    "conv_transpose2d_forward": _transposed,
    "locally_connected2d_forward": lambda name, n: _local(name, n, 4, 4),
    "locally_connected2d_data_gradient": lambda name, n: _local(name, 4, n, 4),
    "locally_connected2d_weight_gradient": lambda name, n: _local(name, 4, 4, n),
    "linear_forward": lambda name, n: _linear(name, 8, n, ROWS),
    "linear_data_gradient": lambda name, n: _linear(name, 8, ROWS, n),
    "linear_weight_gradient": lambda name, n: _linear(name, n, 8, ROWS),
    "batch_norm_training": lambda name, n: normalization.batch_norm(name, (n, 8), GROUP),
    "batch_norm_sums": lambda name, n: normalization.batch_norm(name, (n, 8), GROUP),
    "group_norm_forward": lambda name, n: normalization.group_norm(name, (8, n), 1, GROUP),
    "group_norm_data_gradient": lambda name, n: normalization.group_norm(name, (8, n), 1, GROUP),
    "group_norm_sums": lambda name, n: normalization.group_norm(name, (n, 8), 1, GROUP),
    "local_response_norm_forward": _across,
    "local_response_norm_backward": _across,
    "softmax_forward": lambda name, n: losses.softmax(name, (ROWS, n), GROUP),
    "softmax_backward": lambda name, n: losses.softmax(name, (ROWS, n), GROUP),
    "log_softmax_forward": lambda name, n: losses.softmax(name, (ROWS, n), GROUP),
    "log_softmax_backward": lambda name, n: losses.softmax(name, (ROWS, n), GROUP),
    "cross_entropy_forward": _entropy,
    "cross_entropy_probabilities": _entropy,
    "multi_margin_forward": _classes,
    "regression_loss_forward": _loss,
    "prelu_backward": lambda name, n: elements.prelu(name, (n, 8), 8, GROUP),
    "column_sum": lambda name, n: reduction.columns(name, n, ROWS, GROUP),
    "axis_sum": lambda name, n: reduction.axis_problems(name, (4, n, 8), GROUP),
    "sum_slices": lambda name, n: reduction.slices(name, (n, ROWS), False, GROUP),
    "clip_norm": lambda name, n: optimizers.clip(name, [n], GROUP),
}

# primitive -> problems by the side of a square window
_BY_SIDE: dict[str, Build] = {
    "avg_pool2d_forward": partial(_window, pooling.avg_pool),
    "avg_repeat_backward": _window_back,
    "adaptive_avg_pool2d_forward": lambda name, side: pooling.adaptive(
        name, (2, side, side, 8), 1, GROUP
    ),
}


def series(primitive: str, longest: int) -> list[Problem]:
    """Problems of a primitive whose ``terms`` grow by factors of 4, to about ``longest``.

    Empty where no sum stands behind an output, or none whose length can be chosen.
    """
    if primitive in _BY_SIDE:
        build, sizes = _BY_SIDE[primitive], [s for s in _SQUARES if 16 <= s * s <= longest]
    elif primitive in _BY_LENGTH:
        build = _BY_LENGTH[primitive]
        sizes = [n for n in (4**k for k in range(2, 12)) if n <= longest]
    else:
        return []
    found = []
    for n in sizes:
        problems = build(f"terms-{n}", n)
        found.append(next(p for p in problems if p.primitive == primitive))
    return found
