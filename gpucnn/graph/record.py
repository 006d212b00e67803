"""One pass over a step: what happens in which order, in which memory, and how long that lives."""

from __future__ import annotations

import bisect
import contextlib
import sys
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpucnn import kernel, recording
from gpucnn.device import Array, module_of, move_to_device
from gpucnn.graph.plan import Lifetime, MemoryPlan
from gpucnn.recording import Recorder, recording_by

if TYPE_CHECKING:
    from gpucnn.primitive import Primitive


class Observer(Recorder):
    """Sees on which devices a step computes, and whether it can be recorded at all."""

    def __init__(self) -> None:
        super().__init__()
        self.devices: set[str] = set()
        self.reason = ""

    def body(self, made: Primitive, device: str) -> Callable[..., Any] | None:
        self.devices.add(device)
        return None

    def fail(self, reason: str) -> None:
        """The step cannot be a graph; the first reason counts."""
        self.reason = self.reason or reason

    def read(self, what: str) -> None:
        self.fail(f"{what} are read on the host {_place()}, which a replay would not do")


def _place() -> str:
    """Where the user's code called the library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals["__name__"].split(".")[0] == "gpucnn":
        frame = frame.f_back
    return f"({frame.f_code.co_filename}:{frame.f_lineno})"


class Regions:
    """Stretches of memory in use, found by an address."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._known: dict[int, tuple[int, Hashable]] = {}

    def add(self, start: int, size: int, label: Hashable) -> None:
        if size and start not in self._known:
            bisect.insort(self._starts, start)
            self._known[start] = size, label

    def remove(self, start: int) -> None:
        if self._known.pop(start, None) is not None:
            del self._starts[bisect.bisect_left(self._starts, start)]

    def find(self, address: int) -> tuple[Hashable, int] | None:
        """The label of the stretch that holds an address, and where in it."""
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        start = self._starts[at]
        size, label = self._known[start]
        return (label, address - start) if address < start + size else None


class Watched:
    """Modes, options and parameters: what must be as it was for a recording to hold."""

    def __init__(self) -> None:
        self._attributes: dict[tuple[int, str], tuple[Any, str, Any]] = {}
        self._reads: list[tuple[Callable[[], Hashable], Hashable]] = []

    def attribute(self, owner: Any, name: str) -> None:
        """An attribute must be this very object."""
        self._attributes[id(owner), name] = owner, name, getattr(owner, name)

    def read(self, read: Callable[[], Hashable]) -> None:
        """What ``read`` returns must be equal to what it returns now."""
        self._reads.append((read, read()))

    def owners(self, name: str) -> list[Any]:
        """The objects of which an attribute of this name is watched."""
        return [owner for owner, known, _ in self._attributes.values() if known == name]

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        for owner, name, value in self._attributes.values():
            if getattr(owner, name) is not value:
                return False
        return all(read() == value for read, value in self._reads)


def _has_no_gradient(reference: weakref.ref[Any]) -> bool:
    tensor = reference()
    return tensor is None or tensor._grad is None


def is_array(value: Any) -> bool:
    """Whether it is an array of NumPy or CuPy, and no number of theirs."""
    return hasattr(value, "dtype") and hasattr(value, "flags") and not isinstance(value, np.generic)


def address_of(array: Array) -> int:
    """Where the first element lies."""
    return int(array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr)


class Store:
    """What both passes over a step and its replays share: arrays that no plan covers."""

    def __init__(self, inputs: Sequence[Array]) -> None:
        self.inputs = list(inputs)
        self.numbers: list[Array] = []
        self.constants: list[tuple[Array, Any]] = []  # (as first met, its values)
        self.arrivals: list[Array] = []


class Recording(Observer):
    """The first pass over a step, or with ``before`` the second, which must do the same.

    events: what happened, arrays by the memory they lie in. hosted: what the host does before each
    replay. watched: what must be as it was. lifetimes: of the memory that was asked for.
    """

    plans_memory = True

    def __init__(self, store: Store, before: Recording | None = None) -> None:
        super().__init__()
        self.store, self.before = store, before
        self.events: list[Hashable] = []
        self.hosted: list[Callable[[], None]] = []
        self.watched = Watched()
        self.lifetimes: list[Lifetime] = []
        self.launches = 0
        self.plan: MemoryPlan | None = None  # of the second pass
        self.outside: list[Array] = []  # memory of others: while it is held, nobody else gets it
        self._leaves: dict[int, tuple[weakref.ref[Any], int]] = {}
        # Leaves whose gradient was set (None) or added to first: whether there was none.
        self._graded: dict[int, tuple[weakref.ref[Any], bool | None]] = {}
        self._clock = 0
        self._constants = self._numbers = self._arrivals = 0
        self._closed = False
        self._alive: dict[int, weakref.ref[Any]] = {}
        self._regions = Regions()
        for i, array in enumerate(store.inputs):
            self._region(array, ("argument", i))

    # ---- the order of events

    def tick(self) -> int:
        """The number of the next event in the life of memory."""
        self._clock += 1
        return self._clock

    def event(self, kind: str, *details: Hashable) -> None:
        """Something that happens in every call alike, or the step is no graph."""
        self.events.append((kind, *details))
        if self.before is None:
            return
        at = len(self.events) - 1
        expected = self.before.events[at] if at < len(self.before.events) else None
        if expected != self.events[at]:
            self.fail(_difference(expected, self.events[at]))

    def close(self, finished: bool = True) -> None:
        """The step has ended, or with finished False failed."""
        self._closed = True
        if self.before is not None and len(self.events) < len(self.before.events):
            self.fail("it does less in one call than in another")
        for reference, absent in self._graded.values():
            tensor = reference()
            if not finished or absent is None or tensor is None:
                continue
            if (tensor._grad is None) != absent:
                self.fail(
                    "a gradient is there before it or after it, not both: zero_grad(), backward() "
                    "and step() belong into one function"
                )
                break
        for reference, data in self._leaves.values():
            tensor = reference()
            if tensor is not None and id(tensor.data) == data:
                self.watched.attribute(tensor, "data")
        self._leaves.clear()

    # ---- memory

    def _region(self, array: Array, label: Hashable) -> None:
        self._regions.add(address_of(array), array.size * array.dtype.itemsize, label)

    def born(self, start: int, size: int, owner: Any) -> None:
        """The step has got memory, which is free when ``owner`` dies."""
        index = len(self.lifetimes)
        self.lifetimes.append(Lifetime(size, self.tick()))
        self._regions.add(start, size, ("memory", index))
        self._alive[index] = weakref.ref(owner, lambda _: self._died(index, start))

    def _died(self, index: int, start: int) -> None:
        self._alive.pop(index, None)
        if not self._closed:
            self.lifetimes[index].died = self.tick()
            self._regions.remove(start)

    def expect_free(self, index: int) -> None:
        """Fail if what is planned for a buffer is still in use."""
        assert self.plan is not None
        if index >= len(self.plan.buffers):
            return
        mine = self.plan.buffers[index]
        for other in self._alive:
            theirs = self.plan.buffers[other]
            if mine.offset < theirs.end and theirs.offset < mine.end:
                self.fail("it keeps an array in one call that it drops in another")

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Inside the ``with`` block the step runs."""
        outer = kernel.stand_in()

        def launch(launch: kernel.Launch, arguments: Sequence[Any]) -> None:
            if recording.current() is self:
                self.launched(launch, arguments)
            if outer is None:
                launch.kernel.run(launch, arguments)
            else:
                outer(launch, arguments)

        with recording_by(self), kernel.standing_in(launch):
            yield

    def label(self, array: Array) -> tuple[Hashable, int]:
        """Which memory an array lies in, and where in it; its address if that is not known."""
        found = self._regions.find(address_of(array)) if array.size else ("nothing", 0)
        if found is None:
            self.outside.append(array)
            found = ("outside", address_of(array)), 0
        return found

    def described(self, value: Any) -> Hashable:
        """An argument of a launch as something that two calls can be compared by."""
        if is_array(value):
            strides = value.strides if isinstance(value, np.ndarray) else None
            return ("array", *self.label(value), tuple(value.shape), value.dtype, strides)
        if isinstance(value, tuple | list):
            return type(value).__name__, tuple([self.described(item) for item in value])
        if isinstance(value, np.generic | float):
            return "number", np.asarray(value).tobytes()  # a NaN equals itself
        try:
            hash(value)
        except TypeError:
            return type(value).__name__
        return type(value).__name__, value

    # ---- what the library tells

    def to_device(self, array: Array, device: str, ordinary: Callable[[], Array]) -> Array:
        if device == "cuda":
            known = not isinstance(array, np.ndarray | np.generic)
        else:
            known = is_array(array) and self._regions.find(address_of(array)) is not None
        return ordinary() if known else self._constant(array, ordinary)

    def _constant(self, array: Array, ordinary: Callable[[], Array]) -> Array:
        """Data of the host: the same in every call, or memory that somebody holds."""
        index, self._constants = self._constants, self._constants + 1
        values = np.array(array)
        self.event("data", values.shape, values.dtype)
        if self.before is None:
            result = self.outside_the_plan(ordinary)
            self.store.constants.append((result, values))
            self.outside.append(array)
        elif self.reason:
            return self.outside_the_plan(ordinary)
        else:
            result, first = self.store.constants[index]
            if is_array(array) and array is result:
                pass  # memory of the caller, read as it is
            elif values.tobytes() != first.tobytes():
                self.fail(
                    f"an array of the host of shape {values.shape} is not the same in each call "
                    f"{_place()}; pass it as an argument"
                )
                return self.outside_the_plan(ordinary)
        self._region(result, ("data", index))
        return result

    def arrivals(self, like: Array, count: int) -> Array:
        index, self._arrivals = self._arrivals, self._arrivals + 1
        self.event("arrivals", count)
        if self.before is not None and not self.reason:
            made = self.store.arrivals[index]
        else:
            module = module_of(like)
            made = self.outside_the_plan(lambda: module.zeros(count, np.uint32))
            self.store.arrivals.append(made)
        self._region(made, ("arrivals", index))
        return made

    def numbers(self, compute: Callable[[], Array], device: str) -> Array:
        value = np.asarray(compute())
        index, self._numbers = self._numbers, self._numbers + 1
        self.event("numbers", value.shape, value.dtype)
        copy = value.copy()
        if self.before is None:
            self.store.numbers.append(self.outside_the_plan(lambda: move_to_device(copy, device)))
        elif self.reason:
            return self.outside_the_plan(lambda: move_to_device(copy, device))
        target = self.store.numbers[index]
        self._region(target, ("numbers", index))
        self.write_numbers(index, value)
        self.hosted.append(lambda: self.write_numbers(index, np.asarray(compute())))
        return target

    def write_numbers(self, index: int, value: Array) -> None:
        """Put the numbers of a step where its launches read them."""
        self.store.numbers[index][...] = value

    def host(self, action: Callable[[], None]) -> None:
        self.event("host")
        action()
        self.hosted.append(action)

    def watch(self, read: Callable[[], Hashable]) -> None:
        self.watched.read(read)

    def watch_attribute(self, owner: Any, name: str) -> None:
        self.watched.attribute(owner, name)

    def used(self, tensors: Sequence[Any]) -> None:
        for t in tensors:
            if t is not None and getattr(t, "_creator", self) is None:
                self._leaves[id(t)] = weakref.ref(t), id(t.data)

    def graded(self, tensor: Any, absent: bool | None) -> None:
        if id(tensor) not in self._graded:
            self._graded[id(tensor)] = weakref.ref(tensor), absent
            if absent is not None:
                self.takes_gradients([tensor], now=absent)

    def takes_gradients(self, tensors: Sequence[Any], now: bool | None = None) -> None:
        # Of gradients that the step has set or cleared before, the step itself decides.
        outer = [weakref.ref(t) for t in tensors if now is not None or id(t) not in self._graded]
        if outer:
            self.watched.read(lambda: tuple([_has_no_gradient(t) for t in outer]))

    def launched(self, launch: kernel.Launch, arguments: Sequence[Any]) -> None:
        """A kernel is launched with these arguments."""
        self.tick()
        self.launches += 1
        what = (launch.kernel.spec, launch.kernel.name, launch.grid, launch.block)
        self.event("launch", *what, launch.shared_mem, self.described(tuple(arguments)))


def _difference(expected: Hashable, event: Hashable) -> str:
    """Why two calls do not do the same."""
    (first, *a), (second, *b) = (
        e if isinstance(e, tuple) else ("nothing more",) for e in (expected, event)
    )
    if first != second:
        return f"its calls differ: {_named(first, a)} in one, {_named(second, b)} in the next"
    if first in ("launch", "call"):
        if a[:-1] != b[:-1]:
            return f"its calls differ: {_named(first, a)} in one, {_named(second, b)} in the next"
        pairs = list(_pairs(a[-1], b[-1]))
        for x, y in pairs:
            if isinstance(x, tuple) and isinstance(y, tuple) and x[:1] == y[:1] == ("array",):
                return (
                    f"{_named(first, a)} takes an array that is not the same in each call: one "
                    "that an earlier call made, or that was not computed by this library"
                )
        return f"a number that {_named(first, a)} takes changes from call to call"
    return f"it asks for {first} of one size in one call and of another in the next"


def _pairs(a: Any, b: Any) -> Any:
    """The parts in which two descriptions of arguments differ."""
    both = isinstance(a, tuple) and isinstance(b, tuple)
    if a == b:
        return
    if both and len(a) == len(b) and a[:1] != ("array",):
        for x, y in zip(a, b, strict=True):
            yield from _pairs(x, y)
    else:
        yield a, b


def _named(kind: Any, details: Sequence[Any]) -> str:
    if kind == "launch":
        return f"kernel {details[1]}"
    return str(details[0]) if kind == "call" else str(kind)
