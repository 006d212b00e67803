"""Graphs of the devices whose arrays are NumPy's: launches of the emulator and primitives of the
CPU, recorded and replayed in planned memory.
"""

from __future__ import annotations

import functools
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import kernel
from gpucnn.device import Array
from gpucnn.graph.plan import ALIGNMENT, MemoryPlan, plan_memory
from gpucnn.graph.record import Recording, Store, address_of, is_array
from gpucnn.recording import Recorder, recording_by

if TYPE_CHECKING:
    from gpucnn.primitive import Primitive

Operation = Callable[[], None]


class Arena:
    """The memory of one graph."""

    def __init__(self, plan: MemoryPlan) -> None:
        self.plan = plan
        self._bytes = np.empty(plan.bytes + ALIGNMENT, np.uint8)
        start = self._bytes.ctypes.data
        self.start = start + -start % ALIGNMENT

    def address(self, index: int) -> int:
        """Of the first byte of a buffer."""
        return self.start + self.plan.buffers[index].offset

    def array(self, index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A new array of a buffer, which lives as long as any view of it."""
        return np.asarray(_Stretch(self, self.address(index), shape, dtype))


class _Stretch:
    """The owner of an array in an arena."""

    def __init__(
        self, arena: Arena, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._arena = arena
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


class Player(Recorder):
    """Hands planned memory to the definitions while they are replayed."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: deque[NDArray[Any]] = deque()

    def empty(
        self, shape: tuple[int, ...], dtype: Any, ordinary: Callable[[], Array], checked: bool
    ) -> Array:
        waiting = self.waiting
        if waiting and waiting[0].shape == shape and waiting[0].dtype == dtype:
            return waiting.popleft()
        return ordinary()


class HostRecording(Recording):
    """A pass over a step on ``cpu`` or ``emulated``; the second one makes the operations."""

    def __init__(self, store: Store, before: HostRecording | None = None) -> None:
        super().__init__(store, before)
        self.operations: list[Operation] = []
        self.player = Player()
        self._arena: Arena | None = None
        if before is not None:
            self.plan = plan_memory(before.lifetimes)
            self._arena = Arena(self.plan)
        self._homes: list[NDArray[np.uint8]] = []  # each buffer as the operations see it
        self._given: list[NDArray[Any]] = []  # to the primitive that runs, as its replays get it
        self._inside = False

    def run(self, step: Callable[[], Any]) -> Any:
        """Run the step, and record it."""
        with self.passing():
            result = step()
        self.close()
        return result

    def graph(self) -> HostGraph:
        """What replays the step."""
        assert self.plan is not None
        self.before = None
        kept = self.outside, self.store
        return HostGraph(self.plan, self.launches, self.hosted, self.operations, self.player, kept)

    # ---- memory

    def empty(
        self, shape: tuple[int, ...], dtype: Any, ordinary: Callable[[], Array], checked: bool
    ) -> Array:
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size == 0:
            return ordinary()
        index = len(self.lifetimes)
        self.event("memory", size)
        if self._arena is not None and not self.reason:
            self.expect_free(index)
        if self._arena is None or self.reason:
            array = ordinary()
        else:
            array = self._arena.array(index, shape, dtype)
            home = self._arena.array(index, (size,), np.dtype(np.uint8))
            self._homes.append(home)
            if checked:
                self._poison(array, home)
            elif self._inside:
                self._given.append(self._at_home(array, home, 0))
        self.born(address_of(array), size, array)
        return array

    def _poison(self, array: NDArray[Any], home: NDArray[Any]) -> None:
        from gpucnn.emulator.memory import poison

        poison(array)
        self.operations.append(lambda: poison(home))

    def _at_home(self, array: NDArray[Any], home: NDArray[Any], offset: int) -> NDArray[Any]:
        """The same array over memory that the operations hold."""
        made: NDArray[Any] = np.ndarray(array.shape, array.dtype, home, offset, array.strides)
        return made

    def held(self, value: Any) -> Any:
        """An argument as an operation holds it: planned memory stays free to be had again."""
        if isinstance(value, tuple | list):
            items = [self.held(item) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        if not is_array(value) or not value.size:
            return value
        label, offset = self.label(value)
        if isinstance(label, tuple) and label[0] == "memory" and not self.reason:
            return self._at_home(value, self._homes[label[1]], offset)
        return value

    # ---- what is computed

    def launched(self, launch: kernel.Launch, arguments: Sequence[Any]) -> None:
        super().launched(launch, arguments)
        if self.before is not None:
            held = self.held(tuple(arguments))
            self.operations.append(
                lambda: launch.kernel(
                    launch.grid, launch.block, *held, shared_mem=launch.shared_mem
                )
            )

    def body(self, made: Primitive, device: str) -> Callable[..., Any] | None:
        super().body(made, device)
        if device != "cpu" or self._inside:
            return None
        return functools.partial(self._call, made)

    def _call(self, made: Primitive, *arguments: Any, **options: Any) -> Any:
        self.tick()
        self.launches += 1
        self.event("call", made.name, self.described((arguments, *options.items())))
        held = self.held(arguments) if self.before is not None else ()
        self._inside, self._given = True, []
        try:
            results = made.on_cpu(*arguments, **options)
        finally:
            self._inside = False
        given, self._given = self._given, []
        kept = [self._result(r, given) for r in _arrays(results)]
        if self.before is not None:
            again = functools.partial(made.on_cpu, *held, **options)
            self.operations.append(functools.partial(_replay, self.player, again, given, kept))
        return results

    def _result(self, result: Any, given: Sequence[NDArray[Any]]) -> Any:
        """Where a replay must leave an array that a primitive returned."""
        if not is_array(result):
            if result is not None:
                self.fail("a primitive returns a number of the host")
            return None
        for home in given:
            if address_of(home) == address_of(result) and home.shape == result.shape:
                return home
        if result.size and self._regions.find(address_of(result)) is None:
            self._region(result, ("result", self.tick()))
            self.outside.append(result)
        return self.held(result) if self.before is not None else None

    def write(self, target: Array, source: Array) -> None:
        """``target[...] = source``, recorded."""
        self.tick()
        self.event("call", "copy", self.described((target, source)))
        if self.before is not None:
            a, b = self.held((target, source))
            self.operations.append(lambda: np.copyto(a, b))
        target[...] = source

    def copy(self, target: Array, source: Array) -> None:
        self.write(target, source)

    def copied(self, array: Array) -> Array:
        made = self.empty(array.shape, array.dtype, lambda: np.empty_like(array, order="C"), False)
        self.write(made, array)
        return made


def _arrays(results: Any) -> Sequence[Any]:
    return results if isinstance(results, tuple | list) else (results,)


def _replay(
    player: Player, again: Callable[[], Any], given: list[NDArray[Any]], kept: list[Any]
) -> None:
    player.waiting.clear()
    player.waiting.extend(given)
    for result, place in zip(_arrays(again()), kept, strict=True):
        if place is not None and result is not place and address_of(result) != address_of(place):
            np.copyto(place, result)


class HostGraph:
    """A recorded step on ``cpu`` or ``emulated``."""

    def __init__(
        self,
        plan: MemoryPlan,
        launches: int,
        hosted: list[Operation],
        operations: list[Operation],
        player: Player,
        kept: Any,
    ) -> None:
        self.memory, self.launches = plan, launches
        self._hosted, self._operations, self._player = hosted, operations, player
        self._kept = kept

    def replay(self) -> None:
        """Do on the host what changes from step to step, then all operations in their order."""
        for action in self._hosted:
            action()
        self._player.take_over()
        with recording_by(self._player):
            for operation in self._operations:
                operation()
