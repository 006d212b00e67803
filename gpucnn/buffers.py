"""Memory of the ``cpu`` device: freed arrays are handed out again.

A training step makes and drops the same large arrays over and over. Left to malloc, each of them is
mapped anew and its pages are faulted in one by one, which costs more than many of the operations
that fill them. Here a large array's memory returns to a pool when its last view dies.
"""

from __future__ import annotations

import collections
import math
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import recording

_SMALL = 1 << 16  # bytes: malloc keeps these in its heap
_IDLE = 1 << 26  # bytes of one size that are kept for later, or _IDLE_BLOCKS if that is more
_IDLE_BLOCKS = 4
_ALIGNMENT = 64

_idle: dict[int, list[NDArray[np.uint8]]] = collections.defaultdict(list)


def _size_class(size: int) -> int:
    """``size`` rounded up to one of four sizes per power of two: near sizes share memory."""
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step


class _Block:
    """The owner of one array's memory: NumPy keeps it alive as long as any view of the array."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
        rounded = _size_class(size)
        self._home = _idle[rounded]
        self._most = max(_IDLE_BLOCKS, _IDLE // rounded)
        try:
            self._memory = self._home.pop()
        except IndexError:
            self._memory = np.empty(rounded + _ALIGNMENT, np.uint8)
        start = self._memory.ctypes.data
        self.__array_interface__ = {
            "data": (start + -start % _ALIGNMENT, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }

    def __del__(self) -> None:
        # The globals of this module may be gone when the interpreter exits, and there is nothing to
        # return where no memory was had.
        memory = self.__dict__.get("_memory")
        if memory is not None and len(self._home) < self._most:
            self._home.append(memory)


def empty(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A C-contiguous array with undefined contents, from recycled memory if it is large."""
    recorder = recording.active and recording.current()
    if recorder:
        return cast(
            "NDArray[Any]",
            recorder.empty(shape, dtype, lambda: _empty(shape, np.dtype(dtype)), False),
        )
    return _empty(shape, np.dtype(dtype))


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    if size < _SMALL:
        return np.empty(shape, dtype)
    return np.asarray(_Block(shape, dtype, size))


def empty_like(array: NDArray[Any]) -> NDArray[Any]:
    """:func:`empty` of the shape and dtype of another array."""
    return empty(array.shape, array.dtype)
