"""The arguments of primitives: arrays, lists of arrays, and what is neither."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpucnn.bfloat16 import is_bfloat16
from gpucnn.bfloat16 import widened as values


def map_arrays(arguments: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The arguments with every NumPy array changed, also those in lists."""

    def changed(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return change(value)
        return [changed(v) for v in value] if isinstance(value, list) else value

    return tuple(changed(value) for value in arguments)


def widened(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the arguments, floating-point arrays in float64."""
    return map_arrays(
        arguments, lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a.copy()
    )


def in_float32(array: Any) -> Any:
    """A host array, the values of one in bfloat16."""
    return values(array) if is_bfloat16(array) else array


def flat(values: Any) -> Iterator[Any]:
    """The arrays of nested tuples and lists, None left out."""
    if isinstance(values, tuple | list):
        for value in values:
            yield from flat(value)
    elif values is not None:
        yield values


def results(returned: Any, arguments: tuple[Any, ...], updated: tuple[int, ...]) -> list[Any]:
    """What a call of a primitive made: what it returned, then the arguments it changed in place."""
    return list(flat([returned, [arguments[i] for i in updated]]))
