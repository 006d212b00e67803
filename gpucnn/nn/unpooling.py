"""Unpooling layers; images are (N, H, W, C), sequences (N, W, C), volumes (N, D, H, W, C).

A layer made by ``pool.inverse()`` is tied to that pool: it undoes the pool's last forward pass,
whose input size, padding and indices the pool then remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.avg_unpool2d import MODES
from gpucnn.ops.geometry import Pair, choice, padding_of_axes, sizes
from gpucnn.ops.unpool2d import OVERLAPS
from gpucnn.tensor import Tensor

Sizes = int | tuple[int, ...]
Paddings = int | tuple[int, ...] | tuple[Pair, ...] | str


@dataclass
class LastForward:
    """What a pool remembers of its last forward pass for the layers tied to it."""

    input_size: tuple[int, ...] | None = None
    padding: tuple[Pair, ...] = ()
    indices: Tensor | None = None


class _Unpool(Module):
    """The window, and what every unpooling layer says of it."""

    dims = 2
    unpool: Any  # the function

    def __init__(
        self, kernel_size: Sizes, stride: Sizes | None, padding: Paddings, tied: LastForward | None
    ) -> None:
        self.kernel_size = sizes("kernel_size", kernel_size, self.dims)
        self.stride = self.kernel_size if stride is None else sizes("stride", stride, self.dims)
        self.padding = padding if isinstance(padding, str) else padding_of_axes(padding, self.dims)
        self._tied = tied

    def _windows(self, output_size: Sizes | None) -> dict[str, Any]:
        windows: dict[str, Any] = {"kernel_size": self.kernel_size, "stride": self.stride}
        if self._tied is None:
            return {**windows, "padding": self.padding, "output_size": output_size}
        if self._tied.input_size is None:
            raise RuntimeError(f"{type(self).__name__}: its pool has not run yet")
        if output_size is not None:
            raise ValueError(f"output_size is that of the pool's input, got {output_size!r}")
        size = self._tied.input_size
        return {**windows, "padding": self._tied.padding, "output_size": size}

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding!r}"
        return text if self._tied is None else f"{text}, tied"


class MaxUnpool(_Unpool):
    """What the max-unpooling layers share."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        overlap: str = "last",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, tied)
        self.overlap = choice("overlap", overlap, OVERLAPS)

    def forward(self, x: Tensor, indices: Any = None, output_size: Sizes | None = None) -> Tensor:
        windows = self._windows(output_size)
        if self._tied is not None:
            if indices is not None:
                raise ValueError("indices are those of the pool: leave them out")
            indices = self._tied.indices
        if indices is None:
            raise TypeError(f"indices are needed: the second output of a MaxPool{self.dims}d")
        return cast("Tensor", type(self).unpool(x, indices, overlap=self.overlap, **windows))

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.overlap == "last" else f"{text}, overlap={self.overlap!r}"


class MaxUnpool1d(MaxUnpool):
    """Values back to the places that won; see F.max_unpool1d. Call it with (x, indices).

    ``MaxPool1d.inverse()`` makes one that is called with x alone.
    """

    dims, unpool = 1, F.max_unpool1d


class MaxUnpool2d(MaxUnpool):
    """Values back to the cells that won; see F.max_unpool2d. Call it with (x, indices).

    ``MaxPool2d.inverse()`` makes one that is called with x alone.
    """

    unpool = F.max_unpool2d


class MaxUnpool3d(MaxUnpool):
    """Values back to the cells that won; see F.max_unpool3d. Call it with (x, indices).

    ``MaxPool3d.inverse()`` makes one that is called with x alone.
    """

    dims, unpool = 3, F.max_unpool3d


class SpreadOrRepeat(_Unpool):
    """What the layers share that go back from averages and sums."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None,
        padding: Paddings,
        mode: str,
        tied: LastForward | None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, tied)
        self.mode = choice("mode", mode, MODES)

    def forward(self, x: Tensor, output_size: Sizes | None = None) -> Tensor:
        y = type(self).unpool(x, mode=self.mode, **self._windows(output_size))
        return cast("Tensor", y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


class AvgUnpool(SpreadOrRepeat):
    """What the average-unpooling layers share."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        mode: str = "repeat",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, mode, tied)


class AvgUnpool1d(AvgUnpool):
    """The way back from averages; see F.avg_unpool1d. AvgPool1d.inverse() makes a tied one."""

    dims, unpool = 1, F.avg_unpool1d


class AvgUnpool2d(AvgUnpool):
    """The way back from averages; see F.avg_unpool2d. AvgPool2d.inverse() makes a tied one."""

    unpool = F.avg_unpool2d


class AvgUnpool3d(AvgUnpool):
    """The way back from averages; see F.avg_unpool3d. AvgPool3d.inverse() makes a tied one."""

    dims, unpool = 3, F.avg_unpool3d


class SumUnpool(SpreadOrRepeat):
    """What the sum-unpooling layers share."""

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Paddings = 0,
        mode: str = "spread",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, mode, tied)


class SumUnpool1d(SumUnpool):
    """The way back from sums; see F.sum_unpool1d. SumPool1d.inverse() makes a tied one."""

    dims, unpool = 1, F.sum_unpool1d


class SumUnpool2d(SumUnpool):
    """The way back from sums; see F.sum_unpool2d. SumPool2d.inverse() makes a tied one."""

    unpool = F.sum_unpool2d


class SumUnpool3d(SumUnpool):
    """The way back from sums; see F.sum_unpool3d. SumPool3d.inverse() makes a tied one."""

    dims, unpool = 3, F.sum_unpool3d
