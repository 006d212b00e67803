"""Pooling layers; images are (N, H, W, C), sequences (N, W, C), volumes (N, D, H, W, C)."""

from __future__ import annotations

from typing import Any, cast

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.nn.unpooling import AvgUnpool2d, LastForward, MaxUnpool2d, SumUnpool2d
from gpucnn.ops.geometry import Pair, choice, flag, padding_of_axes, resolve_padding, sizes
from gpucnn.ops.window import EDGES
from gpucnn.tensor import Tensor

Sizes = int | tuple[int, ...]
Paddings = int | tuple[int, ...] | tuple[Pair, ...] | str


class _Pool(Module):
    """The window, and what every pooling layer says of it."""

    dims = 2
    pool: Any  # the function

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        edge: str = "drop",
    ) -> None:
        self.kernel_size = sizes("kernel_size", kernel_size, self.dims)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, self.dims)
        self.padding = padding if isinstance(padding, str) else padding_of_axes(padding, self.dims)
        self.dilation: tuple[int, ...] = (1,) * self.dims
        self.edge = choice("edge", edge, EDGES)
        self._last: LastForward | None = None  # once a layer is tied to this one

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = type(self).pool(x, self.kernel_size, self.stride, self.padding, **self._options())
        self._remember(x, None)
        return cast("Tensor", y)

    def _options(self) -> dict[str, Any]:
        """The options that the layer passes on, and shows where they are not the default."""
        return {} if self.edge == "drop" else {"edge": self.edge}

    def _remembered(self) -> LastForward:
        """The memory that this layer and the layers tied to it share."""
        self._last = self._last or LastForward()
        return self._last

    def _remember(self, x: Tensor, indices: Tensor | None) -> None:
        if self._last is None:
            return
        size = x.shape[1], x.shape[2]
        self._last.input_size, self._last.indices = size, indices
        self._last.padding = resolve_padding(
            self.padding, size, self.kernel_size, self.stride, self.dilation
        )

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        return text + "".join(f", {name}={value!r}" for name, value in self._options().items())


class _MaxPool(_Pool):
    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        dilation: Sizes = 1,
        edge: str = "drop",
        return_indices: bool = False,
    ) -> None:
        super().__init__(kernel_size, stride, padding, edge)
        self.dilation = sizes("dilation", dilation, self.dims)
        self.return_indices = flag("return_indices", return_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        windows, options = (self.kernel_size, self.stride, self.padding), self._options()
        if not self.return_indices and self._last is None:
            return cast("Tensor", type(self).pool(x, *windows, **options))
        y, indices = type(self).pool(x, *windows, return_indices=True, **options)
        self._remember(x, indices)
        return (y, indices) if self.return_indices else y

    def _options(self) -> dict[str, Any]:
        dilation = {} if max(self.dilation) == 1 else {"dilation": self.dilation}
        return {**dilation, **super()._options()}


class MaxPool1d(_MaxPool):
    """The maximum of each window of (N, W, C); see F.max_pool1d."""

    dims, pool = 1, F.max_pool1d


class MaxPool2d(_MaxPool):
    """The maximum of each window; see F.max_pool2d. Returns (y, indices) with return_indices."""

    pool = F.max_pool2d

    def inverse(self, overlap: str = "last") -> MaxUnpool2d:
        """The unpooling layer that puts values where this pool's last forward pass found them."""
        high, wide = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        tied = self._remembered()
        return MaxUnpool2d((high, wide), self.stride, self.padding, overlap, tied=tied)


class MaxPool3d(_MaxPool):
    """The maximum of each window of (N, D, H, W, C); see F.max_pool3d."""

    dims, pool = 3, F.max_pool3d


class _AvgPool(_Pool):
    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        edge: str = "drop",
        count_include_pad: bool = True,
    ) -> None:
        super().__init__(kernel_size, stride, padding, edge)
        self.count_include_pad = flag("count_include_pad", count_include_pad)

    def _options(self) -> dict[str, Any]:
        include = {} if self.count_include_pad else {"count_include_pad": False}
        return {**super()._options(), **include}


class AvgPool1d(_AvgPool):
    """The mean of each window of (N, W, C); see F.avg_pool1d."""

    dims, pool = 1, F.avg_pool1d


class AvgPool2d(_AvgPool):
    """The mean of each window; see F.avg_pool2d."""

    pool = F.avg_pool2d

    def inverse(self, mode: str = "repeat") -> AvgUnpool2d:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return AvgUnpool2d(self.kernel_size, self.stride, self.padding, mode, tied=tied)


class AvgPool3d(_AvgPool):
    """The mean of each window of (N, D, H, W, C); see F.avg_pool3d."""

    dims, pool = 3, F.avg_pool3d


class SumPool1d(_Pool):
    """The sum of each window of (N, W, C); see F.sum_pool1d."""

    dims, pool = 1, F.sum_pool1d


class SumPool2d(_Pool):
    """The sum of each window; see F.sum_pool2d."""

    pool = F.sum_pool2d

    def inverse(self, mode: str = "spread") -> SumUnpool2d:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return SumUnpool2d(self.kernel_size, self.stride, self.padding, mode, tied=tied)


class SumPool3d(_Pool):
    """The sum of each window of (N, D, H, W, C); see F.sum_pool3d."""

    dims, pool = 3, F.sum_pool3d
