"""max_unpool2d: loops -> definition -> kernels; PyTorch beside them; tied layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import UNPOOL2D, Pool2dCase
from gpucnn import Tensor, nn
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.ops.unpool2d import (
    UnpoolGeometry,
    max_unpool2d_backward,
    max_unpool2d_forward,
    unpool_geometry,
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

cases = pytest.mark.parametrize("case", UNPOOL2D, ids=str)
lasts = pytest.mark.parametrize("last", [True, False], ids=["last", "sum"])


def geometry(case: Pool2dCase) -> UnpoolGeometry:
    options = {"stride": None, "padding": 0, "output_size": None, **case.options}
    return unpool_geometry(2, np.zeros(case.x, np.float32), case.kernel_size, **options)


def own_windows(s: UnpoolGeometry, seed: int = 0) -> np.ndarray:
    """An index of the own window of each value, as a pooling makes them; -1 outside the image."""
    rng = np.random.default_rng(seed)
    shape = (s.N, s.OD, s.OH, s.OW, s.C)
    od, oh, ow = (i[None, ..., None] for i in np.ogrid[: s.OD, : s.OH, : s.OW])
    d = od * s.SD - s.PF + rng.integers(0, s.KD, shape)
    h = oh * s.SH - s.PT + rng.integers(0, s.KH, shape)
    w = ow * s.SW - s.PL + rng.integers(0, s.KW, shape)
    inside = (d >= 0) & (d < s.D) & (h >= 0) & (h < s.H) & (w >= 0) & (w < s.W)
    index = np.where(inside, (d * s.H + h) * s.W + w, -1)
    return index.astype(np.int32).reshape(s.x_shape)


def anywhere(s: UnpoolGeometry, seed: int = 0) -> np.ndarray:
    """Any cell, -1, and numbers outside the image, which a kernel has to leave alone."""
    rng = np.random.default_rng(seed)
    indices = rng.integers(-1, s.cells + 1, s.x_shape).astype(np.int32)
    indices.flat[0] = 2**31 - 1
    indices.flat[-1] = -(2**31)
    return indices


INDICES = {"own window": own_windows, "anywhere": anywhere}
kinds = pytest.mark.parametrize("kind", INDICES)


def loops(
    x: np.ndarray, indices: np.ndarray, dy: np.ndarray, last: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(y, dx), one value at a time in raster order."""
    y, dx, writer = np.zeros(dy.shape), np.zeros(x.shape), {}
    for at in np.ndindex(x.shape):
        index = int(indices[at])
        if not 0 <= index < np.prod(dy.shape[1:-1]):
            continue
        cell = (at[0], *np.unravel_index(index, dy.shape[1:-1]), at[-1])
        if last and cell in writer:
            dx[writer[cell]] = 0
        y[cell] = x[at] if last else y[cell] + x[at]
        dx[at] = dy[cell]
        writer[cell] = at
    return y, dx


@lasts
@kinds
@cases
def test_definition_is_the_rule(case: Pool2dCase, kind: str, last: bool) -> None:
    s = geometry(case)
    x = randn(*case.x, dtype=np.float64)
    dy = randn(s.N, s.H, s.W, s.C, seed=2, dtype=np.float64)
    indices = INDICES[kind](s)
    y, dx = loops(x, indices, dy, last)
    bar = "exact" if last else "float64"
    assert_close(max_unpool2d_forward(x, indices, last, s), y, bar)
    assert_close(max_unpool2d_backward(dy, indices, last, s), dx, "exact")


@lasts
@kinds
@cases
def test_kernels(case: Pool2dCase, kind: str, last: bool, kernel_device: str) -> None:
    s = geometry(case)
    x, dy, indices = randn(*case.x), randn(s.N, s.H, s.W, s.C, seed=2), INDICES[kind](s)
    bar = "exact" if last else "float32"
    check_kernel(max_unpool2d_forward, kernel_device, [x, indices], last, s, bar=bar)
    check_kernel(max_unpool2d_backward, kernel_device, [dy, indices], last, s, bar="exact")


def test_strays_in_one_image_of_many(kernel_device: str) -> None:
    """Large enough that several blocks look at each image; one index strays."""
    s = unpool_geometry(2, np.zeros((2, 9, 8, 12), np.float32), 2, None, 0, None)
    indices = own_windows(s)
    indices[1, 5, 3, 7] = 0
    x, dy = randn(2, 9, 8, 12), randn(s.N, s.H, s.W, s.C, seed=2)
    check_kernel(max_unpool2d_forward, kernel_device, [x, indices], True, s, bar="exact")
    check_kernel(max_unpool2d_backward, kernel_device, [dy, indices], True, s, bar="exact")
    assert (
        to_host(max_unpool2d_forward.on(kernel_device)(*on(kernel_device, x, indices), True, s))[
            1, 0, 0, 7
        ]
        == (x[1, 5, 3, 7])
    )


@lasts
def test_the_same_bits_every_time(last: bool, device: str) -> None:
    """Windows overlap: a cell may be named by nine."""
    s = unpool_geometry(2, np.zeros((2, 6, 7, 5), np.float32), 3, 1, 1, None)
    x = (10.0 ** randn(2, 6, 7, 5)).astype(np.float32)
    x, indices = on(device, x, own_windows(s))
    forward, backward = max_unpool2d_forward.on(device), max_unpool2d_backward.on(device)
    runs = set()
    for _ in range(3):
        y = forward(x, indices, last, s)
        dx = backward(y, indices, last, s)
        runs.add((to_host(y).tobytes(), to_host(dx).tobytes()))
    assert len(runs) == 1


def test_more_than_one_chunk() -> None:
    s = unpool_geometry(2, np.zeros((5, 30, 31, 64), np.float32), 3, 2, 0, None)
    x, dy, indices = randn(5, 30, 31, 64), randn(s.N, s.H, s.W, s.C, seed=2), anywhere(s)
    y = max_unpool2d_forward(x, indices, True, s)
    dx = max_unpool2d_backward(dy, indices, True, s)
    for n in range(5):
        one = unpool_geometry(2, x[n : n + 1], 3, 2, 0, None)
        index = indices[n : n + 1]
        assert_close(y[n : n + 1], max_unpool2d_forward(x[n : n + 1], index, True, one), "exact")
        assert_close(dx[n : n + 1], max_unpool2d_backward(dy[n : n + 1], index, True, one), "exact")


@pytest.mark.parametrize("overlap", ["last", "sum"])
@cases
def test_gradcheck(case: Pool2dCase, overlap: str) -> None:
    s = geometry(case)
    x = Tensor(randn(*case.x, dtype=np.float64), requires_grad=True)
    indices = own_windows(s, seed=3)
    assert gpucnn.gradcheck(
        lambda t: F.max_unpool2d(t, indices, case.kernel_size, overlap=overlap, **case.options),
        [x],
    )


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    """Where windows do not overlap, also behind the padding and with another output size."""
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = tuple(k + draw(st.integers(0, 2)) for k in kernel)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(
        draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True)
    )
    x = randn(draw(st.integers(1, 2)), *size, draw(st.sampled_from([1, 3, 4])))
    tx = torch.tensor(x.transpose(0, 3, 1, 2))
    ty, ti = torch.nn.functional.max_pool2d(tx, kernel, stride, padding, return_indices=True)
    ty.requires_grad_()
    tz = torch.nn.functional.max_unpool2d(ty, ti, kernel, stride, padding, output_size=size)
    dz = randn(*x.shape, seed=4)
    tz.backward(torch.tensor(dz.transpose(0, 3, 1, 2)))
    y, indices = F.max_pool2d(Tensor(x), kernel, stride, padding, return_indices=True)
    t = Tensor(y.numpy(), requires_grad=True)
    z = F.max_unpool2d(t, indices, kernel, stride, padding, output_size=size)
    z.backward(dz)
    assert_close(z.numpy(), tz.detach().numpy().transpose(0, 2, 3, 1), "exact")
    assert_close(t.grad.numpy(), ty.grad.numpy().transpose(0, 2, 3, 1), "exact")


def test_two_windows_of_one_cell(device: str) -> None:
    """The last in raster order wins and alone has a gradient; or they add; or it is refused."""
    indices = np.array([1, 1, 1, 2], np.int32).reshape(1, 1, 4, 1)
    x = np.array([3, 5, 7, 9], np.float32).reshape(1, 1, 4, 1)
    dy = np.array([1, 10, 100, 1000, 10000], np.float32).reshape(1, 1, 5, 1)

    def unpool(overlap: str) -> tuple[list[float], list[float]]:
        y, (dx,) = gradients(
            lambda t: F.max_unpool2d(t, indices, (1, 2), 1, overlap=overlap), [x], dy, device
        )
        return y.reshape(-1).tolist(), dx.reshape(-1).tolist()

    assert unpool("last") == ([0, 7, 9, 0, 0], [0, 0, 10, 100])
    assert unpool("sum") == ([0, 15, 9, 0, 0], [10, 10, 10, 100])
    with pytest.raises(ValueError, match=r'overlap="error": indices name cell 1 of image 0'):
        unpool("error")
    indices[...] = np.array([0, 1, 2, 3]).reshape(indices.shape)
    assert unpool("error") == ([3, 5, 7, 9, 0], [1, 10, 100, 1000])


def test_no_winner_is_left_out(device: str) -> None:
    """A window outside the image has index -1 (pooling with padding 1, dilation 2, one row)."""
    x = Tensor(np.array([5, 7], np.float32).reshape(1, 1, 2, 1), device=device)
    y, indices = F.max_pool2d(x, 2, 1, 1, dilation=2, return_indices=True)
    assert (indices.numpy() == -1).all()
    assert np.isneginf(y.numpy()).all()
    back = F.max_unpool2d(y, indices, 3, 1, 1, output_size=(1, 2))
    assert back.numpy().reshape(-1).tolist() == [0, 0]
    twice = np.full(y.shape, -1, np.int32)
    again = F.max_unpool2d(y, twice, 3, 1, 1, output_size=(1, 2), overlap="error")
    assert (again.numpy() == 0).all()


def test_nan_and_infinity_are_moved_like_any_number(device: str) -> None:
    x = np.array([np.nan, np.inf, -np.inf, 1], np.float32).reshape(1, 2, 2, 1)
    indices = np.array([[0, 3], [8, 15]]).reshape(x.shape)
    y = F.max_unpool2d(Tensor(x, device=device), indices, 2).numpy().reshape(-1)
    np.testing.assert_array_equal(y[[0, 3, 8, 15]], x.reshape(-1))
    assert not np.delete(y, [0, 3, 8, 15]).any()


def test_pooling_undoes_unpooling(device: str) -> None:
    """maxpool(maxunpool(y)) = y for windows apart and positive y."""
    x = Tensor(np.abs(randn(2, 7, 9, 3)), device=device)
    pool = nn.MaxPool2d(2, return_indices=True)
    y, _ = pool(x)
    unpool = pool.inverse()
    y, indices = pool(x)
    again, same = pool(unpool(y))
    assert_close(again.numpy(), y.numpy(), "exact")
    assert_close(same.numpy(), indices.numpy(), "exact")


@pytest.mark.parametrize("edge", ["drop", "ceil", "zero"])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (2, 3), "stride": 4},
        {"kernel_size": 3, "stride": 2, "padding": "same"},
        {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": (2, 3)},
    ],
    ids=str,
)
def test_tied_layers_return_to_the_input_size(options: dict[str, Any], edge: str) -> None:
    """5x5 pooled by 2 unpools to 5x5, not 4x4."""
    pool = nn.MaxPool2d(**options, edge=edge)
    unpool = pool.inverse()
    for size in [(5, 5), (6, 9), (11, 8)]:
        x = randn(2, *size, 3)
        y, indices = F.max_pool2d(
            Tensor(x), pool.kernel_size, pool.stride, pool.padding,
            dilation=pool.dilation, edge=edge, return_indices=True,
        )  # fmt: skip
        z = unpool(pool(Tensor(x))).numpy()
        assert z.shape == x.shape
        expected = np.zeros(x.shape)
        for n, oh, ow, c in np.ndindex(*y.shape):
            index = int(indices.numpy()[n, oh, ow, c])
            if index >= 0:
                expected[n, index // size[1], index % size[1], c] = y.numpy()[n, oh, ow, c]
        assert_close(z, expected, "exact")


def test_tied_layers_in_a_network() -> None:
    """The pool is no part of the layer tied to it; gradients reach the input through both."""
    pool = nn.MaxPool2d(2)
    model = nn.Sequential(pool, pool.inverse())
    assert [name for name, _ in model.named_modules()] == ["", "0", "1"]
    assert repr(model[1]) == (
        "MaxUnpool2d(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), tied)"
    )
    x = Tensor(np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1), requires_grad=True)
    y = model(x)
    y.backward(np.ones(y.shape, np.float32))
    won = np.zeros((4, 4))
    won[1::2, 1::2] = 1
    assert_close(x.grad.numpy()[0, :, :, 0], won, "exact")
    assert_close(y.numpy()[0, :, :, 0], won * np.arange(16).reshape(4, 4), "exact")


def test_layer_misuse() -> None:
    pool, x = nn.MaxPool2d(2), Tensor(randn(1, 2, 2, 1))
    unpool = pool.inverse()
    with pytest.raises(RuntimeError, match="its pool has not run yet"):
        unpool(x)
    pool(Tensor(randn(1, 4, 4, 1)))
    with pytest.raises(ValueError, match="output_size is that of the pool's input"):
        unpool(x, None, (4, 4))
    with pytest.raises(ValueError, match="indices are those of the pool"):
        unpool(x, np.zeros((1, 2, 2, 1), np.int32))
    with pytest.raises(ValueError, match="indices must have the shape of x"):
        unpool(Tensor(randn(2, 2, 2, 1)))
    with pytest.raises(TypeError, match="indices are needed"):
        nn.MaxUnpool2d(2)(x)
    with pytest.raises(ValueError, match="overlap must be one of last, sum, error"):
        nn.MaxUnpool2d(2, overlap="first")
    y = nn.MaxUnpool2d(2, overlap="sum")(x, np.zeros((1, 2, 2, 1), np.int32), (5, 4))
    assert y.shape == (1, 5, 4, 1)


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
def test_on_the_cuda_path() -> None:
    """The launchers touch CuPy arrays in no other way than a GPU allows."""
    x, dy = randn(1, 3, 3, 2), randn(1, 7, 6, 2, seed=1)

    def step(t: Tensor) -> Tensor:
        y, indices = F.max_pool2d(t, 2, return_indices=True)
        return F.max_unpool2d(y, indices, 2, output_size=(7, 6), overlap="error")

    x = randn(1, 7, 6, 2)
    cuda, emulated = (gradients(step, [x], dy, device) for device in ("cuda", "emulated"))
    skipped = F.max_unpool2d(Tensor(x, device="cuda"), np.full(x.shape, 10**6), 1)
    assert_close(cuda[0], emulated[0], "exact")
    assert_close(cuda[1][0], emulated[1][0], "exact")
    assert not to_host(skipped.data).any()


X = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        ((3, 4, 5), {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 3, 0, 5), {}, ValueError, "x must not be empty"),
        (X, {"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        (X, {"kernel_size": 2.5}, TypeError, "kernel_size must be an integer"),
        (X, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, {"stride": 2**30}, ValueError, "stride: 3 windows"),
        (X, {"padding": 2}, ValueError, "padding must be smaller than the window of 2"),
        (X, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, {"padding": "same"}, ValueError, 'padding must be numbers or "valid"'),
        (X, {"output_size": (8, 8)}, ValueError, "output_size must be within 5 … 7 along axis 0"),
        (X, {"output_size": (4, 8)}, ValueError, "output_size must be within"),
        (X, {"output_size": (6, 10)}, ValueError, "output_size must be within 7 … 9 along axis 1"),
        (X, {"output_size": (6, 8, 5)}, ValueError, "output_size must be an int or a pair"),
        (X, {"overlap": "first"}, ValueError, "overlap must be one of last, sum, error"),
        (X, {"indices": np.zeros((2, 3, 4, 4), int)}, ValueError, "indices must have the shape"),
        (X, {"indices": np.zeros(X)}, TypeError, "indices must be integers"),
        (X, {"indices": Tensor(np.zeros(X, np.uint8))}, TypeError, "indices must be int32"),
        (X, {"indices": np.full(X, 48)}, ValueError, "indices must be -1 or .* at most 47, got 48"),
        (X, {"indices": np.full(X, -2)}, ValueError, "indices must be -1 or .* got -2"),
        (X, {"indices": np.full(X, 2**31)}, ValueError, "indices: .* must fit int32"),
        (X, {"indices": np.zeros(X, int), "overlap": "error"}, ValueError, "more than once"),
    ],
)  # fmt: skip
def test_bad_arguments(x: Any, options: Any, error: type[Exception], match: str) -> None:
    options = {"kernel_size": 2, "indices": np.zeros(x, np.int32), **options}
    with pytest.raises(error, match=match):
        F.max_unpool2d(Tensor(np.zeros(x, np.float32)), **options)


def test_bad_dtype_and_device() -> None:
    with pytest.raises(TypeError, match="x must be float32"):
        F.max_unpool2d(Tensor(np.zeros(X, np.int32)), np.zeros(X, np.int32), 2)
    if gpucnn.emulator.available():
        indices = Tensor(np.zeros(X, np.int32), device="emulated")
        with pytest.raises(DeviceError):
            F.max_unpool2d(Tensor(np.zeros(X, np.float32), device="cpu"), indices, 2)
