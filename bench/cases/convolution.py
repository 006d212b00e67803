"""Convolutions and linear layers."""

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
    Conv2dCase((2, 3, 2, 1), (2, 5, 4, 1), {"padding": (2, 1)}),
]

# With an epilogue: more than a tile of rows and of columns, tails in both, one row, channels that
# do not come in fours, groups, phases of a stride of which one reads no tap.
CONV2D_FUSED = [
    Conv2dCase((2, 9, 11, 8), (12, 3, 3, 8), {"padding": 1}),
    Conv2dCase((3, 13, 12, 5), (7, 3, 3, 5), {"stride": 2, "padding": 1}),
    Conv2dCase((2, 9, 8, 32), (68, 1, 1, 16), {"groups": 2}),
    Conv2dCase((1, 7, 6, 12), (36, 1, 2, 4), {"stride": (2, 3), "groups": 3}),
    Conv2dCase((1, 20, 20, 16), (132, 2, 2, 16), {"padding": 1}),
    Conv2dCase((1, 1, 1, 4), (4, 1, 1, 4)),
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
    ConvCase((2, 5, 33), (7, 5, 33)),
    ConvCase((3, 11, 6), (10, 4, 3), {"stride": 2, "padding": ((1, 3),), "groups": 2}),
    ConvCase((2, 10, 5), (5, 3, 1), {"groups": 5, "dilation": 2, "padding": "same"}, bias=False),
]

# weight (OC, KD, KH, KW, C/groups)
CONV3D = [
    ConvCase((2, 3, 4, 5, 3), (4, 2, 3, 2, 3)),
    ConvCase((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    ConvCase((1, 4, 3, 5, 2), (3, 4, 3, 5, 2)),
    ConvCase((1, 3, 4, 2, 5), (2, 2, 3, 2, 5), {"padding": (0, 1, 1)}),
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
    ConvCase((1, 4, 5, 8), (8, 4, 4, 3), {"stride": 2, "padding": 1}),
]


# weight (C, K, OC/groups)
CONV_TRANSPOSE1D = [
    ConvCase((2, 5, 3), (3, 3, 4)),
    ConvCase((1, 1, 1), (1, 1, 1)),
    ConvCase((2, 4, 6), (6, 4, 5), {"stride": 2, "padding": 1, "groups": 2, "output_padding": 1}),
    ConvCase((3, 5, 2), (2, 3, 17), {"stride": 3, "dilation": 2, "padding": ((2, 1),)}, bias=False),
]

# weight (C, KD, KH, KW, OC/groups)
CONV_TRANSPOSE3D = [
    ConvCase((2, 3, 2, 4, 3), (3, 2, 3, 2, 4)),
    ConvCase((1, 1, 1, 1, 1), (1, 1, 1, 1, 1)),
    ConvCase((1, 2, 3, 2, 4), (4, 3, 3, 3, 2), {"stride": 2, "padding": 1, "output_padding": 1}),
    ConvCase((1, 3, 2, 3, 4), (4, 2, 1, 3, 3), {"stride": (3, 1, 2), "groups": 2}),
    ConvCase(
        (2, 2, 3, 3, 3),
        (3, 2, 3, 2, 1),
        {"dilation": (3, 1, 2), "padding": ((1, 0), (0, 2), (1, 1)), "groups": 3},
        bias=False,
    ),
    ConvCase((1, 2, 2, 3, 9), (9, 3, 2, 2, 33), {"stride": (2, 3, 1), "output_padding": (1, 2, 0)}),
]

# weight (OC, KH, KW, C/groups): one of these per output position
LOCALLY_CONNECTED2D = [
    ConvCase((2, 4, 5, 3), (4, 3, 2, 3)),
    ConvCase((1, 1, 1, 1), (1, 1, 1, 1)),
    ConvCase((3, 4, 3, 2), (5, 4, 3, 2), bias=False),
    ConvCase((2, 5, 4, 3), (2, 3, 3, 3), {"padding": 1}),
    ConvCase((2, 5, 6, 1), (18, 3, 2, 1), {"stride": (2, 3), "padding": ((0, 2), (1, 0))}),
    ConvCase((1, 6, 5, 2), (3, 2, 2, 2), {"stride": 4}),
    ConvCase((35, 3, 2, 9), (3, 2, 2, 9), {"padding": "same"}),
    ConvCase((2, 6, 7, 2), (3, 3, 2, 2), {"dilation": (2, 3), "padding": (1, 2)}),
    ConvCase((2, 5, 4, 6), (4, 2, 2, 3), {"groups": 2, "stride": (2, 1)}),
    ConvCase((3, 5, 5, 3), (6, 2, 3, 1), {"groups": 3, "padding": 1}, bias=False),
    ConvCase(
        (1, 7, 6, 4), (34, 2, 2, 2), {"groups": 2, "dilation": 2, "stride": 3, "padding": "same"}
    ),
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
