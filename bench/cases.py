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
