"""1-D adaptive and global pooling: the 2-D kernels on images of one row."""

from __future__ import annotations

from typing import cast

from gpucnn.ops.adaptive_pool2d import adaptive_avg_pool2d, adaptive_max_pool2d, output_sizes
from gpucnn.ops.pool1d import as_row, without_height
from gpucnn.tensor import Tensor


def adaptive_avg_pool1d(x: Tensor, output_size: int | tuple[int | None]) -> Tensor:
    """The means of OW regions that cover the sequence, whatever its length.

    Region ow holds the places ``⌊ow·W/OW⌋ <= w < ⌈(ow + 1)·W/OW⌉``: regions may share a place, and
    repeat one if OW > W.

    x: (N, W, C) float32 (float64 on cpu). output_size: int >= 1 or (OW,); None keeps W. Returns
    (N, OW, C). Raises ValueError or TypeError naming the argument if a shape, dtype or number does
    not fit.

    Source: torch.nn.functional.adaptive_avg_pool1d.
    """
    row = as_row(x)
    (wide,) = output_sizes(output_size, row.shape[2:3])
    return without_height(adaptive_avg_pool2d(row, (1, wide)))


def adaptive_max_pool1d(
    x: Tensor, output_size: int | tuple[int | None], *, return_indices: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """The maxima of the regions of :func:`adaptive_avg_pool1d`.

    The first maximum wins and has the gradient; a NaN wins over numbers, the last NaN over others.
    Returns y (N, OW, C), or (y, indices) with ``return_indices``: int32, w of the winner. Arguments
    and errors as there.

    Source: torch.nn.functional.adaptive_max_pool1d.
    """
    row = as_row(x)
    (wide,) = output_sizes(output_size, row.shape[2:3])
    result = adaptive_max_pool2d(row, (1, wide), return_indices=return_indices)
    if isinstance(result, Tensor):
        return without_height(result)
    y, indices = result
    return without_height(y), without_height(indices)


def global_avg_pool1d(x: Tensor) -> Tensor:
    """The mean of each channel over the sequence: ``y[n,c] = Σ x[n,w,c] / W``.

    x: (N, W, C) float32 (float64 on cpu), at least one element -> (N, C). Raises ValueError or
    TypeError naming x if its shape or dtype does not fit. Source: Lin et al., arXiv 1312.4400.
    """
    y = adaptive_avg_pool1d(x, 1)
    return y.reshape(y.shape[0], y.shape[2])


def global_max_pool1d(x: Tensor) -> Tensor:
    """The maximum of each channel over the sequence: ``y[n,c] = max x[n,w,c]``.

    The first maximum has the gradient; a NaN wins over numbers. Shapes and errors as in
    :func:`global_avg_pool1d`.
    """
    y = cast("Tensor", adaptive_max_pool1d(x, 1))
    return y.reshape(y.shape[0], y.shape[2])
