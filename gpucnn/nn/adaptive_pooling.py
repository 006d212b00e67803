"""Adaptive and global pooling; images are (N, H, W, C), sequences (N, W, C), volumes 5-d."""

from __future__ import annotations

from typing import Any, cast

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.geometry import flag
from gpucnn.tensor import Tensor

OutputSize = int | tuple[int | None, ...]


class AdaptiveAvgPool(Module):
    """What the layers share that take means of regions."""

    pool: Any  # the function

    def __init__(self, output_size: OutputSize) -> None:
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", type(self).pool(x, self.output_size))

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class AdaptiveMaxPool(Module):
    """What the layers share that take maxima of regions."""

    pool: Any  # the function

    def __init__(self, output_size: OutputSize, return_indices: bool = False) -> None:
        self.output_size = output_size
        self.return_indices = flag("return_indices", return_indices)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        result = type(self).pool(x, self.output_size, return_indices=self.return_indices)
        return cast("Tensor | tuple[Tensor, Tensor]", result)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}"


class GlobalPool(Module):
    """What the layers share that pool whole images."""

    pool: Any  # the function

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", type(self).pool(x))


class AdaptiveAvgPool1d(AdaptiveAvgPool):
    """The means of regions that cover the sequence; see F.adaptive_avg_pool1d."""

    pool = F.adaptive_avg_pool1d


class AdaptiveAvgPool2d(AdaptiveAvgPool):
    """The means of regions that cover the image; see F.adaptive_avg_pool2d."""

    pool = F.adaptive_avg_pool2d


class AdaptiveAvgPool3d(AdaptiveAvgPool):
    """The means of regions that cover the volume; see F.adaptive_avg_pool3d."""

    pool = F.adaptive_avg_pool3d


class AdaptiveMaxPool1d(AdaptiveMaxPool):
    """The maxima of regions that cover the sequence; see F.adaptive_max_pool1d."""

    pool = F.adaptive_max_pool1d


class AdaptiveMaxPool2d(AdaptiveMaxPool):
    """The maxima of regions that cover the image; see F.adaptive_max_pool2d."""

    pool = F.adaptive_max_pool2d


class AdaptiveMaxPool3d(AdaptiveMaxPool):
    """The maxima of regions that cover the volume; see F.adaptive_max_pool3d."""

    pool = F.adaptive_max_pool3d


class GlobalAvgPool1d(GlobalPool):
    """The mean of each channel of a sequence, (N, C); see F.global_avg_pool1d."""

    pool = F.global_avg_pool1d


class GlobalAvgPool2d(GlobalPool):
    """The mean of each channel, (N, C); see F.global_avg_pool2d."""

    pool = F.global_avg_pool2d


class GlobalAvgPool3d(GlobalPool):
    """The mean of each channel of a volume, (N, C); see F.global_avg_pool3d."""

    pool = F.global_avg_pool3d


class GlobalMaxPool1d(GlobalPool):
    """The maximum of each channel of a sequence, (N, C); see F.global_max_pool1d."""

    pool = F.global_max_pool1d


class GlobalMaxPool2d(GlobalPool):
    """The maximum of each channel, (N, C); see F.global_max_pool2d."""

    pool = F.global_max_pool2d


class GlobalMaxPool3d(GlobalPool):
    """The maximum of each channel of a volume, (N, C); see F.global_max_pool3d."""

    pool = F.global_max_pool3d
