"""Half, bfloat16 and the device's functions of numbers compute what the standards say."""

from __future__ import annotations

from functools import partial
from math import erf
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator
from tests.test_emulator_kernels import random
from tests.test_emulator_kernels import run as run_kernel

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)

SOURCE = r"""
#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <math_constants.h>
#define GLOBAL extern "C" __global__ void

GLOBAL halves(__half* h, float* back, const float* x, __nv_bfloat16* b, float* b_back, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half_rn(x[i]);
    back[i] = __half2float(__float2half(x[i]));
    b[i] = __float2bfloat16(x[i]);
    b_back[i] = __bfloat162float(__float2bfloat16_rn(x[i]));
}
GLOBAL half_pairs(__half2* y, const __half2* x) {
    const float2 f = __half22float2(x[threadIdx.x]);
    y[threadIdx.x] = __hadd2(__floats2half2_rn(f.y, f.x), __float2half2_rn(1.0f));
}
GLOBAL widen(float* y, const __half* x) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    y[i] = __half2float(x[i]);
}

GLOBAL math(float* y, const float* x, int* z) {
    const float v = x[threadIdx.x];
    float* row = y + threadIdx.x * 12;
    row[0] = __expf(v), row[1] = rsqrtf(v), row[2] = fmaf(v, v, 1.0f), row[3] = __fdividef(1.0f, v);
    row[4] = erff(v), row[5] = log1pf(v), row[6] = expm1f(v), row[7] = tanhf(v);
    row[8] = max(v, CUDART_NAN_F), row[9] = min(v, CUDART_INF_F), row[10] = __saturatef(v);
    row[11] = isnan(v) || isinf(v) ? CUDART_NAN_F : __frcp_rn(v);
    int* bits = z + threadIdx.x * 8;
    bits[0] = __float_as_int(v), bits[1] = __clz(threadIdx.x), bits[2] = __popc(threadIdx.x);
    bits[3] = __ffs(threadIdx.x), bits[4] = __umulhi(0x80000000u, threadIdx.x * 8);
    bits[5] = __mul24(threadIdx.x, -3), bits[6] = max(3, (int)threadIdx.x), bits[7] = warpSize;
}
"""

run = partial(run_kernel, source=SOURCE)


def bfloat16_bits(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Round to nearest even, bit by bit, in exact integers."""
    out = []
    for bits in x.view(np.uint32).tolist():
        if bits & 0x7FFFFFFF > 0x7F800000:
            out.append(0x7FFF)
            continue
        upper, lower = bits >> 16, bits & 0xFFFF
        out.append(upper + (lower > 0x8000 or (lower == 0x8000 and upper & 1 == 1)))
    return np.array(out, np.uint16)


def test_half_and_bfloat16_round_as_the_standard_says() -> None:
    bits = np.random.default_rng(4).integers(0, 2**32, 4000, np.uint32)
    edges = np.float32([0, -0.0, 65504, 65519.9, 65520, 1e9, -1e9, 6e-8, 2.9e-8, 3e-8, 2**-14,
                        np.inf, -np.inf, 1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8,
                        1 + 3 * 2**-8])  # fmt: skip
    small = random(4000) * np.float32(10.0) ** np.linspace(-9, 5, 4000, dtype=np.float32)
    x = np.concatenate([bits.view(np.float32), edges, small])
    n = x.size
    h, b = emulator.empty(n, np.float16), emulator.empty(n, np.uint16)
    back, b_back = emulator.empty(n), emulator.empty(n)
    run("halves", (-(-n // 256),), (256,), h, back, x, b, b_back, n)
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    nan = np.isnan(x)
    np.testing.assert_array_equal(np.isnan(h), nan)
    np.testing.assert_array_equal(h.view(np.uint16)[~nan], expected.view(np.uint16)[~nan])
    np.testing.assert_array_equal(back, expected.astype(np.float32))
    np.testing.assert_array_equal(b, bfloat16_bits(x))
    np.testing.assert_array_equal(b_back.view(np.uint32), b.astype(np.uint32) << 16)


def test_every_half_widens_exactly() -> None:
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    y = emulator.empty(65536)
    run("widen", (256,), (256,), y, x)
    np.testing.assert_array_equal(y, x.astype(np.float32))


def test_half_pairs() -> None:
    x = random(32, 2).astype(np.float16)
    y = emulator.empty((32, 2), np.float16)
    run("half_pairs", (1,), (32,), y, x)
    np.testing.assert_array_equal(y, x[:, ::-1] + np.float16(1))


def test_device_math() -> None:
    x = np.linspace(0.1, 3, 32, dtype=np.float32)
    y, z = emulator.empty((32, 12)), emulator.empty((32, 8), np.int32)
    run("math", (1,), (32,), y, x, z)
    one = np.float32(1)
    expected = [np.exp(x), 1 / np.sqrt(x), x * x + one, one / x,
                np.array([erf(v) for v in x]), np.log1p(x), np.expm1(x), np.tanh(x), x, x,
                np.minimum(x, 1), one / x]  # fmt: skip
    np.testing.assert_allclose(y, np.stack(expected, axis=1), rtol=3e-7)
    i = np.arange(32)
    assert (z[:, 0] == x.view(np.int32)).all()
    assert z[:, 1].tolist() == [32 - int(k).bit_length() for k in i]
    assert z[:, 2].tolist() == [int(k).bit_count() for k in i]
    assert z[:, 3].tolist() == [(int(k) & -int(k)).bit_length() for k in i]
    assert (z[:, 4] == i * 4).all()
    assert (z[:, 5] == -3 * i).all()
    assert (z[:, 6] == np.maximum(3, i)).all()
    assert (z[:, 7] == 32).all()
