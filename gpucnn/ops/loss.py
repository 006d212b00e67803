"""Losses: ``kernels/loss.cu``."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, DeviceError, empty, to_device
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import scale_forward
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.ops.reduce import column_sum
from gpucnn.ops.softmax import row_blocks
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks

# geometry

REDUCTIONS = ("mean", "sum", "none")


def check_reduction(reduction: Any) -> None:
    """Raise ValueError unless reduction is one of REDUCTIONS."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")


def class_indices(target: Any, shape: tuple[int, ...], classes: int, device: str) -> Array:
    """target as an int32 array of ``shape`` on ``device``, each label in 0…classes − 1.

    target: a Tensor of the device, a NumPy array or nested lists of integers. Labels in host memory
    are checked; those on a GPU are not, because the host would have to wait for them.
    """
    if isinstance(target, Tensor):
        if target.device != device:
            raise DeviceError(
                f"target must be on {device!r} like input, got a tensor on {target.device!r}"
            )
        target = target.data
    labels = target if hasattr(target, "dtype") else np.asarray(target)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must be integers (class indices), got {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"target must have shape {shape}, got {tuple(labels.shape)}")
    if isinstance(labels, np.ndarray):
        bad = (labels < 0) | (labels >= classes)
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"target: the label at {at[0] if len(at) == 1 else at} is {labels[at]}, "
                f"allowed are 0 to {classes - 1}"
            )
    return to_device(labels.astype(np.int32, copy=False), device)


# primitives

_CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


@primitive
def cross_entropy_forward(
    x: Array, target: Array, label_smoothing: float, factor: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = −factor·Σ_c q_c·log softmax(x)_c and, if wanted, dx = factor·(softmax(x) − q), per row

    x (R,C), target (R) int32 -> loss (R), dx (R,C) or None. q is 1 − ε at the target plus ε/C
    everywhere, ε = label_smoothing. log softmax(x)_c = x_c − m − log Σ exp(x − m), m the maximum:
    nothing overflows. A target outside 0…C−1 makes its row NaN.
    """
    rows, C = x.shape
    loss = np.empty(rows, x.dtype)
    dx = buffers.empty_like(x) if gradient else None

    def part(start: int, stop: int) -> None:
        values, labels = x[start:stop], target[start:stop]
        known = (labels >= 0) & (labels < C)
        at = np.arange(stop - start), np.where(known, labels, 0)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as it should be
            below = values - values.max(axis=1, keepdims=True)
            powers = np.exp(below)
            sums = powers.sum(axis=1)
            negative = np.log(sums) - below[at]
            if label_smoothing:
                uniform = np.log(sums) - below.mean(axis=1)
                negative = (1 - label_smoothing) * negative + label_smoothing * uniform
            loss[start:stop] = factor * np.where(known, negative, np.nan)
        if dx is None:
            return
        out = dx[start:stop]
        np.divide(powers, sums[:, None], out=out)
        out -= label_smoothing / C
        out[at] -= 1 - label_smoothing
        out *= factor
        out[~known] = np.nan

    map_chunks(part, rows, max(1, _CHUNK // C))
    return loss, dx


@primitive
def scale_rows(x: Array, factor: Array) -> Array:
    """y[r,c] = factor[r]·x[r,c]: x (R,C), factor (R) -> (R,C)."""
    return cast("NDArray[Any]", x * factor[:, None])


_kernels = KernelFile("loss")


@cross_entropy_forward.kernel()
def _launch_cross_entropy(
    x: Array, target: Array, label_smoothing: float, factor: float, gradient: bool
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    loss = empty(x, (rows,))
    dx = empty(x, (rows, C)) if gradient else None
    launch = _kernels["cross_entropy"]
    launch(*row_blocks(rows), loss, dx, x, target, rows, C, label_smoothing, factor)
    return loss, dx


@scale_rows.kernel()
def _launch_scale_rows(x: Array, factor: Array) -> Array:
    rows, C = x.shape
    y = empty(x, (rows, C))
    _kernels["scale_rows"](*row_blocks(rows), y, x, factor, rows, C)
    return y


# tape


class CrossEntropy(Function):
    """cross_entropy; the forward pass computes the gradient too, up to the factor from above."""

    def forward(self, x: Array, *, target: Array, label_smoothing: float, reduction: str) -> Array:
        rows = target.size
        factor = 1 / rows if reduction == "mean" else 1.0
        loss, self.dx = self.run(
            cross_entropy_forward,
            x.reshape(rows, -1), target.reshape(rows), label_smoothing, factor, self.recording,
        )  # fmt: skip
        self.shape, self.reduction = x.shape, reduction
        if reduction == "none":
            return loss.reshape(target.shape)
        return self.run(column_sum, loss.reshape(rows, 1)).reshape(())

    def backward(self, dy: Array) -> tuple[Array]:
        if self.reduction == "none":
            dx = self.run(scale_rows, self.dx, dy.reshape(-1))
        else:
            dx = self.run(scale_forward, self.dx, dy)
        return (dx.reshape(self.shape),)


# public


def cross_entropy(
    input: Tensor,
    target: Any,
    *,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the softmax of scores against class indices.

    Per row ``loss = −Σ_c q_c · log softmax(input)_c`` with ``q_c = (1 − ε)·[c = target] + ε/C`` and
    ε = label_smoothing; without smoothing, −log of the target's probability. One pass computes the
    maximum, the logarithm of the sum and the gradient ``softmax(input) − q``; large scores do not
    overflow.

    input: (N, C), (N, H, W, C) or any (N, …, C) scores, float32 (float64 on cpu). target: integers
    0…C−1 of shape (N, …), as NumPy array, list, or Tensor on the device of input. label_smoothing:
    0 to 1. reduction: "mean" over all rows, "sum", or "none". Returns a 0-d tensor, or (N, …) with
    "none". A row with a score of +inf or NaN has the loss NaN; −inf is a class that cannot be.

    Raises ValueError or TypeError naming the argument if a shape, dtype, option or label does not
    fit; DeviceError for a target Tensor on another device. The labels of a Tensor on ``cuda`` are
    not read by the host: a label outside 0…C−1 there makes the loss of its row, and its gradient,
    NaN.

    Source: torch.nn.functional.cross_entropy; smoothing: Szegedy et al., arXiv:1512.00567.
    """
    if input.ndim < 2 or input.size == 0:
        raise ValueError(f"input must have shape (N, …, C) and not be empty, got {input.shape}")
    same_float_dtype(input=input)
    check_reduction(reduction)
    if isinstance(label_smoothing, bool) or not isinstance(
        label_smoothing, int | float | np.number
    ):
        raise TypeError(f"label_smoothing must be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}")
    labels = class_indices(target, input.shape[:-1], input.shape[-1], input.device)
    options = {"label_smoothing": float(label_smoothing), "reduction": reduction}
    return cast("Tensor", CrossEntropy.apply(input, target=labels, **options))
