"""Cross-entropy per row, and what losses of rows share: ``kernels/loss.cu``."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, DeviceError, empty, to_device
from gpucnn.empty_batch import nothing
from gpucnn.kernel import KernelFile
from gpucnn.ops.cast import to_float32
from gpucnn.ops.elementwise import THREADS, four_each, scale_forward
from gpucnn.ops.geometry import choice, host_array, integer, same_float_dtype
from gpucnn.ops.reduce import column_sum
from gpucnn.ops.softmax import row_blocks, row_max, row_sum
from gpucnn.primitive import Primitive, primitive
from gpucnn.recording import copied
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

# geometry

REDUCTIONS = ("mean", "sum", "none")
IGNORE_INDEX = -100


def check_reduction(reduction: Any, allowed: tuple[str, ...] = REDUCTIONS) -> None:
    """Raise ValueError unless reduction is one of those allowed."""
    choice("reduction", reduction, allowed)


def check_scores(input: Tensor) -> None:
    """Check the input of a loss of rows."""
    check_tensor("input", input)
    check_rows(input.data)


def check_rows(x: Array) -> None:
    """Check the scores of a loss of rows."""
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ValueError(f"input must have shape (N, …, C) and not be empty, got {tuple(x.shape)}")
    same_float_dtype(input=x)


def check_ignore_index(value: Any) -> int:
    """An int32; TypeError or ValueError naming the argument otherwise."""
    number = integer("ignore_index", value, -(2**31))
    if number >= 2**31:
        raise ValueError(f"ignore_index must fit int32, got {value}")
    return number


def constant(name: str, value: Any, device: str) -> Array:
    """The array of a Tensor on ``device``, float32 of bfloat16; an array or lists as they are."""
    if isinstance(value, Tensor):
        if value.requires_grad:
            raise ValueError(f"{name} receives no gradient: pass {name}.detach()")
        if value.device != device:
            raise DeviceError(
                f"{name} must be on {device!r} like input, got a tensor on {value.device!r}"
            )
        return to_float32(value).data if is_bfloat16(value.data) else value.data
    return value if hasattr(value, "dtype") else host_array(name, value)


def float_constant(name: str, value: Any, shape: tuple[int, ...], input: Tensor) -> Array:
    """:func:`constant` of ``shape``, with the dtype of input (float32 for bfloat16), on its device.

    Arrays and lists in host memory are converted, a Tensor must have the dtype.
    """
    array = constant(name, value, input.device)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must be numbers, got {array.dtype}")
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if isinstance(value, Tensor):
        same_float_dtype(input=input, **{name: array})
    dtype = np.float32 if is_bfloat16(input.data) else input.data.dtype
    return to_device(array.astype(dtype, copy=False), input.device)


def class_weights(weight: Any, input: Tensor) -> Array | None:
    """One weight for each class, or None."""
    return None if weight is None else float_constant("weight", weight, input.shape[-1:], input)


def class_indices(target: Any, input: Tensor, ignore_index: int | None = None) -> Array:
    """target as an int32 array on the device of input, each label in 0…classes − 1.

    target: a Tensor of the device, a NumPy array or nested lists of integers. Labels in host memory
    are checked; those on a GPU are not, because the host would have to wait for them.
    """
    labels = constant("target", target, input.device)
    shape, classes = input.shape[:-1], input.shape[-1]
    if labels.dtype.kind not in "iu":
        raise TypeError(f"target must be integers (class indices), got {labels.dtype}")
    if labels.shape != shape:
        raise ValueError(f"target must have shape {shape}, got {tuple(labels.shape)}")
    if isinstance(labels, np.ndarray) and not _all_within(labels, classes):
        bad = (labels < 0) | (labels >= classes)
        if ignore_index is not None:
            bad &= labels != ignore_index
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            hint = ""
            if labels.min() > 0 and labels.max() == classes:
                hint = ": classes count from 0, these labels seem to count from 1"
            raise ValueError(
                f"target: the label at {at[0] if len(at) == 1 else at} is {labels[at]}, "
                f"allowed are 0 to {classes - 1}{hint}"
            )
    if labels.dtype != np.int32:
        labels = labels.astype(np.int32)
    return to_device(labels, input.device)


def _all_within(labels: NDArray[Any], classes: int) -> bool:
    """Whether all labels are sure to be classes, in one pass: a negative one is a large number."""
    if labels.dtype != np.int32 or not labels.size:
        return False
    return bool(np.maximum.reduce(labels.view(np.uint32), axis=None) < classes)


# primitives

CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


def own_weight(labels: NDArray[Any], known: NDArray[Any], weight: Any, like: Any) -> NDArray[Any]:
    """The weight of each row's class; NaN where there is no such class."""
    if weight is None:
        return np.where(known, 1.0, np.nan).astype(like.dtype)
    return np.where(known, weight[labels], np.nan).astype(like.dtype)


@primitive
def cross_entropy_forward(
    x: Array,
    target: Array,
    weight: Array | None,
    label_smoothing: float,
    ignore_index: int,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss = (1 − ε)·w_y·−log p_y + ε/C·Σ_c w_c·−log p_c and, if wanted, its gradient, per row

    x (R,C), target (R) int32, weight (C) or None -> (R,2): loss and count w_y, dx (R,C) or None.
    ε = label_smoothing; log p_c = x_c − m − log Σ exp(x − m), m the maximum: nothing overflows. A
    row with the target ignore_index is 0 and counts 0; another target outside 0…C−1 makes it NaN.
    """
    rows, C = x.shape
    losses = np.empty((rows, 2), x.dtype)
    dx = buffers.empty_like(x) if gradient else None
    share = label_smoothing / C
    weights = C if weight is None else weight.sum()

    def part(start: int, stop: int) -> None:
        values, labels = x[start:stop], target[start:stop]
        kept = labels != ignore_index
        known = (labels >= 0) & (labels < C)
        at = np.arange(stop - start), np.where(known, labels, 0)
        own = own_weight(at[1], known, weight, x)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf is NaN, as it should be
            below = values - row_max(values)
            powers = np.exp(below)
            sums = row_sum(powers)[:, 0]
            loss = own * (np.log(sums) - below[at])
            if label_smoothing:
                distances = row_sum(below if weight is None else below * weight)[:, 0]
                loss = (1 - label_smoothing) * loss
                loss += share * (weights * np.log(sums) - distances)
        losses[start:stop, 0] = np.where(kept, loss, 0)
        losses[start:stop, 1] = np.where(kept & known, own, 0)
        if dx is None:
            return
        out, pull = dx[start:stop], (1 - label_smoothing) * own
        np.multiply(powers, ((pull + share * weights) / sums)[:, None], out=out)
        if label_smoothing:
            out -= share if weight is None else share * weight
        out[at] -= pull
        out[~kept] = 0

    map_chunks(part, rows, max(1, CHUNK // C))
    return losses, dx


@primitive
def cross_entropy_probabilities(
    x: Array, target: Array, weight: Array | None, label_smoothing: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = Σ_c v_c·−log p_c, v_c = w_c·((1 − ε)·t_c + ε/C), and its gradient p·Σv − v, per row

    x, target t (R,C), weight (C) or None -> (R,2): loss and count 1, dx (R,C) or None. A class with
    v = 0 costs nothing, whatever its score.
    """
    rows, C = x.shape
    losses = np.ones((rows, 2), x.dtype)
    dx = buffers.empty_like(x) if gradient else None

    def part(start: int, stop: int) -> None:
        values = x[start:stop]
        wanted = (1 - label_smoothing) * target[start:stop] + label_smoothing / C
        if weight is not None:
            wanted *= weight
        totals = row_sum(wanted)[:, 0]
        with np.errstate(invalid="ignore", over="ignore"):
            below = values - row_max(values)
            powers = np.exp(below)
            sums = row_sum(powers)[:, 0]
            np.multiply(below, wanted, out=below)
            np.copyto(below, 0, where=wanted == 0)
            losses[start:stop, 0] = totals * np.log(sums) - below.sum(axis=1)
        if dx is not None:
            np.multiply(powers, (totals / sums)[:, None], out=dx[start:stop])
            dx[start:stop] -= wanted

    map_chunks(part, rows, max(1, CHUNK // C))
    return losses, dx


@primitive
def mean_of_rows(totals: Array) -> Array:
    """y = totals[0] / totals[1], the sum of losses by the sum of counts: (2) -> (); NaN for 0/0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(totals[0] / totals[1])


@primitive
def scale_mean(x: Array, dy: Array, totals: Array) -> Array:
    """y = dy/totals[1]·x, and 0 where nothing counts: x any shape, dy of one element."""
    factor = dy.reshape(()) / totals[1] if totals[1] != 0 else 0
    return cast("NDArray[Any]", x * np.asarray(factor, x.dtype))


@primitive
def scale_rows(x: Array, factor: Array) -> Array:
    """y[r,c] = factor[r]·x[r,c]: x (R,C), factor (R) -> (R,C)."""
    return cast("NDArray[Any]", x * factor[:, None])


_kernels = KernelFile("loss")


@cross_entropy_forward.kernel()
def _launch_cross_entropy(
    x: Array,
    target: Array,
    weight: Array | None,
    label_smoothing: float,
    ignore_index: int,
    gradient: bool,
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    losses = empty(x, (rows, 2))
    dx = empty(x, (rows, C)) if gradient else None
    launch, sizes = _kernels["cross_entropy"], (rows, C, label_smoothing, ignore_index)
    launch(*row_blocks(rows), losses, dx, x, target, weight, *sizes)
    return losses, dx


@cross_entropy_probabilities.kernel()
def _launch_probabilities(
    x: Array, target: Array, weight: Array | None, label_smoothing: float, gradient: bool
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    losses = empty(x, (rows, 2))
    dx = empty(x, (rows, C)) if gradient else None
    launch = _kernels["cross_entropy_probabilities"]
    launch(*row_blocks(rows), losses, dx, x, target, weight, rows, C, label_smoothing)
    return losses, dx


@mean_of_rows.kernel()
def _launch_mean_of_rows(totals: Array) -> Array:
    y = empty(totals, (1,))
    _kernels["mean_of_rows"]((1,), (1,), y, totals)
    return y.reshape(())


@scale_mean.kernel()
def _launch_scale_mean(x: Array, dy: Array, totals: Array) -> Array:
    y = empty(x, x.shape)
    launch = _kernels["scale_mean"]
    launch(four_each(x.size), (THREADS,), y, x, dy.reshape(1), totals, x.size)
    return y


@scale_rows.kernel()
def _launch_scale_rows(x: Array, factor: Array) -> Array:
    rows, C = x.shape
    y = empty(x, (rows, C))
    _kernels["scale_rows"](*row_blocks(rows), y, x, factor, rows, C)
    return y


# tape


class RowLoss(Function):
    """A loss of each row, added up; the forward pass computes the gradients of the rows too."""

    def forward(
        self, x: Array, *, loss: Primitive, arguments: tuple[Any, ...], reduction: str
    ) -> Array:
        self.shape, self.reduction = x.shape, reduction
        scores = x.reshape(-1, x.shape[-1])
        losses, self.dx = self.run(loss, scores, *arguments, self.recording)
        if reduction == "none":
            return copied(losses[:, 0]).reshape(x.shape[:-1])
        self.totals = self.run(column_sum, losses)
        if reduction == "sum":
            return self.totals[:1].reshape(())
        return self.run(mean_of_rows, self.totals)

    def backward(self, dy: Array) -> tuple[Array]:
        if self.reduction == "none":
            dx = self.run(scale_rows, self.dx, dy.reshape(-1))
        elif self.reduction == "sum":
            dx = self.run(scale_forward, self.dx, dy)
        else:
            dx = self.run(scale_mean, self.dx, dy, self.totals)
        return (dx.reshape(self.shape),)


def row_loss(input: Tensor, loss: Primitive, arguments: tuple[Any, ...], reduction: str) -> Tensor:
    """Apply a primitive that takes (x, *arguments, gradient) and returns ((R, 2), dx or None)."""
    if not input.size:
        shape = input.shape[:-1] if reduction == "none" else ()
        return nothing((input,), shape, math.nan if reduction == "mean" else 0)
    options = {"loss": loss, "arguments": arguments, "reduction": reduction}
    return cast("Tensor", RowLoss.apply(input, **options))
