"""Problems of the convolutions of few channels, and the passes that their variants take."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_few_channels import FEW_CHANNELS
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.primitive import Primitive
from tests.support import randn

PASSES = (conv2d_forward, conv2d_weight_gradient, conv2d_data_gradient)
VARIANTS = {few.name: few for few in FEW_CHANNELS}


def problem(
    x: tuple[int, ...], weight: tuple[int, ...], bias: bool, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, ConvGeometry, np.ndarray]:
    """(x, w, b, sizes, dy)"""
    arrays = randn(*x), randn(*weight, seed=1), randn(weight[0], seed=3) if bias else None
    all_options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    s = conv2d_geometry(*arrays, **all_options)
    return *arrays, s, randn(*s.y_shape, seed=2)


def taken(variant: str, problem: Any) -> list[tuple[Primitive, list[Any], int]]:
    """The passes that a variant takes: primitive, arrays and terms of the sums."""
    x, w, b, s, dy = problem
    arrays = [[x, w, b], [dy, x], [dy, w]], (s.K, s.outputs, s.OCG * s.K)
    every = zip(PASSES, *arrays, strict=True)
    return [each for each in every if VARIANTS[variant].takes(each[0].name, s)]
