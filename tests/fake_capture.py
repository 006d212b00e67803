"""A stand-in for the parts of CuPy that capture a training step: allocators, streams and graphs.

Beside :mod:`tests.fake_cuda`, whose clock, kernels and graphs it uses: while a stream captures,
nothing runs, and what is replayed later reads and writes addresses, whoever has the memory by then.
Memory that the pool hands out is filled with NaN, so that a graph over memory that was freed shows.
"""

from __future__ import annotations

import ctypes
import types
import weakref
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from tests import fake_cuda, fake_cupy
from tests.fake_cuda import Clock, Event


class Pool:
    """Memory in blocks of 512 bytes; what is freed is handed out again on the same stream."""

    def __init__(self) -> None:
        self._free: defaultdict[tuple[Stream, int], list[np.ndarray]] = defaultdict(list)
        self.mallocs = 0

    def malloc(self, size: int) -> MemoryPointer:
        rounded = -(-max(size, 1) // 512) * 512
        free = self._free[_streams[-1], rounded]
        if not free:
            self.mallocs += 1
            block = np.empty(rounded + 512, np.uint8)
            free.append(block[-block.ctypes.data % 512 :][:rounded])
        memory = Memory(free.pop())
        memory._bytes[...] = 0xFF
        weakref.finalize(memory, free.append, memory._bytes)
        return MemoryPointer(memory, 0)

    def free_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def free_all_blocks(self) -> None:
        for free in self._free.values():
            free.clear()


class Memory:
    def __init__(self, block: np.ndarray) -> None:
        self._bytes, self.ptr, self.size = block, block.ctypes.data, block.size


class UnownedMemory:
    def __init__(self, ptr: int, size: int, owner: Any, device_id: int = -1) -> None:
        assert device_id == 0
        self.ptr, self.size, self._owner = ptr, size, owner


class MemoryPointer:
    def __init__(self, mem: Any, offset: int) -> None:
        self.mem, self.ptr = mem, mem.ptr + offset

    def copy_from_host_async(self, source: int, size: int, stream: Any) -> None:
        assert isinstance(stream, Stream)
        assert Clock.captured is None
        ctypes.memmove(self.ptr, source, size)


_pool = Pool()
_allocators: list[Callable[[int], MemoryPointer]] = [_pool.malloc]


class using_allocator:
    def __init__(self, allocator: Any) -> None:
        self._allocator = allocator

    def __enter__(self) -> None:
        _allocators.append(self._allocator)

    def __exit__(self, *_: object) -> None:
        _allocators.pop()


class _Block(fake_cuda._Block):
    """Keeps the memory of an array."""

    def __init__(self, pointer: MemoryPointer, shape: Any, dtype: np.dtype[Any]) -> None:
        super().__init__(pointer, shape, dtype)  # type: ignore[arg-type]
        self.pointer = pointer


class ndarray(fake_cuda.ndarray):  # CuPy's own name
    @property
    def data(self) -> Any:
        pointer = MemoryPointer.__new__(MemoryPointer)
        pointer.ptr = self._values.ctypes.data
        return pointer

    def get(self) -> np.ndarray:
        _refuse_capture()
        return super().get()

    def copy(self) -> ndarray:
        made = empty(self.shape, self.dtype)
        made[...] = self
        return made

    def set(self, values: np.ndarray, stream: Any = None) -> None:
        assert Clock.captured is None
        assert isinstance(values, np.ndarray)
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self._values[...] = values

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._values.reshape(*shape))

    def view(self, dtype: Any) -> ndarray:
        return ndarray(self._values.view(dtype))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        if not copy and self.dtype == dtype:
            return self
        made = empty(self.shape, dtype)
        made[...] = self
        return made

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(np.asarray(self._values[key]))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        target = np.asarray(fake_cuda._Address(self._values[key]))
        if isinstance(value, fake_cupy.ndarray):
            value = np.asarray(fake_cuda._Address(value._values))
        Clock.do(lambda: np.copyto(target, value, casting="unsafe"), 1.0)


def empty(shape: Any, dtype: Any) -> ndarray:
    dtype = np.dtype(dtype)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    size = int(np.prod(shape)) * dtype.itemsize
    return ndarray(np.asarray(_Block(_allocators[-1](size), shape, dtype)))


def zeros(shape: Any, dtype: Any) -> ndarray:
    made = empty(shape, dtype)
    made[...] = 0
    return made


def asarray(values: Any, order: str | None = None) -> ndarray:
    if isinstance(values, fake_cupy.ndarray):
        assert values.flags.c_contiguous
        return values  # type: ignore[return-value]
    _refuse_capture()
    values = np.array(values, order="C")
    made = empty(values.shape, values.dtype)
    made._values[...] = values
    return made


_streams: list[Stream] = []
_capturing: Stream | None = None
_invalid = False  # what is being captured, because of an operation that cannot be


def _refuse_capture() -> None:
    global _invalid
    if Clock.captured is not None and _streams[-1] is _capturing:
        _invalid = True
        raise RuntimeError("operation not permitted when stream is capturing")


class Stream(fake_cuda.Stream):
    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _streams.pop()

    def begin_capture(self) -> None:
        assert _streams[-1] is self
        assert len(_streams) > 1, "the default stream cannot capture"
        global _capturing
        _capturing = self
        super().begin_capture()

    def synchronize(self) -> None:
        if self is _capturing:
            _refuse_capture()

    def is_capturing(self) -> bool:
        return Clock.captured is not None

    def end_capture(self) -> fake_cuda.Graph:
        global _capturing, _invalid
        graph, invalid = super().end_capture(), _invalid
        _capturing, _invalid = None, False
        if invalid:
            raise RuntimeError("operation failed due to a previous error during capture")
        return graph


class _Event(Event):
    def __init__(self, disable_timing: bool = False) -> None:
        self.at = 0.0


def module() -> types.ModuleType:
    """The module to put in ``sys.modules["cupy"]``."""
    global _pool
    made = fake_cuda.module()
    _pool = Pool()
    _allocators[:] = [_pool.malloc]
    _streams[:] = [Stream(non_blocking=True)]
    for item in (Stream, UnownedMemory, MemoryPointer, using_allocator):
        setattr(made.cuda, item.__name__, item)
    made.cuda.Event = _Event
    made.cuda.get_allocator = lambda: _allocators[-1]
    made.cuda.get_current_stream = lambda: _streams[-1]
    made.cuda.alloc_pinned_memory = bytearray
    made.get_default_memory_pool = lambda: _pool  # type: ignore[attr-defined]
    for item in (ndarray, empty, zeros, asarray):
        setattr(made, item.__name__, item)
    return made
