"""Gradient clipping and the moving average of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import CLIP
from gpucnn.device import to_host
from gpucnn.ops.clip import clip_norm, clip_value
from gpucnn.optim import EMA, SGD, clip_grad_norm_, clip_grad_value_
from tests.support import assert_close, needs_torch, on, randn, torch

ids = pytest.mark.parametrize("sizes", CLIP, ids=lambda s: f"{len(s)}x{s[0]}")


def loops(arrays: list[np.ndarray], max_norm: float) -> tuple[float, list[np.ndarray]]:
    total = 0.0
    for a in arrays:
        for v in a.tolist():
            total += v * v
    norm = total**0.5
    return norm, [a * min(1.0, max_norm / (norm + 1e-6)) for a in arrays]


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 1e6, float("inf")])
@ids
def test_norm(sizes: tuple[int, ...], max_norm: float, device: str) -> None:
    dtype = np.float64 if device == "cpu" else np.float32
    given = [randn(n, seed=i, dtype=dtype) for i, n in enumerate(sizes)]
    norm, expected = loops([a.astype(np.float64) for a in given], max_norm)
    arrays = on(device, *(a.copy() for a in given))
    actual = clip_norm.on(device)(arrays, max_norm)
    bar = "float64" if device == "cpu" else "float32"
    assert_close(actual, np.asarray(norm), bar, sum(sizes))
    for a, e in zip(arrays, expected, strict=True):
        assert_close(a, e, bar)


@pytest.mark.parametrize("n", [1, 3, 4, 1021])
def test_value(n: int, device: str) -> None:
    g = randn(n)
    g[0] = np.nan if n > 1 else 7.0
    expected = [max(min(v, 0.5), -0.5) if v == v else v for v in g.tolist()]
    (a,) = on(device, g.copy())
    clip_value.on(device)([a], 0.5)
    assert_close(a, np.array(expected), "exact")


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_gradients_that_are_not_16_byte_aligned(offset: int, kernel_device: str) -> None:
    g = randn(103)
    (a,) = on(kernel_device, g.copy())
    norm = clip_norm.on(kernel_device)([a[offset:]], 1.0)
    assert_close(norm, np.asarray(np.linalg.norm(g[offset:].astype(float))), "float32", 100)
    assert_close(to_host(a)[:offset], g[:offset], "exact")


def test_extremes(device: str) -> None:
    """Squares beyond float32, denormal sums, NaN and infinity."""
    (a,) = on(device, np.full(4, 1e30, np.float32))
    assert_close(clip_norm.on(device)([a], 1.0), np.asarray(2e30), "float32")
    assert_close(a, np.full(4, 0.5), "float32")
    (a,) = on(device, np.full(4, 1e-30, np.float32))
    assert_close(clip_norm.on(device)([a], 1.0) * 1e30, np.asarray(2.0), "float32")
    (a,) = on(device, np.array([1, np.nan, 2], np.float32))
    assert np.isnan(to_host(clip_norm.on(device)([a], 1.0)))
    assert np.isnan(to_host(a)).all()
    (a,) = on(device, np.array([1, np.inf, 2], np.float32))
    with np.errstate(invalid="ignore"):
        assert np.isinf(to_host(clip_norm.on(device)([a], 1.0)))
    assert_close(a, np.array([0, np.nan, 0]), "exact")


def test_the_same_bits_every_time(device: str) -> None:
    runs = []
    for _ in range(2):
        arrays = on(device, randn(70001), randn(9, seed=1))
        runs.append([to_host(clip_norm.on(device)(arrays, 1.0)), *map(to_host, arrays)])
    for a, b in zip(*runs, strict=True):
        assert np.array_equal(a, b)


def parameters(device: str, dtype: Any = np.float32) -> list[gpucnn.Tensor]:
    shapes = [(3, 5), (7,), (1,), (2, 3, 3, 4)]
    params = [
        gpucnn.Tensor(randn(*s, seed=i, dtype=dtype), requires_grad=True, device=device)
        for i, s in enumerate(shapes)
    ]
    for i, p in enumerate(params):
        if i != 1:
            p.backward(randn(*p.shape, seed=10 + i, dtype=dtype))
    return params


@needs_torch
@pytest.mark.parametrize("through", ["optimizer", "parameters", "groups"])
@pytest.mark.parametrize("limit", [0.01, 1.0, 100.0])
def test_agrees_with_pytorch(through: str, limit: float, device: str) -> None:
    for by_norm in (True, False):
        params = parameters(device)
        tensors = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]
        for p, t in zip(params, tensors, strict=True):
            t.grad = None if p.grad is None else torch.tensor(p.grad.numpy().copy())
        target: Any = params
        if through == "optimizer":
            target = SGD(params, lr=0.1)
        elif through == "groups":
            target = SGD([{"params": params[:1]}, {"params": params[1:], "lr": 1.0}], lr=0.1)
        if by_norm:
            norm = clip_grad_norm_(target, limit)
            expected = torch.nn.utils.clip_grad_norm_(tensors, limit)
            assert (norm.shape, norm.device) == ((), device)
            assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
        else:
            clip_grad_value_(target, limit)
            torch.nn.utils.clip_grad_value_(tensors, limit)
        assert params[1].grad is None
        for p, t in zip(params, tensors, strict=True):
            if p.grad is not None:
                assert_close(p.grad.numpy(), t.grad.numpy(), "torch")


def test_tensors_that_share_a_gradient_are_scaled_once(device: str) -> None:
    a, b = (gpucnn.Tensor(randn(3, seed=i), requires_grad=True, device=device) for i in (0, 1))
    dy = np.array([3, 0, 4], np.float32)
    (a + b).backward(dy)
    assert clip_grad_norm_([a, b], 50**0.5 / 2).item() == pytest.approx(50**0.5)
    for t in (a, b):
        assert_close(t.grad.numpy(), dy / 2, "float32")
    assert dy.tolist() == [3, 0, 4]


def test_no_gradients_have_the_norm_0(device: str) -> None:
    p = gpucnn.Tensor(randn(3), requires_grad=True, device=device)
    assert clip_grad_norm_(p, 1.0).item() == 0
    assert clip_grad_norm_(SGD([p], lr=0.1), 1.0).item() == 0
    clip_grad_value_([p], 1.0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: clip_grad_norm_(p, -1.0), ValueError, "max_norm must be"),
        (lambda p: clip_grad_norm_(p, float("nan")), ValueError, "max_norm must be"),
        (lambda p: clip_grad_norm_(p, "1"), ValueError, "max_norm must be"),
        (lambda p: clip_grad_norm_([], 1.0), ValueError, "parameters must hold"),
        (lambda p: clip_grad_norm_([p[0], 1.0], 1.0), TypeError, r"parameters\[1\] must be"),
        (lambda p: clip_grad_value_(p, -1.0), ValueError, "clip_value must be"),
        (lambda p: EMA(SGD(p, 0.1), 1.0), ValueError, "decay must be"),
        (lambda p: EMA(SGD(p, 0.1), -0.1), ValueError, "decay must be"),
        (lambda p: EMA(SGD(p, 0.1)).load_state_dict({}), ValueError, "entries differ"),
        (lambda p: EMA(SGD(p, 0.1)).restore(), RuntimeError, "needs apply"),
    ],
)
def test_bad_arguments(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call(parameters("cpu"))


def test_average_of_the_weights(device: str) -> None:
    params = parameters(device)
    optimizer = SGD(params, lr=0.1)
    ema = EMA(optimizer, decay=0.75)
    expected = [p.numpy().astype(float) for p in params]
    for _ in range(5):
        optimizer.step()
        ema.update()
        expected = [0.75 * e + 0.25 * p.numpy() for e, p in zip(expected, params, strict=True)]
    trained = [p.numpy().copy() for p in params]
    with ema.applied():
        for p, e in zip(params, expected, strict=True):
            assert_close(p.numpy(), e, "float32", 5)
        with pytest.raises(RuntimeError, match="call restore"):
            ema.update()
        with pytest.raises(RuntimeError, match="call restore"):
            ema.apply()
    for p, t in zip(params, trained, strict=True):
        assert_close(p.numpy(), t, "exact")

    again = EMA(optimizer, decay=0.75)
    state = ema.state_dict()
    again.load_state_dict(state)
    optimizer.step()
    ema.update()
    again.update()
    for name, value in ema.state_dict().items():
        assert_close(again.state_dict()[name], value, "exact")
    assert int(again.state_dict()["updates"]) == 6
    with pytest.raises(ValueError, match=r"'average.1' must have shape \(7,\)"):
        again.load_state_dict({**state, "average.1": np.zeros(3)})


@needs_torch
def test_average_is_pytorchs() -> None:
    p = gpucnn.Tensor(randn(5, dtype=float), requires_grad=True)
    model = torch.nn.Linear(5, 1, bias=False).double()
    averaged = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    ema = EMA(SGD([p], lr=0.1), 0.9)
    for step in range(20):
        with torch.no_grad():
            model.weight.copy_(torch.tensor(p.numpy().copy())[None])
        averaged.update_parameters(model)
        if step:
            ema.update()
        p.data[...] = randn(5, seed=step + 1, dtype=float)
    actual = ema.state_dict()["average.0"]
    assert_close(actual, averaged.module.weight.detach().numpy()[0], "float64", 20)
