"""batch_norm_block as a function: gradients, PyTorch beside it, bad arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import BatchNormBlockCase
from gpucnn import DeviceError, Tensor
from gpucnn import functional as F
from tests.blocks import EPS, MOMENTUM, NAMES, arrays_of, step
from tests.support import assert_close, hundreds, needs_torch, randn, torch


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"activation": "leaky_relu", "negative_slope": -0.4}, {"activation": "none"},
     {"kernel_size": 2}, {"kernel_size": 3, "stride": 1, "padding": 1}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("residual", [True, False])
def test_gradcheck(residual: bool, options: dict[str, Any], training: bool) -> None:
    case = BatchNormBlockCase((2, 3, 4, 2), residual, options)
    x, gamma, beta, mean, var, added = arrays_of(case, np.float64, seed=3)
    inputs = [Tensor(a, requires_grad=True) for a in (x, gamma, beta, added) if a is not None]

    def run(x: Tensor, gamma: Tensor, beta: Tensor, added: Tensor | None = None) -> Tensor:
        running = Tensor(mean.copy()), Tensor(var.copy())
        return F.batch_norm_block(x, gamma, beta, *running, added, training=training, **options)

    assert gpucnn.gradcheck(run, inputs)


def torch_block(
    arrays: list[Any], training: bool, options: dict[str, Any]
) -> dict[str, np.ndarray]:
    """One step by PyTorch in float64."""
    x, gamma, beta, mean, var, residual = (
        None if a is None else torch.tensor(a.astype(np.float64)) for a in arrays
    )
    for t in (x, gamma, beta, residual):
        if t is not None:
            t.requires_grad_()
    f = torch.nn.functional
    y = f.batch_norm(x.movedim(-1, 1), mean, var, gamma, beta, training, MOMENTUM, EPS)
    y = y if residual is None else y + residual.movedim(-1, 1)
    if options["activation"] == "relu":
        y = f.relu(y)
    elif options["activation"] == "leaky_relu":
        y = f.leaky_relu(y, options["negative_slope"])
    if "kernel_size" in options:
        window = (options["kernel_size"], options["stride"], options["padding"])
        y = f.max_pool2d(y, *window, ceil_mode=options["edge"] == "ceil")
    y = y.movedim(1, -1)
    y.backward(torch.tensor(randn(*y.shape, seed=9).astype(np.float64)))
    found = {"y": y, "mean": mean, "var": var}
    found |= {n: t.grad for n, t in zip(NAMES, (x, gamma, beta, residual), strict=True)
              if t is not None}  # fmt: skip
    return {name: t.detach().numpy() for name, t in found.items()}


@needs_torch
@given(
    shape=st.tuples(st.integers(2, 3), st.integers(3, 7), st.integers(3, 7), st.integers(1, 35)),
    residual=st.booleans(),
    training=st.booleans(),
    activation=st.sampled_from(["relu", "leaky_relu", "none"]),
    negative_slope=st.sampled_from([0.1, 0.0, -0.5]),
    window=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 1)),
    edge=st.sampled_from(["drop", "ceil"]),
)
@hundreds
def test_agrees_with_pytorch(
    shape: tuple[int, ...], residual: bool, training: bool, activation: str, negative_slope: float,
    window: tuple[int, int, int] | None, edge: str,
) -> None:  # fmt: skip
    options: dict[str, Any] = {"activation": activation, "negative_slope": negative_slope}
    if window is not None:
        kernel, stride, padding = window
        padding = min(padding, kernel // 2)
        options |= {"kernel_size": kernel, "stride": stride, "padding": padding, "edge": edge}
    arrays = arrays_of(BatchNormBlockCase(shape, residual, options))
    expected = torch_block(arrays, training, options)
    actual = step(F.batch_norm_block, arrays, training, options)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(actual[name], value, "torch", int(np.prod(shape)), name)


def test_no_images(device: str) -> None:
    """An empty batch: the shape, gradients of 0, and running statistics left alone."""
    C = 3
    x, residual = (
        Tensor(np.zeros((0, 6, 4, C), np.float32), requires_grad=True, device=device) for _ in "xr"
    )
    vectors = [Tensor(np.full(C, v, np.float32), device=device) for v in (1, 0, 2, 3)]
    for activation in ("relu", "leaky_relu", "none"):
        y = F.batch_norm_block(
            x, *vectors, residual, training=True, activation=activation, kernel_size=2
        )
        assert y.shape == (0, 3, 2, C)
        y.backward(np.zeros(y.shape, np.float32))
        assert x.grad is not None
        assert x.grad.shape == x.shape
    assert vectors[2].numpy().tolist() == [2] * C


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"activation": "gelu"}, ValueError, "activation must be one of none, relu, leaky_relu"),
        ({"activation": "leaky_relu", "negative_slope": np.inf}, ValueError, "negative_slope"),
        ({"activation": "leaky_relu", "negative_slope": "a"}, TypeError, "negative_slope"),
        ({"residual": Tensor(randn(2, 6, 4, 4))}, ValueError, "residual must have shape"),
        ({"residual": Tensor(randn(2, 6, 4, 3, dtype=np.float64))}, TypeError, "residual must be"),
        ({"residual": randn(2, 6, 4, 3)}, TypeError, "residual must be a Tensor"),
        ({"gamma": Tensor(randn(2))}, ValueError, "gamma must have shape"),
        ({"training": 1}, TypeError, "training must be True or False"),
        ({"momentum": 2.0}, ValueError, "momentum must lie between 0 and 1"),
        ({"eps": 0.0}, ValueError, "eps must be > 0"),
        ({"x": Tensor(randn(1, 1, 1, 3))}, ValueError, "more than one value per channel"),
        ({"x": randn(2, 6, 4, 3)}, TypeError, "x must be a Tensor"),
        ({"running_mean": None}, ValueError, "running_mean and running_var"),
        ({"edge": "zero", "kernel_size": 2}, ValueError, "edge must be one of drop, ceil"),
        ({"kernel_size": 12, "padding": 4}, ValueError, "a window of 12 x 12"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        ({"kernel_size": 2, "stride": 0}, ValueError, "stride must be >= 1"),
        ({"kernel_size": 2, "padding": 2}, ValueError, "padding must be smaller"),
        ({"kernel_size": 2, "x": Tensor(randn(6, 3))}, ValueError, "x must have shape"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    vectors = dict(zip(("gamma", "beta", "running_mean"), (randn(3) for _ in "abc"), strict=True))
    arguments: dict[str, Any] = {name: Tensor(v) for name, v in vectors.items()}
    arguments |= {"x": Tensor(randn(2, 6, 4, 3)), "running_var": Tensor(np.ones(3, np.float32))}
    arguments |= {"training": True} | change
    with pytest.raises(error, match=words):
        F.batch_norm_block(**arguments)


@pytest.mark.emulated
def test_two_devices() -> None:
    x = Tensor(randn(2, 3), device="emulated")
    with pytest.raises(DeviceError, match="share a device"):
        F.batch_norm_block(x, None, None, None, None, Tensor(randn(2, 3)), training=True)
