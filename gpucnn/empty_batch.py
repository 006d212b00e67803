"""Batches without an image: the right shapes and gradients of 0, and no kernel is launched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, to_device
from gpucnn.tensor import Function, Tensor, no_grad

Filled = tuple[tuple[int, ...], Any, float]  # shape, dtype and value of an array


class Nothing(Function):
    """Constants in the place of a computation on an empty batch; every gradient is 0."""

    activations = ()  # inputs stay in the storage they have

    def forward(self, *arrays: Array | None, outputs: list[Filled]) -> Any:
        self.inputs = [None if a is None else (a.shape, a.dtype) for a in arrays]
        made = tuple(self._full(*output) for output in outputs)
        return made if len(made) > 1 else made[0]

    def backward(self, *grads: Array | None) -> tuple[Array | None, ...]:
        return tuple(
            self._full(*like, 0) if needed and like is not None else None
            for like, needed in zip(self.inputs, self.needs, strict=True)
        )

    def _full(self, shape: tuple[int, ...], dtype: Any, value: float) -> Array:
        return to_device(np.full(shape, value, dtype), self.device)


def nothing(inputs: Iterable[Tensor | None], shape: tuple[int, ...], value: float = 0) -> Tensor:
    """A constant with the dtype of the first input, in the place of a function of the inputs.

    In float32 beside bfloat16 unless it is 0.
    """
    inputs = tuple(inputs)
    first = next(t.data for t in inputs if t is not None)
    dtype = np.float32 if value and is_bfloat16(first) else first.dtype
    made: Tensor = Nothing.apply(*inputs, outputs=[(shape, dtype, value)])
    return made


def of_no_images(
    function: type[Function],
    inputs: tuple[Tensor | None, ...],
    options: dict[str, Any],
    batched: Iterable[int],
) -> Any:
    """The outputs of ``function`` for an empty batch: those for a blank image, without the image.

    batched: the inputs whose first axis is the batch. What the function refuses of a blank image it
    refuses here.
    """
    images = [(i, t) for i in batched if (t := inputs[i]) is not None]
    count = 1 + max((t.shape[0] for _, t in images if t.ndim), default=0)  # no other input has it
    blank = list(inputs)
    for i, t in images:
        if t.shape[:1] == (0,):
            value = -1 if t.dtype == np.int32 else 0  # no winner, where it is an index
            array = to_device(np.full((count, *t.shape[1:]), value, t.data.dtype), t.device)
            blank[i] = Tensor._wrap(array, t.device)
    with no_grad():
        found = function.apply(*blank, **options)
    made = found if isinstance(found, tuple) else (found,)
    return Nothing.apply(*inputs, outputs=[((0, *y.shape[1:]), y.data.dtype, 0) for y in made])
