"""Losses of pairs of numbers, element by element: ``kernels/regression_loss.cu``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.empty_batch import nothing
from gpucnn.kernel import KernelFile
from gpucnn.ops.activation import check_positive, check_real
from gpucnn.ops.elementwise import THREADS, multiply_forward, scale_forward
from gpucnn.ops.geometry import flag, not_empty, same_float_dtype
from gpucnn.ops.loss import check_reduction, constant, float_constant
from gpucnn.ops.reduce import launch_column_sum
from gpucnn.ops.regression_formulas import LOSSES
from gpucnn.primitive import Primitive, primitive
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks, scratch

# geometry

KL_REDUCTIONS = ("mean", "batchmean", "sum", "none")


def check_numbers(input: Tensor) -> None:
    """Check the input of a loss of pairs."""
    check_tensor("input", input)
    not_empty("input", input)
    same_float_dtype(input=input)


def signs(target: Any, input: Tensor) -> Array:
    """target as −1 and 1 in the dtype of input; values in host memory are checked."""
    given = constant("target", target, input.device)
    if given.dtype.kind not in "fi":
        raise TypeError(f"target must be numbers, -1 or 1, got {given.dtype}")
    if isinstance(given, np.ndarray):
        bad = np.argwhere((given != 1) & (given != -1))
        if len(bad):
            at = tuple(int(i) for i in bad[0])
            raise ValueError(f"target must be -1 or 1, got {given[at]} at {at}")
    return float_constant("target", given, input.shape, input)


# primitives

CHUNK = 1 << 17  # elements: threads change hands after each pass over this many


Formula = Callable[[slice, Array, Array, Array, Array], None]


def evaluate(
    formula: Formula, x: Array, target: Array, factor: float, add: bool, gradient: bool
) -> tuple[Array, Array | None]:
    """factor·loss, added up or not, and, if wanted, factor·slope.

    formula(at, x, target, loss, slope) writes both of the piece ``at`` of the flat arrays. The sums
    of pieces are added in order.
    """
    inputs, targets = x.reshape(-1), target.reshape(-1)
    loss = None if add else buffers.empty_like(x)
    dx = buffers.empty_like(x) if gradient else None

    def part(start: int, stop: int) -> float:
        at, size = slice(start, stop), (stop - start,)
        values = scratch("loss", size, x.dtype) if loss is None else loss.reshape(-1)[at]
        slopes = scratch("loss dx", size, x.dtype) if dx is None else dx.reshape(-1)[at]
        with np.errstate(all="ignore"):
            formula(at, inputs[at], targets[at], values, slopes)
            if factor != 1:
                values *= factor
                if dx is not None:
                    slopes *= factor
            return float(values.sum()) if add else 0.0

    sums = map_chunks(part, x.size, CHUNK)
    with np.errstate(over="ignore"):
        return np.asarray(sum(sums)).astype(x.dtype) if loss is None else loss, dx


def multiply_slopes(formula: Formula, dy: Array, x: Array, target: Array) -> Array:
    """dy·slope of a formula as :func:`evaluate` takes it."""
    inputs, targets, gradients = x.reshape(-1), target.reshape(-1), dy.reshape(-1)
    dx = buffers.empty_like(x)

    def part(start: int, stop: int) -> None:
        at = slice(start, stop)
        values = scratch("loss", (stop - start,), x.dtype)
        slopes = dx.reshape(-1)[at]
        with np.errstate(all="ignore"):
            formula(at, inputs[at], targets[at], values, slopes)
            slopes *= gradients[at]

    map_chunks(part, x.size, CHUNK)
    return dx


def _formula(name: str, parameters: tuple[float, ...]) -> Formula:
    return lambda at, x, t, loss, slope: LOSSES[name](x, t, loss, slope, *parameters)


@primitive
def regression_loss_forward(
    x: Array,
    target: Array,
    name: str,
    parameters: tuple[float, ...],
    factor: float,
    add: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """loss = factor·LOSSES[name](x, target), added up or not, and, if wanted, factor·slope

    x, target of one shape -> loss () if add, else of that shape; dx of that shape or None.
    """
    return evaluate(_formula(name, parameters), x, target, factor, add, gradient)


@primitive
def regression_loss_backward(
    dy: Array, x: Array, target: Array, name: str, parameters: tuple[float, ...]
) -> Array:
    """dx = dy·slope of LOSSES[name] at x and target, all of one shape."""
    return multiply_slopes(_formula(name, parameters), dy, x, target)


_MOST_BLOCKS = 2048  # their sums are added by one more block

_kernels = KernelFile("regression_loss")


def _blocks(n: int) -> tuple[int, int]:
    """(blocks, elements of each)."""
    step = 4 * THREADS
    each = step * -(-n // (step * _MOST_BLOCKS))
    return -(-n // each), each


def launch_loss(
    name: str,
    x: Array,
    target: Array,
    rest: tuple[Any, ...],
    factor: float,
    add: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    """Launch the kernel of a loss, with ``rest`` as its last arguments; see :func:`evaluate`."""
    blocks, each = _blocks(x.size)
    loss = None if add else empty(x, (x.size,))
    sums = empty(x, (blocks, 1)) if add else None
    dx = empty(x, (x.size,)) if gradient else None
    arrays = (loss, sums, dx, x.reshape(-1), target.reshape(-1), None)
    _kernels[name]((blocks,), (THREADS,), *arrays, x.size, each, factor, *rest)
    result = launch_column_sum(sums).reshape(()) if loss is None else loss.reshape(x.shape)
    return result, None if dx is None else dx.reshape(x.shape)


def launch_slopes(name: str, dy: Array, x: Array, target: Array, rest: tuple[Any, ...]) -> Array:
    """Launch the kernel of a loss for dy·slope alone."""
    blocks, each = _blocks(x.size)
    dx = empty(x, (x.size,))
    arrays = (None, None, dx, x.reshape(-1), target.reshape(-1), dy.reshape(-1))
    _kernels[name]((blocks,), (THREADS,), *arrays, x.size, each, 1.0, *rest)
    return dx.reshape(x.shape)


@regression_loss_forward.kernel()
def _launch_forward(
    x: Array,
    target: Array,
    name: str,
    parameters: tuple[float, ...],
    factor: float,
    add: bool,
    gradient: bool,
) -> tuple[Array, Array | None]:
    return launch_loss(name, x, target, parameters, factor, add, gradient)


@regression_loss_backward.kernel()
def _launch_backward(
    dy: Array, x: Array, target: Array, name: str, parameters: tuple[float, ...]
) -> Array:
    return launch_slopes(name, dy, x, target, parameters)


# tape


class PairLoss(Function):
    """A loss of pairs; those of a distance are symmetric, so that target has a gradient as well.

    ``primitives`` are its forward and backward pass, which take ``arguments`` after the pair. Added
    up, the forward pass computes the gradients too, as it does on the CPU, where the formula gives
    loss and slope at once; otherwise the backward pass does.
    """

    def forward(
        self,
        x: Array,
        target: Array,
        *,
        primitives: tuple[Primitive, Primitive],
        arguments: tuple[Any, ...],
        factor: float,
        add: bool,
    ) -> Array:
        pair, rest = (x, target), (*arguments, factor, add)
        self.backward_pass, self.arguments, self.add = primitives[1], arguments, add
        self.at_once = add or self.device == "cpu"
        early = self.at_once and self.recording
        loss, dx = self.run(primitives[0], *pair, *rest, early and self.needs[0])
        if early:
            dtarget = None
            if self.needs[1]:
                _, dtarget = self.run(primitives[0], *pair[::-1], *rest, True)
            self.slopes = dx, dtarget
        elif self.recording:
            self.pair = pair
        return loss

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        if self.at_once:
            multiply = scale_forward if self.add else multiply_forward
            return tuple(None if s is None else self.run(multiply, s, dy) for s in self.slopes)
        orders = self.pair, self.pair[::-1]
        return tuple(
            self.run(self.backward_pass, dy, *order, *self.arguments) if needed else None
            for order, needed in zip(orders, self.needs, strict=True)
        )


def pair_loss(
    input: Tensor,
    target: Tensor | Array,
    reduction: str,
    primitives: tuple[Primitive, Primitive],
    *arguments: Any,
) -> Tensor:
    """Apply :class:`PairLoss` with a reduction that has been checked."""
    if not isinstance(target, Tensor):
        target = Tensor(target, device=input.device)
    if not input.size:
        shape = input.shape if reduction == "none" else ()
        return nothing((input, target), shape, math.nan if "mean" in reduction else 0)
    count = {"mean": input.size, "batchmean": input.shape[0] if input.ndim else 1}
    options = {"factor": 1 / count.get(reduction, 1), "add": reduction != "none"}
    loss = PairLoss.apply(input, target, primitives=primitives, arguments=arguments, **options)
    return cast("Tensor", loss)


def _apply(
    input: Tensor, target: Tensor | Array, reduction: str, name: str, *parameters: float
) -> Tensor:
    primitives = regression_loss_forward, regression_loss_backward
    return pair_loss(input, target, reduction, primitives, name, parameters)


def _distance(input: Tensor, target: Any, reduction: str, name: str, *parameters: float) -> Tensor:
    check_numbers(input)
    check_reduction(reduction)
    if not (isinstance(target, Tensor) and target.requires_grad):
        return _apply(
            input,
            float_constant("target", target, input.shape, input),
            reduction,
            name,
            *parameters,
        )
    float_constant("target", target.detach(), input.shape, input)
    return _apply(input, target, reduction, name, *parameters)


# public


def l1_loss(input: Tensor, target: Any, *, reduction: str = "mean") -> Tensor:
    """Mean absolute error: ``|input − target|``; the gradient where both are equal is 0.

    input: any shape, float32 (float64 on cpu). target: numbers of its
    shape, as NumPy array, lists, or Tensor on the device of input; a Tensor may require a gradient.
    reduction: "mean" over all elements, "sum" or "none". Returns a 0-d tensor, or one of the shape
    of input with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype or option does not fit
    (nothing is broadcast), DeviceError for a target Tensor on another device.

    Source: torch.nn.functional.l1_loss.
    """
    return _distance(input, target, reduction, "l1_loss")


def mse_loss(input: Tensor, target: Any, *, reduction: str = "mean") -> Tensor:
    """Mean squared error: ``(input − target)²``, without the ½ that some texts put in front.

    input: any shape, float32 (float64 on cpu). target: numbers of its
    shape, as NumPy array, lists, or Tensor on the device of input; a Tensor may require a gradient.
    reduction: "mean" over all elements, "sum" or "none". Returns a 0-d tensor, or one of the shape
    of input with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype or option does not fit
    (nothing is broadcast), DeviceError for a target Tensor on another device.

    Source: torch.nn.functional.mse_loss.
    """
    return _distance(input, target, reduction, "mse_loss")


def huber_loss(
    input: Tensor, target: Any, *, delta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """``½·d²`` where |d| <= delta, else ``delta·(|d| − ½·delta)``, with d = input − target.

    delta > 0; the rest as in :func:`l1_loss`.

    Source: Huber (1964); torch.nn.functional.huber_loss.
    """
    return _distance(input, target, reduction, "huber_loss", check_positive("delta", delta), 1.0)


def smooth_l1_loss(
    input: Tensor, target: Any, *, beta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """``½·d²/beta`` where |d| < beta, else ``|d| − ½·beta``, with d = input − target.

    This is huber_loss with delta = beta, divided by beta. beta >= 0; 0 (below 1.2e-38) is l1_loss.
    The rest as in :func:`l1_loss`.

    Source: Girshick, arXiv:1504.08083; torch.nn.functional.smooth_l1_loss.
    """
    if check_real("beta", beta) < 0:
        raise ValueError(f"beta must be >= 0, got {beta}")
    if beta < np.finfo(np.float32).tiny:
        return l1_loss(input, target, reduction=reduction)
    return _distance(input, target, reduction, "huber_loss", float(beta), 1 / float(beta))


def hinge_loss(input: Tensor, target: Any, *, reduction: str = "mean") -> Tensor:
    """``max(0, 1 − t·x)`` for scores x = input and t = target, −1 or 1.

    The gradient is −t where t·x < 1, and 0 exactly at the margin. input: any shape with at least
    one element, float32 (float64 on cpu). target: −1 and 1 of its shape, as NumPy array, lists, or
    Tensor (of integers too) on the device of input; those on a GPU are not checked. reduction:
    "mean" over all elements, "sum" or "none". Returns a 0-d tensor, or one of the shape of input
    with "none". For several classes see multi_margin_loss; with t = 1 for the right class and −1
    for the others, the sum over a row is the one-vs-all hinge loss of Caffe and Chainer.

    Raises ValueError or TypeError naming the argument if a shape, dtype, value or option does not
    fit, or target requires a gradient; DeviceError for a target Tensor on another device.

    Source: Cortes and Vapnik (1995); Chainer's and Caffe's hinge loss without the class dimension.
    """
    check_numbers(input)
    check_reduction(reduction)
    return _apply(input, signs(target, input), reduction, "hinge_loss")


def kl_div(
    input: Tensor, target: Any, *, log_target: bool = False, reduction: str = "mean"
) -> Tensor:
    """Kullback–Leibler divergence: ``t·(log t − x)``, x = input in log-probabilities, t = target.

    With log_target the target is in log-probabilities too: ``exp(t)·(t − x)``. Where the
    probability is 0 the loss is 0, whatever x. input: any shape, as from
    log_softmax, float32 (float64 on cpu). target: numbers of its shape, as NumPy array, lists, or
    Tensor on the device of input. reduction: "sum", "none", "batchmean", which divides by the
    length of the first axis and is the divergence itself, or "mean", which divides by the number of
    elements. Returns a 0-d tensor, or one of the shape of input with "none".

    Raises ValueError or TypeError naming the argument if a shape, dtype or option does not fit, or
    target requires a gradient; DeviceError for a target Tensor on another device.

    Source: torch.nn.functional.kl_div.
    """
    check_numbers(input)
    check_reduction(reduction, KL_REDUCTIONS)
    flag("log_target", log_target)
    wanted = float_constant("target", target, input.shape, input)
    return _apply(input, wanted, reduction, "kl_div_log" if log_target else "kl_div")
