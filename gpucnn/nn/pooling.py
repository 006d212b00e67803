"""Pooling layers; images are (N, H, W, C)."""

from __future__ import annotations

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.geometry import Padding, Pair, padding_pairs, pair
from gpucnn.tensor import Tensor


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
