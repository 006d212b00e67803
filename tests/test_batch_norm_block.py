"""batch_norm_block: what it is made of -> definition -> kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import BATCH_NORM_BLOCK, BatchNormBlockCase
from bench.problems.blocks import geometry_of, slope_of
from gpucnn import Tensor
from gpucnn import functional as F
from gpucnn.kernel import observe_launches
from gpucnn.ops.batch_norm_block import (
    batch_norm_block_backward,
    batch_norm_block_forward,
    batch_norm_statistics,
)
from gpucnn.ops.batch_norm_block_pool import (
    NEGATIVE,
    NOWHERE,
    batch_norm_block_pool_backward,
    batch_norm_block_pool_forward,
)
from tests.blocks import EPS, MOMENTUM, NAMES, arrays_of, composed, step
from tests.support import assert_close, check_kernel, randn

cases = pytest.mark.parametrize("case", BATCH_NORM_BLOCK, ids=str)


@pytest.mark.parametrize("training", [True, False])
@cases
def test_definition_is_what_it_is_made_of(case: BatchNormBlockCase, training: bool) -> None:
    arrays = arrays_of(case, np.float64)
    expected = step(composed, arrays, training, case.options)
    actual = step(F.batch_norm_block, arrays, training, case.options)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, "float64", int(np.prod(case.x)), name)


@pytest.mark.parametrize("training", [True, False])
@cases
def test_values_on_every_device(case: BatchNormBlockCase, training: bool, device: str) -> None:
    arrays = arrays_of(case)
    expected = step(composed, [None if a is None else a.astype("f8") for a in arrays], training,
                    case.options)  # fmt: skip
    actual = step(F.batch_norm_block, arrays, training, case.options, device)
    for name, value in expected.items():
        assert_close(actual[name], value, "float32", int(np.prod(case.x)), name)


@pytest.mark.parametrize("case", [c for c in BATCH_NORM_BLOCK if not c.residual], ids=str)
def test_the_same_bits_as_the_kernels_one_after_the_other(
    case: BatchNormBlockCase, kernel_device: str
) -> None:
    """Forward: the same additions in the same order, so that the same cells win."""
    arrays = arrays_of(case)
    found = [
        step(f, arrays, True, case.options, kernel_device) for f in (F.batch_norm_block, composed)
    ]
    for name in ("y", "mean", "var"):
        assert_close(found[0][name], found[1][name], "exact", what=name)


def given_of(case: BatchNormBlockCase, trained: bool) -> tuple[list[Any], float]:
    """gamma, beta, mean, delta and spread, and eps."""
    x, gamma, beta, mean, var, _ = arrays_of(case)
    if not trained:
        return [gamma, beta, mean, None, var], EPS
    delta, invstd = batch_norm_statistics(x, None, None, MOMENTUM, EPS)
    return [gamma, beta, None, delta, invstd], 0.0


@pytest.mark.parametrize("trained", [True, False])
@cases
def test_kernels(case: BatchNormBlockCase, trained: bool, kernel_device: str) -> None:
    x, *_, residual = arrays_of(case)
    s, slope, m = geometry_of(case), slope_of(case.options), x.size // x.shape[-1]
    per_channel, eps = given_of(case, trained)
    forward = [x, residual, *per_channel]
    if s is not None:
        check_kernel(batch_norm_block_pool_forward, kernel_device, forward, eps, slope, s)
        y, route = batch_norm_block_pool_forward(*forward, eps, slope, s)
        backward, given = batch_norm_block_pool_backward, [per_channel[0], *per_channel[2:]]
        rest: tuple[Any, ...] = (eps, slope, case.residual, True, s)
    else:
        keep = case.residual and slope != 1
        check_kernel(batch_norm_block_forward, kernel_device, forward, eps, slope, keep)
        y, route = batch_norm_block_forward(*forward, eps, slope, keep)
        backward, given = batch_norm_block_backward, per_channel
        rest = (eps, slope, case.residual, True)
    dy = randn(*y.shape, seed=9)
    check_kernel(backward, kernel_device, [dy, x, route, *given], *rest, terms=9 * m)
    running = [x, *arrays_of(case)[3:5]]
    check_kernel(batch_norm_statistics, kernel_device, running, MOMENTUM, EPS, terms=m)


@pytest.mark.parametrize("name", ["x", "residual", "dy"])
@pytest.mark.parametrize("options", [{}, {"kernel_size": 2}], ids=str)
def test_kernels_of_an_array_that_is_not_aligned(
    name: str, options: dict[str, Any], kernel_device: str
) -> None:
    case = BatchNormBlockCase((2, 6, 5, 8), True, options)
    arrays = arrays_of(case)
    expected = step(composed, arrays, True, options)
    tensors = [Tensor(a, requires_grad=i not in (3, 4), device=kernel_device) for i, a in
               enumerate(arrays)]  # fmt: skip

    def shifted(t: Any) -> Any:
        home = gpucnn.device.to_device(np.zeros(t.size + 1, np.float32), kernel_device)
        home[1:] = t.reshape(-1)
        return home[1:].reshape(t.shape)

    for i in {"x": [0], "residual": [5], "dy": []}[name]:
        tensors[i].data = shifted(tensors[i].data)
    y = F.batch_norm_block(*tensors, training=True, **options)
    dy = gpucnn.device.to_device(randn(*y.shape, seed=9), kernel_device)
    y.backward(Tensor._wrap(shifted(dy) if name == "dy" else dy, kernel_device))
    for found, t in zip(NAMES, (*tensors[:3], tensors[5]), strict=True):
        assert_close(t.grad.numpy(), expected[found], "float32", 480, found)
    assert_close(y.numpy(), expected["y"], "float32", 60)


def test_codes_by_hand(device: str) -> None:
    """Mean 0, deviation 1, so that z is x: a winner, a blocked window, NaN, equal maxima."""
    windows = [[1, 2, 4, 3], [-1, -2, -3, -4], [5, np.nan, 7, 1], [2, 6, 6, 0]]
    x = np.array(windows, np.float32).reshape(1, 4, 2, 2, 1).transpose(0, 2, 1, 3, 4)
    x = np.ascontiguousarray(x.reshape(1, 2, 8, 1))
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    s = geometry_of(BatchNormBlockCase(x.shape, False, {"kernel_size": 2}))
    run = batch_norm_block_pool_forward.on(device)
    arrays = [gpucnn.device.to_device(a, device) for a in (x, zero, one)]
    for slope, codes, values in (
        (0.0, [2, NOWHERE, 1, 1], [4, 0, np.nan, 6]),
        (0.5, [2, 0 + NEGATIVE, 1, 1], [4, -0.5, np.nan, 6]),
        (-1.0, [2, 3 + NEGATIVE, 1, 1], [4, 4, np.nan, 6]),
    ):
        y, found = run(arrays[0], None, None, None, arrays[1], None, arrays[2], 0.0, slope, s)
        assert gpucnn.device.to_host(found).ravel().tolist() == codes
        assert_close(gpucnn.device.to_host(y).ravel(), np.array(values, np.float32), "exact")


def test_bits_by_hand(device: str) -> None:
    """Bit c % 8 of byte c // 8 says z <= 0; NaN is not, and 0 is."""
    x = np.array([[-1, 0, 1, np.nan, -1, 1, 1, 1, -1], [1, 1, 1, 1, 1, 1, 1, -1, 1]], np.float32)
    like, one = np.zeros(9, np.float32), np.ones(9, np.float32)
    arrays = [gpucnn.device.to_device(a, device) for a in (x, np.zeros_like(x), like, one)]
    run = batch_norm_block_forward.on(device)
    y, bits = run(*arrays[:2], None, None, arrays[2], None, arrays[3], 0.0, 0.0, True)
    assert gpucnn.device.to_host(bits).tolist() == [[0b10011, 1], [0b10000000, 0]]
    assert_close(gpucnn.device.to_host(y), np.where(x <= 0, 0, x), "exact")


def test_what_is_kept_between_the_passes() -> None:
    """x and, of what was made, a bit per element or a byte per output."""
    shape = (2, 8, 8, 16)
    for residual, options, route in (
        (False, {}, 2 * 8 * 8 * 2),
        (False, {"activation": "none"}, 0),
        (True, {}, 2 * 8 * 8 * 2),
        (True, {"activation": "none"}, 0),
        (True, {"kernel_size": 2}, 2 * 4 * 4 * 16),
    ):
        case = BatchNormBlockCase(shape, residual, options)
        x, *others = (None if a is None else Tensor(a) for a in arrays_of(case))
        assert x is not None
        x.requires_grad = True
        creator = F.batch_norm_block(x, *others, training=True, **options)._creator
        kept = [v for v in vars(creator).values() if isinstance(v, np.ndarray) and v.ndim > 1]
        assert sum(a.nbytes for a in kept) == x.data.nbytes + route, options
    with gpucnn.no_grad():
        assert F.batch_norm_block(x, *others, training=True)._creator is None


def test_launches(kernel_device: str) -> None:
    """Two each way in training, and in inference one and two."""
    names: list[str] = []
    case = BatchNormBlockCase((2, 4, 4, 8), True, {"kernel_size": 2})
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        step(F.batch_norm_block, arrays_of(case), True, case.options, kernel_device)
        step(F.batch_norm_block, arrays_of(case), False, case.options, kernel_device)
    back = [
        "batch_norm_block_pool_sums",
        "batch_norm_block_pool_gradient",
    ]
    pool = ["batch_norm_block_pool"]
    assert names == ["batch_norm_statistics", *pool, *back, *pool, *back]


@pytest.mark.parametrize("mean", [1e4, -1e4])
def test_far_from_zero(mean: float, device: str) -> None:
    """A mean of 1e4 at deviation 2, as in batch_norm: the sums lose no more than the values."""
    for case in (BatchNormBlockCase((3, 20, 17, 5), True), BATCH_NORM_BLOCK[9]):
        arrays = arrays_of(case)
        arrays[0] = 2 * arrays[0] + np.float32(mean)
        arrays[3] += np.float32(mean)
        wide = [None if a is None else a.astype(np.float64) for a in arrays]
        expected = step(composed, wide, True, case.options)
        actual = step(F.batch_norm_block, arrays, True, case.options, device)
        for name, value in expected.items():
            assert_close(actual[name], value, "float32", 1020, name)


def test_nan_stays_in_its_channel(device: str) -> None:
    for options in ({}, {"kernel_size": 2}):
        case = BatchNormBlockCase((2, 4, 4, 3), False, options)
        arrays = arrays_of(case)
        arrays[0][1, 2, 3, 1] = np.nan
        found = step(F.batch_norm_block, arrays, True, options, device)
        assert np.isnan(found["y"][..., 1]).all()
        assert np.isfinite(found["dx"][..., [0, 2]]).all()
        assert np.isnan(found["dx"][..., 1]).all()


def test_a_blocked_gradient_is_zero_whatever_it_is(device: str) -> None:
    """A ReLU that blocks does not pass a NaN or an infinity from above."""
    for options in ({}, {"kernel_size": 2}):
        for residual in (False, True):
            x = Tensor(randn(2, 4, 4, 8), requires_grad=True, device=device)
            like = (Tensor(np.full(8, v, np.float32), device=device) for v in (1, -9, 0, 1))
            added = Tensor(np.zeros(x.shape, np.float32), device=device) if residual else None
            y = F.batch_norm_block(x, *like, added, training=False, **options)
            y.backward(np.full(y.shape, np.inf, np.float32))
            assert x.grad is not None
            assert not x.grad.numpy().any()


def test_same_bits_every_time(device: str) -> None:
    for case in (BATCH_NORM_BLOCK[4], BATCH_NORM_BLOCK[13]):
        runs = [step(F.batch_norm_block, arrays_of(case), True, case.options, device) for _ in "ab"]
        for name, value in runs[0].items():
            assert value.tobytes() == runs[1][name].tobytes(), name


def test_the_statistics_of_the_forward_pass_are_those_of_the_gradient(device: str) -> None:
    """In inference the running statistics may move between forward and backward."""
    case = BatchNormBlockCase((3, 2, 2, 4))
    arrays = arrays_of(case)
    expected = step(F.batch_norm_block, arrays, False, {}, device)
    tensors = [None if a is None else Tensor(a.copy(), requires_grad=i < 3, device=device)
               for i, a in enumerate(arrays)]  # fmt: skip
    y = F.batch_norm_block(*tensors, training=False)
    for t in tensors[3:5]:
        assert t is not None
        t.data[...] += 3
    y.backward(randn(*y.shape, seed=9))
    for name, t in zip(NAMES, tensors[:3], strict=False):
        assert t is not None
        assert_close(t.grad.numpy(), expected[name], "exact", what=name)


def test_gradients_only_where_needed() -> None:
    for options in ({}, {"kernel_size": 2}):
        for only in range(6):
            case = BatchNormBlockCase((2, 4, 4, 3), True, options)
            for training in (True, False):
                tensors = [
                    Tensor(a, requires_grad=i == only) for i, a in enumerate(arrays_of(case))
                ]
                if only in (3, 4):
                    with pytest.raises(ValueError, match="must not require a gradient"):
                        F.batch_norm_block(*tensors, training=training, **options)
                    continue
                y = F.batch_norm_block(*tensors, training=training, **options)
                y.backward(np.ones(y.shape, np.float32))
                assert [t.grad is not None for t in tensors] == [i == only for i in range(6)]
