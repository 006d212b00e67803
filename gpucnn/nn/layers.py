"""One class per function, with PyTorch's names and defaults; images are (N, H, W, C)."""

from __future__ import annotations

import math

import numpy as np

from gpucnn import functional as F
from gpucnn.nn import init
from gpucnn.nn.module import Module, Parameter
from gpucnn.ops.geometry import Padding, Pair, integer, padding_pairs, pair
from gpucnn.optim.optimizer import check_number
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


class Linear(Module):
    """Fully connected layer with weight (out, in) and bias (out); see F.linear.

    Weight and bias start as U(±1/√in_features), as in torch.nn.Linear.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        self.in_features = integer("in_features", in_features, 1)
        self.out_features = integer("out_features", out_features, 1)
        bound = 1.0 / math.sqrt(self.in_features)
        shape = (self.out_features, self.in_features)
        self.weight = init.uniform_(Parameter(np.empty(shape, np.float32)), bound)
        self.bias = (
            init.uniform_(Parameter(np.empty(shape[0], np.float32)), bound) if bias else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        text = f"{self.in_features}, {self.out_features}"
        return text if self.bias is not None else text + ", bias=False"


class MaxPool2d(Module):
    """The maximum of each window; see F.max_pool2d. Returns (y, indices) with return_indices."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair | Padding | str = 0,
        dilation: int | Pair = 1,
        edge: str = "drop",
        return_indices: bool = False,
    ) -> None:
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair("stride", stride)
        self.padding = padding if isinstance(padding, str) else padding_pairs(padding)
        self.dilation = pair("dilation", dilation)
        if edge not in ("drop", "ceil", "zero"):
            raise ValueError(f"edge must be drop, ceil or zero, got {edge!r}")
        self.edge = edge
        self.return_indices = bool(return_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.max_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            dilation=self.dilation,
            edge=self.edge,
            return_indices=self.return_indices,
        )

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        return text if self.edge == "drop" else f"{text}, edge={self.edge!r}"


class _BatchNorm(Module):
    _rank = 0
    _layout = ""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        self.num_features = integer("num_features", num_features, 1)
        self.eps = check_number("eps", eps, 0.0)
        self.momentum = check_number("momentum", momentum, 0.0, np.nextafter(1.0, 2.0))
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Tensor(np.zeros(num_features, np.float32))
        self.running_var = Tensor(np.ones(num_features, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != self._rank:
            raise ValueError(f"x must have shape {self._layout}, got {x.shape}")
        return F.batch_norm(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training,
            momentum=self.momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps:g}, momentum={self.momentum:g}"


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) with γ = weight, β = bias and running statistics."""

    _rank = 2
    _layout = "(N, C)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, H, W, C) with γ = weight, β = bias and running statistics."""

    _rank = 4
    _layout = "(N, H, W, C)"


class ReLU(Module):
    """max(x, 0); see F.relu."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Softmax(Module):
    """Softmax over the last axis; see F.softmax. Not needed before cross_entropy."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x)


class Flatten(Module):
    """(N, …) to (N, features), in memory order: for images H, W, C with C fastest."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1)
