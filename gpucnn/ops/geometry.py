"""Sizes of windows that slide over an image, and the checks that convolution and pooling share.

The formula is that of PyTorch (torch.nn.Conv2d): with padding ``lo`` and ``hi``, dilation ``d``,
kernel ``k`` and stride ``s``, ``n`` inputs give ``(n + lo + hi - d*(k - 1) - 1) // s + 1`` outputs.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.bfloat16 import is_bfloat16

Pair = tuple[int, int]
Padding = tuple[Pair, Pair]

Result = TypeVar("Result")

AXES = "DHW"
MAX_SIZE = 2**31 - 2**16  # what a kernel adds to a coordinate stays within int32


class Geometry:
    """Base of frozen dataclasses of sizes, which are asked for the same things again and again.

    A subclass that is a key says ``__hash__ = Geometry.__hash__``: a dataclass makes its own.
    """

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(self.values)

    @functools.cached_property
    def values(self) -> tuple[Any, ...]:
        """All fields in order."""
        return tuple(getattr(self, field.name) for field in fields(cast(Any, self)))

    @functools.cached_property
    def known(self) -> dict[Any, Any]:
        """What was worked out from these sizes, by keys of whoever did it."""
        return {}

    def once(self, work_out: Callable[[Any], Result]) -> Result:
        """``work_out(self)``, once: a function of the sizes alone, and one that stays, such as one
        of a module.
        """
        if work_out not in self.known:
            self.known[work_out] = work_out(self)
        return cast("Result", self.known[work_out])


_FLOAT32 = np.dtype(np.float32)
_MOST_REMEMBERED = 4096  # calls of one check

Check = TypeVar("Check", bound=Callable[..., Any])


def remembered(arrays: slice) -> Callable[[Check], Check]:
    """Remember what a check of arguments returned, by shapes, dtypes and options.

    arrays: which arguments are arrays, or None; of these only shape and dtype may matter. A call is
    checked anew unless its options are the very objects of a call before: ``True`` is equal to 1,
    and may be refused where that is allowed.
    """

    def decorate(check: Check) -> Check:
        known: dict[Any, tuple[tuple[Any, ...], Any]] = {}
        start, stop = arrays.start, arrays.stop

        @functools.wraps(check)
        def call(*arguments: Any, **named: Any) -> Any:
            if named:
                return check(*arguments, **named)
            try:
                options = arguments[:start] + arguments[stop:]
                key: list[Any] = [*options]
                for array in arguments[start:stop]:
                    if array is None:
                        key.append(None)
                    else:
                        key += (array.dtype, array.shape)
                problem = tuple(key)
                before = known.get(problem)
            except (AttributeError, TypeError):  # such as a list of options
                return check(*arguments)
            if before is not None and all(map(operator.is_, before[0], options)):
                return before[1]
            found = check(*arguments)
            if len(known) >= _MOST_REMEMBERED:
                known.clear()
            known[problem] = options, found
            return found

        return cast("Check", call)

    return decorate


def flag(name: str, value: Any) -> bool:
    """``value``, which must be a bool; TypeError naming the argument otherwise."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value``, a word of those allowed; ValueError naming the argument otherwise."""
    words = tuple(allowed)
    if not (isinstance(value, str) and value in words):
        raise ValueError(f"{name} must be one of {', '.join(words)}, got {value!r}")
    return value


def host_array(name: str, value: Any) -> NDArray[Any]:
    """``value`` as a NumPy array; ValueError naming the argument for lists of unequal lengths."""
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array: {error}") from None


def integer(name: str, value: Any, minimum: int, maximum: int | None = None) -> int:
    """``value`` as an int in its range; TypeError or ValueError naming the argument otherwise."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if number < minimum:
        raise ValueError(f"{name} must be >= {minimum}, got {value!r}")
    if maximum is not None and number > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}")
    return number


def sizes(name: str, value: Any, count: int, minimum: int = 1) -> tuple[int, ...]:
    """An int, or ``count`` ints, as one int per axis, each minimum … MAX_SIZE."""
    if isinstance(value, tuple | list):
        if len(value) != count:
            several = {1: "one int", 2: "a pair of ints"}.get(count, f"{count} ints")
            raise ValueError(f"{name} must be an int or {several}, got {value!r}")
        return tuple(integer(name, v, minimum, MAX_SIZE) for v in value)
    return (integer(name, value, minimum, MAX_SIZE),) * count


def pair(name: str, value: Any, minimum: int = 1) -> Pair:
    """An int or a pair of ints as (height, width), each >= minimum."""
    high, wide = sizes(name, value, 2, minimum)
    return high, wide


def padding_of_axes(value: Any, count: int) -> tuple[Pair, ...]:
    """``P``, one number per axis, or one (before, after) per axis, as the last of these."""
    if isinstance(value, tuple | list) and any(isinstance(v, tuple | list) for v in value):
        if len(value) != count:
            ends = {1: "((left, right),)", 2: "((top, bottom), (left, right))"}
            raise ValueError(
                f"padding must be an int, one per axis or "
                f"{ends.get(count, '((front, back), (top, bottom), (left, right))')}, got {value!r}"
            )
        return tuple(pair("padding", v, 0) for v in value)
    return tuple((n, n) for n in sizes("padding", value, count, 0))


def padding_pairs(value: Any) -> Padding:
    """``P``, ``(PH, PW)`` or ``((PT, PB), (PL, PR))`` as ((top, bottom), (left, right))."""
    rows, columns = padding_of_axes(value, 2)
    return rows, columns


def resolve_padding(
    value: Any,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> tuple[Pair, ...]:
    """:func:`padding_of_axes`, and "valid" (none) and "same" (ceil(n / stride) outputs).

    "same" puts the odd cell of a total at the bottom and on the right, like TensorFlow and PyTorch.
    """
    if isinstance(value, str):
        if value == "valid":
            return ((0, 0),) * len(size)
        if value != "same":
            raise ValueError(f'padding must be numbers, "same" or "valid", got {value!r}')
        totals = [
            max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]
        return tuple((total // 2, total - total // 2) for total in totals)
    return padding_of_axes(value, len(size))


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
    out = (size + low + high - reach) // stride + 1
    if size + low + high > MAX_SIZE:
        raise ValueError(f"padding: the padded size {size + low + high} exceeds {MAX_SIZE}")
    if reach > size + low + high:
        raise ValueError(
            f"kernel_size: a window of {kernel_size} with dilation {dilation} covers {reach}, "
            f"more than the padded input: ({size} + {low} + {high} - {dilation}*({kernel_size} - 1)"
            f" - 1) // {stride} + 1 = {out} outputs"
        )
    return out


def conv_transpose_output_size(
    size: int,
    kernel_size: int,
    *,
    stride: int = 1,
    padding: int | Pair = 0,
    output_padding: int = 0,
    dilation: int = 1,
) -> int:
    """The length of a transposed convolution's output along one axis, as PyTorch counts it.

    ``(size − 1)·stride − before − after + dilation·(kernel_size − 1) + output_padding + 1``:
    the size of the input from which a convolution makes ``size`` outputs. Where the stride leaves
    several such sizes, output_padding, 0 … max(stride, dilation) − 1, chooses: it adds to the end.
    padding is one number for both ends or (before, after). Raises ValueError if an argument is out
    of its range or nothing is left of the output.
    """
    size, kernel_size = integer("size", size, 1), integer("kernel_size", kernel_size, 1)
    stride, dilation = integer("stride", stride, 1), integer("dilation", dilation, 1)
    low, high = pair("padding", padding, 0)
    extra = integer("output_padding", output_padding, 0)
    if extra >= max(stride, dilation):
        raise ValueError(
            f"output_padding must be 0 … {max(stride, dilation) - 1}, smaller than the stride "
            f"({stride}) or the dilation ({dilation}), got {extra}"
        )
    full = (size - 1) * stride + dilation * (kernel_size - 1) + extra + 1
    if full > MAX_SIZE:
        raise ValueError(f"stride: the output size {full} exceeds {MAX_SIZE}")
    if full <= low + high:
        raise ValueError(
            f"padding must leave an output: ({size} - 1) * {stride} + {dilation} * "
            f"({kernel_size} - 1) + {extra} + 1 = {full} cells less {low} + {high}"
        )
    return full - low - high


def not_empty(name: str, array: Any) -> None:
    """Raise ValueError if an axis is empty, unless it is the first: a batch may be."""
    if 0 in array.shape[1:]:
        raise ValueError(f"{name} must not be empty, got shape {tuple(array.shape)}")


def batch_shape(name: str, array: Any, dims: int) -> tuple[int, ...]:
    """The (N, ..., C) of a batch of sequences, images or volumes, each >= 1 but N."""
    shape = tuple(array.shape)
    if len(shape) != dims + 2:
        raise ValueError(
            f"{name} must have shape ({', '.join(('N', *AXES[-dims:], 'C'))}), got {shape}"
        )
    not_empty(name, array)
    return shape


def image_shape(name: str, array: Any) -> tuple[int, int, int, int]:
    """The (N, H, W, C) of an image batch, each >= 1 but N."""
    n, h, w, c = batch_shape(name, array, 2)
    return n, h, w, c


def same_float_dtype(**arrays: Any) -> None:
    """Raise TypeError unless every array (None passes) is float and all share one dtype.

    bfloat16 counts as float32: beside activations in the one, parameters are in the other.
    """
    given = [array.dtype for array in arrays.values() if array is not None]
    if given.count(_FLOAT32) == len(given):
        return
    arrays = {name: a for name, a in arrays.items() if a is None or not is_bfloat16(a)}
    dtypes = {array.dtype for array in arrays.values() if array is not None} or {_FLOAT32}
    if len(dtypes) == 1 and dtypes.pop().kind == "f":
        return
    first = ""
    for name, array in arrays.items():
        if array is None:
            continue
        if array.dtype.kind != "f":
            raise TypeError(f"{name} must be float32 (float64 on cpu), got {array.dtype}")
        first = first or name
        if array.dtype != arrays[first].dtype:
            raise TypeError(f"{name} must be {arrays[first].dtype} like {first}, got {array.dtype}")
