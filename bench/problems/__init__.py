"""Every primitive at every size that bench, x-ray, parity and check run it at."""

from __future__ import annotations

import functools

from . import (
    batch,
    blocks,
    convolution,
    elements,
    linear,
    losses,
    normalization,
    optimizers,
    pooling,
    reduction,
    training,
)
from .problem import GROUPS, Arguments, Problem, select

__all__ = ["GROUPS", "Arguments", "Problem", "all_problems", "select"]

_TABLES = (
    convolution,
    linear,
    pooling,
    elements,
    normalization,
    blocks,
    losses,
    reduction,
    optimizers,
    training,
    batch,
)


@functools.cache
def all_problems() -> tuple[Problem, ...]:
    """Every problem; making one allocates nothing before its ``make`` is called."""
    return tuple(problem for table in _TABLES for problem in table.problems())
