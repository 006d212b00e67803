"""Convolutions over one, two and three axes, transposed, and without weight sharing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry, conv_transpose_geometry

from ..cases import (
    CONV1D,
    CONV2D,
    CONV2D_FUSED,
    CONV3D,
    CONV_TRANSPOSE2D,
    LOCALLY_CONNECTED2D,
    Conv2dCase,
    ConvCase,
)
from .problem import Problem, Shape, draws, holding, shaped, words

_SAME3 = {"padding": 1}

# Layers of LeNet, shapenet, ResNet-20, ResNet-9, VGG, U-Net, MobileNet, ResNet-50 and ResNeXt-50 at
# training batch sizes.
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
    "O-resnet-3to64": Conv2dCase((64, 224, 224, 3), (64, 7, 7, 3), {"stride": 2, "padding": 3}),
    "P-head-64to2": Conv2dCase((16, 128, 128, 64), (2, 1, 1, 64)),
    "Q-resnext-128": Conv2dCase((32, 56, 56, 128), (128, 3, 3, 4), {"padding": 1, "groups": 32}),
}

TYPICAL = {
    "lenet-6to16-b32": Conv2dCase((32, 14, 14, 6), (16, 5, 5, 6)),
    "shapenet-1to16-b16": Conv2dCase((16, 72, 72, 1), (16, 3, 3, 1), _SAME3),
    "16to32-b16": Conv2dCase((16, 32, 32, 16), (32, 3, 3, 16), _SAME3),
    "64to64-stride2-b16": Conv2dCase((16, 16, 16, 64), (64, 3, 3, 64), {"stride": 2, **_SAME3}),
    "pointwise-64to32-b16": Conv2dCase((16, 16, 16, 64), (32, 1, 1, 64)),
    "depthwise-32-b16": Conv2dCase((16, 32, 32, 32), (32, 3, 3, 1), {"padding": 1, "groups": 32}),
    "stem-1to16-b4": Conv2dCase((4, 72, 72, 1), (16, 3, 3, 1), _SAME3),
    "stem-3to16-b4": Conv2dCase((4, 32, 32, 3), (16, 3, 3, 3), _SAME3),
    "head-16to2-b4": Conv2dCase((4, 32, 32, 16), (2, 3, 3, 16), _SAME3),
    "groups-of-4-b4": Conv2dCase((4, 16, 16, 32), (32, 3, 3, 4), {"padding": 1, "groups": 8}),
}

# Those of a residual network.
FUSED_TYPICAL = {name: TYPICAL[name] for name in ("16to32-b16",)}
FUSED_LAYERS = {name: LAYERS[name] for name in ("F-resnet20-16to16", "H-resnet9-64to128")}

# Audio (M5 on one second at 8 kHz) and text; video (C3D) and voxels.
TYPICAL_1D = {"text-32to32-b16": ConvCase((16, 256, 32), (32, 5, 32), {"padding": 2})}
LAYERS_1D = {
    "m5-1to128": ConvCase((128, 8000, 1), (128, 80, 1), {"stride": 4}),
    "m5-128to128": ConvCase((128, 495, 128), (128, 3, 128)),
}
TYPICAL_3D = {"voxels-8to16-b4": ConvCase((4, 12, 16, 16, 8), (16, 3, 3, 3, 8), _SAME3)}
LAYERS_3D = {
    "c3d-3to64": ConvCase((4, 16, 112, 112, 3), (64, 3, 3, 3, 3), _SAME3),
    "voxnet-32to32": ConvCase((32, 14, 14, 14, 32), (32, 3, 3, 3, 32)),
}

# Upsampling of U-Net (2×2, stride 2), of fully convolutional networks and of DCGAN.
TYPICAL_TRANSPOSE = {
    "unet-32to16-b8": ConvCase((8, 16, 16, 32), (32, 2, 2, 16), {"stride": 2}),
    "dcgan-32to16-b8": ConvCase((8, 16, 16, 32), (32, 4, 4, 16), {"stride": 2, "padding": 1}),
    "dcgan-16to3-b8": ConvCase((8, 16, 16, 16), (16, 4, 4, 3), {"stride": 2, "padding": 1}),
}
LAYERS_TRANSPOSE = {
    "unet-128to64": ConvCase((16, 64, 64, 128), (128, 2, 2, 64), {"stride": 2}),
    "unet-256to128": ConvCase((16, 32, 32, 256), (256, 2, 2, 128), {"stride": 2}),
    "segnet-64to64": ConvCase((16, 128, 128, 64), (64, 3, 3, 64), {"padding": 1}),
    "dcgan-512to256": ConvCase((128, 8, 8, 512), (512, 4, 4, 256), {"stride": 2, "padding": 1}),
    "dcgan-64to3": ConvCase((128, 32, 32, 64), (64, 4, 4, 3), {"stride": 2, "padding": 1}),
    "fcn-21to21": ConvCase((4, 16, 16, 21), (21, 4, 4, 21), {"stride": 2, "padding": 1}),
}

# weight (OC, KH, KW, C) per output position; DeepFace has three such layers.
TYPICAL_LOCAL = {"16to16-b16": ConvCase((16, 10, 10, 16), (16, 3, 3, 16))}
LAYERS_LOCAL = {
    "deepface-L4": ConvCase((32, 63, 63, 16), (16, 9, 9, 16)),
    "deepface-L6": ConvCase((32, 25, 25, 16), (16, 5, 5, 16)),
}


def _geometry(dims: int, case: Conv2dCase | ConvCase) -> ConvGeometry:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **case.options}
    return conv_geometry(dims, shaped(*case.x), shaped(*case.weight), None, **options)


def _meeting(s: ConvGeometry) -> int:
    """The most windows that hold one pixel."""
    axes = (s.KD, s.SD, s.DD, s.OD), (s.KH, s.SH, s.DH, s.OH), (s.KW, s.SW, s.DW, s.OW)
    return math.prod(holding(*axis) for axis in axes)


def _bias(case: Conv2dCase | ConvCase, *shape: int) -> Shape | None:
    return shape if case.bias else None


def passes(family: str, dims: int, name: str, case: Any, group: str) -> Iterator[Problem]:
    """The forward pass and both gradients; the primitives of conv2d take one to three axes."""
    s = _geometry(dims, case)
    flops = 2 * s.outputs * s.OC * s.K
    x, w, y, b = s.x_shape, s.w_shape, s.y_shape, _bias(case, s.OC)
    for primitive, inputs, moved, terms in (
        ("conv2d_forward", (x, w, b), words(y, x, w, b), s.K + case.bias),
        ("conv2d_data_gradient", (y, w), words(x, y, w), _meeting(s) * s.OCG),
        ("conv2d_weight_gradient", (y, x), words(w, y, x), s.outputs),
    ):
        make = draws(*inputs, then=(s,))
        yield Problem(family, primitive, name, group, make, moved, flops, terms)


def fused(name: str, case: Conv2dCase, group: str) -> Iterator[Problem]:
    """With a residual and a ReLU; backward, through the ReLU before the convolution."""
    s = _geometry(2, case)
    x, w, y, b = s.x_shape, s.w_shape, s.y_shape, _bias(case, s.OC)
    forward = draws(x, w, b, y, then=(None, None, s, "relu", 0.0, False))
    backward = draws(y, w, x, x, then=(None, None, None, s, "relu", 0.0))
    for direction, make, moved, terms in (
        ("forward", forward, words(y, x, w, b, y), s.K + 2),
        ("data_gradient", backward, words(x, y, w, x, x), _meeting(s) * s.OCG + 1),
    ):
        flops = 2 * s.outputs * s.OC * s.K
        primitive = f"conv2d_fused_{direction}"
        yield Problem("conv2d_fused", primitive, name, group, make, moved, flops, terms)


def transposed(name: str, case: ConvCase, group: str) -> Iterator[Problem]:
    """The forward pass; the gradients are passes of the adjoint convolution."""
    given = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    arrays = shaped(*case.x), shaped(*case.weight), None
    s = conv_transpose_geometry(2, *arrays, **{**given, **case.options})
    b = _bias(case, s.C)
    moved, flops = words(s.x_shape, s.y_shape, s.w_shape, b), 2 * s.outputs * s.OC * s.K
    make = draws(s.y_shape, s.w_shape, b, then=(s,))
    terms = _meeting(s) * s.OCG + case.bias
    primitive = "conv_transpose2d_forward"
    yield Problem("conv_transpose2d", primitive, name, group, make, moved, flops, terms)


def local(name: str, case: ConvCase, group: str) -> Iterator[Problem]:
    s = _geometry(2, case)
    flops = 2 * s.outputs * s.OC * s.K
    x, y, w = s.x_shape, s.y_shape, (s.OH, s.OW, *s.w_shape)
    b = _bias(case, s.OH, s.OW, s.OC)
    for direction, inputs, moved, terms in (
        ("forward", (x, w, b), words(y, x, w, b), s.K + case.bias),
        ("data_gradient", (y, w), words(x, y, w), _meeting(s) * s.OCG),
        ("weight_gradient", (y, x), words(w, y, x), s.N),
    ):
        primitive, make = f"locally_connected2d_{direction}", draws(*inputs, then=(s,))
        yield Problem("locally_connected2d", primitive, name, group, make, moved, flops, terms)


def _groups(edge: list[Any], typical: dict[str, Any], layers: dict[str, Any]) -> Iterator[Any]:
    yield from ((str(case), case, "edge") for case in edge)
    for group, table in (("typical", typical), ("layer", layers)):
        yield from ((name, case, group) for name, case in table.items())


def problems() -> Iterator[Problem]:
    """Every convolution."""
    for row in _groups(CONV2D, TYPICAL, LAYERS):
        yield from passes("conv2d", 2, *row)
    for row in _groups(CONV2D_FUSED, FUSED_TYPICAL, FUSED_LAYERS):
        yield from fused(*row)
    for row in _groups(CONV1D, TYPICAL_1D, LAYERS_1D):
        yield from passes("conv1d", 1, *row)
    for row in _groups(CONV3D, TYPICAL_3D, LAYERS_3D):
        yield from passes("conv3d", 3, *row)
    for row in _groups(CONV_TRANSPOSE2D, TYPICAL_TRANSPOSE, LAYERS_TRANSPOSE):
        yield from transposed(*row)
    for row in _groups(LOCALLY_CONNECTED2D, TYPICAL_LOCAL, LAYERS_LOCAL):
        yield from local(*row)
