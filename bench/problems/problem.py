"""One call of one primitive: what bench, x-ray, parity and check run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Arguments = tuple[Any, ...]
Shape = Sequence[int]
GROUPS = ("edge", "typical", "layer")


@dataclass(frozen=True)
class Problem:
    """The arguments of one primitive, and what the call must at least move and compute.

    group: "edge" (small and awkward: tails, padding, one channel), "typical" (the size of a layer
    of a small network; large enough to time) or "layer" (a whole batch of a known network).
    make: seed -> the primitive's arguments, NumPy arrays (of numbers float32), drawn from ``seed``.
    bytes: of all inputs and outputs, each moved once; an array that is updated in place is read and
    written, which counts twice, and of an input that is read in part only that part counts.
    flops: those of the formula: additions, multiplications, divisions, comparisons, roots,
    exponentials and the like count one each, a multiply-add two, copies and indices nothing.
    terms: length of the longest sum behind one output element. updated: positions of the arguments
    that the primitive changes in place, which are its outputs.
    """

    family: str
    primitive: str
    case: str
    group: str
    make: Callable[[int], Arguments]
    bytes: int
    flops: int
    terms: int = 1
    updated: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.primitive}[{self.case}]"

    @property
    def direction(self) -> str:
        """ "forward", "backward" or "step" (optimizers, clipping, all in one)."""
        if self.family in ("optimizer", "adam", "clip", "lenet5_step"):
            return "step"
        backward = ("backward", "gradient", "sums", "spread", "scale_mean", "scale_rows")
        return "backward" if any(word in self.primitive for word in backward) else "forward"


def normal(seed: int, stream: int, *shape: int) -> np.ndarray:
    """Standard normal float32 numbers; ``stream`` tells the arrays of one problem apart."""
    return np.random.default_rng([seed, stream]).standard_normal(shape, np.float32)


def shaped(*shape: int) -> np.ndarray:
    """An array of this shape in four bytes of memory: what the sizes of a call are read off."""
    return np.broadcast_to(np.zeros((), np.float32), shape)


def draws(*shapes: Shape | None, then: Arguments = ()) -> Callable[[int], Arguments]:
    """A ``make``: normal numbers of these shapes, None where there is no array, and the rest."""

    def make(seed: int) -> Arguments:
        arrays = (None if s is None else normal(seed, i, *s) for i, s in enumerate(shapes))
        return (*arrays, *then)

    return make


def size(shape: Shape) -> int:
    """The elements of an array of this shape."""
    return math.prod(shape)


def holding(kernel: int, stride: int, dilation: int, outputs: int) -> int:
    """The most windows along an axis that hold one cell."""
    common = math.gcd(stride, dilation)
    return min(-(-kernel // (stride // common)), -(-outputs // (dilation // common)))


def words(*shapes: Shape | None) -> int:
    """Bytes of 4-byte arrays of these shapes; None is an absent array."""
    return 4 * sum(size(shape) for shape in shapes if shape is not None)


def label(*parts: Any) -> str:
    """A case's name without spaces: shapes as 2x3x4, options as key=value."""

    def text(part: Any) -> str:
        if isinstance(part, dict):
            return ",".join(f"{k}={v}" for k, v in part.items())
        if isinstance(part, tuple):
            return "x".join(map(str, part))
        return str(part)

    return ",".join(t for t in map(text, parts) if t).replace(" ", "")


def select(
    problems: Iterable[Problem], families: Iterable[str] = (), groups: Iterable[str] = ()
) -> list[Problem]:
    """Those of the named families and groups; no name means all."""
    families, groups = set(families), set(groups)
    return [
        p
        for p in problems
        if (not families or p.family in families) and (not groups or p.group in groups)
    ]
