"""dropout, dropout2d: loops -> definition -> kernels; the same masks everywhere, the right rate."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import DROPOUT
from gpucnn import functional as F
from gpucnn import nn, random
from gpucnn.device import to_host
from gpucnn.ops.dropout import dropout2d_forward, dropout_forward, place
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

shapes = pytest.mark.parametrize("shape", DROPOUT, ids=str)


class Draw(NamedTuple):
    """Probability and place of a mask."""

    p: float
    seed: int
    stream: int
    start: int

    @property
    def arguments(self) -> tuple[np.ndarray, float]:
        """What the primitives take after x."""
        return place(self.seed, self.stream, self.start), self.p


DRAWS = [
    Draw(0.3, 5, 9, 0),
    Draw(0.5, 2**64 - 3, 2**63 + 1, 2**34 + 4),
    Draw(1.0, 1, 0, 8),
    Draw(1e-9, 1, 0, 8),
]


def loops(x: np.ndarray, draw: Draw, channels: bool) -> np.ndarray:
    """One element at a time, its number computed alone."""
    y = np.empty_like(x)
    for i in np.ndindex(x.shape):
        j = i[0] * x.shape[-1] + i[-1] if channels else np.ravel_multi_index(i, x.shape)
        u = random.uniform(draw.seed, draw.stream, 1, draw.start + int(j))[0]
        y[i] = x[i] * (0 if u < draw.p else 1 / (1 - draw.p))
    return y


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@shapes
def test_definition_is_the_formula(shape: tuple[int, ...], draw: Draw) -> None:
    x = randn(*shape, dtype=np.float64)
    assert_close(dropout_forward(x, *draw.arguments), loops(x, draw, False), "float64")
    if len(shape) == 4:
        assert_close(dropout2d_forward(x, *draw.arguments), loops(x, draw, True), "float64")


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@shapes
def test_kernels(shape: tuple[int, ...], draw: Draw, kernel_device: str) -> None:
    arrays, p = [randn(*shape), draw.arguments[0]], draw.p
    check_kernel(dropout_forward, kernel_device, arrays, p)
    if len(shape) == 4:
        check_kernel(dropout2d_forward, kernel_device, arrays, p)


@given(p=st.floats(0, 1), seed=st.integers(0, 2**64 - 1), start=st.integers(0, 2**62))
@hundreds
def test_the_threshold_is_u_less_than_p(p: float, seed: int, start: int) -> None:
    draw = Draw(p, seed, 3, start // 4 * 4)
    u = random.uniform(seed, 3, 64, draw.start)
    kept = dropout_forward(np.ones(64), *draw.arguments) != 0
    np.testing.assert_array_equal(kept, (u >= p) & (p < 1))


@pytest.mark.parametrize("op", [dropout_forward, dropout2d_forward])
def test_masks_are_equal_on_every_device(op: Any, kernel_device: str) -> None:
    """Bit for bit: the same words, compared in the same way, times the same number."""
    for C in (5, 8):
        x = randn(3, 7, 6, C)
        for draw in DRAWS:
            where, p = draw.arguments
            actual = to_host(op.on(kernel_device)(*on(kernel_device, x, where), p))
            assert actual.tobytes() == op(x, where, p).tobytes()


@pytest.mark.parametrize("op", [dropout_forward, dropout2d_forward])
def test_arrays_that_are_not_aligned(op: Any, kernel_device: str) -> None:
    x = randn(2 * 3 * 4 * 8 + 1)[1:].reshape(2, 3, 4, 8)
    check_kernel(op, kernel_device, [x, DRAWS[0].arguments[0]], DRAWS[0].p)


def test_more_than_one_chunk() -> None:
    """The definition cuts the batch; the numbers must go on where the last part stopped."""
    x = np.ones((5, 100, 300, 1))
    u = random.uniform(5, 9, x.size).reshape(x.shape)
    expected = np.where(u < 0.3, 0, 1 / 0.7)
    assert_close(dropout_forward(x, *DRAWS[0].arguments), expected, "float64")
    y = dropout2d_forward(x, *DRAWS[0].arguments)
    assert_close(y, np.broadcast_to(expected.reshape(-1)[:5, None, None, None], y.shape), "float64")


@pytest.mark.parametrize("p", [0.02, 0.25, 0.5, 0.9])
def test_the_rate_is_p(p: float) -> None:
    """The number dropped of n is binomial: five standard deviations, over three layers' worth."""
    gpucnn.seed(2)
    n = 120_000
    for _ in range(3):
        y = F.dropout(gpucnn.Tensor(np.ones(n, np.float32), device="cpu"), p, training=True).numpy()
        assert abs(int((y == 0).sum()) - n * p) < 5 * np.sqrt(n * p * (1 - p))
        assert set(np.unique(y)) == {np.float32(0), np.float32(1 / (1 - p))}
        dropped = (y == 0).astype(np.float64) - p
        for lag in (1, 2, 3, 4, 8):  # neighbours do not know of each other
            assert abs((dropped[lag:] * dropped[:-lag]).mean()) < 5 * p * (1 - p) / np.sqrt(n)


def test_the_rate_of_channels_is_p() -> None:
    gpucnn.seed(2)
    x = gpucnn.Tensor(np.ones((500, 2, 1, 64), np.float32), device="cpu")
    y = F.dropout2d(x, 0.25, training=True).numpy()
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    n = 500 * 64
    assert abs(int((y[:, 0] == 0).sum()) - n / 4) < 5 * np.sqrt(n * 0.25 * 0.75)


FUNCTIONS = [F.dropout, F.dropout2d]


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_backward_draws_the_mask_of_its_forward_pass(fn: Any, device: str) -> None:
    """Also where other layers have drawn in between, and where the library was seeded anew."""
    gpucnn.seed(3)
    x = gpucnn.Tensor(randn(4, 5, 3, 6) + 9, requires_grad=True, device=device)
    y = fn(x, 0.4, training=True)
    fn(x, 0.4, training=True)
    gpucnn.seed(4)
    dy = randn(4, 5, 3, 6, seed=1)
    y.backward(dy)
    factor = np.where(y.numpy() == 0, np.float32(0), np.float32(1 / 0.6))
    assert 0 < (factor == 0).mean() < 1
    assert_close(x.grad.numpy(), dy * factor, "exact")
    assert_close(y.numpy(), x.numpy() * factor, "exact")


@pytest.mark.parametrize("fn", FUNCTIONS)
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_gradcheck(fn: Any, p: float) -> None:
    def run(x: gpucnn.Tensor) -> gpucnn.Tensor:
        generator = random.Generator(1)  # the same mask at each call
        return fn(x, p, training=True, generator=generator).reshape(2, 3, 2, 5)

    x = gpucnn.Tensor(randn(2, 3, 2, 5, dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(run, [x])


@needs_torch
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_agrees_with_pytorch_where_nothing_is_random(p: float) -> None:
    """Each kept element has PyTorch's value; p = 1, NaN and infinity behave as there."""
    x = np.array([1, -2, 0, np.inf, np.nan] * 40, np.float32)
    expected = torch.nn.functional.dropout(torch.tensor(x), p, True).numpy()
    y = F.dropout(gpucnn.Tensor(x), p, training=True).numpy()
    np.testing.assert_array_equal(np.isnan(y[4::5]), True)
    both = np.isfinite(x) & (y != 0) & (expected != 0)
    assert_close(y[both], expected[both], "exact")
    if p == 1:
        assert_close(y, expected, "exact")


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_nothing_happens_in_inference_or_at_zero(fn: Any, device: str) -> None:
    generator = random.Generator(1)
    x = gpucnn.Tensor(randn(2, 3, 2, 5), device=device)
    assert fn(x, 0.5, training=False, generator=generator) is x
    assert fn(x, 0.0, training=True, generator=generator) is x
    assert generator.position == 0


@pytest.mark.parametrize("fn", FUNCTIONS)
def test_p_of_one_gives_zeros(fn: Any, device: str) -> None:
    x = randn(2, 3, 2, 5)
    y, (dx,) = gradients(lambda t: fn(t, 1, training=True), [x], np.ones_like(x), device)
    assert not y.any()
    assert not dx.any()


def test_the_stream(device: str) -> None:
    """gpucnn.seed restarts it, each call goes on, and it is nobody else's."""
    x = gpucnn.Tensor(np.ones((1, 1, 1, 50), np.float32), device=device)
    gpucnn.seed(7)
    first = [F.dropout(x, training=True).numpy() for _ in range(2)]
    assert (first[0] != first[1]).any()
    gpucnn.seed(7)
    random.default_generator().normal(100)
    assert_close(F.dropout(x, training=True).numpy(), first[0], "exact")
    assert_close(F.dropout2d(x, training=True).numpy(), first[1], "exact")
    own = random.Generator(7, random.dropout_generator().stream)
    assert_close(F.dropout(x, training=True, generator=own).numpy(), first[0], "exact")
    assert own.position == 52
    assert random.dropout_generator().stream != random.default_generator().stream


def test_layers() -> None:
    model = nn.Sequential(nn.Dropout(0.4), nn.Dropout2d())
    assert repr(model[0]) == "Dropout(p=0.4)"
    assert repr(model[1]) == "Dropout2d(p=0.5)"
    assert not model.state_dict()
    x = gpucnn.Tensor(np.ones((3, 4, 4, 8), np.float32))
    assert (model[0](x).numpy() == 0).any()
    y = model[1](x).numpy()
    assert np.isin(y.sum(axis=(1, 2)), [0, 32]).all()
    assert model.eval()(x) is x
    with pytest.raises(ValueError, match="p must lie"):
        nn.Dropout(-0.1)


@pytest.mark.parametrize("fn", FUNCTIONS)
@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": np.zeros((2, 1, 1, 0), np.float32)}, ValueError, "x must not be empty"),
        ({"x": np.zeros((2, 1, 1, 3), np.int32)}, TypeError, "x must be float32"),
        ({"x": np.zeros((2, 1, 1, 3), np.int32), "training": False}, TypeError, "x must be"),
        ({"p": -0.1}, ValueError, "p must lie between 0 and 1"),
        ({"p": 1.1}, ValueError, "p must lie between 0 and 1"),
        ({"p": float("nan")}, ValueError, "p must lie between 0 and 1"),
        ({"p": "0.5"}, TypeError, "p must be a number"),
        ({"p": True}, TypeError, "p must be a number"),
        ({"training": 1}, TypeError, "training must be True or False"),
        ({"generator": 3}, TypeError, "generator must be a gpucnn.random.Generator"),
    ],
)
def test_bad_arguments(fn: Any, change: dict[str, Any], error: type[Exception], match: str) -> None:
    arguments = {"x": np.zeros((2, 1, 1, 3), np.float32), "training": True, **change}
    arguments["x"] = gpucnn.Tensor(arguments["x"])
    with pytest.raises(error, match=match):
        fn(**arguments)


def test_dropout2d_takes_images() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(N, H, W, C\)"):
        F.dropout2d(gpucnn.Tensor(randn(2, 3)), training=True)


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
@pytest.mark.parametrize("fn", FUNCTIONS)
def test_the_cuda_path_computes_with_kernels_alone(fn: Any) -> None:
    x, dy = randn(2, 3, 3, 4), randn(2, 3, 3, 4, seed=1)

    def run(t: gpucnn.Tensor) -> gpucnn.Tensor:
        return fn(t, training=True, generator=random.Generator(1))

    (y, (dx,)), (want_y, (want_dx,)) = (gradients(run, [x], dy, d) for d in ("cuda", "emulated"))
    assert y.tobytes() == want_y.tobytes()
    assert dx.tobytes() == want_dx.tobytes()
