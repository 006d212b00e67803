"""Dropout of elements and of channels: ``kernels/dropout.cu``."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers, random
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, launch_elements
from gpucnn.ops.geometry import flag, image_shape, not_empty, same_float_dtype
from gpucnn.primitive import Primitive, storing_primitive
from gpucnn.recording import per_step
from gpucnn.tensor import Function, Tensor, check_tensor
from gpucnn.threads import map_chunks

# geometry


def place(seed: int, stream: int, start: int) -> NDArray[np.uint64]:
    """Where a stretch of random numbers begins, (3) as the primitives take it.

    Decision i drops where ``random.uniform(seed, stream, …)[start + i] < p``; start is a multiple
    of 4, the first word of a Philox block. The words of the counter have 64 bits.
    """
    low = 2**64 - 1
    return np.array([seed & low, stream & low, start], np.uint64)


def _threshold(p: float) -> int:
    """u < p in integers: u has 24 bits."""
    return math.ceil(p * 2**24)


def _scale(p: float) -> float:
    """What a kept element is multiplied by."""
    return 0.0 if p == 1 else 1 / (1 - p)


def check_dropout(p: Any, training: Any, generator: Any) -> None:
    """Check the options of :func:`dropout`."""
    if isinstance(p, bool) or not isinstance(p, int | float | np.number):
        raise TypeError(f"p must be a number, got {p!r}")
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie between 0 and 1, got {p}")
    flag("training", training)
    if generator is not None and not isinstance(generator, random.Generator):
        raise TypeError(f"generator must be a gpucnn.random.Generator, got {generator!r}")


# primitives

_CHUNK = 1 << 16  # elements, a multiple of 4: the words of so many stay in a 2 MiB L2 cache


def _factors(place: Array, p: float, start: int, stop: int, dtype: Any) -> NDArray[Any]:
    seed, stream, first = place.tolist()
    words = random.bits(seed, stream, stop - start, first + start)
    kept = (words >> np.uint32(8)) >= np.uint32(_threshold(p))
    return cast("NDArray[Any]", kept * np.dtype(dtype).type(_scale(p)))


@storing_primitive(0)
def dropout_forward(x: Array, place: Array, p: float) -> Array:
    """y[i] = x[i]·m(i), m(i) = 0 where decision i drops, else 1/(1 − p); any shape, in memory order

    place: (3) uint64, see :func:`place`. Its own adjoint: the gradient is
    dropout_forward(dy, place, p).
    """
    y = buffers.empty_like(x)
    inputs, outputs = x.reshape(-1), y.reshape(-1)

    def part(start: int, stop: int) -> None:
        factors = _factors(place, p, start, stop, x.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # inf * 0 is NaN
            np.multiply(inputs[start:stop], factors, out=outputs[start:stop])

    map_chunks(part, x.size, _CHUNK)
    return y


@storing_primitive(0)
def dropout2d_forward(x: Array, place: Array, p: float) -> Array:
    """y[n,h,w,c] = x[n,h,w,c]·m(n·C + c): x, y (N,H,W,C), place (3); its own adjoint."""
    N, C = x.shape[0], x.shape[-1]
    y = buffers.empty_like(x)
    factors = _factors(place, p, 0, N * C, x.dtype).reshape(N, 1, 1, C)

    def part(start: int, stop: int) -> None:
        with np.errstate(invalid="ignore", over="ignore"):  # inf * 0 is NaN
            np.multiply(x[start:stop], factors[start:stop], out=y[start:stop])

    map_chunks(part, N, max(1, _CHUNK * N // x.size))
    return y


_kernels = KernelFile("dropout", storage=True)


@dropout_forward.kernel(native=True)
def _launch_dropout(x: Array, place: Array, p: float) -> Array:
    numbers = (x.size, _threshold(p), _scale(p))
    return launch_elements(_kernels, "dropout", x, x, place, *numbers, fours=True)


@dropout2d_forward.kernel(native=True)
def _launch_dropout2d(x: Array, place: Array, p: float) -> Array:
    y = empty(x, x.shape, x.dtype)
    N, H, W, C = x.shape
    each = 4 if C % 4 == 0 else 1
    grid = (-(-x.size // (each * THREADS)),)
    sizes = (N, H * W, C)
    launch = _kernels.storing(x, "dropout2d")
    launch(grid, (THREADS,), y, x, place, *sizes, _threshold(p), _scale(p))
    return y


# tape


class Dropout(Function):
    """dropout and dropout2d; the gradient draws the same decisions again."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, *, op: Primitive, place: Array, p: float) -> Array:
        self.op, self.place, self.p = op, place, p
        return self.run(op, x, place, p)

    def backward(self, dy: Array) -> tuple[Array]:
        return (self.run(self.op, dy, self.place, self.p),)


def _apply(
    op: Primitive,
    x: Tensor,
    decisions: int,
    p: float,
    training: bool,
    generator: random.Generator | None,
) -> Tensor:
    check_dropout(p, training, generator)
    same_float_dtype(x=x)
    if not training or p == 0:
        return x
    source = random.dropout_generator() if generator is None else generator

    def reserve() -> NDArray[np.uint64]:
        return place(source.seed, source.stream, source.reserve(decisions))

    where = per_step(reserve, x.device)
    return cast("Tensor", Dropout.apply(x, op=op, place=where, p=float(p)))


# public


def dropout(
    x: Tensor, p: float = 0.5, *, training: bool, generator: random.Generator | None = None
) -> Tensor:
    """Sets elements to 0 with probability p and divides the others by 1 − p (inverted dropout).

    ``y[i] = x[i]·m(i)``, ``m(i) = 0`` where ``u(i) < p``, else ``1/(1 − p)``: the expectation of y
    is x, so nothing is left to do at inference. u is the next stretch of the generator, one number
    per element in memory order, rounded up to a multiple of four; the same on every device. The
    mask is not stored, the gradient ``dx[i] = dy[i]·m(i)`` draws it again.

    x: any shape, float32 (float64 on cpu). p: 0 to 1; 1 gives zeros.
    training: x itself is returned where False, and where p is 0; no number is drawn then.
    generator: a :class:`gpucnn.random.Generator`; None for the library's own stream for dropout,
    which ``gpucnn.seed`` restarts and checkpoints of a Trainer hold. Returns a tensor like x.
    Dropped NaN and infinities become NaN, as in PyTorch.

    Raises ValueError or TypeError naming the argument if a dtype or number does not fit, and for
    empty rows.

    Source: Srivastava et al., "Dropout", JMLR 15, 2014; torch.nn.functional.dropout.
    """
    check_tensor("x", x)
    not_empty("x", x)
    return _apply(dropout_forward, x, x.size, p, training, generator)


def dropout2d(
    x: Tensor, p: float = 0.5, *, training: bool, generator: random.Generator | None = None
) -> Tensor:
    """Sets whole channels of images to 0 with probability p and divides the others by 1 − p.

    One decision per image and channel, ``u(n·C + c) < p``; neighbouring pixels of a channel are so
    alike that dropping single ones would change little. x: (N, H, W, C). Otherwise as
    :func:`dropout`.

    Source: Tompson et al., arXiv:1411.4280; torch.nn.functional.dropout2d.
    """
    check_tensor("x", x)
    N, _, _, C = image_shape("x", x)
    return _apply(dropout2d_forward, x, N * C, p, training, generator)
