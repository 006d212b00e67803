"""Pooling and unpooling; indices are those of a real forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpucnn.ops.adaptive_pool2d import (
    AdaptivePool2dGeometry,
    adaptive_max_pool2d_forward,
    adaptive_pool2d_geometry,
)
from gpucnn.ops.avg_pool2d import avg_pool2d_geometry
from gpucnn.ops.pool2d import max_pool2d_forward, max_pool2d_geometry
from gpucnn.ops.pool3d import max_pool3d_geometry
from gpucnn.ops.unpool2d import unpool_geometry
from gpucnn.ops.window import Pool2dGeometry, unpool2d_geometry

from ..cases import ADAPTIVE_POOL2D, AVG_POOL2D, POOL2D, POOL3D, UNPOOL2D, Pool2dCase
from .problem import Arguments, Problem, Shape, draws, holding, label, normal, shaped, size, words

_OVERLAP = {"stride": 2}

TYPICAL = {
    "lenet-6-b32": Pool2dCase((32, 28, 28, 6), 2),
    "shapenet-16-b16": Pool2dCase((16, 72, 72, 16), 2),
    "overlapping-32-b8": Pool2dCase((8, 35, 35, 32), 3, _OVERLAP),
}
# Layers of LeNet, shapenet, ResNet-9 (an elementwise yardstick: 512 × 64 × 32²), AlexNet, ResNet.
LAYERS = {
    "lenet-6": Pool2dCase((128, 28, 28, 6), 2),
    "shapenet-16": Pool2dCase((256, 72, 72, 16), 2),
    "resnet9-64": Pool2dCase((512, 32, 32, 64), 2),
    "alexnet-96": Pool2dCase((128, 55, 55, 96), 3, _OVERLAP),
    "resnet-stem-64": Pool2dCase((64, 112, 112, 64), 3, {"stride": 2, "padding": 1}),
}

# What is unpooled: the decoders of U-Net and SegNet.
TYPICAL_UNPOOL = {"segnet-32-b8": Pool2dCase((8, 16, 16, 32), 2)}
LAYERS_UNPOOL = {
    "resnet9-64": Pool2dCase((512, 16, 16, 64), 2),
    "segnet-64": Pool2dCase((16, 64, 64, 64), 2),
    "segnet-512": Pool2dCase((16, 8, 8, 512), 2),
}

TYPICAL_ADAPTIVE: dict[str, tuple[tuple[int, int, int, int], Any]] = {
    "global-64-b32": ((32, 8, 8, 64), 1),
    "7x7-to-3x3-b16": ((16, 13, 13, 64), 3),
}
LAYERS_ADAPTIVE: dict[str, tuple[tuple[int, int, int, int], Any]] = {
    "resnet20-global": ((128, 8, 8, 64), 1),
    "resnet50-global": ((64, 7, 7, 2048), 1),
    "unet-global": ((32, 112, 112, 64), 1),
    "alexnet-6x6": ((128, 13, 13, 256), 6),
}

TYPICAL_3D: dict[str, Any] = {"voxels-16-b4": ((4, 16, 16, 16, 16), 2, {})}
LAYERS_3D: dict[str, Any] = {
    "c3d-64": ((4, 16, 112, 112, 64), (1, 2, 2), {}),
    "c3d-128": ((4, 16, 56, 56, 128), 2, {}),
}


def _holding(s: Pool2dGeometry) -> int:
    """The most windows that hold one cell."""
    rows, columns = (s.KH, s.SH, s.DH, s.OH), (s.KW, s.SW, s.DW, s.OW)
    return holding(*rows) * holding(*columns)


def max_pool(name: str, case: Pool2dCase, group: str) -> Iterator[Problem]:
    options = {"stride": None, "padding": 0, "dilation": 1, "edge": "drop", **case.options}
    s = max_pool2d_geometry(shaped(*case.x), case.kernel_size, **options)
    x, y = case.x, (s.N, s.OH, s.OW, s.C)

    def backward(seed: int) -> Arguments:
        return normal(seed, 1, *y), max_pool2d_forward(normal(seed, 0, *x), s)[1], s

    make, flops = draws(x, then=(s,)), size(y) * (s.KH * s.KW - 1)
    yield Problem("pool2d", "max_pool2d_forward", name, group, make, words(x, y, y), flops)
    moved, flops, terms = words(x, y, y), size(y), _holding(s)
    yield Problem("pool2d", "max_pool2d_backward", name, group, backward, moved, flops, terms)


def avg_pool(name: str, case: Pool2dCase, group: str) -> Iterator[Problem]:
    options = {"stride": None, "padding": 0, "edge": "drop", **case.options}
    g = avg_pool2d_geometry(shaped(*case.x), case.kernel_size, **options, average=True)
    s = g.windows
    x, y = case.x, (s.N, s.OH, s.OW, s.C)
    moved, flops = words(x, y), size(y) * s.KH * s.KW  # the additions and a division
    for direction, shape, terms in (("forward", x, s.KH * s.KW), ("backward", y, _holding(s))):
        primitive, make = f"avg_pool2d_{direction}", draws(shape, then=(g,))
        yield Problem("avg_pool2d", primitive, name, group, make, moved, flops, terms)


def _unpool(case: Pool2dCase) -> tuple[Pool2dGeometry, Shape, Shape]:
    options = {"stride": None, "padding": 0, "output_size": None, **case.options}
    s, _ = unpool2d_geometry(shaped(*case.x), case.kernel_size, **options)
    return s, case.x, (s.N, s.H, s.W, s.C)


def max_unpool(name: str, case: Pool2dCase, group: str) -> Iterator[Problem]:
    """Indices of the pooling that is undone; by "last", and by "sum" as in the edge cases."""
    s, x, y = _unpool(case)
    options = {"stride": None, "padding": 0, "output_size": None, **case.options}
    back = unpool_geometry(2, shaped(*case.x), case.kernel_size, **options)

    def arguments(shape: Shape, last: bool) -> Any:
        def make(seed: int) -> Arguments:
            indices = max_pool2d_forward(normal(seed, 0, *y), s)[1]
            return normal(seed, 1, *shape), indices, last, back

        return make

    moved = words(x, x, y)
    for last in (True, False) if group == "edge" else (True,):
        case_name = name if last else f"{name},overlap=sum"
        for direction, shape in (("forward", x), ("backward", y)):
            sums = direction == "forward" and not last
            flops, terms = (size(x), _holding(s)) if sums else (0, 1)
            primitive, make = f"max_unpool2d_{direction}", arguments(shape, last)
            yield Problem("unpool2d", primitive, case_name, group, make, moved, flops, terms)


def avg_unpool(name: str, case: Pool2dCase, group: str) -> Iterator[Problem]:
    s, x, y = _unpool(case)
    moved, flops = words(x, y), size(x) * s.KH * s.KW + size(y)  # additions and a division
    for direction, shape, terms in (("forward", x, _holding(s)), ("backward", y, s.KH * s.KW)):
        primitive, make = f"avg_repeat_{direction}", draws(shape, then=(s,))
        yield Problem("avg_unpool2d", primitive, name, group, make, moved, flops, terms)


def adaptive(name: str, shape: Any, output_size: Any, group: str) -> Iterator[Problem]:
    s: AdaptivePool2dGeometry = adaptive_pool2d_geometry(shaped(*shape), output_size)
    x, y = (s.N, s.H, s.W, s.C), (s.N, s.OH, s.OW, s.C)
    rows, columns = (
        [_region(i, *axis) for i in range(axis[1])] for axis in ((s.H, s.OH), (s.W, s.OW))
    )
    cells = s.N * s.C * sum(rows) * sum(columns)  # what the regions hold, all together
    holding = _overlap(s.H, s.OH) * _overlap(s.W, s.OW)

    def max_backward(seed: int) -> Arguments:
        indices = adaptive_max_pool2d_forward(normal(seed, 0, *x), s)[1]
        return normal(seed, 1, *y), indices, s

    moved, largest = words(x, y), max(rows) * max(columns)
    rest = (name, group)
    for primitive, make, size_moved, flops, terms in (
        ("adaptive_avg_pool2d_forward", draws(x, then=(s,)), moved, cells, largest),
        ("adaptive_avg_pool2d_backward", draws(y, then=(s,)), moved, cells, holding),
        ("adaptive_max_pool2d_forward", draws(x, then=(s,)), words(x, y, y), cells, 1),
        ("adaptive_max_pool2d_backward", max_backward, words(x, y, y), size(y), holding),
    ):
        yield Problem("adaptive_pool2d", primitive, *rest, make, size_moved, flops, terms)


def _region(i: int, size: int, outputs: int) -> int:
    """The positions that output i pools along an axis."""
    return -(-(i + 1) * size // outputs) - i * size // outputs


def _overlap(size: int, outputs: int) -> int:
    """The most regions that hold one position of an axis."""
    starts = [i * size // outputs for i in range(outputs)]
    ends = [start + _region(i, size, outputs) for i, start in enumerate(starts)]
    return max(sum(a <= p < b for a, b in zip(starts, ends, strict=True)) for p in range(size))


def _join(name: str, shape: Any, kernel_size: Any, options: Any, group: str) -> Iterator[Problem]:
    """What puts the poolings of a volume's planes and of its columns together."""
    given = {"stride": None, "padding": 0, "dilation": 1, "edge": "drop", **options}
    g = max_pool3d_geometry(shaped(*shape), kernel_size, **given)
    p, d = g.planes, g.depth

    def make(seed: int) -> Arguments:
        planes, inner = max_pool2d_forward(normal(seed, 0, p.N, p.H, p.W, p.C), p)
        best, outer = max_pool2d_forward(planes.reshape(d.N, d.H, d.W, d.C), d)
        return best, inner, outer, g.join

    y = g.join.output_shape
    moved = words(y, y, y, y, y, (p.N, p.OH, p.OW, p.C))
    yield Problem("pool3d", "max_pool3d_join", name, group, make, moved, size(y))


def problems() -> Iterator[Problem]:
    """Every pooling and unpooling."""
    tables: list[tuple[Any, list[Any], dict[str, Any], dict[str, Any]]] = [
        (max_pool, POOL2D, TYPICAL, LAYERS),
        (avg_pool, AVG_POOL2D, TYPICAL, LAYERS),
        (max_unpool, UNPOOL2D, TYPICAL_UNPOOL, LAYERS_UNPOOL),
        (avg_unpool, UNPOOL2D, TYPICAL_UNPOOL, LAYERS_UNPOOL),
    ]
    for make, edge, typical, layers in tables:
        for case in edge:
            yield from make(str(case), case, "edge")
        for group, table in (("typical", typical), ("layer", layers)):
            for name, case in table.items():
                yield from make(name, case, group)
    for shape, output_size in ADAPTIVE_POOL2D:
        yield from adaptive(label(shape, {"output": output_size}), shape, output_size, "edge")
    for group, regions in (("typical", TYPICAL_ADAPTIVE), ("layer", LAYERS_ADAPTIVE)):
        for name, (shape, output_size) in regions.items():
            yield from adaptive(name, shape, output_size, group)
    for volume, kernel, options in POOL3D:
        yield from _join(
            label(volume, {"kernel": kernel, **options}), volume, kernel, options, "edge"
        )
    for group, volumes in (("typical", TYPICAL_3D), ("layer", LAYERS_3D)):
        for name, row in volumes.items():
            volume, kernel, options = row
            yield from _join(name, volume, kernel, options, group)
