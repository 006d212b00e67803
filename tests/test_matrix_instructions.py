"""Tensor-core building blocks under the emulator: matrix instructions, asynchronous copies."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gpucnn import emulator, kernel
from tests.support import assert_close, randn, tf32

pytestmark = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)


def compiled(name: str, body: str) -> emulator.RawKernel:
    """A kernel that may use the headers of the tensor-core kernels."""
    headers = [(kernel.kernel_folder() / h).read_text() for h in ("mma.cuh", "async_copy.cuh")]
    return emulator.RawKernel("\n".join(headers) + body, name)


FRAGMENTS = r"""
extern "C" __global__ void fragments(float* d, const float* a, const float* b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
    const unsigned ra[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]),
                            to_tf32(a[g * 8 + t + 4]), to_tf32(a[(g + 8) * 8 + t + 4])};
    const unsigned rb[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
    mma_tf32(sums, ra, rb);
    for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
}
"""


def test_a_warp_multiplies_a_tile() -> None:
    a, b, d = randn(16, 8), randn(8, 8, seed=1), randn(16, 8, seed=2)
    expected = d + tf32(a).astype(np.float64) @ tf32(b)
    compiled("fragments", FRAGMENTS)((1,), (32,), (d, a, b))
    assert_close(d, expected, "tensor core")


# Shape: k, those that are added at once, exponent of the smallest normal operand.
SHAPES = {
    "tf32_16x8x8": (8, 4, -126),
    "bf16_16x8x16": (16, 8, -126),
    "f16_16x8x16": (16, 8, -14),
    "f16_16x8x8": (8, 8, -14),
}


def operand(shape: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 values cut to the shape's format -> (words as registers hold them, the values)."""
    if shape.startswith("f16"):
        halves = values.astype(np.float16)
        return halves.view(np.uint32), halves.astype(np.float32)
    words = values.view(np.uint32)
    if shape.startswith("bf16"):
        halves = (words >> 16).astype(np.uint16)
        return halves.view(np.uint32), (halves.astype(np.uint32) << 16).view(np.float32)
    return words, (words & 0xFFFFE000).view(np.float32)  # the low bits are not read


def multiplied(shape: str, d: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """d + a bᵀ by one instruction. Halves of the k, rows g and g + 8, follow each other."""
    width = a.shape[1]
    body = f"""
    extern "C" __global__ void multiplied(float* d, const unsigned* a, const unsigned* b) {{
        const int g = threadIdx.x / 4, t = threadIdx.x % 4;
        float sums[4];
        for (int i = 0; i < 4; ++i) sums[i] = d[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
        unsigned ra[4] = {{0, 0, 0, 0}}, rb[2] = {{0, 0}};
        for (int half = 0; half < {width // 4}; ++half) {{
            ra[2 * half] = a[g * {width} + half * 4 + t];
            ra[2 * half + 1] = a[(g + 8) * {width} + half * 4 + t];
            rb[half] = b[g * {width} + half * 4 + t];
        }}
        gpucnn_matrix_multiply(gpucnn_{shape}, sums, ra, rb);
        for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
    }}"""
    d = d.copy()
    compiled("multiplied", body)((1,), (32,), (d, a, b))
    return d


@pytest.mark.parametrize("shape", SHAPES)
def test_a_warp_multiplies_tiles_of_every_format(shape: str) -> None:
    K, d = SHAPES[shape][0], randn(16, 8, seed=2)
    (a, a_values), (b, b_values) = (
        operand(shape, randn(rows, K, seed=seed)) for rows, seed in ((16, 0), (8, 1))
    )
    expected = d + a_values.astype(np.float64) @ b_values.T
    assert_close(multiplied(shape, d, a, b), expected, "tensor core")


def exponent(value: float, smallest: int) -> int:
    return max(math.frexp(value)[1] - 1, smallest)


def cut_off(exact: Fraction) -> float:
    """The next float32 toward zero; infinity from 2¹²⁸ on."""
    if not exact:
        return 0.0
    top = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    top -= abs(exact) < Fraction(2) ** top
    unit = Fraction(2) ** (max(top, -126) - 23)
    kept = int(exact / unit) * unit
    return math.copysign(math.inf, exact) if abs(kept) >= 2**128 else float(kept)


def a100(d: float, a: list[float], b: list[float], at_once: int, smallest: int) -> float:
    """d + Σ a b as an A100 adds, in whole numbers of the last bit that it keeps."""
    for first in range(0, len(a), at_once):
        if math.isinf(d):
            break
        summands = [(Fraction(d), exponent(d, -126) if d else -126)]
        for x, y in zip(a[first : first + at_once], b[first : first + at_once], strict=True):
            if x and y:
                added = exponent(x, smallest) + exponent(y, smallest)
                summands.append((Fraction(x) * Fraction(y), added))
        last_bit = Fraction(2) ** (max(e for _, e in summands) - 24)
        d = cut_off(sum(int(value / last_bit) for value, _ in summands) * last_bit)
    return d


@pytest.mark.parametrize("draw", ["near", "far", "tiny", "huge", "cancelling"])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_are_cut_off_as_on_an_a100(shape: str, draw: str) -> None:
    """To the bit, against whole numbers: 24 bits below the largest summand, toward zero."""
    K, at_once, smallest = SHAPES[shape]
    half = smallest == -14
    spread = {"near": 1, "far": 6 if half else 30}.get(draw, 2)
    shift = {"tiny": -18 if half else -75, "huge": 10 if half else 62}.get(draw, 0)
    rng = np.random.default_rng(0)

    def drawn(*size: int, shift: int) -> np.ndarray:
        exponents = rng.integers(-spread, spread + 1, size) + shift
        values = np.ldexp(rng.standard_normal(size), exponents)
        return np.where(rng.random(size) < 0.1, 0, values).astype(np.float32)

    (a_words, a), (b_words, b) = (operand(shape, drawn(rows, K, shift=shift)) for rows in (16, 8))
    d = drawn(16, 8, shift=2 * shift)
    if draw == "cancelling":
        d = (-(a.astype(np.float64) @ b.T)).astype(np.float32)
    expected: Any = [
        [a100(float(d[m, n]), a[m].tolist(), b[n].tolist(), at_once, smallest) for n in range(8)]
        for m in range(16)
    ]
    expected = np.array(expected, np.float32)
    assert draw != "huge" or half or np.isinf(expected).any()
    assert draw != "tiny" or half or (np.abs(expected[expected != 0]) < 2.0**-126).any()
    np.testing.assert_array_equal(multiplied(shape, d, a_words, b_words), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_infinity_and_nan_in_a_matrix_instruction(shape: str) -> None:
    """Whatever is added to them; their neighbours are what they were."""
    K = SHAPES[shape][0]
    a, b, d = randn(16, K), np.ones((8, K), np.float32), randn(16, 8, seed=2)
    plain = multiplied(shape, d, operand(shape, a)[0], operand(shape, b)[0])
    a[1, 2], a[3, 0], a[5, 1], a[5, K - 1] = np.inf, np.nan, -np.inf, np.inf
    a[7, 3], b[4, 3], d[9, 6], d[11, 2] = np.inf, 0, -np.inf, np.nan
    (a_words, a), (b_words, b) = operand(shape, a), operand(shape, b)
    actual = multiplied(shape, d, a_words, b_words)
    with np.errstate(invalid="ignore"):
        expected = d + a @ b.T
    special = ~np.isfinite(expected)
    assert special.sum() > 4 * 8
    np.testing.assert_array_equal(actual[special], expected[special])
    untouched = np.setdiff1d(np.arange(8), [4])
    kept = ~special[:, untouched]
    np.testing.assert_array_equal(actual[:, untouched][kept], plain[:, untouched][kept])


@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_from_shared_memory(transposed: bool) -> None:
    body = f"""
    extern "C" __global__ void load(unsigned* y, const uint4* x) {{
        __shared__ uint4 rows[32];
        rows[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        unsigned r[4];
        gpucnn_matrix_load(r, rows + threadIdx.x, {int(transposed)});
        for (int j = 0; j < 4; ++j) y[j * 32 + threadIdx.x] = r[j];
    }}"""
    halves = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    y = np.zeros(128, np.uint32)
    compiled("load", body)((1,), (32,), (y, halves.view(np.uint32)))
    matrices = halves.transpose(0, 2, 1) if transposed else halves
    expected = np.ascontiguousarray(matrices).view(np.uint32).reshape(-1)
    np.testing.assert_array_equal(y, expected)


def test_a_matrix_instruction_takes_a_full_warp() -> None:
    d, a, b = randn(16, 8), randn(16, 8), randn(8, 8)
    with pytest.raises(emulator.KernelFault, match="full warp"):
        compiled("fragments", FRAGMENTS)((1,), (16,), (d, a, b))


def test_rounding_to_tf32() -> None:
    """To nearest, halves away from zero; NaN and infinity stay."""
    body = """
    extern "C" __global__ void rounded(float* y, const float* x, int n) {
        for (int i = 0; i < n; ++i) y[i] = __uint_as_float(to_tf32(x[i]));
    }"""
    half = np.float32(1 + 2**-11)
    x = np.concatenate(
        [randn(64), [half, -half, np.nextafter(half, 0), 3e38, 0.0, np.inf, -np.inf]]
    )
    x = x.astype(np.float32)
    y = np.zeros_like(x)
    compiled("rounded", body)((1,), (1,), (y, x, x.size))
    np.testing.assert_array_equal(y[:-2], tf32(x[:-2]))
    assert np.isinf(y[-2:]).all()
    nan, out = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32), np.zeros(2, "f4")
    compiled("rounded", body)((1,), (1,), (out, nan, 2))
    assert np.isnan(out).all()


COPIES = r"""
#ifndef WAIT
#define WAIT wait_for_copies<0>()
#endif
#ifndef BARRIER
#define BARRIER __syncthreads()
#endif
extern "C" __global__ void copies(float* y, const float* x, int n) {
    __shared__ __align__(16) float tile[64];
    const int i = threadIdx.x;
    copy_async<4>(tile + i, x + i, i < n);
    commit_copies();
    WAIT;
    BARRIER;
    y[i] = tile[63 - i];
}
"""


def test_a_copy_lands_at_its_wait() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    compiled("copies", COPIES)((1,), (64,), (y, x, 50))
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 50, x, 0)[::-1])


def test_reading_before_the_wait_gives_nonsense() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    compiled("copies", "#define WAIT\n" + COPIES)((1,), (64,), (y, x, 64))
    assert np.isnan(y).all()


def test_a_copy_without_a_barrier_is_a_race() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="race"):
        compiled("copies", "#define BARRIER\n" + COPIES)((1,), (64,), (y, x, 64))


def test_writing_over_a_copy_under_way_is_a_race() -> None:
    """The barrier comes before the wait: the landing is what races."""
    swapped = "#define WAIT __syncthreads()\n#define BARRIER wait_for_copies<0>()\n" + COPIES
    x, y = randn(64), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="race"):
        compiled("copies", swapped)((1,), (64,), (y, x, 64))


def test_a_copy_outside_an_array_is_found() -> None:
    x, y = randn(60), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="out-of-bounds"):
        compiled("copies", COPIES)((1,), (64,), (y, x, 64))


@pytest.mark.parametrize("inside", [0, 1])
def test_a_copy_from_a_misaligned_address_is_found(inside: int) -> None:
    """Also where nothing is read."""
    body = """
    extern "C" __global__ void shifted(float* y, const float* x, int inside) {
        __shared__ __align__(16) float tile[128];
        copy_async<16>(tile + threadIdx.x * 4, x + threadIdx.x * 4 + 1, inside);
        commit_copies();
        wait_for_copies<0>();
        for (int i = 0; i < 4; ++i) y[threadIdx.x * 4 + i] = tile[threadIdx.x * 4 + i];
    }"""
    x, y = randn(132), np.zeros(128, np.float32)
    with pytest.raises(emulator.KernelFault, match="misaligned"):
        compiled("shifted", body)((1,), (32,), (y, x, inside))
