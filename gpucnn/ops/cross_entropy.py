"""Cross-entropy, averaged or added up: ``kernels/cross_entropy.cu``."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from gpucnn.arrivals import arrivals
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.misuse import warn_once
from gpucnn.ops.elementwise import THREADS, four_each, scale_forward
from gpucnn.ops.geometry import remembered
from gpucnn.ops.loss import (
    IGNORE_INDEX,
    check_ignore_index,
    check_reduction,
    check_rows,
    class_indices,
    class_weights,
    constant,
    cross_entropy_forward,
    cross_entropy_probabilities,
    float_constant,
    row_loss,
)
from gpucnn.ops.softmax import LogSoftmax, Softmax
from gpucnn.primitive import primitive, storing_primitive
from gpucnn.tensor import Function, Tensor, check_tensor

# geometry


def _expect_scores(input: Tensor) -> None:
    """Warn if the input is what a softmax made of scores: it would be applied twice."""
    subject = "softmax before cross-entropy"
    if isinstance(input._creator, Softmax):
        warn_once(
            subject,
            "cross_entropy takes scores and applies the softmax itself, but its input comes from a "
            "softmax: applied twice it trains slowly; leave the softmax out of the model",
        )
    elif isinstance(input._creator, LogSoftmax):
        warn_once(
            subject,
            "cross_entropy takes scores and applies the log-softmax itself, but its input comes "
            "from log_softmax: leave that out of the model, or use nll_loss",
        )


@remembered(arrays=slice(0, 1))
def _checked(x: Any, reduction: Any, ignore_index: Any, label_smoothing: Any) -> tuple[int, float]:
    """Check the scores and the options of :func:`cross_entropy` -> the last two."""
    check_rows(x)
    check_reduction(reduction)
    skip = check_ignore_index(ignore_index)
    if isinstance(label_smoothing, bool) or not isinstance(
        label_smoothing, int | float | np.number
    ):
        raise TypeError(f"label_smoothing must be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}")
    return skip, float(label_smoothing)


# primitives


@storing_primitive(1)
def cross_entropy_reduced(
    x: Array,
    target: Array,
    weight: Array | None,
    label_smoothing: float,
    ignore_index: int,
    mean: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """y = Σ loss of cross_entropy_forward and, if wanted, its gradient; the mean if so

    x (R,C), target (R) int32, weight (C) or None -> y (), dx (R,C) or None. The mean divides by
    Σ w_y over the rows that are not ignored; where nothing counts it is NaN, and its gradient 0.
    """
    factor: Any = 1
    if mean:
        known = (target != ignore_index) & (target >= 0) & (target < x.shape[1])
        labels = target[known]
        total = len(labels) if weight is None else weight[labels].sum(dtype=np.float64)
        factor = 1 / total if total else 0.0
        scaled = np.ones(x.shape[1]) if weight is None else weight
        weight = (scaled * factor).astype(x.dtype)
    losses, dx = cross_entropy_forward(x, target, weight, label_smoothing, ignore_index, gradient)
    y = losses[:, 0].sum(dtype=np.float64) if factor else np.nan
    return np.asarray(y, x.dtype), dx


@primitive
def cross_entropy_backward(dx: Array, dy: Array) -> None:
    """dx·dy in the place of dx, any shape; dy of one element, mostly 1, which changes nothing."""
    if dy.reshape(()) != 1:
        dx *= dy.reshape(())


_kernels = KernelFile("cross_entropy", storage=True)
_ONE_BLOCK = 1 << 14  # elements that one block does as fast as two launches would
_BLOCK = 256
_MOST_THREADS = 1024
_MOST_BLOCKS = 1024
_LABELS_EACH = 16  # of a thread that counts


@cross_entropy_reduced.kernel(native=True)
def _launch_reduced(
    x: Array,
    target: Array,
    weight: Array | None,
    label_smoothing: float,
    ignore_index: int,
    mean: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    lanes = 4
    while lanes < min(C, 32):
        lanes *= 2
    dx = empty(x, (rows, C), x.dtype) if gradient else None
    counts, parts = None, 0
    if rows * lanes <= _ONE_BLOCK and rows * C <= _ONE_BLOCK:
        threads, blocks = min(_MOST_THREADS, -(-rows * lanes // 32) * 32), 1
        losses = arrived = None
    else:
        threads = _BLOCK
        blocks = max(2, min(_MOST_BLOCKS, -(-rows * lanes // threads)))
        losses, arrived = empty(x, (blocks, 2)), arrivals(x, 1)
        if mean and gradient:
            each = max(_LABELS_EACH * _BLOCK, -(-rows // _BLOCK))
            parts = -(-rows // each)
            counts = empty(x, (parts,))
            launch, sizes = _kernels["cross_entropy_count"], (rows, C, ignore_index, each)
            launch((parts,), (_BLOCK,), counts, target, weight, *sizes)
    y = empty(x, (1,))
    arrays = (y, dx, losses, arrived, x, target, weight, counts)
    numbers = (rows, C, lanes, parts, int(mean), ignore_index, label_smoothing)
    launch = _kernels.storing(x, "cross_entropy_reduced")
    launch((blocks,), (threads,), *arrays, *numbers)
    return y.reshape(()), dx


@cross_entropy_backward.kernel()
def _launch_backward(dx: Array, dy: Array) -> None:
    launch = _kernels.storing(dx, "cross_entropy_backward")
    launch(four_each(dx.size), (THREADS,), dx, dy.reshape(1), dx.size)


# tape


class CrossEntropy(Function):
    """The mean or the sum of the losses; the forward pass computes its gradient, too."""

    activations = (0,)

    def forward(self, x: Array, *, arguments: tuple[Any, ...], mean: bool) -> Array:
        self.shape = x.shape
        scores = x.reshape(-1, x.shape[-1])
        gradient = self.recording
        y, self.dx = self.run(cross_entropy_reduced, scores, *arguments, mean, gradient)
        return cast("Array", y)

    def backward(self, dy: Array) -> tuple[Array]:
        dx = cast("Array", self.dx)
        if self.is_one(dy):
            pass
        elif self.device == "cpu" and is_bfloat16(dx):  # no definition changes that in place
            dx = self.run(scale_forward, dx, dy)
        else:
            self.run(cross_entropy_backward, dx, dy)
        return (dx.reshape(self.shape),)


# public


def cross_entropy(
    input: Tensor,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the softmax of scores against class indices or probabilities.

    With log p = log softmax(input), weights w (1 if not given) and ε = label_smoothing, the loss of
    a row is ``(1 − ε)·w_y·(−log p_y) + ε/C·Σ_c w_c·(−log p_c)`` for the class y, and
    ``Σ_c w_c·((1 − ε)·t_c + ε/C)·(−log p_c)`` for probabilities t. One pass computes the maximum,
    the logarithm of the sum and the gradient; large scores do not overflow.

    input: (N, C), (N, H, W, C) or any (N, …, C) scores, float32 (float64 on cpu). target: integers
    0…C−1 of shape (N, …), or floats of the shape of input; a NumPy array, lists, or a Tensor on the
    device of input. weight: (C) numbers. A row with the target ignore_index costs nothing.
    label_smoothing: 0 to 1. reduction: "sum", "none", or "mean", which divides by Σ w_y over the
    rows that are not ignored (NaN with gradient 0 if there are none), for probabilities by the
    number of rows. Returns a 0-d tensor, or (N, …) with "none". A row with a score of +inf or NaN
    has the loss NaN; −inf is a class that cannot be.

    Raises ValueError or TypeError naming the argument if a shape, dtype, option or label does not
    fit, or target or weight requires a gradient; DeviceError for a Tensor on another device. The
    labels of a Tensor on ``cuda`` are not read by the host: a label outside 0…C−1 there makes the
    loss of its row, and its gradient, NaN. An input that softmax or log_softmax computed gives a
    :class:`~gpucnn.MisuseWarning`, once.

    Source: torch.nn.functional.cross_entropy; smoothing: Szegedy et al., arXiv:1512.00567.
    """
    check_tensor("input", input)
    skip, smoothing = _checked(input.data, reduction, ignore_index, label_smoothing)
    _expect_scores(input)
    weights = class_weights(weight, input)
    given = constant("target", target, input.device)
    if given.dtype.kind == "f" and given.ndim == input.ndim:
        if skip != IGNORE_INDEX:
            raise ValueError(
                f"ignore_index goes with class indices, not with probabilities, got {ignore_index}"
            )
        wanted = float_constant("target", target, input.shape, input).reshape(-1, input.shape[-1])
        return row_loss(input, cross_entropy_probabilities, (wanted, weights, smoothing), reduction)
    labels = class_indices(target, input, skip).reshape(-1)
    arguments = (labels, weights, smoothing, skip)
    if reduction == "none" or not input.size:
        return row_loss(input, cross_entropy_forward, arguments, reduction)
    made = CrossEntropy.apply(input, arguments=arguments, mean=reduction == "mean")
    return cast("Tensor", made)
