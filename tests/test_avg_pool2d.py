"""avg_pool2d, sum_pool2d: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import AVG_POOL2D, Pool2dCase
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.ops.avg_pool2d import (
    AvgPool2dGeometry,
    avg_pool2d_backward,
    avg_pool2d_forward,
    avg_pool2d_geometry,
)
from tests.support import assert_close, check_kernel, hundreds, needs_torch, on, randn, torch

cases = pytest.mark.parametrize("case", AVG_POOL2D, ids=str)
averages = pytest.mark.parametrize("average", [True, False], ids=["avg", "sum"])


def geometry(case: Pool2dCase, average: bool) -> AvgPool2dGeometry:
    options = {"stride": None, "padding": 0, "edge": "drop", **case.options}
    x = np.zeros(case.x, np.float32)
    return avg_pool2d_geometry(x, case.kernel_size, average=average, **options)


def loops(x: np.ndarray, dy: np.ndarray, g: AvgPool2dGeometry) -> tuple[np.ndarray, np.ndarray]:
    """(y, dx), one cell of one window at a time."""
    s = g.windows
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for n, oh, ow, c in np.ndindex(dy.shape):
        inside, count = [], 0
        for kh, kw in np.ndindex(s.KH, s.KW):
            h, w = oh * s.SH - s.PT + kh, ow * s.SW - s.PL + kw
            if 0 <= h < s.H and 0 <= w < s.W:
                inside.append((n, h, w, c))
            row = 0 <= h < s.H or (h >= s.H + g.PB and g.ZERO) or (h < s.H + g.PB and g.INCLUDE)
            column = 0 <= w < s.W or (w >= s.W + g.PR and g.ZERO) or (w < s.W + g.PR and g.INCLUDE)
            count += row and column
        for at in inside:
            y[n, oh, ow, c] += x[at]
            dx[at] += dy[n, oh, ow, c] / (count if g.AVERAGE else 1)
        y[n, oh, ow, c] /= count if g.AVERAGE else 1
    return y, dx


@averages
@cases
def test_definition_is_the_rule(case: Pool2dCase, average: bool) -> None:
    g = geometry(case, average)
    s = g.windows
    x = randn(*case.x, dtype=np.float64)
    dy = randn(s.N, s.OH, s.OW, s.C, seed=2, dtype=np.float64)
    y, dx = loops(x, dy, g)
    assert_close(avg_pool2d_forward(x, g), y, "float64", s.KH * s.KW)
    assert_close(avg_pool2d_backward(dy, g), dx, "float64", s.KH * s.KW)


@averages
@cases
def test_kernels(case: Pool2dCase, average: bool, kernel_device: str) -> None:
    g = geometry(case, average)
    s = g.windows
    dy = randn(s.N, s.OH, s.OW, s.C, seed=2)
    terms = s.KH * s.KW
    check_kernel(avg_pool2d_forward, kernel_device, [randn(*case.x)], g, terms=terms)
    check_kernel(avg_pool2d_backward, kernel_device, [dy], g, terms=terms)


@averages
@cases
def test_gradcheck(case: Pool2dCase, average: bool) -> None:
    x = Tensor(randn(*case.x[:3], min(case.x[3], 4), dtype=np.float64), requires_grad=True)
    options = dict(case.options)
    if not average:
        options.pop("count_include_pad", None)
    pool = F.avg_pool2d if average else F.sum_pool2d
    assert gpucnn.gradcheck(lambda t: pool(t, case.kernel_size, **options), [x])


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    ceil, include, average = draw(st.booleans()), draw(st.booleans()), draw(st.booleans())
    size = [draw(st.integers(max(1, k - 2 * p), 10)) for k, p in zip(kernel, padding, strict=True)]
    x = randn(draw(st.integers(1, 3)), *size, draw(st.sampled_from([1, 3, 4])))
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(
        tx, kernel, stride, padding, ceil, include, None if average else 1
    )
    dy = randn(*ty.permute(0, 2, 3, 1).shape, seed=3)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))

    t = Tensor(x, requires_grad=True)
    edge = "ceil" if ceil else "drop"
    if average:
        y = F.avg_pool2d(t, kernel, stride, padding, edge=edge, count_include_pad=include)
    else:
        y = F.sum_pool2d(t, kernel, stride, padding, edge=edge)
    y.backward(dy)
    assert_close(y.numpy(), ty.detach().numpy().transpose(0, 2, 3, 1), "torch", 16)
    assert_close(t.grad.numpy(), tx.grad.numpy().transpose(0, 2, 3, 1), "torch", 16)


def test_edges(device: str) -> None:
    """3x3 of -1 with windows of 2x2: what an absent cell counts."""
    x = Tensor(np.full((1, 3, 3, 1), -1, np.float32), device=device)

    def plane(y: Tensor) -> Any:
        return y.numpy()[0, :, :, 0].tolist()

    assert plane(F.avg_pool2d(x, 2)) == [[-1]]
    assert plane(F.avg_pool2d(x, 2, edge="ceil")) == [[-1, -1], [-1, -1]]
    assert plane(F.avg_pool2d(x, 2, edge="zero")) == [[-1, -0.5], [-0.5, -0.25]]
    for edge in ("ceil", "zero"):
        assert plane(F.sum_pool2d(x, 2, edge=edge)) == [[-4, -2], [-2, -1]]


def test_the_divisor_of_the_last_window(device: str) -> None:
    x = Tensor(np.arange(49, dtype=np.float32).reshape(1, 7, 7, 1), device=device)
    y = F.avg_pool2d(x, 2, 3, edge="ceil").numpy()[0, :, :, 0]
    assert y.tolist() == [[4, 7, 9.5], [25, 28, 30.5], [42.5, 45.5, 48]]


def test_padding_counts_or_not(device: str) -> None:
    x = Tensor(np.ones((1, 2, 2, 1), np.float32), device=device)
    assert F.avg_pool2d(x, 2, 2, 1).numpy().reshape(-1).tolist() == [0.25] * 4
    y = F.avg_pool2d(x, 2, 2, 1, count_include_pad=False)
    assert y.numpy().reshape(-1).tolist() == [1] * 4


def test_rows_that_no_window_reads_get_no_gradient(device: str) -> None:
    x = Tensor(randn(1, 5, 6, 2), requires_grad=True, device=device)
    y = F.avg_pool2d(x, 2, 4)
    y.backward(np.ones(y.shape, np.float32))
    expected = np.zeros(x.shape)
    for h in (0, 1):
        expected[0, h, [0, 1, 4, 5]] = 0.25
    assert_close(x.grad.numpy(), expected, "exact")


def test_nan_and_infinity(device: str) -> None:
    x = np.array([1, np.nan, np.inf, 1, -np.inf, np.inf, 2, 4], np.float32).reshape(1, 1, 8, 1)
    y = F.avg_pool2d(Tensor(x, device=device), (1, 2)).numpy().reshape(-1)
    np.testing.assert_array_equal(y, [np.nan, np.inf, np.nan, 3])


def test_backward_gives_the_same_bits_every_time(device: str) -> None:
    x = randn(2, 9, 11, 5)
    g = avg_pool2d_geometry(x, 3, 1, 1, "drop", average=True)
    (dy,) = on(device, (10.0 ** randn(2, 9, 11, 5, seed=2)).astype(np.float32))
    backward = avg_pool2d_backward.on(device)
    assert len({to_host(backward(dy, g)).tobytes() for _ in range(3)}) == 1


def test_more_than_one_chunk() -> None:
    x = randn(5, 40, 41, 32)
    t, options = Tensor(x, requires_grad=True), {"edge": "ceil", "count_include_pad": False}
    y = F.avg_pool2d(t, 3, 2, 1, **options)
    y.backward(y.numpy())
    for n in range(len(x)):
        one = Tensor(x[n : n + 1], requires_grad=True)
        alone = F.avg_pool2d(one, 3, 2, 1, **options)
        alone.backward(alone.numpy())
        assert_close(y.numpy()[n : n + 1], alone.numpy(), "exact")
        assert_close(t.grad.numpy()[n : n + 1], one.grad.numpy(), "exact")


def test_layers() -> None:
    x = Tensor(randn(2, 7, 8, 3))
    pool = nn.AvgPool2d(3, 2, 1, "ceil", count_include_pad=False)
    expected = F.avg_pool2d(x, 3, 2, 1, edge="ceil", count_include_pad=False)
    assert_close(pool(x).numpy(), expected.numpy(), "exact")
    total = nn.SumPool2d((2, 3), edge="zero")
    assert_close(total(x).numpy(), F.sum_pool2d(x, (2, 3), edge="zero").numpy(), "exact")
    assert repr(nn.SumPool2d(2)) == (
        "SumPool2d(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))"
    )
    assert repr(pool).endswith("edge='ceil', count_include_pad=False)")


X = (2, 6, 5, 4)


@pytest.mark.parametrize(
    ("x", "kernel_size", "options", "error", "match"),
    [
        ((6, 5, 4), 2, {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 6, 5, 0), 2, {}, ValueError, "x must not be empty"),
        (X, 0, {}, ValueError, "kernel_size must be >= 1"),
        (X, 7, {}, ValueError, "kernel_size: a window of 7"),
        (X, 2.0, {}, TypeError, "kernel_size must be an integer"),
        (X, 2, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, 2, {"padding": 2}, ValueError, "padding must be smaller than the window"),
        (X, 2, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, 2, {"edge": "round"}, ValueError, "edge must be one of drop, ceil, zero"),
    ],
)  # fmt: skip
def test_bad_arguments(
    x: Any, kernel_size: Any, options: Any, error: type[Exception], match: str
) -> None:
    for pool in (F.avg_pool2d, F.sum_pool2d):
        with pytest.raises(error, match=match):
            pool(Tensor(np.zeros(x, np.float32)), kernel_size, **options)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="x must be float32"):
        F.avg_pool2d(Tensor(np.zeros(X, np.int32)), 2)
    with pytest.raises(TypeError, match="count_include_pad must be True or False"):
        F.avg_pool2d(Tensor(np.zeros(X, np.float32)), 2, count_include_pad=1)
    with pytest.raises(ValueError, match="edge must be"):
        nn.AvgPool2d(2, edge="round")
