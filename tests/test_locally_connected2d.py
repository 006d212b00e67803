"""locally_connected2d: loops -> definition -> kernels; conv2d where all positions share filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import LOCALLY_CONNECTED2D, ConvCase
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.ops.conv2d import conv2d_geometry
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.locally_connected2d import (
    locally_connected2d_data_gradient,
    locally_connected2d_forward,
    locally_connected2d_geometry,
    locally_connected2d_weight_gradient,
)
from gpucnn.summary import summarize
from tests.support import assert_close, check_kernel, gradients, hundreds, needs_torch, randn, torch

cases = pytest.mark.parametrize("case", LOCALLY_CONNECTED2D, ids=str)


def arrays(case: ConvCase, dtype: Any = np.float32) -> list[Any]:
    """x, a weight per output position, a bias per output position."""
    shared = np.zeros(case.weight, np.float32)
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **case.options}
    s = conv2d_geometry(np.zeros(case.x, np.float32), shared, None, **options)
    w = randn(s.OH, s.OW, *case.weight, seed=1, dtype=dtype)
    b = randn(*w.shape[:3], seed=3, dtype=dtype) if case.bias else None
    return [randn(*case.x, dtype=dtype), w, b]


def geometry(case: ConvCase) -> ConvGeometry:
    return locally_connected2d_geometry(
        *arrays(case), **{"stride": 1, "padding": 0, **case.options}
    )


@cases
def test_definition_is_the_formula(case: ConvCase) -> None:
    x, w, b = arrays(case, np.float64)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2, dtype=np.float64)
    y, dx, dw = np.zeros(s.y_shape), np.zeros(x.shape), np.zeros(w.shape)
    for n, oh, ow, oc in np.ndindex(y.shape):
        y[n, oh, ow, oc] = 0 if b is None else b[oh, ow, oc]
        for kh, kw, i in np.ndindex(*w.shape[3:]):
            h, v = oh * s.SH - s.PT + kh * s.DH, ow * s.SW - s.PL + kw * s.DW
            c = oc // (s.OC // s.G) * (s.C // s.G) + i
            if 0 <= h < s.H and 0 <= v < s.W:
                y[n, oh, ow, oc] += x[n, h, v, c] * w[oh, ow, oc, kh, kw, i]
                dx[n, h, v, c] += dy[n, oh, ow, oc] * w[oh, ow, oc, kh, kw, i]
                dw[oh, ow, oc, kh, kw, i] += dy[n, oh, ow, oc] * x[n, h, v, c]
    assert_close(locally_connected2d_forward(x, w, b, s), y, "float64", s.K)
    assert_close(locally_connected2d_data_gradient(dy, w, s), dx, "float64", s.K * s.OC)
    assert_close(locally_connected2d_weight_gradient(dy, x, s), dw, "float64", s.N)


@cases
def test_kernels(case: ConvCase, kernel_device: str) -> None:
    x, w, b = arrays(case)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2)
    check_kernel(locally_connected2d_forward, kernel_device, [x, w, b], s, terms=s.K)
    terms = s.OCG * s.KH * s.KW
    check_kernel(locally_connected2d_data_gradient, kernel_device, [dy, w], s, terms=terms)
    check_kernel(locally_connected2d_weight_gradient, kernel_device, [dy, x], s, terms=s.N)


@pytest.mark.parametrize("case", [c for c in LOCALLY_CONNECTED2D if c.x[0] < 4], ids=str)
def test_gradcheck(case: ConvCase) -> None:
    given = [a for a in arrays(case, np.float64) if a is not None]
    inputs = [gpucnn.Tensor(a, requires_grad=True) for a in given]
    assert gpucnn.gradcheck(lambda *t: F.locally_connected2d(*t, **case.options), inputs)


def test_gradients_on_every_device(device: str) -> None:
    case = LOCALLY_CONNECTED2D[3]
    given, dy = arrays(case), randn(*geometry(case).y_shape, seed=2)

    def fn(*t: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.locally_connected2d(*t, **case.options)

    y, grads = gradients(fn, given, dy, device)
    expected = gradients(fn, [a.astype(np.float64) for a in given], dy.astype(np.float64))
    for a, e in zip([y, *grads], [expected[0], *expected[1]], strict=True):
        assert_close(a, e, "float32", dy.size)
    assert [a.tobytes() for a in gradients(fn, given, dy, device)[1]] == [
        a.tobytes() for a in grads
    ]


@given(data=st.data())
@hundreds
def test_is_conv2d_where_all_positions_share_one_weight(data: st.DataObject) -> None:
    """The output, the gradient in x, and the sum of the weight gradients over the positions."""
    draw = data.draw
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2))
    two = st.tuples(st.integers(1, 3), st.integers(1, 3))
    groups, spread = draw(st.integers(1, 3)), draw(two)
    options = {"stride": draw(two), "padding": pads, "dilation": spread, "groups": groups}
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 7))
        for k, d, p in zip(kernel, spread, pads, strict=True)
    ]
    per_group = draw(st.integers(1, 3))
    x = randn(draw(st.integers(1, 3)), *size, per_group * groups, dtype=np.float64)
    w = randn(draw(st.integers(1, 3)) * groups, *kernel, per_group, dtype=np.float64)
    b = randn(len(w), seed=4, dtype=np.float64)
    dy = F.conv2d(*(gpucnn.Tensor(a) for a in (x, w)), **options).numpy() + 1.5
    out = dy.shape[1:3]
    y, (dx, dw, db) = gradients(lambda *t: F.conv2d(*t, **options), [x, w, b], dy)
    own = [np.broadcast_to(a, (*out, *a.shape)).copy() for a in (w, b)]
    ly, (ldx, ldw, ldb) = gradients(lambda *t: F.locally_connected2d(*t, **options), [x, *own], dy)
    assert_close(ly, y, "float64", w.size)
    assert_close(ldx, dx, "float64", dy.size)
    assert_close(ldw.sum(axis=(0, 1)), dw, "float64", 10 * dy.size)
    assert_close(ldb.sum(axis=(0, 1)), db, "float64", 10 * dy.size)


@needs_torch
@cases
def test_agrees_with_unfold_of_pytorch(case: ConvCase) -> None:
    x, w, _ = arrays(case)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2)
    tx, tw = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    high, wide = (s.KH - 1) * s.DH + 1, (s.KW - 1) * s.DW + 1
    bottom = max((s.OH - 1) * s.SH + high - s.PT - s.H, 0)
    right = max((s.OW - 1) * s.SW + wide - s.PL - s.W, 0)
    padded = torch.nn.functional.pad(tx, (0, 0, s.PL, right, s.PT, bottom))
    windows = padded.unfold(1, high, s.SH).unfold(2, wide, s.SW)[:, : s.OH, : s.OW]
    windows = windows.unflatten(3, (s.G, s.CG))[..., :: s.DH, :: s.DW]
    ty = torch.einsum("nijgckl,ijgoklc->nijgo", windows, tw.unflatten(2, (s.G, s.OCG))).flatten(3)
    ty.backward(torch.tensor(dy))
    y, grads = gradients(lambda *t: F.locally_connected2d(*t, **case.options), [x, w], dy)
    for a, e in zip([y, *grads], [ty.detach(), tx.grad, tw.grad], strict=True):
        assert_close(a, e.numpy(), "torch", s.K * s.OC * s.N)


def test_layer_measures_sharing_apart() -> None:
    """As many multiply-adds as Conv2d, and as many weights as positions times those of Conv2d."""
    options = {"stride": 2, "padding": "same"}
    local = nn.LocallyConnected2d(3, 4, (7, 5), 3, **options)
    shared = nn.Conv2d(3, 4, 3, **options)
    assert local.weight.shape == (4, 3, 4, 3, 3, 3)
    assert local.bias is not None
    assert local.bias.shape == (4, 3, 4)
    assert np.abs(local.weight.numpy()).max() <= 1 / np.sqrt(27)
    (a,), (b,) = summarize(local, (7, 5, 3)), summarize(shared, (7, 5, 3))
    assert (a.output_shape, a.multiply_adds) == (b.output_shape, b.multiply_adds)
    assert a.receptive_field == b.receptive_field == (3, 3)
    assert a.parameters == 12 * b.parameters
    local.weight.data[...] = shared.weight.numpy()
    local.bias.data[...] = shared.bias.numpy()
    x = gpucnn.Tensor(randn(2, 7, 5, 3))
    assert_close(local(x).numpy(), shared(x).numpy(), "float32", 27)
    assert repr(local).startswith("LocallyConnected2d(3, 4, input_size=(7, 5), kernel_size=(3, 3)")
    grouped = nn.LocallyConnected2d(4, 6, (7, 5), 3, 1, "same", (2, 1), 2, False)
    assert grouped.weight.shape == (7, 5, 6, 3, 3, 2)
    assert np.abs(grouped.weight.numpy()).max() <= 1 / np.sqrt(18)
    assert repr(grouped).endswith("padding='same', dilation=(2, 1), groups=2, bias=False)")
    assert grouped(gpucnn.Tensor(randn(2, 7, 5, 4))).shape == (2, 7, 5, 6)
    field = gpucnn.receptive_field(grouped, (7, 5, 4))
    assert field.cells(3, 2) == (slice(1, 6), slice(1, 4))
    with pytest.raises(ValueError, match="groups must divide in_channels=3 and out_channels=4"):
        nn.LocallyConnected2d(3, 4, (7, 5), 3, groups=2)
    with pytest.raises(ValueError, match=r"x must be images of input_size \(7, 5\)"):
        local(gpucnn.Tensor(randn(2, 8, 5, 3)))
    with pytest.raises(ValueError, match="input_size must be"):
        nn.LocallyConnected2d(3, 4, (7, 5, 3), 3)
    with pytest.raises(ValueError, match="kernel_size"):
        nn.LocallyConnected2d(3, 4, 2, 3)


X, WEIGHT = (2, 6, 5, 4), (4, 3, 8, 3, 3, 4)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((6, 5, 4), WEIGHT, None, {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 0, 5, 4), WEIGHT, None, {}, ValueError, "x must not be empty"),
        (X, (8, 3, 3, 4), None, {}, ValueError, r"weight must have shape \(OH, OW, OC, KH, KW, 4"),
        (X, (4, 3, 8, 3, 3, 3), None, {}, ValueError, "weight must have shape"),
        (X, (4, 3, 0, 3, 3, 4), None, {}, ValueError, "weight must have shape"),
        (X, (4, 4, 8, 3, 3, 4), None, {}, ValueError, "weight must have filters for 4 x 3"),
        (X, WEIGHT, None, {"stride": 2}, ValueError, "weight must have filters for 2 x 2"),
        (X, WEIGHT, (8,), {}, ValueError, r"bias must have shape \(4, 3, 8\)"),
        (X, (4, 3, 8, 7, 3, 4), None, {}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, WEIGHT, None, {"padding": "full"}, ValueError, "padding must be numbers"),
        (X, WEIGHT, None, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, WEIGHT, None, {"stride": 1.5}, TypeError, "stride must be an integer"),
        (X, WEIGHT, None, {"dilation": 0}, ValueError, "dilation must be >= 1"),
        (X, WEIGHT, None, {"dilation": 3}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"groups": 0}, ValueError, "groups must be >= 1"),
        (X, WEIGHT, None, {"groups": 3}, ValueError, "groups must divide"),
        (
            X,
            WEIGHT,
            None,
            {"groups": 2},
            ValueError,
            "KH, KW, 2.* for x with 4 channels in 2 groups",
        ),
        (X, (4, 3, 9, 3, 3, 2), None, {"groups": 2}, ValueError, "groups must divide"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.locally_connected2d(*tensors, **options)


def test_bad_dtypes() -> None:
    x, w = gpucnn.Tensor(np.zeros(X, np.float64)), gpucnn.Tensor(np.zeros(WEIGHT, np.float32))
    with pytest.raises(TypeError, match="weight must be float64 like x"):
        F.locally_connected2d(x, w)
