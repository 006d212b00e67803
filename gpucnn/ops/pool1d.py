"""1-D pooling: the 2-D kernels on images of one row."""

from __future__ import annotations

from typing import Any

from gpucnn.ops.avg_pool2d import avg_pool2d, sum_pool2d
from gpucnn.ops.geometry import Pair, padding_of_axes, sizes
from gpucnn.ops.pool2d import max_pool2d
from gpucnn.tensor import Tensor, check_tensor

Size = int | tuple[int]
Ends = int | tuple[int] | tuple[Pair] | str


def as_row(x: Tensor) -> Tensor:
    """(N, W, C) as images (N, 1, W, C)."""
    check_tensor("x", x)
    if x.ndim != 3:
        raise ValueError(f"x must have shape (N, W, C), got {x.shape}")
    return x.reshape(x.shape[0], 1, *x.shape[1:])


def without_height(y: Tensor) -> Tensor:
    """Images (N, 1, W, C) as (N, W, C)."""
    return y.reshape(y.shape[0], *y.shape[2:])


def _windows(kernel_size: Any, stride: Any, padding: Any) -> dict[str, Any]:
    return {
        "kernel_size": (1, *sizes("kernel_size", kernel_size, 1)),
        "stride": None if stride is None else (1, *sizes("stride", stride, 1)),
        "padding": padding if isinstance(padding, str) else ((0, 0), *padding_of_axes(padding, 1)),
    }


def max_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    dilation: Size = 1,
    edge: str = "drop",
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The maximum of each window of a sequence.

    ``y[n,o,c] = max x[n, o·S − P + k·D, c]`` over k < K and the places inside the sequence.

    x: (N, W, C) float32 (float64 on cpu). kernel_size, stride (None: kernel_size), dilation: int.
    padding: int, ((left, right),), "valid" or "same". All else, ties, NaN, edge, indices (int32, w
    of the winner) and errors, as in :func:`gpucnn.functional.max_pool2d` with images of one row.
    Returns y (N, OW, C), or (y, indices). Source: torch.nn.functional.max_pool1d.
    """
    windows = _windows(kernel_size, stride, padding)
    (spread,) = sizes("dilation", dilation, 1)
    result = max_pool2d(
        as_row(x), **windows, dilation=(1, spread), edge=edge, return_indices=return_indices
    )
    if isinstance(result, Tensor):
        return without_height(result)
    y, indices = result
    return without_height(y), without_height(indices)


def avg_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    edge: str = "drop",
    count_include_pad: bool = True,
) -> Tensor:
    """The mean of each window of a sequence: ``y[n,o,c] = Σ x[n, o·S − P + k, c] / divisor``.

    x: (N, W, C) -> (N, OW, C). kernel_size, stride, padding as in :func:`max_pool1d`; the divisor,
    edge and errors as in :func:`gpucnn.functional.avg_pool2d`. Source:
    torch.nn.functional.avg_pool1d.
    """
    windows = _windows(kernel_size, stride, padding)
    return without_height(
        avg_pool2d(as_row(x), **windows, edge=edge, count_include_pad=count_include_pad)
    )


def sum_pool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    edge: str = "drop",
) -> Tensor:
    """The sum of each window of a sequence: ``y[n,o,c] = Σ x[n, o·S − P + k, c]``.

    x: (N, W, C) -> (N, OW, C). Arguments and errors as in :func:`avg_pool1d`.
    """
    return without_height(
        sum_pool2d(as_row(x), **_windows(kernel_size, stride, padding), edge=edge)
    )
