"""Tensor-core building blocks under the emulator, and convolutions in TF32."""

from __future__ import annotations

import types

import numpy as np
import pytest

import gpucnn
from bench.cases import CONV2D, Conv2dCase
from gpucnn import emulator, kernel
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, REGISTER_TILED, Rung, _limits
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.precision import _has_tf32, precision_of
from tests.support import assert_close, gradients, on, randn

emulated = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)


def compiled(name: str, body: str) -> emulator.RawKernel:
    """A kernel that may use the headers of the tensor-core kernels."""
    headers = [(kernel.kernel_folder() / h).read_text() for h in ("mma.cuh", "async_copy.cuh")]
    return emulator.RawKernel("\n".join(headers) + body, name)


def tf32(a: np.ndarray) -> np.ndarray:
    """The nearest numbers with 10 bits of mantissa, halves away from zero, by arithmetic."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    rounded = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5)
    return np.ldexp(rounded, exponent - 11).astype(np.float32)


def bf16(a: np.ndarray) -> np.ndarray:
    """The nearest numbers with 7 bits of mantissa, halves to even, by arithmetic."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 2**8), exponent - 8).astype(np.float32)


def fp16(a: np.ndarray) -> np.ndarray:
    """The nearest half-precision numbers."""
    return a.astype(np.float16).astype(np.float32)


ROUNDED = {"tf32": tf32, "bf16": bf16, "fp16": fp16}

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


@emulated
def test_a_warp_multiplies_a_tile() -> None:
    a, b, d = randn(16, 8), randn(8, 8, seed=1), randn(16, 8, seed=2)
    expected = d + tf32(a).astype(np.float64) @ tf32(b)
    compiled("fragments", FRAGMENTS)((1,), (32,), (d, a, b))
    assert_close(d, expected, "float32")


@emulated
@pytest.mark.parametrize(
    ("shape", "K"), [("bf16_16x8x16", 16), ("f16_16x8x16", 16), ("f16_16x8x8", 8)]
)
def test_a_warp_multiplies_16_bit_tiles(shape: str, K: int) -> None:
    """Two consecutive k share a register; halves of the k, rows g and g + 8, follow each other."""
    body = f"""
    extern "C" __global__ void narrow(float* d, const unsigned* a, const unsigned* b) {{
        const int g = threadIdx.x / 4, t = threadIdx.x % 4;
        float sums[4] = {{0, 0, 0, 0}};
        unsigned ra[4] = {{0, 0, 0, 0}}, rb[2] = {{0, 0}};
        for (int half = 0; half < {K // 8}; ++half) {{
            ra[2 * half] = a[g * {K // 2} + half * 4 + t];
            ra[2 * half + 1] = a[(g + 8) * {K // 2} + half * 4 + t];
            rb[half] = b[g * {K // 2} + half * 4 + t];
        }}
        gpucnn_matrix_multiply(gpucnn_{shape}, sums, ra, rb);
        for (int i = 0; i < 4; ++i) d[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = sums[i];
    }}"""
    a, b, d = randn(16, K), randn(8, K, seed=1), np.zeros((16, 8), np.float32)
    if shape.startswith("bf16"):
        words = [(v.view(np.uint32) >> 16).astype(np.uint16) for v in (a, b)]
        values = [(w.astype(np.uint32) << 16).view(np.float32) for w in words]
    else:
        words = [v.astype(np.float16).view(np.uint16) for v in (a, b)]
        values = [w.view(np.float16).astype(np.float32) for w in words]
    packed = [np.ascontiguousarray(w).view(np.uint32) for w in words]
    compiled("narrow", body)((1,), (32,), (d, *packed))
    assert_close(d, values[0].astype(np.float64) @ values[1].T, "float32")


@emulated
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


@emulated
def test_a_matrix_instruction_takes_a_full_warp() -> None:
    d, a, b = randn(16, 8), randn(16, 8), randn(8, 8)
    with pytest.raises(emulator.KernelFault, match="full warp"):
        compiled("fragments", FRAGMENTS)((1,), (16,), (d, a, b))


@emulated
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


@emulated
def test_a_copy_lands_at_its_wait() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    compiled("copies", COPIES)((1,), (64,), (y, x, 50))
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 50, x, 0)[::-1])


@emulated
def test_reading_before_the_wait_gives_nonsense() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    compiled("copies", "#define WAIT\n" + COPIES)((1,), (64,), (y, x, 64))
    assert np.isnan(y).all()


@emulated
def test_a_copy_without_a_barrier_is_a_race() -> None:
    x, y = randn(64), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="race"):
        compiled("copies", "#define BARRIER\n" + COPIES)((1,), (64,), (y, x, 64))


@emulated
def test_writing_over_a_copy_under_way_is_a_race() -> None:
    """The barrier comes before the wait: the landing is what races."""
    swapped = "#define WAIT __syncthreads()\n#define BARRIER wait_for_copies<0>()\n" + COPIES
    x, y = randn(64), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="race"):
        compiled("copies", swapped)((1,), (64,), (y, x, 64))


@emulated
def test_a_copy_outside_an_array_is_found() -> None:
    x, y = randn(60), np.zeros(64, np.float32)
    with pytest.raises(emulator.KernelFault, match="out-of-bounds"):
        compiled("copies", COPIES)((1,), (64,), (y, x, 64))


@emulated
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


def check_passes(device: str, x: np.ndarray, w: np.ndarray, s: ConvGeometry, mode: str) -> None:
    """All three passes against float64 products of operands rounded by NumPy."""
    rounded = ROUNDED.get(mode, lambda a: a)
    dy = randn(*s.y_shape, seed=2)
    for primitive, operands, terms in (
        (conv2d_forward, (x, w, None), s.K),
        (conv2d_data_gradient, (dy, w), s.K // s.CG * s.OCG),
        (conv2d_weight_gradient, (dy, x), s.outputs),
    ):
        wide = [None if a is None else rounded(a).astype(np.float64) for a in operands]
        actual = primitive.on(device)(*on(device, *operands), s)
        assert_close(to_host(actual), primitive(*wide, s), "float32", terms, primitive.name)


@pytest.mark.parametrize("mode", ROUNDED)
@pytest.mark.parametrize("case", [c for c in CONV2D if c.weight[3] > 2], ids=str)
def test_operands_are_rounded_and_nothing_else(
    case: Conv2dCase, mode: str, kernel_device: str
) -> None:
    x, w = randn(*case.x), randn(*case.weight, seed=1)
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **case.options}
    s = conv2d_geometry(x, w, None, *options.values())
    with gpucnn.use_variant(conv2d="implicit_gemm"), gpucnn.precision(mode):
        check_passes(kernel_device, x, w, s, mode)


@pytest.mark.parametrize(
    ("rung", "index", "mode"),
    [
        *((REGISTER_TILED, i, "fp32") for i in range(5)),
        *((IMPLICIT_GEMM, i, "fp32") for i in range(1, 6)),
        *((IMPLICIT_GEMM, i, mode) for i in range(6) for mode in ROUNDED),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_every_tile(
    rung: Rung, index: int, mode: str, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that fill no tile, more than one tile of both, several slabs of k."""
    monkeypatch.setattr(rung, "tile", lambda *_: index)
    x, w = randn(1, 17, 18, 8), randn(rung.tiles[index].columns + 4, 3, 2, 8, seed=1)
    s = conv2d_geometry(x, w, None, (1, 2), (1, 0), 1, 1)
    with gpucnn.use_variant(conv2d=rung.name), gpucnn.precision(mode):
        check_passes(kernel_device, x, w, s, mode)


def test_the_widest_tile_that_fits_is_chosen() -> None:
    s = conv2d_geometry(randn(1, 8, 8, 64), randn(64, 1, 1, 64), None, 1, 0, 1, 1)
    tile = IMPLICIT_GEMM.tile
    plenty, little, many = 227 * 1024, 99 * 1024, 1 << 20
    assert tile(many, 128, s, "tf32", 4, plenty, True) == 0
    assert tile(many, 128, s, "fp32", 4, plenty, True) == 1  # three terms need more registers
    assert tile(many, 128, s, "tf32", 4, little, True) == 1  # the widest takes 144 KiB
    assert tile(many, 128, s, "tf32", 4, little, False) == 2
    assert tile(many, 64, s, "tf32", 4, plenty, True) == 2
    assert tile(1 << 10, 128, s, "tf32", 4, plenty, True) == 3  # few blocks
    assert tile(many, 32, s, "tf32", 4, plenty, True) == 4
    assert tile(many, 10, s, "tf32", 4, plenty, True) == 5


@pytest.mark.parametrize("kib", [64, 99, 163, 227])
@pytest.mark.parametrize("by_rows", [False, True])
def test_a_tile_fits_the_shared_memory_of_every_gpu(kib: int, by_rows: bool) -> None:
    """Of compute capability 7.5; 8.6, 8.9 and 12.0; 8.0; 9.0 and 10.0: ring and static arrays."""
    s = conv2d_geometry(randn(1, 8, 8, 64), randn(64, 1, 1, 64), None, 1, 0, 1, 1)
    for rung in (REGISTER_TILED, IMPLICIT_GEMM):
        for columns in (1, 16, 17, 32, 33, 64, 65, 128):
            for rows in (1, 1 << 20):
                mode = "fp16" if kib == 64 else "tf32"
                tile = rung.tiles[rung.tile(rows, columns, s, mode, 4, kib * 1024, by_rows)]
                places = 16 * (tile.rows if by_rows else 2 * 32)
                assert tile.ring(by_rows) + places <= kib * 1024, (rung.name, columns, str(tile))


def test_precision_chooses_the_rung(kernel_device: str) -> None:
    """Tensor cores, or in float32 registers, where a group has eight channels on both sides."""
    names: list[str] = []
    for x_shape, w_shape in (((1, 6, 5, 8), (8, 3, 3, 8)), ((1, 6, 5, 5), (8, 3, 3, 5))):
        x, w = on(kernel_device, randn(*x_shape), randn(*w_shape))
        s = conv2d_geometry(x, w, None, 1, 1, 1, 1)
        for mode in gpucnn.precision.modes:
            with (
                gpucnn.precision(mode),
                kernel.observe_launches(lambda launch: names.append(launch.kernel.name)),
            ):
                conv2d_forward.on(kernel_device)(x, w, None, s)
    tiled, registers, tensor = (
        f"conv2d_{rung}_forward" for rung in ("tiled", "register_tiled", "implicit_gemm")
    )
    assert names == [registers, tensor, tensor, tensor, *[tiled] * 4]


def test_precision_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"precision is one of fp32, tf32, bf16, fp16, or None, got 'fp8'"
    ):
        gpucnn.precision("fp8")
    with gpucnn.precision("tf32"), gpucnn.precision(None):
        assert precision_of(np.zeros(1)) == "fp32"


@pytest.mark.emulated
@pytest.mark.parametrize("mode", gpucnn.precision.modes)
def test_the_cuda_path_computes_with_kernels_alone(
    mode: str, cuda_path: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rungs on arrays of a stand-in for CuPy: the bits of the emulated device."""
    x, w, b = randn(2, 7, 6, 8), randn(12, 3, 3, 8, seed=1), randn(12, seed=2)
    runs = []
    with gpucnn.precision(mode):
        for device in ("emulated", "cuda"):
            for rung in ("register_tiled", "implicit_gemm"):
                with gpucnn.use_variant(conv2d=rung):
                    dy = randn(2, 4, 3, 12, seed=3)

                    def fn(*t: gpucnn.Tensor) -> gpucnn.Tensor:
                        return F.conv2d(*t, stride=2, padding=1)

                    y, grads = gradients(fn, [x, w, b], dy, device)
                    runs.append([y.tobytes(), *(g.tobytes() for g in grads)])
    assert runs[:2] == runs[2:]


@pytest.mark.emulated
def test_gpus_without_tensor_cores_are_told(
    cuda_path: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_path.cuda.Device, "compute_capability", "75")
    monkeypatch.setattr(
        cuda_path.cuda.Device, "attributes", {"MaxSharedMemoryPerBlockOptin": 64 * 1024}
    )
    _limits.cache_clear()
    _has_tf32.cache_clear()
    x, w = (gpucnn.Tensor(a, device="cuda") for a in (randn(1, 5, 5, 8), randn(8, 3, 3, 8)))
    with gpucnn.precision(None):
        assert precision_of(x.data) == "fp32"
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        with pytest.raises(DeviceError, match=r"in fp32 needs .* 8\.0 or newer, this one has 7\.5"):
            F.conv2d(x, w)
        with gpucnn.precision("fp16"):
            F.conv2d(x, w)
    _limits.cache_clear()
    _has_tf32.cache_clear()
