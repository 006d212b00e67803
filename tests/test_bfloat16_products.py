"""Products of matrices in bfloat16 as it is stored: convolutions, linear layers, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import CONV2D_FUSED, Conv2dCase
from gpucnn import emulator
from gpucnn import functional as F
from gpucnn.bfloat16 import BFLOAT16, is_bfloat16, narrowed, use, widened
from gpucnn.device import to_host
from gpucnn.kernel import observe_launches
from gpucnn.ops.batch_norm_partials import batch_norm_join_moments
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_fused import conv2d_fused_data_gradient, conv2d_fused_forward
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, use_tile
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.ops.linear import (
    linear_data_gradient,
    linear_forward,
    linear_geometry,
    linear_weight_gradient,
)
from gpucnn.ops.reduce import axis_sum, column_sum
from gpucnn.xray.counters import count
from tests.support import assert_close, check_stored, needs_torch, on, randn, torch

BOTH = {"stored": (0, 1)}

needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)


@pytest.fixture(autouse=True)
def look_for_bfloat16() -> None:
    use()


def geometry_of(x: Any, w: Any, stride: Any = 1, padding: Any = 0, groups: int = 1) -> ConvGeometry:
    image, weight = (np.broadcast_to(np.float32(0), shape) for shape in (x, w))
    return conv2d_geometry(image, weight, None, stride, padding, 1, groups)


def launched(run: Any, *arguments: Any) -> tuple[Any, list[str]]:
    """A call's result and its kernels, those in bfloat16 with a star."""
    names: list[str] = []

    def note(launch: Any) -> None:
        stored = dict(launch.kernel.spec.macros).get("BFLOAT16")
        names.append(launch.kernel.name.removeprefix("conv2d_") + "*" * bool(stored))

    with observe_launches(note):
        made = run(*arguments)
    return made, names


def check_passes(s: ConvGeometry, device: str) -> None:
    x, w, dy = randn(*s.x_shape), randn(*s.w_shape, seed=1), randn(*s.y_shape, seed=2)
    terms = s.K // s.CG * s.OCG
    check_stored(conv2d_forward, device, [x, w, randn(s.OC)], s, terms=s.K, **BOTH)
    check_stored(conv2d_data_gradient, device, [dy, w], s, terms=terms, **BOTH)
    check_stored(conv2d_weight_gradient, device, [dy, x], s, terms=s.outputs, **BOTH)


@pytest.mark.parametrize(
    ("x", "w", "options", "forward", "backward", "weight"),
    [
        ((2, 9, 8, 16), (24, 3, 3, 16), {"padding": 1}, "*", "*", "*"),
        ((2, 9, 8, 10), (12, 3, 2, 10), {"stride": 2}, "*", "*", "*"),
        ((1, 6, 7, 9), (16, 1, 1, 9), {}, "", "*", ""),
        ((1, 6, 7, 32), (28, 2, 2, 16), {"groups": 2}, "*", "*", "*"),
    ],
    ids=lambda v: None if isinstance(v, dict) else str(v),
)
def test_even_channels_are_multiplied_as_they_are_stored(
    x: Any, w: Any, options: Any, forward: str, backward: str, weight: str, kernel_device: str
) -> None:
    """In copies of 16 or of 4 bytes; odd ones are widened before."""
    s = geometry_of(x, w, **options)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        check_passes(s, kernel_device)
        arrays = [narrowed(randn(*shape)) for shape in (s.x_shape, s.w_shape, s.y_shape)]
        image, filters, dy = on(kernel_device, *arrays)
        for made, inputs, star in (
            (conv2d_forward, (image, filters, None), forward),
            (conv2d_data_gradient, (dy, filters), backward),
            (conv2d_weight_gradient, (dy, image), weight),
        ):
            _, names = launched(made.on(kernel_device), *inputs, s)
            assert made.name.replace("conv2d", "implicit_gemm") + star in names, names


def test_copies_of_four_bytes_beside_those_of_sixteen(kernel_device: str) -> None:
    s = geometry_of((1, 9, 10, 24), (16, 3, 3, 24), padding=1)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        x, w = on(kernel_device, narrowed(randn(*s.x_shape)), narrowed(randn(*s.w_shape)))
        results = []
        for by_words in (False, True):
            with use_tile(IMPLICIT_GEMM, IMPLICIT_GEMM.smallest, by_words):
                y = conv2d_forward.on(kernel_device)(x, w, None, s)
            results.append(to_host(y).tobytes())
        assert results[0] == results[1]


@pytest.mark.parametrize("shift", [1, 2, 8])
def test_arrays_at_any_address(shift: int) -> None:
    """Of 2, 4 and 16 bytes: widened, copied by words, copied by pieces."""
    s = geometry_of((1, 5, 6, 16), (16, 3, 3, 16))
    memory = np.zeros(s.inputs * s.C + 64, np.uint16)
    first = -memory.ctypes.data % 16 // 2 + shift
    x = memory[first : first + s.inputs * s.C].reshape(s.x_shape)
    x[...] = narrowed(randn(*s.x_shape))
    w = narrowed(randn(*s.w_shape))
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        y, names = launched(conv2d_forward.on("emulated"), x, w, None, s)
    assert ("implicit_gemm_forward*" in names) == (shift > 1)
    want = conv2d_forward(*(widened(a).astype(np.float64) for a in (x, w)), None, s)
    assert_close(widened(y), want, "bfloat16 storage", s.K)


@pytest.mark.parametrize(("c", "star"), [(16, True), (10, False)])
def test_volumes(c: int, star: bool, kernel_device: str) -> None:
    x, w = randn(1, 3, 4, 5, c), randn(8, 2, 3, 2, c)
    s = conv_geometry(3, x, w, None, 1, 1, 1, 1)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        check_passes(s, kernel_device)
        given = on(kernel_device, narrowed(x), narrowed(w))
        _, names = launched(conv2d_forward.on(kernel_device), *given, None, s)
    assert ("implicit_gemm_forward*" in names) == star


def test_sums_in_slices(kernel_device: str) -> None:
    """Few outputs with long sums: slices are float32, and what adds them rounds once."""
    s = geometry_of((1, 3, 2, 256), (16, 3, 3, 256), padding=1)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        check_passes(s, kernel_device)
        given = on(kernel_device, narrowed(randn(*s.x_shape)), narrowed(randn(*s.w_shape)))
        y, names = launched(conv2d_forward.on(kernel_device), *given, None, s)
    assert names == ["implicit_gemm_forward*", "sum_slices*"]
    wide = [widened(to_host(a)) for a in given]
    exact = conv2d_forward(*(a.astype(np.float64) for a in wide), None, s)
    off = np.abs(widened(to_host(y)) - exact) / np.abs(exact)
    assert off.max() < 2**-8 * 1.01


@pytest.mark.parametrize("case", CONV2D_FUSED, ids=str)
def test_epilogues(case: Conv2dCase, kernel_device: str) -> None:
    """Residual, activation and statistics of the rounded output; the data gradient through all."""
    s = geometry_of(case.x, case.weight, **case.options)
    shapes = (s.x_shape, s.w_shape, s.y_shape, s.y_shape, s.x_shape, s.x_shape, s.x_shape)
    bits = [narrowed(randn(*shape, seed=i)) for i, shape in enumerate(shapes)]
    x, w, dy, residual, skip, activated, u = bits
    wide = {id(a): widened(a).astype(np.float64) for a in bits}
    b, delta, invstd = randn(s.OC), randn(s.C), np.abs(randn(s.C))
    even = s.CG % 2 == 0

    rest = (s, "relu", 0.0, True)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        run = conv2d_fused_forward.on(kernel_device)
        given = *on(kernel_device, x, w, b, residual), None, None, *rest
        (y, moments), names = launched(run, *given)
        _, statistics = run(*given, (0.1, 1e-3))
    given = wide[id(x)], wide[id(w)], b, wide[id(residual)], None, None
    want, _ = conv2d_fused_forward(*given, *rest)
    assert is_bfloat16(y)
    got = widened(to_host(y))
    # odd channels take several passes, each of which rounds
    assert_close(got, want, "bfloat16 storage" if even else "bf16", s.K)
    assert (names == ["implicit_gemm_forward*"]) == even
    if even:  # of what was stored, to the accuracy of float32
        rows = got.reshape(-1, s.OC).astype(np.float64)
        found = batch_norm_join_moments.on(kernel_device)(moments, None, None, 0.1, 1e-3)
        assert_close(found[0], rows.mean(0) - rows[0], "long sum")
        assert_close(found[1], 1 / np.sqrt(rows.var(0) + 1e-3), "long sum")
        for joined, apart in zip(statistics, found, strict=True):
            assert_close(joined, to_host(apart), "exact")

    terms, rest = s.K // s.CG * s.OCG, (s, "tanh", 0.0)
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        given = on(kernel_device, dy, w, skip, activated, u, delta, invstd)
        dx, sums = conv2d_fused_data_gradient.on(kernel_device)(*given, *rest)
    given = [wide[id(a)] for a in (dy, w, skip, activated)]
    want, _ = conv2d_fused_data_gradient(*given, None, None, None, *rest)
    got = widened(to_host(dx))
    # the slope is of the order of the activated numbers' squares
    size, even = np.abs(1 - wide[id(activated)] ** 2).max(), s.OCG % 2 == 0
    assert_close(got / size, want / size, "bfloat16 storage" if even else "bf16", terms)
    if even:
        rows, normalised = got.reshape(-1, s.C).astype(np.float64), wide[id(u)].reshape(-1, s.C)
        centred = normalised - (normalised[0] + delta)
        dgamma, dbeta = sums
        size = np.abs(rows).max()
        assert_close(to_host(dbeta) / size, rows.sum(0) / size, "long sum", s.inputs)
        assert_close(
            to_host(dgamma) / size, (rows * centred).sum(0) * invstd / size, "long sum", s.inputs
        )


@needs_emulator
def test_epilogues_meet_no_bank_twice() -> None:
    for index, tile in enumerate(IMPLICIT_GEMM.tiles):
        x, w = randn(1, 3, tile.rows // 2, 64), randn(tile.columns, 1, 1, 64)
        s = geometry_of(x.shape, w.shape)
        x, w, y = (narrowed(a) for a in (x, w, randn(*s.y_shape)))
        delta = np.zeros(64, np.float32)
        with (
            gpucnn.use_variant(conv2d="implicit_gemm"),
            use_tile(IMPLICIT_GEMM, index),
            count() as found,
        ):
            conv2d_fused_forward.on("emulated")(x, w, None, y, None, None, s, "relu", 0.0, True)
            given = y, w, x, x, x, delta, delta
            conv2d_fused_data_gradient.on("emulated")(*given, s, "relu", 0.0)
        passes = [launch for launch in found.launches if "implicit_gemm" in launch.kernel]
        assert [launch.bank_conflicts for launch in passes] == [0, 0], tile


@pytest.mark.parametrize(("m", "i", "o"), [(33, 84, 10), (5, 24, 17), (70, 64, 136), (3, 300, 8)])
def test_linear(m: int, i: int, o: int, kernel_device: str) -> None:
    x, w, b, dy = randn(m, i), randn(o, i, seed=1), randn(o), randn(m, o, seed=2)
    s = linear_geometry(x, w, b)
    for variant in ("implicit_gemm", "tiled", None):
        with gpucnn.use_variant(linear=variant):
            check_stored(linear_forward, kernel_device, [x, w, b], s, terms=i, **BOTH)
            check_stored(linear_data_gradient, kernel_device, [dy, w], s, terms=o, **BOTH)
            check_stored(linear_weight_gradient, kernel_device, [dy, x], s, terms=m, **BOTH)


@pytest.mark.parametrize("shape", [(5, 3), (700, 1), (3000, 33), (40, 6, 7, 8)], ids=str)
def test_sums_of_columns(shape: Any, kernel_device: str) -> None:
    x = randn(*shape)
    check_stored(column_sum, kernel_device, [x], terms=x.size // shape[-1])
    three = x.reshape(shape[0], -1, shape[-1])
    check_stored(axis_sum, kernel_device, [three], 0.5, terms=three.shape[1])


@needs_torch
@pytest.mark.parametrize("c", [16, 10, 9])
@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_beside_pytorch(c: int, transposed: bool, kernel_device: str) -> None:
    """Of a convolution and a linear layer on the same rounded numbers, in float64."""
    x, w, v = (widened(narrowed(a)) for a in (randn(3, 7, 6, c), randn(12, 3, 3, c), randn(8, 12)))
    if transposed:
        w = widened(narrowed(randn(c, 3, 3, 12)))
    tensors = [gpucnn.Tensor(a, requires_grad=True, device=kernel_device) for a in (x, w, v)]
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with gpucnn.precision("bf16"), gpucnn.use_variant(conv_transpose2d="implicit_gemm"):
        y = convolve(*tensors[:2], stride=2, padding=1)
        assert y.dtype == BFLOAT16
        z = F.linear(F.global_avg_pool2d(F.tanh(y)), tensors[2])
        (z * z).sum().backward()
    tx, tw, tv = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, w, v))
    function = torch.nn.functional.conv_transpose2d if transposed else torch.nn.functional.conv2d
    made = function(tx.permute(0, 3, 1, 2), tw.permute(0, 3, 1, 2), stride=2, padding=1)
    out = torch.nn.functional.linear(torch.tanh(made).mean((2, 3)), tv)
    (out * out).sum().backward()
    for ours, theirs in zip(tensors, (tx, tw, tv), strict=True):
        expected, found = theirs.grad.numpy(), ours.grad.numpy()
        off = np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2))
        assert off < 0.02, off  # some roundings of 2^-9, one after another
