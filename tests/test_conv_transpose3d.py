"""conv_transpose1d, conv_transpose3d: loops -> definition -> kernels; adjoints; PyTorch."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONV_TRANSPOSE1D, CONV_TRANSPOSE3D, ConvCase
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.conv_transpose2d import conv_transpose2d_forward, transposed_geometry
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch
from tests.test_conv_transpose2d import DEFAULTS, arrays

CASES = [*CONV_TRANSPOSE1D, *CONV_TRANSPOSE3D]
cases = pytest.mark.parametrize("case", CASES, ids=str)


def dims_of(case: ConvCase) -> int:
    return len(case.x) - 2


def geometry(case: ConvCase) -> ConvGeometry:
    return transposed_geometry(dims_of(case), *arrays(case), **{**DEFAULTS, **case.options})


def function(dims: int) -> Any:
    return getattr(F, f"conv_transpose{dims}d")


def loops(
    x: np.ndarray, w: np.ndarray, s: ConvGeometry, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, dx, dw): each x spreads over its window, one product at a time."""
    x, dy = x.reshape(s.N, s.OD, s.OH, s.OW, s.OC), dy.reshape(s.N, s.D, s.H, s.W, s.C)
    w = w.reshape(s.OC, s.KD, s.KH, s.KW, s.CG)
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
    for n, d, h, v, c in np.ndindex(x.shape):
        for kd, kh, kw, o in np.ndindex(w.shape[1:]):
            od, oh, ow = d * s.SD - s.PF + kd * s.DD, h * s.SH - s.PT + kh * s.DH, v * s.SW - s.PL
            ow += kw * s.DW
            if 0 <= od < s.D and 0 <= oh < s.H and 0 <= ow < s.W:
                to = (n, od, oh, ow, c // s.OCG * s.CG + o)
                y[to] += x[n, d, h, v, c] * w[c, kd, kh, kw, o]
                dx[n, d, h, v, c] += dy[to] * w[c, kd, kh, kw, o]
                dw[c, kd, kh, kw, o] += dy[to] * x[n, d, h, v, c]
    return y.reshape(s.x_shape), dx.reshape(s.y_shape), dw.reshape(s.w_shape)


@cases
def test_definition_is_the_formula(case: ConvCase) -> None:
    x, w, b = arrays(case, np.float64)
    s = geometry(case)
    dy = randn(*s.x_shape, seed=2, dtype=np.float64)
    y, dx, dw = loops(x, w, s, dy)
    y = y if b is None else y + b
    assert_close(conv_transpose2d_forward(x, w, b, s), y, "float64", x.size)
    given = [x, w] if b is None else [x, w, b]
    actual, grads = gradients(lambda *t: function(s.dims)(*t, **case.options), given, dy)
    expected = [dx, dw, dy.sum(axis=tuple(range(dy.ndim - 1)))]
    assert_close(actual, y, "float64", x.size)
    for a, e in zip(grads, expected, strict=False):
        assert_close(a, e, "float64", dy.size)


@cases
def test_kernel(case: ConvCase, kernel_device: str) -> None:
    s = geometry(case)
    terms = s.OCG * s.KD * s.KH * s.KW
    check_kernel(conv_transpose2d_forward, kernel_device, arrays(case), s, terms=terms)


@pytest.mark.parametrize("case", [CONV_TRANSPOSE1D[2], CONV_TRANSPOSE3D[3]], ids=str)
def test_gradients_on_every_device(case: ConvCase, device: str) -> None:
    s, given = geometry(case), arrays(case)
    dy = randn(*s.x_shape, seed=2)
    wide = [a.astype(np.float64) for a in given]

    def fn(*t: gpucnn.Tensor) -> gpucnn.Tensor:
        return function(s.dims)(*t, **case.options)

    y, grads = gradients(fn, given, dy, device)
    ey, expected = gradients(fn, wide, dy.astype(np.float64))
    for a, e in zip([y, *grads], [ey, *expected], strict=True):
        assert_close(a, e, "float32", dy.size)
    again = gradients(fn, given, dy, device)
    assert [a.tobytes() for a in again[1]] == [a.tobytes() for a in grads]


@pytest.mark.parametrize("case", [case for case in CASES if case.x[-1] < 9], ids=str)
def test_gradcheck(case: ConvCase) -> None:
    given = [a for a in arrays(case, np.float64) if a is not None]
    inputs = [gpucnn.Tensor(a, requires_grad=True) for a in given]
    assert gpucnn.gradcheck(lambda *t: function(dims_of(case))(*t, **case.options), inputs)


@cases
def test_adjoint_of_the_convolution_with_the_same_weight(case: ConvCase) -> None:
    """⟨conv(y, w), x⟩ = ⟨y, convT(x, w)⟩, where the convolution makes an image of the size of x."""
    dims = dims_of(case)
    options = {k: v for k, v in case.options.items() if k != "output_padding"}
    x, w, _ = arrays(case, np.float64)
    tx, tw = gpucnn.Tensor(x), gpucnn.Tensor(w)
    spread = function(dims)(tx, tw, **case.options).numpy()
    y = randn(*spread.shape, seed=5, dtype=np.float64)
    gathered = getattr(F, f"conv{dims}d")(gpucnn.Tensor(y), tw, **options).numpy()
    # Larger than x where output_padding reaches the stride.
    inside = tuple(slice(n) for n in x.shape[:-1])
    assert_close((gathered[inside] * x).sum(), (y * spread).sum(), "float64", spread.size)


def compare_with_pytorch(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, options: dict[str, Any]
) -> None:
    dims = x.ndim - 2

    def to(a: np.ndarray) -> Any:
        return torch.tensor(np.moveaxis(a, -1, 1).copy(), requires_grad=True)

    tx, tw, tb = to(x), to(w), torch.tensor(b, requires_grad=True)
    ty = getattr(torch.nn.functional, f"conv_transpose{dims}d")(tx, tw, tb, **options)
    y = np.moveaxis(ty.detach().numpy(), 1, -1)
    dy = randn(*y.shape, seed=2)
    ty.backward(to(dy).detach())
    expected = [y, *(np.moveaxis(t.grad.numpy(), 1, -1) for t in (tx, tw)), tb.grad.numpy()]
    actual, grads = gradients(lambda *t: function(dims)(*t, **options), [x, w, b], dy)
    for name, a, e in zip(["y", "dx", "dw", "db"], [actual, *grads], expected, strict=True):
        assert_close(a, e, "torch", dy.size + x.size, f"{name} {options}")


@needs_torch
@pytest.mark.parametrize("groups", [1, 2])
def test_cross_product_with_pytorch(groups: int) -> None:
    checked = 0
    for k, stride, padding, extra, dilation in itertools.product(
        [1, 2, 3, 4], [1, 2, 3], [0, 1, 2], [0, 1], [1, 2]
    ):
        least = 3 * stride + dilation * (k - 1) + extra + 1 - 2 * padding
        if extra >= max(stride, dilation) or least < 1:
            continue
        options = {"stride": stride, "padding": padding, "output_padding": extra}
        options |= {"dilation": dilation, "groups": groups}
        x, w = randn(2, 4, 2 * groups), randn(2 * groups, k, 3, seed=1)
        compare_with_pytorch(x, w, randn(3 * groups, seed=4), options)
        checked += 1
    assert checked >= 80


@needs_torch
@pytest.mark.parametrize("dims", [1, 3])
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(dims: int, data: st.DataObject) -> None:
    draw = data.draw

    def each(low: int, high: int) -> tuple[int, ...]:
        return draw(st.tuples(*[st.integers(low, high)] * dims))

    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    kernel, stride, dilation, size = each(1, 3), each(1, 3), each(1, 3), each(1, 4)
    axes = list(zip(size, kernel, stride, dilation, strict=True))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for _, _, s, d in axes)
    room = [(n - 1) * s + d * (k - 1) + e for (n, k, s, d), e in zip(axes, extra, strict=True)]
    padding = tuple(draw(st.integers(0, min(r // 2, 4))) for r in room)
    x = randn(draw(st.integers(1, 2)), *size, groups * per_group)
    w = randn(groups * per_group, *kernel, draw(st.integers(1, 3)))
    options = {"stride": stride, "padding": padding, "output_padding": extra}
    options |= {"dilation": dilation, "groups": groups}
    compare_with_pytorch(x, w, randn(groups * w.shape[-1], seed=4), options)


def test_sequence_is_an_image_of_one_row(device: str) -> None:
    x, w = randn(2, 5, 4), randn(4, 3, 2, seed=1)
    tensors = [gpucnn.Tensor(a, device=device) for a in (x, w, x[:, None], w[:, None])]
    narrow = F.conv_transpose1d(*tensors[:2], stride=2, padding=((1, 0),), groups=2)
    wide = F.conv_transpose2d(*tensors[2:], stride=(1, 2), padding=((0, 0), (1, 0)), groups=2)
    np.testing.assert_array_equal(narrow.numpy(), wide.numpy()[:, 0])


def test_output_size() -> None:
    x1, w1 = gpucnn.Tensor(randn(2, 4, 3)), gpucnn.Tensor(randn(3, 3, 2))
    x3, w3 = gpucnn.Tensor(randn(1, 2, 3, 2, 2)), gpucnn.Tensor(randn(2, 2, 3, 2, 1))
    assert F.conv_transpose1d(x1, w1, stride=3, output_size=13).shape == (2, 13, 2)
    assert F.conv_transpose1d(x1, w1, stride=3, output_size=(2, 14, 2)).shape == (2, 14, 2)
    y = F.conv_transpose3d(x3, w3, stride=2, output_size=(5, 7, 4))
    np.testing.assert_array_equal(
        y.numpy(), F.conv_transpose3d(x3, w3, stride=2, output_padding=(1, 0, 0)).numpy()
    )
    assert F.conv_transpose3d(x3, w3, stride=2, output_size=(1, 4, 8, 5, 1)).shape[1:4] == (4, 8, 5)
    with pytest.raises(ValueError, match=r"output_size must be \(12,\) … \(14,\), got \(15,\)"):
        F.conv_transpose1d(x1, w1, stride=3, output_size=15)
    with pytest.raises(ValueError, match=r"output_size must be an int, \(OD, OH, OW\) or \(N, OD"):
        F.conv_transpose3d(x3, w3, output_size=(5, 7))


@pytest.mark.parametrize("dims", [1, 3])
def test_layers(dims: int) -> None:
    layer = getattr(nn, f"ConvTranspose{dims}d")(4, 6, 3, stride=2, padding=1, groups=2)
    assert layer.weight.shape == (4, *(3,) * dims, 3)
    assert np.abs(layer.weight.numpy()).max() <= 1 / np.sqrt(3 * 3**dims)
    x = gpucnn.Tensor(randn(1, *(3,) * dims, 4))
    assert layer(x).shape == (1, *(5,) * dims, 6)
    assert layer(x, output_size=6).shape == (1, *(6,) * dims, 6)
    expected = function(dims)(x, layer.weight, layer.bias, stride=2, padding=1, groups=2)
    assert_close(layer(x).numpy(), expected.numpy(), "exact")
    assert f"ConvTranspose{dims}d(4, 6, kernel_size=(3," in repr(layer)
    with pytest.raises(ValueError, match="output_padding must be 0 … 1"):
        getattr(nn, f"ConvTranspose{dims}d")(4, 6, 3, stride=2, output_padding=2)
    field = gpucnn.receptive_field(layer, (*(3,) * dims, 4))
    assert field.cells(*(2,) * dims) == (slice(1, 2),) * dims
    assert field.cells(*(1,) * dims) == (slice(0, 2),) * dims


@needs_torch
@pytest.mark.parametrize("dims", [1, 3])
def test_layers_have_the_arguments_of_pytorch_in_its_order(dims: int) -> None:
    options = (4, 2, 3, 2, 1, 1, 2, False, 2)
    ours = getattr(nn, f"ConvTranspose{dims}d")(*options)
    theirs = getattr(torch.nn, f"ConvTranspose{dims}d")(*options)
    with torch.no_grad():
        theirs.weight.copy_(torch.tensor(np.moveaxis(ours.weight.numpy(), -1, 1).copy()))
    x = randn(2, *(3,) * dims, 4)
    expected = theirs(torch.tensor(np.moveaxis(x, -1, 1).copy())).detach().numpy()
    assert_close(ours(gpucnn.Tensor(x)).numpy(), np.moveaxis(expected, 1, -1), "torch", 2 * 3**dims)


X1, W1, X3, W3 = (2, 6, 4), (4, 3, 8), (2, 3, 4, 5, 4), (4, 3, 2, 3, 8)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((6, 4), W1, None, {}, ValueError, r"x must have shape \(N, W, C\)"),
        ((3, 6, 5, 4), W3, None, {}, ValueError, r"x must have shape \(N, D, H, W, C\)"),
        (X1, (4, 3, 3, 8), None, {}, ValueError, r"weight must have shape \(C, K, OC/groups\)"),
        (X3, (4, 3, 8), None, {}, ValueError, r"weight must have shape \(C, KD, KH, KW, OC/groups"),
        (X1, (3, 3, 8), None, {}, ValueError, r"weight must have shape \(4, …\)"),
        (X3, W3, None, {"groups": 3}, ValueError, "groups must divide the 4"),
        (X1, W1, (8,), {"groups": 2}, ValueError, r"bias must have shape \(16,\)"),
        (X1, W1, None, {"padding": "same"}, ValueError, "padding of a transposed"),
        (X1, W1, None, {"padding": 4}, ValueError, "padding must leave an output"),
        (X3, W3, None, {"padding": (1, 2)}, ValueError, "padding must be an int or 3 ints"),
        (X1, W1, None, {"output_padding": 1}, ValueError, "output_padding must be 0 … 0"),
        (X3, W3, None, {"output_padding": (0, 0, 3), "stride": 3}, ValueError, "must be 0 … 2"),
        (X1, W1, None, {"stride": (1, 2)}, ValueError, "stride must be an int or one int"),
        (X3, W3, None, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X3, W3, None, {"dilation": 1.5}, TypeError, "dilation must be an integer"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    dims = 3 if "D" in match or len(x) > 3 else 1
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        function(dims)(*tensors, **options)
