"""3-D unpooling: by indices in ``kernels/unpool2d.cu``; averages and sums axis by axis."""

from __future__ import annotations

from typing import Any, cast

from gpucnn.ops.avg_unpool2d import avg_unpool2d, sum_unpool2d
from gpucnn.ops.geometry import Pair
from gpucnn.ops.unpool2d import unpool_by_indices
from gpucnn.ops.window import unpool_axes
from gpucnn.tensor import Tensor, check_tensor

Size = int | tuple[int, int, int]
Ends = int | tuple[int, int, int] | tuple[Pair, Pair, Pair] | str


def max_unpool3d(
    x: Tensor,
    indices: Any,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    overlap: str = "last",
) -> Tensor:
    """Put each value back where a max pooling found it; all other cells are 0.

    ``y[n, d, h, w, c] = x[n, od, oh, ow, c]`` with ``(d·H + h)·W + w = indices[n, od, oh, ow, c]``.

    x: (N, OD, OH, OW, C) float32 (float64 on cpu). indices: integers of its shape, as a Tensor or
    an array, from ``max_pool3d(…, return_indices=True)`` or elsewhere: any cell of the output, and
    -1 for a value that is left out. kernel_size, stride, padding: those of the pooling (padding in
    numbers or "valid"). output_size: (D, H, W), less than a stride away from the default
    ``D = (OD − 1)·SD − PF − PB + KD``, H and W likewise. overlap (raster order is that of
    (od, oh, ow)), indices outside the output and errors as in
    :func:`gpucnn.functional.max_unpool2d`. Returns (N, D, H, W, C).

    Source: torch.nn.functional.max_unpool3d, which leaves open who wins where windows overlap.
    """
    windows = {"kernel_size": kernel_size, "stride": stride, "padding": padding}
    options = {"output_size": output_size, "overlap": overlap}
    return unpool_by_indices(3, x, indices, **windows, **options)


def _back(unpool: Any, x: Tensor, mode: str, *windows: Any) -> Tensor:
    """Along depth, then in the planes: the windows that hold a cell are products over the axes."""
    check_tensor("x", x)
    depth, *planes = unpool_axes(3, x, *windows)
    N, C = x.shape[0], x.shape[4]
    (OH, H, KH, SH, rows), (OW, W, KW, SW, columns) = planes
    stacks = x.reshape(N, depth.outputs, 1, OH * OW * C)
    along = (depth.kernel, 1), (depth.stride, 1), (depth.padding, (0, 0))
    y = unpool(stacks, *along, output_size=(depth.size, 1), mode=mode)
    y = y.reshape(N * depth.size, OH, OW, C)
    y = unpool(y, (KH, KW), (SH, SW), (rows, columns), output_size=(H, W), mode=mode)
    return cast("Tensor", y.reshape(N, depth.size, H, W, C))


def avg_unpool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    mode: str = "repeat",
) -> Tensor:
    """The way back from :func:`avg_pool3d`: "repeat", its right inverse, or "spread", its adjoint.

    x: (N, OD, OH, OW, C) float32 (float64 on cpu). kernel_size, stride, padding, output_size: as in
    :func:`max_unpool3d`. mode and errors as in :func:`gpucnn.functional.avg_unpool2d`, with windows
    of KD·KH·KW cells. Returns (N, D, H, W, C).
    """
    return _back(avg_unpool2d, x, mode, kernel_size, stride, padding, output_size)


def sum_unpool3d(
    x: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Ends = 0,
    *,
    output_size: Size | None = None,
    mode: str = "spread",
) -> Tensor:
    """The way back from :func:`sum_pool3d`: "spread", its right inverse, or "repeat", its adjoint.

    Shapes, arguments and errors as in :func:`avg_unpool3d`; the modes are those of
    :func:`gpucnn.functional.sum_unpool2d`.
    """
    return _back(sum_unpool2d, x, mode, kernel_size, stride, padding, output_size)
