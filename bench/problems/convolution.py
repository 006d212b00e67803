"""Convolutions: the shared table, and layers of known networks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpucnn.ops.conv2d import conv2d_geometry
from gpucnn.ops.conv_geometry import ConvGeometry

from ..cases import CONV2D, Conv2dCase
from .problem import Problem, normal, words

_SAME3 = {"padding": 1}

# Layers of LeNet, shapenet, ResNet-20, ResNet-9, VGG, U-Net and MobileNet at training batch sizes.
LAYERS = {
    "A-lenet-1to6": Conv2dCase((128, 28, 28, 1), (6, 5, 5, 1), {"padding": 2}),
    "B-lenet-6to16": Conv2dCase((128, 14, 14, 6), (16, 5, 5, 6)),
    "C-shapenet-1to16": Conv2dCase((256, 72, 72, 1), (16, 3, 3, 1), _SAME3),
    "D-shapenet-16to32": Conv2dCase((256, 36, 36, 16), (32, 3, 3, 16), _SAME3),
    "E-stem-3to64": Conv2dCase((512, 32, 32, 3), (64, 3, 3, 3), _SAME3),
    "F-resnet20-16to16": Conv2dCase((128, 32, 32, 16), (16, 3, 3, 16), _SAME3),
    "G-resnet20-64to64": Conv2dCase((128, 8, 8, 64), (64, 3, 3, 64), _SAME3),
    "H-resnet9-64to128": Conv2dCase((512, 32, 32, 64), (128, 3, 3, 64), _SAME3),
    "I-vgg-128": Conv2dCase((512, 16, 16, 128), (128, 3, 3, 128), _SAME3),
    "J-vgg-256": Conv2dCase((512, 8, 8, 256), (256, 3, 3, 256), _SAME3),
    "K-vgg-512": Conv2dCase((512, 4, 4, 512), (512, 3, 3, 512), _SAME3),
    "L-unet-64": Conv2dCase((16, 128, 128, 64), (64, 3, 3, 64), _SAME3),
    "M-pointwise-256to64": Conv2dCase((512, 16, 16, 256), (64, 1, 1, 256)),
    "N-depthwise-64": Conv2dCase((512, 32, 32, 64), (64, 3, 3, 1), {"padding": 1, "groups": 64}),
}

TYPICAL = {
    "lenet-6to16-b32": Conv2dCase((32, 14, 14, 6), (16, 5, 5, 6)),
    "shapenet-1to16-b16": Conv2dCase((16, 72, 72, 1), (16, 3, 3, 1), _SAME3),
    "16to32-b16": Conv2dCase((16, 32, 32, 16), (32, 3, 3, 16), _SAME3),
    "64to64-stride2-b16": Conv2dCase((16, 16, 16, 64), (64, 3, 3, 64), {"stride": 2, **_SAME3}),
    "pointwise-64to32-b16": Conv2dCase((16, 16, 16, 64), (32, 1, 1, 64)),
    "depthwise-32-b16": Conv2dCase((16, 32, 32, 32), (32, 3, 3, 1), {"padding": 1, "groups": 32}),
}


def _geometry(case: Conv2dCase) -> ConvGeometry:
    class Shape:  # what conv2d_geometry asks of an array, without the memory
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape, self.ndim, self.dtype = shape, len(shape), normal(0, 0, 1).dtype

    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **case.options}
    return conv2d_geometry(Shape(case.x), Shape(case.weight), None, **options)


def _conv2d(name: str, case: Conv2dCase, group: str) -> Iterator[Problem]:
    s = _geometry(case)
    flops = 2 * s.outputs * s.OC * s.K
    bias = (s.OC,) if case.bias else None
    y_x_w = words(s.y_shape, s.x_shape, s.w_shape)

    def forward(seed: int) -> tuple[Any, ...]:
        b = normal(seed, 2, s.OC) if case.bias else None
        return normal(seed, 0, *s.x_shape), normal(seed, 1, *s.w_shape), b, s

    def data_gradient(seed: int) -> tuple[Any, ...]:
        return normal(seed, 0, *s.y_shape), normal(seed, 1, *s.w_shape), s

    def weight_gradient(seed: int) -> tuple[Any, ...]:
        return normal(seed, 0, *s.y_shape), normal(seed, 1, *s.x_shape), s

    passes = [
        ("conv2d_forward", forward, y_x_w + words(bias), s.K + 1),
        ("conv2d_data_gradient", data_gradient, y_x_w, s.KH * s.KW * s.OCG),
        ("conv2d_weight_gradient", weight_gradient, y_x_w, s.outputs),
    ]
    for primitive, make, moved, terms in passes:
        yield Problem("conv2d", primitive, name, group, make, moved, flops, terms)


def problems() -> Iterator[Problem]:
    """The forward pass and both gradients of every case."""
    for case in CONV2D:
        yield from _conv2d(str(case), case, "edge")
    for group, table in (("typical", TYPICAL), ("layer", LAYERS)):
        for name, case in table.items():
            yield from _conv2d(name, case, group)
