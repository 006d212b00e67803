"""batch_norm_block: what it is made of -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import BATCH_NORM_BLOCK, BatchNormBlockCase
from bench.problems.blocks import geometry_of, slope_of
from gpucnn import DeviceError, Tensor
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
from tests.support import assert_close, check_kernel, hundreds, needs_torch, randn, torch

MOMENTUM, EPS = 0.1, 1e-5
cases = pytest.mark.parametrize("case", BATCH_NORM_BLOCK, ids=str)
POOL = ("kernel_size", "stride", "padding", "edge")
NAMES = ("dx", "dgamma", "dbeta", "dresidual")


def arrays_of(case: BatchNormBlockCase, dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    """x, gamma, beta, running_mean, running_var and the residual or None."""
    C = case.x[-1]
    shapes = (case.x, (C,), (C,), (C,), (C,), case.x)
    made: list[Any] = [randn(*s, seed=10 * seed + i, dtype=dtype) for i, s in enumerate(shapes)]
    made[4] = np.abs(made[4]) + dtype(0.5)
    made[5] = made[5] if case.residual else None
    return made


def step(
    function: Any, arrays: list[Any], training: bool, options: dict[str, Any], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """y, the gradients and the running statistics after one step."""
    tensors = [
        None if a is None else Tensor(a.copy(), requires_grad=i not in (3, 4), device=device)
        for i, a in enumerate(arrays)
    ]
    y = function(*tensors, training=training, momentum=MOMENTUM, eps=EPS, **options)
    y.backward(randn(*y.shape, seed=9, dtype=y.dtype))
    x, gamma, beta, mean, var, residual = tensors
    found = {"y": y, "mean": mean, "var": var}
    found |= {
        name: t.grad
        for name, t in zip(NAMES, (x, gamma, beta, residual), strict=True)
        if t is not None
    }
    return {name: t.numpy().copy() for name, t in found.items()}


def composed(
    x: Tensor, gamma: Any, beta: Any, mean: Any, var: Any, residual: Any, **options: Any
) -> Tensor:
    """The same by the functions that the block is made of."""
    numbers = {name: options.pop(name) for name in ("training", "momentum", "eps")}
    pool = {name: options.pop(name) for name in POOL if name in options}
    y = F.batch_norm(x, gamma, beta, mean, var, **numbers)
    y = y if residual is None else F.add(y, residual)
    activation = options.get("activation", "relu")
    if activation == "relu":
        y = F.relu(y)
    elif activation == "leaky_relu":
        y = F.leaky_relu(y, options.get("negative_slope", 0.01))
    return F.max_pool2d(y, **pool) if pool else y


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
        (False, {}, 0),
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
    """Three each way in training, and in inference one and three."""
    names: list[str] = []
    case = BatchNormBlockCase((2, 4, 4, 8), True, {"kernel_size": 2})
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        step(F.batch_norm_block, arrays_of(case), True, case.options, kernel_device)
        step(F.batch_norm_block, arrays_of(case), False, case.options, kernel_device)
    back = [
        "batch_norm_block_pool_sums",
        "batch_norm_join_sums",
        "batch_norm_block_pool_gradient",
    ]
    statistics = ["batch_norm_statistics", "batch_norm_join_moments"]
    pool = ["batch_norm_block_pool"]
    assert names == [*statistics, *pool, *back, *pool, *back]


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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "leaky_relu", "negative_slope": -0.4}, {"activation": "none"},
     {"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck(residual: bool, options: dict[str, Any], training: bool) -> None:
    case = BatchNormBlockCase((2, 3, 4, 2), residual, options)
    x, gamma, beta, mean, var, added = arrays_of(case, np.float64, seed=3)
    inputs = [Tensor(a, requires_grad=True) for a in (x, gamma, beta, added) if a is not None]

    def run(x: Tensor, gamma: Tensor, beta: Tensor, added: Tensor | None = None) -> Tensor:
        running = Tensor(mean.copy()), Tensor(var.copy())
        return F.batch_norm_block(x, gamma, beta, *running, added, training=training, **options)

    assert gpucnn.gradcheck(run, inputs)


def torch_block(
    arrays: list[Any], training: bool, options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """One step by PyTorch in float64."""
    x, gamma, beta, mean, var, residual = (
        None if a is None else torch.tensor(a.astype(np.float64)) for a in arrays
    )
    for t in (x, gamma, beta, residual):
        if t is not None:
            t.requires_grad_()
    f = torch.nn.functional
    y = f.batch_norm(x.movedim(-1, 1), mean, var, gamma, beta, training, MOMENTUM, EPS)
    y = y if residual is None else y + residual.movedim(-1, 1)
    if options["activation"] == "relu":
        y = f.relu(y)
    elif options["activation"] == "leaky_relu":
        y = f.leaky_relu(y, options["negative_slope"])
    if "kernel_size" in options:
        window = (options["kernel_size"], options["stride"], options["padding"])
        y = f.max_pool2d(y, *window, ceil_mode=options["edge"] == "ceil")
    y = y.movedim(1, -1)
    y.backward(torch.tensor(randn(*y.shape, seed=9).astype(np.float64)))
    found = {"y": y, "mean": mean, "var": var}
    found |= {n: t.grad for n, t in zip(NAMES, (x, gamma, beta, residual), strict=True)
              if t is not None}  # fmt: skip
    return {name: t.detach().numpy() for name, t in found.items()}


@needs_torch
@given(
    shape=st.tuples(st.integers(2, 3), st.integers(3, 7), st.integers(3, 7), st.integers(1, 35)),
    residual=st.booleans(),
    training=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu", "none"]),
    negative_slope=st.sampled_from([0.1, 0.0, -0.5]),
    window=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1)),
    edge=st.sampled_from(["drop", "ceil"]),
)
@hundreds
def test_agrees_with_pytorch(
    shape: tuple[int, ...], residual: bool, training: bool, activation: str, negative_slope: float,
    window: tuple[int, int, int] | None, edge: str,
) -> None:  # fmt: skip
    options: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
    if window is not None:
        kernel, stride, padding = window
        padding = min(padding, kernel // 2)
        options |= {"kernel_size": kernel, "stride": stride, "padding": padding, "edge": edge}
    arrays = arrays_of(BatchNormBlockCase(shape, residual, options))
    expected = torch_block(arrays, training, options)
    actual = step(F.batch_norm_block, arrays, training, options)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, "torch", int(np.prod(shape)), name)


def test_no_images(device: str) -> None:
    """An empty batch: the shape, gradients of 0, and running statistics left alone."""
    C = 3
    x, residual = (
        Tensor(np.zeros((0, 6, 4, C), np.float32), requires_grad=True, device=device) for _ in "xr"
    )
    vectors = [Tensor(np.full(C, v, np.float32), device=device) for v in (1, 0, 2, 3)]
    for activation in ("relu", "leaky_relu", "none"):
        y = F.batch_norm_block(
            x, *vectors, residual, training=True, activation=activation, kernel_size=2
        )
        assert y.shape == (0, 3, 2, C)
        y.backward(np.zeros(y.shape, np.float32))
        assert x.grad is not None
        assert x.grad.shape == x.shape
    assert vectors[2].numpy().tolist() == [2] * C


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"activation": "gelu"}, ValueError, "activation must be one of none, relu, leaky_relu"),
        ({"activation": "leaky_relu", "negative_slope": np.inf}, ValueError, "negative_slope"),
        ({"activation": "leaky_relu", "negative_slope": "a"}, TypeError, "negative_slope"),
        ({"residual": Tensor(randn(2, 6, 4, 4))}, ValueError, "residual must have shape"),
        ({"residual": Tensor(randn(2, 6, 4, 3, dtype=np.float64))}, TypeError, "residual must be"),
        ({"residual": randn(2, 6, 4, 3)}, TypeError, "residual must be a Tensor"),
        ({"gamma": Tensor(randn(2))}, ValueError, "gamma must have shape"),
        ({"training": 1}, TypeError, "training must be True or False"),
        ({"momentum": 2.0}, ValueError, "momentum must lie between 0 and 1"),
        ({"eps": 0.0}, ValueError, "eps must be > 0"),
        ({"x": Tensor(randn(1, 1, 1, 3))}, ValueError, "more than one value per channel"),
        ({"x": randn(2, 6, 4, 3)}, TypeError, "x must be a Tensor"),
        ({"running_mean": None}, ValueError, "running_mean and running_var"),
        ({"edge": "zero", "kernel_size": 2}, ValueError, "edge must be one of drop, ceil"),
        ({"kernel_size": 12, "padding": 4}, ValueError, "a window of 12 x 12"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        ({"kernel_size": 2, "stride": 0}, ValueError, "stride must be >= 1"),
        ({"kernel_size": 2, "padding": 2}, ValueError, "padding must be smaller"),
        ({"kernel_size": 2, "x": Tensor(randn(6, 3))}, ValueError, "x must have shape"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    vectors = dict(zip(("gamma", "beta", "running_mean"), (randn(3) for _ in "abc"), strict=True))
    arguments: dict[str, Any] = {name: Tensor(v) for name, v in vectors.items()}
    arguments |= {"x": Tensor(randn(2, 6, 4, 3)), "running_var": Tensor(np.ones(3, np.float32))}
    arguments |= {"training": True} | change
    with pytest.raises(error, match=words):
        F.batch_norm_block(**arguments)


@pytest.mark.emulated
def test_two_devices() -> None:
    x = Tensor(randn(2, 3), device="emulated")
    with pytest.raises(DeviceError, match="share a device"):
        F.batch_norm_block(x, None, None, None, None, Tensor(randn(2, 3)), training=True)
