"""Convolutions with an epilogue, and batch normalisation from what it leaves behind."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import CONV2D_FUSED, Conv2dCase
from bench.tolerances import float32_bar
from gpucnn import emulator, use_variant
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.kernel import observe_launches
from gpucnn.ops.batch_norm import batch_norm_apply
from gpucnn.ops.batch_norm_partials import batch_norm_join_moments
from gpucnn.ops.conv2d import conv2d_geometry
from gpucnn.ops.conv2d_fused import (
    conv2d_fused_data_gradient,
    conv2d_fused_forward,
    fusible,
)
from gpucnn.ops.conv2d_pipeline import ACTIVATIONS, IMPLICIT_GEMM, REGISTER_TILED, use_tile
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.xray.counters import count
from tests.support import assert_close, distinct, gradients, needs_torch, on, randn, torch

RUNGS = (REGISTER_TILED, IMPLICIT_GEMM)
SLOPES = {"leaky_relu": 0.1}

every_case = pytest.mark.parametrize("case", CONV2D_FUSED, ids=str)
needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)
every_rung = pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)


def geometry_of(x: Any, w: Any, stride: Any = 1, padding: int = 0, groups: int = 1) -> ConvGeometry:
    image, weight = (np.broadcast_to(np.float32(0), shape) for shape in (x, w))
    return conv2d_geometry(image, weight, None, stride, padding, 1, groups)


def wide(*arrays: np.ndarray | None) -> list[Any]:
    return [None if a is None else a.astype(np.float64) for a in arrays]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@needs_torch
def test_definition_beside_pytorch(activation: str) -> None:
    x, w, b, residual = randn(2, 6, 5, 3), randn(4, 3, 3, 3), randn(4), randn(2, 6, 5, 4)
    s, slope = conv2d_geometry(x, w, b, 1, 1, 1, 1), SLOPES.get(activation, 0.0)
    functions = {
        "identity": torch.nn.Identity(),
        "relu": torch.relu,
        "leaky_relu": torch.nn.LeakyReLU(slope),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }
    tx, tw, tb, tr = (torch.from_numpy(a).double() for a in (x, w, b, residual))
    before = torch.nn.functional.conv2d(
        tx.permute(0, 3, 1, 2), tw.permute(0, 3, 1, 2), tb, padding=1
    ).permute(0, 2, 3, 1)
    expected = functions[activation](before + tr)
    y, moments = conv2d_fused_forward(
        *wide(x, w, b, residual), None, None, s, activation, slope, True
    )
    assert_close(y, expected.numpy(), "float64", terms=27)
    count, pivot, distance, squares = moments[..., 0]
    assert (count == 60).all()
    assert_close(pivot + distance, expected.mean((0, 1, 2)).numpy(), "float64", terms=60)
    variance = expected.var((0, 1, 2), unbiased=False).numpy()
    assert_close(squares / count, variance, "float64", terms=60)

    # u -> batch norm's mean, f(v) = x -> conv: what is to come back through conv and f
    u = randn(*x.shape, seed=1)
    v = torch.from_numpy(randn(*x.shape, seed=2)).double().requires_grad_()
    activated = functions[activation](v)
    dy, skip = randn(*s.y_shape, seed=3), randn(*x.shape, seed=4)
    out = torch.nn.functional.conv2d(
        activated.permute(0, 3, 1, 2), tw.permute(0, 3, 1, 2), padding=1
    )
    torch.autograd.backward(
        [out, activated],
        [torch.from_numpy(dy).double().permute(0, 3, 1, 2), torch.from_numpy(skip).double()],
    )
    delta = u.mean((0, 1, 2), dtype=np.float64) - u[0, 0, 0]
    invstd = 1 / np.sqrt(u.astype(np.float64).var((0, 1, 2)) + 1e-5)
    dx, sums = conv2d_fused_data_gradient(
        *wide(dy, w, skip, activated.detach().numpy(), u, delta, invstd), s, activation, slope
    )
    g = v.grad.numpy()
    assert_close(dx, g, "float64", terms=36)
    centred = u.astype(np.float64) - (u[0, 0, 0].astype(np.float64) + delta)
    assert_close(sums[0], (g * centred).sum((0, 1, 2)) * invstd, "float64", terms=60)
    assert_close(sums[1], g.sum((0, 1, 2)), "float64", terms=60)


@every_rung
@every_case
def test_forward_kernels(rung: Any, case: Conv2dCase, kernel_device: str) -> None:
    """With each activation, with and without a residual; the moments give the statistics, to the
    bit also where the kernel joins them itself.
    """
    x, w = case.x, case.weight
    s = geometry_of(x, w, **case.options)
    arrays = randn(*x), randn(*w), randn(w[0]), randn(*s.y_shape, seed=1)
    for i, activation in enumerate(ACTIVATIONS):
        given = (*arrays[:3], arrays[3] if i % 2 else None)
        rest = (s, activation, SLOPES.get(activation, 0.0), True)
        given = (*given, None, None)
        expected, parts = conv2d_fused_forward(*wide(*given), *rest)
        with use_variant(conv2d=rung.name):
            y, moments = conv2d_fused_forward.on(kernel_device)(*on(kernel_device, *given), *rest)
        assert_close(y, expected, float32_bar(s.K), s.K, activation)
        start = [np.zeros(s.OC, np.float32), np.ones(s.OC, np.float32)]
        if s.outputs == 1:
            start = [None, None]
        running, ours = wide(*start), on(kernel_device, *start)
        want = batch_norm_join_moments(parts, *running, 0.5, 1e-3)
        found = batch_norm_join_moments.on(kernel_device)(moments, *ours, 0.5, 1e-3)
        names = ("delta", "invstd", "running mean", "running variance")
        for name, a, e in zip(names, (*found, *ours), (*want, *running), strict=True):
            if e is not None:  # the unbiased variance of one pixel does not exist
                assert_close(a, e, "long sum", s.K, f"{activation}: {name}")
        fresh = on(kernel_device, *start)
        with use_variant(conv2d=rung.name):
            _, statistics = conv2d_fused_forward.on(kernel_device)(
                *on(kernel_device, *given[:4]), *fresh, *rest, (0.5, 1e-3)
            )
        for name, a, e in zip(names, (*statistics, *fresh), (*found, *ours), strict=True):
            if e is not None:
                assert_close(a, e, "exact", what=f"{activation}: {name}")


@every_rung
@every_case
def test_data_gradient_kernels(rung: Any, case: Conv2dCase, kernel_device: str) -> None:
    x, w = case.x, case.weight
    s = geometry_of(x, w, **case.options)
    shapes = (s.y_shape, w, x, x, x, (s.C,))
    arrays = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
    arrays[3], invstd = np.tanh(arrays[3]), np.abs(randn(s.C))
    terms = w[0] // s.G * w[1] * w[2]
    for i, (activation, sums_too) in enumerate(itertools.product(ACTIVATIONS, (True, False))):
        dy, weight, skip, activated, u, delta = arrays
        given = [dy, weight, skip if i % 4 < 2 else None, activated, None, None, None]
        if sums_too:
            given[4:] = u, delta, invstd
        rest = (s, activation, SLOPES.get(activation, 0.0))
        expected, want = conv2d_fused_data_gradient(*wide(*given), *rest)
        with use_variant(conv2d=rung.name):
            dx, sums = conv2d_fused_data_gradient.on(kernel_device)(
                *on(kernel_device, *given), *rest
            )
        assert_close(dx, expected, float32_bar(terms), terms, activation)
        assert (sums is None) == (want is None) == (not sums_too)
        for a, e in zip(sums or (), want or (), strict=True):
            assert_close(a, e, "long sum", terms * s.inputs, activation)


@pytest.mark.parametrize(
    ("rung", "index"),
    [(rung, i) for rung in RUNGS for i in range(len(rung.tiles))],
    ids=lambda v: getattr(v, "name", None),
)
def test_every_tile_ends_in_an_epilogue(rung: Any, index: int, kernel_device: str) -> None:
    """More rows and columns than a tile has; nothing that the smallest tile would hide."""
    tile = rung.tiles[index]
    x, w = (1, 3, tile.rows // 2 + 1, 4), (tile.columns + 4, 1, 1, 4)
    s = geometry_of(x, w, 1, 0, 1)
    given = randn(*x), randn(*w), randn(w[0]), randn(*s.y_shape, seed=1), None, None
    expected, parts = conv2d_fused_forward(*wide(*given), s, "relu", 0.0, True)
    with use_variant(conv2d=rung.name), use_tile(rung, index), gpucnn.precision("fp32"):
        y, moments = conv2d_fused_forward.on(kernel_device)(
            *on(kernel_device, *given), s, "relu", 0.0, True
        )
    assert_close(y, expected, "float32", 4)
    if (index, "fp32", 4, 2) in rung.index:
        assert moments.shape == (4, w[0], -(-s.outputs // tile.rows))
    want = batch_norm_join_moments(parts, None, None, 0.1, 1e-5)
    found = batch_norm_join_moments.on(kernel_device)(moments, None, None, 0.1, 1e-5)
    for a, e in zip(found, want, strict=True):
        assert_close(a, e, "long sum")


def test_moments_far_from_zero(kernel_device: str) -> None:
    """A mean of 1e4 with a deviation of 1: squares about 0 would leave nothing of the variance."""
    x, w, b = randn(2, 12, 12, 4), np.eye(8, 4, dtype=np.float32), np.full(8, 1e4, np.float32)
    s = geometry_of(x.shape, (8, 1, 1, 4), 1, 0, 1)
    with use_variant(conv2d="register_tiled"):
        y, moments = conv2d_fused_forward.on(kernel_device)(
            *on(kernel_device, x, w.reshape(8, 1, 1, 4), b, None, None, None),
            s,
            "identity",
            0.0,
            True,
        )
    rows = np.asarray(to_host(y), np.float64).reshape(-1, 8)
    delta, invstd = batch_norm_join_moments.on(kernel_device)(moments, None, None, 0.1, 1e-5)
    assert_close(delta, rows.mean(0) - rows[0], "long sum")
    assert_close(invstd, 1 / np.sqrt(rows.var(0) + 1e-5), "long sum")


def test_nan_and_infinity_pass(kernel_device: str) -> None:
    x = randn(1, 4, 4, 8)
    x[0, 0, 0, 0], x[0, 1, 1, 0], x[0, 2, 2, 0] = np.nan, np.inf, -np.inf
    w = np.zeros((8, 1, 1, 8), np.float32)
    w[:, 0, 0, 0] = 1  # 0 · infinity in no other channel: those of x are finite
    s = geometry_of(x.shape, w.shape, 1, 0, 1)
    for activation in ACTIVATIONS:
        with use_variant(conv2d="register_tiled"), np.errstate(invalid="ignore"):
            y, _ = conv2d_fused_forward.on(kernel_device)(
                *on(kernel_device, x, w, *(None,) * 4), s, activation, 0.5, False
            )
            expected, _ = conv2d_fused_forward(x, w, *(None,) * 4, s, activation, 0.5, False)
        assert_close(y, expected, "float32")


def test_other_variants_compute_the_same_in_several_passes(kernel_device: str) -> None:
    x, w, b, residual = randn(2, 5, 6, 8), randn(8, 3, 3, 8), randn(8), randn(2, 5, 6, 8, seed=1)
    s = geometry_of(x.shape, w.shape, 1, 1, 1)
    expected, _ = conv2d_fused_forward(*wide(x, w, b, residual), None, None, s, "tanh", 0.0, False)
    gradient, _ = conv2d_fused_data_gradient(
        *wide(residual, w, x, residual), None, None, None, s, "tanh", 0.0
    )
    for variant in ("naive", "tiled"):
        with use_variant(conv2d=variant):
            y, moments = conv2d_fused_forward.on(kernel_device)(
                *on(kernel_device, x, w, b, residual, None, None), s, "tanh", 0.0, True
            )
            dx, sums = conv2d_fused_data_gradient.on(kernel_device)(
                *on(kernel_device, residual, w, x, residual, x, b, b), s, "tanh", 0.0
            )
        assert (moments, sums) == (None, None)
        assert_close(y, expected, "float32", s.K)
        assert_close(dx, gradient, "float32", s.K)


@pytest.mark.parametrize("w", [(8, 5, 5, 1), (6, 3, 3, 3), (12, 2, 4, 4)], ids=str)
def test_first_layers_activate_in_one_launch(w: Any, kernel_device: str) -> None:
    x = (2, 9, 11, w[3])
    s = geometry_of(x, w, 1, 1, 1)
    arrays = randn(*x), randn(*w), randn(w[0]), None, None, None
    for activation in ACTIVATIONS:
        rest = (s, activation, SLOPES.get(activation, 0.0), False)
        expected, _ = conv2d_fused_forward(*wide(*arrays), *rest)
        names: list[str] = []
        with observe_launches(lambda launch, to=names: to.append(launch.kernel.name)):
            y, _ = conv2d_fused_forward.on(kernel_device)(*on(kernel_device, *arrays), *rest)
        assert names == ["conv2d_direct_forward"]
        assert_close(y, expected, "float32", s.K, activation)


@pytest.mark.parametrize(
    ("x", "w", "stride"),
    [
        ((3, 9, 11, 1), (8, 5, 5, 1), 1),
        ((2, 9, 11, 3), (6, 3, 3, 3), 1),  # lines in shared memory
        ((2, 7, 30, 4), (12, 2, 4, 4), (1, 2)),  # any filter
        ((1, 4, 40, 3), (132, 3, 3, 3), 1),  # several groups of channels
        ((9, 33, 33, 1), (16, 3, 3, 1), 1),  # several tiles of a block
    ],
    ids=str,
)
def test_first_layers_leave_their_statistics(
    x: Any, w: Any, stride: Any, kernel_device: str
) -> None:
    s = geometry_of(x, w, stride, 1, 1)
    arrays = randn(*x) + 3, randn(*w), 100 * randn(w[0]), None
    start = np.full(w[0], 2, np.float32), np.ones(w[0], np.float32)
    wanted = wide(*start)
    expected, statistics = conv2d_fused_forward(
        *wide(*arrays), *wanted, s, "relu", 0.0, False, (0.3, 1e-5)
    )
    running = on(kernel_device, *start)
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        y, found = conv2d_fused_forward.on(kernel_device)(
            *on(kernel_device, *arrays), *running, s, "relu", 0.0, False, (0.3, 1e-5)
        )
    assert names == ["conv2d_direct_forward"]
    assert_close(y, expected, "long sum", s.K)
    for a, e in zip((*found, *running), (*statistics, *wanted), strict=True):
        assert_close(a, e, "long sum", s.K)


def test_one_launch(kernel_device: str) -> None:
    x, w, residual = on(kernel_device, randn(2, 5, 6, 8), randn(8, 3, 3, 8), randn(2, 5, 6, 8))
    s = geometry_of(x.shape, w.shape, 1, 1, 1)
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        conv2d_fused_forward.on(kernel_device)(
            x, w, None, residual, None, None, s, "relu", 0.0, True
        )
    assert names == ["conv2d_register_tiled_forward"]


@needs_emulator
@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_epilogues_meet_no_bank_twice(rung: Any) -> None:
    for index, tile in enumerate(rung.tiles):
        x, w = randn(1, 3, tile.rows // 2, 32), randn(tile.columns, 1, 1, 32)
        s = geometry_of(x.shape, w.shape, 1, 0, 1)
        y = randn(*s.y_shape)
        with use_variant(conv2d=rung.name), use_tile(rung, index), count() as found:
            conv2d_fused_forward.on("emulated")(x, w, None, y, None, None, s, "relu", 0.0, True)
            row = x[0, 0, 0]
            conv2d_fused_data_gradient.on("emulated")(y, w, x, x, x, row, row, s, "relu", 0.0)
        passes = [launch for launch in found.launches if rung.name in launch.kernel]
        assert [launch.bank_conflicts for launch in passes] == [0, 0], tile


def test_sums_in_slices(kernel_device: str) -> None:
    """Few outputs with long sums: slices that another kernel adds, and the bias with them."""
    x, w, b = randn(1, 3, 2, 256), randn(9, 3, 3, 256), randn(9)
    s = geometry_of(x.shape, w.shape, 1, 1, 1)
    for rung in RUNGS:
        names: list[str] = []
        with observe_launches(lambda launch, to=names: to.append(launch.kernel.name)):
            y = rung.forward(*on(kernel_device, x, w, b), s)
        assert names == [f"conv2d_{rung.name}_forward", "sum_slices"]
        expected, _ = conv2d_fused_forward(*wide(x, w, b), *(None,) * 3, s, "identity", 0.0, False)
        assert_close(y, expected, "long sum", s.K)
        bias = randn(256, seed=2)
        dx = rung.gather(*on(kernel_device, np.asarray(to_host(y)), w, bias), s)
        gradient, _ = conv2d_fused_data_gradient(
            *wide(np.asarray(to_host(y)), w), *(None,) * 5, s, "identity", 0.0
        )
        assert_close(dx, gradient + bias, "long sum", 81)


@pytest.mark.parametrize("variant", ["register_tiled", "implicit_gemm"])
def test_long_sums_of_few_outputs_keep_their_slices(variant: str, kernel_device: str) -> None:
    w = randn(256, 3, 3, 256)
    s = geometry_of((1, 3, 2, 256), w.shape, 1, 1, 1)
    x, residual, gradient = (randn(1, 3, 2, 256, seed=i) for i in range(3))
    names: list[str] = []
    with (
        gpucnn.use_variant(conv2d=variant),
        observe_launches(lambda launch: names.append(launch.kernel.name)),
    ):
        given = on(kernel_device, x, w, None, residual, None, None)
        y, moments = conv2d_fused_forward.on(kernel_device)(*given, s, "relu", 0.0, True)
        given = on(kernel_device, gradient, w, None, x, x, x[0, 0, 0], x[0, 0, 0])
        dx, sums = conv2d_fused_data_gradient.on(kernel_device)(*given, s, "relu", 0.0)
    first = f"conv2d_{variant}"
    assert names == [
        *(f"{first}_forward", "sum_slices", "add", "relu_forward"),
        *("transpose_tiles", f"{first}_data_gradient", "sum_slices", "relu_backward"),
    ]
    assert moments is None
    assert sums is None
    expected, _ = conv2d_fused_forward(
        *wide(x, w, None, residual, None, None), s, "relu", 0.0, False
    )
    assert_close(y, expected, "long sum", s.K)
    expected, _ = conv2d_fused_data_gradient(
        *wide(gradient, w, None, x), None, None, None, s, "relu", 0.0
    )
    assert_close(dx, expected, "long sum", s.K)


def test_a_batch_is_normalised_by_given_statistics(kernel_device: str) -> None:
    x, gamma, beta, delta, invstd = (
        randn(*shape, seed=i) for i, shape in enumerate(((2, 3, 5, 6), (6,), (6,), (6,), (6,)))
    )
    for scale, shift in ((gamma, beta), (None, None)):
        y = batch_norm_apply.on(kernel_device)(*on(kernel_device, x, scale, shift, delta, invstd))
        a = 1 if scale is None else scale.astype(np.float64)
        c = 0 if shift is None else shift.astype(np.float64)
        centred = x.astype(np.float64) - x[0, 0, 0] - delta
        assert_close(y, centred * invstd * a + c, "float32")
        assert_close(
            batch_norm_apply(*wide(x, scale, shift, delta, invstd)),
            centred * invstd * a + c,
            "float64",
        )


def test_what_can_be_fused() -> None:
    assert all(fusible(name, 0.1) for name in ACTIVATIONS)
    assert not fusible("leaky_relu", 0.0)
    assert not fusible("leaky_relu", -1.0)
    assert not fusible("gelu")


# ---- on the tape


def network(device: str, *, fuses: bool) -> tuple[float, list[np.ndarray], list[str]]:
    """Each chain that a backward pass goes through at once: (loss, gradients, its launches)."""
    shapes = ((2, 8, 8, 8), (16, 3, 3, 8), (16, 3, 3, 16), (16, 3, 3, 16), (16,), (16,))
    x, w1, w2, w3, gamma, beta = (
        gpucnn.Tensor(randn(*shape, seed=i), requires_grad=True, device=device)
        for i, shape in enumerate(shapes)
    )
    names: list[str] = []
    with gpucnn.fusion(fuses), observe_launches(lambda launch: names.append(launch.kernel.name)):
        a = F.conv2d(x, w1, padding=1)
        a = F.relu(F.batch_norm(a, gamma, beta, None, None, training=True))
        b = F.tanh(F.conv2d(a, w2, padding=1))
        c = F.conv2d_fused(
            b, w3, None, a, activation="leaky_relu", negative_slope=0.1, padding=1, moments=True
        )
        d = F.conv2d(F.batch_norm(c, gamma, beta, None, None, training=True), w3)
        loss = (d * d).mean()
        forward = len(names)
        loss.backward()
    inputs = x, w1, w2, w3, gamma, beta
    return loss.item(), [t.grad.numpy() for t in inputs if t.grad], names[forward:]


def test_backward_through_activations_and_norms(kernel_device: str) -> None:
    loss, expected, _ = network("cpu", fuses=False)
    for fuses in (True, False):
        ours, found, names = network(kernel_device, fuses=fuses)
        assert ours == pytest.approx(loss, rel=1e-5)
        for a, e in zip(found, expected, strict=True):
            scale = np.abs(e).max()
            assert_close(a / scale, e / scale, "long sum")
        # a goes into two operations: the last gradient to come is added to the one before
        assert names.count("relu_backward") == (0 if fuses else 1)
        assert names.count("tanh_backward") == (0 if fuses else 1)
        assert names.count("batch_norm_sums") == (0 if fuses else 2)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "none"])
def test_backward_through_a_block(activation: str, training: bool, kernel_device: str) -> None:
    """A normalisation with its residual and activation in one, before the convolution."""
    arrays = [
        randn(*shape, seed=i)
        for i, shape in enumerate(((2, 5, 6, 8), (2, 5, 6, 8), (8,), (8,), (9, 3, 3, 8)))
    ]
    running = np.zeros(8, np.float32), np.ones(8, np.float32)

    def block(x: Any, residual: Any, gamma: Any, beta: Any, w: Any) -> Any:
        statistics = (gpucnn.Tensor(r.copy(), device=x.device) for r in running)
        options = {"training": training, "activation": activation, "negative_slope": 0.2}
        y = F.batch_norm_block(x, gamma, beta, *statistics, residual, **options)
        return F.conv2d(y, w, padding=1)

    dy = randn(2, 5, 6, 9, seed=7)
    y, expected = gradients(block, arrays, dy)
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        found_y, found = gradients(block, arrays, dy, kernel_device)
    assert_close(found_y, y, "float32", 72)
    for a, e in zip(found, expected, strict=True):
        assert_close(a / np.abs(e).max(), e / np.abs(e).max(), "long sum")
    passed = training and activation != "none"
    assert ("batch_norm_block_sums" in names) is not passed


def test_a_gradient_passes_each_activation_once(kernel_device: str) -> None:
    """Of an output that the caller differentiates as well, or that two convolutions read."""
    x, w = randn(1, 4, 5, 8), randn(8, 1, 1, 8)

    def two_readers(x: Any, w: Any) -> Any:
        y = F.relu(x)
        return F.conv2d(y, w) + F.conv2d(y, w)

    def chain(x: Any, w: Any) -> Any:
        return F.conv2d(F.relu(F.conv2d(F.relu(x), w)), w)

    def before_and_behind(x: Any, w: Any) -> Any:
        """The norm's output goes around the ReLU as well, sooner and later."""
        y = F.batch_norm(x, None, None, None, None, training=True)
        z = F.conv2d(F.relu(y), w)
        return F.conv2d(z, w) + y * 2.0 + F.conv2d(F.relu(y + z), w)

    for fn in (two_readers, chain, before_and_behind):
        _, expected = gradients(fn, (x, w), x)
        _, found = gradients(fn, (x, w), x, kernel_device)
        for a, e in zip(found, expected, strict=True):
            assert_close(a, e, "long sum", 64)


def test_statistics_of_a_layer_come_from_its_convolution(kernel_device: str) -> None:
    x, w, gamma = on(kernel_device, randn(2, 6, 5, 8), randn(8, 3, 3, 8), randn(8))
    names: list[str] = []
    running = [gpucnn.Tensor(np.zeros(8, np.float32), device=kernel_device) for _ in range(2)]
    plain = [gpucnn.Tensor(np.zeros(8, np.float32), device=kernel_device) for _ in range(2)]
    images, weight, scale = (
        gpucnn.Tensor(a, requires_grad=True, device=kernel_device) for a in (x, w, gamma)
    )
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        y = F.conv2d_fused(images, weight, activation="identity", moments=True)
        y = F.batch_norm(y, scale, None, *running, training=True)
    assert names == [
        "conv2d_register_tiled_forward", "batch_norm_join_moments", "batch_norm_normalise",
    ]  # fmt: skip
    expected = F.batch_norm(F.conv2d(images, weight), scale, None, *plain, training=True)
    assert_close(y.numpy(), expected.numpy(), "long sum")
    for a, e in zip(running, plain, strict=True):
        assert_close(a.numpy(), e.numpy(), "long sum")


def test_gradients_in_float64() -> None:
    x, w, b, r = (
        gpucnn.Tensor(distinct(*shape, seed=i, dtype=np.float64), requires_grad=True, device="cpu")
        for i, shape in enumerate(((1, 3, 4, 2), (2, 2, 2, 2), (2,), (1, 2, 3, 2)))
    )
    for activation in ACTIVATIONS:
        assert gpucnn.gradcheck(
            lambda *inputs, f=activation: F.conv2d_fused(*inputs, activation=f), (x, w, b, r)
        )


def test_an_empty_batch_and_bad_arguments() -> None:
    x, w = (gpucnn.Tensor(randn(*shape)) for shape in ((0, 4, 4, 2), (3, 3, 3, 2)))
    residual = gpucnn.Tensor(randn(0, 2, 2, 3))
    assert F.conv2d_fused(x, w, None, residual, moments=True).shape == (0, 2, 2, 3)
    image = gpucnn.Tensor(randn(1, 4, 4, 2))
    for wrong, match in (
        ({"activation": "gelu"}, "activation must be one of identity, relu"),
        ({"activation": "leaky_relu", "negative_slope": 0.0}, "negative_slope must be > 0"),
        ({"residual": gpucnn.Tensor(randn(1, 2, 3, 3))}, r"residual must have the shape of the ou"),
    ):
        with pytest.raises(ValueError, match=match):
            F.conv2d_fused(image, w, **wrong)
    with pytest.raises(TypeError, match="fusion takes True or False"):
        gpucnn.fusion("no")


@pytest.mark.parametrize("dims", [1, 3])
def test_sequences_and_volumes_go_back_through_activations(dims: int, kernel_device: str) -> None:
    size, window = ((1, 9, 8), (3,)) if dims == 1 else ((1, 3, 4, 5, 8), (2, 3, 3))
    conv = F.conv1d if dims == 1 else F.conv3d
    x, w, gamma = randn(*size), randn(9, *window, 8), randn(8)

    def chain(x: Any, w: Any, gamma: Any) -> Any:
        y = F.batch_norm(x, gamma, None, None, None, training=True)
        return conv(F.relu(y), w, padding=1, stride=2)

    dy = randn(*chain(*(gpucnn.Tensor(a) for a in (x, w, gamma))).shape, seed=3)
    _, expected = gradients(chain, (x, w, gamma), dy)
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        _, found = gradients(chain, (x, w, gamma), dy, kernel_device)
    assert "relu_backward" not in names
    assert "batch_norm_sums" not in names
    for a, e in zip(found, expected, strict=True):
        assert_close(a / np.abs(e).max(), e / np.abs(e).max(), "long sum")
