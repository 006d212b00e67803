"""group_norm and layer_norm: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import GROUP_NORM
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError
from gpucnn.ops.group_norm import (
    group_norm_data_gradient,
    group_norm_forward,
    group_norm_sums,
)
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

EPS = 1e-5
cases = pytest.mark.parametrize(("shape", "groups"), GROUP_NORM, ids=str)


def pixels_of(shape: tuple[int, ...]) -> tuple[int, int, int]:
    return shape[0], int(np.prod(shape[1:-1])), shape[-1]


def loops(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dy: np.ndarray, groups: int
) -> dict[str, np.ndarray]:
    """One group at a time, by the chain rule through mean and variance, in float64."""
    x, weight, bias, dy = (a.astype(np.float64) for a in (x, weight, bias, dy))
    out = {"y": np.empty_like(x), "dx": np.empty_like(x)}
    out |= {"dweight": np.zeros_like(weight), "dbias": np.zeros_like(bias)}
    each = x.shape[-1] // groups
    for n, k in np.ndindex(x.shape[0], groups):
        own = (n, ..., slice(k * each, (k + 1) * each))
        w, v, g = weight[own[2]], x[own], dy[own]
        m = v.size
        mean = v.sum() / m
        var = ((v - mean) ** 2).sum() / m
        invstd = 1 / np.sqrt(var + EPS)
        xhat = (v - mean) * invstd
        out["y"][own] = xhat * w + bias[own[2]]
        axes = tuple(range(v.ndim - 1))
        out["dweight"][own[2]] += (g * xhat).sum(axis=axes)
        out["dbias"][own[2]] += g.sum(axis=axes)
        dxhat = g * w
        dvar = (dxhat * (v - mean)).sum() * -0.5 * invstd**3
        dmean = -dxhat.sum() * invstd - 2 * dvar * (v - mean).sum() / m
        out["dx"][own] = dxhat * invstd + dvar * 2 * (v - mean) / m + dmean / m
    return out


def step(
    x: np.ndarray, weight: Any, bias: Any, dy: np.ndarray, groups: int, device: str = "cpu"
) -> dict[str, np.ndarray]:
    arrays = [a for a in (x, weight, bias) if a is not None]

    def run(x: Tensor, *affine: Tensor) -> Tensor:
        given_ones = iter(affine)
        both = [None if a is None else next(given_ones) for a in (weight, bias)]
        return F.group_norm(x, groups, *both, EPS)

    y, grads = gradients(run, arrays, dy, device)
    names = ["dx"] + [n for n, a in (("dweight", weight), ("dbias", bias)) if a is not None]
    return {"y": y, **dict(zip(names, grads, strict=True))}


def check(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray], bar: str) -> None:
    rows = actual["y"].size // actual["y"].shape[-1]
    for name, value in actual.items():
        assert_close(value, expected[name], bar, rows if name in ("dweight", "dbias") else 9, name)


def inputs(shape: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    """x, weight, bias, dy."""
    sizes = (shape, shape[-1:], shape[-1:], shape)
    return [randn(*size, seed=i, dtype=dtype) for i, size in enumerate(sizes)]


@cases
def test_definition_is_the_formula(shape: tuple[int, ...], groups: int) -> None:
    x, weight, bias, dy = inputs(shape, np.float64)
    x = x + 3
    check(step(x, weight, bias, dy, groups), loops(x, weight, bias, dy, groups), "float64")


def test_weight_or_bias_alone(device: str) -> None:
    x, weight, bias, dy = inputs((2, 5, 6))
    expected = loops(x, np.ones(6), bias, dy, 3)
    check(step(x, None, bias, dy, 3, device), expected, "float32")
    expected = loops(x, weight, np.zeros(6), dy, 3)
    check(step(x, weight, None, dy, 3, device), expected, "float32")


@pytest.mark.parametrize("affine", [True, False])
@cases
def test_kernels(shape: tuple[int, ...], groups: int, affine: bool, kernel_device: str) -> None:
    view = pixels_of(shape)
    x, weight, bias, dy = inputs(shape)
    x, dy = x.reshape(view), dy.reshape(view)
    if not affine:
        weight = bias = None
    if x.size // (view[0] * groups) == 1:  # x̂ is 0: the kernel's rounding would be divided by √eps
        x = np.round(x)
    check_kernel(group_norm_forward, kernel_device, [x, weight, bias], groups, EPS, terms=9)
    _, statistics = group_norm_forward(x, weight, bias, groups, EPS)
    saved = [dy, x, weight, statistics]
    check_kernel(group_norm_data_gradient, kernel_device, saved, terms=9)
    sums = [dy, x, statistics]
    check_kernel(group_norm_sums, kernel_device, sums, terms=9 * view[0] * view[1])


@pytest.mark.parametrize(("shape", "groups"), [((3, 8), 2), ((2, 190, 8), 1)], ids=str)
def test_arrays_that_are_not_aligned(
    shape: tuple[int, ...], groups: int, kernel_device: str
) -> None:
    view = pixels_of(shape)
    x = randn(int(np.prod(view)) + 1)[1:].reshape(view)
    weight = randn(view[-1] + 1)[1:]
    check_kernel(group_norm_forward, kernel_device, [x, weight, None], groups, EPS, terms=9)


@pytest.mark.parametrize(("shape", "groups"), [((900, 100), 1), ((40, 50, 60), 3)], ids=str)
def test_more_than_one_chunk(shape: tuple[int, ...], groups: int) -> None:
    """The definition cuts the batch; every part must be written and added."""
    arrays = inputs(shape, np.float64)
    check(step(*arrays, groups), loops(*arrays, groups), "float64")


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 40), 1), ((2, 6, 7, 6), 2), ((2, 30, 31, 3), 1)], ids=str
)
@pytest.mark.parametrize("mean", [0.0, 1e4, -1e4])
def test_far_from_zero(mean: float, shape: tuple[int, ...], groups: int, device: str) -> None:
    """A mean of 1e4 at deviation 2: the values hardly fit float32, the sums must not lose more."""
    x, weight, bias, dy = inputs(shape)
    arrays = [2 * x + np.float32(mean), weight, bias, dy]
    check(step(*arrays, groups, device), loops(*arrays, groups), "float32")


def test_an_outlier_in_front(device: str) -> None:
    """The kernels measure from a group's first value; it may be far from all the others."""
    x, weight, bias, dy = inputs((3, 900))
    x[:, 0] = [1e4, -1e3, 50]
    check(step(x, weight, bias, dy, 1, device), loops(x, weight, bias, dy, 1), "float32")


def test_a_constant_group(device: str) -> None:
    """Variance 0: y is bias, and the gradient stays finite."""
    _, weight, bias, dy = inputs((2, 3, 6))
    result = step(np.full((2, 3, 6), 7.3, np.float32), weight, bias, dy, 2, device)
    assert_close(result["y"], np.broadcast_to(bias, (2, 3, 6)), "float32")
    assert np.isfinite(result["dx"]).all()


@pytest.mark.parametrize("value", [1e18, -1e18])
def test_large_numbers_stay_finite(value: float, device: str) -> None:
    x, weight, bias, dy = inputs((2, 3, 6))
    x[0] *= np.float32(value)
    assert all(np.isfinite(v).all() for v in step(x, weight, bias, dy, 2, device).values())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_stays_in_its_group(value: float, device: str) -> None:
    x, weight, bias, dy = inputs((2, 5, 6))
    x[1, 2, 4] = value
    y = step(x, weight, bias, dy, 2, device)["y"]
    assert np.isnan(y[1, 2, 4])
    if np.isnan(value):
        assert np.isnan(y[1, :, 3:]).all()
    assert np.isfinite(y[0]).all()
    assert np.isfinite(y[1, :, :3]).all()


def test_same_bits_every_time(device: str) -> None:
    arrays = inputs((2, 19, 17, 12))
    runs = [step(*arrays, 3, device) for _ in range(2)]
    for name, value in runs[0].items():
        assert value.tobytes() == runs[1][name].tobytes(), name


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "groups"), [((2, 6), 2), ((2, 2, 3, 4), 4)], ids=str)
def test_gradcheck(shape: tuple[int, ...], groups: int, affine: bool) -> None:
    tensors = [
        Tensor(a, requires_grad=True) for a in inputs(shape, np.float64)[: 3 if affine else 1]
    ]
    assert gpucnn.gradcheck(lambda x, *both: F.group_norm(x, groups, *both), tensors)


@pytest.mark.parametrize("normalized_shape", [3, (3,), [4, 3], (2, 4, 3)])
def test_gradcheck_of_layer_norm(normalized_shape: Any) -> None:
    size = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    arrays = [randn(2, 4, 3, dtype=np.float64), *(randn(*size, seed=i, dtype=np.float64)
              for i in (1, 2))]  # fmt: skip
    tensors = [Tensor(a, requires_grad=True) for a in arrays]
    assert gpucnn.gradcheck(lambda x, *both: F.layer_norm(x, normalized_shape, *both), tensors)


def test_gradients_only_where_needed() -> None:
    x, weight, bias, dy = (Tensor(a) for a in inputs((3, 4)))
    bias.requires_grad = True
    F.group_norm(x, 2, weight, bias).backward(dy)
    assert x.grad is None
    assert weight.grad is None
    assert_close(bias.grad.numpy(), dy.numpy().sum(axis=0), "float32", 3)


@needs_torch
@given(
    N=st.integers(1, 4),
    space=st.lists(st.integers(1, 9), max_size=3),
    groups=st.integers(1, 5),
    each=st.integers(1, 9),
    weighted=st.booleans(),
    biased=st.booleans(),
    eps=st.sampled_from([1e-5, 1e-3]),
    shift=st.sampled_from([0, -100]),
)
@hundreds
def test_group_norm_agrees_with_pytorch(
    N: int, space: list[int], groups: int, each: int, weighted: bool, biased: bool, eps: float,
    shift: int,
) -> None:  # fmt: skip
    shape = (N + (N == 1 and each == 1), *space, groups * each)
    weighted = weighted or biased  # PyTorch's backward pass fails with a bias alone
    x, weight, bias, dy = inputs(shape)
    x += np.float32(shift)
    arrays = [x, *([weight] if weighted else []), *([bias] if biased else [])]
    wide = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]

    def split(both: tuple[Any, ...]) -> dict[str, Any]:
        names = [name for name, there in (("weight", weighted), ("bias", biased)) if there]
        return dict(zip(names, both, strict=True))

    ty = torch.nn.functional.group_norm(
        wide[0].movedim(-1, 1), groups, **split(tuple(wide[1:])), eps=eps
    ).movedim(1, -1)
    ty.backward(torch.tensor(dy.astype(np.float64)))
    y, grads = gradients(
        lambda x, *both: F.group_norm(x, groups, **split(both), eps=eps), arrays, dy
    )
    assert_close(y, ty.detach().numpy(), "torch", 9)
    for grad, t in zip(grads, wide, strict=True):
        assert_close(grad, t.grad.numpy(), "torch", 9 * x.size)


@needs_torch
@given(
    lead=st.lists(st.integers(1, 5), max_size=3),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    affine=st.booleans(),
    shift=st.sampled_from([0, -100]),
)
@hundreds
def test_layer_norm_agrees_with_pytorch(
    lead: list[int], sizes: list[int], affine: bool, shift: int
) -> None:
    x, dy = randn(*lead, *sizes) + np.float32(shift), randn(*lead, *sizes, seed=1)
    arrays = [x, *(randn(*sizes, seed=i) for i in (2, 3) if affine)]
    wide = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in arrays]
    ty = torch.nn.functional.layer_norm(wide[0], sizes, *wide[1:])
    ty.backward(torch.tensor(dy.astype(np.float64)))
    y, grads = gradients(lambda x, *both: F.layer_norm(x, sizes, *both), arrays, dy)
    assert_close(y, ty.detach().numpy(), "torch", 9)
    for grad, t in zip(grads, wide, strict=True):
        assert_close(grad, t.grad.numpy(), "torch", 9 * x.size)


def test_layers() -> None:
    group, layer = nn.GroupNorm(2, 6), nn.LayerNorm([4, 6])
    assert repr(group) == "GroupNorm(2, 6, eps=1e-05)"
    assert repr(layer) == "LayerNorm((4, 6), eps=1e-05)"
    assert {name: v.shape for name, v in layer.state_dict().items()} == {
        "weight": (4, 6), "bias": (4, 6)}  # fmt: skip
    x = Tensor(randn(3, 4, 6) + 5)
    y = group(x).numpy().reshape(3, 4, 2, 3)
    assert_close(y.mean(axis=(1, 3)), np.zeros((3, 2)), "float32", 12)
    y = layer(x).numpy()
    assert_close(y.std(axis=(1, 2)), np.ones(3), "torch")
    plain = nn.GroupNorm(3, 6, affine=False), nn.LayerNorm(6, elementwise_affine=False)
    assert repr(plain[0]) == "GroupNorm(3, 6, eps=1e-05, affine=False)"
    assert repr(plain[1]) == "LayerNorm((6,), eps=1e-05, elementwise_affine=False)"
    assert repr(nn.LayerNorm(6, bias=False)) == "LayerNorm((6,), eps=1e-05, bias=False)"
    assert not plain[0].state_dict()
    assert not plain[1].state_dict()
    assert list(nn.LayerNorm(6, bias=False).state_dict()) == ["weight"]
    assert_close(plain[0](x).numpy(), F.group_norm(x, 3).numpy(), "exact")
    assert_close(plain[1](x).numpy(), F.layer_norm(x, 6).numpy(), "exact")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: nn.GroupNorm(0, 6), ValueError, "num_groups must be >= 1"),
        (lambda: nn.GroupNorm(4, 6), ValueError, "num_groups must divide num_channels 6"),
        (lambda: nn.GroupNorm(2, 6, eps=0), ValueError, "eps must be"),
        (lambda: nn.GroupNorm(2, 6)(Tensor(randn(2, 4))), ValueError, r"shape \(N, …, 6\)"),
        (lambda: nn.LayerNorm(()), ValueError, "normalized_shape must hold"),
        (lambda: nn.LayerNorm((2, 0)), ValueError, "normalized_shape must be >= 1"),
        (lambda: nn.LayerNorm(2.0), TypeError, "normalized_shape must be an integer"),
        (lambda: nn.LayerNorm(3)(Tensor(randn(2, 4))), ValueError, "normalized_shape must be the"),
    ],
)
def test_bad_layers(make: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        make()


ONES = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.zeros(4, np.float32)}, ValueError, "x must have shape"),
        ({"x": np.zeros((2, 0, 4), np.float32)}, ValueError, "x must have shape"),
        ({"x": np.zeros((2, 4), np.int32)}, TypeError, "x must be float32"),
        ({"x": np.zeros((1, 1, 4), np.float32), "num_groups": 4}, ValueError,
         "x must hold more than one value per group"),
        ({"num_groups": 3}, ValueError, "num_groups must divide the 4 channels"),
        ({"num_groups": 0}, ValueError, "num_groups must be >= 1"),
        ({"num_groups": 2.0}, TypeError, "num_groups must be an integer"),
        ({"weight": np.ones(3, np.float32)}, ValueError, r"weight must have shape \(4,\)"),
        ({"bias": np.ones((4, 1), np.float32)}, ValueError, r"bias must have shape \(4,\)"),
        ({"bias": np.ones(4, np.float64)}, TypeError, "bias must be float32 like x"),
        ({"eps": 0}, ValueError, "eps must be finite and > 0"),
        ({"eps": float("nan")}, ValueError, "eps must be finite and > 0"),
        ({"eps": "1"}, TypeError, "eps must be a number"),
    ],
)  # fmt: skip
def test_bad_arguments_of_group_norm(
    change: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments: dict[str, Any] = {"x": np.zeros((2, 4), np.float32), "num_groups": 2,
                                 "weight": ONES, "bias": ONES, **change}  # fmt: skip
    tensors = {k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with pytest.raises(error, match=match):
        F.group_norm(**tensors)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.zeros((2, 0, 4), np.float32)}, ValueError, "x must not be empty"),
        ({"x": np.zeros((2, 4), np.int32)}, TypeError, "x must be float32"),
        ({"normalized_shape": 3}, ValueError, "normalized_shape must be the last axes"),
        ({"normalized_shape": (2, 2, 4)}, ValueError, "normalized_shape must be the last axes"),
        ({"normalized_shape": ()}, ValueError, "normalized_shape must hold at least one"),
        ({"normalized_shape": "4"}, TypeError, "normalized_shape must be an integer"),
        ({"weight": np.ones(3, np.float32)}, ValueError, r"weight must have shape \(4,\)"),
        ({"bias": np.ones((2, 4), np.float32)}, ValueError, r"bias must have shape \(4,\)"),
        ({"weight": np.ones(4, np.float64)}, TypeError, "weight must be float32 like x"),
        ({"eps": -1.0}, ValueError, "eps must be finite and > 0"),
    ],
)
def test_bad_arguments_of_layer_norm(
    change: dict[str, Any], error: type[Exception], match: str
) -> None:
    arguments: dict[str, Any] = {"x": np.zeros((2, 4), np.float32), "normalized_shape": 4,
                                 "weight": ONES, "bias": ONES, **change}  # fmt: skip
    tensors = {k: Tensor(v) if isinstance(v, np.ndarray) else v for k, v in arguments.items()}
    with pytest.raises(error, match=match):
        F.layer_norm(**tensors)


@pytest.mark.emulated
def test_mixed_devices() -> None:
    x, weight = Tensor(randn(4, 3), device="cpu"), Tensor(randn(3), device="emulated")
    with pytest.raises(DeviceError, match="share a device, got cpu and emulated"):
        F.layer_norm(x, 3, weight)


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_the_cuda_path_computes_with_kernels_alone() -> None:
    arrays = inputs((2, 3, 4))
    actual, expected = (step(*arrays, 2, device) for device in ("cuda", "emulated"))
    x = Tensor(arrays[0], device="cuda")
    y = F.layer_norm(x, (3, 4)).numpy()
    for name, value in expected.items():
        assert actual[name].tobytes() == value.tobytes(), name
    assert_close(y, F.layer_norm(Tensor(arrays[0], device="cpu"), (3, 4)).numpy(), "float32")
