"""bfloat16: rounding, tensors, what is stored in it and what is not, and training with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.bfloat16 import narrowed, use, widened
from gpucnn.device import to_device, to_host
from gpucnn.ops.cast import narrow, widen
from tests.graphs import Run, trace
from tests.support import BARS, assert_close, randn

ALL = np.arange(1 << 16, dtype=np.uint32)
NAN = (ALL & 0x7FFF) > 0x7F80


@pytest.fixture(autouse=True)
def _in_use() -> None:
    use()


def by_arithmetic(bits: np.ndarray) -> np.ndarray:
    """The numbers of bit patterns: sign, 8 bits of exponent, 7 of mantissa."""
    exponent, mantissa = (bits >> 7 & 0xFF).astype(int), (bits & 0x7F).astype(np.float64)
    values = np.where(
        exponent == 0, np.ldexp(mantissa, -133), np.ldexp(mantissa + 128, exponent - 134)
    )
    values[exponent == 255] = np.inf
    values[NAN[bits]] = np.nan
    return np.where(bits >> 15, -values, values)


def test_every_pattern_is_the_number_it_spells(device: str) -> None:
    bits = to_device(ALL.astype(np.uint16), device)
    wide = to_host(widen.on(device)(bits))
    with np.errstate(all="ignore"):
        expected = by_arithmetic(ALL).astype(np.float32)
    np.testing.assert_array_equal(wide, expected)
    back = to_host(narrow.on(device)(to_device(wide, device)))
    np.testing.assert_array_equal(back, np.where(NAN, 0x7FFF, ALL))


@pytest.mark.parametrize("low", [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
def test_every_number_between_two_patterns(low: int, device: str) -> None:
    """To the nearest, half way to the even one; past the largest is infinity."""
    x = ((ALL << 16) | low).astype(np.uint32).view(np.float32)
    up = (low > 0x8000) | ((low == 0x8000) & (ALL & 1))
    expected = np.where(np.isnan(x), 0x7FFF, ALL + up)
    np.testing.assert_array_equal(to_host(narrow.on(device)(to_device(x, device))), expected)


def test_a_tensor_of_it(device: str) -> None:
    x = Tensor(randn(3, 5), requires_grad=True, device=device)
    y = F.to_bfloat16(x)
    assert y.dtype is gpucnn.bfloat16
    assert (str(y.dtype), y.dtype.itemsize, y.shape) == ("bfloat16", 2, (3, 5))
    expected = widened(narrowed(randn(3, 5)))
    assert y.numpy().dtype == np.float32
    np.testing.assert_array_equal(y.numpy(), expected)
    assert F.to_bfloat16(y) is y
    assert F.to_float32(x) is x
    wide = F.to_float32(y)
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide.numpy(), expected)
    moved = y.detach().to("cpu")
    assert (moved.dtype, moved.device) == (gpucnn.bfloat16, "cpu")
    np.testing.assert_array_equal(Tensor(moved).numpy(), expected)
    g = randn(3, 5, seed=1)
    y.backward(g)
    assert x.grad is not None
    assert x.grad.dtype == np.float32
    np.testing.assert_array_equal(x.grad.numpy(), widened(narrowed(g)))
    assert "0." in repr(y)


def test_what_is_no_such_number() -> None:
    with pytest.raises(TypeError, match="x must be float32 or bfloat16, got float64"):
        F.to_bfloat16(Tensor(np.zeros(3)))
    with pytest.raises(TypeError, match="x must be float32 or bfloat16, got int32"):
        F.to_float32(Tensor([1, 2]))
    with pytest.raises(ValueError, match="precision is one of fp32, tf32, bf16, fp16"):
        gpucnn.precision("bfloat16")


def test_products_narrow_and_others_follow(device: str) -> None:
    """Storage begins at the first matrix product and ends where a function does not have it."""
    x = Tensor(randn(2, 6, 6, 4), device=device)
    weight = Tensor(randn(4, 3, 3, 4, seed=1), device=device)
    assert F.relu(F.to_bfloat16(x)).dtype is gpucnn.bfloat16  # without the precision
    with gpucnn.precision("bf16"):
        assert F.relu(x).dtype == np.float32
        y = F.conv2d(x, weight)
        assert y.dtype is gpucnn.bfloat16
        for follow in (
            F.relu(y),
            F.max_pool2d(y, 2),
            F.avg_pool2d(y, 2),
            F.global_avg_pool2d(y),
            F.concatenate([y, y]),
            y + y,
            y * 2.0,
            y.reshape(2, 64),
            y.transpose(0, 3, 1, 2),
            F.dropout(y, training=True),
            F.local_response_norm(y, 3),
            y + Tensor(randn(2, 4, 4, 4), device=device),  # narrowed beside the other
        ):
            assert follow.dtype is gpucnn.bfloat16
        for ends in (F.softmax(y), F.group_norm(y, 2), y.sum(), F.cross_entropy(
            y.reshape(2, 64), Tensor([1, 2], device=device)
        )):  # fmt: skip
            assert ends.dtype == np.float32
    assert F.conv2d(x, weight).dtype == np.float32


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_cross_entropy_of_stored_scores(factor: float, device: str) -> None:
    """Labels, weights and probabilities; the gradient is stored, the loss is not."""
    scores, labels = randn(40, 5), np.arange(40, dtype=np.int32) % 5
    shares = np.full((40, 5), 0.2, np.float32)
    for target, options in (
        (labels, {}),
        (labels, {"weight": [1, 2, 3, 4, 0.5], "label_smoothing": 0.1, "reduction": "sum"}),
        (labels, {"reduction": "none"}),
        (shares, {}),
    ):
        found = []
        for stored in (True, False):
            x = Tensor(widened(narrowed(scores)), requires_grad=True, device=device)
            given = F.to_bfloat16(x) if stored else x
            loss = F.cross_entropy(given, target, **options)
            assert loss.dtype == np.float32
            (loss.sum() * factor if loss.ndim else loss * factor).backward()
            assert x.grad is not None
            found.append((loss.numpy(), x.grad.numpy()))
        assert_close(found[0][0], found[1][0], "float32", 40)
        if factor == 1:
            assert_close(found[0][1], found[1][1], "bfloat16 storage")
        else:  # rounded before and after the multiplication
            assert_close(64 * found[0][1], 64 * found[1][1], "bf16")


LOSSES = (F.mse_loss, F.l1_loss, F.binary_cross_entropy_with_logits, F.cross_entropy)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_target_that_is_stored(loss: Callable[..., Tensor], device: str) -> None:
    x = Tensor(randn(6, 5), device=device)
    target = F.to_bfloat16(F.softmax(Tensor(randn(6, 5, seed=1), device=device)))
    expected = loss(x, target.numpy()).item()
    assert loss(x, target).item() == expected
    assert loss(F.to_bfloat16(x), target).item() == pytest.approx(expected, rel=2e-2)


def test_a_graph_of_what_is_stored(device: str) -> None:
    step = gpucnn.cuda_graph(lambda x: 2.0 * F.relu(x), device=device)
    for i in range(4):
        x = F.to_bfloat16(Tensor(randn(3, 5, seed=i), device=device))
        np.testing.assert_array_equal(step(x).numpy(), (2.0 * F.relu(x)).numpy())
    assert (step.replays, step.reason) == (1, "")


def test_float64_stays() -> None:
    with gpucnn.precision("bf16"):
        x = Tensor(randn(2, 6, 6, 4, dtype=np.float64))
        y = F.conv2d(x, Tensor(randn(4, 3, 3, 4, dtype=np.float64)))
    assert y.dtype == np.float64


def test_a_batch_of_none(device: str) -> None:
    x = F.to_bfloat16(Tensor(randn(2, 3, 3, 4), device=device))
    x = Tensor._wrap(x.data[:0], device)
    C = Tensor(np.ones(4, np.float32), device=device)
    for y in (F.batch_norm(x, C, C, None, None, training=True), F.relu(x), F.max_pool2d(x, 1)):
        assert (y.shape, y.dtype) == ((0, 3, 3, 4), gpucnn.bfloat16)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 2), nn.Sigmoid(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(6, 5),
    )  # fmt: skip


def shapenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.LeakyReLU(), nn.Dropout2d(0.2),
        nn.LocalResponseNorm(3), nn.GELU(), nn.GlobalAvgPool2d(), nn.Linear(8, 5),
    )  # fmt: skip


def resnet() -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Residual(body), nn.ReLU(), nn.GroupNorm(2, 8), nn.PReLU(8),
        nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class UNet(nn.Module):
    """A way down and up again, with what was there before beside it; labels pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.out = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.down(x)
        deep = self.deep(F.max_pool2d(wide, 2))
        return self.out(F.concatenate([self.up(deep), wide]))


class SegNet(nn.Module):
    """Pooling whose indices lead the way back; labels pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.deep = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, indices = F.max_pool2d(self.down(x), 2, return_indices=True)
        y = F.relu(self.deep(y))
        y = F.avg_unpool2d(F.avg_pool2d(y, 2), 2) + y
        return self.out(F.max_unpool2d(y, indices, 2))


NETS: list[Callable[[], nn.Module]] = [lenet, shapenet, resnet, UNet, SegNet]
nets = pytest.mark.parametrize("make", NETS)


def trained(make: Callable[[], nn.Module], device: str, precision: str) -> dict[str, np.ndarray]:
    """The loss, gradients and statistics of one step, and the parameters after it."""
    gpucnn.seed(5)
    model = make().to(device).train()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = Tensor(randn(4, 8, 8, 3), device=device)
    with gpucnn.precision(precision):
        logits = model(x)
        labels = np.arange(logits.size // 5, dtype=np.int32).reshape(logits.shape[:-1]) % 5
        loss = F.cross_entropy(logits, Tensor(labels, device=device))
        loss.backward()
        stored = gpucnn.bfloat16 if precision == "bf16" else np.float32
        assert logits.dtype == stored
    found: dict[str, Any] = {"loss": loss.numpy()}
    for name, p in model.named_parameters():
        assert p.grad is not None
        assert (p.dtype, p.grad.dtype) == (np.float32, np.float32)
        found[f"{name}.grad"] = p.grad.numpy().copy()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert value.dtype.kind == "i" or value.dtype == np.float32
        found[name] = np.array(value)
    return found


def test_the_bar_is_what_it_says() -> None:
    half_a_step = 2**-8 / (1 + 2**-8)
    assert half_a_step < BARS["bfloat16 storage"].rtol < half_a_step + 2e-4


@nets
def test_a_step_is_the_same_on_every_device(make: Any, kernel_device: str) -> None:
    """But for numbers that lie half way between two, and go up here and down there."""
    expected, actual = trained(make, "cpu", "bf16"), trained(make, kernel_device, "bf16")
    for name, e in expected.items():
        scale = max(float(np.abs(e).max()), 1e-2)
        assert_close(actual[name] / scale, e / scale, "bf16", what=name)


@nets
def test_a_step_is_near_that_of_float32(make: Any) -> None:
    expected, actual = trained(make, "cpu", "fp32"), trained(make, "cpu", "bf16")
    assert abs(actual["loss"] - expected["loss"]) < 0.02
    assert any((actual[name] != e).any() for name, e in expected.items())
    for name in (n for n in expected if n.endswith(".grad")):
        a, e = actual[name].ravel(), expected[name].ravel()
        if np.linalg.norm(e) > 1e-3:
            assert a @ e > 0.97 * np.linalg.norm(a) * np.linalg.norm(e), name


@nets
def test_the_same_bits_every_time(make: Any, device: str) -> None:
    first, second = (trained(make, device, "bf16") for _ in range(2))
    assert all((first[name] == second[name]).all() for name in first)


def test_a_graph_replays_the_bits_of_eager_steps(device: str) -> None:
    with gpucnn.precision("bf16"):
        run = Run("small", device, graph=True)
        run.steps(0, 8)
        assert (run.step.replays, run.step.reason) == (5, "")
        assert run.trace() == trace("small", device, False, 8)


@pytest.mark.usefixtures("cuda_path")
@pytest.mark.emulated
@pytest.mark.parametrize("make", [shapenet, UNet])
def test_the_cuda_path_computes_with_kernels_alone(make: Any) -> None:
    cuda, emulated = trained(make, "cuda", "bf16"), trained(make, "emulated", "bf16")
    for name, value in emulated.items():
        np.testing.assert_array_equal(cuda[name], value, err_msg=name)


def test_a_buffer_in_bfloat16_is_loaded_and_drawn() -> None:
    module = nn.Module()
    module.level = F.to_bfloat16(Tensor(randn(2, 3)))
    state = module.state_dict()
    module.load_state_dict({"level": state["level"] * 2})
    assert (module.level.numpy() == state["level"] * 2).all()
    nn.init.uniform_(module.level, 0.5)
    assert 0.01 < np.abs(module.level.numpy()).max() <= 0.5
