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

import functools
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

Array = Any
Make = Callable[[Any, Any], Array]  # (shape, dtype) -> memory

ALIGNMENT = 16  # bytes: the most that a launcher wants to know of an address

off = 0  # how many reasons there are that no call goes by a plan
watched: Watch | None = None  # of one thread; the others find it here and go by

_MOST = 1 << 14
plans: dict[Hashable, Plan] = {}  # by what makes calls alike
hopeless: set[Hashable] = set()  # calls of which there is none
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
    plans.clear()
    hopeless.clear()


class Launch(NamedTuple):
    """A launch of a plan; arguments: names of its values."""

    run: Callable[..., None]  # the compiled kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[str, ...]
    shared_mem: int


class View(NamedTuple):
    """The elements of a value from ``start`` to ``stop``, in another shape; all of it for None."""

    value: str
    stretch: tuple[int, int] | None
    shape: tuple[int, ...]


class Plan:
    """How a call is made again.

    Its values have names: a0, a1, … are the arrays that the call takes, m0, … memory, c0, …
    constants, v0, … views of these. zeros: numbers of the call that are 0.0, and are not to be
    −0.0. residues: arrays whose addresses matter, and what these leave when divided by 16.
    results: a name, None, or a tuple of these.
    """

    def __init__(
        self,
        zeros: tuple[int, ...],
        residues: tuple[tuple[int, int], ...],
        arrays: int,
        memory: tuple[tuple[Make, Any, Any], ...],
        constants: tuple[Any, ...],
        views: tuple[View, ...],
        launches: tuple[Launch, ...],
        results: Any,
    ) -> None:
        self.zeros, self.residues, self.arrays = zeros, residues, arrays
        self.everywhere = not zeros and not residues
        self.memory, self.constants, self.views = memory, constants, views
        self.launches, self.results = launches, results

    @functools.cached_property
    def call(self) -> Callable[..., Any]:
        """A function that makes the call with other arrays: a line of Python for each thing."""
        known: dict[str, Any] = {f"c{i}": value for i, value in enumerate(self.constants)}
        lines = [f"def call({', '.join(f'a{i}' for i in range(self.arrays))}):"]
        for i, (make, shape, dtype) in enumerate(self.memory):
            known |= {f"make{i}": make, f"dtype{i}": dtype}
            lines.append(f"m{i} = make{i}({shape!r}, dtype{i})")
        for i, (value, stretch, shape) in enumerate(self.views):
            part = "" if stretch is None else ".reshape(-1)[{}:{}]".format(*stretch)
            lines.append(f"v{i} = {value}{part}.reshape({shape!r})")
        for i, (run, grid, block, arguments, shared) in enumerate(self.launches):
            known[f"run{i}"] = run
            given = "".join([f"{name}, " for name in arguments])
            lines.append(f"run{i}({grid!r}, {block!r}, ({given}), shared_mem={shared})")
        lines.append(f"return {_written(self.results)}")
        exec("\n    ".join(lines), known)
        return cast("Callable[..., Any]", known["call"])


def _written(results: Any) -> str:
    if isinstance(results, tuple):
        return f"({''.join([f'{_written(r)}, ' for r in results])})"
    return str(results)


class _Impossible(Exception):
    """A call of which there is no plan."""


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
        self._views: list[View] = []
        self._launches: list[Launch] = []
        self._returned: set[int] = set()

    # ---- what the launcher does

    def asked_for(self, array: Array, make: Make, dtype: Any) -> None:
        """It has got memory."""
        self._memory.append([make, _ints(array.shape), dtype])
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
            given = [self._constant(null) if a is None else self._name(a) for a in arrays]
        except _Impossible:
            self._impossible = True
            return
        given += [self._constant(n) for n in numbers]
        self._launches.append(Launch(run, _ints(grid), _ints(block), tuple(given), int(shared_mem)))

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

    def _constant(self, value: Any) -> str:
        self._constants.append(value)
        return f"c{len(self._constants) - 1}"

    def _name(self, array: Array, shaped: bool = False) -> str:
        """What an array is called; a view unless it is as long as what it lies in, and so shaped.

        Raises _Impossible for other memory.
        """
        start, stop = _span(array)
        for place, (first, last) in self._spans.items():
            value, made = self._values[place], place - self._inputs
            if first <= start < stop <= last and value.dtype == array.dtype:
                name = f"m{made}" if made >= 0 else f"a{place}"
                whole = (first, last) == (start, stop)
                if whole and (not shaped or value.shape == array.shape):
                    return name
                begin = (start - first) // array.dtype.itemsize
                stretch = None if whole else (begin, begin + int(array.size))
                self._views.append(View(name, stretch, _ints(array.shape)))
                return f"v{len(self._views) - 1}"
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
        return self._name(result, shaped=True)

    def _reshape_memory(self, result: Array) -> None:
        """Ask for memory in the shape in which it is returned."""
        at = self._whole(result)
        if at is None or at < self._inputs or at in self._returned:
            return
        if self._values[at].dtype == result.dtype:
            self._values[at] = result
            self._memory[at - self._inputs][1] = _ints(result.shape)
            self._returned.add(at)

    def plan(self, options: Sequence[Any], results: Any) -> Plan | None:
        """How to make the call again, which had these other arguments; None if it cannot be."""
        if self._impossible:
            return None
        try:
            found = self._result(results)
        except _Impossible:
            return None
        return Plan(
            tuple([i for i, n in enumerate(options) if type(n) is float and n == 0]),
            tuple(self._residues.items()),
            self._inputs,
            tuple([(make, shape, dtype) for make, shape, dtype in self._memory]),
            tuple(self._constants),
            tuple(self._views),
            tuple(self._launches),
            found,
        )


def _ints(sizes: Sequence[Any]) -> tuple[int, ...]:
    """Sizes as they are written: NumPy's are not."""
    return tuple([int(n) for n in sizes])


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


def watch_call(
    launcher: Callable[..., Any],
    problem: Hashable,
    arrays: tuple[Any, ...],
    options: tuple[Any, ...],
) -> Any:
    """Call a launcher, and keep the plan of the call."""
    global watched
    watch = Watch(arrays)
    if watch.overlapping() or not _watching.acquire(blocking=False):
        return launcher(*arrays, *options)
    try:
        watched = watch
        with without_plans():
            results = launcher(*arrays, *options)
    finally:
        watched = None
        _watching.release()
    plan = watch.plan(options, results)
    if len(plans) + len(hopeless) >= _MOST:
        forget()
    if plan is None:
        hopeless.add(problem)
    else:
        plans[problem] = plan
    return results
