"""The memory pool and the threads of the ``cpu`` device."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest

from gpucnn import buffers, threads
from gpucnn.ops.conv2d import conv2d_forward, conv2d_geometry
from tests.support import randn

LARGE = (300, 400)


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_is_used_again_once_the_last_view_is_gone() -> None:
    a = buffers.empty(LARGE, np.float32)
    first = address(a)
    view = a[10:, ::2]
    del a
    b = buffers.empty(LARGE, np.float32)
    assert address(b) != first, "a view is alive"
    del view
    assert address(buffers.empty(LARGE, np.float32)) == first


def test_arrays_alive_at_once_never_overlap() -> None:
    arrays = [buffers.empty((100 + i, 301), np.float32) for i in range(20)]
    for i, a in enumerate(arrays):
        a[...] = i
    assert all((a == i).all() for i, a in enumerate(arrays))
    assert all(address(a) % 64 == 0 for a in arrays)
    assert all(a.flags.c_contiguous and a.flags.writeable for a in arrays)


@pytest.mark.parametrize("size", [1, 7, 65536, 65537, 10**6, 2**20, 2**20 + 1])
def test_size_classes_hold_their_size_with_little_waste(size: int) -> None:
    rounded = buffers._size_class(size)
    assert size <= rounded <= max(size * 1.25, size + 1)


def test_idle_memory_is_bounded() -> None:
    arrays = [buffers.empty((1 << 23,), np.uint8) for _ in range(12)]
    del arrays
    assert len(buffers._idle[buffers._size_class(1 << 23)]) <= 8


def test_a_refused_allocation_leaves_nothing_behind() -> None:
    with pytest.raises(MemoryError):
        buffers.empty((1 << 50,), np.float32)
    gc.collect()  # an error in __del__ would be raised here, as a warning


def test_arrays_may_outlive_the_module_at_exit() -> None:
    code = (
        "import numpy, gpucnn.buffers as b; numpy.kept = b.empty((300, 400), 'f4');"
        "b.kept = b.empty((300, 400), 'f4')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_map_chunks_keeps_order_and_raises() -> None:
    spans = threads.map_chunks(lambda a, b: (a, b), 10, 3)
    assert spans == [(0, 3), (3, 6), (6, 9), (9, 10)]

    # Few chunks: an even number, alike; multiples of 64 stay so. Many: as they were asked for.
    assert threads.map_chunks(lambda a, b: b - a, 30, 10) == [8, 8, 8, 6]
    assert threads.map_chunks(lambda a, b: b - a, 3000, 1024) == [768, 768, 768, 696]
    assert threads.map_chunks(lambda a, b: b - a, 35, 2) == [2] * 17 + [1]

    def fail(start: int, stop: int) -> None:
        raise KeyError(start)

    with pytest.raises(KeyError):
        threads.map_chunks(fail, 10, 3)


def test_map_chunks_raises_what_a_helping_thread_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCNN_THREADS", "2")
    both, caller = threading.Barrier(2, timeout=30), threading.current_thread()

    def fail(start: int, stop: int) -> None:
        both.wait()
        if threading.current_thread() is not caller:
            raise KeyError(start)

    with pytest.raises(KeyError):
        threads.map_chunks(fail, 2, 1)
    assert threads.map_chunks(lambda a, b: a, 2, 1) == [0, 1]


def test_the_number_of_threads_does_not_change_the_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = randn(9, 20, 21, 7), randn(5, 3, 3, 7)
    s = conv2d_geometry(x, w, None, 1, 1, 1, 1)
    monkeypatch.setattr("gpucnn.ops.unfold._CHUNK_BYTES", 1 << 15)
    results = []
    for count in ("1", "2", "3"):
        monkeypatch.setenv("GPUCNN_THREADS", count)
        results.append(conv2d_forward(x, w, None, s).tobytes())
    assert len(set(results)) == 1


def test_scratch_belongs_to_its_thread() -> None:
    mine = threads.scratch("test", (1000,), np.float32)
    mine[...] = 1
    other = threading.Thread(target=lambda: threads.scratch("test", (1000,), np.float32).fill(2))
    other.start()
    other.join()
    assert (mine == 1).all()
    assert address(threads.scratch("test", (500,), np.float32)) == address(mine)


def test_a_forked_child_computes() -> None:
    code = """
import os, threading
import numpy as np
from gpucnn import threads
entered, go = threading.Event(), threading.Event()
def other():
    with threads.single_threaded_blas():
        entered.set()
        go.wait()
work = lambda a, b: b - a
threads.map_chunks(work, 10, 1)
thread = threading.Thread(target=other)
thread.start()
entered.wait()
child = os.fork()
if child == 0:
    os._exit(threads.map_chunks(work, 10, 1) != [1] * 10)
status = os.waitpid(child, 0)[1]
go.set()
thread.join()
print(status)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "0\n", done.stderr
