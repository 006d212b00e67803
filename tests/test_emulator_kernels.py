"""Correct kernels of every usual shape compute what NumPy does, and raise nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucnn import emulator

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

SOURCE = r"""
#include <cstdint>
#define GLOBAL extern "C" __global__ void

GLOBAL __launch_bounds__(256) matmul(float* __restrict__ c, const float* __restrict__ a,
                                     const float* __restrict__ b, int m, int n, int k) {
    __shared__ float ta[16][17], tb[16][16];
    const int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < k; k0 += 16) {
        const int ka = k0 + threadIdx.x, kb = k0 + threadIdx.y;
        ta[threadIdx.y][threadIdx.x] = row < m && ka < k ? a[row * k + ka] : 0.0f;
        tb[threadIdx.y][threadIdx.x] = kb < k && col < n ? b[kb * n + col] : 0.0f;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < 16; ++i) sum += ta[threadIdx.y][i] * tb[i][threadIdx.x];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_down_sync(0xffffffffu, v, offset);
    return v;
}
GLOBAL block_sum(float* y, const float* x, int n) {
    __shared__ float sums[32];
    float v = 0.0f;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        v += x[i];
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? sums[threadIdx.x] : 0.0f;
        v = warp_sum(v);
        if (threadIdx.x == 0) y[blockIdx.x] = v;
    }
}

__device__ void last_block_reduce(float* y, float* partial, unsigned* arrived, const float* x,
                                  int n, bool all_write) {
    __shared__ bool last;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (all_write) {
        partial[i] = i < n ? 2.0f * x[i] : 0.0f;
        __threadfence();
        __syncthreads();
    } else if (threadIdx.x == 0) {
        float s = 0.0f;
        for (int j = i; j < i + (int)blockDim.x && j < n; ++j) s += x[j];
        partial[blockIdx.x] = s;
        __threadfence();
    }
    if (threadIdx.x == 0) last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float s = 0.0f;
        const int count = all_write ? gridDim.x * blockDim.x : gridDim.x;
        for (int b = 0; b < count; ++b) s += partial[b];
        *y = s;
    }
}
GLOBAL last_block(float* y, float* partial, unsigned* arrived, const float* x, int n) {
    last_block_reduce(y, partial, arrived, x, n, false);
}
GLOBAL last_block_all_write(float* y, float* partial, unsigned* arrived, const float* x, int n) {
    last_block_reduce(y, partial, arrived, x, n, true);
}
// One fence by the thread that announces the block, after the barrier that gathers the writes.
GLOBAL last_block_one_fence(float* y, float* partial, unsigned* arrived, const float* x, int n) {
    __shared__ bool last;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    partial[i] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last) return;
    if (threadIdx.x == 1) *arrived = 0;
    if (threadIdx.x == 0) {
        float s = 0.0f;
        for (int b = 0; b < (int)(gridDim.x * blockDim.x); ++b) s += partial[b];
        *y = s;
    }
}

// Groups of two blocks have a word each, and the last of each group meets the others at a third.
GLOBAL last_of_groups(float* y, float* partial, unsigned* arrived) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = blockIdx.x + 1.0f;
        __threadfence();
        last = atomicInc(arrived + 1 + blockIdx.x / 2, 1) == 1;
        __threadfence();
        last = last && atomicInc(arrived, 1) == 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 1) *y = partial[0] + partial[1] + partial[2] + partial[3];
}

GLOBAL transpose(float* y, const float* x, int rows, int columns) {
    __shared__ float tile[32][33];
    int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (c < columns && r + j < rows)
            tile[threadIdx.y + j][threadIdx.x] = x[(r + j) * columns + c];
    __syncthreads();
    c = blockIdx.y * 32 + threadIdx.x, r = blockIdx.x * 32 + threadIdx.y;
    for (int j = 0; j < 32; j += 8)
        if (c < rows && r + j < columns) y[(r + j) * rows + c] = tile[threadIdx.x][threadIdx.y + j];
}

GLOBAL double_buffer(float* y, const float* x, int steps) {
    __shared__ float buffer[2][64];
    float sum = 0.0f;
    buffer[0][threadIdx.x] = x[threadIdx.x];
    for (int i = 0; i < steps; ++i) {
        __syncthreads();
        if (i + 1 < steps) buffer[(i + 1) & 1][threadIdx.x] = x[(i + 1) * 64 + threadIdx.x];
        sum += buffer[i & 1][63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

GLOBAL histogram(int* counts, const unsigned char* x, int n) {
    __shared__ int local[256];
    for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&local[x[i]], 1);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&counts[i], local[i]);
}

GLOBAL early_return(float* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[i] = i;
}

GLOBAL three_dimensions(int* y) {
    const dim3 b = blockDim;
    const int x = blockIdx.x * b.x + threadIdx.x, yy = blockIdx.y * b.y + threadIdx.y;
    const int z = blockIdx.z * b.z + threadIdx.z;
    const int w = gridDim.x * b.x, h = gridDim.y * b.y;
    y[(z * h + yy) * w + x] = x + 100 * yy + 10000 * z;
}

GLOBAL mixed_shared(float* y) {
    __shared__ float fixed[32];
    extern __shared__ float flexible[];
    fixed[threadIdx.x] = threadIdx.x;
    flexible[threadIdx.x + 32] = 2 * threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = fixed[31 - threadIdx.x] + flexible[63 - threadIdx.x];
}
GLOBAL other_type(unsigned char* y) {
    extern __shared__ __align__(16) unsigned char other[];
    other[threadIdx.x] = 3 * threadIdx.x;
    __syncthreads();
    y[threadIdx.x] = other[threadIdx.x ^ 1];
}

template <int N, class T>
__device__ T rotate(T v) {
    __shared__ T s[N];
    s[threadIdx.x] = v;
    __syncthreads();
    const T r = s[(threadIdx.x + 1) % N];
    __syncthreads();
    return r;
}
GLOBAL templates(float* y, int* z) {
    y[threadIdx.x] = rotate<32>((float)threadIdx.x) + rotate<32, double>(threadIdx.x);
    z[threadIdx.x] = rotate<32>((int)threadIdx.x);
}

template <class T> __device__ T exchange(T v) {
    extern __shared__ __align__(sizeof(T)) unsigned char memory[];
    T* s = reinterpret_cast<T*>(memory);
    s[threadIdx.x] = v;
    __syncthreads();
    const T r = s[threadIdx.x ^ 1];
    __syncthreads();
    return r;
}
GLOBAL dynamic_in_templates(float* y) {
    extern __shared__ float rows[][4];
    y[threadIdx.x] = exchange((float)threadIdx.x) + exchange((double)threadIdx.x);
    rows[threadIdx.x][1] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] += rows[threadIdx.x ^ 2][1];
}

struct Pair {
    float a;
    int b;
};
__shared__ float at_file_scope[32];
GLOBAL shared_declarations(float* y) {
    __shared__ alignas(16) float a[32];
    static __shared__ Pair p[32];
    __shared__ __align__(8) int b[4][8], c;
    volatile __shared__ float v[32];
    const int i = threadIdx.x, j = 31 - i;
    a[i] = v[i] = at_file_scope[i] = i;
    p[i] = {(float)i, i};
    b[i / 8][i % 8] = i;
    if (i == 0) c = 5;
    __syncthreads();
    y[i] = a[j] + v[j] + at_file_scope[j] + p[j].a + p[j].b + b[j / 8][j % 8] + c;
}

GLOBAL vectors(float4* y, const float4* x, int4* iy, const uchar4* bytes, float2* pair) {
    __shared__ float4 s[32];
    const int i = threadIdx.x;
    s[i] = x[i];
    __syncthreads();
    float4 v = s[31 - i];
    v.x += 1.0f;
    y[i] = make_float4(v.w, v.z, v.y, v.x);
    const uchar4 b = bytes[i];
    iy[i] = make_int4(b.x, b.y, b.z, b.w);
    pair[i] = make_float2(v.x, v.y);
}

__constant__ float table[4] = {1.0f, 10.0f, 100.0f, 1000.0f};
struct Scale {
    float by;
    __device__ __host__ float operator()(float v) const { return by * v; }
};
template <class F> __device__ float apply(F f, float v) { return f(v); }
GLOBAL functors(float* y) {
    const float offset = 0.5f;
    auto add = [=](float v) { return v + offset; };
    y[threadIdx.x] = apply(Scale{table[threadIdx.x & 3]}, apply(add, threadIdx.x));
}

GLOBAL warp_operations(unsigned* y, double* d) {
    const int lane = threadIdx.x;
    int all;
    unsigned* row = y + lane * 12;
    row[0] = __ballot_sync(0xffffffffu, lane % 3 == 0);
    row[1] = __any_sync(0xffffffffu, lane == 4);
    row[2] = __all_sync(0xffffffffu, lane < 32);
    row[3] = __match_any_sync(0xffffffffu, lane % 4);
    row[4] = __match_all_sync(0xffffffffu, 7, &all) + all;
    row[5] = __reduce_add_sync(0xffffffffu, (unsigned)lane);
    row[6] = (unsigned)__reduce_min_sync(0xffffffffu, lane - 5);
    row[7] = __reduce_xor_sync(0xffffffffu, (unsigned)lane * 3);
    row[8] = __shfl_xor_sync(0xffffffffu, lane, 5);
    row[9] = __shfl_up_sync(0xffffffffu, lane, 3, 8);
    row[10] = __shfl_sync(0xffffffffu, lane, 9, 8);
    row[11] = lane < 16 ? __shfl_down_sync(0x0000ffffu, lane, 1, 16) : __activemask();
    d[lane] = __shfl_xor_sync(0xffffffffu, 1.5 * lane, 31);
}
GLOBAL barrier_votes(int* y) {
    const int i = threadIdx.x;
    y[i * 3] = __syncthreads_count(i % 3 == 0);
    y[i * 3 + 1] = __syncthreads_and(i >= 0) + 2 * __syncthreads_and(i != 5);
    y[i * 3 + 2] = __syncthreads_or(i == 7) + 2 * __syncthreads_or(i == 700);
}
GLOBAL partial_warp(int* y) {
    y[threadIdx.x] = __popc(__ballot_sync(0xffffffffu, 1));
    __syncwarp();
}

GLOBAL atomics(unsigned* y, int* z, unsigned long long* w) {
    const unsigned i = threadIdx.x;
    atomicSub(&y[0], 1u);
    atomicMin(&z[0], (int)i - 7);
    atomicMax(&z[1], (int)i);
    atomicAnd(&y[1], ~(1u << (i & 31)));
    atomicOr(&y[2], 1u << (i & 31));
    atomicXor(&y[3], i);
    atomicInc(&y[4], 9);
    atomicDec(&y[5], 9);
    if (i == 3) atomicExch(&y[6], 77u);
    atomicCAS(&y[7], i, i + 1);
    atomicAdd(w, 1ull << 33);
}
"""


def run(
    name: str, grid: Any, block: Any, *args: Any, shared: int = 0, source: str = SOURCE
) -> None:
    """Checked, in four orders, and unchecked."""
    outputs = [a for a in args if isinstance(a, np.ndarray)]
    before = [a.copy() for a in outputs]
    emulator.check_order(emulator.RawKernel(source, name, check=True), grid, block, args, shared)
    checked = [a.copy() for a in outputs]
    for a, b in zip(outputs, before, strict=True):
        np.copyto(a, b)
    emulator.RawKernel(source, name, check=False)(grid, block, args, shared)
    for a, b in zip(outputs, checked, strict=True):
        np.testing.assert_array_equal(a, b)


def random(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_tiled_matmul() -> None:
    a, b = random(37, 29), random(29, 41)
    c = emulator.empty((37, 41))
    run("matmul", (3, 3), (16, 16), c, a, b, 37, 41, 29)
    np.testing.assert_allclose(c, a @ b, atol=1e-5)


def test_block_sum_with_one_warp_shuffling() -> None:
    x, y = random(1000), emulator.empty(3)
    run("block_sum", (3,), (128,), y, x, 1000)
    np.testing.assert_allclose(y.sum(), x.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "factor"),
    [("last_block", 1), ("last_block_all_write", 2), ("last_block_one_fence", 1)],
)
def test_last_block_done(name: str, factor: int) -> None:
    x, y = np.arange(100, dtype=np.float32), emulator.empty(1)
    partial, arrived = emulator.empty(128), np.zeros(1, np.uint32)
    run(name, (4,), (32,), y, partial, arrived, x, 100)
    assert y[0] == factor * x.sum()
    assert arrived[0] == 0


def test_last_block_of_groups_sees_what_came_through_another_word() -> None:
    y, partial, arrived = emulator.empty(1), emulator.empty(4), np.zeros(3, np.uint32)
    run("last_of_groups", (4,), (32,), y, partial, arrived)
    assert y[0] == 10
    assert not arrived.any()


def test_padded_transpose() -> None:
    x, y = random(45, 70), emulator.empty((70, 45))
    run("transpose", (3, 2), (32, 8), y, x, 45, 70)
    np.testing.assert_array_equal(y, x.T)


def test_double_buffer() -> None:
    x, y = random(5, 64), emulator.empty(64)
    run("double_buffer", (1,), (64,), y, x, 5)
    np.testing.assert_allclose(y, x[:, ::-1].sum(axis=0), atol=1e-5)


def test_histogram_with_integer_atomics() -> None:
    x = np.random.default_rng(2).integers(0, 256, 3000, np.uint8)
    counts = np.zeros(256, np.int32)
    run("histogram", (3,), (96,), counts, x, x.size)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=256))


def test_early_return_without_barrier() -> None:
    y = emulator.empty(70)
    run("early_return", (3,), (32,), y, 70)
    np.testing.assert_array_equal(y, np.arange(70))


def test_three_dimensional_grid_and_block() -> None:
    y = emulator.empty((6, 4, 10), np.int32)
    run("three_dimensions", (2, 2, 2), (5, 2, 3), y)
    z, yy, x = np.indices((6, 4, 10))
    np.testing.assert_array_equal(y, x + 100 * yy + 10000 * z)


def test_static_and_dynamic_shared_memory() -> None:
    y, i = emulator.empty(32), np.arange(32)
    run("mixed_shared", (1,), (32,), y, shared=64 * 4)
    np.testing.assert_array_equal(y, 3 * (31 - i))
    z = emulator.empty(32, np.uint8)
    run("other_type", (1,), (32,), z, shared=32)
    np.testing.assert_array_equal(z, 3 * (i ^ 1))


def test_shared_memory_in_templates() -> None:
    y, z = emulator.empty(32), emulator.empty(32, np.int32)
    run("templates", (1,), (32,), y, z)
    expected = (np.arange(32) + 1) % 32
    np.testing.assert_array_equal(y, 2 * expected)
    np.testing.assert_array_equal(z, expected)


def test_dynamic_shared_memory_in_templates() -> None:
    y, i = emulator.empty(32), np.arange(32)
    run("dynamic_in_templates", (1,), (32,), y, shared=32 * 16)
    np.testing.assert_array_equal(y, 2 * (i ^ 1) + 2 * (i ^ 3))


def test_every_way_to_declare_shared_memory() -> None:
    y = emulator.empty(32)
    run("shared_declarations", (1,), (32,), y)
    np.testing.assert_array_equal(y, 6 * (31 - np.arange(32)) + 5)


def test_vector_types() -> None:
    x, y = random(32, 4), emulator.empty((32, 4))
    iy, pair = emulator.empty((32, 4), np.int32), emulator.empty((32, 2))
    b = np.random.default_rng(3).integers(0, 256, (32, 4), np.uint8)
    run("vectors", (1,), (32,), y, x, iy, b, pair)
    v = x[::-1] + np.float32([1, 0, 0, 0])
    np.testing.assert_array_equal(y, v[:, ::-1])
    np.testing.assert_array_equal(iy, b)
    np.testing.assert_array_equal(pair, v[:, :2])


def test_functors_lambdas_and_constant_tables() -> None:
    y = emulator.empty(32)
    run("functors", (1,), (32,), y)
    i = np.arange(32)
    np.testing.assert_array_equal(y, (i + np.float32(0.5)) * 10.0 ** (i % 4))


def test_warp_operations() -> None:
    y, d = emulator.empty((32, 12), np.uint32), emulator.empty(32, np.float64)
    run("warp_operations", (1,), (32,), y, d)
    lane = np.arange(32)
    groups = [sum(1 << k for k in range(32) if k % 4 == m) for m in range(4)]
    assert (y[:, 0] == sum(1 << k for k in range(0, 32, 3))).all()
    assert (y[:, 1] == 1).all()
    assert (y[:, 2] == 1).all()
    assert y[:, 3].tolist() == [groups[k % 4] for k in lane]
    assert (y[:, 4] == 0).all()  # 0xffffffff + 1
    assert (y[:, 5] == 496).all()
    assert (y[:, 6].astype(np.int32) == -5).all()
    assert (y[:, 7] == np.bitwise_xor.reduce(lane * 3)).all()
    assert (y[:, 8] == lane ^ 5).all()
    assert (y[:, 9] == np.where(lane % 8 >= 3, lane - 3, lane)).all()
    assert (y[:, 10] == lane // 8 * 8 + 1).all()
    assert (y[:16, 11] == np.minimum(lane[:16] + 1, 15)).all()
    assert (y[16:, 11] == 2**32 - 1).all()
    assert (d == 1.5 * (31 - lane)).all()


def test_barriers_that_count() -> None:
    y = emulator.empty((50, 3), np.int32)
    run("barrier_votes", (1,), (50,), y)
    assert (y == [17, 1, 1]).all()


def test_partial_last_warp() -> None:
    y = emulator.empty(40, np.int32)
    run("partial_warp", (1,), (40,), y)
    assert y.tolist() == [32] * 32 + [8] * 8


def test_integer_atomics() -> None:
    y, z = np.zeros(8, np.uint32), np.zeros(2, np.int32)
    y[0], y[1] = 1000, 2**32 - 1
    w = np.zeros(1, np.uint64)
    kernel = emulator.RawKernel(SOURCE, "atomics", check=True)
    kernel((2,), (32,), (y, z, w))
    assert y.tolist() == [936, 0, 2**32 - 1, 0, 4, 6, 77, 32]
    assert z.tolist() == [-7, 31]
    assert w[0] == 64 << 33
