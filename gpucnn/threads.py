"""Two threads over batch chunks, each with single-threaded BLAS.

NumPy releases the GIL inside copies, ufuncs and matrix products, so Python threads scale as long as
BLAS does not start its own. How a job is cut depends on shapes alone, never on the number of
threads: the same inputs give the same bits on every machine with the same BLAS.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")

_local = threading.local()


def thread_count() -> int:
    """Threads of the ``cpu`` device: ``GPUCNN_THREADS``, else the cores this process may use."""
    text = os.environ.get("GPUCNN_THREADS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"GPUCNN_THREADS must be an integer >= 1, got {text!r}")
    return int(text)


@functools.cache
def _jobs() -> SimpleQueue[Callable[[], None]]:
    """What is put here a helping thread calls; there is one thread less than is used."""
    jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()

    def helper() -> None:
        while True:
            jobs.get()()

    for i in range(max(1, thread_count() - 1)):
        threading.Thread(target=helper, name=f"gpucnn-{i}", daemon=True).start()
    return jobs


@functools.cache
def _blas() -> list[Any]:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return list(ThreadpoolController().select(user_api="blas").lib_controllers)


os.register_at_fork(after_in_child=_jobs.cache_clear)


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """BLAS uses one thread inside; without threadpoolctl it keeps its own count."""
    if getattr(_local, "limited", False):
        yield
        return
    many = [(library, n) for library in _blas() if (n := library.get_num_threads()) > 1]
    _local.limited = True
    try:
        for library, _ in many:
            library.set_num_threads(1)
        yield
    finally:
        for library, n in many:
            library.set_num_threads(n)
        _local.limited = False


_FEW = 16  # chunks: of more, the last one matters little
_GRAIN = 64  # what chunks of a multiple of this remain a multiple of


def map_chunks(work: Callable[[int, int], T], n: int, chunk: int) -> list[T]:
    """``[work(0, chunk), work(chunk, 2*chunk), …]`` up to ``n``, computed by the thread pool.

    The results come in chunk order, whichever thread computed them, so a sum over them is
    reproducible. A few chunks become an even number of equal ones, so that no thread waits long for
    another; that depends on ``n`` and ``chunk`` alone, and chunks never grow.
    """
    count = -(-n // chunk)
    if 1 < count < _FEW:
        grain = _GRAIN if chunk % _GRAIN == 0 else 1
        even = count + count % 2
        chunk = min(chunk, -(-n // (even * grain)) * grain)
    spans = [(start, min(start + chunk, n)) for start in range(0, n, chunk)]
    with single_threaded_blas():
        if len(spans) < 2 or thread_count() < 2 or in_chunk():
            return [work(*span) for span in spans]
        results: list[Any] = [None] * len(spans)
        take = iter(range(len(spans)))

        def drain() -> None:
            _local.inside = True
            try:
                for i in take:
                    results[i] = work(*spans[i])
            finally:
                _local.inside = False

        ends: SimpleQueue[BaseException | None] = SimpleQueue()

        def help_out() -> None:
            try:
                drain()
            except BaseException as error:  # raised where the chunks are wanted
                ends.put(error)
            else:
                ends.put(None)

        helpers = min(thread_count(), len(spans)) - 1
        for _ in range(helpers):
            _jobs().put(help_out)
        try:
            drain()
        finally:
            errors = [error for _ in range(helpers) if (error := ends.get()) is not None]
        if errors:
            raise errors[0]
        return results


def in_chunk() -> bool:
    """Whether this thread computes a chunk that :func:`map_chunks` gave it."""
    return getattr(_local, "inside", False)


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A buffer of this thread with undefined contents, valid until it is asked for again."""
    buffers = _local.__dict__.setdefault("buffers", {})
    count = math.prod(shape)
    key = (name, np.dtype(dtype))
    if key not in buffers or buffers[key].size < count:
        buffers[key] = np.empty(count, dtype)
    return cast("NDArray[Any]", buffers[key][:count].reshape(shape))
