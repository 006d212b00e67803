"""Pooling of volumes and sequences: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import POOL3D
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.ops.pool2d import max_pool2d_forward
from gpucnn.ops.pool3d import max_pool3d_geometry, max_pool3d_join
from tests.support import (
    assert_close,
    check_kernel,
    distinct,
    gradients,
    hundreds,
    needs_torch,
    randn,
    torch,
)

cases = pytest.mark.parametrize(("shape", "kernel_size", "options"), POOL3D, ids=str)
VALUES = {
    "normal": lambda *s: randn(*s),
    "ties": lambda *s: np.round(randn(*s)),
    "special": lambda *s: np.random.default_rng(1).choice(
        np.array([np.nan, np.inf, -np.inf, 0, 1, -1], np.float32), s
    ),
}
values = pytest.mark.parametrize("kind", VALUES)


def geometry(shape: Any, kernel_size: Any, options: Any) -> Any:
    options = {"stride": None, "padding": 0, "dilation": 1, "edge": "drop", **options}
    return max_pool3d_geometry(np.zeros(shape, np.float32), kernel_size, **options)


def loops(x: np.ndarray, dy: np.ndarray, g: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, indices, dx) of max pooling by the rule, one window at a time."""
    p, q, j = g.planes, g.depth, g.join
    y, indices, dx = np.empty(dy.shape), np.empty(dy.shape, np.int32), np.zeros(x.shape)
    for n, od, oh, ow, c in np.ndindex(dy.shape):
        best, index = -np.inf, -1
        for kd, kh, kw in np.ndindex(q.KH, p.KH, p.KW):
            d = od * q.SH - q.PT + kd * q.DH
            h, w = oh * p.SH - p.PT + kh * p.DH, ow * p.SW - p.PL + kw * p.DW
            if 0 <= d < q.H and 0 <= h < p.H and 0 <= w < p.W:
                value = x[n, d, h, w, c]
                if index < 0 or value > best or np.isnan(value):
                    best, index = value, (d * p.H + h) * p.W + w
        if (od >= j.ZD or oh >= j.ZH or ow >= j.ZW) and best < 0:
            best, index = 0, -1
        y[n, od, oh, ow, c], indices[n, od, oh, ow, c] = best, index
        if index >= 0:
            dx[n].reshape(-1, x.shape[-1])[index, c] += dy[n, od, oh, ow, c]
    return y, indices, dx


@values
@cases
def test_max_is_the_rule(shape: Any, kernel_size: Any, options: Any, kind: str) -> None:
    g = geometry(shape, kernel_size, options)
    x = VALUES[kind](*shape).astype(np.float64)
    dy = randn(*g.join.output_shape, seed=1, dtype=np.float64)
    expected = loops(x, dy, g)
    t = Tensor(x, requires_grad=True)
    y, indices = F.max_pool3d(t, kernel_size, **options, return_indices=True)
    y.backward(dy)
    assert indices.dtype == np.int32
    assert_close(y.numpy(), expected[0], "exact")
    assert_close(indices.numpy(), expected[1], "exact")
    assert_close(t.grad.numpy(), expected[2], "float64", 27)


@values
@cases
def test_join_kernel(
    shape: Any, kernel_size: Any, options: Any, kind: str, kernel_device: str
) -> None:
    g = geometry(shape, kernel_size, options)
    x = VALUES[kind](*shape).astype(np.float32)
    p, d = g.planes, g.depth
    planes, inner = max_pool2d_forward(x.reshape(p.N, p.H, p.W, p.C), p)
    best, outer = max_pool2d_forward(planes.reshape(d.N, d.H, d.W, d.C), d)
    check_kernel(max_pool3d_join, kernel_device, [best, inner, outer], g.join, bar="exact")


@pytest.mark.parametrize("pool", ["max", "avg", "sum"])
def test_devices_agree(pool: str, kernel_device: str) -> None:
    x, dy = randn(1, 5, 4, 6, 3), randn(1, 3, 2, 3, 3, seed=1)
    x1, dy1 = randn(2, 9, 3), randn(2, 5, 3, seed=1)
    for fn, a, b in [
        (lambda t: getattr(F, f"{pool}_pool3d")(t, 2, edge="ceil"), x, dy),
        (lambda t: getattr(F, f"{pool}_pool1d")(t, 2, edge="ceil"), x1, dy1),
    ]:
        y, (dx,) = gradients(fn, [a], b)
        got, (dx_got,) = gradients(fn, [a], b, kernel_device)
        assert_close(got, y, "float32", 8)
        assert_close(dx_got, dx, "float32", 8)


@cases
def test_gradcheck(shape: Any, kernel_size: Any, options: Any) -> None:
    x = Tensor(distinct(1, *shape[1:4], min(shape[4], 2), dtype=np.float64), requires_grad=True)
    if np.isfinite(F.max_pool3d(x, kernel_size, **options).numpy()).all():
        assert gpucnn.gradcheck(lambda t: F.max_pool3d(t, kernel_size, **options), [x])
    options = {k: v for k, v in options.items() if k != "dilation"}
    if "padding" not in options or options["padding"] == 1:
        assert gpucnn.gradcheck(lambda t: F.avg_pool3d(t, kernel_size, **options), [x])
        assert gpucnn.gradcheck(lambda t: F.sum_pool3d(t, kernel_size, **options), [x])


def to_torch(x: np.ndarray) -> Any:
    # Contiguous: channels last, PyTorch numbers a window of -inf 0, wherever it lies.
    return torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)


def from_torch(t: Any) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(t.detach().numpy(), 1, -1))


@needs_torch
@pytest.mark.parametrize("dims", [1, 3])
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(dims: int, data: st.DataObject) -> None:
    draw = data.draw
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = tuple(draw(st.integers(1, 2)) for _ in range(dims))
    ceil, include = draw(st.booleans()), draw(st.booleans())
    # At least the dilation: PyTorch writes past its arrays for a window without cells. At least the
    # kernel: its avg_pool3d refuses an image that is smaller before it is padded.
    size = tuple(
        draw(st.integers(max(d, k, d * (k - 1) + 1 - 2 * p), 6))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    x = VALUES[draw(st.sampled_from(list(VALUES)))](2, *size, draw(st.sampled_from([1, 3])))
    x = x.astype(np.float32)
    edge = "ceil" if ceil else "drop"
    own, other = f"pool{dims}d", torch.nn.functional

    tx = to_torch(x)
    ty, ti = getattr(other, f"max_{own}")(
        tx, kernel, stride, padding, dilation, ceil_mode=ceil, return_indices=True
    )
    dy = randn(*from_torch(ty).shape, seed=3)
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    t = Tensor(x, requires_grad=True)
    y, indices = getattr(F, f"max_{own}")(
        t, kernel, stride, padding, dilation=dilation, edge=edge, return_indices=True
    )
    y.backward(dy)
    assert_close(y.numpy(), from_torch(ty), "exact")
    assert_close(indices.numpy(), from_torch(ti), "exact")
    assert_close(t.grad.numpy(), from_torch(tx.grad), "torch", 27)

    x = randn(*x.shape, seed=5)
    tx, t = to_torch(x), Tensor(x, requires_grad=True)
    ty = getattr(other, f"avg_{own}")(tx, kernel, stride, padding, ceil, include)
    y = getattr(F, f"avg_{own}")(t, kernel, stride, padding, edge=edge, count_include_pad=include)
    dy = randn(*y.shape, seed=4)
    ty.backward(torch.tensor(np.moveaxis(dy, -1, 1).copy()))
    y.backward(dy)
    assert_close(y.numpy(), from_torch(ty), "torch", 27)
    assert_close(t.grad.numpy(), from_torch(tx.grad), "torch", 27)
    total = getattr(F, f"sum_{own}")(Tensor(x), kernel, stride, padding)
    whole = getattr(F, f"avg_{own}")(Tensor(x), kernel, stride, padding)
    assert_close(total.numpy(), whole.numpy() * np.prod(kernel), "torch", 27)


def test_a_cell_of_the_volume_wins_a_tie_with_the_edge(device: str) -> None:
    """Zeros deep in the volume, negative numbers before them: the first real 0 wins."""
    x = np.full((1, 2, 3, 3, 1), -1, np.float32)
    x[0, 1, 2, 2, 0] = 0
    t = Tensor(x, device=device)
    y, indices = F.max_pool3d(t, 2, edge="zero", return_indices=True)
    assert y.numpy().reshape(-1).tolist() == [-1, 0, 0, 0]
    assert indices.numpy().reshape(-1).tolist() == [0, -1, -1, 17]


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_on_the_cuda_path() -> None:
    """The launchers of every pooling touch CuPy arrays in no other way than a GPU allows."""
    volume, image = randn(1, 3, 4, 5, 2), randn(1, 5, 6, 3)
    for pool, x in [
        (lambda t: F.max_pool3d(t, 2, edge="zero"), volume),
        (lambda t: F.avg_pool3d(t, 2), volume),
        (lambda t: F.max_pool1d(t.reshape(5, 6, 3), 2), image),
        (lambda t: F.adaptive_max_pool2d(t, 2), image),
        (F.global_avg_pool2d, image),
        (lambda t: F.avg_unpool2d(t, 2), image),
        (lambda t: F.sum_unpool2d(t, 2), image),
    ]:
        dy = randn(*pool(Tensor(x)).shape, seed=1)
        cuda, emulated = (gradients(pool, [x], dy, name) for name in ("cuda", "emulated"))
        assert_close(cuda[0], emulated[0], "exact")
        assert_close(cuda[1][0], emulated[1][0], "exact")


def test_layers() -> None:
    x, row = Tensor(randn(2, 4, 5, 6, 3)), Tensor(randn(2, 9, 3))
    for name in ("max", "avg", "sum"):
        for dims, t in ((1, row), (3, x)):
            layer = getattr(nn, f"{name.capitalize()}Pool{dims}d")(2, 2, 1, edge="ceil")
            expected = getattr(F, f"{name}_pool{dims}d")(t, 2, 2, 1, edge="ceil")
            assert_close(layer(t).numpy(), expected.numpy(), "exact")
    assert repr(nn.MaxPool1d(3, dilation=2)) == (
        "MaxPool1d(kernel_size=(3,), stride=(3,), padding=((0, 0),), dilation=(2,))"
    )
    _, indices = nn.MaxPool3d(2, return_indices=True)(x)
    assert indices.shape == (2, 2, 2, 3, 3)


X = (2, 4, 6, 5, 4)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"x": (2, 6, 5, 4)}, ValueError, r"x must have shape \(N, D, H, W, C\)"),
        ({"x": (2, 0, 6, 5, 4)}, ValueError, "x must not be empty"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        ({"kernel_size": (2, 2)}, ValueError, "kernel_size must be an int or 3 ints"),
        ({"kernel_size": (5, 1, 1)}, ValueError, "kernel_size: a window of 5"),
        ({"kernel_size": (1, 1, 6)}, ValueError, "kernel_size: a window of 6"),
        ({"stride": 2.0}, TypeError, "stride must be an integer"),
        ({"padding": (2, 0, 0)}, ValueError, "padding must be smaller than the window"),
        ({"padding": "full"}, ValueError, "padding must be numbers"),
        ({"edge": "round"}, ValueError, "edge must be one of drop, ceil, zero"),
    ],
)
def test_bad_arguments(options: Any, error: type[Exception], match: str) -> None:
    options = {"kernel_size": 2, "x": X, **options}
    x = Tensor(np.zeros(options.pop("x"), np.float32))
    for pool in (F.max_pool3d, F.avg_pool3d, F.sum_pool3d):
        with pytest.raises(error, match=match):
            pool(x, **options)


def test_bad_dtype_and_dilation() -> None:
    for pool in (F.max_pool3d, F.avg_pool3d, F.sum_pool3d):
        with pytest.raises(TypeError, match="x must be float32"):
            pool(Tensor(np.zeros(X, np.int32)), 2)
    with pytest.raises(ValueError, match="dilation must be >= 1"):
        F.max_pool3d(Tensor(np.zeros(X, np.float32)), 2, dilation=0)
