"""Modules, initialisation and models."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import models, nn
from gpucnn import random as gpucnn_random
from gpucnn.nn import conv
from tests.support import randn


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding="same"),
        nn.BatchNorm2d(2),
        nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
        nn.Flatten(),
        nn.Linear(2 * 2 * 2, 3),
    )


def test_names_order_and_shapes() -> None:
    model = small()
    assert {n: p.shape for n, p in model.named_parameters()} == {
        "0.weight": (2, 3, 3, 1),
        "0.bias": (2,),
        "1.weight": (2,),
        "1.bias": (2,),
        "4.weight": (3, 8),
        "4.bias": (3,),
    }
    assert [n for n, _ in model.named_buffers()] == ["1.running_mean", "1.running_var"]
    assert [n for n, _ in model.named_modules()] == ["", "0", "1", "2", "2.0", "2.1", "3", "4"]
    assert model(gpucnn.Tensor(randn(2, 4, 4, 1))).shape == (2, 3)
    assert len(model) == 5
    assert isinstance(model[-1], nn.Linear)
    assert len(model[:2]) == 2
    assert isinstance(next(iter(model)), nn.Conv2d)


def test_own_modules_and_shared_parameters() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            self.inner = nn.Linear(3, 3)
            self.again = self.inner

        def forward(self, x: Any) -> Any:
            return self.again(self.inner(x))

    model = Twice()
    assert [n for n, _ in model.named_parameters()] == ["inner.weight", "inner.bias"]
    assert model(gpucnn.Tensor(randn(2, 3))).shape == (2, 3)


def test_train_and_eval_reach_every_module() -> None:
    model = small()
    assert model.training
    assert not any(m.training for _, m in model.eval().named_modules())
    assert all(m.training for _, m in model.train().named_modules())


def test_state_dict_round_trip() -> None:
    a, b = small(), small()
    state = a.state_dict()
    b.load_state_dict(state)
    assert all(np.array_equal(state[k], v) for k, v in b.state_dict().items())
    state["0.weight"][...] = 7
    assert not np.any(a.state_dict()["0.weight"] == 7), "a state dict is a copy"
    home = b[0].weight.data
    b.load_state_dict(state)
    assert b[0].weight.data is home, "values are copied in place, where an optimizer sees them"


def test_state_dict_that_does_not_fit() -> None:
    model, state = small(), small().state_dict()
    before = model.state_dict()
    with pytest.raises(ValueError, match=r"missing 0\.bias; unknown extra"):
        model.load_state_dict({k: v for k, v in state.items() if k != "0.bias"} | {"extra": 1})
    with pytest.raises(ValueError, match=r"state\['4\.bias'\] must have shape \(3,\)"):
        model.load_state_dict(state | {"4.bias": np.zeros(4)})
    assert all(np.array_equal(before[k], v) for k, v in model.state_dict().items())
    model.load_state_dict({"4.bias": np.ones(3)}, strict=False)
    assert model[-1].bias.numpy().tolist() == [1, 1, 1]


def test_same_seed_same_weights() -> None:
    def weights(seed: int) -> list[np.ndarray]:
        gpucnn.seed(seed)
        return [p.numpy().copy() for p in small().parameters()]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("fill", "std"),
    [
        (nn.init.kaiming_normal_, np.sqrt(2 / (9 * 16))),
        (nn.init.kaiming_uniform_, np.sqrt(2 / (9 * 16))),
        (nn.init.xavier_normal_, np.sqrt(2 / (9 * 16 + 9 * 64))),
        (nn.init.xavier_uniform_, np.sqrt(2 / (9 * 16 + 9 * 64))),
        (lambda t: nn.init.kaiming_normal_(t, "linear"), np.sqrt(1 / (9 * 16))),
    ],
)
def test_initialisation_has_the_right_spread(fill: Any, std: float) -> None:
    weight = nn.Parameter(np.zeros((64, 3, 3, 16), np.float32))
    values = fill(weight).numpy()
    assert abs(values.mean()) < 4 * std / np.sqrt(values.size)
    assert values.std() == pytest.approx(std, rel=0.03)


def test_default_initialisation_is_pytorchs() -> None:
    conv, linear = nn.Conv2d(8, 64, 3, groups=2), nn.Linear(50, 40)
    for tensor, fan_in in [(conv.weight, 36), (conv.bias, 36), (linear.weight, 50)]:
        bound = 1 / np.sqrt(fan_in)
        values = tensor.numpy()
        assert np.abs(values).max() <= bound
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.25)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: nn.Conv2d(0, 4, 3), ValueError, "in_channels must be >= 1"),
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups must divide"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "padding must be numbers"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "padding must be >= 0"),
        (lambda: nn.Conv2d(3, 4, 2.5), TypeError, "kernel_size must be an integer"),
        (lambda: nn.Linear(3, 0), ValueError, "out_features must be >= 1"),
        (lambda: nn.MaxPool2d(2, edge="wrap"), ValueError, "edge must be"),
        (lambda: nn.BatchNorm2d(0), ValueError, "num_features must be >= 1"),
        (lambda: nn.BatchNorm2d(3, eps=-1), ValueError, "eps must be"),
        (
            lambda: nn.BatchNorm1d(3)(gpucnn.Tensor(randn(2, 2, 2, 3))),
            ValueError,
            r"shape \(N, C\) or \(N, L, C\), C = 3, got \(2, 2, 2, 3\)",
        ),
        (lambda: nn.BatchNorm2d(3)(gpucnn.Tensor(randn(2, 2, 2, 4))), ValueError, "C = 3"),
        (lambda: nn.BatchNorm2d(3, eps=0), ValueError, "eps must be"),
        (lambda: nn.BatchNorm2d(3, momentum=1.5), ValueError, "momentum must be"),
        (lambda: nn.Sequential(3), TypeError, r"layers\[0\] must be a Module"),
        (lambda: nn.init.xavier_normal_(nn.Parameter(randn(3))), ValueError, "2 dimensions"),
        (
            lambda: nn.init.kaiming_normal_(nn.Parameter(randn(3, 3)), "swish"),
            ValueError,
            "nonlinearity must be one of",
        ),
        (lambda: models.create("resnet"), ValueError, "model must be one of"),
        (lambda: models.create("shapnet"), ValueError, "did you mean shapenet"),
        (lambda: gpucnn_random.seed(-1), ValueError, "seed must be >= 0"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build()


def test_repr() -> None:
    assert repr(small()).startswith("Sequential(\n  (0): Conv2d(1, 2, kernel_size=(3, 3)")
    assert "(2): Sequential(\n    (0): ReLU()" in repr(small())


def test_docstring_examples() -> None:
    assert doctest.testmod(conv).attempted > 0
    assert doctest.testmod(conv).failed == 0


@pytest.mark.emulated
def test_to_moves_everything() -> None:
    model = small().to("emulated")
    assert {t.device for t in [*model.parameters(), *(b for _, b in model.named_buffers())]} == {
        "emulated"
    }
    assert model(gpucnn.Tensor(randn(2, 4, 4, 1), device="emulated")).device == "emulated"
