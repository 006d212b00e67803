"""bfloat16, the upper half of a float32, as activations lie in memory in the precision "bf16".

NumPy has no such type: an array of bfloat16 holds the bit patterns as uint16, which no other array
of gpucnn is.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.threads import map_chunks, scratch

_BITS = np.dtype(np.uint16)
_CHUNK = 1 << 16  # elements


class BFloat16:
    """What ``Tensor.dtype`` says of a tensor in bfloat16."""

    name = "bfloat16"
    itemsize = 2
    kind = "f"
    char = _BITS.char
    in_use = False  # whether there may be such an array

    def __repr__(self) -> str:
        return self.name


BFLOAT16 = BFloat16()


def use() -> None:
    """From now on look for arrays of bfloat16."""
    BFLOAT16.in_use = True


def is_bfloat16(array: Any) -> bool:
    """Whether an array (NumPy's or CuPy's) holds bfloat16."""
    return bool(array.dtype.char == _BITS.char)


def is_float(array: Any) -> bool:
    """Whether an array holds real numbers: float32, float64 or bfloat16."""
    return array.dtype.kind == "f" or is_bfloat16(array)


class _Storing(threading.local):
    """Whether a thread computes what will be stored in bfloat16."""

    active = False


_state = _Storing()


@contextlib.contextmanager
def storing() -> Iterator[None]:
    """Inside the ``with`` block results of a definition in float32 are to be narrowed."""
    before, _state.active = _state.active, True
    try:
        yield
    finally:
        _state.active = before


def as_stored(values: NDArray[Any]) -> NDArray[Any]:
    """A result of a definition as it will be read again: rounded where it is to be narrowed."""
    return widened(narrowed(values)) if _state.active else values


def widened(bits: NDArray[Any]) -> NDArray[np.float32]:
    """The float32 values of a NumPy array of bfloat16, exact."""
    wide = buffers.empty(bits.shape, np.float32)
    given, words = bits.reshape(-1), wide.reshape(-1).view(np.uint32)

    def part(start: int, stop: int) -> None:
        np.left_shift(given[start:stop], 16, out=words[start:stop], dtype=np.uint32)

    map_chunks(part, bits.size, _CHUNK)
    return wide


def narrowed(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Float32 values rounded to bfloat16: to nearest, halves to even; NaN becomes 0x7fff."""
    bits = buffers.empty(values.shape, _BITS)
    given, out = values.reshape(-1).view(np.uint32), bits.reshape(-1)

    def part(start: int, stop: int) -> None:
        words = given[start:stop]
        shape = words.shape
        rounded = scratch("bfloat16 rounded", shape, np.uint32)
        np.right_shift(words, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, words, out=rounded)
        np.right_shift(rounded, 16, out=rounded)
        np.copyto(out[start:stop], rounded, casting="unsafe")
        nan = scratch("bfloat16 nan", shape, np.bool_)
        np.isnan(values.reshape(-1)[start:stop], out=nan)
        if nan.any():
            out[start:stop][nan] = 0x7FFF

    map_chunks(part, values.size, _CHUNK)
    return bits
