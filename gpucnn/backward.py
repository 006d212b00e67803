"""The backward pass over the tape: who is visited when, and what has come for whom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from gpucnn.device import Array

if TYPE_CHECKING:
    from gpucnn.tensor import Function, Tensor


def order_of(root: Function) -> tuple[list[Function], dict[Function, int]]:
    """The functions that ``root`` depends on, each before all that it was computed from; and how
    often each of them is an input of another.
    """
    order: list[Function] = []
    uses: dict[Function, int] = {}
    seen: set[Function] = set()
    stack: list[Function | None] = [root]
    while stack:
        function = stack.pop()
        if function is None:  # stands on a function whose inputs are all in order
            order.append(cast("Function", stack.pop()))
        elif function not in seen:
            seen.add(function)
            stack += (function, None)
            for t in inputs_of(function):
                if t is not None and (creator := t._creator) is not None:
                    stack.append(creator)
                    uses[creator] = uses.get(creator, 0) + 1
    order.reverse()
    return order, uses


def inputs_of(function: Function) -> tuple[Tensor | None, ...]:
    """The inputs of a recorded function. Raises RuntimeError if its record was freed."""
    try:
        return function._inputs
    except AttributeError:
        raise RuntimeError(
            "the record was freed by an earlier backward(); run the forward pass again"
        ) from None


def added(device: str, a: Array, b: Array) -> Array:
    """a + b on a device."""
    from gpucnn.ops.elementwise import add_forward

    return add_forward.on(device)(a, b) if a.size else a


class BackwardPass:
    """Where a backward pass stands.

    uses: how often the outputs of a function are inputs of others whose gradients are to come.
    pending: the gradients of a function's outputs that have come. ones: the gradient that the pass
    began with, if that is 1.
    """

    __slots__ = ("ones", "pending", "uses")

    def __init__(self, uses: dict[Function, int], ones: Array | None = None) -> None:
        self.uses, self.ones = uses, ones
        self.pending: dict[Function, list[Array | None]] = {}

    def add(self, tensor: Tensor, grad: Array) -> None:
        """Add to what has come so far for a tensor that a function made."""
        function, index = cast("Function", tensor._creator), tensor._output_index
        grads = self.pending.get(function)
        if grads is None:
            grads = self.pending[function] = [None] * function._output_count
        before = grads[index]
        grads[index] = grad if before is None else added(tensor.device, before, grad)


def walk_back(tensor: Tensor, grad: Array, one: bool = False) -> None:
    """Bring the gradient of a tensor, ``one`` if it is 1, to all that it depends on, and free their
    record.
    """
    if tensor._creator is None:
        tensor._accumulate(grad)
        return
    order, uses = order_of(tensor._creator)
    back = BackwardPass(uses, ones=grad if one else None)
    for function in order:
        function._back = back
    back.add(tensor, grad)
    try:
        _call_backwards(order, back)
    except BaseException:
        for function in order:  # in no circle, so that memory is free once nobody holds the tensors
            vars(function).pop("_back", None)
        raise


def _call_backwards(order: Sequence[Function], back: BackwardPass) -> None:
    pending, uses = back.pending, back.uses
    for function in order:
        inputs, needs, device = inputs_of(function), function.needs, function.device
        grads = pending.pop(function, None) or [None] * function._output_count
        results = function.backward(*grads)
        for t, needed, dx in zip(inputs, needs, results, strict=True):
            if t is None:
                continue
            creator = t._creator
            if creator is None:
                if needed and dx is not None:
                    t._accumulate(dx)
                continue
            uses[creator] -= 1
            if needed and dx is not None:
                back.add(t, dx)
        kept = function.__dict__
        kept.clear()
        kept["device"], kept["needs"] = device, needs
