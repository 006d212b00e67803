"""Every class of fault is found: kernels with one planted bug each, marked ``// BUG <kernel>``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

SOURCE = r"""
#line 1 "planted.cu"
#include <cuda_fp16.h>
#ifdef GPUCNN_EMULATED
#include <cstring>
#endif
#define GLOBAL extern "C" __global__ void

// ---- out-of-bounds
GLOBAL read_past_end(float* y, const float* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const float v = x[i];                                      // BUG read_past_end
    if (i < n) y[i] = v;
}
GLOBAL write_before_start(float* y) {
    y[(int)threadIdx.x - 1] = 1.0f;                            // BUG write_before_start
}
GLOBAL write_to_const(const float* x) {
    const_cast<float*>(x)[threadIdx.x + 1] = 1.0f;             // BUG write_to_const
}
GLOBAL null_pointer(float* y, const float* x) {
    y[threadIdx.x] = x[threadIdx.x];                           // BUG null_pointer
}
GLOBAL vector_tail(float* y, const float4* x, int n) {
    const int i = threadIdx.x;
    const float4 v = x[i];                                     // BUG vector_tail
    if (4 * i + 0 < n) y[4 * i + 0] = v.x;
    if (4 * i + 1 < n) y[4 * i + 1] = v.y;
}
GLOBAL copies_range(float* y, const float* x) {
    float window[8];
    memcpy(window, x, sizeof window);                          // BUG copies_range
    y[0] = window[7];
}
GLOBAL shared_index(float* y) {
    __shared__ float before[32], tile[32], after[32];
    before[threadIdx.x] = tile[threadIdx.x] = after[threadIdx.x] = 1.0f;
    __syncthreads();
    const int i = threadIdx.x + 1;
    y[threadIdx.x] = before[threadIdx.x] + tile[i] + after[threadIdx.x];  // BUG shared_index
}
GLOBAL shared_pointer(float* y) {
    __shared__ float before[32], tile[32], after[32];
    before[threadIdx.x] = tile[threadIdx.x] = after[threadIdx.x] = 1.0f;
    __syncthreads();
    const float* p = tile + threadIdx.x;
    y[threadIdx.x] = p[2] + before[threadIdx.x] + after[threadIdx.x];  // BUG shared_pointer
}
GLOBAL shared_byte(unsigned char* y) {
    __shared__ unsigned char s[5];
    unsigned char* p = s;
    for (int i = 0; i <= 5; ++i) p[i] = i;                     // BUG shared_byte
    y[0] = s[4];
}
GLOBAL nested_index(float* y, const int* x) {
    __shared__ float tile[4][8];
    tile[x[threadIdx.x] % 2][threadIdx.x] = 1.0f;              // BUG nested_index
    __syncthreads();
    y[threadIdx.x] = tile[0][threadIdx.x];
}
GLOBAL dynamic_shared(float* y) {
    extern __shared__ float s[];
    s[threadIdx.x] = 1.0f;                                     // BUG dynamic_shared
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
GLOBAL local_array(float* y, int n) {
    float window[4];
    for (int i = 0; i < n; ++i) window[i] = y[i];              // BUG local_array
    y[0] = window[threadIdx.x];
}
GLOBAL atomic_past_end(int* counts, int n) {
    atomicAdd(&counts[n], 1);                                  // BUG atomic_past_end
}
GLOBAL read_through_ldg(float* y, const float* x) {
    y[threadIdx.x] = __ldg(x + 2 * threadIdx.x);               // BUG read_through_ldg
}

// ---- misaligned
GLOBAL misaligned_global(float* y) {
    float4* p = reinterpret_cast<float4*>(y + 1);
    p[threadIdx.x] = make_float4(0, 1, 2, 3);                  // BUG misaligned_global
}
GLOBAL misaligned_view(float4* y, const float4* x) {
    y[threadIdx.x] = x[threadIdx.x];                           // BUG misaligned_view
}
GLOBAL misaligned_shared(float* y) {
    __shared__ __align__(16) float s[64];
    s[threadIdx.x] = s[threadIdx.x + 32] = 0.0f;
    __syncthreads();
    const float2 v = *reinterpret_cast<float2*>(s + 1 + 2 * threadIdx.x);  // BUG misaligned_shared
    y[threadIdx.x] = v.x;
}

// ---- uninitialised-read
GLOBAL uninitialised_shared(float* y) {
    __shared__ float s[33];
    s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x + 1];                       // BUG uninitialised_shared
}
GLOBAL shared_of_last_block(float* y) {
    __shared__ float s[32];
    if (blockIdx.x == 0) s[threadIdx.x] = 1.0f;
    __syncthreads();
    y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];         // BUG shared_of_last_block
}
GLOBAL uninitialised_bytes(unsigned char* y) {
    __shared__ unsigned char s[32];
    if (threadIdx.x != 7) s[threadIdx.x] = 1;
    __syncthreads();
    y[threadIdx.x] = s[31 - threadIdx.x];                      // BUG uninitialised_bytes
}
GLOBAL accumulates(float* y, const float* x) {
    y[threadIdx.x] += x[threadIdx.x];                          // BUG accumulates
}
GLOBAL copies(float* y, const float* x, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x)
        y[i] = x[i];                                           // BUG copies
}
GLOBAL copies_halves(__half* y, const __half* x) {
    y[threadIdx.x] = x[threadIdx.x];                           // BUG copies_halves
}

// ---- race
GLOBAL missing_barrier(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[63 - threadIdx.x];                      // BUG missing_barrier
}
GLOBAL overwritten_too_early(float* y) {
    __shared__ float s[64];
    for (int i = 0; i < 2; ++i) {
        s[threadIdx.x] = i;                                    // BUG overwritten_too_early
        __syncthreads();
        y[threadIdx.x] = s[63 - threadIdx.x];
    }
}
GLOBAL same_value(float* y) {
    __shared__ int flag;
    flag = 1;                                                  // BUG same_value
    __syncthreads();
    y[threadIdx.x] = flag;
}
GLOBAL neighbouring_bytes(unsigned char* y) {
    __shared__ unsigned char s[64];
    s[threadIdx.x] = 1;
    if (threadIdx.x == 40) s[41] = 2;                          // BUG neighbouring_bytes
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
GLOBAL warp_without_sync(float* y) {
    __shared__ float s[32];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    const float v = s[threadIdx.x ^ 1];
    s[threadIdx.x] = v;                                        // BUG warp_without_sync
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x];
}
GLOBAL half_warp_sync(float* y) {
    __shared__ float s[32];
    __syncwarp();
    s[threadIdx.x] = threadIdx.x;
    __syncwarp(threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u);
    y[threadIdx.x] = s[threadIdx.x ^ 16];                      // BUG half_warp_sync
}
GLOBAL across_warps(float* y) {
    __shared__ float s[64];
    s[threadIdx.x] = threadIdx.x;
    __syncwarp();
    y[threadIdx.x] = s[threadIdx.x ^ 32];                      // BUG across_warps
}
GLOBAL read_by_two_warps(float* y) {
    __shared__ float s;
    if (threadIdx.x == 0) s = 1.0f;
    __syncthreads();
    y[threadIdx.x] = s;
    __syncwarp();
    if (threadIdx.x == 63) s = 2.0f;                           // BUG read_by_two_warps
}
GLOBAL global_in_block(float* y) {
    y[threadIdx.x] = 1.0f;
    y[(threadIdx.x + 1) % blockDim.x] = 2.0f;                  // BUG global_in_block
}
GLOBAL global_across_blocks(float* y) {
    y[threadIdx.x] = blockIdx.x;                               // BUG global_across_blocks
}
GLOBAL read_across_blocks(float* y) {
    const int n = gridDim.x;
    if (threadIdx.x == 0) y[blockIdx.x] = y[n + (blockIdx.x + 1) % n];
    __syncthreads();
    if (threadIdx.x == 0) y[n + blockIdx.x] = 1.0f;            // BUG read_across_blocks
}
GLOBAL earlier_reader(float* y) {
    y[1 + blockIdx.x * blockDim.x + threadIdx.x] = y[0];
    __syncthreads();
    if (blockIdx.x == 1 && threadIdx.x == 0) y[0] = 1.0f;      // BUG earlier_reader
}
GLOBAL read_beside_atomic(int* count, int* y) {
    if (threadIdx.x == 0) y[0] = *count;
    atomicAdd(count, 1);                                       // BUG read_beside_atomic
}
GLOBAL plain_beside_atomic(int* count) {
    atomicAdd(count, 1);
    if (threadIdx.x == 5) *count = 0;                          // BUG plain_beside_atomic
}
GLOBAL last_block_no_fence(float* y, float* partial, unsigned* arrived) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x;
        last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float s = 0;
        for (int i = 0; i < gridDim.x; ++i) s += partial[i];   // BUG last_block_no_fence
        *y = s;
    }
}

GLOBAL no_fence_between_words(float* y, float* x, unsigned* arrived) {
    if (threadIdx.x) return;
    if (blockIdx.x == 0) {
        *x = 1.0f;
        __threadfence();
        atomicInc(arrived, 7);
    } else if (blockIdx.x == 1) {
        atomicInc(arrived, 7);
        atomicInc(arrived + 1, 7);
    } else {
        atomicInc(arrived + 1, 7);
        *y = *x;                                               // BUG no_fence_between_words
    }
}

GLOBAL fence_too_early(float* y, float* partial, unsigned* arrived) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        __threadfence();
        partial[blockIdx.x] = blockIdx.x;
        last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) *y = partial[0] + partial[1];  // BUG fence_too_early
}

// ---- divergent-barrier
GLOBAL barrier_in_branch(float* y) {
    if (threadIdx.x < 20) __syncthreads();                     // BUG barrier_in_branch
    y[threadIdx.x] = 1.0f;
}
GLOBAL early_return(float* y, int n) {
    if (threadIdx.x >= n) return;
    y[threadIdx.x] = 1.0f;
    __syncthreads();                                           // BUG early_return
}
GLOBAL barrier_against_warp(float* y) {
    if (threadIdx.x < 16) __syncthreads();                     // BUG barrier_against_warp
    else __syncwarp();
    y[threadIdx.x] = 1.0f;
}

// ---- bad-mask
GLOBAL own_lane_missing(int* y) {
    y[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 0);           // BUG own_lane_missing
}
GLOBAL exited_lane(int* y) {
    if (threadIdx.x == 9) return;
    y[threadIdx.x] = __ballot_sync(0xffffffffu, 1);            // BUG exited_lane
}
GLOBAL exited_before(int* y) {
    if (threadIdx.x == 0) return;
    __syncwarp();                                              // BUG exited_before
    y[threadIdx.x] = 1;
}
GLOBAL exits_later(int* y) {
    if (threadIdx.x < 31) __syncwarp();                        // BUG exits_later
    y[threadIdx.x] = 1;
}
GLOBAL different_masks(int* y) {
    const unsigned mask = threadIdx.x < 16 ? 0x0001ffffu : 0xffffffffu;
    y[threadIdx.x] = __any_sync(mask, 1);                      // BUG different_masks
}

// ---- assert
GLOBAL asserts(int* y) {
    assert(threadIdx.x < 7);                                   // BUG asserts
    y[threadIdx.x] = 1;
}
__device__ __noinline__ int checked(int v) {
    assert(v != 3);                                            // BUG asserts_in_function
    return v;
}
GLOBAL asserts_in_function(int* y) { y[threadIdx.x] = checked(threadIdx.x); }
"""


def line_of(kernel: str) -> int:
    lines = SOURCE.split("\n")
    return next(i for i, text in enumerate(lines) if text.endswith(f"// BUG {kernel}")) - 1


def zeros(n: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return np.zeros(n, dtype)


@dataclass(frozen=True)
class Plant:
    kernel: str
    kind: str
    args: Any  # makes fresh arguments
    says: str  # part of the message
    grid: int = 1
    block: int = 32
    shared: int = 0
    at: tuple[int, int] = (0, 0)  # block and thread that the fault names


F32 = np.float32
PLANTS = [
    Plant("read_past_end", "out-of-bounds", lambda: (zeros(100), zeros(100), 100),
          r"reads x\[100\], an array of 100", 2, 64, at=(1, 36)),
    Plant("write_before_start", "out-of-bounds", lambda: (zeros(32),), r"writes y\[-1\]"),
    Plant("write_to_const", "out-of-bounds", lambda: (zeros(64),), r"x\[1\].*const"),
    Plant("null_pointer", "out-of-bounds", lambda: (zeros(32), None), "null pointer"),
    Plant("vector_tail", "out-of-bounds", lambda: (zeros(8), zeros(6), 6),
          r"x\[4:8\], an array of 6", block=2, at=(0, 1)),
    Plant("copies_range", "out-of-bounds", lambda: (zeros(1), zeros(7)), r"x\[0:8\]", block=1),
    Plant("shared_index", "out-of-bounds", lambda: (zeros(32),),
          r"index 32 of tile, a 'float \[32\]'", at=(0, 31)),
    Plant("shared_pointer", "out-of-bounds", lambda: (zeros(32),), r"tile\[32\]", at=(0, 30)),
    Plant("shared_byte", "out-of-bounds", lambda: (zeros(1, np.uint8),),
          r"s\[5\], an array of 5", block=1),
    Plant("nested_index", "out-of-bounds", lambda: (zeros(9), zeros(9, np.int32)),
          r"index 8 of tile, a 'float \[8\]'", block=9, at=(0, 8)),
    Plant("dynamic_shared", "out-of-bounds", lambda: (zeros(32),), "byte 64 of the 64 bytes",
          shared=64, at=(0, 16)),
    Plant("local_array", "out-of-bounds", lambda: (zeros(32), 5), "index 4 of window"),
    Plant("atomic_past_end", "out-of-bounds", lambda: (zeros(4, np.int32), 4), r"counts\[4\]"),
    Plant("read_through_ldg", "out-of-bounds", lambda: (zeros(32), zeros(32)), r"x\[32\]",
          at=(0, 16)),
    Plant("misaligned_global", "misaligned", lambda: (zeros(400),), "multiple of 16"),
    Plant("misaligned_view", "misaligned", lambda: (zeros(32), zeros(33)[1:]), "multiple of 16",
          block=8),
    Plant("misaligned_shared", "misaligned", lambda: (zeros(32),), r"s\[1:3\].*multiple of 8",
          block=31),
    Plant("uninitialised_shared", "uninitialised-read", lambda: (zeros(32),), r"s\[32\]",
          at=(0, 31)),
    Plant("shared_of_last_block", "uninitialised-read", lambda: (zeros(64),), r"s\[0\]", grid=2,
          at=(1, 0)),
    Plant("uninitialised_bytes", "uninitialised-read", lambda: (zeros(32, np.uint8),), r"s\[7\]",
          at=(0, 24)),
    Plant("accumulates", "uninitialised-read", lambda: (emulator.empty(32), zeros(32)),
          r"reads y\[0\]"),
    Plant("copies", "uninitialised-read", lambda: (zeros(32), emulator.empty(40)[8:], 32),
          r"reads x\[0\]"),
    Plant("copies_halves", "uninitialised-read",
          lambda: (zeros(32, np.float16), emulator.empty((4, 8), np.float16).reshape(-1)),
          r"reads x\[0\]"),
    Plant("missing_barrier", "race", lambda: (zeros(64),), r"writes s\[32\].*\(31, 0, 0\) read",
          block=64, at=(0, 32)),
    Plant("overwritten_too_early", "race", lambda: (zeros(64),), "read", block=64, at=(0, 0)),
    Plant("same_value", "race", lambda: (zeros(32),), "flag", at=(0, 1)),
    Plant("neighbouring_bytes", "race", lambda: (zeros(64, np.uint8),), r"s\[41\]", block=64,
          at=(0, 41)),
    Plant("warp_without_sync", "race", lambda: (zeros(32),), r"s\[\d+\].*read", at=(0, 1)),
    Plant("half_warp_sync", "race", lambda: (zeros(32),), r"reads s\[16\].*wrote"),
    Plant("across_warps", "race", lambda: (zeros(64),), r"s\[\d+\].*read", block=64),
    Plant("read_by_two_warps", "race", lambda: (zeros(64),), r"s\[0\]", block=64, at=(0, 63)),
    Plant("global_in_block", "race", lambda: (zeros(32),), r"y\[\d+\]"),
    Plant("global_across_blocks", "race", lambda: (zeros(32),), r"blocks are unordered", grid=2,
          at=(1, 0)),
    Plant("read_across_blocks", "race", lambda: (zeros(8),), r"y\[\d+\].*read", grid=4),
    Plant("earlier_reader", "race", lambda: (zeros(65),), r"y\[0\].*another block read",
          grid=2, at=(1, 0)),
    Plant("read_beside_atomic", "race", lambda: (zeros(1, np.int32), zeros(1, np.int32)),
          r"count\[0\]", at=(0, 1)),
    Plant("plain_beside_atomic", "race", lambda: (zeros(1, np.int32),), "atomic"),
    Plant("last_block_no_fence", "race", lambda: (zeros(1), zeros(4), zeros(1, np.uint32)),
          r"partial\[\d\]", grid=4, at=(3, 0)),
    Plant("no_fence_between_words", "race", lambda: (zeros(1), zeros(1), zeros(2, np.uint32)),
          r"x\[0\].*unordered", grid=3, at=(2, 0)),
    Plant("fence_too_early", "race", lambda: (zeros(1), zeros(2), zeros(1, np.uint32)),
          r"partial\[0\].*__threadfence", grid=2, at=(1, 0)),
    Plant("barrier_in_branch", "divergent-barrier", lambda: (zeros(32),), "returned"),
    Plant("early_return", "divergent-barrier", lambda: (zeros(32), 31), r"\(31, 0, 0\)"),
    Plant("barrier_against_warp", "divergent-barrier", lambda: (zeros(32),), "warp"),
    Plant("own_lane_missing", "bad-mask", lambda: (zeros(32, np.int32),), "own lane 16",
          at=(0, 16)),
    Plant("exited_lane", "bad-mask", lambda: (zeros(32, np.int32),), "lane 9"),
    Plant("exited_before", "bad-mask", lambda: (zeros(32, np.int32),), "lane 0", at=(0, 1)),
    Plant("exits_later", "bad-mask", lambda: (zeros(32, np.int32),), "lane 31"),
    Plant("different_masks", "bad-mask", lambda: (zeros(32, np.int32),), "0x0001ffff"),
    Plant("asserts", "assert", lambda: (zeros(32, np.int32),), "threadIdx.x < 7", at=(0, 7)),
    Plant("asserts_in_function", "assert", lambda: (zeros(32, np.int32),), "v != 3", at=(0, 3)),
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS, ids=lambda p: p.kernel)
def test_planted_bug_is_reported(plant: Plant) -> None:
    kernel = emulator.RawKernel(SOURCE, plant.kernel, check=True)
    with pytest.raises(emulator.KernelFault, match=plant.says) as caught:
        kernel((plant.grid,), (plant.block,), plant.args(), plant.shared)
    fault = caught.value
    assert (fault.kind, fault.kernel) == (plant.kind, plant.kernel)
    assert fault.file == "planted.cu"
    marked = line_of(plant.kernel)
    if plant.kind == "race":  # either of the two accesses may come second
        assert marked == fault.line or f"at line {marked}" in str(fault)
    else:
        assert fault.line == marked
    if plant.at != (0, 0) or plant.kind in ("out-of-bounds", "misaligned", "uninitialised-read"):
        assert (fault.block, fault.thread) == ((plant.at[0], 0, 0), (plant.at[1], 0, 0))


def test_a_fault_leaves_arrays_and_emulator_usable() -> None:
    y = np.full(8, 3, np.float32)
    bad = emulator.RawKernel(SOURCE, "write_before_start", check=True)
    for _ in range(3):
        with pytest.raises(emulator.KernelFault):
            bad((1,), (8,), (y,))
    assert (y == 3).all()
    x = np.arange(8, dtype=np.float32)
    emulator.RawKernel(SOURCE, "copies", check=True)((1,), (8,), (y, x, 8))
    assert (y == x).all()


def test_both_sides_of_a_race_are_named() -> None:
    kernel = emulator.RawKernel(SOURCE, "missing_barrier", check=True)
    with pytest.raises(emulator.KernelFault) as caught:
        kernel((1,), (64,), (zeros(64),))
    line = line_of("missing_barrier")
    # The reader ran first; the writer is the one that is caught.
    assert caught.value.line == line - 1
    assert re.search(rf"thread \(31, 0, 0\) read at line {line},", str(caught.value))


def test_bad_masks_and_divergence_are_found_without_checks() -> None:
    for name, kind in (("early_return", "divergent-barrier"), ("exited_lane", "bad-mask")):
        plant = next(p for p in PLANTS if p.kernel == name)
        kernel = emulator.RawKernel(SOURCE, name, check=False)
        with pytest.raises(emulator.KernelFault) as caught:
            kernel((1,), (32,), plant.args())
        assert (caught.value.kind, caught.value.line) == (kind, line_of(name))
