"""Pooling layers; images are (N, H, W, C), sequences (N, W, C), volumes (N, D, H, W, C)."""

from __future__ import annotations

from typing import Any, cast

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.nn.unpooling import (
    AvgUnpool,
    AvgUnpool1d,
    AvgUnpool2d,
    AvgUnpool3d,
    LastForward,
    MaxUnpool,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
    SumUnpool,
    SumUnpool1d,
    SumUnpool2d,
    SumUnpool3d,
)
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
        size = x.shape[1:-1]
        self._last.input_size, self._last.indices = size, indices
        self._last.padding = resolve_padding(
            self.padding, size, self.kernel_size, self.stride, self.dilation
        )

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        return text + "".join(f", {name}={value!r}" for name, value in self._options().items())


class _MaxPool(_Pool):
    unpool: type[MaxUnpool]

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

    def inverse(self, overlap: str = "last") -> MaxUnpool:
        """The unpooling layer that puts values where this pool's last forward pass found them."""
        reach = tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True))
        tied = self._remembered()
        return self.unpool(reach, self.stride, self.padding, overlap, tied=tied)


class MaxPool1d(_MaxPool):
    """The maximum of each window of (N, W, C); see F.max_pool1d."""

    dims, pool, unpool = 1, F.max_pool1d, MaxUnpool1d


class MaxPool2d(_MaxPool):
    """The maximum of each window; see F.max_pool2d. Returns (y, indices) with return_indices."""

    pool, unpool = F.max_pool2d, MaxUnpool2d


class MaxPool3d(_MaxPool):
    """The maximum of each window of (N, D, H, W, C); see F.max_pool3d."""

    dims, pool, unpool = 3, F.max_pool3d, MaxUnpool3d


class _AvgPool(_Pool):
    unpool: type[AvgUnpool]

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

    def inverse(self, mode: str = "repeat") -> AvgUnpool:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return self.unpool(self.kernel_size, self.stride, self.padding, mode, tied=tied)


class AvgPool1d(_AvgPool):
    """The mean of each window of (N, W, C); see F.avg_pool1d."""

    dims, pool, unpool = 1, F.avg_pool1d, AvgUnpool1d


class AvgPool2d(_AvgPool):
    """The mean of each window; see F.avg_pool2d."""

    pool, unpool = F.avg_pool2d, AvgUnpool2d


class AvgPool3d(_AvgPool):
    """The mean of each window of (N, D, H, W, C); see F.avg_pool3d."""

    dims, pool, unpool = 3, F.avg_pool3d, AvgUnpool3d


class _SumPool(_Pool):
    unpool: type[SumUnpool]

    def inverse(self, mode: str = "spread") -> SumUnpool:
        """The unpooling layer that goes back to the size of this pool's last input."""
        tied = self._remembered()
        return self.unpool(self.kernel_size, self.stride, self.padding, mode, tied=tied)


class SumPool1d(_SumPool):
    """The sum of each window of (N, W, C); see F.sum_pool1d."""

    dims, pool, unpool = 1, F.sum_pool1d, SumUnpool1d


class SumPool2d(_SumPool):
    """The sum of each window; see F.sum_pool2d."""

    pool, unpool = F.sum_pool2d, SumUnpool2d


class SumPool3d(_SumPool):
    """The sum of each window of (N, D, H, W, C); see F.sum_pool3d."""

    dims, pool, unpool = 3, F.sum_pool3d, SumUnpool3d
