"""Sums and maxima along axes, permutations of axes, concatenation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gpucnn.ops.reduce import axis_max

from ..cases import AXIS_REDUCE, CONCATENATE, TRANSPOSE
from .problem import Arguments, Problem, Shape, draws, label, normal, size, words

# (O, R, C) reduced over R: the bias gradient of a convolution, the mean over pixels, over classes
TYPICAL: dict[str, tuple[int, int, int]] = {
    "bias-16": (1, 16384, 16),
    "pixels-64-b32": (32, 64, 64),
}
LAYERS: dict[str, tuple[int, int, int]] = {
    "bias-resnet9-64": (1, 512 * 32 * 32, 64),
    "bias-lenet-6": (1, 128 * 28 * 28, 6),
    "pixels-resnet50": (64, 49, 2048),
    "rows-4096x1000": (4096, 1000, 1),
}
# (S, …, C): the slices of a weight gradient that blocks computed apart
TYPICAL_SLICES: dict[str, Shape] = {"16-of-16to32": (16, 32, 144)}
LAYERS_SLICES: dict[str, Shape] = {"64-of-resnet20-64": (64, 64, 576)}

_TO_NCHW, _TO_NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
TYPICAL_TRANSPOSE = {"to-nchw-16-b8": ((8, 32, 32, 16), _TO_NCHW)}
LAYERS_TRANSPOSE = {
    "to-nchw-resnet9": ((512, 32, 32, 64), _TO_NCHW),
    "to-nhwc-resnet9": ((512, 64, 32, 32), _TO_NHWC),
    "matrix-4096": ((4096, 4096), (1, 0)),
}

# The skip connections of a U-Net
TYPICAL_JOIN = {"unet-16+16-b8": ([(8 * 32 * 32, 16)] * 2, 1)}
LAYERS_JOIN = {
    "unet-64+64": ([(16 * 128 * 128, 64)] * 2, 1),
    "unet-128+128": ([(16 * 64 * 64, 128)] * 2, 1),
}


def axis_problems(name: str, shape: tuple[int, int, int], group: str) -> Iterator[Problem]:
    O, R, C = shape
    y, n = (O, C), size(shape)

    def spread_at(seed: int) -> Arguments:
        return normal(seed, 1, *y), axis_max(normal(seed, 0, *shape))[1], R, 1.0

    for primitive, case, make, moved, flops, terms in (
        ("axis_sum", name, draws(shape, then=(1 / R,)), words(shape, y), n + O * C, R),
        ("axis_max", name, draws(shape), words(shape, y, y), n, 1),
        ("spread", name, draws(y, then=(None, R, 0.5)), words(shape, y), n, 1),
        ("spread", f"{name},max", spread_at, words(shape, y, y), 0, 1),
    ):
        yield Problem("reduce", primitive, case, group, make, moved, flops, terms)


def columns(name: str, rows: int, C: int, group: str) -> Iterator[Problem]:
    moved = words((rows, C), (C,))
    yield Problem("reduce", "column_sum", name, group, draws((rows, C)), moved, rows * C, rows)


def slices(name: str, shape: Shape, bias: bool, group: str) -> Iterator[Problem]:
    b = shape[-1:] if bias else None
    moved, flops = words(shape, shape[1:], b), size(shape)
    make, terms = draws(shape, b), shape[0] + bias
    yield Problem("reduce", "sum_slices", name, group, make, moved, flops, terms)


def _transpose(name: str, shape: Shape, axes: tuple[int, ...], group: str) -> Iterator[Problem]:
    make, moved = draws(shape, then=(axes,)), words(shape, shape)
    yield Problem("transpose", "transpose_forward", name, group, make, moved, 0)


def _join(name: str, shapes: Sequence[Shape], axis: int, group: str) -> Iterator[Problem]:
    at = axis % len(shapes[0])
    rows = size(shapes[0][:at])
    widths = [size(shape[at:]) for shape in shapes]

    def join(seed: int) -> Arguments:
        return ([normal(seed, i, rows, width) for i, width in enumerate(widths)],)

    y, last = (rows, sum(widths)), widths[-1]
    cut = draws(y, then=(sum(widths) - last, last))
    moved, family = words(y, y), "concatenate"
    yield Problem(family, "join_columns", name, group, join, moved, 0)
    moved = words((rows, last), (rows, last))  # the columns that are cut out
    yield Problem(family, "cut_columns", name, group, cut, moved, 0)


def problems() -> Iterator[Problem]:
    """Every reduction and every operator that only moves numbers."""
    for O, R, C in AXIS_REDUCE:
        yield from axis_problems(label((O, R, C)), (O, R, C), "edge")
        yield from columns(label((O * R, C)), O * R, C, "edge")
        yield from slices(label((R, O, C), "bias"), (R, O, C), True, "edge")
        yield from slices(label((R, O, C)), (R, O, C), False, "edge")
    for shape, axes in TRANSPOSE:
        yield from _transpose(f"{label(shape)}->{label(axes)}", shape, axes, "edge")
    for shapes, axis in CONCATENATE:
        name = "+".join(map(label, shapes)) + f",axis={axis}"
        yield from _join(name, shapes, axis, "edge")
    for group, sums, stacks, moves, joins in (
        ("typical", TYPICAL, TYPICAL_SLICES, TYPICAL_TRANSPOSE, TYPICAL_JOIN),
        ("layer", LAYERS, LAYERS_SLICES, LAYERS_TRANSPOSE, LAYERS_JOIN),
    ):
        for name, axes_of in sums.items():
            yield from axis_problems(name, axes_of, group)
            yield from columns(name, axes_of[0] * axes_of[1], axes_of[2], group)
        for name, s in stacks.items():
            yield from slices(name, s, False, group)
        for name, (s, axes) in moves.items():
            yield from _transpose(name, s, axes, group)
        for name, (parts, axis) in joins.items():
            yield from _join(name, parts, axis, group)
