"""1-D unpooling: the 2-D kernels on images of one row."""

from __future__ import annotations

from typing import Any, cast

from gpucnn.ops.avg_unpool2d import avg_unpool2d, sum_unpool2d
from gpucnn.ops.pool1d import Ends, Size, as_row, without_height
from gpucnn.ops.unpool2d import unpool_by_indices
from gpucnn.ops.window import unpool_axes
from gpucnn.tensor import Tensor, check_tensor


def max_unpool1d(
    x: Tensor,
    indices: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    overlap: str = "last",
) -> Tensor:
    """Put each value back where a max pooling found it; all other places are 0.

    ``y[n, w, c] = x[n, ow, c]`` with ``w = indices[n, ow, c]``.

    x: (N, OW, C) float32 (float64 on cpu). indices: integers of its shape, as a Tensor or an array,
    from ``max_pool1d(…, return_indices=True)`` or elsewhere: any place of the output, and -1 for a
    value that is left out. kernel_size, stride, padding: those of the pooling (padding in numbers
    or "valid"). output_size: W, less than a stride away from the default
    ``W = (OW − 1)·S − PL − PR + K``. overlap, indices outside the output and errors as in
    :func:`gpucnn.functional.max_unpool2d`. Returns (N, W, C).

    Source: torch.nn.functional.max_unpool1d, which leaves open who wins where windows overlap.
    """
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    options = {"output_size": output_size, "overlap": overlap}
    return unpool_by_indices(1, x, indices, **windows, **options)


def _back(unpool: Any, x: Tensor, mode: str, *windows: Any) -> Tensor:
    check_tensor("x", x)
    (axis,) = unpool_axes(1, x, *windows)
    kernel, stride, padding = (1, axis.kernel), (1, axis.stride), ((0, 0), axis.padding)
    y = unpool(as_row(x), kernel, stride, padding, output_size=(1, axis.size), mode=mode)
    return without_height(cast("Tensor", y))


def avg_unpool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    mode: str = "repeat",
) -> Tensor:
    """The way back from :func:`avg_pool1d`: "repeat", its right inverse, or "spread", its adjoint.

    x: (N, OW, C) float32 (float64 on cpu). kernel_size, stride, padding, output_size: as in
    :func:`max_unpool1d`. mode and errors as in :func:`gpucnn.functional.avg_unpool2d`, with windows
    of K places. Returns (N, W, C).
    """
    return _back(avg_unpool2d, x, mode, kernel_size, stride, padding, output_size)


def sum_unpool1d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    mode: str = "spread",
) -> Tensor:
    """The way back from :func:`sum_pool1d`: "spread", its right inverse, or "repeat", its adjoint.

    Shapes, arguments and errors as in :func:`avg_unpool1d`; the modes are those of
    :func:`gpucnn.functional.sum_unpool2d`.
    """
    return _back(sum_unpool2d, x, mode, kernel_size, stride, padding, output_size)
