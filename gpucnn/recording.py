"""What a step that is being recorded tells its recorder; where nothing records, nothing happens.

:func:`gpucnn.cuda_graph` runs a step under a :class:`Recorder`, and replays what that has seen. The
library meets it in a few places, all of them here: memory that is asked for, primitives that run,
host data that goes to a device, values that are read on the host, and numbers that change from
step to step, which :func:`per_step` keeps in device memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from gpucnn import threads

if TYPE_CHECKING:
    from gpucnn.primitive import Primitive

Array = Any


class Recorder:
    """Base of what sees a step run; as it stands it lets everything happen as ever.

    plans_memory: whether the step must do the same in its other passes, in the same memory.
    """

    plans_memory = False

    def __init__(self) -> None:
        self.take_over()

    def take_over(self) -> None:
        """See what this thread does, and no other."""
        self._thread = threading.get_ident()

    def empty(
        self, shape: tuple[int, ...], dtype: Any, ordinary: Callable[[], Array], checked: bool
    ) -> Array:
        """NumPy memory for an array; checked: reading what nobody wrote is a fault."""
        return ordinary()

    def body(self, made: Primitive, device: str) -> Callable[..., Any] | None:
        """What to call for a primitive on a device; None for what is called anyway."""
        return None

    def to_device(self, array: Array, device: str, ordinary: Callable[[], Array]) -> Array:
        """An array that may live on the host, on a device."""
        return ordinary()

    def arrivals(self, like: Array, count: int) -> Array:
        """Counters that are 0 before and after each launch that takes them."""
        from gpucnn.arrivals import own_arrivals

        return own_arrivals(like, count)

    def copy(self, target: Array, source: Array) -> None:
        """``target[...] = source``."""
        target[...] = source

    def copied(self, array: Array) -> Array:
        """``array.copy()``."""
        return array.copy()

    def host(self, action: Callable[[], None]) -> None:
        """Something that the host does in every step."""
        action()

    def numbers(self, compute: Callable[[], Array], device: str) -> Array:
        """Numbers of this step, on a device."""
        from gpucnn.device import move_to_device

        return move_to_device(compute(), device)

    def watch(self, read: Callable[[], Hashable]) -> None:
        """Something that is as it was, or the recording is of no use."""

    def watch_attribute(self, owner: Any, name: str) -> None:
        """An attribute that is the object that it was, or the recording is of no use."""

    def used(self, tensors: Sequence[Any]) -> None:
        """Inputs (tensors or None) of a function of the tape."""

    def graded(self, tensor: Any, absent: bool | None) -> None:
        """The gradient of a leaf is set (None), or added to where there is none (True) or one."""

    def takes_gradients(self, tensors: Sequence[Any]) -> None:
        """Which of these have a gradient matters."""

    def read(self, what: str) -> None:
        """Values of a device are read on the host."""

    def outside_the_plan(self, allocate: Callable[[], Array]) -> Array:
        """Memory that is no part of the step, and outlives it."""
        return allocate()


active: Recorder | None = None  # of one thread; the others find it here and go by


def current() -> Recorder | None:
    """The recorder of this thread, None inside a chunk of :func:`gpucnn.threads.map_chunks`."""
    found = active
    if found is None or found._thread != threading.get_ident() or threads.in_chunk():
        return None
    return found


_lock = threading.RLock()


class recording_by:
    """Inside the ``with`` block a recorder sees what this thread does; others wait for it."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def __enter__(self) -> None:
        global active
        _lock.acquire()
        self._previous, active = active, self._recorder

    def __exit__(self, *_: object) -> None:
        global active
        active = self._previous
        _lock.release()


def per_step(compute: Callable[[], Array], device: str) -> Array:
    """Numbers that change from step to step, as an array of a device.

    compute: returns a small NumPy array, always of one shape and dtype, and may count steps. It is
    called now, and in a replayed graph once before each replay, which finds the numbers in the same
    device memory.
    """
    recorder = active and current()
    if recorder:
        return recorder.numbers(compute, device)
    from gpucnn.device import to_device

    return to_device(compute(), device)


def every_step(action: Callable[[], None]) -> None:
    """Do something on the host now, and before each replay of a graph that is being recorded."""
    recorder = active and current()
    if recorder:
        recorder.host(action)
    else:
        action()


def watch(read: Callable[[], Hashable]) -> None:
    """A graph that is being recorded holds as long as ``read`` returns what it returns now."""
    recorder = active and current()
    if recorder:
        recorder.watch(read)


def watch_attribute(owner: Any, name: str) -> None:
    """A graph that is being recorded holds as long as this attribute is the object that it is."""
    recorder = active and current()
    if recorder:
        recorder.watch_attribute(owner, name)


def lasting(allocate: Callable[[], Array]) -> Array:
    """What ``allocate`` makes, which outlives the step, also one that is being recorded."""
    recorder = active and current()
    return recorder.outside_the_plan(allocate) if recorder else allocate()


def memory_is_planned() -> bool:
    """Whether a step is being recorded that must do the same in its other passes."""
    recorder = active and current()
    return bool(recorder and recorder.plans_memory)


def reading(what: str) -> None:
    """The step reads values of a device on the host: a graph cannot hold that."""
    recorder = active and current()
    if recorder:
        recorder.read(what)


def using(tensors: Sequence[Any]) -> None:
    """A function of the tape takes these tensors (None passes)."""
    recorder = active and current()
    if recorder:
        recorder.used(tensors)


def grading(tensor: Any, absent: bool | None = None) -> None:
    """The gradient of a leaf is set (absent is None) or added to (whether there was none)."""
    recorder = active and current()
    if recorder:
        recorder.graded(tensor, absent)


def taking_gradients(tensors: Sequence[Any]) -> None:
    """Something depends on which of these leaves have a gradient."""
    recorder = active and current()
    if recorder:
        recorder.takes_gradients(tensors)


def copied(array: Array) -> Array:
    """``array.copy()``, also in a graph."""
    recorder = active and current()
    return recorder.copied(array) if recorder else array.copy()


def assign(target: Array, source: Array) -> None:
    """``target[...] = source`` between arrays of one device, also in a graph."""
    recorder = active and current()
    if recorder:
        recorder.copy(target, source)
    else:
        target[...] = source
