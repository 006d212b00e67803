"""conv2d: loops -> definition -> kernels; PyTorch beside them."""

from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import CONV2D, Conv2dCase
from gpucnn import functional as F
from gpucnn.device import DeviceError, to_host
from gpucnn.kernel import without_running
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv_geometry import ConvGeometry
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

VARIANTS = [
    *("tiled", "naive", "register_tiled", "implicit_gemm"),
    *("depthwise", "direct", "winograd"),
]
cases = pytest.mark.parametrize("case", CONV2D, ids=str)


def arrays(case: Conv2dCase, dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray, Any]:
    bias = randn(case.weight[0], seed=3, dtype=dtype) if case.bias else None
    return randn(*case.x, dtype=dtype), randn(*case.weight, seed=1, dtype=dtype), bias


def geometry(case: Conv2dCase) -> ConvGeometry:
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **case.options}
    return conv2d_geometry(*arrays(case), **options)


def loops(
    x: np.ndarray, w: np.ndarray, b: Any, s: ConvGeometry, dy: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(y, dx, dw) by the formula, one product at a time."""
    y = np.zeros((s.N, s.OH, s.OW, s.OC))
    dx, dw = np.zeros(x.shape), np.zeros(w.shape)
    for n, oh, ow, oc in np.ndindex(y.shape):
        y[n, oh, ow, oc] = 0 if b is None else b[oc]
        for kh, kw, c in np.ndindex(s.KH, s.KW, s.CG):
            h, v = oh * s.SH - s.PT + kh * s.DH, ow * s.SW - s.PL + kw * s.DW
            if 0 <= h < s.H and 0 <= v < s.W:
                ci = oc // s.OCG * s.CG + c
                y[n, oh, ow, oc] += x[n, h, v, ci] * w[oc, kh, kw, c]
                dx[n, h, v, ci] += dy[n, oh, ow, oc] * w[oc, kh, kw, c]
                dw[oc, kh, kw, c] += dy[n, oh, ow, oc] * x[n, h, v, ci]
    return y, dx, dw


def torch_conv2d(
    x: np.ndarray, w: np.ndarray, b: Any, s: ConvGeometry, dy: np.ndarray
) -> list[np.ndarray]:
    """[y, dx, dw, db] by PyTorch, padded by hand to whatever the windows touch."""
    tx = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    tw = torch.tensor(w.transpose(0, 3, 1, 2), requires_grad=True)
    tb = torch.zeros(s.OC, dtype=tx.dtype) if b is None else torch.tensor(b)
    tb.requires_grad_()
    bottom = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1 - s.PT - s.H, 0)
    right = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1 - s.PL - s.W, 0)
    padded = torch.nn.functional.pad(tx, (s.PL, right, s.PT, bottom))
    y = torch.nn.functional.conv2d(padded, tw, tb, (s.SH, s.SW), 0, (s.DH, s.DW), s.G)
    y = y[:, :, : s.OH, : s.OW]
    y.backward(torch.tensor(dy.transpose(0, 3, 1, 2)))
    nhwc = [t.detach().numpy().transpose(0, 2, 3, 1) for t in (y, tx.grad, tw.grad)]
    return [*nhwc, tb.grad.numpy()]


@cases
def test_definition_is_the_formula(case: Conv2dCase) -> None:
    s = geometry(case)
    x, w, b = arrays(case, np.float64)
    dy = randn(s.N, s.OH, s.OW, s.OC, seed=2, dtype=np.float64)
    y, dx, dw = loops(x, w, b, s, dy)
    assert_close(conv2d_forward(x, w, b, s), y, "float64", s.K)
    assert_close(conv2d_data_gradient(dy, w, s), dx, "float64", s.OCG * s.KH * s.KW)
    assert_close(conv2d_weight_gradient(dy, x, s), dw, "float64", s.N * s.OH * s.OW)


@cases
def test_definition_in_bands(case: Conv2dCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images too large for the cache are cut: here each row of outputs is."""
    monkeypatch.setattr("gpucnn.ops.unfold._CHUNK_BYTES", 1)
    monkeypatch.setattr("gpucnn.ops.depthwise._BAND", 1)
    test_definition_is_the_formula(case)


@pytest.mark.parametrize("variant", VARIANTS)
@cases
def test_kernels(case: Conv2dCase, variant: str, kernel_device: str) -> None:
    s = geometry(case)
    x, w, b = arrays(case)
    dy = randn(s.N, s.OH, s.OW, s.OC, seed=2)
    with gpucnn.use_variant(conv2d=variant):
        check_kernel(conv2d_forward, kernel_device, [x, w, b], s, terms=s.K)
        check_kernel(conv2d_data_gradient, kernel_device, [dy, w], s, terms=s.OCG * s.KH * s.KW)
        terms = s.N * s.OH * s.OW
        check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=terms)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weight_gradient_of_many_slices(variant: str, kernel_device: str) -> None:
    """More pixels than one slice holds, and a last slice that is not full."""
    x, w = randn(3, 17, 13, 2), randn(3, 2, 2, 2)
    s = conv2d_geometry(x, w, None, 1, 0, 1, 1)
    dy = randn(s.N, s.OH, s.OW, s.OC, seed=2)
    with gpucnn.use_variant(conv2d=variant):
        check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=s.N * s.OH * s.OW)


@pytest.mark.parametrize("variant", VARIANTS)
def test_kernels_give_the_same_bits_every_time(variant: str, kernel_device: str) -> None:
    case = CONV2D[5]
    s = geometry(case)
    x, w, b = on(kernel_device, *arrays(case))
    (dy,) = on(kernel_device, randn(s.N, s.OH, s.OW, s.OC))
    with gpucnn.use_variant(conv2d=variant):
        runs = [
            [
                to_host(conv2d_forward.on(kernel_device)(x, w, b, s)).tobytes(),
                to_host(conv2d_data_gradient.on(kernel_device)(dy, w, s)).tobytes(),
                to_host(conv2d_weight_gradient.on(kernel_device)(dy, x, s)).tobytes(),
            ]
            for _ in range(2)
        ]
    assert runs[0] == runs[1]


@cases
def test_gradcheck(case: Conv2dCase) -> None:
    inputs = [
        gpucnn.Tensor(a, requires_grad=True) for a in arrays(case, np.float64) if a is not None
    ]
    assert gpucnn.gradcheck(lambda *t: F.conv2d(*t, **case.options), inputs)


def test_more_groups_than_a_grid_has_planes() -> None:
    """65,535 along y and z; the launches are planned and not run."""
    x, w = np.zeros((1, 1, 1, 140_000), np.float32), np.zeros((140_000, 1, 1, 2), np.float32)
    s = conv2d_geometry(x, w, None, 1, 0, 1, 70_000)
    dy = np.zeros(s.y_shape, np.float32)
    with without_running():
        conv2d_forward.on("emulated")(x, w, None, s)
        conv2d_data_gradient.on("emulated")(dy, w, s)
        conv2d_weight_gradient.on("emulated")(dy, x, s)


def test_what_no_window_reads_gets_no_gradient(device: str) -> None:
    """The stride does not divide: the gradient has the size of x all the same."""
    x, w = np.ones((1, 8, 7, 1), np.float32), np.ones((1, 3, 2, 1), np.float32)
    y, (dx, _) = gradients(
        lambda t, v: F.conv2d(t, v, stride=(4, 3)),
        [x, w],
        np.ones((1, 2, 2, 1), np.float32),
        device,
    )
    assert y.shape == (1, 2, 2, 1)
    read = np.outer([1, 1, 1, 0, 1, 1, 1, 0], [1, 1, 0, 1, 1, 0, 0])
    assert_close(dx[0, :, :, 0], read, "exact")


@pytest.mark.parametrize(
    ("case", "variant"),
    [(CONV2D[0], "direct"), (CONV2D[9], "depthwise"), (CONV2D[11], "tiled")],
    ids=str,
)
def test_default_fits_the_groups(case: Conv2dCase, variant: str, kernel_device: str) -> None:
    """Few channels take the kernels for few channels by themselves, and have the bits of them."""
    x, w, b = arrays(case)
    s = geometry(case)
    dy = randn(*s.y_shape, seed=2)
    runs = []
    for chosen in (None, variant):
        with gpucnn.use_variant(conv2d=chosen):
            check_kernel(conv2d_forward, kernel_device, [x, w, b], s, terms=s.K)
            check_kernel(conv2d_data_gradient, kernel_device, [dy, w], s, terms=s.OCG * s.K)
            check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=s.outputs)
            options = {"device": kernel_device}
            y, grads = gradients(lambda *t: F.conv2d(*t, **case.options), [x, w, b], dy, **options)
            runs.append([y.tobytes(), *(g.tobytes() for g in grads)])
    assert runs[0] == runs[1]
    assert gpucnn.primitive.variants("conv2d") == tuple(VARIANTS)


@needs_torch
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2), (2, 4)], ids=str)
def test_cross_product_with_pytorch(kernel: tuple[int, int], groups: int) -> None:
    for number, (stride, padding, dilation) in enumerate(
        itertools.product([1, 2, (3, 1)], [0, 1, ((2, 0), (1, 3)), "valid"], [1, (2, 3)])
    ):
        x, w = randn(2, 9, 10, 4), randn(8, *kernel, 4 // groups, seed=1)
        b = randn(8, seed=4) if number % 3 else None
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        s = conv2d_geometry(x, w, b, **options)
        dy = randn(*s.y_shape, seed=2)
        expected = torch_conv2d(x, w, b, s, dy)
        given = [x, w] if b is None else [x, w, b]
        y, grads = gradients(lambda *t, o=options: F.conv2d(*t, **o), given, dy)
        for a, e in zip([y, *grads], expected, strict=False):
            assert_close(a, e, "torch", s.outputs, str(options))


@needs_torch
@given(data=st.data())
@hundreds
def test_agrees_with_pytorch(data: st.DataObject) -> None:
    draw = data.draw
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 1)]))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    dilation = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * 2))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 9))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    ]
    x = randn(draw(st.integers(1, 3)), *size, groups * per_group)
    w = randn(groups * draw(st.integers(1, 3)), *kernel, per_group)
    b = randn(len(w), seed=4)
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups}
    s = conv2d_geometry(x, w, b, **options)
    dy = randn(s.N, s.OH, s.OW, s.OC, seed=2)
    expected = torch_conv2d(x, w, b, s, dy)
    y, grads = gradients(lambda *t: F.conv2d(*t, **options), [x, w, b], dy)
    for name, a, e in zip(["y", "dx", "dw", "db"], [y, *grads], expected, strict=True):
        assert_close(a, e, "torch", s.N * s.OH * s.OW, name)


@needs_torch
@pytest.mark.parametrize(("k", "s", "d"), [*itertools.product([1, 2, 3, 4], [1, 2, 3], [1, 2])])
def test_same_padding(k: int, s: int, d: int) -> None:
    """ceil(n / stride) outputs; at stride 1 the values are those of PyTorch."""
    x, w = randn(1, 9, 10, 2), randn(3, k, k, 2)
    y = F.conv2d(gpucnn.Tensor(x), gpucnn.Tensor(w), stride=s, dilation=d, padding="same")
    assert y.shape == (1, -(-9 // s), -(-10 // s), 3)
    if s == 1:
        tx, tw = (torch.tensor(a.transpose(0, 3, 1, 2)) for a in (x, w))
        with warnings.catch_warnings():  # PyTorch warns that an odd total makes it copy
            warnings.simplefilter("ignore", UserWarning)
            expected = torch.nn.functional.conv2d(tx, tw, dilation=d, padding="same")
        assert_close(y.numpy(), expected.numpy().transpose(0, 2, 3, 1), "torch", k * k * 2)


@pytest.mark.parametrize(
    ("kernel", "stride", "expected"),
    [(3, 2, [6, 7]), (4, 1, [6, 10, 9, 7]), (2, 2, [3, 7]), (4, 2, [6, 9])],
)
def test_same_padding_puts_the_odd_cell_at_the_end(
    kernel: int, stride: int, expected: list[int], device: str
) -> None:
    """Sums of windows over 1, 2, 3, 4, as TensorFlow pads: on the right first."""
    x = gpucnn.Tensor(np.arange(1, 5, dtype=np.float32).reshape(1, 1, 4, 1), device=device)
    w = gpucnn.Tensor(np.ones((1, 1, kernel, 1), np.float32), device=device)
    y = F.conv2d(x, w, stride=(1, stride), padding="same")
    assert y.numpy().reshape(-1).tolist() == expected


def test_a_window_that_does_not_fit_shows_the_formula() -> None:
    x, w = gpucnn.Tensor(np.zeros((1, 9, 2, 1))), gpucnn.Tensor(np.zeros((1, 3, 3, 1)))
    with pytest.raises(
        ValueError, match=r"\(2 \+ 0 \+ 1 - 2\*\(3 - 1\) - 1\) // 2 \+ 1 = 0 outputs"
    ):
        F.conv2d(x, w, stride=2, padding=((0, 0), (0, 1)), dilation=2)


def test_gradients_only_where_needed(device: str) -> None:
    x = gpucnn.Tensor(randn(1, 4, 4, 1), device=device)
    w = gpucnn.Tensor(randn(2, 3, 3, 1), requires_grad=True, device=device)
    y = F.conv2d(x, w)
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad is None
    assert w.grad is not None


X, WEIGHT = (2, 6, 5, 4), (8, 3, 3, 4)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "options", "error", "match"),
    [
        ((6, 5, 4), WEIGHT, None, {}, ValueError, r"x must have shape \(N, H, W, C\)"),
        ((2, 0, 5, 4), WEIGHT, None, {}, ValueError, "x must not be empty"),
        (X, (8, 3, 4), None, {}, ValueError, "weight must have shape"),
        (X, (8, 3, 3, 3), None, {}, ValueError, "weight must have 4 channels"),
        (X, (8, 3, 3, 2), None, {"groups": 3}, ValueError, "groups must divide"),
        (X, WEIGHT, None, {"groups": 0}, ValueError, "groups must be >= 1"),
        (X, WEIGHT, (7,), {}, ValueError, r"bias must have shape \(8,\)"),
        (X, (8, 7, 3, 4), None, {}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"dilation": 3}, ValueError, "kernel_size"),
        (X, WEIGHT, None, {"padding": -1}, ValueError, "padding must be >= 0"),
        (X, WEIGHT, None, {"padding": ((0, -1), (0, 0))}, ValueError, "padding must be >= 0"),
        (X, WEIGHT, None, {"padding": "full"}, ValueError, "padding must be numbers"),
        (X, WEIGHT, None, {"padding": (1, 2, 3)}, ValueError, "padding must be"),
        (X, WEIGHT, None, {"padding": 2**31}, ValueError, "padding"),
        (X, WEIGHT, None, {"stride": 0}, ValueError, "stride must be >= 1"),
        (X, WEIGHT, None, {"stride": 1.5}, TypeError, "stride must be an integer"),
        (X, WEIGHT, None, {"dilation": (1, 2, 3)}, ValueError, "dilation must be"),
    ],
)
def test_bad_arguments(
    x: Any, weight: Any, bias: Any, options: Any, error: type[Exception], match: str
) -> None:
    tensors = [gpucnn.Tensor(np.zeros(s, np.float32)) for s in (x, weight)]
    tensors.append(None if bias is None else gpucnn.Tensor(np.zeros(bias, np.float32)))
    with pytest.raises(error, match=match):
        F.conv2d(*tensors, **options)


def test_bad_dtypes() -> None:
    x, w = gpucnn.Tensor(np.zeros(X, np.int32)), gpucnn.Tensor(np.zeros(WEIGHT, np.float32))
    with pytest.raises(TypeError, match="x must be float32"):
        F.conv2d(x, w)
    x = gpucnn.Tensor(np.zeros(X, np.float64))
    with pytest.raises(TypeError, match="weight must be float64 like x"):
        F.conv2d(x, w)


@pytest.mark.emulated
def test_mixed_devices() -> None:
    x = gpucnn.Tensor(np.zeros(X, np.float32), device="cpu")
    w = gpucnn.Tensor(np.zeros(WEIGHT, np.float32), device="emulated")
    with pytest.raises(DeviceError, match="share a device, got cpu and emulated"):
        F.conv2d(x, w)
