"""Batch, group, layer and local response normalisation; statistics are those of the same x."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpucnn.ops.batch_norm import batch_norm_sums, batch_norm_training
from gpucnn.ops.group_norm import group_norm_forward
from gpucnn.ops.local_response_norm import local_response_norm_forward, local_response_norm_window

from ..cases import BATCH_NORM, GROUP_NORM, LOCAL_RESPONSE_NORM, LocalResponseNormCase
from .problem import Arguments, Problem, Shape, draws, label, normal, size, words

MOMENTUM, EPS = 0.1, 1e-5
CHUNK = 128  # rows of a tile, whose kernel leaves partial sums behind

TYPICAL: dict[str, Shape] = {"16-b16": (16, 32, 32, 16), "dense-512-b256": (256, 512)}
# ResNet-9's first (an elementwise yardstick: 512 × 64 × 32²), ResNet-20, shapenet, ResNet-50.
LAYERS: dict[str, Shape] = {
    "resnet9-64": (512, 32, 32, 64),
    "resnet20-16": (128, 32, 32, 16),
    "shapenet-16": (256, 72, 72, 16),
    "resnet50-2048": (64, 7, 7, 2048),
}

TYPICAL_GROUPS: dict[str, tuple[Shape, int]] = {
    "32-in-8-b8": ((8, 16, 16, 32), 8),
    "layer-96": ((2048, 96), 1),
}
# A U-Net of a diffusion model; ConvNeXt-T's first stage, 16 images.
LAYERS_GROUPS: dict[str, tuple[Shape, int]] = {
    "unet-128-in-32": ((16, 64, 64, 128), 32),
    "convnext-layer-96": ((16 * 56 * 56, 96), 1),
}

_ALEXNET = {"convention": "alexnet"}
TYPICAL_LOCAL = {"32-b8": LocalResponseNormCase((8, 16, 16, 32), 5, _ALEXNET)}
LAYERS_LOCAL = {
    "alexnet-96": LocalResponseNormCase((128, 27, 27, 96), 5, _ALEXNET),
    "alexnet-256": LocalResponseNormCase((128, 13, 13, 256), 5, _ALEXNET),
    "within-32": LocalResponseNormCase((128, 32, 32, 32), 3, {"region": "within"}),
}


def batch_norm(name: str, x: Shape, group: str) -> Iterator[Problem]:
    c = (x[-1],)
    n, rows = size(x), size(x) // x[-1]

    def parameters(seed: int) -> Arguments:
        """gamma, beta, running mean and variance."""
        gamma, variance = 1 + 0.1 * normal(seed, 1, *c), 0.5 + normal(seed, 4, *c) ** 2
        return gamma.astype("f4"), normal(seed, 2, *c), normal(seed, 3, *c), variance

    def training(seed: int) -> Arguments:
        return normal(seed, 0, *x), *parameters(seed), MOMENTUM, EPS

    def inference(seed: int) -> Arguments:
        return normal(seed, 0, *x), *parameters(seed), EPS

    def sums(seed: int) -> Arguments:
        _, delta, invstd = batch_norm_training(*training(seed))
        return normal(seed, 5, *x), normal(seed, 0, *x), None, delta, invstd

    def fixed_sums(seed: int) -> Arguments:
        _, _, mean, variance = parameters(seed)
        invstd = (1 / (variance + EPS) ** 0.5).astype("f4")
        return normal(seed, 5, *x), normal(seed, 0, *x), mean, None, invstd

    def data_gradient(seed: int) -> Arguments:
        dy, values, _, delta, invstd = sums(seed)
        gradients = batch_norm_sums(dy, values, None, delta, invstd)
        return dy, values, parameters(seed)[0], delta, invstd, *gradients

    def fixed_gradient(seed: int) -> Arguments:
        return normal(seed, 5, *x), parameters(seed)[0], fixed_sums(seed)[-1]

    def apply(seed: int) -> Arguments:
        gamma, beta, *_ = parameters(seed)
        _, delta, invstd = batch_norm_training(*training(seed))
        return normal(seed, 0, *x), gamma, beta, delta, invstd

    running = (c, c) * 2  # read and written
    for primitive, case, make, moved, flops, terms, updated in (
        ("training", name, training, words(x, x, c, c, c, c, *running), 7, rows, (3, 4)),
        ("inference", name, inference, words(x, x, c, c, c, c, c), 3, 1, ()),
        ("sums", name, sums, words(x, x, c, c, c, c), 4, rows, ()),
        ("sums", f"{name},fixed", fixed_sums, words(x, x, c, c, c, c), 4, rows, ()),
        ("data_gradient", name, data_gradient, words(x, x, x, c, c, c, c, c), 5, 1, ()),
        ("fixed_gradient", name, fixed_gradient, words(x, x, c, c), 1, 1, ()),
    ):
        rest = (moved, flops * n, terms, updated)
        yield Problem("batch_norm", f"batch_norm_{primitive}", case, group, make, *rest)
    chunks = -(-rows // CHUNK)

    def moments(seed: int) -> Arguments:
        values = normal(seed, 0, *x).reshape(rows, -1).astype("f8")
        parts = [values[i : i + CHUNK] for i in range(0, rows, CHUNK)]
        found = [(np.full(c, len(p)), p[0], (p - p[0]).mean(0), p.var(0) * len(p)) for p in parts]
        made = np.stack([np.stack(planes) for planes in found], axis=-1)
        _, _, mean, variance = parameters(seed)
        return made.astype("f4"), mean, variance, MOMENTUM, EPS

    for primitive, make, moved, terms, updated in (
        ("join_moments", moments, words((4, *c, chunks), *running, c, c), rows, (1, 2)),
        ("apply", apply, words(x, x, c, c, c, c), 1, ()),
    ):
        rest = (moved, 3 * n, terms, updated)
        yield Problem("batch_norm_partials", f"batch_norm_{primitive}", name, group, make, *rest)


def group_norm(name: str, shape: Shape, groups: int, group: str) -> Iterator[Problem]:
    N, P, C = shape[0], size(shape[1:-1]), shape[-1]
    x, c, statistics = (N, P, C), (C,), (N, groups, 3)

    def forward(seed: int) -> Arguments:
        arrays = (normal(seed, i, *s) for i, s in enumerate((x, c, c)))
        return *arrays, groups, EPS

    def data_gradient(seed: int) -> Arguments:
        values, weight, *_ = arguments = forward(seed)
        return normal(seed, 3, *x), values, weight, group_norm_forward(*arguments)[1]

    def sums(seed: int) -> Arguments:
        dy, values, _, found = data_gradient(seed)
        return dy, values, found

    cells = P * C // groups
    for primitive, make, moved, flops, terms in (
        ("forward", forward, words(x, x, c, c, statistics), 7, cells),
        ("data_gradient", data_gradient, words(x, x, x, c, statistics), 9, cells),
        ("sums", sums, words(x, x, statistics, c, c), 5, N * P),
    ):
        rest = (moved, flops * size(x), terms)
        yield Problem("group_norm", f"group_norm_{primitive}", name, group, make, *rest)


def local_response_norm(name: str, case: LocalResponseNormCase, group: str) -> Iterator[Problem]:
    options = {"alpha": None, "beta": None, "k": None, "region": "across", "convention": "torch"}
    window = local_response_norm_window(case.size, **{**options, **case.options})
    x, n = case.x, size(case.x)
    wide = window.before + window.after + 1
    sides = x[1:3] if window.region == "within" else x[-1:]
    cells = size([min(wide, side) for side in sides])

    def backward(seed: int) -> Arguments:
        values = normal(seed, 0, *x)
        y, s = local_response_norm_forward(values, window)
        return normal(seed, 1, *x), values, y, s, window

    forward = draws(x, then=(window,))
    for direction, make, arrays, flops in (
        ("forward", forward, 3, cells + 5),  # a square, the sum, a·Σ + k, a power, a division
        ("backward", backward, 5, cells + 8),
    ):
        rest = (words(x) * arrays, flops * n, cells)
        primitive = f"local_response_norm_{direction}"
        yield Problem("local_response_norm", primitive, name, group, make, *rest)


def problems() -> Iterator[Problem]:
    """Every normalisation."""
    for shape in BATCH_NORM:
        yield from batch_norm(label(shape), shape, "edge")
    for shape, groups in GROUP_NORM:
        yield from group_norm(label(shape, {"groups": groups}), shape, groups, "edge")
    for case in LOCAL_RESPONSE_NORM:
        yield from local_response_norm(str(case), case, "edge")
    for group, batch, several, local in (
        ("typical", TYPICAL, TYPICAL_GROUPS, TYPICAL_LOCAL),
        ("layer", LAYERS, LAYERS_GROUPS, LAYERS_LOCAL),
    ):
        for name, x in batch.items():
            yield from batch_norm(name, x, group)
        for name, (x, groups) in several.items():
            yield from group_norm(name, x, groups, group)
        for name, case in local.items():
            yield from local_response_norm(name, case, group)
