"""max_pool2d: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import POOL2D, Pool2dCase
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.ops.pool2d import (
    Pool2dGeometry,
    max_pool2d_backward,
    max_pool2d_forward,
    max_pool2d_geometry,
)
from tests.support import (
    assert_close,
    check_kernel,
    distinct,
    gradients,
    hundreds,
    needs_torch,
    on,
    randn,
    torch,
)

cases = pytest.mark.parametrize("case", POOL2D, ids=str)
VALUES = {
    "normal": lambda *s: randn(*s),
    "ties": lambda *s: np.round(randn(*s)),
    "negative": lambda *s: -1 - np.abs(randn(*s)),
    "equal": lambda *s: np.zeros(s, np.float32),
    "minus infinity": lambda *s: np.full(s, -np.inf, np.float32),
    "special": lambda *s: np.random.default_rng(1).choice(
        np.array([np.nan, np.inf, -np.inf, 0, 1, -1], np.float32), s
    ),
}
values = pytest.mark.parametrize("kind", VALUES)


def geometry(case: Pool2dCase) -> Pool2dGeometry:
    options = {"stride": None, "padding": 0, "dilation": 1, "edge": "drop", **case.options}
    return max_pool2d_geometry(np.zeros(case.x, np.float32), case.kernel_size, **options)


def loops(
    x: np.ndarray, dy: np.ndarray, s: Pool2dGeometry, zero: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, indices, dx) by the rule, one window at a time."""
    y, indices, dx = np.empty(dy.shape), np.empty(dy.shape, np.int32), np.zeros(x.shape)
    for n, oh, ow, c in np.ndindex(dy.shape):
        best, index = -np.inf, -1
        for kh, kw in np.ndindex(s.KH, s.KW):
            h, w = oh * s.SH - s.PT + kh * s.DH, ow * s.SW - s.PL + kw * s.DW
            if 0 <= h < s.H and 0 <= w < s.W:
                value = x[n, h, w, c]
                if index < 0 or value > best or np.isnan(value):
                    best, index = value, h * s.W + w
        if zero and (oh >= s.ZH or ow >= s.ZW) and best < 0:
            best, index = 0, -1
        y[n, oh, ow, c], indices[n, oh, ow, c] = best, index
        if index >= 0:
            dx[n, index // s.W, index % s.W, c] += dy[n, oh, ow, c]
    return y, indices, dx


@values
@cases
def test_definition_is_the_rule(case: Pool2dCase, kind: str) -> None:
    s = geometry(case)
    x = VALUES[kind](*case.x).astype(np.float64)
    dy = randn(s.N, s.OH, s.OW, s.C, seed=2, dtype=np.float64)
    expected = loops(x, dy, s, case.options.get("edge") == "zero")
    y, indices = max_pool2d_forward(x, s)
    assert_close(y, expected[0], "exact")
    assert_close(indices, expected[1], "exact")
    assert_close(max_pool2d_backward(dy, indices, s), expected[2], "float64", s.KH * s.KW)


@values
@cases
def test_kernels(case: Pool2dCase, kind: str, kernel_device: str) -> None:
    s = geometry(case)
    x = VALUES[kind](*case.x).astype(np.float32)
    check_kernel(max_pool2d_forward, kernel_device, [x], s, bar="exact")
    if kind in ("normal", "ties", "special"):
        dy = randn(s.N, s.OH, s.OW, s.C, seed=2)
        indices = max_pool2d_forward(x, s)[1]
        check_kernel(max_pool2d_backward, kernel_device, [dy, indices], s, terms=s.KH * s.KW)


@pytest.mark.parametrize("edge", [0, 1])
@pytest.mark.parametrize("wide", [18, 400])
def test_every_order_of_four_cells(wide: int, edge: int) -> None:
    """2×2 windows go their own way on the CPU: each of 3⁴ windows, also beside an odd edge."""
    kinds = np.stack(np.meshgrid(*4 * [np.arange(3.0)])).reshape(2, 2, 81)
    windows = np.resize(kinds.transpose(2, 0, 1), (2 * 9 * (wide // 2), 2, 2))
    images = windows.reshape(2, 9, wide // 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(2, 18, wide, 1)
    x = np.pad(images, ((0, 0), (0, edge), (0, edge), (0, 0)), constant_values=9)
    s = max_pool2d_geometry(x, 2, None, 0, 1, "drop")
    y, indices = max_pool2d_forward(x, s)
    expected = loops(x, np.zeros(y.shape), s, False)
    assert_close(y, expected[0], "exact")
    assert_close(indices, expected[1], "exact")


def test_kernels_of_an_array_that_is_not_aligned(kernel_device: str) -> None:
    base = randn(2 * 4 * 6 * 4 + 1)
    x = base[1:].reshape(2, 4, 6, 4)
    s = max_pool2d_geometry(x, 2, None, 0, 1, "drop")
    check_kernel(max_pool2d_forward, kernel_device, [x], s, bar="exact")


def test_backward_gives_the_same_bits_every_time(device: str) -> None:
    """Windows overlap: a cell adds the gradients of up to nine."""
    x = randn(2, 9, 11, 5)
    s = max_pool2d_geometry(x, 3, 1, 1, 1, "drop")
    dy = 10.0 ** randn(s.N, s.OH, s.OW, s.C, seed=2)
    dy, indices = on(device, dy.astype(np.float32), max_pool2d_forward(x, s)[1])
    backward = max_pool2d_backward.on(device)
    runs = {to_host(backward(dy, indices, s)).tobytes() for _ in range(3)}
    assert len(runs) == 1


def test_no_winner_far_from_the_first_cell() -> None:
    """-1 is 256 cells before the window at 255, and a byte holds the distance of most winners."""
    x = np.full((1, 18, 15, 1), -1, np.float32)
    s = max_pool2d_geometry(x, 2, (17, 15), 0, 1, "zero")
    y, indices = max_pool2d_forward(x, s)
    assert indices[..., 0].tolist() == [[[0], [-1]]]
    dx = max_pool2d_backward(np.ones_like(y), indices, s)
    assert (dx.sum(), dx[0, 0, 0, 0]) == (1, 1)


def test_more_than_one_chunk() -> None:
    """The definition cuts the batch; a part must not see another one's scratch."""
    x = randn(5, 40, 41, 32)
    s = max_pool2d_geometry(x, 3, 2, 1, 1, "ceil")
    dy = randn(s.N, s.OH, s.OW, s.C, seed=1)
    y, indices = max_pool2d_forward(x, s)
    dx = max_pool2d_backward(dy, indices, s)
    for n in range(len(x)):
        one = max_pool2d_geometry(x[n : n + 1], 3, 2, 1, 1, "ceil")
        alone = max_pool2d_forward(x[n : n + 1], one)
        assert_close(y[n : n + 1], alone[0], "exact")
        assert_close(indices[n : n + 1], alone[1], "exact")
        back = max_pool2d_backward(dy[n : n + 1], indices[n : n + 1], one)
        assert_close(dx[n : n + 1], back, "exact")


@pytest.mark.parametrize(
    ("shape", "kernel_size", "options"),
    [
        ((1, 20, 30, 2), (17, 16), {"stride": (3, 5)}),
        ((1, 3, 9, 1), (1, 9), {"stride": 1, "padding": (0, 8)}),
        ((1, 3, 40_000, 1), (3, 1), {"stride": (1, 10_000)}),
        ((2, 2, 2, 1), (2, 4), {"stride": 1, "padding": (1, 3)}),
    ],
)
def test_large_windows(shape: tuple[int, ...], kernel_size: Any, options: Any) -> None:
    """Cells that one byte, and two, cannot number; a window wider than the image."""
    s = geometry(Pool2dCase(shape, kernel_size, options))
    x = distinct(*shape)
    y, indices, _ = loops(x, np.zeros((s.N, s.OH, s.OW, s.C)), s, False)
    result = max_pool2d_forward(x, s)
    assert_close(result[0], y, "exact")
    assert_close(result[1], indices, "exact")


@cases
def test_gradcheck(case: Pool2dCase) -> None:
    x = gpucnn.Tensor(distinct(*case.x, dtype=np.float64), requires_grad=True)
    y = F.max_pool2d(x, case.kernel_size, **case.options)
    if np.isfinite(y.numpy()).all():  # a window outside the image has no difference quotient
        assert gpucnn.gradcheck(lambda t: F.max_pool2d(t, case.kernel_size, **case.options), [x])


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)))
    dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = (draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2)))
    ceil = draw(st.booleans())
    size = [  # at least the dilation: PyTorch writes past its arrays for a window without cells
        draw(st.integers(max(d, d * (k - 1) + 1 - 2 * p), 10))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    kind = draw(st.sampled_from(["normal", "ties", "negative", "special"]))
    x = VALUES[kind](draw(st.integers(1, 3)), *size, draw(st.sampled_from([1, 3, 4])))
    x = x.astype(np.float32)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    ty, ti = torch.nn.functional.max_pool2d(
        tx, kernel, stride, padding, dilation, ceil_mode=ceil, return_indices=True
    )
    dy = randn(*ty.permute(0, 2, 3, 1).shape, seed=3)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))

    t = gpucnn.Tensor(x, requires_grad=True)
    edge = "ceil" if ceil else "drop"
    options = {"dilation": dilation, "edge": edge, "return_indices": True}
    y, indices = F.max_pool2d(t, kernel, stride, padding, **options)
    y.backward(dy)
    assert indices.dtype == np.int32
    assert_close(y.numpy(), ty.detach().numpy().transpose(0, 2, 3, 1), "exact")
    assert_close(indices.numpy(), ti.numpy().transpose(0, 2, 3, 1), "exact")
    assert_close(t.grad.numpy(), tx.grad.numpy().transpose(0, 2, 3, 1), "torch", 16)


def test_edges(device: str) -> None:
    """3x3 of -1 with windows of 2x2: what an absent cell counts."""
    x = gpucnn.Tensor(np.full((1, 3, 3, 1), -1, np.float32), requires_grad=True, device=device)
    y, indices = F.max_pool2d(x, 2, edge="ceil", return_indices=True)
    assert y.numpy()[0, :, :, 0].tolist() == [[-1, -1], [-1, -1]]
    assert indices.numpy()[0, :, :, 0].tolist() == [[0, 2], [6, 8]]
    y, indices = F.max_pool2d(x, 2, edge="zero", return_indices=True)
    assert y.numpy()[0, :, :, 0].tolist() == [[-1, 0], [0, 0]]
    assert indices.numpy()[0, :, :, 0].tolist() == [[0, -1], [-1, -1]]
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad.numpy()[0, :, :, 0].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert F.max_pool2d(x, 2).numpy()[0, :, :, 0].tolist() == [[-1]]


def test_zero_edge_of_relu_is_ceil(device: str) -> None:
    """A cell of the image wins a tie with an absent one, so gradients agree too."""
    x = np.maximum(randn(2, 5, 7, 3), 0)
    dy = randn(2, 3, 4, 3, seed=1)
    ceil = gradients(lambda t: F.max_pool2d(t, 2, edge="ceil"), [x], dy, device)
    zero = gradients(lambda t: F.max_pool2d(t, 2, edge="zero"), [x], dy, device)
    assert_close(zero[0], ceil[0], "exact")
    assert_close(zero[1][0], ceil[1][0], "exact")


@pytest.mark.parametrize(
    ("size", "kernel_size", "stride", "padding", "drop", "ceil"),
    [
        (5, 2, 2, 0, 2, 3),
        (2, 1, 2, 0, 1, 1),  # Caffe keeps a second window that begins past the image
        (1, 2, 2, 1, 1, 1),  # so does Chainer
        (9, 2, 2, 0, 4, 5),
        (4, 3, 2, 1, 2, 3),
    ],
)
def test_a_window_begins_in_the_image_or_before_it(
    size: int, kernel_size: int, stride: int, padding: int, drop: int, ceil: int
) -> None:
    x = gpucnn.Tensor(np.ones((1, size, size, 1), np.float32))
    for edge, expected in (("drop", drop), ("ceil", ceil), ("zero", ceil)):
        for pool in (F.max_pool2d, F.avg_pool2d, F.sum_pool2d):
            y = pool(x, kernel_size, stride, padding, edge=edge)
            assert y.shape == (1, expected, expected, 1)


def test_padding_is_never_zero(device: str) -> None:
    x = gpucnn.Tensor(np.full((1, 2, 2, 1), -3, np.float32), device=device)
    for edge in ("drop", "ceil", "zero"):
        y = F.max_pool2d(x, 3, 1, 1, edge=edge)
        assert y.numpy()[0, :, :, 0].tolist() == [[-3, -3], [-3, -3]]


def test_a_window_outside_the_image(device: str) -> None:
    """Dilated cells may step over a small image: -inf, index -1, no gradient."""
    x = np.array([5, 7], np.float32).reshape(1, 1, 2, 1)
    t = gpucnn.Tensor(x, requires_grad=True, device=device)
    y, indices = F.max_pool2d(t, (1, 2), 1, (0, 2), dilation=3, return_indices=True)
    assert y.numpy().reshape(-1).tolist() == [7, -np.inf, 5]
    assert indices.numpy().reshape(-1).tolist() == [1, -1, 0]
    y.backward(np.array([1, 2, 4], np.float32).reshape(y.shape))
    assert t.grad.numpy().reshape(-1).tolist() == [4, 1]


def test_dilation_of_a_single_cell_is_nothing(device: str) -> None:
    x = gpucnn.Tensor(randn(1, 3, 4, 1), device=device)
    y = F.max_pool2d(x, (1, 2), dilation=(2**30, 1))
    assert_close(y.numpy(), F.max_pool2d(x, (1, 2)).numpy(), "exact")


def test_the_last_nan_wins(device: str) -> None:
    x = np.array([1, np.nan, 5, np.nan, 9, 2], np.float32).reshape(1, 2, 3, 1)
    y, indices = F.max_pool2d(gpucnn.Tensor(x, device=device), (2, 3), return_indices=True)
    assert np.isnan(y.item())
    assert indices.item() == 3


def test_same_padding(device: str) -> None:
    x = gpucnn.Tensor(randn(1, 5, 8, 2), device=device)
    assert F.max_pool2d(x, 3, 2, "same").shape == (1, 3, 4, 2)
    assert F.max_pool2d(x, 3, 2, "valid").shape == (1, 2, 3, 2)


X = (2, 6, 5, 4)


@pytest.mark.parametrize(
    ("x", "kernel_size", "options", "error", "match"),
    [
        ((6, 5, 4), 2, {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 6, 0, 4), 2, {}, ValueError, "x must not be empty"),
        (X, 0, {}, ValueError, "kernel_size must be >= 1"),
        (X, (2, 2, 2), {}, ValueError, "kernel_size must be"),
        (X, 2.0, {}, TypeError, "kernel_size must be an integer"),
        (X, 6, {}, ValueError, "kernel_size: a window of 6"),
        (X, 3, {"dilation": 3}, ValueError, "kernel_size: a window of 3 with dilation 3"),
        (X, 20, {"stride": 1, "edge": "ceil"}, ValueError, "kernel_size: a window of 20"),
        (X, 20, {"stride": 2, "edge": "ceil"}, ValueError,
         r"ceil\(\(6 \+ 0 \+ 0 - 1\*\(20 - 1\) - 1\) / 2\) \+ 1 = -6 outputs"),
        (X, 2, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, 2, {"stride": "2"}, TypeError, "stride must be an integer"),
        (X, 2, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, 2, {"padding": 2}, ValueError, "padding must be smaller than the window"),
        (X, 2, {"padding": ((0, 0), (0, 2))}, ValueError, "padding must be smaller"),
        (X, 2, {"padding": 3, "dilation": 2}, ValueError, "padding must be smaller"),
        (X, 2, {"padding": "full"}, ValueError, "padding must be numbers"),
        (X, 2, {"dilation": 0}, ValueError, "dilation must be >= 1"),
        (X, 2, {"edge": "round"}, ValueError, "edge must be one of drop, ceil, zero"),
        (X, 2, {"stride": 2**31, "edge": "ceil"}, ValueError, "stride"),
        ((1, 1, 2**20, 1), 2, {"dilation": (2**12, 1), "padding": (2**12, 0)}, ValueError,
         "x: .* than an int32 index"),
    ],
)  # fmt: skip
def test_bad_arguments(
    x: Any, kernel_size: Any, options: Any, error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        F.max_pool2d(gpucnn.Tensor(np.zeros(x, np.float32)), kernel_size, **options)


def test_bad_dtype() -> None:
    with pytest.raises(TypeError, match="x must be float32"):
        F.max_pool2d(gpucnn.Tensor(np.zeros(X, np.int32)), 2)
