"""A stand-in for the parts of CuPy that measure time: streams, events, graphs and memory pools.

Beside :mod:`tests.fake_cupy`, whose arrays and kernels it uses. Time is simulated: a launch takes
LAUNCH_US, a memset as long as its bytes need. While a stream captures, kernels are kept and not
run, as on a GPU; memory that was freed is handed out again, whoever may still write to it.
"""

from __future__ import annotations

import ctypes
import types
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from weakref import finalize

import numpy as np

from tests import fake_cupy

LAUNCH_US = 7.0
HOST_US = 0.0
BYTES_PER_US = 1e6
L2_BYTES = 1 << 16


class Clock:
    """Microseconds that the simulated GPU has worked; what is being captured, if anything."""

    now = 0.0
    captured: list[Callable[[], None]] | None = None
    memsets = 0
    launches = 0

    @classmethod
    def do(cls, work: Callable[[], None], duration: float) -> None:
        if cls.captured is not None:
            cls.captured.append(lambda: cls.do(work, duration))
            return
        work()
        cls.now += duration


class Memory:
    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(size, np.uint8)
        self.ptr, self.size = self._bytes.ctypes.data, size


class _Block:
    """The owner of an array's memory: NumPy keeps it alive as long as any view of the array."""

    def __init__(self, memory: Memory, shape: Any, dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = _interface(memory.ptr, shape, dtype)


class _Address(_Block):
    """The same memory, which nobody keeps: what a launch holds on to."""

    def __init__(self, values: np.ndarray) -> None:
        self.__array_interface__ = _interface(values.ctypes.data, values.shape, values.dtype)


def _interface(address: int, shape: Any, dtype: np.dtype[Any]) -> dict[str, Any]:
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return {"data": (address, False), "shape": shape, "typestr": dtype.str, "version": 3}


class MemoryPointer:
    def __init__(self, memory: Memory, offset: int) -> None:
        assert offset == 0
        self.mem = memory


class MemoryPool:
    def __init__(self, allocator: Callable[[int], MemoryPointer] | None = None) -> None:
        self._allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
        self._free: defaultdict[int, list[Memory]] = defaultdict(list)

    def malloc(self, size: int) -> MemoryPointer:
        rounded = -(-max(size, 1) // 512) * 512
        if not self._free[rounded]:
            assert Clock.captured is None, "memory was not in the pool before the capture"
            self._free[rounded].append(self._allocator(rounded).mem)
        return MemoryPointer(self._free[rounded].pop(), 0)

    def give_back(self, memory: Memory) -> None:
        self._free[memory.size].append(memory)

    def free_all_blocks(self) -> None:
        self._free.clear()

    def free_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0


_default = MemoryPool()
_allocators = [_default.malloc]


class using_allocator:
    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator

    def __enter__(self) -> None:
        _allocators.append(self._allocator)

    def __exit__(self, *_: object) -> None:
        _allocators.pop()


class ndarray(fake_cupy.ndarray):  # CuPy's own name
    @property
    def nbytes(self) -> int:
        return int(self._values.nbytes)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._values.ctypes.data)

    def get(self) -> np.ndarray:
        if Clock.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().get()


def empty(shape: Any, dtype: Any) -> ndarray:
    dtype, allocator = np.dtype(dtype), _allocators[-1]
    pointer = allocator(int(np.prod(shape)) * dtype.itemsize)
    block = _Block(pointer.mem, shape, dtype)
    finalize(block, allocator.__self__.give_back, pointer.mem)  # type: ignore[attr-defined]
    return ndarray(np.asarray(block))


class Device(fake_cupy.Device):
    compute_capability = "90"

    @property
    def attributes(self) -> dict[str, int]:
        return {"MaxSharedMemoryPerBlockOptin": 227 * 1024, "MultiProcessorCount": 1}


class RawKernel(fake_cupy.RawKernel):
    num_regs, shared_size_bytes = 40, 1024
    kernel = types.SimpleNamespace(ptr=1)

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int = 0,
    ) -> None:
        held = tuple(
            ndarray(np.asarray(_Address(a._values))) if isinstance(a, fake_cupy.ndarray) else a
            for a in args
        )
        run = super().__call__
        Clock.launches += 1
        Clock.do(lambda: run(grid, block, held, shared_mem=shared_mem), LAUNCH_US)


class Graph:
    def __init__(self, work: list[Callable[[], None]]) -> None:
        self._work = work

    def launch(self, stream: Any = None) -> None:
        assert Clock.captured is None
        for work in self._work:
            work()


class Stream:
    ptr = 77

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking, "the null stream must not wait for the timer's"

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def begin_capture(self) -> None:
        assert Clock.captured is None
        Clock.captured = []

    def end_capture(self) -> Graph:
        assert Clock.captured is not None
        work, Clock.captured = Clock.captured, None
        return Graph(work)

    def synchronize(self) -> None:
        if Clock.captured is not None:
            raise RuntimeError("operation not permitted when stream is capturing")


class Event:
    at: float | None = None

    def record(self, stream: Any = None) -> None:
        assert isinstance(stream, Stream)
        self.at = Clock.now

    def synchronize(self) -> None:
        assert self.at is not None


def _memset(pointer: int, value: int, size: int, stream: int) -> None:
    assert stream == Stream.ptr
    Clock.memsets += 1
    Clock.do(lambda: ctypes.memset(pointer, value, size) and None, size / BYTES_PER_US)


def _elapsed(start: Event, stop: Event) -> float:
    assert start.at is not None
    assert stop.at is not None
    return (stop.at - start.at) / 1e3


def module() -> types.ModuleType:
    """The module to put in ``sys.modules["cupy"]``."""
    made = fake_cupy.module()
    made.__version__ = "14.2.0"  # type: ignore[attr-defined]
    properties = {
        "name": b"Stand-in",
        "l2CacheSize": L2_BYTES,
        "multiProcessorCount": 1,
        "maxThreadsPerMultiProcessor": 2048,
    }
    runtime = made.cuda.runtime
    runtime.getDeviceProperties = lambda device: properties
    runtime.driverGetVersion = lambda: 13020
    runtime.memsetAsync = _memset
    made.cuda.driver = types.SimpleNamespace(
        occupancyMaxActiveBlocksPerMultiprocessor=lambda function, threads, shared: 4
    )
    for item in (Device, Stream, Event, Memory, MemoryPointer, MemoryPool, using_allocator):
        setattr(made.cuda, item.__name__, item)
    made.cuda.get_elapsed_time = _elapsed
    made.get_default_memory_pool = lambda: _default  # type: ignore[attr-defined]
    for item in (ndarray, RawKernel, empty):
        setattr(made, item.__name__, item)
    Clock.now, Clock.captured, Clock.memsets, Clock.launches = 0.0, None, 0, 0
    return made
