"""The variants of conv2d and conv_transpose2d for few channels: "direct" (``conv2d_direct.py``),
where an image has one to four, and "depthwise" (``conv2d_depthwise.py``), where a group has.
Sequences are images of one row; volumes go to the other rungs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from gpucnn.device import Array
from gpucnn.ops.conv2d_depthwise import (
    depthwise_data_gradient,
    depthwise_forward,
    depthwise_gather,
    depthwise_takes,
    depthwise_weight_gradient,
)
from gpucnn.ops.conv2d_direct import (
    direct_data_gradient,
    direct_forward,
    direct_gather,
    direct_takes,
    direct_weight_gradient,
)
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.primitive import Primitive


@dataclass(frozen=True)
class FewChannels:
    """A variant that takes some problems only, and of those perhaps not every pass."""

    name: str
    fits: Callable[[str, ConvGeometry], bool]  # by the name of one of its primitives
    launchers: Mapping[str, Callable[..., Array]]
    storage: bool = True  # whether its kernels take bfloat16

    def takes(self, primitive: str, s: ConvGeometry) -> bool:
        """Whether it does this pass of a problem."""
        return primitive in self.launchers and self.fits(primitive, s)


FEW_CHANNELS = (
    FewChannels(
        "depthwise",
        depthwise_takes,
        {
            "conv2d_forward": depthwise_forward,
            "conv2d_data_gradient": depthwise_data_gradient,
            "conv2d_weight_gradient": depthwise_weight_gradient,
            "conv_transpose2d_forward": depthwise_gather,
        },
    ),
    FewChannels(
        "direct",
        direct_takes,
        {
            "conv2d_forward": direct_forward,
            "conv2d_data_gradient": direct_data_gradient,
            "conv2d_weight_gradient": direct_weight_gradient,
            "conv_transpose2d_forward": direct_gather,
        },
    ),
)


def stores_where_it_fits(primitive: Primitive, few: FewChannels) -> Callable[..., bool]:
    """Whether what :func:`where_it_fits` makes takes bfloat16 as it is; the default does."""
    return lambda *arguments: few.storage or not few.takes(primitive.name, arguments[-1])


def where_it_fits(primitive: Primitive, few: FewChannels) -> Callable[..., Array]:
    """A launcher of ``few``; what does not fit takes the default, so that whole networks train."""
    default = primitive.launchers[""]
    launcher = few.launchers.get(primitive.name, default)

    @functools.wraps(default)
    def launch(*arguments: Any) -> Array:
        chosen = launcher if few.takes(primitive.name, arguments[-1]) else default
        return cast("Array", chosen(*arguments))

    return launch
