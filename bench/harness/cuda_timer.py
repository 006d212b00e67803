"""The clock of the ``cuda`` device: CUDA events on one stream that ours and every rival share.

Before each sample, outside the timed window, all memory that the contender has allocated is
overwritten with NaN and the L2 cache with other data. Those writes also keep the GPU busy while the
host gets ahead, so that the window between the two events holds no waiting for launches. What takes
less than SHORT is recorded, many copies of it, as one graph over inputs in different memory; calls
that cannot be recorded are made one after the other instead.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

from .timing import Contender

SHORT = 50.0  # microseconds
_GRAPH = 1000.0  # microseconds: what the copies of a graph add up to
_FEWEST_COPIES, _MOST_COPIES = 20, 200
_WARM_UP = 3
_NAN = 0xFF  # bytes of it are a NaN in every floating-point format, and -1 in integers


class Workspace:
    """A memory pool of one contender: what its calls allocate is nobody else's, and can be spoiled.

    A block that is freed stays in the pool, so a graph may go on writing to it.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._chunks: list[tuple[int, int]] = []
        self._pool = cupy.cuda.MemoryPool(self._allocate)

    def _allocate(self, size: int) -> Any:
        memory = self._cupy.cuda.Memory(size)
        self._chunks.append((memory.ptr, size))
        return self._cupy.cuda.MemoryPointer(memory, 0)

    def using(self) -> Any:
        """A context in which CuPy allocates here."""
        return self._cupy.cuda.using_allocator(self._pool.malloc)

    @property
    def bytes(self) -> int:
        """What the pool holds of the GPU's memory."""
        return sum(size for _, size in self._chunks)

    def spoil(self, stream: Any) -> None:
        """Overwrite all of it with NaN."""
        for pointer, size in self._chunks:
            self._cupy.cuda.runtime.memsetAsync(pointer, _NAN, size, stream.ptr)

    def free(self) -> None:
        """Give the memory back; nothing may use it any more."""
        self._pool.free_all_blocks()
        self._chunks.clear()


class CudaTimer:
    """Events on a stream of its own."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        device = cupy.cuda.runtime.getDevice()
        self.l2_bytes = int(cupy.cuda.runtime.getDeviceProperties(device)["l2CacheSize"])
        self._eviction = cupy.empty((max(2 * self.l2_bytes, 1 << 24),), "uint8")
        self._eviction_us = self._time_of_eviction()

    def evict(self, times: int = 1) -> None:
        """Fill the L2 cache with other data."""
        for _ in range(times):
            self.cupy.cuda.runtime.memsetAsync(
                self._eviction.data.ptr, 0, self._eviction.nbytes, self.stream.ptr
            )

    def evictions_for(self, host_us: float) -> int:
        """How often to evict so that the GPU is busy until the host has launched everything."""
        return max(1, min(50, math.ceil(1.5 * host_us / self._eviction_us)))

    def window(self, work: Callable[[], Any]) -> float:
        """Microseconds between an event before and one after what ``work`` launches."""
        start, stop = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record(self.stream)
        work()
        stop.record(self.stream)
        stop.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, stop)) * 1e3

    def _time_of_eviction(self) -> float:
        with self.stream:
            self.evict()
            return max(1.0, min(self.window(self.evict) for _ in range(3)))

    def record(self, calls: Callable[[], Any]) -> Any:
        """The graph of what ``calls`` launches on the stream; raises what the capture raises."""
        self.stream.begin_capture()
        try:
            calls()
        except BaseException:
            with contextlib.suppress(Exception):
                self.stream.end_capture()
            raise
        return self.stream.end_capture()

    def prepare(self, contender: Contender) -> CudaRun | HostRun:
        """Warm a contender up, see how long it takes, and choose how to sample it."""
        return CudaRun(self, contender) if contender.wait is None else HostRun(self, contender)

    def synchronize(self) -> None:
        """Wait for everything on the stream."""
        self.stream.synchronize()


class CudaRun:
    """One contender on the stream: a replayed graph, calls in a row, or one call."""

    def __init__(self, timer: CudaTimer, contender: Contender) -> None:
        self._timer, self._contender = timer, contender
        self._replay: Callable[[], Any] | None = None
        self._copies, self._row, self._host_us, self.last = 1, 1, 0.0, None
        with self._context():
            for _ in range(_WARM_UP):
                self._call(0)
            timer.synchronize()
            self._host_us = self._time_of_host()
            estimate = min(self._once() for _ in range(3))
            if contender.row:
                self._row = max(contender.row, self._copies_for(estimate))
                if contender.record is not None:
                    self._replay = contender.record(1)
                    self._work()
                    timer.synchronize()
            elif contender.graph or (estimate < SHORT and not contender.eager):
                self._record(estimate)
            elif estimate < SHORT or contender.eager:
                self._copies = self._copies_for(estimate)
        if contender.row:
            self.timer = f"{self._row} in a row"
        else:
            how = "graph of" if self._replay is not None else "calls:"
            self.timer = f"{how} {self._copies}"

    @property
    def host_us(self) -> float:
        """Microseconds that the host needs to launch one call."""
        return self._host_us

    @contextlib.contextmanager
    def _context(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._timer.stream)
            if self._contender.outputs is not None:
                stack.enter_context(self._contender.outputs.using())
            if self._contender.stream is not None:
                stack.enter_context(self._contender.stream())
            yield

    def _call(self, i: int) -> Any:
        self.last = self._contender.call(i % self._contender.sets)
        return self.last

    def _time_of_host(self) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            self._call(0)
            times.append((time.perf_counter() - start) * 1e6)
            self._timer.synchronize()
        return min(times)

    def _once(self) -> float:
        self._spoil()
        return self._timer.window(lambda: self._call(0))

    def _copies_for(self, estimate: float) -> int:
        wanted = int(_GRAPH / max(estimate, 1.0))
        return max(_FEWEST_COPIES, min(_MOST_COPIES, wanted)) if estimate < SHORT else 1

    def _record(self, estimate: float) -> None:
        copies = self._copies_for(estimate)
        if self._contender.record is not None:
            self._replay, self._copies = self._contender.record(copies), copies
        else:
            kept: list[Any] = []  # outputs that live together lie in different memory

            def calls() -> None:
                kept.clear()
                kept.extend(self._call(i) for i in range(copies))

            try:
                calls()  # so that the recorded calls find their memory in the pool
                self._timer.synchronize()
                kept.clear()
                graph = self._timer.record(calls)
            except MemoryError:
                raise
            except Exception:  # a launcher that waits for the GPU, or a library that refuses
                self._copies = copies
                self._timer.synchronize()
                self._call(0)
                return
            self._replay, self._copies = lambda: graph.launch(self._timer.stream), copies
        self._replay()
        self._timer.synchronize()

    def _spoil(self) -> None:
        if self._contender.outputs is not None:
            self._contender.outputs.spoil(self._timer.stream)
        busy = 0.0 if self._contender.eager or self._replay is not None else self._host_us
        self._timer.evict(self._timer.evictions_for(busy * self._copies))

    def _work(self) -> None:
        for _ in range(self._row):
            if self._replay is not None:
                self._replay()
            else:
                for i in range(self._copies):
                    self._call(i)

    def sample(self) -> float:
        """Microseconds of one computation."""
        with self._context():
            self._spoil()
            taken = self._timer.window(self._work)
        return taken / (self._copies * self._row * self._contender.parts)


class HostRun:
    """Calls in a row on streams of their own, between two readings of the host's clock."""

    def __init__(self, timer: CudaTimer, contender: Contender) -> None:
        assert contender.wait is not None
        self._timer, self._contender, self._wait = timer, contender, contender.wait
        self._row = 1
        for _ in range(_WARM_UP):
            self._work()
        once = min(self.sample() for _ in range(3))
        self._row = max(contender.row, min(_MOST_COPIES, int(_GRAPH / max(once, 1.0))), 1)
        self.timer = f"{self._row} in a row, host clock"

    def _work(self) -> None:
        for i in range(self._row):
            self._contender.call(i % self._contender.sets)
        self._wait()

    def sample(self) -> float:
        """Microseconds of one computation."""
        self._timer.synchronize()
        start = time.perf_counter()
        self._work()
        return (time.perf_counter() - start) * 1e6 / (self._row * self._contender.parts)
