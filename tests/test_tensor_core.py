"""Convolutions on tensor cores: their precisions, their tiles, the choice between them."""

from __future__ import annotations

import types

import numpy as np
import pytest

import gpucnn
from bench.cases import CONV2D, Conv2dCase
from gpucnn import functional as F
from gpucnn import kernel
from gpucnn.bfloat16 import BFLOAT16
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.cast import to_bfloat16
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_pipeline import (
    IMPLICIT_GEMM,
    REGISTER_TILED,
    Rung,
    _limits,
    pipelined,
    use_tile,
)
from gpucnn.ops.conv2d_tiles import Tile
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.precision import has_tf32, precision_of
from tests.support import assert_close, check_stored, gradients, on, randn, tf32


def fp16(a: np.ndarray) -> np.ndarray:
    """The nearest half-precision numbers."""
    return a.astype(np.float16).astype(np.float32)


ROUNDED = {"tf32": tf32, "fp16": fp16}
COARSE = (*ROUNDED, "bf16")


def moved_off_halves(a: np.ndarray) -> np.ndarray:
    """Halfway between two TF32 numbers GPUs before and from sm_90 on round differently."""
    bits = a.view(np.uint32)
    return (bits + ((bits & 0x1FFF) == 0x1000)).astype(np.uint32).view(np.float32)


def check_passes(device: str, x: np.ndarray, w: np.ndarray, s: ConvGeometry, mode: str) -> None:
    """All three passes against float64 products of operands rounded by NumPy, or as stored."""
    if mode == "bf16":
        check_stored_passes(device, x, w, s)
        return
    rounded = ROUNDED.get(mode, lambda a: a)
    bar = "tensor core" if mode in ROUNDED else "float32"
    x, w, dy = (moved_off_halves(a) for a in (x, w, randn(*s.y_shape, seed=2)))
    for primitive, operands, terms in (
        (conv2d_forward, (x, w, None), s.K),
        (conv2d_data_gradient, (dy, w), s.K // s.CG * s.OCG),
        (conv2d_weight_gradient, (dy, x), s.outputs),
    ):
        wide = [None if a is None else rounded(a).astype(np.float64) for a in operands]
        actual = primitive.on(device)(*on(device, *operands), s)
        assert_close(to_host(actual), primitive(*wide, s), bar, terms, primitive.name)


def check_stored_passes(device: str, x: np.ndarray, w: np.ndarray, s: ConvGeometry) -> None:
    dy, terms = randn(*s.y_shape, seed=2), s.K // s.CG * s.OCG
    given = {"stored": (0, 1)}
    check_stored(conv2d_forward, device, [x, w, randn(s.OC, seed=3)], s, terms=s.K, **given)
    check_stored(conv2d_data_gradient, device, [dy, w], s, terms=terms, **given)
    check_stored(conv2d_weight_gradient, device, [dy, x], s, terms=s.outputs, **given)


@pytest.mark.parametrize("mode", COARSE)
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
        *((IMPLICIT_GEMM, i, mode) for i in range(6) for mode in COARSE),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
def test_every_tile(
    rung: Rung, index: int, mode: str, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that fill no tile, more than one tile of both, several slabs of k."""
    monkeypatch.setattr(rung, "tile", lambda *_: index)
    more = 8 if mode == "bf16" else 4
    x, w = randn(1, 17, 18, 8), randn(rung.tiles[index].columns + more, 3, 2, 8, seed=1)
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
    has_tf32.cache_clear()
    x, w = (gpucnn.Tensor(a, device="cuda") for a in (randn(1, 5, 5, 8), randn(8, 3, 3, 8)))
    with gpucnn.precision(None):
        assert precision_of(x.data) == "fp32"
    with gpucnn.precision("bf16"):  # by itself what is stored so is widened
        assert pipelined(to_bfloat16(x).data, conv2d_geometry(x, w, None, 1, 0, 1, 1)) == (
            "register_tiled"
        )
        assert F.conv2d(x, w).dtype == BFLOAT16
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        with gpucnn.precision("bf16"), pytest.raises(DeviceError, match=r"in bf16 needs .* 8\.0"):
            F.conv2d(x, w)
        with pytest.raises(DeviceError, match=r"in fp32 needs .* 8\.0 or newer, this one has 7\.5"):
            F.conv2d(x, w)
        with gpucnn.precision("fp16"):
            F.conv2d(x, w)
    _limits.cache_clear()
    has_tf32.cache_clear()


def test_more_pixels_than_int32_numbers_are_refused() -> None:
    """Of one channel each, as only a choice by hand brings here; the pixels are not made."""
    x = np.broadcast_to(np.float32(0), (1, 46341, 46341, 1))
    w = np.broadcast_to(np.float32(0), (1, 1, 1, 1))
    with pytest.raises(ValueError, match="register_tiled numbers at most 2147483391 pixels"):
        REGISTER_TILED.choose("forward", conv2d_geometry(x, w, None, 1, 0, 1, 1), 1, 1, 1, x)


def test_a_tile_by_hand_must_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = randn(1, 4, 4, 8), randn(8, 1, 1, 8)
    s = conv2d_geometry(x, w, None, 1, 0, 1, 1)
    with use_tile(IMPLICIT_GEMM, 0), gpucnn.precision("tf32"):
        monkeypatch.setattr(Tile, "fits", lambda tile, shared, by_rows: tile.rows < 256)
        with pytest.raises(
            DeviceError, match="256×128 of implicit_gemm needs more than the 227 KiB"
        ):
            IMPLICIT_GEMM.choose("forward", s, 16, 8, 8, x, w)
