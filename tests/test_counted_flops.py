"""The floating-point operations counted are those that the source asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from gpucnn.emulator import flops
from gpucnn.ops.conv_geometry import conv_geometry
from gpucnn.primitive import PRIMITIVES
from gpucnn.xray.counters import LaunchCounters, count
from tests.support import randn

pytestmark = [
    pytest.mark.emulated,
    pytest.mark.skipif(not flops.available(), reason="counted builds need an x86-64 CPU"),
]

ARITHMETIC = r"""
#include <cuda_fp16.h>
#define GLOBAL extern "C" __global__ void
#define I (blockIdx.x * blockDim.x + threadIdx.x)
GLOBAL axpy_fma(float* y, const float* x, float a, int n) { if (I < n) y[I] = fmaf(a, x[I], y[I]); }
GLOBAL axpy(float* y, const float* x, float a, int n) { if (I < n) y[I] += a * x[I]; }
GLOBAL matmul(float* c, const float* a, const float* b, int M, int N, int K) {
    __shared__ float ta[8][8], tb[8][8];
    const int i = blockIdx.y * 8 + threadIdx.y, j = blockIdx.x * 8 + threadIdx.x;
    float sum = 0.0f;
    for (int k0 = 0; k0 < K; k0 += 8) {
        const int ka = k0 + threadIdx.x, kb = k0 + threadIdx.y;
        ta[threadIdx.y][threadIdx.x] = i < M && ka < K ? a[i * K + ka] : 0.0f;
        tb[threadIdx.y][threadIdx.x] = kb < K && j < N ? b[kb * N + j] : 0.0f;
        __syncthreads();
        for (int k = 0; k < 8; ++k) sum = fmaf(ta[threadIdx.y][k], tb[k][threadIdx.x], sum);
        __syncthreads();
    }
    if (i < M && j < N) c[i * N + j] = sum;
}
#define MAP(name, expression) \
    GLOBAL name(float* y, const float* x) { const float v = x[I]; y[I] = expression; }
MAP(negate, -v)
MAP(absolute, fabsf(v))
MAP(rounded, floorf(v))
MAP(ceiling, ceilf(v))
MAP(nearest, rintf(v))
MAP(round_half, roundf(v))
MAP(truncated, (float)(int)v)
MAP(converted, __uint2float_rn(__float2uint_rn(v)))
MAP(bits, __uint_as_float(__float_as_uint(v) & 0x7fffffffu))
MAP(half_way, __half2float(__float2half(v)))
MAP(chosen, v > 0.0f ? v : 0.0f)
MAP(between, fminf(fmaxf(v, 0.0f), 6.0f))
MAP(not_a_number, isnan(v) ? 0.0f : v)
MAP(root, sqrtf(v))
MAP(rroot, rsqrtf(v))
MAP(quotient, 1.0f / v)
MAP(fast, __fdividef(__expf(v), v))
MAP(functions, expf(v) + tanhf(v) * logf(v))
MAP(sine_and_cosine, sinf(v) * cosf(v))
MAP(sigmoid, 1.0f / (1.0f + expf(-v)))
MAP(half_sum, __half2float(__hadd(__float2half(v), __float2half(v))))
MAP(wide, (float)((double)v * v + 1.0))
GLOBAL skipped(float* y, const float* x) {
    float v = x[I];
    if (I % 4 == 0) v *= 3.0f;
    y[I] = v;
}
GLOBAL loops(float* y, const float* x) {
    float sum = 0.0f;
    for (int i = 0; i < I; ++i) sum += 2.5f * x[i];
    y[I] = sum;
}
"""


def arithmetic(name: str, grid: tuple[int, ...], block: tuple[int, ...], *args: Any) -> Any:
    with count() as counted:
        emulator.RawKernel(ARITHMETIC, name)(grid, block, args)
    return counted.launches[0]


def test_flops_of_axpy() -> None:
    for kernel, operations in (("axpy_fma", {"fma": 1000}), ("axpy", {"mul": 1000, "add": 1000})):
        y, x = randn(1000, seed=1), randn(1000)
        launch = arithmetic(kernel, (8,), (128,), y, x, 2.5, 1000)
        assert launch.operations == operations
        assert launch.flops == 2000
        (line,) = {(a.file, a.line) for a in launch.arithmetic}
        assert f"{kernel}(" in ARITHMETIC.split("\n")[line[1] - 1]


def test_flops_of_a_matrix_product_are_those_of_its_tiles() -> None:
    M, N, K = 13, 9, 17
    a, b = randn(M, K), randn(K, N)
    c = np.zeros((M, N), np.float32)
    launch = arithmetic("matmul", (2, 2), (8, 8), c, a, b, M, N, K)
    assert launch.flops == 2 * 16 * 16 * 24
    assert launch.operations == {"fma": 16 * 16 * 24}
    assert launch.barriers == 6


@pytest.mark.parametrize(
    ("kernel", "operations"),
    [
        ("negate", {}),
        ("absolute", {}),
        ("rounded", {}),
        ("ceiling", {}),
        ("nearest", {}),
        ("round_half", {}),
        ("truncated", {}),
        ("converted", {}),
        ("bits", {}),
        ("half_way", {}),
        ("chosen", {"compare": 1}),
        ("between", {"compare": 2}),
        ("not_a_number", {"compare": 1}),
        ("root", {"sqrt": 1}),
        ("rroot", {"rsqrt": 1}),
        ("quotient", {"div": 1}),
        ("fast", {"div": 1, "exp": 1}),
        ("functions", {"add": 1, "mul": 1, "exp": 1, "tanh": 1, "log": 1}),
        ("sigmoid", {"add": 1, "div": 1, "exp": 1}),
        ("half_sum", {"add": 1}),
        ("wide", {"add": 1, "mul": 1}),
    ],
)
def test_what_is_an_operation(kernel: str, operations: dict[str, int]) -> None:
    x = np.abs(randn(64)) + 0.5
    launch = arithmetic(kernel, (2,), (32,), np.zeros_like(x), x)
    assert launch.operations == {name: 64 * times for name, times in operations.items()}


def test_sine_and_cosine_of_one_angle_are_two() -> None:
    launch = arithmetic("sine_and_cosine", (1,), (32,), np.zeros(32, np.float32), randn(32))
    assert launch.flops == 3 * 32


def test_lanes_that_skip_an_operation_do_not_execute_it() -> None:
    launch = arithmetic("skipped", (2,), (32,), np.zeros(64, np.float32), randn(64))
    assert launch.operations == {"mul": 16}
    launch = arithmetic("loops", (1,), (32,), np.zeros(32, np.float32), randn(32))
    assert launch.operations == {"mul": 496, "add": 496}


def counted_call(name: str, *args: Any, variant: str = "") -> list[LaunchCounters]:
    """The launches of one call of a primitive."""
    with count() as counted:
        PRIMITIVES[name].launchers[variant](*args)
    return counted.launches


def test_flops_of_relu_are_its_comparisons() -> None:
    (launch,) = counted_call("relu_forward", randn(1003))
    assert launch.operations == {"compare": 1004}  # the last thread computes four as well
    assert launch.kernel == "relu_forward"
    assert launch.spec is not None
    assert launch.spec.family == "activation"
    assert {s.file for s in launch.sites} == {"kernels/common.cuh", "kernels/storage.cuh"}


CONV_ARRAYS = (randn(2, 5, 7, 3), randn(4, 3, 3, 3), randn(4))
CONV = (*CONV_ARRAYS, conv_geometry(2, *CONV_ARRAYS, stride=1, padding=1, dilation=1, groups=1))


def conv_products(H: int, W: int) -> int:
    """Pairs of an output pixel and a tap inside the image, for 3 x 3 taps and padding 1."""
    return sum(0 <= i + k - 1 < H for i in range(H) for k in range(3)) * sum(
        0 <= i + k - 1 < W for i in range(W) for k in range(3)
    )


def test_flops_of_a_naive_convolution_are_those_of_the_formula() -> None:
    (launch,) = counted_call("conv2d_forward", *CONV, variant="naive")
    products = 2 * 4 * 3 * conv_products(5, 7)
    assert launch.operations == {"fma": products}
    assert launch.read_bytes == 4 * (2 * products + 2 * 5 * 7 * 4)
    assert launch.written_bytes == 2 * 5 * 7 * 4 * 4


def test_flops_of_a_tiled_convolution_are_those_of_whole_tiles() -> None:
    (launch,) = counted_call("conv2d_forward", *CONV, variant="tiled")
    assert launch.spec is not None
    tile_gn = dict(launch.spec.macros)["TILE_GN"]
    slabs, blocks = 2, launch.grid[0] * launch.grid[1]
    assert launch.operations == {
        "fma": blocks * slabs * 16 * (1024 // tile_gn) * tile_gn,
        "add": 2 * 5 * 7 * 4,
    }
    assert launch.barriers == 2 * slabs
    assert launch.written_bytes == 2 * 5 * 7 * 4 * 4
