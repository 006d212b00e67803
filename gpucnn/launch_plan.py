"""What a launcher did for one problem, kept to be done again without its Python.

A launcher asks for memory and launches kernels; which, and with which numbers, follows from the
shapes and dtypes of its arrays and from its other arguments. So the first call with these is
watched, and the next ones go by the plan that is left: memory, then launches whose arguments were
checked and packed once, with the call's own arrays in their places.

A call is made as ever where something is new or unusual: arrays that are not contiguous, overlap,
or begin at another place than before among sixteen bytes, where a launcher looks; arguments that
are neither arrays nor plain numbers; a launcher that uses other memory than its arguments and what
it asked for, or returns anything else; and while launches are watched or replaced, a graph is
recorded, or kernels are chosen by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import operator
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Array = Any
Make = Callable[[Any, Any], Array]  # (shape, dtype) -> memory

ALIGNMENT = 16  # bytes: the most that a launcher wants to know of an address

off = 0  # how many reasons there are that no call goes by a plan
watched: Watch | None = None  # of one thread; the others find it here and go by

_MOST = 1 << 14
_plans: dict[Hashable, Plan | None] = {}  # None: these arguments have none
_planned = itertools.count()
_counting, _watching = threading.Lock(), threading.Lock()


class without_plans:
    """Inside the ``with`` block every launcher runs, in all threads."""

    def __enter__(self) -> None:
        _count_reasons(1)

    def __exit__(self, *_: object) -> None:
        _count_reasons(-1)


def _count_reasons(more: int) -> None:
    global off
    with _counting:
        off += more


def forget() -> None:
    """Drop all plans: something else that launchers go by has changed."""
    _plans.clear()


class Launch(NamedTuple):
    """A launch whose arguments are values of its plan."""

    run: Callable[..., None]  # the compiled kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: Callable[[list[Any]], tuple[Any, ...]]
    shared_mem: int


class View(NamedTuple):
    """The elements of a value from ``start`` to ``stop``, in another shape; all of it for None."""

    place: int
    stretch: tuple[int, int] | None
    shape: tuple[int, ...]

    def of(self, values: list[Any]) -> Array:
        source = values[self.place]
        if self.stretch is not None:
            source = source.reshape(-1)[slice(*self.stretch)]
        return source.reshape(self.shape)


class Plan(NamedTuple):
    """How a call is made again.

    Its values are the arrays that the call takes, memory, constants and views of these, in this
    order. zeros: numbers of the call that are 0.0, and are not to be −0.0. residues: arrays whose
    addresses matter, and what these leave when divided by 16. results: a place among the values,
    None, or a tuple of these.
    """

    zeros: tuple[int, ...]
    residues: tuple[tuple[int, int], ...]
    memory: tuple[tuple[Make, Any, Any], ...]
    constants: tuple[Any, ...]
    views: tuple[View, ...]
    launches: tuple[Launch, ...]
    results: Any

    def call(self, values: list[Any]) -> Any:
        """Make the call with these arrays."""
        for make, shape, dtype in self.memory:
            values.append(make(shape, dtype))
        values += self.constants
        for view in self.views:
            values.append(view.of(values))
        for run, grid, block, arguments, shared_mem in self.launches:
            run(grid, block, arguments(values), shared_mem=shared_mem)
        results = self.results
        if results.__class__ is int:
            return values[results]
        return None if results is None else _placed(results, values)


def _placed(results: tuple[Any, ...], values: list[Any]) -> tuple[Any, ...]:
    return tuple(
        [
            None if r is None else values[r] if r.__class__ is int else _placed(r, values)
            for r in results
        ]
    )


class _Impossible(Exception):
    """A call of which there is no plan."""


class _Place(NamedTuple):
    kind: str  # "value", which are arrays and memory, "constant" or "view"
    number: int


class Watch:
    """What a launcher does in one thread."""

    def __init__(self, arrays: Sequence[Array | None]) -> None:
        self.thread = threading.get_ident()
        self._impossible = False
        self._values: list[Any] = list(arrays)
        self._inputs = len(arrays)
        self._spans: dict[int, tuple[int, int]] = {}
        self._residues: dict[int, int] = {}
        self._memory: list[list[Any]] = []
        self._constants: list[Any] = []
        self._views: list[tuple[int, tuple[int, int] | None, tuple[int, ...]]] = []
        self._launches: list[tuple[Any, ...]] = []
        self._returned: set[int] = set()

    # ---- what the launcher does

    def asked_for(self, array: Array, make: Make, shape: Any, dtype: Any) -> None:
        """It has got memory."""
        self._memory.append([make, shape, dtype])
        self._values.append(array)
        self._spans[len(self._values) - 1] = _span(array)

    def looked_at(self, array: Array) -> None:
        """It looks at an address."""
        at, residue = self._whole(array), _address(array) % ALIGNMENT
        if at is not None and at < self._inputs:
            self._residues[at] = residue
        elif at is None or residue:
            self._impossible = True

    def launched(
        self,
        run: Callable[..., None],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arrays: Sequence[Array | None],
        null: Any,
        numbers: tuple[Any, ...],
        shared_mem: int,
    ) -> None:
        """It has launched a kernel with these arguments; null: what stands for None."""
        try:
            places = [self._constant(null) if a is None else self._place(a) for a in arrays]
        except _Impossible:
            self._impossible = True
            return
        places += [self._constant(n) for n in numbers]
        self._launches.append((run, grid, block, places, shared_mem))

    def unusual(self) -> None:
        """It does what no plan does."""
        self._impossible = True

    # ---- where arrays are

    def overlapping(self) -> bool:
        """Whether arrays of the call share memory, or have none."""
        for place, array in enumerate(self._values):
            if array is None:
                continue
            start, stop = _span(array)
            if start == stop or any(start < b and a < stop for a, b in self._spans.values()):
                return True
            self._spans[place] = start, stop
        return False

    def _whole(self, array: Array) -> int | None:
        """Which value begins and ends where an array does."""
        span = _span(array)
        return next((place for place, known in self._spans.items() if known == span), None)

    def _constant(self, value: Any) -> _Place:
        self._constants.append(value)
        return _Place("constant", len(self._constants) - 1)

    def _place(self, array: Array, shaped: bool = False) -> _Place:
        """Where an array lies; a view unless it is as long as what it lies in, and so shaped."""
        start, stop = _span(array)
        for place, (first, last) in self._spans.items():
            value = self._values[place]
            if first <= start < stop <= last and value.dtype == array.dtype:
                whole = (first, last) == (start, stop)
                if whole and (not shaped or value.shape == array.shape):
                    return _Place("value", place)
                begin = (start - first) // array.dtype.itemsize
                stretch = None if whole else (begin, begin + array.size)
                self._views.append((place, stretch, tuple(array.shape)))
                return _Place("view", len(self._views) - 1)
        raise _Impossible

    def _result(self, result: Any) -> Any:
        if result is None:
            return None
        if type(result) is tuple:
            return tuple([self._result(r) for r in result])
        if isinstance(result, np.generic) or not hasattr(result, "dtype"):
            raise _Impossible
        if result.flags.c_contiguous and result.ndim:
            self._reshape_memory(result)
        return self._place(result, shaped=True)

    def _reshape_memory(self, result: Array) -> None:
        """Ask for memory in the shape in which it is returned."""
        at = self._whole(result)
        if at is None or at < self._inputs or at in self._returned:
            return
        if self._values[at].dtype == result.dtype:
            self._values[at] = result
            self._memory[at - self._inputs][1] = tuple(result.shape)
            self._returned.add(at)

    def plan(self, options: Sequence[Any], results: Any) -> Plan | None:
        """How to make the call again, which had these other arguments; None if it cannot be."""
        if self._impossible:
            return None
        try:
            found = self._result(results)
        except _Impossible:
            return None
        values = len(self._values)
        first = {"value": 0, "constant": values, "view": values + len(self._constants)}

        def number(place: Any) -> Any:
            if isinstance(place, _Place):
                return first[place.kind] + place.number
            return place if place is None else tuple([number(p) for p in place])

        def arguments(places: Sequence[_Place]) -> Callable[[list[Any]], tuple[Any, ...]]:
            numbers = [number(p) for p in places]
            if len(numbers) == 1:
                return lambda values: (values[numbers[0]],)
            return operator.itemgetter(*numbers)

        return Plan(
            tuple([i for i, n in enumerate(options) if type(n) is float and n == 0]),
            tuple(self._residues.items()),
            tuple([(make, shape, dtype) for make, shape, dtype in self._memory]),
            tuple(self._constants),
            tuple([View(*view) for view in self._views]),
            tuple(
                [
                    Launch(run, grid, block, arguments(places), shared_mem)
                    for run, grid, block, places, shared_mem in self._launches
                ]
            ),
            number(found),
        )


def _address(array: Array) -> int:
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


def _span(array: Array) -> tuple[int, int]:
    """Where the memory of an array begins and ends."""
    start = _address(array)
    return start, start + int(array.size) * int(array.dtype.itemsize)


def current() -> Watch | None:
    """Who watches this thread."""
    found = watched
    return found if found is not None and found.thread == threading.get_ident() else None


def _watch(
    launcher: Callable[..., Any], arguments: tuple[Any, ...], arrays: int
) -> tuple[Any, Plan | None, bool]:
    """Call a launcher -> what it returns, the plan of the call, and whether there may be one."""
    global watched
    watch = Watch(arguments[:arrays])
    if watch.overlapping() or not _watching.acquire(blocking=False):
        return launcher(*arguments), None, False
    try:
        watched = watch
        with without_plans():
            results = launcher(*arguments)
    finally:
        watched = None
        _watching.release()
    return results, watch.plan(arguments[arrays:], results), True


def _is_plain(value: Any, alone: bool = True) -> bool:
    """Whether equal values are the same to a launcher: numbers, words, and frozen groups of them.

    alone: an argument by itself, of which a call sees the type, and whether a zero has a sign.
    """
    if type(value) is float:
        return value == value and (value != 0 or (alone and math.copysign(1.0, value) > 0))
    if isinstance(value, tuple):
        return all(_is_plain(part, False) for part in value)
    if dataclasses.is_dataclass(value) and vars(type(value))["__dataclass_params__"].frozen:
        parts = (getattr(value, part.name) for part in dataclasses.fields(value))
        return all(_is_plain(part, False) for part in parts)
    return type(value) in (bool, int, str, type(None))


def planned(
    definition: Callable[..., Any],
    device: str,
    launcher: Callable[[], Callable[..., Any]],
    by_hand: Mapping[str, str],
) -> Callable[..., Any]:
    """A function that calls a primitive's launcher on a device, by plans where it can.

    launcher: returns the launcher. by_hand: the kernels that are chosen so.
    """
    from gpucnn.device import address, current_gpu
    from gpucnn.precision import chosen_precision

    kinds = [p.annotation for p in inspect.signature(definition).parameters.values()]
    arrays = len(list(itertools.takewhile(("Array", "Array | None").__contains__, kinds)))
    number, on_gpu = next(_planned), device == "cuda"

    def call(*arguments: Any) -> Any:
        if off or by_hand or not arrays:
            return launcher()(*arguments)
        values, options = list(arguments[:arrays]), arguments[arrays:]
        key: list[Any] = [number, chosen_precision()]
        try:
            for a in values:
                if a is None:
                    key.append(None)
                    continue
                if not a.flags.c_contiguous:
                    return launcher()(*arguments)
                key += (a.shape, a.dtype)
                if on_gpu:
                    key.append(a.device.id)
            if on_gpu:
                key.append(current_gpu())
            problem = (*key, *options, *map(type, options))
            plan = _plans.get(problem, _plans)
        except (AttributeError, TypeError):  # such as a list
            return launcher()(*arguments)
        if plan.__class__ is Plan:
            for i in plan.zeros:
                if math.copysign(1.0, options[i]) < 0:
                    return launcher()(*arguments)
            for i, residue in plan.residues:
                a = values[i]
                owner = not on_gpu and a.base is None  # of memory as malloc returns it
                if (0 if owner else address(a) % ALIGNMENT) != residue:
                    return launcher()(*arguments)
            return plan.call(values)
        here = [a for a in values if a is not None and isinstance(a, np.ndarray) is on_gpu]
        if plan is None or here or not all(map(_is_plain, options)):
            return launcher()(*arguments)
        results, plan, known = _watch(launcher(), arguments, arrays)
        if known:
            if len(_plans) >= _MOST:
                _plans.clear()
            _plans[problem] = plan
        return results

    return call
