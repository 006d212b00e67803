"""Convolution layers; images are (N, H, W, C)."""

from __future__ import annotations

import math

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import Padding, Pair, integer, padding_pairs, pair
from gpucnn.tensor import Tensor


class Conv2d(Module):
    """2-D convolution with its own weight (OC, KH, KW, C/groups) and bias (OC); see F.conv2d.

    Weight and bias start as U(±1/√fan_in), as in torch.nn.Conv2d.

    >>> import gpucnn
    >>> layer = gpucnn.nn.Conv2d(1, 16, 5, stride=2, padding=2)
    >>> layer(gpucnn.Tensor([[[[0.5]] * 72] * 72])).shape
    (1, 36, 36, 16)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | Padding | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = pair("stride", stride)
        self.dilation = pair("dilation", dilation)
        self.groups = integer("groups", groups, 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels={in_channels} and out_channels={out_channels}, "
                f"got {groups}"
            )
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f'padding must be numbers, "same" or "valid", got {padding!r}')
        self.padding = padding if isinstance(padding, str) else padding_pairs(padding)
        shape = (self.out_channels, *self.kernel_size, self.in_channels // self.groups)
        self.weight = Parameter(np.empty(shape, np.float32))
        bound = 1.0 / math.sqrt(init.fans(self.weight)[0])
        init.uniform_(self.weight, bound)
        self.bias = (
            init.uniform_(Parameter(np.empty(out_channels, np.float32)), bound) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}, padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"
