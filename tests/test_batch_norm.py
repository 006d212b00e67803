"""batch_norm: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import BATCH_NORM
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.batch_norm import (
    batch_norm_data_gradient,
    batch_norm_fixed_gradient,
    batch_norm_inference,
    batch_norm_sums,
    batch_norm_training,
)
from tests.support import assert_close, check_kernel, hundreds, needs_torch, on, randn, torch

MOMENTUM, EPS = 0.1, 1e-5
shapes = pytest.mark.parametrize("shape", BATCH_NORM, ids=str)


def rows_of(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape[:-1]))


def parameters(C: int, dtype: Any = np.float32) -> list[np.ndarray]:
    """gamma, beta, running_mean, running_var."""
    values = [randn(C, seed=seed, dtype=dtype) for seed in range(1, 5)]
    values[3] = np.abs(values[3]) + np.asarray(0.5, dtype)
    return values


def loops(arrays: list[np.ndarray], dy: np.ndarray, training: bool) -> dict[str, np.ndarray]:
    """One step by the formulas of the paper, in float64, one channel at a time."""
    x, gamma, beta, running_mean, running_var = (a.astype(np.float64) for a in arrays)
    out = {"y": np.empty_like(x), "dx": np.empty_like(x)}
    out |= {name: np.empty_like(gamma) for name in ("dgamma", "dbeta", "mean", "var")}
    for c in range(x.shape[-1]):
        v, g = x[..., c], dy[..., c].astype(np.float64)
        m = v.size
        mean, var = running_mean[c], running_var[c]
        out["mean"][c], out["var"][c] = mean, var
        if training:
            mean = v.sum() / m
            var = ((v - mean) ** 2).sum() / m
            out["mean"][c] += MOMENTUM * (mean - running_mean[c])
            out["var"][c] += MOMENTUM * (var * m / (m - 1) - running_var[c])
        invstd = 1 / np.sqrt(var + EPS)
        xhat = (v - mean) * invstd
        out["y"][..., c] = gamma[c] * xhat + beta[c]
        out["dgamma"][c], out["dbeta"][c] = (g * xhat).sum(), g.sum()
        dxhat = gamma[c] * g
        out["dx"][..., c] = dxhat * invstd
        if training:
            dvar = (dxhat * (v - mean)).sum() * -0.5 * invstd**3
            dmean = -dxhat.sum() * invstd - 2 * dvar * (v - mean).sum() / m
            out["dx"][..., c] += dvar * 2 * (v - mean) / m + dmean / m
    return out


def step(
    arrays: list[Any], dy: np.ndarray, device: str, training: bool, dtype: Any = np.float32
) -> dict[str, np.ndarray]:
    """y, dx, dgamma, dbeta and the running statistics after one step of F.batch_norm."""
    x, gamma, beta, mean, var = (
        None if a is None else Tensor(a.astype(dtype), requires_grad=i < 3, device=device)
        for i, a in enumerate(arrays)
    )
    y = F.batch_norm(x, gamma, beta, mean, var, training=training, momentum=MOMENTUM, eps=EPS)
    y.backward(dy.astype(dtype))
    named = {"y": y, "dx": x.grad, "dgamma": gamma and gamma.grad, "dbeta": beta and beta.grad,
             "mean": mean, "var": var}  # fmt: skip
    return {name: t.numpy().copy() for name, t in named.items() if t is not None}


def torch_step(arrays: list[Any], dy: np.ndarray, training: bool) -> dict[str, np.ndarray]:
    """The same by PyTorch in float64."""
    x, gamma, beta, mean, var = (
        None if a is None else torch.tensor(a.astype(np.float64)) for a in arrays
    )
    for t in (x, gamma, beta):
        if t is not None:
            t.requires_grad_()
    y = torch.nn.functional.batch_norm(
        x.movedim(-1, 1), mean, var, gamma, beta, training, MOMENTUM, EPS
    ).movedim(1, -1)
    y.backward(torch.tensor(dy.astype(np.float64)))
    named = {"y": y, "dx": x.grad, "dgamma": None if gamma is None else gamma.grad,
             "dbeta": None if beta is None else beta.grad, "mean": mean, "var": var}  # fmt: skip
    return {name: t.detach().numpy() for name, t in named.items() if t is not None}


@pytest.mark.parametrize("training", [True, False])
@shapes
def test_definition_is_the_formula(shape: tuple[int, ...], training: bool) -> None:
    x, dy = randn(*shape, dtype=np.float64) + 3, randn(*shape, seed=9, dtype=np.float64)
    arrays = [x, *parameters(shape[-1], np.float64)]
    expected, actual = loops(arrays, dy, training), step(arrays, dy, "cpu", training, np.float64)
    for name, value in expected.items():
        assert_close(actual[name], value, "float64", rows_of(shape), name)


@pytest.mark.parametrize("affine", [True, False])
@shapes
def test_kernels(shape: tuple[int, ...], affine: bool, kernel_device: str) -> None:
    x, dy = randn(*shape), randn(*shape, seed=9)
    gamma, beta, mean, var = parameters(shape[-1])
    if not affine:
        gamma = beta = None
    m = rows_of(shape)
    arrays = [x, gamma, beta, mean.copy(), var.copy()]
    check_kernel(batch_norm_training, kernel_device, arrays, MOMENTUM, EPS, terms=m)
    check_kernel(batch_norm_inference, kernel_device, [x, gamma, beta, mean, var], EPS)
    _, delta, invstd = batch_norm_training(*arrays, MOMENTUM, EPS)
    check_kernel(batch_norm_sums, kernel_device, [dy, x, None, delta, invstd], terms=9 * m)
    check_kernel(batch_norm_sums, kernel_device, [dy, x, mean, None, var], terms=9 * m)
    dgamma, dbeta = batch_norm_sums(dy, x, None, delta, invstd)
    sums = [dy, x, gamma, delta, invstd, dgamma, dbeta]
    check_kernel(batch_norm_data_gradient, kernel_device, sums)
    check_kernel(batch_norm_fixed_gradient, kernel_device, [dy, gamma, invstd])


@pytest.mark.parametrize("shape", [(70, 3), (5, 9, 8, 8)], ids=str)
def test_kernels_of_an_array_that_is_not_aligned(
    shape: tuple[int, ...], kernel_device: str
) -> None:
    x = randn(int(np.prod(shape)) + 1)[1:].reshape(shape)
    arrays = [x, *parameters(shape[-1])]
    check_kernel(batch_norm_training, kernel_device, arrays, MOMENTUM, EPS, terms=rows_of(shape))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (3, 20, 17, 5)], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e4])
def test_far_from_zero(mean: float, shape: tuple[int, ...], training: bool, device: str) -> None:
    """A mean of 1e4 at deviation 2: the values hardly fit float32, the sums must not lose more."""
    arrays = [2 * randn(*shape) + np.float32(mean), *parameters(5)]
    arrays[3] += np.float32(mean)
    dy = randn(*shape, seed=9)
    expected, actual = loops(arrays, dy, training), step(arrays, dy, device, training)
    for name, value in expected.items():
        assert_close(actual[name], value, "float32", rows_of(shape), name)


@pytest.mark.parametrize("mean", [0.0, 1.9, 2.1, 5.9, 6.1, 30.0])
def test_near_zero_and_not_so_near(mean: float) -> None:
    """On the CPU numbers near 0 are not centred first; one channel that is far makes all so."""
    arrays = [3 * randn(1000, 4), *parameters(4)]
    arrays[0][:, 1] += np.float32(3 * mean)
    arrays[0][0, 1] = 3 * mean  # the row that the others are measured from
    dy = randn(1000, 4, seed=9)
    expected, actual = loops(arrays, dy, True), step(arrays, dy, "cpu", True)
    for name, value in expected.items():
        assert_close(actual[name], value, "float32", 1000 if name.startswith("d") else 1, name)


def test_an_outlier_in_the_first_row(device: str) -> None:
    """The kernels measure from the first row; it may be far from all the others."""
    arrays = [randn(900, 3), *parameters(3)]
    arrays[0][0] = [1e4, -1e3, 50]
    dy = randn(900, 3, seed=9)
    expected, actual = loops(arrays, dy, True), step(arrays, dy, device, True)
    for name, value in expected.items():
        assert_close(actual[name], value, "float32", 900, name)


def test_drifting_rows(device: str) -> None:
    """Each chunk has another mean: the chunks must be joined by their means, too."""
    x = randn(20_000, 2) + np.linspace(-50, 50, 20_000, dtype=np.float32)[:, None]
    arrays, dy = [x, *parameters(2)], randn(20_000, 2, seed=9)
    expected, actual = loops(arrays, dy, True), step(arrays, dy, device, True)
    for name, value in expected.items():
        assert_close(actual[name], value, "float32", 20_000, name)


def test_a_constant_channel(device: str) -> None:
    """Variance 0: y is beta, and the gradient stays finite."""
    arrays = [np.full((6, 4), 7.25, np.float32), *parameters(4)]
    result = step(arrays, randn(6, 4, seed=9), device, True)
    assert_close(result["y"], np.tile(arrays[2], (6, 1)), "float32")
    assert np.isfinite(result["dx"]).all()


def test_nan_stays_in_its_channel(device: str) -> None:
    arrays = [randn(40, 3), *parameters(3)]
    arrays[0][5, 1] = np.nan
    y = step(arrays, randn(40, 3, seed=9), device, True)["y"]
    assert np.isnan(y[:, 1]).all()
    assert np.isfinite(y[:, [0, 2]]).all()


def test_same_bits_every_time(device: str) -> None:
    arrays, dy = [randn(3, 30, 31, 5), *parameters(5)], randn(3, 30, 31, 5, seed=9)
    runs = [step(arrays, dy, device, True) for _ in range(2)]
    for name, value in runs[0].items():
        assert value.tobytes() == runs[1][name].tobytes(), name


def test_running_statistics_are_updated_in_place(device: str) -> None:
    x, gamma, beta, mean, var = (Tensor(a, device=device) for a in [randn(9, 3), *parameters(3)])
    homes, before = (mean.data, var.data), (mean.numpy().copy(), var.numpy().copy())
    F.batch_norm(x, gamma, beta, mean, var, training=False)
    assert_close(mean.numpy(), before[0], "exact")
    F.batch_norm(x, gamma, beta, mean, var, training=True, momentum=0.0)
    assert_close(mean.numpy(), before[0], "exact")
    F.batch_norm(x, gamma, beta, mean, var, training=True, momentum=1.0)
    assert mean.data is homes[0]
    assert var.data is homes[1]
    assert_close(mean.numpy(), x.numpy().mean(axis=0), "float32", 9)
    assert_close(var.numpy(), x.numpy().var(axis=0, ddof=1), "float32", 9)


def test_the_running_variance_is_the_unbiased_one(device: str) -> None:
    """1 and 3: biased variance 1, which normalises, and unbiased 2, which is kept (as PyTorch)."""
    x = Tensor(np.array([[1], [3]], np.float32), device=device)
    mean, var = (Tensor(np.full(1, v, np.float32), device=device) for v in (0, 1))
    y = F.batch_norm(x, None, None, mean, var, training=True, momentum=0.1, eps=1e-9)
    assert_close(y.numpy(), np.array([[-1], [1]]), "float32")
    assert_close(mean.numpy(), np.array([0.2]), "float32")
    assert_close(var.numpy(), np.array([0.9 + 0.1 * 2]), "float32")


def test_inference_gradient_uses_the_statistics_of_its_forward_pass(device: str) -> None:
    """The running statistics may move between forward and backward."""
    x, gamma, beta, mean, var = [randn(9, 3), *parameters(3)]
    dy = randn(9, 3, seed=9)
    tensors = [Tensor(a.copy(), requires_grad=i < 3, device=device) for i, a in
               enumerate((x, gamma, beta, mean, var))]  # fmt: skip
    y = F.batch_norm(*tensors, training=False)
    tensors[3].data[...] += 5
    tensors[4].data[...] *= 3
    y.backward(dy)
    expected = loops([x, gamma, beta, mean, var], dy, False)
    for t, name in zip(tensors, ("dx", "dgamma", "dbeta"), strict=False):
        assert_close(t.grad.numpy(), expected[name], "float32", 9, name)


def test_gradients_only_where_needed() -> None:
    x, gamma, beta, mean, var = (Tensor(a) for a in [randn(9, 3), *parameters(3)])
    for training in (True, False):
        beta.requires_grad, beta.grad = True, None
        F.batch_norm(x, gamma, beta, mean, var, training=training).backward(randn(9, 3, seed=9))
        assert x.grad is None
        assert gamma.grad is None
        assert_close(beta.grad.numpy(), randn(9, 3, seed=9).sum(axis=0), "float32", 9)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 2, 2), (3, 2, 1)], ids=str)
def test_gradcheck(shape: tuple[int, ...], training: bool) -> None:
    gamma, beta, mean, var = parameters(shape[-1], np.float64)
    inputs = [Tensor(a, requires_grad=True) for a in (randn(*shape, dtype=np.float64), gamma, beta)]

    def run(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        running = Tensor(mean.copy()), Tensor(var.copy())
        return F.batch_norm(x, gamma, beta, *running, training=training)

    assert gpucnn.gradcheck(run, inputs)


@needs_torch
@given(
    shape=st.tuples(st.integers(2, 4), st.integers(1, 7), st.integers(1, 7), st.integers(1, 35)),
    flat=st.booleans(),
    affine=st.booleans(),
    tracked=st.booleans(),
    training=st.booleans(),
    shift=st.sampled_from([0, 3, -100]),
)
@hundreds
def test_agrees_with_pytorch(
    shape: tuple[int, ...], flat: bool, affine: bool, tracked: bool, training: bool, shift: int
) -> None:
    shape = (shape[0] * shape[1], shape[3]) if flat else shape
    x = randn(*shape) + np.float32(shift)
    gamma, beta, mean, var = parameters(shape[-1])
    arrays = [x, *([gamma, beta] if affine else [None, None]), mean, var]
    if training and not tracked:
        arrays[3:] = None, None
    dy = randn(*shape, seed=9)
    expected, actual = torch_step(arrays, dy, training), step(arrays, dy, "cpu", training)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, "torch", rows_of(shape), name)


@needs_torch
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 3, 2, 3)], ids=str)
def test_layers_agree_with_pytorch(
    shape: tuple[int, ...], affine: bool, tracked: bool, momentum: float | None
) -> None:
    """Three steps of training, then inference; the states have the same names."""
    name = "BatchNorm2d" if len(shape) == 4 else "BatchNorm1d"
    options = {"momentum": momentum, "affine": affine, "track_running_stats": tracked}
    ours, theirs = getattr(nn, name)(3, **options), getattr(torch.nn, name)(3, **options)
    for t in range(4):
        if t == 3:
            ours.eval()
            theirs.eval()
        x = randn(*shape, seed=t) + np.float32(t)
        y = theirs(torch.tensor(x).movedim(-1, 1)).movedim(1, -1)
        assert_close(ours(Tensor(x)).numpy(), y.detach().numpy(), "torch", rows_of(shape))
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    if momentum is not None:
        state.pop("num_batches_tracked", None)
    assert ours.state_dict().keys() == state.keys()
    for key, value in ours.state_dict().items():
        assert_close(value, state[key], "torch", rows_of(shape), key)


def test_the_average_of_all_batches_continues_after_loading(device: str) -> None:
    first, second = (nn.BatchNorm1d(2, momentum=None).to(device) for _ in range(2))
    batches = [randn(4, 2, seed=i) for i in range(3)]
    for x in batches[:2]:
        first(Tensor(x, device=device))
    second.load_state_dict(first.state_dict())
    second(Tensor(batches[2], device=device))
    mean = np.mean([x.mean(axis=0) for x in batches], axis=0)
    assert_close(second.running_mean.numpy(), mean, "float32", 4)
    assert second.num_batches_tracked.item() == 3
    second.eval()(Tensor(batches[2], device=device))
    assert second.num_batches_tracked.item() == 3
    with pytest.raises(ValueError, match="more than one value per channel"):
        second.train()(Tensor(batches[0][:1], device=device))
    assert second.num_batches_tracked.item() == 3


def test_layer_repr() -> None:
    assert repr(nn.BatchNorm1d(3)) == "BatchNorm1d(3, eps=1e-05, momentum=0.1)"
    layer = nn.BatchNorm2d(3, momentum=None, affine=False, track_running_stats=False)
    expected = "(3, eps=1e-05, momentum=None, affine=False, track_running_stats=False)"
    assert repr(layer) == "BatchNorm2d" + expected
    assert not layer.state_dict()


X = (4, 3)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.zeros(3, np.float32)}, ValueError, "x must have shape"),
        ({"x": np.zeros((2, 0, 3), np.float32)}, ValueError, "x must not be empty"),
        ({"x": np.zeros(X, np.int32)}, TypeError, "x must be float32"),
        ({"x": np.zeros((1, 3), np.float32)}, ValueError, "x must hold more than one value"),
        ({"x": np.zeros((1, 1, 1, 3), np.float32)}, ValueError, "x must hold more than one value"),
        ({"gamma": np.zeros(4, np.float32)}, ValueError, r"gamma must have shape \(3,\)"),
        ({"beta": np.zeros((3, 1), np.float32)}, ValueError, r"beta must have shape \(3,\)"),
        ({"running_mean": np.zeros(2, np.float32)}, ValueError, "running_mean must have shape"),
        ({"running_var": np.zeros(2, np.float32)}, ValueError, "running_var must have shape"),
        ({"gamma": np.zeros(3, np.float64)}, TypeError, "gamma must be float32 like x"),
        ({"running_mean": None}, ValueError, "running_mean and running_var"),
        ({"running_mean": None, "running_var": None, "training": False}, ValueError,
         "running_mean must be given"),
        ({"momentum": 1.5}, ValueError, "momentum must lie between 0 and 1"),
        ({"momentum": float("nan")}, ValueError, "momentum must lie"),
        ({"momentum": None}, TypeError, "momentum must be a number"),
        ({"eps": 0.0}, ValueError, "eps must be > 0"),
        ({"eps": float("inf")}, ValueError, "eps must be > 0"),
        ({"training": 1}, TypeError, "training must be True or False"),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {
        "x": np.zeros(X, np.float32),
        **{name: np.ones(3, np.float32) for name in ("gamma", "beta", "running_mean")},
        "running_var": np.ones(3, np.float32),
        "training": True,
        **change,
    }
    for name, value in arguments.items():
        if isinstance(value, np.ndarray):
            arguments[name] = Tensor(value)
    with pytest.raises(error, match=match):
        F.batch_norm(**arguments)


def test_running_statistics_that_require_a_gradient() -> None:
    x, one = Tensor(randn(4, 3)), Tensor(np.ones(3, np.float32), requires_grad=True)
    with pytest.raises(ValueError, match="running_mean and running_var must not require"):
        F.batch_norm(x, None, None, one, one, training=True)


@pytest.mark.emulated
def test_mixed_devices() -> None:
    x, gamma = Tensor(randn(4, 3), device="cpu"), Tensor(randn(3), device="emulated")
    with pytest.raises(DeviceError, match="share a device, got cpu and emulated"):
        F.batch_norm(x, gamma, None, None, None, training=True)


def test_the_definition_leaves_its_input_alone(kernel_device: str) -> None:
    x = randn(2, 3, 3, 4)
    (given_x,) = on(kernel_device, x.copy())
    batch_norm_training.on(kernel_device)(given_x, None, None, None, None, MOMENTUM, EPS)
    assert_close(to_host(given_x), x, "exact")
