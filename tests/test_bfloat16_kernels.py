"""Kernels of activations in bfloat16 against their definitions in float64, of the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.cases import (
    ACTIVATION,
    ADAPTIVE_POOL2D,
    AVG_POOL2D,
    BATCH_NORM,
    BATCH_NORM_BLOCK,
    DROPOUT,
    ELEMENTWISE,
    ELEMENTWISE_VECTOR,
    LOCAL_RESPONSE_NORM,
    POOL2D,
    PRELU,
    TRANSPOSE,
    UNPOOL2D,
    BatchNormBlockCase,
    LocalResponseNormCase,
    Pool2dCase,
)
from gpucnn.bfloat16 import narrowed, use, widened
from gpucnn.device import to_device, to_host
from gpucnn.emulator import flops
from gpucnn.kernel import observe_launches
from gpucnn.ops import adaptive_pool2d as adaptive
from gpucnn.ops import batch_norm as bn
from gpucnn.ops import elementwise
from gpucnn.ops.activation import (
    activation_backward,
    activation_forward,
    relu_backward,
    relu_forward,
)
from gpucnn.ops.activation_formulas import ACTIVATIONS
from gpucnn.ops.avg_pool2d import avg_pool2d_backward, avg_pool2d_forward
from gpucnn.ops.avg_unpool2d import avg_repeat_backward, avg_repeat_forward
from gpucnn.ops.batch_norm_block import (
    batch_norm_block_backward,
    batch_norm_block_forward,
    batch_norm_statistics,
)
from gpucnn.ops.batch_norm_block_pool import (
    batch_norm_block_pool_backward,
    batch_norm_block_pool_forward,
)
from gpucnn.ops.concatenate import cut_columns, join_columns
from gpucnn.ops.cross_entropy import cross_entropy_reduced
from gpucnn.ops.dropout import dropout2d_forward, dropout_forward
from gpucnn.ops.local_response_norm import (
    local_response_norm_backward,
    local_response_norm_forward,
)
from gpucnn.ops.pool2d import max_pool2d_backward, max_pool2d_forward
from gpucnn.ops.prelu import prelu_backward, prelu_forward
from gpucnn.ops.transpose import transpose_forward
from gpucnn.ops.unpool2d import max_unpool2d_backward, max_unpool2d_forward
from gpucnn.primitive import Primitive
from gpucnn.xray.counters import count
from tests import test_adaptive_pool2d as adaptive_pool2d_tests
from tests import test_avg_pool2d as avg_pool2d_tests
from tests import test_avg_unpool2d as avg_unpool2d_tests
from tests import test_batch_norm_block as batch_norm_block_tests
from tests import test_local_response_norm as local_response_norm_tests
from tests import test_pool2d as pool2d_tests
from tests import test_unpool2d as unpool2d_tests
from tests.blocks import EPS, MOMENTUM, arrays_of
from tests.support import check_stored, randn


@pytest.fixture(autouse=True)
def _in_use() -> None:
    use()


def rounded(a: np.ndarray) -> np.ndarray:
    """The nearest numbers that bfloat16 has."""
    return widened(narrowed(a.astype(np.float32)))


@pytest.mark.parametrize("name", ["relu", *ACTIVATIONS])
def test_activations(name: str, kernel_device: str) -> None:
    parameters = {"leaky_relu": (-0.3,), "elu": (1.5, 1.1), "softplus": (0.7, 3.0)}.get(name, ())
    for shape in ACTIVATION[2:]:
        x, dy = 3 * randn(*shape), randn(*shape, seed=1)
        if name == "relu":
            check_stored(relu_forward, kernel_device, [x])
            check_stored(relu_backward, kernel_device, [dy, x], stored=(0, 1))
            continue
        check_stored(activation_forward, kernel_device, [x], name, parameters)
        x = rounded(x)
        kept = activation_forward(x, name, parameters) if ACTIVATIONS[name].keeps_output else x
        check_stored(
            activation_backward, kernel_device, [dy, kept], name, parameters, stored=(0, 1)
        )


@pytest.mark.parametrize("n", [*ELEMENTWISE, 8, 2055])
def test_elementwise(n: int, kernel_device: str) -> None:
    a, b = randn(n), randn(n, seed=1)
    for step in (
        elementwise.add_forward,
        elementwise.subtract_forward,
        elementwise.multiply_forward,
    ):
        check_stored(step, kernel_device, [a, b], stored=(0, 1))
        check_stored(step, kernel_device, [a, rounded(b)], stored=(0,))
    check_stored(elementwise.scale_forward, kernel_device, [a, b[:1].copy()])
    check_stored(elementwise.affine_forward, kernel_device, [a], -0.75, 0.5)


@pytest.mark.parametrize("shape", ELEMENTWISE_VECTOR)
def test_vectors(shape: tuple[int, ...], kernel_device: str) -> None:
    a, b = randn(*shape), randn(shape[-1], seed=1)
    check_stored(elementwise.add_vector, kernel_device, [a, b], -1.0)
    check_stored(elementwise.multiply_vector, kernel_device, [a, b])
    check_stored(elementwise.multiply_vector, kernel_device, [a, b], stored=(0, 1))


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_views_that_start_anywhere(offset: int, kernel_device: str) -> None:
    """An address need not even be a multiple of a float's size."""
    a, b = (to_device(narrowed(randn(103, seed=s)), kernel_device) for s in (0, 1))
    seen = to_host(a)[offset:], to_host(b)[: 103 - offset]
    u, v = (widened(s) for s in seen)
    y = elementwise.add_forward.on(kernel_device)(a[offset:], b[: 103 - offset])
    np.testing.assert_array_equal(to_host(y), narrowed(u + v))
    x = a[offset : offset + 96]
    y, _ = max_pool2d_forward.on(kernel_device)(
        x.reshape(1, 4, 6, 4), pool2d_tests.geometry(Pool2dCase((1, 4, 6, 4), 2))
    )
    wide = widened(to_host(x)).reshape(1, 4, 6, 4)
    np.testing.assert_array_equal(widened(to_host(y)), wide.reshape(1, 2, 2, 3, 2, 4).max((2, 4)))
    y = transpose_forward.on(kernel_device)(x.reshape(4, 24), (1, 0))
    np.testing.assert_array_equal(to_host(y), to_host(x).reshape(4, 24).T)


@pytest.mark.parametrize("case", POOL2D, ids=str)
def test_max_pool2d(case: Pool2dCase, kernel_device: str) -> None:
    s, x = pool2d_tests.geometry(case), randn(*case.x)
    check_stored(max_pool2d_forward, kernel_device, [x], s)
    dy, indices = randn(s.N, s.OH, s.OW, s.C, seed=2), max_pool2d_forward(rounded(x), s)[1]
    terms = s.KH * s.KW
    check_stored(max_pool2d_backward, kernel_device, [dy, indices], s, terms=terms)


@pytest.mark.parametrize("case", AVG_POOL2D, ids=str)
def test_avg_pool2d(case: Pool2dCase, kernel_device: str) -> None:
    g = avg_pool2d_tests.geometry(case, True)
    s = g.windows
    check_stored(avg_pool2d_forward, kernel_device, [randn(*case.x)], g, terms=s.KH * s.KW)
    dy = randn(s.N, s.OH, s.OW, s.C, seed=2)
    check_stored(avg_pool2d_backward, kernel_device, [dy], g, terms=s.KH * s.KW)


@pytest.mark.parametrize(("shape", "output_size"), ADAPTIVE_POOL2D)
def test_adaptive_pool2d(shape: Any, output_size: Any, kernel_device: str) -> None:
    s, x = adaptive_pool2d_tests.geometry(shape, output_size), randn(*shape)
    dy, terms = randn(s.N, s.OH, s.OW, s.C, seed=1), s.H * s.W + s.OH * s.OW
    check_stored(adaptive.adaptive_avg_pool2d_forward, kernel_device, [x], s, terms=terms)
    check_stored(adaptive.adaptive_avg_pool2d_backward, kernel_device, [dy], s, terms=terms)
    check_stored(adaptive.adaptive_max_pool2d_forward, kernel_device, [x], s)
    given = [dy, adaptive.adaptive_max_pool2d_forward(rounded(x), s)[1]]
    check_stored(adaptive.adaptive_max_pool2d_backward, kernel_device, given, s, terms=terms)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("case", UNPOOL2D, ids=str)
def test_unpool2d(case: Pool2dCase, last: bool, kernel_device: str) -> None:
    s, x = unpool2d_tests.geometry(case), randn(*case.x)
    dy, indices = randn(s.N, s.H, s.W, s.C, seed=2), unpool2d_tests.own_windows(s)
    check_stored(max_unpool2d_forward, kernel_device, [x, indices], last, s)
    check_stored(max_unpool2d_backward, kernel_device, [dy, indices], last, s)
    if last:
        s = avg_unpool2d_tests.geometry(case)
        dy = randn(s.N, s.H, s.W, s.C, seed=2)
        check_stored(avg_repeat_forward, kernel_device, [x], s, terms=s.KH * s.KW)
        check_stored(avg_repeat_backward, kernel_device, [dy], s, terms=s.KH * s.KW)


@pytest.mark.parametrize("shape", DROPOUT, ids=str)
def test_dropout(shape: tuple[int, ...], kernel_device: str) -> None:
    arrays = [randn(*shape), np.array([7, 3, 20], np.uint64)]
    check_stored(dropout_forward, kernel_device, arrays, 0.3)
    if len(shape) == 4:
        check_stored(dropout2d_forward, kernel_device, arrays, 0.3)


@pytest.mark.parametrize("widths", [(4, 8), (3, 1, 4), (1,)])
def test_concatenate(widths: tuple[int, ...], kernel_device: str) -> None:
    """Copies, to the bit: of a NaN too."""
    parts = [narrowed(randn(7, w, seed=w)) for w in widths]
    parts[0][2, 0] = 0xFFC1
    y = join_columns.on(kernel_device)([to_device(p, kernel_device) for p in parts])
    np.testing.assert_array_equal(to_host(y), np.concatenate(parts, axis=1))
    cut = cut_columns.on(kernel_device)(y, 0, widths[0])
    np.testing.assert_array_equal(to_host(cut), parts[0])


@pytest.mark.parametrize(("shape", "axes"), TRANSPOSE)
def test_transpose(shape: Any, axes: Any, kernel_device: str) -> None:
    x = narrowed(randn(*shape))
    x.reshape(-1)[0] = 0xFFC1
    y = transpose_forward.on(kernel_device)(to_device(x, kernel_device), axes)
    np.testing.assert_array_equal(to_host(y), x.transpose(axes))


@pytest.mark.parametrize("case", LOCAL_RESPONSE_NORM, ids=str)
def test_local_response_norm(case: LocalResponseNormCase, kernel_device: str) -> None:
    window = local_response_norm_tests.window_of(case)
    x, dy = rounded(2 * randn(*case.x)), randn(*case.x, seed=1)
    check_stored(local_response_norm_forward, kernel_device, [x], window)
    y, s = local_response_norm_forward(x, window)
    check_stored(
        local_response_norm_backward, kernel_device, [dy, x, y, s], window,
        stored=(0, 1, 2), terms=case.size,
    )  # fmt: skip


@pytest.mark.parametrize(("shape", "slopes"), PRELU)
def test_prelu(shape: tuple[int, ...], slopes: int, kernel_device: str) -> None:
    x, dy, weight = randn(*shape), randn(*shape, seed=1), randn(slopes, seed=2)
    check_stored(prelu_forward, kernel_device, [x, weight])
    terms = x.size // slopes
    check_stored(prelu_backward, kernel_device, [dy, x, weight], stored=(0, 1), terms=terms)


@pytest.mark.parametrize("shape", BATCH_NORM, ids=str)
def test_batch_norm(shape: tuple[int, ...], kernel_device: str) -> None:
    C, m = shape[-1], int(np.prod(shape[:-1]))
    x, dy = rounded(randn(*shape)), randn(*shape, seed=9)
    gamma, beta, mean = (randn(C, seed=s) for s in (1, 2, 3))
    var = np.abs(randn(C, seed=4)) + np.float32(0.5)
    arrays = [x, gamma, beta, mean.copy(), var.copy()]
    check_stored(bn.batch_norm_training, kernel_device, arrays, MOMENTUM, EPS, terms=m)
    check_stored(bn.batch_norm_inference, kernel_device, [x, gamma, beta, mean, var], EPS)
    _, delta, invstd = bn.batch_norm_training(*arrays, MOMENTUM, EPS)
    check_stored(bn.batch_norm_apply, kernel_device, [x, gamma, beta, delta, invstd])
    both = {"stored": (0, 1), "terms": 9 * m}
    check_stored(bn.batch_norm_sums, kernel_device, [dy, x, None, delta, invstd], **both)
    check_stored(bn.batch_norm_sums, kernel_device, [dy, x, mean, None, var], **both)
    dgamma, dbeta = bn.batch_norm_sums(dy, x, None, delta, invstd)
    given = [dy, x, gamma, delta, invstd, dgamma, dbeta]
    check_stored(bn.batch_norm_data_gradient, kernel_device, given, stored=(0, 1))
    check_stored(bn.batch_norm_fixed_gradient, kernel_device, [dy, gamma, invstd])


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (9, 10), (3, 500), (2100, 40)])
def test_cross_entropy(shape: tuple[int, int], mean: bool, kernel_device: str) -> None:
    """One block and several."""
    labels = np.arange(shape[0], dtype=np.int32) * 7 % shape[1]
    given: list[Any] = [3 * randn(*shape), labels, np.abs(randn(shape[1], seed=2))]
    rest = (0.1, -100, mean, True)
    check_stored(cross_entropy_reduced, kernel_device, given, *rest, terms=shape[0])


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("case", BATCH_NORM_BLOCK, ids=str)
def test_batch_norm_block(case: BatchNormBlockCase, trained: bool, kernel_device: str) -> None:
    x, *_, residual = arrays_of(case)
    x, m = rounded(x), x.size // x.shape[-1]
    s = batch_norm_block_tests.geometry_of(case)
    slope = batch_norm_block_tests.slope_of(case.options)
    per_channel, eps = batch_norm_block_tests.given_of(case, trained)
    forward = [x, None if residual is None else rounded(residual), *per_channel]
    stored = (0, 1)
    if s is not None:
        rest: tuple[Any, ...] = (eps, slope, s)
        check_stored(batch_norm_block_pool_forward, kernel_device, forward, *rest, stored=stored)
        y, route = batch_norm_block_pool_forward(*forward, *rest)
        backward: Primitive = batch_norm_block_pool_backward
        given, rest = [per_channel[0], *per_channel[2:]], (eps, slope, case.residual, True, s)
    else:
        rest = (eps, slope, case.residual and slope != 1)
        check_stored(batch_norm_block_forward, kernel_device, forward, *rest, stored=stored)
        y, route = batch_norm_block_forward(*forward, *rest)
        backward, given = batch_norm_block_backward, per_channel
        rest = (eps, slope, case.residual, True)
    given = [randn(*y.shape, seed=9), x, route, *given]
    check_stored(backward, kernel_device, given, *rest, stored=stored, terms=9 * m)
    running = [x, *arrays_of(case)[3:5]]
    check_stored(batch_norm_statistics, kernel_device, running, MOMENTUM, EPS, terms=m)


def test_nothing_is_widened_or_narrowed_on_the_way(kernel_device: str) -> None:
    """The kernels take bfloat16 as it lies in memory."""
    names: list[str] = []
    x = to_device(narrowed(randn(2, 4, 6, 8)), kernel_device)
    gamma = to_device(randn(8), kernel_device)
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        relu_forward.on(kernel_device)(x)
        max_pool2d_forward.on(kernel_device)(x, pool2d_tests.geometry(Pool2dCase((2, 4, 6, 8), 2)))
        bn.batch_norm_training.on(kernel_device)(x, gamma, gamma, None, None, MOMENTUM, EPS)
        elementwise.add_forward.on(kernel_device)(x, x)
    assert not {"widen", "narrow"} & set(names)


@pytest.mark.emulated
@pytest.mark.skipif(not flops.available(), reason="counted builds need an x86-64 CPU")
def test_half_the_bytes_in_whole_requests() -> None:
    """16 bytes of a thread element by element, 8 beside channels, whose factors it reads first."""
    a, n = narrowed(randn(8, 16, 16, 64)), 8 * 16 * 16 * 64
    C = randn(64)
    for sectors, arrays, launch in (
        (16, 2, lambda: relu_forward.on("emulated")(a)),
        (16, 3, lambda: elementwise.add_forward.on("emulated")(a, a)),
        (8, 2, lambda: bn.batch_norm_apply.on("emulated")(a, None, None, C, np.abs(C) + 1)),
    ):
        with count() as counted:
            launch()
        (counters,) = counted.launches
        moved = counters.read_bytes + counters.written_bytes
        assert counters.coalesced_share == 1
        assert abs(counters.sectors_per_request - sectors) < 0.6
        assert 2 * arrays * n <= moved < 2.7 * arrays * n
