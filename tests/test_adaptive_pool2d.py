"""Adaptive and global pooling: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import ADAPTIVE_POOL2D
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.ops import adaptive_pool2d as ops
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

cases = pytest.mark.parametrize(("shape", "output_size"), ADAPTIVE_POOL2D, ids=str)
VALUES = {
    "normal": lambda *s: randn(*s),
    "ties": lambda *s: np.round(randn(*s)),
    "special": lambda *s: np.random.default_rng(1).choice(
        np.array([np.nan, np.inf, -np.inf, 0, 1, -1], np.float32), s
    ),
}
values = pytest.mark.parametrize("kind", VALUES)


def geometry(shape: Any, output_size: Any) -> ops.AdaptivePool2dGeometry:
    return ops.adaptive_pool2d_geometry(np.zeros(shape, np.float32), output_size)


def region(s: ops.AdaptivePool2dGeometry, oh: int, ow: int) -> list[tuple[int, int]]:
    rows = range(int(np.floor(oh * s.H / s.OH)), int(np.ceil((oh + 1) * s.H / s.OH)))
    columns = range(int(np.floor(ow * s.W / s.OW)), int(np.ceil((ow + 1) * s.W / s.OW)))
    return [(h, w) for h in rows for w in columns]


def avg_loops(x: np.ndarray, dy: np.ndarray, s: Any) -> tuple[np.ndarray, np.ndarray]:
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for oh, ow in np.ndindex(s.OH, s.OW):
        cells = region(s, oh, ow)
        for h, w in cells:
            y[:, oh, ow] += x[:, h, w] / len(cells)
            dx[:, h, w] += dy[:, oh, ow] / len(cells)
    return y, dx


def max_loops(x: np.ndarray, dy: np.ndarray, s: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, indices, dx = np.zeros(dy.shape), np.zeros(dy.shape, np.int32), np.zeros(x.shape)
    for n, oh, ow, c in np.ndindex(dy.shape):
        best, at = -np.inf, region(s, oh, ow)[0]
        for h, w in region(s, oh, ow):
            if x[n, h, w, c] > best or np.isnan(x[n, h, w, c]):
                best, at = x[n, h, w, c], (h, w)
        y[n, oh, ow, c], indices[n, oh, ow, c] = best, at[0] * s.W + at[1]
        dx[n, at[0], at[1], c] += dy[n, oh, ow, c]
    return y, indices, dx


@cases
def test_avg_definition_is_the_rule(shape: Any, output_size: Any) -> None:
    s = geometry(shape, output_size)
    x, dy = randn(*shape, dtype=np.float64), randn(s.N, s.OH, s.OW, s.C, seed=1, dtype=np.float64)
    y, dx = avg_loops(x, dy, s)
    assert_close(ops.adaptive_avg_pool2d_forward(x, s), y, "float64", s.H * s.W)
    assert_close(ops.adaptive_avg_pool2d_backward(dy, s), dx, "float64", s.OH * s.OW)


@values
@cases
def test_max_definition_is_the_rule(shape: Any, output_size: Any, kind: str) -> None:
    s = geometry(shape, output_size)
    x = VALUES[kind](*shape).astype(np.float64)
    dy = randn(s.N, s.OH, s.OW, s.C, seed=1, dtype=np.float64)
    expected = max_loops(x, dy, s)
    y, indices = ops.adaptive_max_pool2d_forward(x, s)
    assert_close(y, expected[0], "exact")
    assert_close(indices, expected[1], "exact")
    dx = ops.adaptive_max_pool2d_backward(dy, indices, s)
    assert_close(dx, expected[2], "float64", s.OH * s.OW)


@cases
def test_kernels(shape: Any, output_size: Any, kernel_device: str) -> None:
    s = geometry(shape, output_size)
    dy, terms = randn(s.N, s.OH, s.OW, s.C, seed=1), s.H * s.W + s.OH * s.OW
    forward, backward = ops.adaptive_avg_pool2d_forward, ops.adaptive_avg_pool2d_backward
    check_kernel(forward, kernel_device, [randn(*shape)], s, terms=terms)
    check_kernel(backward, kernel_device, [dy], s, terms=terms)
    for make in VALUES.values():
        x = make(*shape).astype(np.float32)
        check_kernel(ops.adaptive_max_pool2d_forward, kernel_device, [x], s, bar="exact")
        indices = ops.adaptive_max_pool2d_forward(x, s)[1]
        backward = ops.adaptive_max_pool2d_backward
        check_kernel(backward, kernel_device, [dy, indices], s, terms=terms)


def test_regions_of_minus_infinity(kernel_device: str) -> None:
    """The first cell of a region wins, by the kernels of a thread and of a block per region."""
    for shape, output_size in [((1, 5, 7, 3), (2, 3)), ((1, 27, 14, 33), (2, 1))]:
        s, x = geometry(shape, output_size), np.full(shape, -np.inf, np.float32)
        check_kernel(ops.adaptive_max_pool2d_forward, kernel_device, [x], s, bar="exact")


@cases
def test_gradcheck(shape: Any, output_size: Any) -> None:
    x = Tensor(distinct(1, *shape[1:3], min(shape[3], 4), dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: F.adaptive_avg_pool2d(t, output_size), [x])
    assert gpucnn.gradcheck(lambda t: F.adaptive_max_pool2d(t, output_size), [x])
    assert gpucnn.gradcheck(F.global_avg_pool2d, [x])
    assert gpucnn.gradcheck(F.global_max_pool2d, [x])


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    side = st.integers(1, 9)
    output_size = (draw(side), draw(side))
    kind = draw(st.sampled_from(list(VALUES)))
    shape = (draw(st.integers(1, 2)), draw(side), draw(side), draw(st.sampled_from([1, 3, 4])))
    x = VALUES[kind](*shape).astype(np.float32)
    dy = randn(shape[0], *output_size, shape[3], seed=2)
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)

    ty, ti = torch.nn.functional.adaptive_max_pool2d(tx, output_size, return_indices=True)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    t = Tensor(x, requires_grad=True)
    y, indices = F.adaptive_max_pool2d(t, output_size, return_indices=True)
    y.backward(dy)
    assert_close(y.numpy(), ty.detach().numpy().transpose(0, 2, 3, 1), "exact")
    assert_close(indices.numpy(), ti.numpy().transpose(0, 2, 3, 1), "exact")
    assert_close(t.grad.numpy(), tx.grad.numpy().transpose(0, 2, 3, 1), "torch", 81)

    tx.grad = None
    ty = torch.nn.functional.adaptive_avg_pool2d(tx, output_size)
    ty.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    y, (dx,) = gradients(lambda v: F.adaptive_avg_pool2d(v, output_size), [x], dy)
    if kind != "special":  # where infinities meet, NaN comes of the order of additions
        assert_close(y, ty.detach().numpy().transpose(0, 2, 3, 1), "torch", 81)
    assert_close(dx, tx.grad.numpy().transpose(0, 2, 3, 1), "torch", 81)


def test_regions_share_rows(device: str) -> None:
    """Five columns to three: 0-1, 1-3, 3-4."""
    x = Tensor(np.array([1, 3, 6, 9, 5], np.float32).reshape(1, 1, 5, 1), device=device)
    assert F.adaptive_avg_pool2d(x, (1, 3)).numpy().reshape(-1).tolist() == [2, 6, 7]
    assert F.adaptive_max_pool2d(x, (None, 3)).numpy().reshape(-1).tolist() == [3, 9, 9]


def test_global(device: str) -> None:
    """(N, C); equal cells send the gradient to the first; a NaN is not lost."""
    x = np.zeros((2, 3, 5, 4), np.float32)
    x[1, 2, 3, 2] = np.nan
    y, (dx,) = gradients(F.global_max_pool2d, [x], np.ones((2, 4), np.float32), device)
    expected = np.zeros(x.shape)
    expected[:, 0, 0] = 1
    expected[1, 0, 0, 2], expected[1, 2, 3, 2] = 0, 1
    assert_close(dx, expected, "exact")
    assert np.isnan(y).sum() == 1
    y, (dx,) = gradients(F.global_avg_pool2d, [x], np.ones((2, 4), np.float32), device)
    assert y.shape == (2, 4)
    assert np.isnan(y[1, 2])
    assert_close(dx, np.full(x.shape, 1 / 15), "float32")


def test_the_same_bits_every_time(device: str) -> None:
    s = geometry((2, 7, 5, 5), (4, 3))
    (dy,) = on(device, (10.0 ** randn(2, 4, 3, 5)).astype(np.float32))
    backward = ops.adaptive_avg_pool2d_backward.on(device)
    assert len({to_host(backward(dy, s)).tobytes() for _ in range(3)}) == 1


def test_layers() -> None:
    x = Tensor(randn(2, 5, 7, 3))
    assert nn.AdaptiveAvgPool2d((2, 3))(x).shape == (2, 2, 3, 3)
    y, indices = nn.AdaptiveMaxPool2d(2, return_indices=True)(x)
    assert y.shape == indices.shape == (2, 2, 2, 3)
    assert_close(nn.GlobalAvgPool2d()(x).numpy(), x.numpy().mean((1, 2)), "float32", 35)
    assert_close(nn.GlobalMaxPool2d()(x).numpy(), x.numpy().max((1, 2)), "exact")
    assert repr(nn.AdaptiveMaxPool2d((2, None))) == "AdaptiveMaxPool2d(output_size=(2, None))"
    assert repr(nn.GlobalAvgPool2d()) == "GlobalAvgPool2d()"


X = (2, 6, 5, 4)


@pytest.mark.parametrize(
    ("x", "output_size", "error", "match"),
    [
        ((6, 5, 4), 2, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 0, 5, 4), 2, ValueError, "x must not be empty"),
        (X, 0, ValueError, "output_size must be >= 1"),
        (X, (1, 2, 3), ValueError, "output_size must be an int or a pair"),
        (X, 2.0, TypeError, "output_size must be an integer"),
        (X, 2**29, ValueError, "output_size: 536870912 regions of 6 cells"),
    ],
)
def test_bad_arguments(x: Any, output_size: Any, error: type[Exception], match: str) -> None:
    for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d):
        with pytest.raises(error, match=match):
            pool(Tensor(np.zeros(x, np.float32)), output_size)


def test_bad_dtype() -> None:
    for pool in (F.global_avg_pool2d, F.global_max_pool2d):
        with pytest.raises(TypeError, match="x must be float32"):
            pool(Tensor(np.zeros(X, np.int32)))
