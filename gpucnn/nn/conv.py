"""Convolution layers; images are (N, H, W, C), sequences (N, W, C), volumes (N, D, H, W, C)."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import (
    Padding,
    Pair,
    conv_output_size,
    flag,
    integer,
    padding_of_axes,
    pair,
    resolve_padding,
    sizes,
)
from gpucnn.tensor import Tensor

Sizes = int | tuple[int, ...]
Paddings = int | tuple[int, ...] | tuple[Pair, ...] | str


class _Filters(Module):
    """The options of layers that slide filters over images."""

    dims: int
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Paddings,
        dilation: Sizes,
        groups: int,
    ) -> None:
        self.in_channels = integer("in_channels", in_channels, 1)
        self.out_channels = integer("out_channels", out_channels, 1)
        self.kernel_size = sizes("kernel_size", kernel_size, self.dims)
        self.stride = sizes("stride", stride, self.dims)
        self.dilation = sizes("dilation", dilation, self.dims)
        self.groups = integer("groups", groups, 1)
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"groups must divide in_channels={in_channels} and out_channels={out_channels}, "
                f"got {groups}"
            )
        if isinstance(padding, str) and (self.transposed or padding not in ("same", "valid")):
            names = "" if self.transposed else ', "same" or "valid"'
            raise ValueError(f"padding must be numbers{names}, got {padding!r}")
        self.padding = padding if isinstance(padding, str) else padding_of_axes(padding, self.dims)

    def _add_parameters(
        self, weight: tuple[int, ...], fan_in: int, bias: tuple[int, ...] | None
    ) -> None:
        """Weight and bias of these shapes, from U(±1/√fan_in)."""
        bound = 1.0 / math.sqrt(fan_in)
        self.weight = init.uniform_(Parameter(np.empty(weight, np.float32)), bound)
        self.bias = None
        if bias is not None:
            self.bias = init.uniform_(Parameter(np.empty(bias, np.float32)), bound)

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def _channels(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"

    def extra_repr(self) -> str:
        text = f"{self._channels()}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}, padding={self.padding!r}"
        if any(n != 1 for n in self.dilation):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return text if self.bias is not None else text + ", bias=False"


class Convolution(_Filters):
    """What the convolution layers share: their options, weight and bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Paddings,
        dilation: Sizes,
        groups: int,
        bias: bool,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        ends = (self.out_channels, self.in_channels)
        first, last = reversed(ends) if self.transposed else ends
        taps = (*self.kernel_size, last // self.groups)
        biases = (self.out_channels,) if flag("bias", bias) else None
        self._add_parameters((first, *taps), math.prod(taps), biases)


class Conv1d(Convolution):
    """1-D convolution with its own weight (OC, K, C/groups) and bias (OC); see F.conv1d.

    Weight and bias start as U(±1/√fan_in), as in torch.nn.Conv1d.
    """

    dims = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Paddings = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self.weight, self.bias, **self._options())


class Conv2d(Convolution):
    """2-D convolution with its own weight (OC, KH, KW, C/groups) and bias (OC); see F.conv2d.

    Weight and bias start as U(±1/√fan_in), as in torch.nn.Conv2d.

    >>> import gpucnn
    >>> layer = gpucnn.nn.Conv2d(1, 16, 5, stride=2, padding=2)
    >>> layer(gpucnn.Tensor([[[[0.5]] * 72] * 72])).shape
    (1, 36, 36, 16)
    """

    dims = 2

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
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, **self._options())


class Conv3d(Convolution):
    """3-D convolution with its own weight (OC, KD, KH, KW, C/groups) and bias (OC); see F.conv3d.

    Weight and bias start as U(±1/√fan_in), as in torch.nn.Conv3d.
    """

    dims = 3

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Paddings = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(x, self.weight, self.bias, **self._options())


class TransposedConvolution(Convolution):
    """What the transposed convolution layers share."""

    transposed = True
    convolve: Any  # the function

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Paddings = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.output_padding = sizes("output_padding", output_padding, self.dims, 0)
        for extra, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(s, d):
                raise ValueError(
                    f"output_padding must be 0 … {max(s, d) - 1}, smaller than the stride ({s}) or "
                    f"the dilation ({d}), got {extra}"
                )

    def forward(self, x: Tensor, output_size: Sizes | None = None) -> Tensor:
        extra = self.output_padding if output_size is None else 0
        options = {**self._options(), "output_padding": extra, "output_size": output_size}
        return cast("Tensor", type(self).convolve(x, self.weight, self.bias, **options))

    def extra_repr(self) -> str:
        extra = self.output_padding
        return super().extra_repr() + (f", output_padding={extra}" if any(extra) else "")


class ConvTranspose1d(TransposedConvolution):
    """1-D transposed convolution with weight (C, K, OC/groups) and bias (OC).

    See F.conv_transpose1d. Weight and bias start as U(±1/√(K·OC/groups)), as in
    torch.nn.ConvTranspose1d. ``layer(x, output_size=OW)`` chooses the output_padding of that call.
    """

    dims, convolve = 1, F.conv_transpose1d


class ConvTranspose2d(TransposedConvolution):
    """2-D transposed convolution with weight (C, KH, KW, OC/groups) and bias (OC).

    See F.conv_transpose2d. Weight and bias start as U(±1/√(KH·KW·OC/groups)), as in
    torch.nn.ConvTranspose2d. ``layer(x, output_size=(OH, OW))`` chooses the output_padding of that
    call.
    """

    dims, convolve = 2, F.conv_transpose2d


class ConvTranspose3d(TransposedConvolution):
    """3-D transposed convolution with weight (C, KD, KH, KW, OC/groups) and bias (OC).

    See F.conv_transpose3d. Weight and bias start as U(±1/√(KD·KH·KW·OC/groups)), as in
    torch.nn.ConvTranspose3d. ``layer(x, output_size=(OD, OH, OW))`` chooses the output_padding of
    that call.
    """

    dims, convolve = 3, F.conv_transpose3d


class LocallyConnected2d(_Filters):
    """2-D convolution whose output positions have their own filters; see F.locally_connected2d.

    It keeps the local connections of Conv2d and drops the sharing of weights, so that either idea
    can be measured without the other. Weight (OH, OW, OC, KH, KW, C/groups) and bias (OH, OW, OC)
    fit one input_size, (H, W), and start as U(±1/√(KH·KW·C/groups)) like those of Conv2d.
    """

    dims = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        input_size: int | Pair,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | Padding | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        self.input_size = pair("input_size", input_size)
        windows = (self.input_size, self.kernel_size, self.stride)
        pads = resolve_padding(padding, *windows, self.dilation)
        axes = zip(*windows, pads, self.dilation, strict=True)
        out = [conv_output_size(n, k, stride=s, padding=p, dilation=d) for n, k, s, p, d in axes]
        taps = (*self.kernel_size, self.in_channels // self.groups)
        positions = (*out, self.out_channels)
        biases = positions if flag("bias", bias) else None
        self._add_parameters((*positions, *taps), math.prod(taps), biases)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4 and x.shape[1:3] != self.input_size:
            raise ValueError(f"x must be images of input_size {self.input_size}, got {x.shape}")
        return F.locally_connected2d(x, self.weight, self.bias, **self._options())

    def _channels(self) -> str:
        return f"{super()._channels()}, input_size={self.input_size}"
