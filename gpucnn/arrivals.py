"""Counters of blocks that arrive: the last one of a launch does what needs the others' results.

Kernels count with ``atomicInc``, which leaves 0 behind (``kernels/last_block.cuh``), so that
launches of one stream may share their counters. Those of two streams may not, nor may a graph's.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from gpucnn import launch_plan, recording
from gpucnn.device import Array, current_gpu

JOINED_AT_ONCE = 32  # parts, as in kernels/last_block.cuh
_LEAST = 4096  # counters of a stream


class _Pools(threading.local):
    """The counters of a thread's streams: a default stream per thread has one name in each."""

    def __init__(self) -> None:
        self.of_stream: dict[tuple[int, int], Any] = {}


_pools = _Pools()


def _of_stream(shape: tuple[int, ...], dtype: Any) -> Array:
    import cupy

    (count,) = shape
    key = current_gpu(), cupy.cuda.get_current_stream().ptr
    pool = _pools.of_stream.get(key)
    if pool is None or pool.size < count:
        pool = _pools.of_stream[key] = cupy.zeros(max(count, _LEAST), dtype)
    return pool


def arrivals(like: Array, count: int) -> Array:
    """At least ``count`` zeros, uint32, beside ``like``; a launch leaves zeros behind."""
    recorder = recording.active and recording.current()
    if recorder:
        return recorder.arrivals(like, count)
    return own_arrivals(like, count)


def own_arrivals(like: Array, count: int) -> Array:
    """:func:`arrivals` that no recorder hands out."""
    make = np.zeros if isinstance(like, np.ndarray) else _of_stream
    made: Array = make((count,), np.uint32)
    if launch_plan.watched is not None and (watch := launch_plan.current()) is not None:
        watch.asked_for(made, make, np.uint32)
    return made


def chunk_arrivals(like: Array, sums: int, chunks: int) -> Array:
    """What ``join_chunks`` counts with: of each of the ``sums`` the groups of chunks."""
    return arrivals(like, sums * (1 + -(-chunks // JOINED_AT_ONCE)))
