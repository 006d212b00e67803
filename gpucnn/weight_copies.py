"""Copies of weights with their channels exchanged or in bfloat16, kept by an optimizer's step.

Data gradients read a filter (G, OCG, taps, CG) as (G, CG, taps, OCG), and products of activations
in bfloat16 read it in bfloat16. Who trains it with an
optimizer finds the copy that the last step has written beside the parameters: nothing is launched
for it. The first use of a filter asks for the copy, the next step begins to keep it.

A copy holds as long as nothing but the step writes the parameters. Tensors that are given other
``data`` are no matter; what writes into the array of a parameter calls :func:`changed` or
:meth:`gpucnn.optim.Optimizer.parameters_changed`.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from gpucnn import launch_plan
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, address, empty
from gpucnn.ops.optimizer_parts import Copies
from gpucnn.ops.transpose import launch_transpose
from gpucnn.recording import assign, lasting, memory_is_planned, watch_attribute
from gpucnn.storage import narrow_there

_EXCHANGE = (0, 3, 2, 1)

_KINDS = ("exchanged", "narrowed", "narrowed_exchanged")

_Key = tuple[bool, int]
_Places = dict[_Key, "tuple[weakref.ref[WeightCopies], int]"]
_places: _Places = {}  # parameters by their addresses
_narrowed: _Places = {}  # what :func:`narrowed` has returned of them


def _key(array: Array) -> _Key:
    return isinstance(array, np.ndarray), address(array)


class WeightCopies:
    """The copies of an optimizer.

    exchanged, narrow: where those in float32 and in bfloat16 lie, None as long as there are none.
    kept: those of the parameters that have any. layout: another object whenever copies move.
    """

    def __init__(self, parameters: Sequence[Array]) -> None:
        self.exchanged: Array | None = None
        self.narrow: Array | None = None
        self.kept: dict[int, Copies] = {}
        self.layout = object()
        self._parameters = list(parameters)
        self._wanted: dict[int, set[str]] = {}  # attributes of Copies
        self._sizes: dict[int, tuple[int, int, int, int]] = {}
        keys = [_key(p) for p in parameters]
        _places.update((key, (weakref.ref(self), i)) for i, key in enumerate(keys))
        weakref.finalize(self, _forget, keys)

    def find(
        self, index: int, what: str, sizes: tuple[int, int, int, int] | None = None
    ) -> Array | None:
        """One of the copies of a parameter; asks for it if there is none.

        what: an attribute of :class:`Copies`. sizes: (G, OCG, taps, CG) of one that is exchanged.
        """
        if sizes is not None and not self._take_sizes(index, sizes):
            return None
        found = self.kept.get(index)
        if found is None or getattr(found, what) < 0:
            self._wanted.setdefault(index, set()).add(what)
            return None
        watch_attribute(self, "layout")
        return self._copy(index, what)

    def _take_sizes(self, index: int, sizes: tuple[int, int, int, int]) -> bool:
        """Whether a parameter is a filter of these sizes, as far as is known."""
        fits = math.prod(sizes) == self._parameters[index].size
        return fits and self._sizes.setdefault(index, sizes) == sizes

    def is_narrowed(self, index: int, w: Array) -> bool:
        """Whether an array is the copy of a parameter in bfloat16."""
        found = self.kept.get(index)
        if found is None or found.narrowed < 0:
            return False
        return address(w) == address(self._copy(index, "narrowed"))

    def _copy(self, index: int, what: str) -> Array:
        made = self.kept[index]
        buffer = cast("Array", self.exchanged if what == "exchanged" else self.narrow)
        first, filters = getattr(made, what), self._parameters[index]
        shape = filters.shape
        if what != "narrowed":
            shape = made.G, made.CG, made.taps, made.OCG
        return buffer[first : first + filters.size].reshape(shape)

    def grow(self) -> bool:
        """Keep what was asked for from now on, if anything was."""
        if not self._wanted or memory_is_planned():
            return False
        for i, found in self.kept.items():
            have = {what for what in _KINDS if getattr(found, what) >= 0}
            self._wanted.setdefault(i, set()).update(have)
        ends = {"exchanged": 0, "narrow": 0}
        for i, wanted in sorted(self._wanted.items()):
            n = self._parameters[i].size
            firsts = dict.fromkeys(_KINDS, -1)
            for what in sorted(wanted):
                buffer = "exchanged" if what == "exchanged" else "narrow"
                firsts[what] = ends[buffer]
                ends[buffer] += -(-n // 64) * 64
            self.kept[i] = Copies(*self._sizes.get(i, (1, 1, 1, n)), **firsts)
        self._wanted.clear()
        like = self._parameters[0]
        if ends["exchanged"]:
            self.exchanged = lasting(lambda: empty(like, (ends["exchanged"],)))
        if ends["narrow"]:
            self.narrow = lasting(lambda: empty(like, (ends["narrow"],), np.uint16))
        self.layout = object()
        self.refresh()
        return True

    def refresh(self, index: int | None = None) -> None:
        """Write the copies of one parameter, or all, from what the parameters are now."""
        for i, made in self.kept.items():
            if index is not None and i != index:
                continue
            filters = self._parameters[i].reshape(made.sizes)
            if made.exchanged >= 0:
                assign(self._copy(i, "exchanged"), launch_transpose(filters, _EXCHANGE))
            if max(made.narrowed, made.narrowed_exchanged) < 0:
                continue
            narrow = narrow_there(filters)
            if made.narrowed >= 0:
                assign(self._copy(i, "narrowed"), narrow.reshape(self._parameters[i].shape))
            if made.narrowed_exchanged >= 0:
                exchanged = launch_transpose(narrow, _EXCHANGE)
                assign(self._copy(i, "narrowed_exchanged"), exchanged)


def _forget(keys: Sequence[_Key]) -> None:
    for key in keys:
        if key in _places and _places[key][0]() is None:
            del _places[key]
    for key in [key for key, (copies, _) in _narrowed.items() if copies() is None]:
        del _narrowed[key]


def _find(w: Array, places: _Places) -> tuple[WeightCopies | None, int]:
    reference, index = places.get(_key(w), (None, 0)) if places else (None, 0)
    return (None if reference is None else reference()), index


def exchanged(w: Array, G: int, OCG: int, taps: int, CG: int) -> Array:
    """w (G, OCG, taps, CG), in any shape, as (G, CG, taps, OCG): a kept copy, or a new one.

    In bfloat16 where w is what :func:`narrowed` has returned.
    """
    places, what = _places, "exchanged"
    if is_bfloat16(w):
        places, what = _narrowed, "narrowed_exchanged"
    copies, index = _find(w, places)
    if copies is not None:
        if (watch := launch_plan.current()) is not None:
            watch.unusual()  # which memory is read depends on whose filter it is
        copy = copies.find(index, what, (G, OCG, taps, CG))
        # What was narrowed anew may lie where that of another filter has lain.
        if copy is not None and (places is _places or copies.is_narrowed(index, w)):
            return copy
    return launch_transpose(w.reshape(G, OCG, taps, CG), _EXCHANGE)


def narrowed(w: Array, narrow: Callable[[Array], Array]) -> Array:
    """w in bfloat16: a kept copy, or what ``narrow`` makes of it."""
    copies, index = _find(w, _places)
    if copies is None:
        return narrow(w)
    copy = copies.find(index, "narrowed")
    if copy is None:
        copy = narrow(w)
    _narrowed[_key(copy)] = weakref.ref(copies), index
    return copy


def changed(array: Array) -> None:
    """The values of an array have been written: if it is a parameter's, its copy is renewed."""
    copies, index = _find(array, _places)
    if copies is not None:
        copies.refresh(index)
