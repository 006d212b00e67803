"""How activations are stored: float32, or in the precision "bf16" bfloat16.

A :class:`~gpucnn.tensor.Function` that names ``activations`` computes on both. In "bf16" a function
that multiplies matrices narrows what comes to it in float32, and everything after it goes on in
bfloat16 until a function without ``activations`` widens it. Parameters, their gradients, statistics
and losses stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn.bfloat16 import is_bfloat16, narrowed
from gpucnn.device import Array
from gpucnn.precision import chosen_precision

if TYPE_CHECKING:
    from gpucnn.tensor import Function, Tensor


def widen_there(array: Array) -> Array:
    """Float32 values of bfloat16, by a kernel where the array lives."""
    from gpucnn.ops.cast import widen

    return widen.default(array)


def narrow_there(array: Array) -> Array:
    """Float32 rounded to bfloat16, by a kernel where the array lives."""
    from gpucnn.ops.cast import narrow

    return narrow.default(array)


def alike(*arrays: Array) -> tuple[Array, ...]:
    """Arrays on a GPU or under the emulator in one storage: bfloat16 if one of them is."""
    stored = [is_bfloat16(a) for a in arrays]
    if any(stored) and not all(stored):
        return tuple(
            a if known else narrow_there(a) for a, known in zip(arrays, stored, strict=True)
        )
    return arrays


def prepared(function: type[Function], inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The tensors that a function computes on: narrowed or widened as it wants them."""
    from gpucnn.ops.cast import to_bfloat16, to_float32
    from gpucnn.tensor import Tensor

    activations = function.activations
    given = [isinstance(t, Tensor) for t in inputs]
    if activations is None:
        return tuple(
            to_float32(t) if known and is_bfloat16(t.data) else t
            for t, known in zip(inputs, given, strict=True)
        )
    among = range(len(inputs)) if activations is ... else activations
    stored = function.narrows and chosen_precision() == "bf16"
    stored = stored or any(given[i] and is_bfloat16(inputs[i].data) for i in among)
    if not stored:
        return tuple(inputs)
    return tuple(
        to_bfloat16(t) if i in among and given[i] and _is_float32_activation(t.data) else t
        for i, t in enumerate(inputs)
    )


def stored_weight(function: Function, x: Array, weight: Array) -> Array:
    """The weight as a product with x takes it: a copy in bfloat16 beside an x in bfloat16."""
    if not is_bfloat16(x):
        return weight
    from gpucnn.ops.cast import narrow
    from gpucnn.weight_copies import narrowed

    return narrowed(weight, lambda w: function.run(narrow, w))


_PRODUCTS = ("conv2d", "conv2d_fused", "conv_transpose2d", "linear")


def handed_over(family: str, arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a primitive, NumPy arrays of float32, as the chosen precision hands them to it.

    In "bf16" activations and weights of products are narrowed.
    """
    if family not in _PRODUCTS or chosen_precision() != "bf16":
        return tuple(arguments)
    return tuple(
        narrowed(a) if isinstance(a, np.ndarray) and _is_float32_activation(a) else a
        for a in arguments
    )


def as_input(images: Tensor) -> Tensor:
    """What a network begins with: in the precision "bf16" float32 images rounded to bfloat16."""
    from gpucnn.ops.cast import to_bfloat16

    narrow = chosen_precision() == "bf16" and images.data.dtype.char == "f"
    return to_bfloat16(images) if narrow else images


def _is_float32_activation(array: Array) -> bool:
    return bool(array.dtype.char == "f" and array.ndim > 1)
