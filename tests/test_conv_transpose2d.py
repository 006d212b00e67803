"""conv_transpose2d: loops -> definition -> kernels; the adjoint of conv2d; PyTorch beside them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONV_TRANSPOSE2D, ConvCase
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.conv_transpose2d import conv_transpose2d_forward, conv_transpose2d_geometry
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

cases = pytest.mark.parametrize("case", CONV_TRANSPOSE2D, ids=str)
DEFAULTS = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}


def arrays(case: ConvCase, dtype: Any = np.float32) -> list[Any]:
    channels = case.weight[-1] * case.options.get("groups", 1)
    bias = randn(channels, seed=3, dtype=dtype) if case.bias else None
    return [randn(*case.x, dtype=dtype), randn(*case.weight, seed=1, dtype=dtype), bias]


def geometry(case: ConvCase) -> ConvGeometry:
    return conv_transpose2d_geometry(*arrays(case), **{**DEFAULTS, **case.options})


def loops(
    x: np.ndarray, w: np.ndarray, b: Any, s: ConvGeometry, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, dx, dw): each x spreads over its window, one product at a time."""
    y, dx, dw = np.zeros(s.x_shape), np.zeros(x.shape), np.zeros(w.shape)
    for n, h, v, c in np.ndindex(x.shape):
        for kh, kw, o in np.ndindex(w.shape[1:]):
            oh, ow = h * s.SH - s.PT + kh * s.DH, v * s.SW - s.PL + kw * s.DW
            if 0 <= oh < s.H and 0 <= ow < s.W:
                oc = c // (x.shape[3] // s.G) * w.shape[3] + o
                y[n, oh, ow, oc] += x[n, h, v, c] * w[c, kh, kw, o]
                dx[n, h, v, c] += dy[n, oh, ow, oc] * w[c, kh, kw, o]
                dw[c, kh, kw, o] += dy[n, oh, ow, oc] * x[n, h, v, c]
    return y if b is None else y + b, dx, dw


@cases
def test_definition_is_the_formula(case: ConvCase) -> None:
    x, w, b = arrays(case, np.float64)
    s = geometry(case)
    dy = randn(*s.x_shape, seed=2, dtype=np.float64)
    y, dx, dw = loops(x, w, b, s, dy)
    assert_close(conv_transpose2d_forward(x, w, b, s), y, "float64", x.size)
    given = [x, w] if b is None else [x, w, b]
    actual, grads = gradients(lambda *t: F.conv_transpose2d(*t, **case.options), given, dy)
    expected = [dx, dw, dy.sum(axis=(0, 1, 2))]
    assert_close(actual, y, "float64", x.size)
    for a, e in zip(grads, expected, strict=False):
        assert_close(a, e, "float64", dy.size)


@pytest.mark.parametrize(
    "variant", ["tiled", "register_tiled", "implicit_gemm", "depthwise", "direct"]
)
@cases
def test_kernel(case: ConvCase, variant: str, kernel_device: str) -> None:
    s = geometry(case)
    terms = s.OCG * s.KH * s.KW
    with gpucnn.use_variant(conv_transpose2d=variant):
        check_kernel(conv_transpose2d_forward, kernel_device, arrays(case), s, terms=terms)


def test_many_tiles(kernel_device: str) -> None:
    """Phases of unequal sizes, each of several tiles of rows and of columns."""
    x, w, b = randn(2, 9, 10, 5), randn(5, 3, 3, 35, seed=1), randn(35)
    options = {**DEFAULTS, "stride": (2, 1), "padding": (1, 2)}
    s = conv_transpose2d_geometry(x, w, b, **options)
    check_kernel(conv_transpose2d_forward, kernel_device, [x, w, b], s, terms=45)


@pytest.mark.parametrize("case", [CONV_TRANSPOSE2D[4], CONV_TRANSPOSE2D[6]], ids=str)
def test_gradients_on_every_device(case: ConvCase, device: str) -> None:
    s, given = geometry(case), arrays(case)
    dy = randn(*s.x_shape, seed=2)
    wide = [a.astype(np.float64) for a in given]

    def fn(*t: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.conv_transpose2d(*t, **case.options)

    y, grads = gradients(fn, given, dy, device)
    ey, expected = gradients(fn, wide, dy.astype(np.float64))
    for a, e in zip([y, *grads], [ey, *expected], strict=True):
        assert_close(a, e, "float32", dy.size)
    again = gradients(fn, given, dy, device)
    assert [a.tobytes() for a in again[1]] == [a.tobytes() for a in grads]


@cases
def test_gradcheck(case: ConvCase) -> None:
    given = [a for a in arrays(case, np.float64) if a is not None]
    inputs = [gpucnn.Tensor(a, requires_grad=True) for a in given]
    assert gpucnn.gradcheck(lambda *t: F.conv_transpose2d(*t, **case.options), inputs)


@cases
def test_adjoint_of_conv2d_with_the_same_weight(case: ConvCase) -> None:
    """⟨conv(y, w), x⟩ = ⟨y, convT(x, w)⟩, where conv2d makes an image of the size of x."""
    options = {k: v for k, v in case.options.items() if k != "output_padding"}
    x, w, _ = arrays(case, np.float64)
    spread = F.conv_transpose2d(gpucnn.Tensor(x), gpucnn.Tensor(w), **case.options).numpy()
    y = randn(*spread.shape, seed=5, dtype=np.float64)
    gathered = F.conv2d(gpucnn.Tensor(y), gpucnn.Tensor(w), **options).numpy()
    h, v = x.shape[1:3]  # more than these where output_padding reaches the stride
    assert_close((gathered[:, :h, :v] * x).sum(), (y * spread).sum(), "float64", spread.size)


@pytest.mark.emulated
def test_adjoint_on_the_kernels() -> None:
    x, w, y = randn(2, 4, 3, 6), randn(6, 3, 3, 4, seed=1), randn(2, 8, 6, 8, seed=2)
    options = {"stride": 2, "padding": 1, "groups": 2}
    tx, tw, ty = (gpucnn.Tensor(a, device="emulated") for a in (x, w, y))
    spread = F.conv_transpose2d(tx, tw, output_padding=1, **options)
    gathered = F.conv2d(ty, tw, **options)
    left = (gathered.numpy().astype(np.float64) * x).sum()
    right = (y.astype(np.float64) * spread.numpy()).sum()
    assert_close(left, right, "float32", y.size)


def torch_conv_transpose2d(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, dy: np.ndarray, options: dict[str, Any]
) -> list[np.ndarray]:
    tx, tw = (torch.tensor(a.transpose(0, 3, 1, 2), requires_grad=True) for a in (x, w))
    tb = torch.tensor(b, requires_grad=True)
    y = torch.nn.functional.conv_transpose2d(tx, tw, tb, **options)
    y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    nhwc = [t.detach().numpy().transpose(0, 2, 3, 1) for t in (y, tx.grad, tw.grad)]
    return [*nhwc, tb.grad.numpy()]


def compare_with_pytorch(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, options: dict[str, Any]
) -> None:
    s = conv_transpose2d_geometry(x, w, b, **{**DEFAULTS, **options})
    dy = randn(*s.x_shape, seed=2)
    expected = torch_conv_transpose2d(x, w, b, dy, options)
    y, grads = gradients(lambda *t: F.conv_transpose2d(*t, **options), [x, w, b], dy)
    for name, a, e in zip(["y", "dx", "dw", "db"], [y, *grads], expected, strict=True):
        assert_close(a, e, "torch", dy.size + x.size, f"{name} {options}")


@needs_torch
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 2), (3, 3), (4, 2)], ids=str)
def test_cross_product_with_pytorch(kernel: tuple[int, int], groups: int) -> None:
    x, w = randn(2, 3, 4, 2 * groups), randn(2 * groups, *kernel, 3, seed=1)
    b, checked = randn(3 * groups, seed=4), 0
    for stride, padding, extra, dilation in itertools.product(
        [1, 2, 3], [0, 1, (2, 1)], [0, 1, (2, 0)], [1, 2, 3]
    ):
        options = {"stride": stride, "padding": padding, "output_padding": extra}
        options |= {"dilation": dilation, "groups": groups}
        spread, more = (dilation,) * 2, extra if isinstance(extra, tuple) else (extra,) * 2
        if any(e >= max(stride, d) for e, d in zip(more, spread, strict=True)):
            with pytest.raises(ValueError, match="output_padding must be 0 … "):
                conv_transpose2d_geometry(x, w, b, **options)
            with pytest.raises(RuntimeError, match="output padding must be smaller"):
                torch_conv_transpose2d(x, w, b, b, options)
            continue
        least = min(
            (n - 1) * stride + dilation * (k - 1) + e + 1 - 2 * p
            for n, k, e, p in zip(
                x.shape[1:3], kernel, more, np.broadcast_to(padding, 2), strict=True
            )
        )
        if least < 1:
            with pytest.raises(ValueError, match="padding must leave an output"):
                conv_transpose2d_geometry(x, w, b, **options)
            continue
        compare_with_pytorch(x, w, b, options)
        checked += 1
    assert checked >= 50


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    two = lambda low, high: draw(st.tuples(st.integers(low, high), st.integers(low, high)))  # noqa: E731
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    kernel, stride, dilation, size = two(1, 4), two(1, 4), two(1, 3), two(1, 6)
    axes = list(zip(size, kernel, stride, dilation, strict=True))
    extra = [draw(st.integers(0, max(s, d) - 1)) for _, _, s, d in axes]
    room = [(n - 1) * s + d * (k - 1) + e for (n, k, s, d), e in zip(axes, extra, strict=True)]
    padding = tuple(draw(st.integers(0, min(r // 2, 4))) for r in room)
    x = randn(draw(st.integers(1, 3)), *size, groups * per_group)
    w = randn(groups * per_group, *kernel, draw(st.integers(1, 3)))
    options = {"stride": stride, "padding": padding, "output_padding": tuple(extra)}
    options |= {"dilation": dilation, "groups": groups}
    compare_with_pytorch(x, w, randn(groups * w.shape[3], seed=4), options)


@pytest.mark.parametrize(("n", "p"), [(1, 0), (4, 1), (3, (2, 0))])
@pytest.mark.parametrize(("k", "s", "d"), [*itertools.product([1, 2, 3], [1, 2, 3], [1, 2])])
def test_output_sizes_are_those_that_a_convolution_maps_back(
    n: int, p: Any, k: int, s: int, d: int
) -> None:
    low, high = (p, p) if isinstance(p, int) else p
    for extra in range(s):
        args = {"stride": s, "padding": p, "dilation": d}
        if (n - 1) * s + d * (k - 1) + extra + 1 <= low + high:
            with pytest.raises(ValueError, match="padding must leave an output"):
                gpucnn.conv_transpose_output_size(n, k, output_padding=extra, **args)
            continue
        out = gpucnn.conv_transpose_output_size(n, k, output_padding=extra, **args)
        assert gpucnn.conv_output_size(out, k, **args) == n


def test_output_padding_computes_its_cells() -> None:
    """It is no zero padding of the result: the last row holds products, and the bias."""
    x, w = np.ones((1, 2, 2, 1), np.float32), np.ones((1, 3, 3, 1), np.float32)
    b = np.full(1, 0.5, np.float32)
    tensors = [gpucnn.Tensor(a) for a in (x, w, b)]
    plain = F.conv_transpose2d(*tensors, stride=2, padding=1).numpy()
    wide = F.conv_transpose2d(*tensors, stride=2, padding=1, output_padding=1).numpy()
    assert plain.shape == (1, 3, 3, 1)
    np.testing.assert_array_equal(wide[:, :3, :3], plain)
    np.testing.assert_array_equal(wide[0, 3, :, 0], [1.5, 2.5, 1.5, 1.5])


def test_layer_and_output_size() -> None:
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert layer.weight.shape == (4, 3, 3, 3)
    assert np.abs(layer.weight.numpy()).max() <= 1 / np.sqrt(27)
    assert repr(layer).startswith("ConvTranspose2d(4, 6, kernel_size=(3, 3), stride=(2, 2)")
    x = gpucnn.Tensor(randn(1, 5, 4, 4))
    assert layer(x).shape == (1, 9, 7, 6)
    assert layer(x, output_size=(10, 7)).shape == (1, 10, 7, 6)
    assert layer(x, output_size=(1, 9, 8, 6)).shape == (1, 9, 8, 6)
    for bad in [(11, 7), (8, 7)]:
        with pytest.raises(ValueError, match=r"output_size must be \(9, 7\) … \(10, 8\), got"):
            layer(x, output_size=bad)
    with pytest.raises(ValueError, match="output_size must be"):
        layer(x, output_size=(9, 7, 6))
    with pytest.raises(ValueError, match="output_padding must be 0 … 1"):
        nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=2)
    with pytest.raises(ValueError, match="padding must be numbers, got 'same'"):
        nn.ConvTranspose2d(4, 6, 3, padding="same")
    assert "output_padding=(1, 1)" in repr(nn.ConvTranspose2d(1, 1, 3, 2, output_padding=1))


def test_output_size_in_the_place_of_output_padding(device: str) -> None:
    """Every size that a convolution maps to (3, 4), and no other."""
    x, w = (
        gpucnn.Tensor(randn(1, 3, 4, 2), device=device),
        gpucnn.Tensor(randn(2, 3, 2, 1), device=device),
    )
    options = {"stride": (2, 3), "padding": (1, 0)}
    for extra in itertools.product(range(2), range(3)):
        size = 5 + extra[0], 11 + extra[1]
        y = F.conv_transpose2d(x, w, output_size=size, **options)
        assert y.shape == (1, *size, 1)
        expected = F.conv_transpose2d(x, w, output_padding=extra, **options)
        assert_close(y.numpy(), expected.numpy(), "exact")
        assert F.conv2d(y, w, **options).shape == x.shape
    wanted = F.conv_transpose2d(x, w, output_size=(1, 6, 11, 1), **options)
    assert wanted.shape == (1, 6, 11, 1)
    # Nothing is left of the output of one cell unless output_padding adds to it.
    one, line = (gpucnn.Tensor(np.ones((1, 1, 1, 1), np.float32), device=device) for _ in range(2))
    cut = {"stride": 2, "padding": ((1, 0), (1, 0))}
    assert F.conv_transpose2d(one, line, output_size=1, **cut).shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"output_size": (13, 9)}, ValueError, r"output_size must be \(13, 11\) … \(14, 12\), got"),
        ({"output_size": 15}, ValueError, r"output_size must be \(13, 11\) … \(14, 12\), got \(15"),
        ({"output_size": (13, 11), "output_padding": 1}, ValueError, "output_padding follows from"),
        ({"output_size": (13, 11, 4)}, ValueError, r"output_size must be an int, \(OH, OW\)"),
        ({"output_size": (13.0, 11)}, TypeError, "output_size must be an integer"),
        ({"output_size": 0}, ValueError, "output_size must be >= 1"),
        ({"output_size": 13, "padding": "same"}, ValueError, "padding of a transposed"),
    ],
)
def test_bad_output_sizes(options: Any, error: type[Exception], match: str) -> None:
    x, w = gpucnn.Tensor(np.zeros(X, np.float32)), gpucnn.Tensor(np.zeros(WEIGHT, np.float32))
    with pytest.raises(error, match=match):
        F.conv_transpose2d(x, w, stride=2, **options)


@needs_torch
def test_layer_has_the_arguments_of_pytorch_in_its_order() -> None:
    ours = nn.ConvTranspose2d(4, 2, (3, 2), 2, 1, 1, 2, False, 2)
    theirs = torch.nn.ConvTranspose2d(4, 2, (3, 2), 2, 1, 1, 2, False, 2)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(ours.weight.numpy().transpose(0, 3, 1, 2)))
    x = randn(2, 3, 4, 4)
    expected = theirs(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()
    assert_close(ours(gpucnn.Tensor(x)).numpy(), expected.transpose(0, 2, 3, 1), "torch", 24)


X, WEIGHT = (2, 6, 5, 4), (4, 3, 3, 8)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((6, 5, 4), WEIGHT, None, {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 0, 5, 4), WEIGHT, None, {}, ValueError, "x must not be empty"),
        (X, (4, 3, 8), None, {}, ValueError, r"weight must have shape \(C, KH, KW, OC/groups\)"),
        (X, (3, 3, 3, 8), None, {}, ValueError, r"weight must have shape \(4, …\)"),
        (X, WEIGHT, None, {"groups": 3}, ValueError, "groups must divide the 4"),
        (X, WEIGHT, None, {"groups": 0}, ValueError, "groups must be >= 1"),
        (X, WEIGHT, (8,), {"groups": 2}, ValueError, r"bias must have shape \(16,\)"),
        (X, WEIGHT, None, {"padding": "same"}, ValueError, "padding of a transposed"),
        (X, WEIGHT, None, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, WEIGHT, None, {"padding": 4}, ValueError, "padding must leave an output"),
        (X, WEIGHT, None, {"padding": (1, 2, 3)}, ValueError, "padding must be"),
        (X, WEIGHT, None, {"output_padding": 1}, ValueError, "output_padding must be 0 … 0"),
        (X, WEIGHT, None, {"output_padding": 3, "stride": 3}, ValueError, "must be 0 … 2"),
        (X, WEIGHT, None, {"output_padding": -1}, ValueError, "output_padding must be >= 0"),
        (X, WEIGHT, None, {"output_padding": 0.5}, TypeError, "output_padding must be an int"),
        (X, WEIGHT, None, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, WEIGHT, None, {"stride": 2**30}, ValueError, "stride: the output size"),
        (X, WEIGHT, None, {"stride": True}, TypeError, "stride must be an integer"),
        (X, WEIGHT, None, {"dilation": (1, 2, 3)}, ValueError, "dilation must be"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.conv_transpose2d(*tensors, **options)


def test_bad_dtypes() -> None:
    x, w = gpucnn.Tensor(np.zeros(X, np.float64)), gpucnn.Tensor(np.zeros(WEIGHT, np.float32))
    with pytest.raises(TypeError, match="weight must be float64 like x"):
        F.conv_transpose2d(x, w)


def test_nan_reaches_its_window_only(device: str) -> None:
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 1, 1, 0] = np.nan
    w = gpucnn.Tensor(np.ones((1, 2, 2, 1), np.float32), device=device)
    y = F.conv_transpose2d(gpucnn.Tensor(x, device=device), w, stride=2).numpy()[0, :, :, 0]
    assert np.isnan(y[2:4, 2:4]).all()
    assert np.isnan(y).sum() == 4
