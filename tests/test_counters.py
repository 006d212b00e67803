"""What the emulator counts of textbook kernels is what a GPU's manual says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpucnn import emulator
from gpucnn.emulator import flops
from gpucnn.xray.counters import LaunchCounters, Site, count
from tests.support import randn

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not flops.available(), reason="counted builds need an x86-64 CPU"),
]

SOURCE = r"""
#define GLOBAL extern "C" __global__ void
#define I (blockIdx.x * blockDim.x + threadIdx.x)

GLOBAL copy(float* y, const float* x, int n, int stride, int shift) {
    if (I < n) y[I * stride + shift] = x[I * stride + shift];
}
GLOBAL copy2(float2* y, const float2* x, int n) { if (I < n) y[I] = x[I]; }
GLOBAL copy4(float4* y, const float4* x, int n) { if (I < n) y[I] = x[I]; }
GLOBAL copy_bytes(unsigned char* y, const unsigned char* x, int n) { if (I < n) y[I] = x[I]; }
GLOBAL broadcast(float* y, const float* x) { y[I] = x[3]; }

GLOBAL transpose_naive(float* y, const float* x) {
    __shared__ float tile[32][32];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}
GLOBAL transpose_padded(float* y, const float* x) {
    __shared__ float tile[32][33];
    tile[threadIdx.y][threadIdx.x] = x[threadIdx.y * 32 + threadIdx.x];
    __syncthreads();
    y[threadIdx.y * 32 + threadIdx.x] = tile[threadIdx.x][threadIdx.y];
}

// Lanes whose bit of `lanes` is set read the word, pair or quadruple that `at` says.
template <class T>
__device__ void gather(T* y, const T* x, const int* at, unsigned lanes, T* tile) {
    const int t = threadIdx.x;
    for (int i = t; i < 128; i += blockDim.x) tile[i] = x[i];
    __syncthreads();
    if (t < blockDim.x && lanes >> t & 1) {
        const int a = at[t];
        y[t] = x[a];
        y[t] = tile[a];
    }
}
GLOBAL gather1(float* y, const float* x, const int* at, unsigned lanes) {
    __shared__ float tile[128];
    gather(y, x, at, lanes, tile);
}
GLOBAL gather2(float2* y, const float2* x, const int* at, unsigned lanes) {
    __shared__ float2 tile[128];
    gather(y, x, at, lanes, tile);
}
GLOBAL gather4(float4* y, const float4* x, const int* at, unsigned lanes) {
    extern __shared__ float4 tile4[];
    gather(y, x, at, lanes, tile4);
}

GLOBAL branch(float* y, const float* x) {
    if (threadIdx.x % 2) {
        y[threadIdx.x] = x[threadIdx.x];
    } else {
        y[threadIdx.x] = x[threadIdx.x];
    }
}
GLOBAL triangle(float* y, const float* x) {
    float sum = 0.0f;
    for (int i = 0; i <= threadIdx.x; ++i) sum += x[i];
    y[threadIdx.x] = sum;
}
// Half of the warp reads in each of two turns.
GLOBAL turns(float* y, const float* x, int apart) {
    for (int turn = 0; turn < 2; ++turn) {
        if (threadIdx.x / 16 == turn) y[threadIdx.x] = x[threadIdx.x];
        if (apart == 1) __syncthreads();
        if (apart == 2) __syncwarp();
        if (apart == 3 && threadIdx.x < 16) __syncwarp(0xffff);
    }
}

GLOBAL barriers(float* y) {
    for (int i = 0; i <= blockIdx.x; ++i) __syncthreads();
    y[I] = __syncthreads_count(1);
}
GLOBAL warps(float* y, const float* x) {
    float v = x[I];
    for (int offset = 16; offset > 0; offset /= 2) v += __shfl_down_sync(~0u, v, offset);
    y[I] = __any_sync(~0u, v > 0.0f) + __reduce_add_sync(~0u, 1);
    __syncwarp();
}
GLOBAL atomics(int* total, const int* x, int n) {
    __shared__ int sum;
    if (threadIdx.x == 0) sum = 0;
    __syncthreads();
    if (I < n) atomicAdd(&sum, x[I]);
    __syncthreads();
    if (threadIdx.x == 0) atomicAdd(total, sum);
}

GLOBAL twice(float* y, const float* x) { y[I] = x[I] * x[I]; }
GLOBAL loop_load(float* y, const float* x) {
    float sum = 0.0f;
    for (int i = 0; i < 5; ++i) sum += x[threadIdx.x];
    y[threadIdx.x] = sum;
}
GLOBAL rejoined(float* y, const float* x) {
    const bool odd = threadIdx.x % 2;
    float scale;
    if (odd) {
        scale = 2.0f;
    } else {
        scale = x[33];
    }
    float v = x[threadIdx.x];
    if (odd) v *= scale;
    y[threadIdx.x] = v;
}
__constant__ float table[4] = {1, 2, 3, 4};
GLOBAL registers(float* y, const float* x, int n) {
    float kept[4];
    for (int i = 0; i < 4; ++i) kept[i] = x[threadIdx.x] + table[i];
    float* volatile where = kept;
    y[threadIdx.x] = where[n];
}
struct Wide { float v[8]; };
struct Three { float x, y, z; };
GLOBAL structures(float* y, const float* x, float* b, const float* a) {
    ((Wide*)y)[threadIdx.x] = ((const Wide*)x)[threadIdx.x];
    ((Three*)b)[threadIdx.x] = ((const Three*)a)[threadIdx.x];
}
GLOBAL copied(float* y, const float* x) { memcpy(y + 2 * threadIdx.x, x + 2 * threadIdx.x, 8); }
template <int N> __device__ float nth(const float* x) { return x[N * 32 + threadIdx.x]; }
GLOBAL instances(float* y, const float* x) { y[threadIdx.x] = nth<0>(x) + nth<1>(x) + nth<2>(x); }
GLOBAL either(float* y, const float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = 1.0f;
    const float* const sides[2] = {x, tile};
    y[threadIdx.x] = sides[threadIdx.x % 2][threadIdx.x];
}
GLOBAL matrices(float* y, const float* x) {
    __shared__ __align__(16) float tile[32][4];
    gpucnn_copy_async<16>(tile[threadIdx.x], x + 4 * threadIdx.x, 16);
    gpucnn_copy_commit();
    gpucnn_copy_wait(0);
    __syncthreads();
    unsigned a[4], b[2] = {};
    gpucnn_matrix_load(a, tile[threadIdx.x], false);
    float d[4] = {};
    gpucnn_matrix_multiply(gpucnn_tf32_16x8x8, d, a, b);
    y[threadIdx.x] = d[0];
}
"""


def bare_counters(
    name: str, grid: int, block: int | tuple[int, ...], *args: Any, shared_mem: int = 0
) -> LaunchCounters:
    """The counters of one launch of a kernel of SOURCE."""
    block = (block,) if isinstance(block, int) else block
    with count() as counted:
        emulator.RawKernel(SOURCE, name)((grid,), block, args, shared_mem=shared_mem)
    (launch,) = counted.launches
    return launch


def site(launch: LaunchCounters, space: str, access: str) -> Site:
    """The one site of its kind."""
    (found,) = [s for s in launch.sites if (s.space, s.access) == (space, access)]
    return found


@pytest.mark.parametrize(
    ("stride", "shift", "sectors", "ideal"),
    [(1, 0, 4, 4), (2, 0, 8, 4), (1, 1, 5, 4), (1, 8, 4, 4), (32, 0, 32, 4), (3, 0, 12, 4)],
)
def test_sectors_of_4_byte_copies(stride: int, shift: int, sectors: int, ideal: int) -> None:
    x = randn(256 * stride + shift)
    y = np.zeros_like(x)
    launch = bare_counters("copy", 2, 128, y, x, 256, stride, shift)
    for access in ("read", "write"):
        s = site(launch, "global", access)
        assert (s.requests, s.lanes, s.bytes) == (8, 256, 1024)
        assert (s.sectors, s.ideal_sectors) == (8 * sectors, 8 * ideal)
        assert s.coalesced == (8 if sectors == ideal else 0)
        assert s.sectors_per_request == sectors
    assert launch.sectors_per_request == sectors
    assert launch.ideal_sectors_per_request == ideal
    assert launch.coalesced_share == (sectors == ideal)
    assert launch.read_bytes == launch.written_bytes == 1024
    touched = np.unique((np.arange(256) * stride + shift) // 8).size * 32
    assert launch.read_footprint == launch.written_footprint == touched
    assert (launch.shared_requests, launch.bank_conflicts, launch.worst_conflict) == (0, 0, 0)


@pytest.mark.parametrize(
    ("kernel", "dtype", "width", "sectors"),
    [("copy2", np.float32, 2, 8), ("copy4", np.float32, 4, 16), ("copy_bytes", np.uint8, 1, 1)],
)
def test_one_vector_access_is_one_request(
    kernel: str, dtype: Any, width: int, sectors: int
) -> None:
    x = np.ones(64 * width, dtype)
    launch = bare_counters(kernel, 1, 64, np.zeros_like(x), x, 64)
    for access in ("read", "write"):
        s = site(launch, "global", access)
        assert (s.requests, s.lanes, s.bytes) == (2, 64, x.nbytes)
        assert s.sectors_per_request == s.ideal_sectors_per_request == sectors
        assert s.bytes_per_lane == width * x.itemsize


def test_lanes_that_read_one_word_touch_one_sector() -> None:
    launch = bare_counters("broadcast", 1, 32, np.zeros(32, np.float32), randn(32))
    s = site(launch, "global", "read")
    assert (s.requests, s.lanes, s.bytes, s.sectors, s.coalesced) == (1, 32, 128, 1, 1)


def test_a_partial_warp_is_a_request_of_fewer_lanes() -> None:
    x = randn(40)
    launch = bare_counters("copy", 1, 64, np.zeros_like(x), x, 40, 1, 0)
    s = site(launch, "global", "read")
    assert (s.requests, s.lanes, s.sectors, s.ideal_sectors) == (2, 40, 5, 5)


def test_transposes() -> None:
    x = randn(32, 32)
    for kernel, ways in (("transpose_naive", 32), ("transpose_padded", 1)):
        y = np.zeros_like(x)
        launch = bare_counters(kernel, 1, (32, 32), y, x)
        np.testing.assert_array_equal(y, x.T)
        read, write = site(launch, "shared", "read"), site(launch, "shared", "write")
        assert (write.requests, write.wavefronts, write.conflicts) == (32, 32, 0)
        assert (read.requests, read.wavefronts) == (32, 32 * ways)
        assert read.conflicts == launch.bank_conflicts == 32 * (ways - 1)
        assert read.worst_conflict == launch.worst_conflict == ways
        assert launch.shared_wavefronts == 32 + 32 * ways
        assert launch.sectors_per_request == 4
        assert launch.barriers == 1


def expected_gather(at: Sequence[int], lanes: int, width: int) -> tuple[int, int, int, int]:
    """Sectors, wavefronts, conflicts and worst conflict, from the definitions."""
    active = [lane for lane in range(32) if lanes >> lane & 1]
    bytes_touched = {4 * width * at[lane] + b for lane in active for b in range(4 * width)}
    wavefronts = conflicts = worst = 0
    for part in range(width):
        words = {
            width * at[lane] + w
            for lane in active
            if lane * width // 32 == part
            for w in range(width)
        }
        ways = max((sum(w % 32 == bank for w in words) for bank in range(32)), default=0)
        wavefronts += ways
        conflicts += max(ways - 1, 0)
        worst = max(worst, ways)
    return len({b // 32 for b in bytes_touched}), wavefronts, conflicts, worst


def gathered(at: Sequence[int], lanes: int, width: int) -> tuple[Site, Site]:
    """The global and the shared site of a gather."""
    x, indices = randn(128, width), np.array(at, np.int32)
    y = np.zeros((32, width), np.float32)
    launch = bare_counters(
        f"gather{width}", 1, 32, y, x, indices, lanes, shared_mem=2048 if width == 4 else 0
    )
    active = [lane for lane in range(32) if lanes >> lane & 1]
    np.testing.assert_array_equal(y[active], x[indices[active]])
    line = SOURCE[: SOURCE.index("y[t] = x[a]")].count("\n") + 1
    by_line = {(s.line, s.space, s.access): s for s in launch.sites}
    return by_line[line, "global", "read"], by_line[line + 1, "shared", "read"]


@pytest.mark.parametrize(
    ("width", "step", "ways"),
    [(1, 1, 1), (1, 2, 2), (1, 3, 1), (2, 1, 1), (2, 2, 2), (4, 1, 1), (4, 2, 2), (4, 3, 1)],
)
def test_bank_conflicts_by_width(width: int, step: int, ways: int) -> None:
    _, s = gathered([lane * step for lane in range(32)], 0xFFFFFFFF, width)
    assert (s.requests, s.worst_conflict) == (1, ways)
    assert (s.wavefronts, s.conflicts) == (width * ways, width * (ways - 1))


def test_lanes_that_read_one_shared_word_do_not_conflict() -> None:
    for width in (1, 2, 4):
        _, s = gathered([5] * 32, 0xFFFFFFFF, width)
        assert (s.worst_conflict, s.conflicts) == (1, 0)


@settings(max_examples=60)
@given(
    at=st.lists(st.integers(0, 127), min_size=32, max_size=32),
    lanes=st.integers(1, 2**32 - 1),
    width=st.sampled_from([1, 2, 4]),
)
def test_any_gather(at: list[int], lanes: int, width: int) -> None:
    sectors, wavefronts, conflicts, worst = expected_gather(at, lanes, width)
    in_global, in_shared = gathered(at, lanes, width)
    active = lanes.bit_count()
    for s in (in_global, in_shared):
        assert (s.requests, s.lanes, s.bytes) == (1, active, 4 * width * active)
    assert in_global.sectors == sectors
    assert in_global.coalesced == (in_global.sectors == in_global.ideal_sectors)
    assert (in_shared.wavefronts, in_shared.conflicts) == (wavefronts, conflicts)
    assert in_shared.worst_conflict == worst


def test_the_sides_of_a_branch_are_requests_of_their_own() -> None:
    launch = bare_counters("branch", 1, 32, np.zeros(32, np.float32), randn(32))
    reads = [s for s in launch.sites if s.access == "read"]
    assert [(s.requests, s.lanes, s.sectors) for s in reads] == [(1, 16, 4), (1, 16, 4)]
    assert reads[1].line == reads[0].line + 2
    assert launch.coalesced_share == 0


def test_behind_a_branch_the_lanes_of_a_warp_ask_together() -> None:
    launch = bare_counters("rejoined", 1, 32, np.zeros(32, np.float32), randn(34))
    assert [s.requests for s in launch.sites if s.lanes == 32] == [1, 1]


def test_the_nth_turns_of_a_loop_are_one_request() -> None:
    launch = bare_counters("triangle", 1, 32, np.zeros(32, np.float32), randn(32))
    s = site(launch, "global", "read")
    assert (s.requests, s.lanes, s.sectors) == (32, 32 * 33 // 2, 32)


@pytest.mark.parametrize(("apart", "requests"), [(0, 1), (1, 2), (2, 2), (3, 1)])
def test_executions_on_two_sides_of_a_barrier_are_two_requests(apart: int, requests: int) -> None:
    launch = bare_counters("turns", 1, 32, np.zeros(32, np.float32), randn(32), apart)
    s = site(launch, "global", "read")
    assert (s.requests, s.lanes, s.sectors) == (requests, 32, 4)


def test_barriers_are_those_of_the_block_that_passes_most() -> None:
    launch = bare_counters("barriers", 3, 64, np.zeros(192, np.float32))
    assert launch.barriers == 4
    lines = [(e.kind, e.count) for e in launch.events]
    assert lines == [("barrier", 1 + 2 + 3), ("barrier", 3)]
    assert launch.events_of("barrier") == 9


def test_warp_operations() -> None:
    launch = bare_counters("warps", 2, 64, np.zeros(128, np.float32), randn(128))
    assert launch.shuffles == 4 * 5
    assert [launch.events_of(kind) for kind in ("vote", "reduce", "sync")] == [4, 4, 4]
    assert launch.barriers == 0


def test_atomics() -> None:
    total, x = np.zeros(1, np.int32), np.arange(100, dtype=np.int32)
    launch = bare_counters("atomics", 2, 64, total, x, 100)
    assert total[0] == x.sum()
    assert launch.atomics == 100 + 2
    s = site(launch, "global", "atomic")
    assert (s.requests, s.lanes, s.bytes, s.sectors) == (2, 2, 8, 2)
    s = site(launch, "shared", "atomic")
    assert (s.requests, s.lanes, s.conflicts) == (4, 100, 0)
    assert (launch.read_bytes, launch.written_bytes, launch.written_footprint) == (400, 0, 0)


def test_what_the_source_reads_twice_counts_twice() -> None:
    launch = bare_counters("twice", 1, 32, np.zeros(32, np.float32), randn(32))
    assert site(launch, "global", "read").requests == 2
    assert launch.read_footprint == 128
    launch = bare_counters("loop_load", 1, 32, np.zeros(32, np.float32), randn(32))
    assert site(launch, "global", "read").requests == 5


def test_registers_and_constants_are_not_memory() -> None:
    launch = bare_counters("registers", 1, 32, np.zeros(32, np.float32), randn(32), 3)
    assert {(s.space, s.access, s.bytes) for s in launch.sites} == {
        ("global", "read", 4 * 128),
        ("global", "write", 128),
    }


def test_structures_go_in_pieces() -> None:
    wide, three = randn(32, 8), randn(32, 3)
    launch = bare_counters("structures", 1, 32, np.zeros_like(wide), wide, np.zeros_like(three),
                           three)  # fmt: skip
    reads = [s for s in launch.sites if s.access == "read"]
    assert [(s.requests, s.bytes, s.bytes_per_lane) for s in reads] == [(2, 1024, 16), (3, 384, 4)]
    y = np.zeros(64, np.float32)
    launch = bare_counters("copied", 1, 32, y, randn(64))
    np.testing.assert_array_equal(y, randn(64))
    assert [(s.requests, s.bytes) for s in launch.sites] == [(1, 256), (1, 256)]


def test_instances_of_a_line_are_one_site() -> None:
    launch = bare_counters("instances", 1, 32, np.zeros(32, np.float32), randn(96))
    s = site(launch, "global", "read")
    assert (s.requests, s.lanes, s.sectors) == (3, 96, 12)
    assert s.file == "kernel.cu"
    assert "nth(const" in SOURCE.split("\n")[s.line - 1]


def test_a_pointer_to_either_memory_is_two_sites() -> None:
    launch = bare_counters("either", 1, 32, np.zeros(32, np.float32), randn(32))
    assert site(launch, "global", "read").lanes == 16
    assert site(launch, "shared", "read").lanes == 16


def test_matrix_instructions_and_asynchronous_copies() -> None:
    launch = bare_counters("matrices", 1, 32, np.zeros(32, np.float32), randn(128))
    s = site(launch, "global", "read")
    assert (s.requests, s.bytes, s.sectors) == (1, 512, 16)
    for access in ("write", "read"):  # the copy, the matrix load
        s = site(launch, "shared", access)
        assert (s.requests, s.bytes, s.wavefronts, s.conflicts) == (1, 512, 4, 0)
    assert launch.operations == {"mma": 2 * 16 * 8 * 8}
    assert launch.flops == launch.matrix_flops == 2 * 16 * 8 * 8
