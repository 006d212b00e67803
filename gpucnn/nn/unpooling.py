"""Unpooling layers; images are (N, H, W, C).

A layer made by ``pool.inverse()`` is tied to that pool: it undoes the pool's last forward pass,
whose input size, padding and indices the pool then remembers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.avg_unpool2d import MODES
from gpucnn.ops.geometry import Pair, choice, padding_pairs, pair
from gpucnn.ops.unpool2d import OVERLAPS
from gpucnn.tensor import Tensor


@dataclass
class LastForward:
    """What a pool remembers of its last forward pass for the layers tied to it."""

    input_size: Pair | None = None
    padding: tuple[Pair, ...] = ((0, 0), (0, 0))
    indices: Tensor | None = None


class _Unpool2d(Module):
    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None,
        padding: int | tuple[int, ...] | tuple[Pair, ...] | str,
        tied: LastForward | None,
    ) -> None:
        self.kernel_size = pair("kernel_size", kernel_size)
        self.stride = self.kernel_size if stride is None else pair("stride", stride)
        self.padding = padding if isinstance(padding, str) else padding_pairs(padding)
        self._tied = tied

    def _windows(self, output_size: int | Pair | None) -> dict[str, Any]:
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


class MaxUnpool2d(_Unpool2d):
    """Values back to the cells that won; see F.max_unpool2d. Call it with (x, indices).

    ``MaxPool2d.inverse()`` makes one that is called with x alone.
    """

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] | tuple[Pair, ...] | str = 0,
        overlap: str = "last",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, tied)
        self.overlap = choice("overlap", overlap, OVERLAPS)

    def forward(
        self, x: Tensor, indices: Any = None, output_size: int | Pair | None = None
    ) -> Tensor:
        windows = self._windows(output_size)
        if self._tied is not None:
            if indices is not None:
                raise ValueError("indices are those of the pool: leave them out")
            indices = self._tied.indices
        if indices is None:
            raise TypeError("indices are needed: the second output of a MaxPool2d")
        return F.max_unpool2d(x, indices, overlap=self.overlap, **windows)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.overlap == "last" else f"{text}, overlap={self.overlap!r}"


class _SpreadOrRepeat2d(_Unpool2d):
    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None,
        padding: int | tuple[int, ...] | tuple[Pair, ...] | str,
        mode: str,
        tied: LastForward | None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, tied)
        self.mode = choice("mode", mode, MODES)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"


class AvgUnpool2d(_SpreadOrRepeat2d):
    """The way back from averages; see F.avg_unpool2d. AvgPool2d.inverse() makes a tied one."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] | tuple[Pair, ...] | str = 0,
        mode: str = "repeat",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, mode, tied)

    def forward(self, x: Tensor, output_size: int | Pair | None = None) -> Tensor:
        return F.avg_unpool2d(x, mode=self.mode, **self._windows(output_size))


class SumUnpool2d(_SpreadOrRepeat2d):
    """The way back from sums; see F.sum_unpool2d. SumPool2d.inverse() makes a tied one."""

    def __init__(
        self,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] | None = None,
        padding: int | tuple[int, ...] | tuple[Pair, ...] | str = 0,
        mode: str = "spread",
        *,
        tied: LastForward | None = None,
    ) -> None:
        super().__init__(kernel_size, stride, padding, mode, tied)

    def forward(self, x: Tensor, output_size: int | Pair | None = None) -> Tensor:
        return F.sum_unpool2d(x, mode=self.mode, **self._windows(output_size))
