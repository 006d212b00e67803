"""Pooling and unpooling."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    Pool2dCase((3, 5, 6, 2), (5, 6)),
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
    Pool2dCase((1, 2, 3, 33), 3, {"stride": 2, "padding": 1}),
    Pool2dCase((2, 2, 1, 3), (2, 5), {"stride": (4, 1), "padding": "valid"}),
]

# x (N, OD, OH, OW, C): what is unpooled, the window and the options
UNPOOL3D: list[tuple[tuple[int, ...], Any, dict[str, Any]]] = [
    ((2, 2, 3, 2, 4), 2, {}),
    ((1, 1, 1, 1, 1), 1, {}),
    ((2, 2, 3, 2, 5), 2, {"output_size": (5, 7, 4)}),
    ((1, 3, 2, 4, 3), 3, {"stride": 1, "padding": 1}),
    ((1, 2, 3, 4, 1), (3, 2, 1), {"stride": (2, 1, 3), "padding": ((2, 1), (0, 1), (0, 0))}),
    ((2, 3, 1, 2, 4), (2, 1, 3), {"stride": (1, 3, 2), "padding": "valid"}),
]

# x (N, OW, C): what is unpooled, the window and the options
UNPOOL1D: list[tuple[tuple[int, ...], Any, dict[str, Any]]] = [
    ((2, 4, 4), 2, {}),
    ((1, 1, 1), 1, {}),
    ((2, 3, 5), 3, {"stride": 2, "padding": 1, "output_size": 6}),
    ((3, 5, 2), 3, {"stride": 1, "padding": ((2, 0),)}),
]

# x (N, H, W, C), output_size
ADAPTIVE_POOL2D: list[tuple[tuple[int, int, int, int], Any]] = [
    ((1, 1, 1, 1), 1),
    ((2, 5, 7, 3), 1),
    ((2, 7, 5, 8), (3, 2)),
    ((3, 6, 4, 5), (None, 2)),
    ((1, 3, 2, 4), (5, 7)),
    ((2, 8, 9, 33), (3, 4)),
    ((2, 9, 8, 132), 1),
    ((1, 16, 9, 128), 1),
    ((1, 27, 14, 33), (2, 1)),
    ((2, 7, 19, 65), (1, 2)),
]

# x (N, D, H, W, C), output_size
ADAPTIVE_POOL3D: list[tuple[tuple[int, ...], Any]] = [
    ((1, 1, 1, 1, 1), 1),
    ((2, 4, 5, 3, 3), 1),
    ((2, 5, 4, 7, 4), (2, 3, 3)),
    ((1, 3, 5, 4, 5), (None, 2, None)),
    ((1, 2, 3, 2, 2), (5, 4, 3)),
    ((1, 9, 8, 2, 33), (1, 1, 2)),
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
