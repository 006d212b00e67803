"""Arrays as kernels see them: fresh ones that count as uninitialised, and what arguments span."""

from __future__ import annotations

import ctypes
import itertools
import weakref
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from gpucnn.emulator.build import available, poison_function
from gpucnn.signature import Parameter

Array = np.ndarray[Any, Any]


class _Poisoned(weakref.ref[Array]):
    """An array whose memory was filled with a pattern, and the salt of that."""

    __slots__ = ("key", "salt")
    key: int
    salt: int


# By the id of the owner of the memory. An entry leaves with the owner, so that an id that is used
# again is never mistaken for the old one.
_poisoned: dict[int, _Poisoned] = {}


def _gone(reference: weakref.ref[Array]) -> None:
    _poisoned.pop(reference.key, None)  # type: ignore[attr-defined]


_salts = itertools.count(1)

_memory: Any = ctypes.c_char * 0
_fill: Any = None  # the runtime's function, once it is loaded


def address(array: Array) -> int:
    """Where the first element lies: ``array.ctypes.data``, sooner where it can be written."""
    try:
        return ctypes.addressof(_memory.from_buffer(array))
    except (TypeError, ValueError):
        return int(array.ctypes.data)


def empty(shape: int | tuple[int, ...], dtype: DTypeLike = np.float32) -> Array:
    """An array whose content counts as uninitialised: a checked kernel that reads it faults.

    The memory is filled with a pattern that differs from word to word and is a NaN as float32; a
    4-byte word is uninitialised for as long as it holds exactly its pattern. Writing it, by a
    kernel or through NumPy, is therefore all it takes to initialise it, and views and slices behave
    as the array they come from. A store to part of a word initialises the whole word for later
    launches, and up to three bytes at the end of an array that is no multiple of 4 bytes are never
    reported.
    """
    array = np.empty(shape, dtype)
    poison(array)
    return array


def poison(array: Array) -> None:
    """Make the content of an array count as uninitialised, as that of :func:`empty`.

    It is the array that all views of its memory come from.
    """
    global _fill
    words = array.nbytes // 4
    if words == 0:
        return
    if _fill is None:
        if not available():
            return
        _fill = poison_function()
    entry = _Poisoned(array, _gone)
    entry.key = key = id(array)
    entry.salt = salt = next(_salts) % 0xFFFFFFFF + 1
    _fill(_memory.from_buffer(array), words, salt)
    _poisoned[key] = entry


def owner(array: Array) -> Array:
    """The array that owns the memory of a view."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


@dataclass
class Span:
    """A stretch of host memory that one or more array arguments cover."""

    begin: int
    end: int
    writable: bool
    misalignment: int
    poison_offset: int
    salt: int
    parameters: list[tuple[Parameter, Array, int]] = field(default_factory=list)


def spans_of(arrays: list[tuple[Parameter, Array]]) -> list[Span]:
    """The memory that array arguments cover, overlapping ones merged, in order of address.

    Each span lists its parameters with their byte offset in it.
    """
    spans: list[Span] = []
    for parameter, array in sorted(arrays, key=lambda item: item[1].ctypes.data):
        begin = array.ctypes.data
        end = begin + array.nbytes
        base = owner(array)
        offset = begin - base.ctypes.data
        if spans and begin < spans[-1].end:
            span = spans[-1]
            span.end = max(span.end, end)
            span.writable = span.writable or not parameter.const
        else:
            poisoned = _poisoned.get(id(base))
            salt = 0 if poisoned is None else poisoned.salt
            span = Span(begin, end, not parameter.const, offset % 256, offset, salt)
            spans.append(span)
        span.parameters.append((parameter, array, begin - span.begin))
    return spans
