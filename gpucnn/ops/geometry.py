"""Sizes of windows that slide over an image, and the checks that convolution and pooling share.

The formula is that of PyTorch (torch.nn.Conv2d): with padding ``lo`` and ``hi``, dilation ``d``,
kernel ``k`` and stride ``s``, ``n`` inputs give ``(n + lo + hi - d*(k - 1) - 1) // s + 1`` outputs.
"""

from __future__ import annotations

import operator
from typing import Any

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

MAX_SIZE = 2**31 - 2**16  # what a kernel adds to a coordinate stays within int32


def integer(name: str, value: Any, minimum: int) -> int:
    """``value`` as an int >= minimum; TypeError or ValueError naming the argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value!r}")
    return number


def pair(name: str, value: Any, minimum: int = 1) -> Pair:
    """An int or a pair of ints as (height, width), each >= minimum."""
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints, got {value!r}")
        return integer(name, value[0], minimum), integer(name, value[1], minimum)
    number = integer(name, value, minimum)
    return number, number


def padding_pairs(value: Any) -> Padding:
    """``P``, ``(PH, PW)`` or ``((PT, PB), (PL, PR))`` as ((top, bottom), (left, right))."""
    if isinstance(value, tuple | list) and any(isinstance(v, tuple | list) for v in value):
        if len(value) != 2:
            raise ValueError(
                f"padding must be an int, a pair or ((top, bottom), (left, right)), got {value!r}"
            )
        return pair("padding", value[0], 0), pair("padding", value[1], 0)
    high, wide = pair("padding", value, 0)
    return (high, high), (wide, wide)


def resolve_padding(value: Any, size: Pair, kernel: Pair, stride: Pair, dilation: Pair) -> Padding:
    """:func:`padding_pairs`, and "valid" (none) and "same" (ceil(n / stride) outputs).

    "same" puts the odd cell of a total at the bottom and on the right, like TensorFlow and PyTorch.
    """
    if isinstance(value, str):
        if value == "valid":
            return (0, 0), (0, 0)
        if value != "same":
            raise ValueError(f'padding must be numbers, "same" or "valid", got {value!r}')
        pairs = []
        for n, k, s, d in zip(size, kernel, stride, dilation, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pairs.append((total // 2, total - total // 2))
        return pairs[0], pairs[1]
    return padding_pairs(value)


def conv_output_size(
    size: int, kernel_size: int, *, stride: int = 1, padding: int | Pair = 0, dilation: int = 1
) -> int:
    """The number of places a window has along one axis, as PyTorch counts them.

    padding is one number for both ends or (before, after). Raises ValueError if the dilated window
    is larger than the padded input.
    """
    size, kernel_size = integer("size", size, 1), integer("kernel_size", kernel_size, 1)
    stride, dilation = integer("stride", stride, 1), integer("dilation", dilation, 1)
    low, high = pair("padding", padding, 0)
    reach = dilation * (kernel_size - 1) + 1
    if size + low + high > MAX_SIZE:
        raise ValueError(f"padding: the padded size {size + low + high} exceeds {MAX_SIZE}")
    if reach > size + low + high:
        raise ValueError(
            f"kernel_size: a window of {kernel_size} with dilation {dilation} covers {reach}, "
            f"more than the padded input of {size} + {low} + {high}"
        )
    return (size + low + high - reach) // stride + 1


def image_shape(name: str, array: Any) -> tuple[int, int, int, int]:
    """The (N, H, W, C) of an image batch, each >= 1."""
    if array.ndim != 4:
        raise ValueError(f"{name} must have shape (N, H, W, C), got {tuple(array.shape)}")
    if 0 in array.shape:
        raise ValueError(f"{name} must not be empty, got shape {tuple(array.shape)}")
    n, h, w, c = array.shape
    return n, h, w, c


def same_float_dtype(**arrays: Any) -> None:
    """Raise TypeError unless every array (None passes) is float and all share one dtype."""
    first = ""
    for name, array in arrays.items():
        if array is None:
            continue
        if array.dtype.kind != "f":
            raise TypeError(f"{name} must be float32 (float64 on cpu), got {array.dtype}")
        first = first or name
        if array.dtype != arrays[first].dtype:
            raise TypeError(f"{name} must be {arrays[first].dtype} like {first}, got {array.dtype}")
