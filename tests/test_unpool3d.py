"""Unpooling of volumes and sequences: loops -> definition -> kernels; PyTorch; tied layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import UNPOOL1D, UNPOOL3D
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.ops.unpool2d import (
    UnpoolGeometry,
    max_unpool2d_backward,
    max_unpool2d_forward,
    unpool_geometry,
)
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch
from tests.test_unpool2d import INDICES, kinds, lasts, loops, own_windows

CASES = [*UNPOOL1D, *UNPOOL3D]
cases = pytest.mark.parametrize(("shape", "kernel_size", "options"), CASES, ids=str)
MODES = [("avg", "repeat"), ("avg", "spread"), ("sum", "repeat"), ("sum", "spread")]
modes = pytest.mark.parametrize(("kind", "mode"), MODES)


def geometry(shape: Any, kernel_size: Any, options: Any) -> UnpoolGeometry:
    options = {"stride": None, "padding": 0, "output_size": None, **options}
    return unpool_geometry(len(shape) - 2, np.zeros(shape, np.float32), kernel_size, **options)


def function(name: str, shape: Any) -> Any:
    return getattr(F, f"{name}_unpool{len(shape) - 2}d")


@lasts
@kinds
@cases
def test_by_indices_is_the_rule(
    shape: Any, kernel_size: Any, options: Any, kind: str, last: bool
) -> None:
    s = geometry(shape, kernel_size, options)
    x, dy = randn(*shape, dtype=np.float64), randn(*s.y_shape, seed=2, dtype=np.float64)
    indices = INDICES[kind](s)
    y, dx = loops(x, indices, dy, last)
    assert_close(max_unpool2d_forward(x, indices, last, s), y, "exact" if last else "float64")
    assert_close(max_unpool2d_backward(dy, indices, last, s), dx, "exact")


@lasts
@kinds
@cases
def test_kernels(
    shape: Any, kernel_size: Any, options: Any, kind: str, last: bool, kernel_device: str
) -> None:
    s = geometry(shape, kernel_size, options)
    x, dy, indices = randn(*shape), randn(*s.y_shape, seed=2), INDICES[kind](s)
    bar = "exact" if last else "float32"
    check_kernel(max_unpool2d_forward, kernel_device, [x, indices], last, s, bar=bar)
    check_kernel(max_unpool2d_backward, kernel_device, [dy, indices], last, s, bar="exact")


def test_a_stray_in_another_plane(kernel_device: str) -> None:
    """An index in the rows and columns of its window, but not in its planes."""
    shape = (2, 3, 2, 2, 4)
    s = geometry(shape, 2, {})
    indices = own_windows(s)
    indices[1, 2, 1, 0, 3] %= s.H * s.W
    assert indices[1, 2, 1, 0, 3] // s.W in (2, 3)
    x, dy = randn(*shape), randn(*s.y_shape, seed=2)
    check_kernel(max_unpool2d_forward, kernel_device, [x, indices], True, s, bar="exact")
    check_kernel(max_unpool2d_backward, kernel_device, [dy, indices], True, s, bar="exact")


def average_loops(x: np.ndarray, s: UnpoolGeometry, kind: str, mode: str) -> np.ndarray:
    """y, one cell of one window at a time."""
    x = x.reshape(s.N, s.OD, s.OH, s.OW, s.C)
    y, holders = np.zeros((s.N, s.D, s.H, s.W, s.C)), np.zeros((s.D, s.H, s.W, 1))
    for od, oh, ow in np.ndindex(s.OD, s.OH, s.OW):
        d0, h0, w0 = od * s.SD - s.PF, oh * s.SH - s.PT, ow * s.SW - s.PL
        cells = [
            (d, h, w)
            for d in range(max(d0, 0), min(d0 + s.KD, s.D))
            for h in range(max(h0, 0), min(h0 + s.KH, s.H))
            for w in range(max(w0, 0), min(w0 + s.KW, s.W))
        ]
        whole = s.KD * s.KH * s.KW if kind == "avg" else len(cells)
        for d, h, w in cells:
            holders[d, h, w] += 1
            y[:, d, h, w] += x[:, od, oh, ow] / (whole if mode == "spread" else 1)
    mean = (kind, mode) == ("avg", "repeat")
    return (y / np.maximum(holders, 1) if mean else y).reshape(s.y_shape)


@modes
@cases
def test_averages_and_sums_are_the_rule(
    shape: Any, kernel_size: Any, options: Any, kind: str, mode: str
) -> None:
    s = geometry(shape, kernel_size, options)
    x = randn(*shape, dtype=np.float64)
    y = function(kind, shape)(Tensor(x), kernel_size, mode=mode, **options).numpy()
    assert_close(y, average_loops(x, s, kind, mode), "float64", s.KD * s.KH * s.KW)


@modes
@pytest.mark.parametrize(
    ("shape", "kernel_size", "options"), [UNPOOL1D[2], UNPOOL3D[2], UNPOOL3D[4]], ids=str
)
def test_devices_agree(
    shape: Any, kernel_size: Any, options: Any, kind: str, mode: str, kernel_device: str
) -> None:
    x, dy = randn(*shape), randn(*geometry(shape, kernel_size, options).y_shape, seed=1)

    def fn(t: Tensor) -> Tensor:
        return function(kind, shape)(t, kernel_size, mode=mode, **options)

    expected, (dx,) = gradients(fn, [x], dy)
    y, (actual,) = gradients(fn, [x], dy, kernel_device)
    assert_close(y, expected, "float32", 27)
    assert_close(actual, dx, "float32", 27)


@cases
def test_gradcheck(shape: Any, kernel_size: Any, options: Any) -> None:
    indices = own_windows(geometry(shape, kernel_size, options), seed=3)
    x = Tensor(randn(*shape, dtype=np.float64), requires_grad=True)
    for overlap in ("last", "sum"):
        options = {**options, "overlap": overlap}
        assert gpucnn.gradcheck(
            lambda t, o=options: function("max", shape)(t, indices, kernel_size, **o), [x]
        )
    del options["overlap"]
    for kind, mode in MODES:
        unpool = function(kind, shape)
        assert gpucnn.gradcheck(
            lambda t, f=unpool, m=mode: f(t, kernel_size, mode=m, **options), [x]
        )


@needs_torch
@pytest.mark.parametrize("dims", [1, 3])
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(dims: int, data: st.DataObject) -> None:
    """Where windows do not overlap, also behind the padding and with another output size."""
    draw = data.draw
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(dims))
    stride = tuple(k + draw(st.integers(0, 2)) for k in kernel)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(
        draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)
    )
    x = randn(draw(st.integers(1, 2)), *size, draw(st.sampled_from([1, 3, 4])))
    own, other = f"pool{dims}d", torch.nn.functional

    def to(a: np.ndarray) -> Any:
        return torch.tensor(np.moveaxis(a, -1, 1).copy())

    def back(t: Any) -> np.ndarray:
        return np.moveaxis(t.detach().numpy(), 1, -1)

    ty, ti = getattr(other, f"max_{own}")(to(x), kernel, stride, padding, return_indices=True)
    ty.requires_grad_()
    tz = getattr(other, f"max_un{own}")(ty, ti, kernel, stride, padding, output_size=size)
    dz = randn(*x.shape, seed=4)
    tz.backward(to(dz))
    y, indices = getattr(F, f"max_{own}")(Tensor(x), kernel, stride, padding, return_indices=True)
    t = Tensor(y.numpy(), requires_grad=True)
    z = getattr(F, f"max_un{own}")(t, indices, kernel, stride, padding, output_size=size)
    z.backward(dz)
    assert_close(z.numpy(), back(tz), "exact")
    assert_close(t.grad.numpy(), back(ty.grad), "exact")


@pytest.mark.parametrize("dims", [1, 3])
def test_adjoints_and_right_inverses(dims: int) -> None:
    """⟨pool(a), b⟩ = ⟨a, back(b)⟩ where windows overlap; pool(unpool(y)) = y where they do not."""
    size = (5, 6, 7)[-dims:]
    a = Tensor(randn(2, *size, 3, dtype=np.float64))

    def functions(kind: str) -> tuple[Any, Any]:
        return getattr(F, f"{kind}_pool{dims}d"), getattr(F, f"{kind}_unpool{dims}d")

    for kind, mode in (("avg", "spread"), ("sum", "repeat")):
        pool, unpool = functions(kind)
        y = pool(a, 3, 2, 1).numpy()
        b = Tensor(randn(*y.shape, seed=1, dtype=np.float64))
        back = unpool(b, 3, 2, 1, output_size=size, mode=mode).numpy()
        assert_close((y * b.numpy()).sum(), (a.numpy() * back).sum(), "float64", y.size)
    for kind, mode in (("avg", "repeat"), ("sum", "spread")):
        pool, unpool = functions(kind)
        y = Tensor(randn(*pool(a, 2, edge="ceil").shape, seed=2, dtype=np.float64))
        spread = unpool(y, 2, output_size=size, mode=mode)
        assert_close(pool(spread, 2, count_include_pad=False, edge="ceil").numpy()
                     if kind == "avg" else pool(spread, 2, edge="ceil").numpy(),
                     y.numpy(), "float64", 8)  # fmt: skip


def test_the_last_window_in_raster_order_wins(device: str) -> None:
    """The later plane wins over the later row, and alone has the gradient."""
    x = np.arange(1, 9, dtype=np.float32).reshape(1, 2, 2, 2, 1)
    indices = np.full(x.shape, 13, np.int32)
    indices[0, 1, 1, 1] = 0
    dy = np.arange(27, dtype=np.float32).reshape(1, 3, 3, 3, 1)

    def unpool(overlap: str) -> tuple[np.ndarray, np.ndarray]:
        y, (dx,) = gradients(
            lambda t: F.max_unpool3d(t, indices, 2, 1, overlap=overlap), [x], dy, device
        )
        return y.reshape(-1), dx.reshape(-1)

    y, dx = unpool("last")
    assert (y[13], y[0], np.count_nonzero(y)) == (7, 8, 2)
    assert dx.tolist() == [0, 0, 0, 0, 0, 0, 13, 0]
    y, dx = unpool("sum")
    assert (y[13], y[0], np.count_nonzero(y)) == (28, 8, 2)
    assert dx.tolist() == [13] * 7 + [0]
    with pytest.raises(ValueError, match=r'overlap="error": indices name cell 13 of image 0'):
        unpool("error")


@pytest.mark.parametrize("edge", ["drop", "ceil"])
@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("dims", [1, 3])
def test_tied_layers_return_to_the_input_size(dims: int, padding: Any, edge: str) -> None:
    largest = getattr(nn, f"MaxPool{dims}d")(3, 2, padding, (2, 1, 1)[:dims], edge, True)
    average = getattr(nn, f"AvgPool{dims}d")(3, 2, padding, edge=edge)
    total = getattr(nn, f"SumPool{dims}d")(3, 2, padding, edge=edge)
    tied = largest.inverse(), average.inverse("spread"), total.inverse("repeat")
    for size in [(5, 6, 7), (6, 9, 5)]:
        x = Tensor(randn(2, *size[-dims:], 2))
        y, indices = largest(x)
        expected = np.zeros(x.shape, np.float32)
        for n, c in np.ndindex(2, 2):
            cells = indices.numpy()[n, ..., c].reshape(-1)
            inside = cells >= 0
            won = y.numpy()[n, ..., c].reshape(-1)[inside]
            expected[n, ..., c].flat[cells[inside]] = won
        assert_close(tied[0](y).numpy(), expected, "exact")
        for pool, layer in ((average, tied[1]), (total, tied[2])):
            assert layer(pool(x)).shape == x.shape
    assert repr(tied[0]).endswith(", tied)")
    assert type(tied[1]).__name__ == f"AvgUnpool{dims}d"


@pytest.mark.parametrize("dims", [1, 3])
def test_free_layers(dims: int) -> None:
    x = Tensor(np.abs(randn(1, *(4, 6, 5)[-dims:], 2)))
    pool = getattr(nn, f"MaxPool{dims}d")(2, return_indices=True)
    y, indices = pool(x)
    layer = getattr(nn, f"MaxUnpool{dims}d")(2, overlap="error")
    again, same = pool(layer(y, indices, x.shape[1:-1]))
    assert_close(again.numpy(), y.numpy(), "exact")
    assert_close(same.numpy(), indices.numpy(), "exact")
    with pytest.raises(
        TypeError, match=f"indices are needed: the second output of a MaxPool{dims}"
    ):
        layer(y)
    for kind in ("Avg", "Sum"):
        layer = getattr(nn, f"{kind}Unpool{dims}d")(2, mode="spread")
        expected = getattr(F, f"{kind.lower()}_unpool{dims}d")(y, 2, mode="spread")
        assert_close(layer(y).numpy(), expected.numpy(), "exact")
        assert repr(layer).endswith("mode='spread')")


def test_receptive_fields() -> None:
    for dims, size in ((1, (7,)), (3, (3, 5, 4))):
        pool, unpool = (getattr(nn, f"Avg{k}{dims}d") for k in ("Pool", "Unpool"))
        field = gpucnn.receptive_field(nn.Sequential(pool(2), unpool(2)), (*size, 1))
        assert field.cells(*(1,) * dims) == (slice(0, 2),) * dims


X1, X3 = (2, 4, 5), (2, 3, 2, 4, 5)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        ((3, 4, 5, 2), {}, ValueError, r"x must have shape \(N, (D, H, )?W, C\)"),
        (X1, {"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        (X1, {"kernel_size": (2, 2)}, ValueError, "kernel_size must be an int or one int"),
        (X3, {"kernel_size": (2, 2)}, ValueError, "kernel_size must be an int or 3 ints"),
        (X3, {"kernel_size": 2.5}, TypeError, "kernel_size must be an integer"),
        (X1, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X3, {"stride": (1, 1, 2**30)}, ValueError, "stride: 4 windows"),
        (X3, {"stride": (1, 2**30, 1)}, ValueError, "output_size: 4 x 1073741826 x 5 are more"),
        (X3, {"padding": (0, 2, 0)}, ValueError, "padding must be smaller than the window of 2"),
        (X1, {"padding": "same"}, ValueError, 'padding must be numbers or "valid"'),
        (X1, {"output_size": 10}, ValueError, "output_size must be within 7 … 9 along axis 0"),
        (X3, {"output_size": (6, 4, 10)}, ValueError, "within 7 … 9 along axis 2, got 10"),
        (X3, {"output_size": (6, 4)}, ValueError, "output_size must be an int or 3 ints"),
    ],
)
def test_bad_arguments(x: Any, options: Any, error: type[Exception], match: str) -> None:
    options = {"kernel_size": 2, **options}
    for dims in (1, 3) if len(x) == 4 else (len(x) - 2,):
        for kind in ("max", "avg", "sum"):
            indices = {"indices": np.zeros(x, np.int32)} if kind == "max" else {}
            with pytest.raises(error, match=match):
                getattr(F, f"{kind}_unpool{dims}d")(
                    Tensor(np.zeros(x, np.float32)), **indices, **options
                )


def test_bad_indices_modes_and_dtypes() -> None:
    x1, x3 = Tensor(np.zeros(X1, np.float32)), Tensor(np.zeros(X3, np.float32))
    with pytest.raises(ValueError, match="indices must be -1 or w in an output of 8, at most 7"):
        F.max_unpool1d(x1, np.full(X1, 8), 2)
    with pytest.raises(ValueError, match=r"\(d·H \+ h\)·W \+ w in an output of 6 x 4 x 8, at most"):
        F.max_unpool3d(x3, np.full(X3, -2), 2)
    with pytest.raises(ValueError, match="indices must have the shape of x"):
        F.max_unpool3d(x3, np.zeros(X1, int), 2)
    with pytest.raises(ValueError, match="overlap must be one of last, sum, error"):
        F.max_unpool1d(x1, np.zeros(X1, int), 2, overlap="first")
    for kind in ("avg", "sum"):
        for x, dims in ((x1, 1), (x3, 3)):
            with pytest.raises(ValueError, match="mode must be one of repeat, spread"):
                getattr(F, f"{kind}_unpool{dims}d")(x, 2, mode="nearest")
            with pytest.raises(TypeError, match="x must be float32"):
                getattr(F, f"{kind}_unpool{dims}d")(Tensor(np.zeros(x.shape, np.int32)), 2)
