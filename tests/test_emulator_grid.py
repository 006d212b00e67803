"""Blocks that wait for each other: alive at once, ordered by a barrier, and watched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.kernel import inline_headers, kernel_folder

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

# Each planted bug is in the line marked with the name of its kernel.
TEXT = r"""
#include "grid_barrier.cuh"
#define GLOBAL extern "C" __global__ void
#define AT (blockIdx.x * blockDim.x + threadIdx.x)

// y[i] = the sum of all x up to the power of two: every block reads what all others wrote.
GLOBAL powers(float* y, float* x, unsigned* word, int times) {
    for (int t = 0; t < times; ++t) {
        float sum = 0.0f;
        for (int i = 0; i < gridDim.x * blockDim.x; ++i) sum += x[i];
        grid_barrier(word);
        x[AT] = sum;
        grid_barrier(word);
    }
    y[AT] = x[AT];
}
GLOBAL keeps_shared(float* y, unsigned* word) {
    __shared__ float own[64];
    extern __shared__ float more[];
    own[threadIdx.x] = AT;
    more[threadIdx.x] = 2 * AT;
    float mine = 3 * AT;  // on its stack
    grid_barrier(word);
    __syncthreads();
    const int other = (threadIdx.x + 1) % blockDim.x;
    y[AT] = own[other] + more[other] + mine;
}
GLOBAL in_order_of_arrival(int* y, unsigned* word) {
    if (threadIdx.x == 0) y[blockIdx.x] = (int)atomicInc(word + 1, ~0u);
    grid_barrier(word);
}
GLOBAL no_barrier(float* y, float* x, unsigned* word) {
    x[AT] = 1.0f;
    if (word == nullptr) grid_barrier(word);
    y[AT] = x[(AT + blockDim.x) % (gridDim.x * blockDim.x)];   // no_barrier
}
GLOBAL written_again(float* y, float* x, unsigned* word) {
    x[AT] = 1.0f;
    grid_barrier(word);
    y[AT] = x[(AT + blockDim.x) % (gridDim.x * blockDim.x)];
    x[AT] = 2.0f;                                              // written_again
}
GLOBAL no_fence(float* y, float* x, unsigned* word) {
    x[AT] = 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        const unsigned old = atomicInc(word, ~0u);
        if (blockIdx.x == 0) gpucnn_wait_for_change(word, ~0u, old + 1);
    }
    __syncthreads();
    if (blockIdx.x == 0) y[AT] = x[AT + blockDim.x];           // no_fence
}
GLOBAL waits_too_early(float* y, float* x, unsigned* word) {
    if (threadIdx.x == 0 && blockIdx.x == 0) gpucnn_wait_for_change(word, 1u, 1u);
    __syncthreads();
    grid_barrier(word + 1);
    if (blockIdx.x == 1) {
        x[AT] = 1.0f;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) atomicInc(word, ~0u);
    } else {
        y[AT] = x[AT + blockDim.x];                            // waits_too_early
    }
}
GLOBAL one_returns(float* y, unsigned* word) {
    if (blockIdx.x == 1) return;
    grid_barrier(word);                                        // one_returns
    y[AT] = 1.0f;
}
GLOBAL other_words(float* y, unsigned* word) {
    grid_barrier(word + blockIdx.x % 2);                       // other_words
    y[AT] = 1.0f;
}
GLOBAL a_thread_returns(float* y, unsigned* word) {
    if (threadIdx.x == 5) return;
    grid_barrier(word);                                        // a_thread_returns
    y[AT] = 1.0f;
}
GLOBAL shared_unwritten(float* y, unsigned* word) {
    __shared__ float own[32];
    if (blockIdx.x == 0) own[threadIdx.x] = 1.0f;
    grid_barrier(word);
    y[AT] = own[threadIdx.x];                                  // shared_unwritten
}
"""
SOURCE = inline_headers(TEXT, "grid.cu", [kernel_folder()], set())
LINES = TEXT.split("\n")


def kernel(name: str, **options: Any) -> emulator.RawKernel:
    return emulator.RawKernel(SOURCE, name, enable_cooperative_groups=True, **options)


def zeros(n: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(n, dtype)


def word() -> np.ndarray:
    return zeros(2, np.uint32)


@pytest.mark.parametrize("blocks", [1, 2, 3, 7])
@pytest.mark.parametrize("check", [True, False])
def test_blocks_read_what_all_others_wrote(blocks: int, check: bool) -> None:
    threads, times = 40, 3
    y, x = zeros(blocks * threads), np.ones(blocks * threads, np.float32)
    kernel("powers", check=check)((blocks,), (threads,), (y, x, word(), times))
    np.testing.assert_array_equal(y, float(blocks * threads) ** times)


def test_the_word_serves_grids_of_any_size_without_a_reset() -> None:
    shared = word()
    for blocks in (3, 1, 4, 2, 2, 5):
        y, x = zeros(blocks * 32), np.ones(blocks * 32, np.float32)
        kernel("powers")((blocks,), (32,), (y, x, shared, 1))
        np.testing.assert_array_equal(y, 32 * blocks)
        assert shared[0] in (0, 1 << 31)


def test_orders_agree_to_the_bit() -> None:
    args = (zeros(96), np.arange(96, dtype=np.float32), word(), 2)
    emulator.check_order(kernel("powers"), (3,), (32,), args)
    with pytest.raises(emulator.KernelFault, match=r"y\[0\] is .* in reverse order"):
        emulator.check_order(
            kernel("in_order_of_arrival"), (3,), (32,), (zeros(3, np.int32), word())
        )


@pytest.mark.parametrize("check", [True, False])
def test_each_block_keeps_its_shared_memory_and_its_stacks(check: bool) -> None:
    y = zeros(3 * 64)
    kernel("keeps_shared", check=check)((3,), (64,), (y, word()), shared_mem=256)
    at = np.arange(3 * 64)
    other = at // 64 * 64 + (at + 1) % 64
    np.testing.assert_array_equal(y, 3 * other + 3 * at)


PLANTS = [
    ("no_barrier", "race", (zeros, zeros), r"writes x\[32\].* of block \(0, 0, 0\) read"),
    ("written_again", "race", (zeros, zeros), r"x\[\d+\]"),
    ("no_fence", "race", (zeros, zeros), r"reads x\[32\].* of block \(1, 0, 0\) wrote"),
    ("waits_too_early", "race", (zeros, zeros), r"x\[\d+\]"),
    ("one_returns", "divergent-barrier", (zeros,), r"of block \(0, 0, 0\) waits for other blocks "
     r"at a word which none of them will change: block \(1, 0, 0\) has returned"),
    ("other_words", "divergent-barrier", (zeros,), "which none of them will change"),
    ("a_thread_returns", "divergent-barrier", (zeros,), r"\(5, 0, 0\) never reaches"),
    ("shared_unwritten", "uninitialised-read", (zeros,), r"of block \(1, 0, 0\) reads own\[0\]"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kind", "arrays", "says"), PLANTS, ids=[p[0] for p in PLANTS])
def test_planted_bug_is_reported(name: str, kind: str, arrays: Any, says: str) -> None:
    with pytest.raises(emulator.KernelFault, match=says) as caught:
        kernel(name)((2,), (32,), (*(make(64) for make in arrays), word()))
    fault, marked = (
        caught.value,
        next(i for i, t in enumerate(LINES, 1) if t.endswith(f"// {name}")),
    )
    assert fault.kind == kind
    places = f"{fault.file}:{fault.line} {fault}"
    in_barrier = kind == "divergent-barrier"  # whose lines are those of the header
    assert ("kernels/grid_barrier.cuh" if in_barrier else "grid.cu") in places
    assert in_barrier or marked == fault.line or f"at line {marked}" in str(fault)


def test_a_fault_leaves_the_emulator_usable() -> None:
    for _ in range(2):
        with pytest.raises(emulator.KernelFault):
            kernel("one_returns")((3,), (32,), (zeros(96), word()))
    test_blocks_read_what_all_others_wrote(2, True)
    y = zeros(64)
    emulator.RawKernel(SOURCE, "no_barrier")((1,), (64,), (y, zeros(64), word()))
    assert (y == 1).all()


def test_blocks_of_an_ordinary_launch_must_not_wait() -> None:
    alone = emulator.RawKernel(SOURCE, "powers")
    with pytest.raises(emulator.KernelFault, match="in a cooperative launch only"):
        alone((2,), (32,), (zeros(64), zeros(64), word(), 1))


def test_more_blocks_than_can_be_alive_are_refused() -> None:
    with pytest.raises(ValueError, match=r"17 blocks .* at most 16 of 512 threads"):
        kernel("one_returns")((17,), (512,), (zeros(17 * 512), word()))
