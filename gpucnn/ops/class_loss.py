"""Losses of scores against class indices: ``kernels/class_loss.cu``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.activation import check_real
from gpucnn.ops.geometry import choice
from gpucnn.ops.loss import (
    CHUNK,
    IGNORE_INDEX,
    check_ignore_index,
    check_reduction,
    check_scores,
    class_indices,
    class_weights,
    own_weight,
    row_loss,
)
from gpucnn.ops.softmax import row_blocks
from gpucnn.primitive import primitive
from gpucnn.tensor import Tensor
from gpucnn.threads import map_chunks

# primitives


@primitive
def nll_forward(
    x: Array, target: Array, weight: Array | None, ignore_index: int, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = −w_y·x_y and, if wanted, its gradient, per row

    x (R,C), target (R) int32, weight (C) or None -> (R,2): loss and count w_y, dx (R,C) or None. A
    row with the target ignore_index is 0 and counts 0; another target outside 0…C−1 makes it NaN.
    """
    rows, C = x.shape
    kept, known = target != ignore_index, (target >= 0) & (target < C)
    at = np.arange(rows), np.where(known, target, 0)
    own = np.where(kept, own_weight(at[1], known, weight, x), 0)
    losses = np.empty((rows, 2), x.dtype)
    losses[:, 0] = np.where(kept, -own * x[at], 0)
    losses[:, 1] = np.where(known, own, 0)
    if not gradient:
        return losses, None
    dx = buffers.empty_like(x)
    dx[...] = 0
    dx[at] = -own
    dx[kept & ~known] = np.nan
    return losses, dx


def _hinge_rows(
    x: Array,
    target: Array,
    weight: Array | None,
    p: int,
    gradient: bool,
    share: float,
    excess_of: Callable[[Array, Any], Array],
    own_sign: int,
) -> tuple[Array, Array | None]:
    """loss = share·w_y·Σ_c excess_c^p and count 1 per row, and, if wanted, its gradient.

    excess_of(scores, the labels' places) is what each score exceeds its bound by, or 0. With
    own_sign 0 the label's score takes part in all of them, else in its own alone, with this sign.
    """
    rows, C = x.shape
    losses = np.ones((rows, 2), x.dtype)
    dx = buffers.empty_like(x) if gradient else None

    def part(start: int, stop: int) -> None:
        values, labels = x[start:stop], target[start:stop]
        known = (labels >= 0) & (labels < C)
        at = np.arange(stop - start), np.where(known, labels, 0)
        scale = share * own_weight(at[1], known, weight, x)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, as it should be
            excess = excess_of(values, at)
        losses[start:stop, 0] = scale * (excess**p).sum(axis=1)
        if dx is None:
            return
        slopes = np.sign(excess) if p == 1 else 2 * excess
        slopes[at] = own_sign * slopes[at] if own_sign else -slopes.sum(axis=1)
        np.multiply(slopes, scale[:, None], out=dx[start:stop])

    map_chunks(part, rows, max(1, CHUNK // C))
    return losses, dx


@primitive
def multi_margin_forward(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = w_y/C·Σ_{c≠y} max(0, margin − x_y + x_c)^p and, if wanted, its gradient, per row

    x (R,C), target (R) int32, weight (C) or None -> (R,2): loss and count 1, dx (R,C) or None. p is
    1 or 2. Exactly at the margin the gradient is 0; a target outside 0…C−1 makes its row NaN.
    """

    def excess_of(values: Array, at: Any) -> Array:
        excess = np.maximum((margin - values[at])[:, None] + values, 0)
        excess[at] = 0
        return cast("Array", excess)

    return _hinge_rows(x, target, weight, p, gradient, 1 / x.shape[1], excess_of, 0)


@primitive
def crammer_singer_forward(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = w_y·max(0, margin − x_y + max_{c≠y} x_c)^p and, if wanted, its gradient, per row

    As :func:`multi_margin_forward`; of equal scores the first is the worst, and NaN is.
    """

    def excess_of(values: Array, at: Any) -> Array:
        others = values.copy()
        others[at] = -np.inf
        worst = at[0], others.argmax(axis=1)
        excess = np.zeros_like(values)
        excess[worst] = np.maximum(margin - values[at] + others[worst], 0)
        excess[at] = 0  # of a single class
        return cast("Array", excess)

    return _hinge_rows(x, target, weight, p, gradient, 1.0, excess_of, 0)


@primitive
def one_vs_all_forward(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    """loss = w_y·Σ_c max(0, margin − t_c·x_c)^p, t_c = 1 for c = y, else −1, and its gradient

    As :func:`multi_margin_forward`.
    """

    def excess_of(values: Array, at: Any) -> Array:
        excess = margin + values
        excess[at] = margin - values[at]
        return cast("Array", np.maximum(excess, 0))

    return _hinge_rows(x, target, weight, p, gradient, 1.0, excess_of, -1)


_kernels = KernelFile("class_loss")


@nll_forward.kernel()
def _launch_nll(
    x: Array, target: Array, weight: Array | None, ignore_index: int, gradient: bool
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    losses = empty(x, (rows, 2))
    dx = empty(x, (rows, C)) if gradient else None
    launch = _kernels["nll"]
    launch(*row_blocks(rows), losses, dx, x, target, weight, rows, C, ignore_index)
    return losses, dx


def _launch_hinge(
    name: str,
    x: Array,
    target: Array,
    weight: Array | None,
    p: int,
    margin: float,
    gradient: bool,
) -> tuple[Array, Array | None]:
    rows, C = x.shape
    losses = empty(x, (rows, 2))
    dx = empty(x, (rows, C)) if gradient else None
    _kernels[name](*row_blocks(rows), losses, dx, x, target, weight, rows, C, p, margin)
    return losses, dx


@multi_margin_forward.kernel()
def _launch_multi_margin(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    return _launch_hinge("multi_margin", x, target, weight, p, margin, gradient)


@crammer_singer_forward.kernel()
def _launch_crammer_singer(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    return _launch_hinge("crammer_singer", x, target, weight, p, margin, gradient)


@one_vs_all_forward.kernel()
def _launch_one_vs_all(
    x: Array, target: Array, weight: Array | None, p: int, margin: float, gradient: bool
) -> tuple[Array, Array | None]:
    return _launch_hinge("one_vs_all", x, target, weight, p, margin, gradient)


# public

HINGES = {
    "torch": multi_margin_forward,
    "crammer_singer": crammer_singer_forward,
    "one_vs_all": one_vs_all_forward,
}


def nll_loss(
    input: Tensor,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = IGNORE_INDEX,
    reduction: str = "mean",
) -> Tensor:
    """Negative log-likelihood: ``−w_y · input[y]`` for rows of log-probabilities and classes y.

    input: (N, …, C), as from log_softmax, float32 (float64 on cpu). target: integers 0…C−1 of shape
    (N, …); a NumPy array, lists, or a Tensor on the device of input. weight: (C) numbers, 1 if not
    given. A row with the target ignore_index costs nothing. reduction: "sum", "none", or "mean",
    which divides by Σ w_y over the rows that are not ignored (NaN with gradient 0 if there are
    none). Returns a 0-d tensor, or (N, …) with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype, option or label does not
    fit, or target or weight requires a gradient; DeviceError for a Tensor on another device. On
    ``cuda`` a label outside 0…C−1 of a Tensor makes its row NaN.

    Source: torch.nn.functional.nll_loss.
    """
    check_scores(input)
    check_reduction(reduction)
    skip = check_ignore_index(ignore_index)
    labels = class_indices(target, input, skip).reshape(-1)
    return row_loss(input, nll_forward, (labels, class_weights(weight, input), skip), reduction)


def multi_margin_loss(
    input: Tensor,
    target: Any,
    *,
    p: int = 1,
    margin: float = 1.0,
    weight: Any = None,
    reduction: str = "mean",
    convention: str = "torch",
) -> Tensor:
    """Hinge loss of several classes, per row in one of three conventions:

    - "torch": ``w_y/C · Σ_{c≠y} max(0, margin − x_y + x_c)^p``, every class that comes too near;
    - "crammer_singer": ``w_y · max(0, margin − x_y + max_{c≠y} x_c)^p``, the worst of them alone,
      of equal ones the first;
    - "one_vs_all": ``w_y · Σ_c max(0, margin − t_c·x_c)^p`` with t = 1 for the class y and −1 for
      the others, the hinge loss of Caffe and Chainer.

    The scores [.1, .2, .4, .8] with class 3 cost 0.325, 0.6 and 3.9. Exactly at the margin the
    gradient is 0.

    input: (N, …, C) scores, float32 (float64 on cpu). target: integers 0…C−1 of shape (N, …); a
    NumPy array, lists, or a Tensor on the device of input. p: 1 or 2. margin: any finite number.
    weight: (C) numbers, 1 if not given. reduction: "mean" over all rows, "sum" or "none". Returns a
    0-d tensor, or (N, …) with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype, option or label does not
    fit, or target or weight requires a gradient; DeviceError for a Tensor on another device. On
    ``cuda`` a label outside 0…C−1 of a Tensor makes its row NaN.

    Source: torch.nn.functional.multi_margin_loss; Crammer and Singer (2001).
    """
    made = HINGES[choice("convention", convention, HINGES)]
    check_scores(input)
    check_reduction(reduction)
    if isinstance(p, bool) or not isinstance(p, int | float | np.number) or p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p!r}")
    labels = class_indices(target, input).reshape(-1)
    arguments = (labels, class_weights(weight, input), int(p), check_real("margin", margin))
    return row_loss(input, made, arguments, reduction)
