"""A primitive written with another library's functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Expression:
    """What a rival computes instead of one call of a primitive.

    inputs: host arrays in the rival's layout, None where the primitive has None, lists for lists.
    run: the same, as the rival's tensors -> its results, a tensor or a tuple.
    results: the results as host arrays -> those of the primitive, in its order and layout; None in
    place of one that the rival does not give or draws at random. updated: positions in ``inputs``
    of what ``run`` changes in place; they follow the results.
    """

    inputs: list[Any]
    run: Callable[..., Any]
    results: Callable[[list[Any]], list[Any]] = list
    updated: tuple[int, ...] = ()


# builders of expressions: (torch, arguments of the primitive) -> Expression, or None where there is
# nothing to compare with
Builder = Callable[..., "Expression | None"]
EXPRESSIONS: dict[str, Builder] = {}


def expression(*primitives: str) -> Callable[[Builder], Builder]:
    """Register a builder for primitives."""

    def register(builder: Builder) -> Builder:
        for name in primitives:
            EXPRESSIONS[name] = builder
        return builder

    return register


def channels_first(x: Any) -> Any:
    """(N, …, C) -> (N, C, …), contiguous."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 1))


def channels_last(y: Any) -> Any:
    """(N, C, …) -> (N, …, C)."""
    return np.moveaxis(y, 1, -1)
