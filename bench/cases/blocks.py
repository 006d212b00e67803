"""Fused blocks of batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BatchNormBlockCase:
    """x (…, C), whether there is a residual, and the other options of batch_norm_block."""

    x: tuple[int, ...]
    residual: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items()).replace(" ", "")
        return f"{'x'.join(map(str, self.x))}{',residual' if self.residual else ''}{options}"


LEAKY: dict[str, Any] = {"activation": "leaky_relu", "negative_slope": 0.1}

# Eight channels of a thread, four or one; one row; rows that are no multiple of a chunk; an
# activation that bends the other way; windows that tile, leave cells out, overlap, pad and are not
# square.
BATCH_NORM_BLOCK = [
    BatchNormBlockCase((2, 1)),
    BatchNormBlockCase((7, 3), True),
    BatchNormBlockCase((300, 4), True),
    BatchNormBlockCase((3, 5, 7, 8), True),
    BatchNormBlockCase((2, 9, 7, 16), True, LEAKY),
    BatchNormBlockCase((1, 9, 8, 33), False, LEAKY),
    BatchNormBlockCase((2, 5, 7, 20), True, {"activation": "none"}),
    BatchNormBlockCase((2, 3, 5, 168), True),
    BatchNormBlockCase((5, 3, 68), False, {"activation": "none"}),
    BatchNormBlockCase((2, 37, 29, 4), False, {"activation": "leaky_relu", "negative_slope": -0.3}),
    BatchNormBlockCase((2, 6, 8, 4), False, {"kernel_size": 2}),
    BatchNormBlockCase((2, 5, 7, 8), True, {"kernel_size": 2}),
    BatchNormBlockCase((2, 5, 7, 3), True, {"kernel_size": 2, "edge": "ceil"}),
    BatchNormBlockCase((3, 7, 5, 4), False, {"kernel_size": 2, "padding": 1, "edge": "ceil"}),
    BatchNormBlockCase((2, 9, 8, 12), True, {"kernel_size": 3, "stride": 2, "padding": 1}),
    BatchNormBlockCase((2, 6, 9, 5), False, {"kernel_size": 2, "stride": 3, **LEAKY}),
    BatchNormBlockCase((1, 8, 9, 4), True, {"kernel_size": (2, 3), "stride": (3, 2), **LEAKY}),
    BatchNormBlockCase((2, 5, 4, 4), False, {"kernel_size": 3, "stride": 1, "activation": "none"}),
    BatchNormBlockCase(
        (2, 6, 4, 8),
        True,
        {"kernel_size": 2, "activation": "leaky_relu", "negative_slope": -0.3},
    ),
    BatchNormBlockCase((1, 9, 8, 130), False, {"kernel_size": 2}),
]
