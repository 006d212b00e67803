"""Copies of weights with their channels exchanged, kept by the step of an optimizer.

Data gradients read a filter (G, OCG, taps, CG) as (G, CG, taps, OCG). Who trains it with an
optimizer finds the copy that the last step has written beside the parameters: nothing is launched
for it. The first use of a filter asks for the copy, the next step begins to keep it.

A copy holds as long as nothing but the step writes the parameters. Tensors that are given other
``data`` are no matter; what writes into the array of a parameter calls :func:`changed` or
:meth:`gpucnn.optim.Optimizer.parameters_changed`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from gpucnn import launch_plan
from gpucnn.device import Array, address, empty
from gpucnn.ops.optimizer_parts import Exchange
from gpucnn.ops.transpose import launch_transpose
from gpucnn.recording import assign, lasting, memory_is_planned, watch_attribute

_EXCHANGE = (0, 3, 2, 1)

_places: dict[tuple[bool, int], tuple[weakref.ref[WeightCopies], int]] = {}


def _key(array: Array) -> tuple[bool, int]:
    return isinstance(array, np.ndarray), address(array)


class WeightCopies:
    """The copies of an optimizer.

    buffer: where they lie, None as long as there are none. kept: those of the parameters that have
    one. layout: another object whenever copies move.
    """

    def __init__(self, parameters: Sequence[Array]) -> None:
        self.buffer: Array | None = None
        self.kept: dict[int, Exchange] = {}
        self.layout = object()
        self._parameters = list(parameters)
        self._wanted: dict[int, Exchange] = {}
        keys = [_key(p) for p in parameters]
        _places.update((key, (weakref.ref(self), i)) for i, key in enumerate(keys))
        weakref.finalize(self, _forget, keys)

    def find(self, index: int, sizes: tuple[int, int, int, int]) -> Array | None:
        """The copy of a parameter (G, OCG, taps, CG); asks for it if there is none."""
        e = self.kept.get(index)
        if e is None:
            self._wanted[index] = Exchange(0, *sizes)
        if e is None or self.buffer is None or (e.G, e.OCG, e.taps, e.CG) != sizes:
            return None
        watch_attribute(self, "layout")
        return self._copy(e)

    def _copy(self, e: Exchange) -> Array:
        assert self.buffer is not None
        shape = e.G, e.CG, e.taps, e.OCG
        return self.buffer[e.first : e.first + e.G * e.CG * e.taps * e.OCG].reshape(shape)

    def grow(self) -> bool:
        """Keep what was asked for from now on, if anything was."""
        if not self._wanted or memory_is_planned():
            return False
        end = 0
        for i, e in sorted({**self._wanted, **self.kept}.items()):
            self.kept[i] = Exchange(end, e.G, e.OCG, e.taps, e.CG)
            end += -(-self._parameters[i].size // 64) * 64
        self._wanted.clear()
        self.buffer = lasting(lambda: empty(self._parameters[0], (end,)))
        self.layout = object()
        self.refresh()
        return True

    def refresh(self, index: int | None = None) -> None:
        """Write the copy of one parameter, or all, from what the parameters are now."""
        for i, e in self.kept.items():
            if index is None or i == index:
                filters = self._parameters[i].reshape(e.G, e.OCG, e.taps, e.CG)
                assign(self._copy(e), launch_transpose(filters, _EXCHANGE))


def _forget(keys: Sequence[tuple[bool, int]]) -> None:
    for key in keys:
        if key in _places and _places[key][0]() is None:
            del _places[key]


def _find(w: Array) -> tuple[WeightCopies | None, int]:
    reference, index = _places.get(_key(w), (None, 0)) if _places else (None, 0)
    return (None if reference is None else reference()), index


def exchanged(w: Array, G: int, OCG: int, taps: int, CG: int) -> Array:
    """w (G, OCG, taps, CG), in any shape, as (G, CG, taps, OCG): a kept copy, or a new one."""
    copies, index = _find(w)
    if copies is not None:
        if (watch := launch_plan.current()) is not None:
            watch.unusual()  # which memory is read depends on whose filter it is
        copy = copies.find(index, (G, OCG, taps, CG))
        if copy is not None:
            return copy
    return launch_transpose(w.reshape(G, OCG, taps, CG), _EXCHANGE)


def changed(array: Array) -> None:
    """The values of an array have been written: if it is a parameter's, its copy is renewed."""
    copies, index = _find(array)
    if copies is not None:
        copies.refresh(index)
