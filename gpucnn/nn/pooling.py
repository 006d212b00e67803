"""Pooling layers; images are (N, H, W, C)."""

from __future__ import annotations

from typing import Any

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.nn.unpooling import AvgUnpool2d, LastForward, MaxUnpool2d, SumUnpool2d
from gpucnn.ops.geometry import Padding, Pair, padding_pairs, pair, resolve_padding
from gpucnn.ops.window import EDGES
from gpucnn.tensor import Tensor


class _Pool2d(Module):
    """The window, and what every pooling layer says of it."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None,
        padding: int | Pair | Padding | str,
        edge: str,
    ) -> None:
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair("stride", stride)
        self.padding = padding if isinstance(padding, str) else padding_pairs(padding)
        self.dilation = (1, 1)
        if edge not in EDGES:
            raise ValueError(f"edge must be one of {', '.join(EDGES)}, got {edge!r}")
        self.edge = edge
        self._last: LastForward | None = None  # once a layer is tied to this one

    def _remembered(self) -> LastForward:
        """The memory that this layer and the layers tied to it share."""
        self._last = self._last or LastForward()
        return self._last

    def _remember(self, x: Tensor, indices: Tensor | None = None) -> None:
        if self._last is None:
            return
        size = x.shape[1], x.shape[2]
        self._last.input_size, self._last.indices = size, indices
        self._last.padding = resolve_padding(
            self.padding, size, self.kernel_size, self.stride, self.dilation
        )

    def _options(self) -> dict[str, Any]:
        """The options that the layer passes on, and shows where they are not the default."""
        return {} if self.edge == "drop" else {"edge": self.edge}

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        return text + "".join(f", {name}={value!r}" for name, value in self._options().items())


class MaxPool2d(_Pool2d):
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
        super().__init__(kernel_size, stride, padding, edge)
        self.dilation = pair("dilation", dilation)
        self.return_indices = bool(return_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        result = F.max_pool2d(
            x,
            self.kernel_size,
            self.stride,
            self.padding,
            dilation=self.dilation,
            edge=self.edge,
            return_indices=self.return_indices or self._last is not None,
        )
        if isinstance(result, Tensor):
            return result
        self._remember(x, result[1])
        return result if self.return_indices else result[0]

    def inverse(self, overlap: str = "last") -> MaxUnpool2d:
        """The unpooling layer that puts values where this pool's last forward pass found them."""
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        return MaxUnpool2d(
            (reach[0], reach[1]), self.stride, self.padding, overlap, tied=self._remembered()
        )

    def _options(self) -> dict[str, Any]:
        dilation = {} if self.dilation == (1, 1) else {"dilation": self.dilation}
        return {**dilation, **super()._options()}


class AvgPool2d(_Pool2d):
    """The mean of each window; see F.avg_pool2d."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair | Padding | str = 0,
        edge: str = "drop",
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, edge)
        self.count_include_pad = bool(count_include_pad)

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(x, self.kernel_size, self.stride, self.padding, **self._options())
        self._remember(x)
        return y

    def inverse(self, mode: str = "repeat") -> AvgUnpool2d:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return AvgUnpool2d(self.kernel_size, self.stride, self.padding, mode, tied=tied)

    def _options(self) -> dict[str, Any]:
        include = {} if self.count_include_pad else {"count_include_pad": False}
        return {**super()._options(), **include}


class SumPool2d(_Pool2d):
    """The sum of each window; see F.sum_pool2d."""

    def __init__(
        self,
        kernel_size: int | Pair,
        stride: int | Pair | None = None,
        padding: int | Pair | Padding | str = 0,
        edge: str = "drop",
    ) -> None:
        super().__init__(kernel_size, stride, padding, edge)

    def forward(self, x: Tensor) -> Tensor:
        y = F.sum_pool2d(x, self.kernel_size, self.stride, self.padding, **self._options())
        self._remember(x)
        return y

    def inverse(self, mode: str = "spread") -> SumUnpool2d:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return SumUnpool2d(self.kernel_size, self.stride, self.padding, mode, tied=tied)


class AdaptiveAvgPool2d(Module):
    """The means of regions that cover the image; see F.adaptive_avg_pool2d."""

    def __init__(self, output_size: int | tuple[int | None, int | None]) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x, self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool2d(Module):
    """The maxima of regions that cover the image; see F.adaptive_max_pool2d."""

    def __init__(
        self, output_size: int | tuple[int | None, int | None], return_indices: bool = False
    ) -> None:
        self.output_size = output_size
        self.return_indices = bool(return_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return F.adaptive_max_pool2d(x, self.output_size, return_indices=self.return_indices)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalAvgPool2d(Module):
    """The mean of each channel, (N, C); see F.global_avg_pool2d."""

    def forward(self, x: Tensor) -> Tensor:
        return F.global_avg_pool2d(x)


class GlobalMaxPool2d(Module):
    """The maximum of each channel, (N, C); see F.global_max_pool2d."""

    def forward(self, x: Tensor) -> Tensor:
        return F.global_max_pool2d(x)
