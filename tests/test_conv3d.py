"""conv3d: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONV3D, ConvCase
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.conv2d import conv2d_data_gradient, conv2d_forward, conv2d_weight_gradient
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

DEFAULTS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}
cases = pytest.mark.parametrize("case", CONV3D, ids=str)


def arrays(case: ConvCase, dtype: Any = np.float32) -> list[Any]:
    bias = randn(case.weight[0], seed=3, dtype=dtype) if case.bias else None
    return [randn(*case.x, dtype=dtype), randn(*case.weight, seed=1, dtype=dtype), bias]


def geometry(case: ConvCase) -> ConvGeometry:
    return conv_geometry(len(case.x) - 2, *arrays(case), **{**DEFAULTS, **case.options})


def loops(
    x: np.ndarray, w: np.ndarray, b: Any, s: ConvGeometry, dy: np.ndarray
) -> list[np.ndarray]:
    """[y, dx, dw] by the formula, one product at a time."""
    x = x.reshape(s.N, s.D, s.H, s.W, s.C)
    w = w.reshape(s.OC, s.KD, s.KH, s.KW, s.CG)
    dy = dy.reshape(s.N, s.OD, s.OH, s.OW, s.OC)
    y, dx, dw = np.zeros(dy.shape), np.zeros(x.shape), np.zeros(w.shape)
    for n, od, oh, ow, oc in np.ndindex(dy.shape):
        at = (n, od, oh, ow, oc)
        y[at] = 0 if b is None else b[oc]
        first = (od * s.SD - s.PF, oh * s.SH - s.PT, ow * s.SW - s.PL)
        for kd, kh, kw in np.ndindex(s.KD, s.KH, s.KW):
            d, h, v = first[0] + kd * s.DD, first[1] + kh * s.DH, first[2] + kw * s.DW
            if 0 <= d < s.D and 0 <= h < s.H and 0 <= v < s.W:
                for c in range(s.CG):
                    cell = (n, d, h, v, oc // s.OCG * s.CG + c)
                    y[at] += x[cell] * w[oc, kd, kh, kw, c]
                    dx[cell] += dy[at] * w[oc, kd, kh, kw, c]
                    dw[oc, kd, kh, kw, c] += dy[at] * x[cell]
    return [y.reshape(s.y_shape), dx.reshape(s.x_shape), dw.reshape(s.w_shape)]


def check_definition(case: ConvCase) -> None:
    """The definition against the loops, in float64."""
    x, w, b = arrays(case, np.float64)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2, dtype=np.float64)
    y, dx, dw = loops(x, w, b, s, dy)
    assert_close(conv2d_forward(x, w, b, s), y, "float64", s.K)
    assert_close(conv2d_data_gradient(dy, w, s), dx, "float64", s.OCG * s.K)
    assert_close(conv2d_weight_gradient(dy, x, s), dw, "float64", s.outputs)


def check_kernels(case: ConvCase, variant: str, device: str) -> None:
    """The kernels of one variant against the definition."""
    x, w, b = arrays(case)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2)
    terms = s.OCG * s.KD * s.KH * s.KW
    with gpucnn.use_variant(conv2d=variant):
        check_kernel(conv2d_forward, device, [x, w, b], s, terms=s.K)
        check_kernel(conv2d_data_gradient, device, [dy, w], s, terms=terms)
        check_kernel(conv2d_weight_gradient, device, [dy, x], s, terms=s.outputs)


def check_gradients(fn: Callable[..., gpucnn.Tensor], case: ConvCase) -> None:
    """The gradients against central differences."""
    given = [a for a in arrays(case, np.float64) if a is not None]
    inputs = [gpucnn.Tensor(a, requires_grad=True) for a in given]
    assert gpucnn.gradcheck(lambda *t: fn(*t, **case.options), inputs)


def check_pytorch(
    fn: Callable[..., gpucnn.Tensor], x: np.ndarray, w: np.ndarray, b: Any, options: dict[str, Any]
) -> None:
    """Values and gradients against PyTorch; padding is one number per axis."""
    dims = x.ndim - 2
    first, last = (0, dims + 1, *range(1, dims + 1)), (0, *range(2, dims + 2), 1)
    # In float32, PyTorch 2.13 crashes on some depthwise and dilated volumes.
    wide = (torch.tensor(a.astype(np.float64)) for a in (x.transpose(first), w.transpose(first), b))
    tx, tw, tb = (t.requires_grad_() for t in wide)
    ty = getattr(torch.nn.functional, f"conv{dims}d")(tx, tw, tb, **options)
    y = ty.detach().numpy().transpose(last)
    dy = randn(*y.shape, seed=2)
    ty.backward(torch.tensor(dy.transpose(first).astype(np.float64)))
    expected = [y, *(t.grad.numpy().transpose(last) for t in (tx, tw)), tb.grad.numpy()]
    actual, grads = gradients(lambda *t: fn(*t, **options), [x, w, b], dy)
    for name, a, e in zip(["y", "dx", "dw", "db"], [actual, *grads], expected, strict=True):
        assert_close(a, e, "torch", dy.size + x.size, f"{name} {options}")


@cases
def test_definition_is_the_formula(case: ConvCase) -> None:
    check_definition(case)


@cases
@pytest.mark.parametrize("size", [1, 1 << 12])
def test_definition_in_bands(case: ConvCase, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes too large for the cache are cut: rows of outputs, or planes."""
    monkeypatch.setattr("gpucnn.ops.unfold._CHUNK_BYTES", size)
    monkeypatch.setattr("gpucnn.ops.depthwise._BAND", 1)
    check_definition(case)


@pytest.mark.parametrize("variant", ["tiled", "naive"])
@cases
def test_kernels(case: ConvCase, variant: str, kernel_device: str) -> None:
    check_kernels(case, variant, kernel_device)


@pytest.mark.parametrize("case", [case for case in CONV3D if case.x[-1] < 33], ids=str)
def test_gradcheck(case: ConvCase) -> None:
    check_gradients(F.conv3d, case)


@needs_torch
@pytest.mark.parametrize("groups", [1, 2])
def test_cross_product_with_pytorch(groups: int) -> None:
    for kernel, stride, padding, dilation in itertools.product(
        [(1, 1, 1), (2, 3, 1), (3, 2, 2)], [1, (2, 1, 3)], [0, (1, 0, 2)], [1, (1, 2, 1)]
    ):
        x, w = randn(2, 4, 5, 6, 2 * groups), randn(3 * groups, *kernel, 2, seed=1)
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        check_pytorch(F.conv3d, x, w, randn(len(w), seed=4), options)


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    def three(low: int, high: int) -> tuple[int, ...]:
        return data.draw(st.tuples(*[st.integers(low, high)] * 3))

    groups, per_group = data.draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    kernel, stride, dilation, padding = three(1, 3), three(1, 3), three(1, 2), three(0, 2)
    size = [
        data.draw(st.integers(max(1, d * (k - 1) + 1 - 2 * p), 6))
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    ]
    x = randn(data.draw(st.integers(1, 2)), *size, groups * per_group)
    w = randn(groups * data.draw(st.integers(1, 3)), *kernel, per_group)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    check_pytorch(F.conv3d, x, w, randn(len(w), seed=4), options)


def test_one_slice_is_conv2d(device: str) -> None:
    x, w = randn(2, 5, 4, 3), randn(6, 3, 2, 3, seed=1)
    flat = F.conv2d(*(gpucnn.Tensor(a, device=device) for a in (x, w)), padding=1)
    deep = F.conv3d(*(gpucnn.Tensor(a[:, None], device=device) for a in (x, w)), padding=(0, 1, 1))
    assert_close(deep.numpy()[:, 0], flat.numpy(), "float32", 18)


def test_layer(device: str) -> None:
    layer = nn.Conv3d(4, 6, (2, 3, 1), stride=(1, 2, 1), padding="same", groups=2).to(device)
    assert layer.weight.shape == (6, 2, 3, 1, 2)
    y = layer(gpucnn.Tensor(randn(1, 3, 5, 2, 4), device=device))
    assert y.shape == (1, 3, 3, 2, 6)
    y.backward(np.ones(y.shape, np.float32))
    assert all(p.grad is not None for p in layer.parameters())
    assert repr(layer).startswith("Conv3d(4, 6, kernel_size=(2, 3, 1), stride=(1, 2, 1)")


X, WEIGHT = (2, 4, 6, 5, 4), (8, 3, 3, 3, 4)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((4, 6, 5, 4), WEIGHT, None, {}, ValueError, r"x must have shape \(N, D, H, W, C\)"),
        ((2, 4, 0, 5, 4), WEIGHT, None, {}, ValueError, "x must not be empty"),
        (X, (8, 3, 3, 4), None, {}, ValueError, r"weight must have shape \(OC, KD, KH, KW, C/gr"),
        (X, (8, 3, 3, 3, 3), None, {}, ValueError, "weight must have 4 channels"),
        (X, (8, 3, 3, 3, 2), None, {"groups": 3}, ValueError, "groups must divide"),
        (X, WEIGHT, (7,), {}, ValueError, r"bias must have shape \(8,\)"),
        (X, (8, 5, 3, 3, 4), None, {}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"padding": (1, 2)}, ValueError, "padding must be an int or 3 ints"),
        (X, WEIGHT, None, {"padding": ((1, 2), (0, 1))}, ValueError, "padding must be an int, one"),
        (X, WEIGHT, None, {"padding": (1, -1, 0)}, ValueError, "padding must be >= 0"),
        (X, WEIGHT, None, {"padding": "full"}, ValueError, "padding must be numbers"),
        (X, WEIGHT, None, {"stride": (1, 0, 1)}, ValueError, "stride must be >= 1"),
        (X, WEIGHT, None, {"dilation": 1.5}, TypeError, "dilation must be an integer"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.conv3d(*tensors, **options)
