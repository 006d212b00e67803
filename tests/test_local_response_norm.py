"""local_response_norm: loops -> definition -> kernels; PyTorch and the conventions' numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import LOCAL_RESPONSE_NORM, LocalResponseNormCase
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.device import to_host
from gpucnn.ops.local_response_norm import (
    CONVENTIONS,
    Window,
    local_response_norm_backward,
    local_response_norm_forward,
    local_response_norm_window,
)
from tests.support import (
    assert_close,
    check_kernel,
    gradients,
    hundreds,
    needs_torch,
    on,
    randn,
    torch,
)

cases = pytest.mark.parametrize("case", LOCAL_RESPONSE_NORM, ids=str)


def window_of(case: LocalResponseNormCase, alpha: float = 1.0) -> Window:
    options = {"alpha": alpha, "beta": None, "k": None, "region": "across", "convention": "torch"}
    return local_response_norm_window(case.size, **{**options, **case.options})


def members(shape: tuple[int, ...], i: tuple[int, ...], window: Window) -> list[tuple[int, ...]]:
    """The elements in the window of element i."""
    axes = (len(shape) - 1,) if window.region == "across" else (1, 2)
    spans = [range(at, at + 1) for at in i]
    for axis in axes:
        first, last = i[axis] - window.before, i[axis] + window.after
        spans[axis] = range(max(0, first), min(shape[axis] - 1, last) + 1)
    return [tuple(span[o] for span, o in zip(spans, at, strict=True))
            for at in np.ndindex(*map(len, spans))]  # fmt: skip


def loops(x: np.ndarray, dy: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """y and dx element by element: each y_i sends its derivative to the members of its window."""
    y, dx = np.empty_like(x), np.zeros_like(x)
    for i in np.ndindex(x.shape):
        inside = members(x.shape, i, window)
        s = window.k + window.a * sum(x[j] ** 2 for j in inside)
        y[i] = x[i] / s**window.beta
        dx[i] += dy[i] / s**window.beta
        for j in inside:
            dx[j] -= dy[i] * x[i] * window.beta * s ** (-window.beta - 1) * window.a * 2 * x[j]
    return y, dx


@cases
def test_definition_is_the_formula(case: LocalResponseNormCase) -> None:
    x, dy = (randn(*case.x, seed=i, dtype=np.float64) for i in range(2))
    window = window_of(case)
    expected_y, expected_dx = loops(x, dy, window)
    y, s = local_response_norm_forward(x, window)
    assert_close(y, expected_y, "float64", case.size)
    dx = local_response_norm_backward(dy, x, y, s, window)
    assert_close(dx, expected_dx, "float64", case.size)


@cases
def test_kernels(case: LocalResponseNormCase, kernel_device: str) -> None:
    x, dy = 2 * randn(*case.x), randn(*case.x, seed=1)
    window = window_of(case)
    check_kernel(local_response_norm_forward, kernel_device, [x], window)
    y, s = local_response_norm_forward(x, window)
    check_kernel(
        local_response_norm_backward, kernel_device, [dy, x, y, s], window, terms=case.size
    )


@pytest.mark.parametrize("region", ["across", "within"])
def test_arrays_that_are_not_aligned(region: str, kernel_device: str) -> None:
    shape = (2, 3, 4, 8)
    x = randn(int(np.prod(shape)) + 1)[1:].reshape(shape)
    window = local_response_norm_window(4, 1.0, None, None, region, "torch")
    check_kernel(local_response_norm_forward, kernel_device, [x], window)


@pytest.mark.parametrize("region", ["across", "within"])
def test_more_than_one_chunk(region: str) -> None:
    """The definition cuts the batch; every part must be written."""
    x, dy = (randn(9, 40, 41, 7, seed=i, dtype=np.float64) for i in range(2))
    window = local_response_norm_window(4, 1.0, None, None, region, "torch")
    y, s = local_response_norm_forward(x, window)
    dx = local_response_norm_backward(dy, x, y, s, window)
    for n in (0, 8):
        one = slice(n, n + 1)
        assert_close(y[one], local_response_norm_forward(x[one], window)[0], "float64")
        part = (dy[one], x[one], y[one], s[one])
        assert_close(dx[one], local_response_norm_backward(*part, window), "float64")


# y of x = 1, 2, 3, 4, 5 at its second and third element with alpha = 1, beta = 1, k = 1.
@pytest.mark.parametrize(
    ("convention", "size", "expected"),
    [
        ("torch", 3, [2 / (1 + 14 / 3), 3 / (1 + 29 / 3)]),
        ("torch", 4, [2 / (1 + 14 / 4), 3 / (1 + 30 / 4)]),
        ("onnx", 3, [2 / (1 + 14 / 3), 3 / (1 + 29 / 3)]),
        ("onnx", 4, [2 / (1 + 30 / 4), 3 / (1 + 54 / 4)]),
        ("caffe", 3, [2 / (1 + 14 / 3), 3 / (1 + 29 / 3)]),
        ("alexnet", 3, [2 / (1 + 14), 3 / (1 + 29)]),
        ("alexnet", 4, [2 / (1 + 30), 3 / (1 + 55)]),
        ("chainer", 4, [2 / (1 + 30), 3 / (1 + 55)]),
        ("matconvnet", 3, [2 / (1 + 14), 3 / (1 + 29)]),
        ("matconvnet", 4, [2 / (1 + 30), 3 / (1 + 54)]),
        ("tf", 1, [2 / (1 + 14), 3 / (1 + 29)]),
        ("tf", 2, [2 / (1 + 30), 3 / (1 + 55)]),
        ("tf", 0, [2 / (1 + 4), 3 / (1 + 9)]),
    ],
)
def test_conventions(convention: str, size: int, expected: list[float], device: str) -> None:
    x = gpucnn.Tensor(np.arange(1, 6, dtype=np.float32), device=device)
    y = F.local_response_norm(x, size, 1.0, 1.0, 1.0, convention=convention)
    assert_close(y.numpy()[1:3], np.array(expected), "float32")


# y of x = 3, 4 with size 3 ("tf": radius 1): the bracket holds 25.
@pytest.mark.parametrize(
    ("convention", "size", "bracket", "power"),
    [
        ("torch", 3, 1 + 1e-4 / 3 * 25, 0.75),
        ("onnx", 3, 1 + 1e-4 / 3 * 25, 0.75),
        ("caffe", 3, 1 + 25 / 3, 0.75),
        ("alexnet", 3, 2 + 1e-4 * 25, 0.75),
        ("chainer", 3, 2 + 1e-4 * 25, 0.75),
        ("matconvnet", 3, 1 + 1e-4 * 25, 0.75),
        ("tf", 1, 1 + 25, 0.5),
    ],
)
def test_the_defaults_are_those_of_the_convention(
    convention: str, size: int, bracket: float, power: float
) -> None:
    y = F.local_response_norm(gpucnn.Tensor([3.0, 4.0]), size, convention=convention)
    assert_close(y.numpy(), np.array([3.0, 4.0]) / bracket**power, "float32")


def test_within_divides_by_the_whole_square_at_the_border(device: str) -> None:
    """Caffe's WITHIN_CHANNEL: the corner holds 4 cells of 9 and is divided by 9."""
    x = np.full((1, 3, 3, 1), 3, np.float32)
    y, (dx,) = gradients(
        lambda t: F.local_response_norm(t, 3, beta=1.0, region="within", convention="caffe"),
        [x], np.ones_like(x), device,
    )  # fmt: skip
    corner, edge = 3 / (1 + 4), 3 / (1 + 6)
    expected = [[corner, edge, corner], [edge, 3 / (1 + 9), edge], [corner, edge, corner]]
    assert_close(y[0, :, :, 0], np.array(expected), "float32")
    assert y.shape == dx.shape == x.shape


def test_alexnet_in_the_terms_of_torch() -> None:
    """AlexNet multiplies by alpha, torch by alpha/n: 1e-4 with n = 5 is 5e-4."""
    x = gpucnn.Tensor(100 * randn(4, 9))
    expected = F.local_response_norm(x, 5, convention="alexnet").numpy()
    assert_close(F.local_response_norm(x, 5, 5e-4, 0.75, 2.0).numpy(), expected, "float32")


@pytest.mark.parametrize("region", ["across", "within"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
def test_gradcheck(size: int, region: str) -> None:
    x = gpucnn.Tensor(randn(2, 3, 4, 5, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: F.local_response_norm(t, size, 1.0, region=region), [x])


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_gradcheck_of_each_convention(convention: str) -> None:
    x = gpucnn.Tensor(randn(2, 7, dtype=np.float64), requires_grad=True)
    run = F.local_response_norm
    assert gpucnn.gradcheck(lambda t: run(t, 3, 1.0, 0.6, 1.5, convention=convention), [x])


@needs_torch
@given(
    space=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    C=st.integers(1, 19),
    size=st.integers(1, 23),
    alpha=st.sampled_from([1e-4, 1.0, 3.0]),
    beta=st.sampled_from([0.75, 0.5, 1.3]),
    k=st.sampled_from([1.0, 2.0, 0.1]),
)
@hundreds
def test_agrees_with_pytorch(
    space: list[int], C: int, size: int, alpha: float, beta: float, k: float
) -> None:
    x, dy = 2 * randn(*space, C), randn(*space, C, seed=1)
    tx = torch.tensor(x, requires_grad=True)
    moved = tx.reshape(-1, C, 1)  # torch takes channels on the second of at least three axes
    ty = torch.nn.functional.local_response_norm(moved, size, alpha, beta, k).reshape(x.shape)
    ty.backward(torch.tensor(dy))
    y, (dx,) = gradients(lambda t: F.local_response_norm(t, size, alpha, beta, k), [x], dy)
    assert_close(y, ty.detach().numpy(), "torch", size)
    assert_close(dx, tx.grad.numpy(), "torch", size)


def torch_formula(
    x: Any, size: int, numbers: tuple[float, ...], region: str, convention: str
) -> Any:
    """Each convention's formula, in PyTorch's own operations."""
    alpha, beta, k = numbers
    low, high = size // 2, (size - 1) // 2
    leaning_after, both_sides = (high, low), (low, low)
    reaches = {"onnx": leaning_after, "matconvnet": leaning_after, "alexnet": both_sides,
               "chainer": both_sides, "tf": (size, size)}  # fmt: skip
    before, after = reaches.get(convention, (low, high))
    if convention in ("torch", "onnx", "caffe"):
        alpha /= size if region == "across" else size**2
    squares = x**2
    if region == "across":
        padded = torch.nn.functional.pad(squares, (before, after))
        sums = padded.unfold(-1, before + after + 1, 1).sum(dim=-1)
    else:
        padded = torch.nn.functional.pad(squares.movedim(-1, 1), (before, after, before, after))
        sums = torch.nn.functional.avg_pool2d(padded, size, 1).movedim(1, -1) * size**2
    return x / (k + alpha * sums) ** beta


@needs_torch
@given(
    shape=st.tuples(*[st.integers(1, 6)] * 3, st.integers(1, 13)),
    size=st.integers(1, 9),
    numbers=st.tuples(*[st.sampled_from(v) for v in ([0.0, 1.0, 3.0], [0.75, 1.3], [1.0, 0.5])]),
    meaning=st.sampled_from([*(("across", c) for c in CONVENTIONS), ("within", "torch"),
                             ("within", "caffe")]),
)  # fmt: skip
@hundreds
def test_every_convention_agrees_with_its_formula_in_pytorch(
    shape: tuple[int, ...], size: int, numbers: tuple[float, ...], meaning: tuple[str, str]
) -> None:
    region, convention = meaning
    size -= size % 2 == 0 and convention == "caffe"
    x, dy = randn(*shape), randn(*shape, seed=1)
    tx = torch.tensor(x.astype(np.float64), requires_grad=True)
    ty = torch_formula(tx, size, numbers, region, convention)
    ty.backward(torch.tensor(dy.astype(np.float64)))
    options = {"region": region, "convention": convention}
    y, (dx,) = gradients(lambda t: F.local_response_norm(t, size, *numbers, **options), [x], dy)
    assert_close(y, ty.detach().numpy(), "torch")
    assert_close(dx, tx.grad.numpy(), "torch", size)


@pytest.mark.parametrize("region", ["across", "within"])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_large_numbers_stay_finite(region: str, beta: float, device: str) -> None:
    x = np.array([1e30, -1e15, 1, 0, 1e-30], np.float32).reshape(1, 1, 1, 5)
    y, (dx,) = gradients(
        lambda t: F.local_response_norm(t, 3, 1.0, beta, region=region),
        [x], np.ones_like(x), device,
    )  # fmt: skip
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()


def test_nan_stays_in_its_windows(device: str) -> None:
    x = randn(2, 9)
    x[0, 4] = np.nan
    y, (dx,) = gradients(lambda t: F.local_response_norm(t, 4, 1.0), [x], np.ones_like(x), device)
    assert np.flatnonzero(np.isnan(y[0])).tolist() == [3, 4, 5, 6]
    assert np.isnan(dx[0, 4])
    assert np.isfinite(dx[0, [0, 8]]).all()
    assert np.isfinite(y[1]).all()
    assert np.isfinite(dx[1]).all()


@pytest.mark.parametrize("region", ["across", "within"])
def test_same_bits_every_time(region: str, device: str) -> None:
    x, dy = on(device, randn(2, 5, 4, 6), randn(2, 5, 4, 6, seed=1))
    window = local_response_norm_window(3, 1.0, None, None, region, "torch")
    seen = set()
    for _ in range(2):
        y, s = local_response_norm_forward.on(device)(x, window)
        dx = local_response_norm_backward.on(device)(dy, x, y, s, window)
        seen.add(to_host(y).tobytes() + to_host(dx).tobytes())
    assert len(seen) == 1


def test_layer() -> None:
    layer = nn.LocalResponseNorm(5, k=2, convention="alexnet")
    assert repr(layer) == "LocalResponseNorm(5, k=2, region='across', convention='alexnet')"
    x = gpucnn.Tensor(randn(2, 3, 3, 8))
    expected = F.local_response_norm(x, 5, 1e-4, 0.75, 2.0, convention="alexnet")
    assert_close(layer(x).numpy(), expected.numpy(), "exact")
    assert not layer.state_dict()
    with pytest.raises(ValueError, match="size must be odd"):
        nn.LocalResponseNorm(4, convention="caffe")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.float32(1)}, ValueError, "x must have shape"),
        ({"x": np.zeros((3, 0), np.float32)}, ValueError, "x must have shape"),
        ({"x": np.zeros((2, 3), np.int32)}, TypeError, "x must be float32"),
        ({"x": np.zeros((2, 3), np.float32), "region": "within"}, ValueError,
         r"x must have shape \(N, H, W, C\)"),
        ({"size": 0}, ValueError, "size must be >= 1"),
        ({"size": -1, "convention": "tf"}, ValueError, "size must be >= 0"),
        ({"size": 2.0}, TypeError, "size must be an integer"),
        ({"size": 4, "convention": "caffe"}, ValueError, "size must be odd"),
        ({"size": 4, "convention": "caffe", "region": "within"}, ValueError, "size must be odd"),
        ({"alpha": -1.0}, ValueError, "alpha must be finite and >= 0"),
        ({"alpha": float("nan")}, ValueError, "alpha must be finite"),
        ({"alpha": float("inf")}, ValueError, "alpha must be finite"),
        ({"alpha": "1"}, TypeError, "alpha must be a number"),
        ({"beta": -0.5}, ValueError, "beta must be finite and >= 0"),
        ({"beta": True}, TypeError, "beta must be a number"),
        ({"k": 0.0}, ValueError, "k must be finite and > 0"),
        ({"k": float("inf")}, ValueError, "k must be finite"),
        ({"region": "between"}, ValueError, "region must be one of across, within"),
        ({"convention": "keras"}, ValueError, "convention must be one of torch, onnx"),
        ({"convention": None}, ValueError, "convention must be one of torch, onnx"),
        ({"convention": "tf", "region": "within"}, ValueError,
         'convention must be one of torch, caffe for region="within"'),
    ],
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments: dict[str, Any] = {"x": np.zeros((1, 2, 2, 3), np.float32), "size": 3, **change}
    arguments["x"] = gpucnn.Tensor(arguments["x"])
    with pytest.raises(error, match=match):
        F.local_response_norm(**arguments)


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
@pytest.mark.parametrize("region", ["across", "within"])
def test_the_cuda_path_computes_with_kernels_alone(region: str) -> None:
    x, dy = randn(2, 3, 3, 4), randn(2, 3, 3, 4, seed=1)

    def run(t: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.local_response_norm(t, 3, 1.0, region=region)

    (y, (dx,)), (want_y, (want_dx,)) = (gradients(run, [x], dy, d) for d in ("cuda", "emulated"))
    assert y.tobytes() == want_y.tobytes()
    assert dx.tobytes() == want_dx.tobytes()
