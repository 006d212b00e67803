"""Blocks of which the last ones join what all have left behind: ``kernels/last_block.cuh``."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.arrivals import arrivals, chunk_arrivals
from gpucnn.device import to_host
from gpucnn.kernel import inline_headers, kernel_folder
from gpucnn.ops.batch_norm_partials import batch_norm_join_moments
from gpucnn.ops.reduce import column_sum
from tests.support import assert_close, on, randn

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

SOURCE = """
#include "common.cuh"
#include "last_block.cuh"

struct One {
    float value;
};
__device__ __forceinline__ One join(One a, One b) { return {a.value + b.value}; }
__device__ __forceinline__ One shuffled_down(One a, int lanes) {
    return {__shfl_down_sync(0xffffffffu, a.value, lanes)};
}
struct Parts {
    typedef One Part;
    float *at, *y;
    int chunks;
    static __device__ __forceinline__ One none() { return {0.0f}; }
    __device__ One load(int c, int, int chunk) const { return {at[c * chunks + chunk]}; }
    __device__ void store(int c, int chunk, One v) const { at[c * chunks + chunk] = v.value; }
    __device__ void finish(int c, One v) const { y[c] = v.value; }
};

// Each block leaves the chunk blockIdx.x of C sums, for the column of channels blockIdx.y.
extern "C" __global__ void add_up(
    float* y, float* parts, unsigned* arrived, const float* x, int C, int chunks) {
    const int begin = blockIdx.y * C;
    for (int c = begin + threadIdx.x; c < begin + C; c += blockDim.x)
        parts[c * chunks + blockIdx.x] = x[c * chunks + blockIdx.x];
    const Parts all = {parts, y, chunks};
    join_chunks(arrived, blockIdx.y, blockIdx.x, chunks,
                [&](int first, int step, int count, bool last) {
                    join_parts<2>(all, begin, begin + C, first, step, count, last);
                });
}
"""


def compiled(source: str) -> Any:
    text = inline_headers(source, "add_up.cu", [kernel_folder()], set())
    return emulator.RawKernel(text, "add_up", ("-std=c++17",))


def pairwise(lanes: np.ndarray) -> np.ndarray:
    """The sums over the last axis, 32 at most, in the order of join_lanes."""
    own = np.zeros((*lanes.shape[:-1], 32), np.float32)
    own[..., : lanes.shape[-1]] = lanes
    for half in (16, 8, 4, 2, 1):
        own = own[..., :half] + own[..., half:]
    return own[..., 0]


def in_order(parts: np.ndarray) -> np.ndarray:
    """(C, chunks) added up as join_chunks does."""
    groups = [pairwise(parts[:, i : i + 32]) for i in range(0, parts.shape[1], 32)]
    if len(groups) == 1:
        return groups[0]
    lanes = np.zeros((len(parts), 32), np.float32)
    for i, group in enumerate(groups):
        lanes[:, i % 32] += group
    return pairwise(lanes)


@pytest.mark.parametrize("chunks", [1, 2, 31, 32, 33, 64, 100, 1024, 1100])
def test_the_order_is_that_of_the_chunks(chunks: int) -> None:
    """Whoever comes last: the emulator starts blocks in several orders, and compares the bits."""
    kernel, C, columns = compiled(SOURCE), 5, 2
    x = randn(columns * C, chunks)
    y = np.zeros(columns * C, np.float32)
    arrived = chunk_arrivals(x, columns, chunks)
    for _ in range(2):  # the second launch counts from what the first has left
        y[...] = 0
        kernel((chunks, columns), (64,), (y, np.zeros_like(x), arrived, x, C, chunks))
        np.testing.assert_array_equal(y, in_order(x))
        assert not arrived.any()


def test_a_missing_fence_is_found() -> None:
    fence = (
        "    __threadfence();  // what this thread wrote is seen by whoever sees its block arrive\n"
    )
    text = inline_headers(SOURCE, "add_up.cu", [kernel_folder()], set())
    assert fence in text
    kernel = emulator.RawKernel(text.replace(fence, ""), "add_up", ("-std=c++17",))
    x = randn(3, 40)
    arguments = np.zeros(3, np.float32), np.zeros_like(x), chunk_arrivals(x, 1, 40), x, 3, 40
    with pytest.raises(emulator.KernelFault, match="blocks are unordered"):
        kernel((40, 1), (32,), arguments)


@pytest.mark.parametrize("chunks", [1, 5, 33, 1025, 2100])
def test_moments_of_any_number_of_chunks(chunks: int, kernel_device: str) -> None:
    rng = np.random.default_rng(chunks)
    count = rng.integers(1, 9, (3, chunks)).astype(np.float64)
    rest = rng.standard_normal((2, 3, chunks))
    moments = np.stack([count, rest[0] + 100, rest[1], rng.random((3, chunks))])
    want = [np.zeros(3), np.ones(3)]
    expected = batch_norm_join_moments(moments, *want, 0.3, 1e-3)
    running = on(kernel_device, np.zeros(3, np.float32), np.ones(3, np.float32))
    (given,) = on(kernel_device, moments.astype(np.float32))
    found = batch_norm_join_moments.on(kernel_device)(given, *running, 0.3, 1e-3)
    for a, e in zip((*found, *running), (*expected, *want), strict=True):
        assert_close(a, e, "long sum")


def test_each_stream_has_counters_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = types.SimpleNamespace(ptr=0)
    runtime = types.SimpleNamespace(getDevice=lambda: 7)
    cuda = types.SimpleNamespace(get_current_stream=lambda: stream, runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(cuda=cuda, zeros=np.zeros))
    like: Any = object()
    first = arrivals(like, 3)
    assert arrivals(like, 5) is first
    more = arrivals(like, first.size + 1)
    assert more.size > first.size
    assert arrivals(like, 1) is more
    stream.ptr = 1
    assert arrivals(like, 3) is not more
    assert not more.any()


def test_calls_by_plans_count_too(kernel_device: str) -> None:
    """A call that goes by the plan of the one before takes counters of its own."""
    x = on(kernel_device, randn(5000, 3))[0]
    first, *others = (to_host(column_sum.on(kernel_device)(x)).tobytes() for _ in range(4))
    assert set(others) == {first}
