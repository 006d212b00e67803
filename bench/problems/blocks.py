"""Fused blocks of batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpucnn.ops.batch_norm_block import batch_norm_block_forward
from gpucnn.ops.batch_norm_block_pool import batch_norm_block_pool_forward, block_pool_geometry

from ..cases import BATCH_NORM_BLOCK, BatchNormBlockCase
from .problem import Arguments, Problem, Shape, normal, shaped, size, words

MOMENTUM, EPS = 0.1, 1e-5

TYPICAL = {
    "16-b16": BatchNormBlockCase((16, 32, 32, 16)),
    "16-add-b16": BatchNormBlockCase((16, 32, 32, 16), True),
    "16-pool-b16": BatchNormBlockCase((16, 32, 32, 16), False, {"kernel_size": 2}),
}
# ResNet-20's first stage; ResNet-9's first pooled block; the stem of ResNet-50, 64 images.
LAYERS = {
    "resnet20-16": BatchNormBlockCase((128, 32, 32, 16)),
    "resnet20-16-add": BatchNormBlockCase((128, 32, 32, 16), True),
    "resnet9-128-pool": BatchNormBlockCase((512, 32, 32, 128), False, {"kernel_size": 2}),
    "resnet50-stem": BatchNormBlockCase(
        (64, 112, 112, 64), False, {"kernel_size": 3, "stride": 2, "padding": 1}
    ),
}
# x and the parts of its statistics: rows of a tile of a convolution's output


def slope_of(options: dict[str, Any]) -> float:
    """The slope where z <= 0."""
    given = float(options.get("negative_slope", 0.01))
    return {"relu": 0.0, "none": 1.0}.get(options.get("activation", "relu"), given)


def geometry_of(case: BatchNormBlockCase) -> Any:
    """The pooling of a case, or None."""
    size, *rest = (case.options.get(k) for k in ("kernel_size", "stride", "padding", "edge"))
    if size is None:
        return None
    stride, padding, edge = rest
    return block_pool_geometry(shaped(*case.x), size, stride, padding or 0, edge or "drop")


def block(name: str, case: BatchNormBlockCase, group: str) -> Iterator[Problem]:
    x, c = case.x, (case.x[-1],)
    n, rows, slope, s = size(x), size(x) // x[-1], slope_of(case.options), geometry_of(case)
    out = x if s is None else (s.N, s.OH, s.OW, s.C)
    keep_bits = s is None and case.residual and slope != 1
    route = size(out) if s is not None else rows * -(-x[-1] // 8) if keep_bits else 0

    def per_channel(seed: int) -> Arguments:
        """gamma, beta, no given mean, delta, invstd."""
        gamma, invstd = 1 + 0.1 * normal(seed, 1, *c), 0.5 + normal(seed, 4, *c) ** 2
        return gamma.astype("f4"), normal(seed, 2, *c), None, normal(seed, 3, *c), invstd

    def forward(seed: int) -> Arguments:
        residual = normal(seed, 5, *x) if case.residual else None
        last = keep_bits if s is None else s
        return normal(seed, 0, *x), residual, *per_channel(seed), 0.0, slope, last

    def backward(seed: int) -> Arguments:
        arguments = forward(seed)
        made = batch_norm_block_forward if s is None else batch_norm_block_pool_forward
        gamma, beta, *rest = per_channel(seed)
        first = (normal(seed, 6, *out), arguments[0], made(*arguments)[1], gamma)
        last = (0.0, slope, case.residual, True)
        return (*first, beta, *rest, *last) if s is None else (*first, *rest, *last, s)

    added = x if case.residual else None
    window = 0 if s is None else size(out) * s.KH * s.KW
    family = "batch_norm_block" if s is None else "batch_norm_block_pool"
    for direction, make, moved, flops in (
        ("forward", forward, words(x, added, out, *(c,) * 4), (4 + case.residual) * n + window),
        (
            "backward",
            backward,
            words(out, x, x, added, *(c,) * (6 if s is None else 5)),
            10 * n,
        ),
    ):
        rest = (moved + route, flops, rows if direction == "backward" else 1)
        yield Problem(family, f"{family}_{direction}", name, group, make, *rest)


def statistics(name: str, x: Shape, group: str) -> Iterator[Problem]:
    c, rows = (x[-1],), size(x) // x[-1]

    def make(seed: int) -> Arguments:
        return normal(seed, 0, *x), *running(seed, x[-1]), MOMENTUM, EPS

    moved, family = words(x, *(c,) * 6), "batch_norm_block"
    yield Problem(
        family, "batch_norm_statistics", name, group, make, moved, 4 * size(x), rows, (1, 2)
    )


def running(seed: int, C: int) -> tuple[np.ndarray, np.ndarray]:
    """A running mean and variance."""
    return normal(seed, 1, C), 0.5 + normal(seed, 2, C) ** 2


def problems() -> Iterator[Problem]:
    """Every fused block."""
    for case in BATCH_NORM_BLOCK:
        yield from block(str(case), case, "edge")
    for group, cases in (("typical", TYPICAL), ("layer", LAYERS)):
        for name, case in cases.items():
            yield from block(name, case, group)
    yield from statistics("3x5x7x3", (3, 5, 7, 3), "edge")
    yield from statistics("16-b16", (16, 32, 32, 16), "typical")
    yield from statistics("resnet20-16", (128, 32, 32, 16), "layer")
