"""The shapes that tests and bench share: one table per operator family.

A table holds odd and unequal heights and widths, strides other than the kernel, padding, one
channel, one image, and sizes that are no multiple of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Conv2dCase:
    """x (N, H, W, C), weight (OC, KH, KW, C/groups) and the options of conv2d."""

    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = True

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items()).replace(" ", "")
        return f"{'x'.join(map(str, self.x))}*{'x'.join(map(str, self.weight))}{options}"


CONV2D = [
    Conv2dCase((2, 5, 7, 3), (4, 3, 3, 3)),
    Conv2dCase((1, 1, 1, 1), (1, 1, 1, 1)),
    Conv2dCase((1, 6, 5, 2), (3, 6, 5, 2)),
    Conv2dCase((3, 9, 8, 1), (6, 5, 5, 1), {"padding": 2}),
    Conv2dCase((2, 9, 11, 1), (16, 5, 5, 1), {"stride": 2, "padding": 2}, bias=False),
    Conv2dCase((2, 7, 6, 5), (9, 2, 3, 5), {"stride": (2, 3), "padding": (1, 2)}),
    Conv2dCase((2, 8, 9, 4), (33, 3, 2, 4), {"padding": ((0, 2), (1, 0))}),
    Conv2dCase((1, 11, 10, 3), (5, 3, 3, 3), {"dilation": (2, 3), "padding": 3}),
    Conv2dCase((2, 7, 5, 6), (8, 3, 3, 3), {"groups": 2, "padding": 1, "stride": 2}),
    Conv2dCase((2, 6, 7, 5), (5, 3, 3, 1), {"groups": 5, "padding": "same"}),
    Conv2dCase((1, 6, 7, 4), (8, 4, 2, 1), {"groups": 4, "stride": 2, "padding": "same"}),
    Conv2dCase((3, 5, 5, 17), (18, 1, 1, 17)),
    Conv2dCase((1, 5, 6, 2), (2, 2, 2, 2), {"stride": 4, "padding": "valid"}),
    Conv2dCase((2, 4, 4, 33), (35, 3, 3, 33), {"padding": 1}, bias=False),
    Conv2dCase((1, 3, 4, 2), (3, 3, 3, 2), {"padding": 5, "dilation": 3, "stride": 3}),
]


@dataclass(frozen=True)
class ConvCase:
    """x (N, ..., C), weight and the options of conv1d, conv3d or conv_transpose2d."""

    x: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    bias: bool = True

    __str__ = Conv2dCase.__str__


# weight (OC, K, C/groups)
CONV1D = [
    ConvCase((2, 9, 3), (4, 3, 3)),
    ConvCase((1, 1, 1), (1, 1, 1)),
    ConvCase((3, 11, 6), (10, 4, 3), {"stride": 2, "padding": ((1, 3),), "groups": 2}),
    ConvCase((2, 10, 5), (5, 3, 1), {"groups": 5, "dilation": 2, "padding": "same"}, bias=False),
]

# weight (OC, KD, KH, KW, C/groups)
CONV3D = [
    ConvCase((2, 3, 4, 5, 3), (4, 2, 3, 2, 3)),
    ConvCase((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    ConvCase((1, 4, 3, 5, 2), (3, 4, 3, 5, 2)),
    ConvCase((2, 5, 4, 6, 1), (17, 3, 3, 3, 1), {"stride": 2, "padding": 1}, bias=False),
    ConvCase((1, 5, 6, 4, 4), (6, 2, 1, 3, 2), {"stride": (3, 1, 2), "groups": 2}),
    ConvCase((1, 6, 5, 7, 2), (3, 2, 3, 2, 2), {"dilation": (3, 2, 1), "padding": (1, 2, 0)}),
    ConvCase((2, 3, 5, 4, 3), (3, 3, 2, 3, 1), {"groups": 3, "padding": ((0, 2), (1, 0), (2, 1))}),
    ConvCase((1, 4, 3, 4, 33), (9, 2, 3, 3, 33), {"stride": (1, 2, 3), "padding": "same"}),
]

# weight (C, KH, KW, OC/groups)
CONV_TRANSPOSE2D = [
    ConvCase((2, 5, 4, 3), (3, 3, 3, 4)),
    ConvCase((1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase((1, 1, 1, 2), (2, 4, 3, 5)),
    ConvCase((2, 4, 3, 8), (8, 2, 2, 3), {"stride": 2}),
    ConvCase((2, 3, 4, 5), (5, 3, 3, 17), {"stride": 2, "padding": 1, "output_padding": 1}),
    ConvCase((1, 4, 5, 33), (33, 4, 4, 2), {"stride": 2, "padding": 1}, bias=False),
    ConvCase((2, 3, 2, 4), (4, 2, 3, 3), {"stride": (3, 4), "output_padding": (2, 0), "groups": 2}),
    ConvCase((1, 5, 6, 3), (3, 3, 2, 1), {"dilation": (2, 3), "padding": (3, 1), "groups": 3}),
    ConvCase((1, 4, 3, 2), (2, 3, 3, 35), {"stride": (2, 4), "dilation": (3, 2), "padding": 2}),
    ConvCase(
        (1, 3, 3, 2), (2, 2, 3, 2), {"dilation": 3, "output_padding": (2, 1), "stride": (1, 2)}
    ),
    ConvCase((2, 6, 5, 1), (1, 5, 3, 2), {"padding": ((4, 1), (0, 2))}),
    ConvCase((3, 2, 2, 1), (1, 1, 2, 2), {"stride": 5, "output_padding": 4}),
]


# weight (OC, KH, KW, C): one of these per output position
LOCALLY_CONNECTED2D = [
    ConvCase((2, 4, 5, 3), (4, 3, 2, 3)),
    ConvCase((1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase((3, 4, 3, 2), (5, 4, 3, 2), bias=False),
    ConvCase((2, 5, 4, 3), (2, 3, 3, 3), {"padding": 1}),
    ConvCase((2, 5, 6, 1), (18, 3, 2, 1), {"stride": (2, 3), "padding": ((0, 2), (1, 0))}),
    ConvCase((1, 6, 5, 2), (3, 2, 2, 2), {"stride": 4}),
    ConvCase((35, 3, 2, 9), (3, 2, 2, 9), {"padding": "same"}),
]


@dataclass(frozen=True)
class LinearCase:
    """x (M, I), weight (O, I)."""

    M: int
    I: int
    O: int
    bias: bool = True

    def __str__(self) -> str:
        return f"{self.M}x{self.I}->{self.O}"


LINEAR = [
    LinearCase(1, 1, 1),
    LinearCase(3, 5, 2),
    LinearCase(7, 33, 9, bias=False),
    LinearCase(5, 300, 10),
    LinearCase(130, 17, 35),
    LinearCase(33, 200, 3),
]


@dataclass(frozen=True)
class Pool2dCase:
    """x (N, H, W, C), the window and the options of a pooling."""

    x: tuple[int, int, int, int]
    kernel_size: int | tuple[int, int]
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items()).replace(" ", "")
        return f"{'x'.join(map(str, self.x))},kernel={self.kernel_size}{options}".replace(" ", "")


POOL2D = [
    Pool2dCase((2, 6, 8, 4), 2),
    Pool2dCase((1, 1, 1, 1), 1),
    Pool2dCase((1, 1, 1, 3), 3, {"padding": 1}),
    Pool2dCase((2, 5, 7, 3), 2),
    Pool2dCase((3, 5, 7, 5), 2, {"edge": "ceil"}),
    Pool2dCase((2, 5, 7, 8), 2, {"edge": "zero"}),
    Pool2dCase((2, 9, 8, 4), 3, {"stride": 2}),
    Pool2dCase((1, 9, 8, 33), 3, {"stride": 2, "padding": 1}),
    Pool2dCase((2, 7, 9, 3), 3, {"stride": 2, "padding": 2, "edge": "zero"}),
    Pool2dCase((2, 7, 6, 1), (3, 2), {"stride": (1, 2), "padding": (2, 1), "edge": "ceil"}),
    Pool2dCase((1, 8, 9, 4), (2, 3), {"stride": 3, "padding": ((0, 1), (2, 0)), "edge": "ceil"}),
    Pool2dCase((2, 9, 7, 2), 2, {"stride": 1, "dilation": (2, 3), "padding": ((1, 2), (3, 0))}),
    Pool2dCase((1, 1, 2, 4), 2, {"stride": 1, "dilation": 3, "padding": 2}),
    Pool2dCase((1, 5, 6, 4), 2, {"stride": 4}),
    Pool2dCase((2, 5, 5, 3), 3, {"stride": 1, "padding": "same"}),
]

AVG_POOL2D = [
    Pool2dCase((2, 6, 8, 4), 2),
    Pool2dCase((1, 1, 1, 1), 1),
    Pool2dCase((1, 1, 1, 3), 3, {"padding": 1}),
    Pool2dCase((3, 5, 7, 5), 2, {"edge": "ceil"}),
    Pool2dCase((2, 5, 7, 8), 2, {"edge": "zero"}),
    Pool2dCase((1, 9, 8, 33), 3, {"stride": 2, "padding": 1, "count_include_pad": False}),
    Pool2dCase((2, 7, 9, 3), 3, {"stride": 2, "padding": 2, "edge": "zero"}),
    Pool2dCase(
        (2, 7, 6, 3), 3, {"stride": 2, "padding": 2, "edge": "zero", "count_include_pad": False}
    ),
    Pool2dCase((2, 7, 6, 1), (3, 2), {"stride": (1, 2), "padding": (2, 1), "edge": "ceil"}),
    Pool2dCase((1, 8, 9, 4), (2, 3), {"stride": 3, "padding": ((0, 1), (2, 0)), "edge": "ceil"}),
    Pool2dCase((1, 5, 6, 4), (5, 6)),
    Pool2dCase((1, 5, 6, 2), 2, {"stride": 4}),
    Pool2dCase((2, 5, 5, 3), 3, {"stride": 1, "padding": "same"}),
]

# x (N, OH, OW, C): what is unpooled
UNPOOL2D = [
    Pool2dCase((2, 3, 4, 4), 2),
    Pool2dCase((1, 1, 1, 1), 1),
    Pool2dCase((1, 1, 1, 3), 3, {"padding": 1}),
    Pool2dCase((2, 3, 2, 5), 2, {"output_size": (7, 4)}),
    Pool2dCase((2, 3, 2, 5), 2, {"output_size": (5, 3)}),
    Pool2dCase((2, 4, 3, 4), 3, {"stride": 2}),
    Pool2dCase((1, 3, 5, 17), 3, {"stride": 1, "padding": 1}),
    Pool2dCase((2, 3, 4, 1), (3, 2), {"stride": (1, 2), "padding": ((2, 1), (0, 1))}),
    Pool2dCase((1, 2, 3, 4), (2, 1), {"stride": 3, "output_size": (6, 5)}),
    Pool2dCase((2, 2, 1, 3), (2, 5), {"stride": (4, 1), "padding": "valid"}),
]

# x (N, H, W, C), output_size
ADAPTIVE_POOL2D: list[tuple[tuple[int, int, int, int], Any]] = [
    ((1, 1, 1, 1), 1),
    ((2, 5, 7, 3), 1),
    ((2, 7, 5, 8), (3, 2)),
    ((3, 6, 4, 5), (None, 2)),
    ((1, 3, 2, 4), (5, 7)),
    ((2, 8, 9, 33), (3, 4)),
]

# x (N, D, H, W, C), the window and the options of max_pool3d
POOL3D: list[tuple[tuple[int, ...], Any, dict[str, Any]]] = [
    ((2, 4, 4, 6, 4), 2, {}),
    ((1, 1, 1, 1, 1), 1, {}),
    ((2, 3, 5, 5, 3), 2, {"edge": "ceil"}),
    ((2, 3, 5, 5, 3), 2, {"edge": "zero"}),
    ((1, 5, 4, 6, 5), 3, {"stride": 2, "padding": 1}),
    ((1, 4, 5, 3, 2), (3, 2, 1), {"stride": (1, 2, 2), "padding": (2, 1, 0), "edge": "zero"}),
    ((1, 5, 6, 5, 1), 2, {"stride": 1, "dilation": (3, 1, 2), "padding": "same"}),
    ((1, 1, 1, 3, 2), 2, {"stride": 1, "dilation": (2, 2, 1), "padding": 1}),
]

# x (..., C)
ACTIVATION = [(1,), (7,), (3, 5, 7, 3), (2, 3, 4, 8), (1024,), (1030,)]

# (function, options)
ACTIVATION_FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": -0.3}),
    ("elu", {}),
    ("elu", {"alpha": 1.5}),
    ("selu", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("softplus", {}),
    ("softplus", {"beta": 0.7, "threshold": 3.0}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("hardswish", {}),
]

# (x (..., C), slopes: 1 or C)
PRELU = [
    ((1,), 1),
    ((7,), 7),
    ((3, 5, 7, 3), 3),
    ((2, 3, 4, 8), 1),
    ((1, 33), 33),
    ((130, 5), 5),
    ((2, 3, 68), 1),
    ((4500, 1), 1),
]

# x (..., C): more than one value per channel
BATCH_NORM = [
    (2, 1),
    (7, 3),
    (2, 5),
    (3, 5, 7, 1),
    (2, 3, 4, 5),
    (1, 9, 8, 33),
    (2, 9, 7, 16),
    (3, 1, 1, 68),
    (300, 4),
    (4, 37, 29, 2),
]

# x of dropout; those with four axes also of dropout2d
DROPOUT = [(1,), (7,), (3, 5), (1024,), (1030,), (2, 3, 5, 8), (3, 1, 1, 5), (2, 4, 3, 33)]

# x (N, ..., C) and the number of groups; one group of few pixels is also layer_norm
GROUP_NORM = [
    ((2, 1), 1),
    ((3, 7), 1),
    ((5, 8), 2),
    ((2, 3, 5, 6), 3),
    ((2, 3, 2, 33), 33),
    ((1, 5, 7, 24), 3),
    ((300, 12), 1),
    ((2, 600), 1),
    ((2, 19, 17, 16), 4),
    ((3, 23, 29, 6), 2),
    ((2, 1, 1, 1028), 1),
]

# x (..., C)
SOFTMAX = [(1, 1), (5, 3), (9, 10), (2, 3, 4, 5), (3, 32), (2, 33), (4, 1000)]

# input (..., C)
CLASS_LOSS = [(1, 1), (5, 3), (9, 10), (2, 3, 4, 5), (3, 33), (2, 300)]

# (input (..., C), label_smoothing)
CROSS_ENTROPY = [
    ((1, 1), 0.0),
    ((5, 3), 0.0),
    ((9, 10), 0.1),
    ((2, 3, 4, 5), 0.0),
    ((3, 32), 1.0),
    ((2, 33), 0.25),
    ((3, 500), 0.1),
]


@dataclass(frozen=True)
class LocalResponseNormCase:
    """x (…, C), or (N, H, W, C) within, the size and the options of local_response_norm."""

    x: tuple[int, ...]
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items())
        return f"{'x'.join(map(str, self.x))},size={self.size}{options}"


LOCAL_RESPONSE_NORM = [
    LocalResponseNormCase((1,), 1),
    LocalResponseNormCase((3, 7), 3),
    LocalResponseNormCase((2, 5, 3, 8), 5),
    LocalResponseNormCase((2, 3, 5, 33), 4, {"beta": 0.5, "k": 2.0}),
    LocalResponseNormCase((2, 3, 5, 12), 4, {"convention": "onnx"}),
    LocalResponseNormCase((5, 3), 9, {"convention": "caffe"}),
    LocalResponseNormCase((2, 6, 20), 6, {"convention": "alexnet"}),
    LocalResponseNormCase((1, 2, 2, 16), 2, {"convention": "matconvnet"}),
    LocalResponseNormCase((3, 9), 2, {"convention": "tf"}),
    LocalResponseNormCase((4, 5), 50, {"beta": 1.0}),
    LocalResponseNormCase((2, 5, 7, 4), 3, {"region": "within"}),
    LocalResponseNormCase((2, 6, 5, 3), 4, {"region": "within", "beta": 0.6}),
    LocalResponseNormCase((1, 3, 4, 5), 9, {"region": "within", "convention": "caffe"}),
    LocalResponseNormCase((2, 1, 1, 1), 1, {"region": "within"}),
]

# (shape, axis) of sum, mean and max
REDUCE: list[tuple[tuple[int, ...], int | tuple[int, ...] | None]] = [
    ((), None),
    ((1,), 0),
    ((7, 5), None),
    ((7, 5), 0),
    ((3, 33), -1),
    ((2, 5, 7, 3), (1, 2)),
    ((2, 5, 7, 3), (0, 1, 2)),
    ((2, 3, 4, 35), (0, 3)),
    ((2, 1, 5, 1, 3), (1, 2)),
    ((3, 1, 4, 1, 2), (0, 4)),
    ((1, 1, 1), (0, 2)),
    ((9001,), None),
    ((2, 4500, 1), 1),
    ((2, 300, 34), 1),
]

# (shape, axes)
TRANSPOSE = [
    ((), ()),
    ((5,), (0,)),
    ((1, 1), (1, 0)),
    ((33, 65), (1, 0)),
    ((7, 3), (0, 1)),
    ((2, 5, 7, 3), (0, 3, 1, 2)),
    ((2, 3, 5, 7), (0, 2, 3, 1)),
    ((3, 4, 5), (1, 0, 2)),
    ((3, 4, 5), (2, 1, 0)),
    ((2, 3, 4, 5), (3, 1, 0, 2)),
    ((2, 1, 3, 1, 4), (4, 3, 2, 1, 0)),
    ((2, 3, 2, 3, 2), (2, 0, 4, 1, 3)),
]

# (M, K, N) of a matrix product
MATMUL = [(1, 1, 1), (3, 5, 2), (7, 33, 9), (2, 300, 10), (65, 17, 35), (33, 4, 3)]

# (shapes, axis)
CONCATENATE: list[tuple[list[tuple[int, ...]], int]] = [
    ([(5,)], 0),
    ([(1,), (4,), (3,)], 0),
    ([(2, 3), (2, 1)], -1),
    ([(2, 3), (5, 3)], 0),
    ([(2, 3, 5, 4), (2, 3, 5, 8)], -1),
    ([(2, 3, 5, 3), (2, 3, 5, 4), (2, 3, 5, 33)], 3),
    ([(2, 3, 2, 3), (2, 1, 2, 3)], 1),
    ([(1, 1, 1, 1), (1, 1, 1, 1)], -4),
]

# (function, options)
REGRESSION_LOSS: list[tuple[str, dict[str, Any]]] = [
    ("l1_loss", {}),
    ("mse_loss", {}),
    ("huber_loss", {}),
    ("huber_loss", {"delta": 0.3}),
    ("smooth_l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.3}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("binary_cross_entropy_with_logits", {}),
    ("hinge_loss", {}),
    ("kl_div", {}),
    ("kl_div", {"log_target": True}),
]

# n of add, subtract, multiply, affine and scale
ELEMENTWISE = [1, 3, 4, 5, 1023, 1024, 4099]

# a (..., C) with a vector b (C)
ELEMENTWISE_VECTOR = [(1, 1), (3, 5), (5, 4), (2, 3, 4, 33), (1030, 1), (7, 300)]

# n of one optimizer step
OPTIMIZER = [1, 2, 3, 4, 1021]

# the sizes of the buffers that are clipped together
CLIP: list[tuple[int, ...]] = [(1,), (3,), (4, 1, 5), (1021,), (9000, 7), (2,) * 300]

# (O, R, C) reduced over R
AXIS_REDUCE = [
    (1, 1, 1),
    (3, 5, 1),
    (300, 3, 1),
    (3, 255, 1),
    (2, 7, 3),
    (5, 1, 33),
    (2, 300, 34),
    (1, 9001, 1),
    (2, 4500, 1),
]
