"""Gradients of an optimizer's parameters in one buffer, and what is still to be done to them.

A kernel that splits a long sum leaves slices behind. Where these are small, they stay in a buffer
of the optimizer, whose next step adds them on its way; nothing is launched for it. A coefficient
that clips the gradients waits for that step in the same manner. Whoever looks at a gradient before
(``Tensor.grad``) finds it finished: it is then settled, in the order of additions of the step, so
that the bits are the same.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence

from gpucnn import launch_plan
from gpucnn.device import Array, address, empty, into
from gpucnn.recording import lasting, memory_is_planned, watch_attribute

# Bytes of a parameter's slices that wait: memory moves them to and fro in about the time of the
# launch that is saved. More of them are added at once, while they are in the cache.
MOST_BYTES = 1 << 23

_all: weakref.WeakSet[FlatGradients] = weakref.WeakSet()


class FlatGradients:
    """The gradient buffer of an optimizer.

    pending: the parameters whose gradients lie in slices, and how many. scale: a coefficient (1)
    for the gradients of the parameters ``scaled``. layout: another object whenever slices move.
    """

    def __init__(self, buffer: Array, starts: Sequence[int], sizes: Sequence[int]) -> None:
        self.buffer, self._starts, self._sizes = buffer, starts, sizes
        self.slices: Array | None = None
        self.places: dict[int, tuple[int, int]] = {}  # parameter -> (first element, most slices)
        self.pending: dict[int, int] = {}
        self.scale: Array | None = None
        self.scaled: set[int] = set()
        self.layout = object()
        self._wanted: dict[int, int] = {}
        _all.add(self)

    def view(self, index: int) -> Array:
        """The gradient of a parameter (n)."""
        start = self._starts[index]
        return self.buffer[start : start + self._sizes[index]]

    def room(self, index: int, count: int) -> Array | None:
        """Memory for so many slices (count · n) of a parameter; None if there is none as yet."""
        if count * self._sizes[index] * self.buffer.itemsize > MOST_BYTES:
            return None
        first, most = self.places.get(index, (0, 0))
        if count > most or self.slices is None:
            self._wanted[index] = max(count, self._wanted.get(index, 0))
            return None
        watch_attribute(self, "layout")
        return self.slices[first : first + count * self._sizes[index]]

    def grow(self) -> bool:
        """Make the room that was asked for in vain, if any was; nothing must be waiting."""
        if not self._wanted or memory_is_planned():
            return False
        counts = {i: most for i, (_, most) in self.places.items()}
        for i, count in self._wanted.items():
            counts[i] = max(count, counts.get(i, 0))
        self._wanted.clear()
        self.places, end = {}, 0
        for i, count in counts.items():
            self.places[i] = end, count
            end += -(-count * self._sizes[i] // 64) * 64
        self.slices = lasting(lambda: empty(self.buffer, (end,)))
        self.layout = object()
        return True

    def settle(self, index: int) -> None:
        """Finish the gradient of a parameter."""
        from gpucnn.ops.reduce import launch_sum_slices

        if (count := self.pending.pop(index, 0)) and self.slices is not None:
            first, _ = self.places[index]
            slices = self.slices[first : first + count * self._sizes[index]]
            with into(self.view(index)):
                launch_sum_slices(slices.reshape(count, -1), None)
        if index in self.scaled:
            self.settle_scale()

    def settle_scale(self) -> None:
        """Multiply all gradients that wait for it."""
        from gpucnn.ops.clip import launch_scale

        scale, self.scale = self.scale, None
        if scale is not None:
            launch_scale([self.view(i) for i in sorted(self.scaled)], scale)
        self.scaled.clear()

    def settle_all(self) -> None:
        """Finish all gradients."""
        for index in list(self.pending):
            self.settle(index)
        self.settle_scale()

    def consumed(self) -> None:
        """A step has finished them on its way."""
        self.pending.clear()
        self.scaled.clear()
        self.scale = None


class GradientHome:
    """Where the gradient of one parameter belongs.

    array: its place in the buffer, shaped like the parameter.
    """

    def __init__(self, gradients: FlatGradients, index: int, shape: tuple[int, ...]) -> None:
        self.array = gradients.view(index).reshape(shape)
        self._gradients, self._index = gradients, index

    def settle(self) -> None:
        """Finish what lies here."""
        gradients = self._gradients
        if gradients.pending or gradients.scaled:
            gradients.settle(self._index)

    def forget(self) -> None:
        """Nothing that waits here is wanted any more."""
        gradients = self._gradients
        if gradients.pending or gradients.scaled:
            gradients.pending.pop(self._index, None)
            gradients.scaled.discard(self._index)

    def room(self, count: int) -> Array | None:
        """Memory for so many slices, None if they are to be added at once."""
        return self._gradients.room(self._index, count)

    def leave(self, count: int) -> None:
        """So many slices have been left in the room."""
        self._gradients.pending[self._index] = count


def settle_everything() -> None:
    """Finish the gradients of all optimizers: no slices cross the border of a graph."""
    for gradients in list(_all):
        if gradients.pending or gradients.scaled:
            gradients.settle_all()


class _Waiting(threading.local):
    """Whose slices the next launcher of a thread may leave behind, and what it has left."""

    home: GradientHome | None = None
    left: Array | None = None


waiting = _Waiting()


def room_for(count: int, size: int) -> Array | None:
    """Memory (count · size) for slices that wait, if they may."""
    home, waiting.home = waiting.home, None
    if home is None or home.array.size != size:
        return None
    if (watch := launch_plan.current()) is not None:
        watch.unusual()  # where slices go depends on whose they are
    room = home.room(count)
    if room is not None:
        waiting.left = room
        home.leave(count)
    return room


def waits(slices: Array) -> bool:
    """Whether these slices are to be left as they are."""
    left = waiting.left
    return left is not None and slices.size == left.size and address(slices) == address(left)
