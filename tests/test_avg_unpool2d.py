"""avg_unpool2d, sum_unpool2d: loops -> definition -> kernels; adjoints and right inverses."""

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
from gpucnn.ops.avg_unpool2d import avg_repeat_backward, avg_repeat_forward
from gpucnn.ops.window import Pool2dGeometry, unpool2d_geometry
from tests.support import (
    assert_close,
    check_kernel,
    gradients,
    hundreds,
    needs_torch,
    randn,
    torch,
)

cases = pytest.mark.parametrize("case", UNPOOL2D, ids=str)
UNPOOLS = [
    (F.avg_unpool2d, "repeat"),
    (F.avg_unpool2d, "spread"),
    (F.sum_unpool2d, "repeat"),
    (F.sum_unpool2d, "spread"),
]
unpools = pytest.mark.parametrize(
    ("unpool", "mode"), UNPOOLS, ids=lambda value: getattr(value, "__name__", value)
)


def geometry(case: Pool2dCase) -> Pool2dGeometry:
    options = {"stride": None, "padding": 0, "output_size": None, **case.options}
    return unpool2d_geometry(np.zeros(case.x, np.float32), case.kernel_size, **options)[0]


def loops(x: np.ndarray, s: Pool2dGeometry, unpool: Any, mode: str) -> np.ndarray:
    """y, one cell of one window at a time."""
    y, holders = np.zeros((s.N, s.H, s.W, s.C)), np.zeros((s.H, s.W, 1))
    for oh, ow in np.ndindex(s.OH, s.OW):
        h0, w0 = oh * s.SH - s.PT, ow * s.SW - s.PL
        cells = [
            (h, w)
            for h in range(max(h0, 0), min(h0 + s.KH, s.H))
            for w in range(max(w0, 0), min(w0 + s.KW, s.W))
        ]
        whole = s.KH * s.KW if unpool is F.avg_unpool2d else len(cells)
        for h, w in cells:
            holders[h, w] += 1
            y[:, h, w] += x[:, oh, ow] / (whole if mode == "spread" else 1)
    mean = unpool is F.avg_unpool2d and mode == "repeat"
    return y / np.maximum(holders, 1) if mean else y


@unpools
@cases
def test_definition_is_the_rule(case: Pool2dCase, unpool: Any, mode: str) -> None:
    s = geometry(case)
    x = randn(*case.x, dtype=np.float64)
    y = unpool(Tensor(x), case.kernel_size, mode=mode, **case.options).numpy()
    assert_close(y, loops(x, s, unpool, mode), "float64", s.KH * s.KW)


@unpools
@cases
def test_gradcheck(case: Pool2dCase, unpool: Any, mode: str) -> None:
    x = Tensor(randn(1, *case.x[1:3], min(case.x[3], 3), dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: unpool(t, case.kernel_size, mode=mode, **case.options), [x])


@cases
def test_kernels(case: Pool2dCase, kernel_device: str) -> None:
    s = geometry(case)
    terms = s.KH * s.KW
    check_kernel(avg_repeat_forward, kernel_device, [randn(*case.x)], s, terms=terms)
    dy = randn(s.N, s.H, s.W, s.C, seed=1)
    check_kernel(avg_repeat_backward, kernel_device, [dy], s, terms=terms)


@unpools
@pytest.mark.parametrize("case", UNPOOL2D[3:9:2], ids=str)
def test_devices_agree(case: Pool2dCase, unpool: Any, mode: str, kernel_device: str) -> None:
    s = geometry(case)
    x, dy = randn(*case.x), randn(s.N, s.H, s.W, s.C, seed=1)

    def fn(t: Tensor) -> Tensor:
        return unpool(t, case.kernel_size, mode=mode, **case.options)

    expected, (dx,) = gradients(fn, [x], dy)
    y, (actual,) = gradients(fn, [x], dy, kernel_device)
    assert_close(y, expected, "float32", 9)
    assert_close(actual, dx, "float32", 9)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((6, 8), 2, None, 0),
        ((5, 7), 2, None, 0),
        ((7, 9), 3, 2, 1),
        ((9, 6), (2, 3), (3, 1), (1, 0)),
        ((8, 7), 3, 1, ((2, 0), (1, 2))),
    ],
)
def test_adjoints(size: Any, kernel: Any, stride: Any, padding: Any) -> None:
    """⟨pool(a), b⟩ = ⟨a, back(b)⟩: spread for averages, repeat for sums."""
    a = Tensor(randn(2, *size, 3, dtype=np.float64))
    pairs = [(F.avg_pool2d, F.avg_unpool2d, "spread"), (F.sum_pool2d, F.sum_unpool2d, "repeat")]
    for pool, unpool, mode in pairs:
        y = pool(a, kernel, stride, padding).numpy()
        b = Tensor(randn(*y.shape, seed=1, dtype=np.float64))
        back = unpool(b, kernel, stride, padding, output_size=size, mode=mode).numpy()
        assert_close((y * b.numpy()).sum(), (a.numpy() * back).sum(), "float64", y.size)


@pytest.mark.parametrize("edge", ["drop", "ceil"])
def test_right_inverses(edge: str, device: str) -> None:
    """pool(unpool(y)) = y for windows apart: repeat for averages, spread for sums."""
    size = (7, 9)
    for kernel, stride in [(2, None), ((3, 2), None), (2, 3)]:
        x = Tensor(np.zeros((2, *size, 3), np.float32), device=device)
        y = Tensor(randn(*F.avg_pool2d(x, kernel, stride, edge=edge).shape), device=device)
        repeated = F.avg_unpool2d(y, kernel, stride, output_size=size)
        assert_close(
            F.avg_pool2d(repeated, kernel, stride, edge=edge).numpy(), y.numpy(), "float32"
        )
        spread = F.sum_unpool2d(y, kernel, stride, output_size=size)
        assert_close(F.sum_pool2d(spread, kernel, stride, edge=edge).numpy(), y.numpy(), "float32")


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_the_pools_of_pytorch(data: st.DataObject) -> None:
    """Each way back is the gradient of one of PyTorch's pools; "repeat" of averages, of a sum."""
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 9)) for k, p in zip(kernel, padding, strict=True)]
    unpool, mode = draw(st.sampled_from(UNPOOLS))
    ones = torch.ones(draw(st.integers(1, 2)), draw(st.sampled_from([1, 3, 5])), *size)

    def pool(t: Any) -> Any:
        divisor = 1 if mode == "repeat" else None
        include = unpool is F.avg_unpool2d
        return torch.nn.functional.avg_pool2d(t, kernel, stride, padding, False, include, divisor)

    def back(y: Any) -> Any:
        image = torch.zeros_like(ones, requires_grad=True)
        return torch.autograd.grad(pool(image), image, y)[0]

    x = randn(*pool(ones).permute(0, 2, 3, 1).shape)
    dy = randn(len(ones), *size, ones.shape[1], seed=1)
    tx, tdy = (torch.tensor(a).permute(0, 3, 1, 2) for a in (x, dy))
    ty = back(tx)
    if unpool is F.avg_unpool2d and mode == "repeat":
        holders = back(torch.ones_like(tx)).clamp(min=1)
        ty, tdy = ty / holders, tdy / holders
    y, (dx,) = gradients(
        lambda t: unpool(t, kernel, stride, padding, output_size=tuple(size), mode=mode), [x], dy
    )
    assert_close(y, ty.permute(0, 2, 3, 1).numpy(), "torch", 16)
    assert_close(dx, pool(tdy).permute(0, 2, 3, 1).numpy(), "torch", 16)


def test_overlapping_windows_are_averaged(device: str) -> None:
    x = Tensor(np.array([1, 3, 9], np.float32).reshape(1, 1, 3, 1), device=device)
    y = F.avg_unpool2d(x, (1, 2), 1).numpy().reshape(-1)
    assert y.tolist() == [1, 2, 6, 9]
    y = F.avg_unpool2d(x, (1, 2), 1, mode="spread").numpy().reshape(-1)
    assert y.tolist() == [0.5, 2, 6, 4.5]
    y = F.sum_unpool2d(x, (1, 1), (1, 2), mode="repeat").numpy().reshape(-1)
    assert y.tolist() == [1, 0, 3, 0, 9]


def test_a_window_wholly_outside_the_output(device: str) -> None:
    """An output one stride shorter, less one: the last window holds no cell of it."""
    x = np.array([1, 2, 4], np.float32).reshape(1, 1, 3, 1)
    for unpool, mode in UNPOOLS:
        y, (dx,) = gradients(
            lambda t, unpool=unpool, mode=mode: unpool(t, 1, (1, 3), output_size=(1, 5), mode=mode),
            [x],
            np.ones((1, 1, 5, 1), np.float32),
            device,
        )
        assert y.reshape(-1).tolist() == [1, 0, 0, 2, 0]
        assert dx.reshape(-1).tolist() == [1, 1, 0]


def test_tied_layers() -> None:
    x = Tensor(randn(2, 7, 9, 3))
    for pool, unpool in [
        (nn.AvgPool2d(2, edge="ceil"), F.avg_unpool2d),
        (nn.SumPool2d(3, 2, "same"), F.sum_unpool2d),
    ]:
        tied = pool.inverse()
        y = pool(x)
        padding = ((1, 1), (1, 1)) if pool.padding == "same" else 0
        expected = unpool(y, pool.kernel_size, pool.stride, padding, output_size=(7, 9))
        assert_close(tied(y).numpy(), expected.numpy(), "exact")
    assert repr(nn.AvgPool2d(2).inverse("spread")) == (
        "AvgUnpool2d(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)), tied, "
        "mode='spread')"
    )
    with pytest.raises(RuntimeError, match="its pool has not run yet"):
        nn.SumPool2d(2).inverse()(x)
    free = nn.SumUnpool2d(2, mode="repeat")
    expected = F.sum_unpool2d(x, 2, output_size=(15, 18), mode="repeat")
    assert_close(free(x, (15, 18)).numpy(), expected.numpy(), "exact")


X = (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        ((3, 4, 5), {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        (X, {"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        (X, {"stride": "2"}, TypeError, "stride must be an integer"),
        (X, {"padding": 2}, ValueError, "padding must be smaller than the window"),
        (X, {"output_size": (6, 10)}, ValueError, "output_size must be within"),
        (X, {"mode": "nearest"}, ValueError, "mode must be one of repeat, spread"),
    ],
)
def test_bad_arguments(x: Any, options: Any, error: type[Exception], match: str) -> None:
    for unpool in (F.avg_unpool2d, F.sum_unpool2d):
        with pytest.raises(error, match=match):
            unpool(Tensor(np.zeros(x, np.float32)), **{"kernel_size": 2, **options})
    with pytest.raises(TypeError, match="x must be float32"):
        F.avg_unpool2d(Tensor(np.zeros(X, np.int32)), 2)
    with pytest.raises(ValueError, match="mode must be one of"):
        nn.AvgUnpool2d(2, mode="nearest")
