"""CUDA graphs: launches captured on a stream, in an arena that the graph owns."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array, move_to_device
from gpucnn.graph.plan import MemoryPlan, plan_memory
from gpucnn.graph.record import Recording, Store
from gpucnn.recording import Recorder, recording_by

_NUMBERS_ALIGNMENT = 16
_STAGES = 4  # uploads that may be under way at once


def why_not(devices: set[str]) -> str:
    """Why a step that computes on these devices cannot be captured; empty if it can."""
    if devices != {"cuda"}:
        return f"it computes on {' and '.join(sorted(devices))}"
    if os.environ.get("GPUCNN_SYNC") == "1":
        return "GPUCNN_SYNC=1 waits for the GPU after each launch"
    return ""


class Numbers:
    """The numbers of a step in one block of device memory, which one copy fills.

    The copy reads pinned memory, of which a few pieces take turns: the host waits only where it is
    that many steps ahead of the GPU.
    """

    def __init__(self, cupy: Any, like: list[Array]) -> None:
        self._cupy = cupy
        self._spans: list[slice] = []
        end = 0
        for array in like:
            start = -(-end // _NUMBERS_ALIGNMENT) * _NUMBERS_ALIGNMENT
            end = start + array.size * array.dtype.itemsize
            self._spans.append(slice(start, end))
        self._mirror = np.zeros(end, np.uint8)
        if not end:
            self.arrays: list[Array] = []
            return
        self._block = cupy.empty((end,), np.uint8)
        self.arrays = [
            self._block[span].view(array.dtype).reshape(array.shape)
            for span, array in zip(self._spans, like, strict=True)
        ]
        pinned = [cupy.cuda.alloc_pinned_memory(end) for _ in range(_STAGES)]
        self._stages = deque(
            (np.frombuffer(memory, np.uint8, end), cupy.cuda.Event(disable_timing=True))
            for memory in pinned
        )

    def write(self, index: int, value: NDArray[Any]) -> None:
        """Note the numbers of the next replay."""
        self._mirror[self._spans[index]] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    def upload(self) -> None:
        """Copy them to the GPU, on the current stream."""
        if not self._mirror.size:
            return
        stage, copied = self._stages[0]
        self._stages.rotate(-1)
        copied.synchronize()
        stage[...] = self._mirror
        stream = self._cupy.cuda.get_current_stream()
        self._block.data.copy_from_host_async(stage.ctypes.data, stage.nbytes, stream)
        copied.record(stream)


class _Owner:
    """Holds memory for as long as an array in it lives."""

    def __init__(self, memory: Any) -> None:
        self.memory = memory


class _Again(Recorder):
    """Repeats a step on the host whose capture failed: what was counted is not counted twice."""

    def __init__(self, done: list[Any]) -> None:
        super().__init__()
        self._done = deque(done)

    def host(self, action: Callable[[], None]) -> None:
        if self._done:
            self._done.popleft()
        else:
            action()

    def numbers(self, compute: Callable[[], Array], device: str) -> Array:
        return move_to_device(self._done.popleft() if self._done else compute(), device)


class GpuRecording(Recording):
    """A pass over a step on ``cuda``: an eager one first, then the capture."""

    def __init__(self, store: Store, before: GpuRecording | None = None) -> None:
        import cupy

        super().__init__(store, before)
        self._cupy = cupy
        self._gpu = cupy.cuda.runtime.getDevice()
        self._ordinary = cupy.cuda.get_allocator()
        self._done: list[Any] = []
        self._captured: Any = None
        if before is not None:
            self.plan = plan_memory(before.lifetimes)
            cupy.get_default_memory_pool().free_all_blocks()  # of the passes before
            self._arena = self._ordinary(max(self.plan.bytes, 1))
            self._numbers_there = Numbers(cupy, store.numbers)
            store.numbers = self._numbers_there.arrays

    # ---- memory

    def _allocate(self, size: int) -> Any:
        """The allocator of CuPy while the step runs."""
        if size == 0:
            return self._ordinary(0)
        index = len(self.lifetimes)
        self.event("memory", size)
        if self.plan is not None:
            self.expect_free(index)
        if self.plan is None or self.reason:
            memory = self._ordinary(size)
            owner, address = _Owner(memory), int(memory.ptr)
        else:
            owner = _Owner(self._arena)
            address = int(self._arena.ptr) + self.plan.buffers[index].offset
        self.born(address, size, owner)
        memory = self._cupy.cuda.UnownedMemory(address, size, owner, self._gpu)
        return self._cupy.cuda.MemoryPointer(memory, 0)

    def outside_the_plan(self, allocate: Callable[[], Array]) -> Array:
        cuda = self._cupy.cuda
        with cuda.using_allocator(self._ordinary):
            if self.before is None:
                return allocate()
            with cuda.Stream(non_blocking=True) as stream:  # the one that captures does nothing
                made = allocate()
                stream.synchronize()
            self.outside.append(made)  # what was captured so far must not get its memory
            return made

    # ---- what the host does

    def numbers(self, compute: Callable[[], Array], device: str) -> Array:
        def noted() -> Array:
            value = np.array(compute())
            if not self._closed:
                self._done.append(value)
            return value

        return super().numbers(noted, device)

    def write_numbers(self, index: int, value: Array) -> None:
        if self.before is not None or self._captured is not None:
            self._numbers_there.write(index, value)

    def host(self, action: Callable[[], None]) -> None:
        self._done.append(None)
        super().host(action)

    # ---- the pass

    def run(self, step: Callable[[], Any]) -> Any:
        """Run the step; the second time capture it, and launch what was captured."""
        if self.before is None:
            with self.passing(), self._cupy.cuda.using_allocator(self._allocate):
                result = step()
            self.close()
            return result
        gradients = [(t, t.grad) for t in self.before.watched.owners("data")]
        try:
            result = self._capture(step)
        except BaseException as error:
            self.close(finished=False)
            if self._captured is not None:  # an error of the step's own:
                self._launch()  # what an eager step would have computed by then
                raise
            if not isinstance(error, Exception):
                raise
            cause = error.__context__ or error  # of which the end of the capture is a consequence
            self.fail(f"the capture failed ({type(cause).__name__}: {cause})")
            for tensor, gradient in gradients:  # what the capture put there was never computed
                tensor.grad = gradient
            with recording_by(_Again(self._done)):
                return step()
        self.close()
        self._launch()
        return result

    def _launch(self) -> None:
        """Compute what was captured: the step of this call, also if there will be no other."""
        self._numbers_there.upload()
        self._captured.launch()
        if self.reason:  # some of its memory is the pool's
            self._cupy.cuda.get_current_stream().synchronize()

    def _capture(self, step: Callable[[], Any]) -> Any:
        stream = self._cupy.cuda.Stream(non_blocking=True)
        with stream, self.passing(), self._cupy.cuda.using_allocator(self._allocate):
            stream.begin_capture()
            try:
                result = step()
            except BaseException:
                self._captured = stream.end_capture()  # an error where CUDA has ended the capture
                raise
            self._captured = stream.end_capture()
        return result

    def graph(self) -> GpuGraph:
        """What replays the step."""
        assert self.plan is not None
        self.before = None
        self._done.clear()
        kept = self.outside, self.store, self._arena
        return GpuGraph(
            self.plan, self.launches, self.hosted, self._numbers_there, self._captured, kept
        )


class GpuGraph:
    """A captured step."""

    def __init__(
        self,
        plan: MemoryPlan,
        launches: int,
        hosted: list[Callable[[], None]],
        numbers: Numbers,
        captured: Any,
        kept: Any,
    ) -> None:
        self.memory, self.launches = plan, launches
        self._hosted, self._numbers, self._captured, self._kept = hosted, numbers, captured, kept

    def replay(self) -> None:
        """Copy the numbers of this step and launch the graph, on the current stream."""
        for action in self._hosted:
            action()
        self._numbers.upload()
        self._captured.launch()
