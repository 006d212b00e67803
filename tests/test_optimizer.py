"""SGD, Adagrad, Adadelta, RMSprop, Lion: loops -> steps -> kernels; PyTorch's trajectories.

And what all optimizers have in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import OPTIMIZER
from gpucnn.ops.optimizer import (
    adadelta_step,
    adagrad_step,
    ema_step,
    lion_step,
    rmsprop_step,
    sgd_step,
)
from gpucnn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    AMSGrad,
    Lion,
    Nadam,
    Optimizer,
    RMSprop,
)
from gpucnn.primitive import Primitive
from tests.optimizers import (
    DECAYS,
    RATES,
    Config,
    check_step,
    continue_to_the_bit,
    drawn,
    float64_numbers,
    follow_pytorch,
    follow_the_definition,
    follow_the_formula,
    parameters,
    parametrize,
    set_gradients,
)
from tests.support import assert_close, needs_torch, on, randn

__all__ = ["float64_numbers"]

CONFIGS: list[Config] = [
    ("sgd", SGD, {"lr": 0.05}),
    ("sgd decay", SGD, {"lr": 0.05, "weight_decay": 0.1}),
    ("momentum", SGD, {"lr": 0.02, "momentum": 0.9}),
    (
        "nesterov",
        SGD,
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ),
    ("adagrad", Adagrad, {}),
    (
        "adagrad decay",
        Adagrad,
        {"lr": 0.1, "lr_decay": 0.02, "weight_decay": 0.1, "initial_accumulator_value": 0.3},
    ),
    ("adadelta", Adadelta, {}),
    ("adadelta decay", Adadelta, {"lr": 0.5, "rho": 0.8, "eps": 1e-4, "weight_decay": 0.1}),
    ("rmsprop", RMSprop, {}),
    ("rmsprop momentum", RMSprop, {"alpha": 0.9, "momentum": 0.8, "weight_decay": 0.1}),
    ("rmsprop centered", RMSprop, {"eps": 1e-3, "centered": True}),
    ("rmsprop all", RMSprop, {"eps": 1e-3, "centered": True, "momentum": 0.7}),
    ("lion", Lion, {"lr": 0.01}),
    ("lion decay", Lion, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
configs = parametrize(CONFIGS)

FRACTIONS, EPS = [0.0, 0.5, 0.9], [1e-8, 1e-3]
OPTIONS: dict[type[Optimizer], st.SearchStrategy[dict[str, Any]]] = {
    SGD: drawn(
        lr=RATES, momentum=FRACTIONS, nesterov=[False, True], weight_decay=DECAYS
    ).filter(lambda o: o["momentum"] > 0 or not o["nesterov"]),
    Adagrad: drawn(
        lr=RATES, lr_decay=[0.0, 0.1], weight_decay=DECAYS, eps=EPS,
        initial_accumulator_value=[0.0, 0.3],
    ),
    Adadelta: drawn(lr=[0.0, 0.5, 1.0], rho=FRACTIONS, weight_decay=DECAYS, eps=EPS),
    RMSprop: drawn(
        lr=RATES, alpha=[0.5, 0.9, 0.99], weight_decay=DECAYS, eps=EPS, momentum=FRACTIONS,
        centered=[False, True],
    ),
}  # fmt: skip

ALL = [Adagrad, Adadelta, Adam, Adamax, AMSGrad, Lion, Nadam, RMSprop, SGD]

STEPS: list[
    tuple[Primitive, int, tuple[Any, ...]]
] = [  # (step, its states, its numbers and options)
    (sgd_step, 1, ((0.1, 0.9, 0.1, 1.0),)),
    (adagrad_step, 1, ((0.1, 1e-3, 0.1),)),
    (adadelta_step, 2, ((0.1, 0.9, 1e-3, 0.1),)),
    (rmsprop_step, 3, ((0.1, 0.9, 1e-3, 0.5, 0.1, 1.0),)),
    (lion_step, 1, ((0.1, 0.9, 0.99, 0.99),)),
    (ema_step, 0, ((0.1,),)),
]


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@parametrize([c for c in CONFIGS if c[1] is not Lion])
def test_100_steps_of_pytorch(ours: type[Optimizer], options: dict[str, Any]) -> None:
    follow_pytorch(ours, options, 100)


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@pytest.mark.parametrize("ours", OPTIONS)
@given(data=st.data())
def test_drawn_options_follow_pytorch(ours: type[Optimizer], data: st.DataObject) -> None:
    follow_pytorch(ours, data.draw(OPTIONS[ours]), 8)


@configs
def test_steps_are_the_formulas(ours: type[Optimizer], options: dict[str, Any]) -> None:
    follow_the_formula(ours, options)


@configs
def test_kernels_follow_the_definition(
    ours: type[Optimizer], options: dict[str, Any], kernel_device: str
) -> None:
    follow_the_definition(ours, options, kernel_device)


@configs
def test_state_continues_to_the_bit(ours: type[Optimizer], options: dict[str, Any]) -> None:
    continue_to_the_bit(ours, options)


@pytest.mark.parametrize("n", OPTIMIZER)
@pytest.mark.parametrize(("step", "states", "numbers"), STEPS, ids=[s[0].name for s in STEPS])
def test_kernel_tails(
    step: Primitive, states: int, numbers: tuple[Any, ...], n: int, kernel_device: str
) -> None:
    check_step(step, states, numbers, n, kernel_device)


def test_sgd_kernel_without_momentum(kernel_device: str) -> None:
    p, g = randn(7), randn(7, seed=1)
    arrays = on(kernel_device, p.copy(), g, np.array([0.1, 0.0, 0.1, 0.0], np.float32))
    sgd_step.on(kernel_device)(arrays[0], None, *arrays[1:])
    assert_close(arrays[0], p - 0.1 * (g + 0.1 * p.astype(np.float64)), "float32")


@pytest.mark.parametrize("ours", ALL)
def test_nan_gradients_are_not_hidden(ours: type[Optimizer], device: str) -> None:
    p = gpucnn.Tensor(randn(6), requires_grad=True, device=device)
    g = randn(6, seed=1)
    g[4] = np.nan
    before = p.numpy().copy()
    optimizer = ours([p], lr=0.1)
    for _ in range(2):
        p.grad = None
        p.backward(g)
        optimizer.step()
    assert np.isnan(p.numpy()).tolist() == [False] * 4 + [True, False]
    assert (p.numpy()[:4] != before[:4]).all()


def test_zero_gradients_move_nothing(device: str) -> None:
    for ours in ALL:
        p = gpucnn.Tensor(randn(3), requires_grad=True, device=device)
        optimizer = ours([p], lr=0.1)
        p.backward(np.zeros(3, np.float32))
        optimizer.step()
        assert_close(p.numpy(), randn(3), "exact", what=ours.__name__)


def test_centered_rmsprop_of_a_constant_gradient_stays_finite(device: str) -> None:
    """s − m² is 0 up to rounding, and may be rounded below it."""
    p = gpucnn.Tensor(np.zeros(64, np.float32), requires_grad=True, device=device)
    g = randn(64)
    optimizer = RMSprop([p], lr=1e-6, alpha=0.1, centered=True)
    for _ in range(20):
        p.grad = None
        p.backward(g)
        optimizer.step()
    assert np.isfinite(p.numpy()).all()


def test_parameters_without_gradient_are_left_alone() -> None:
    params = parameters("cpu")
    optimizer = Adam(params, lr=0.1)
    set_gradients(params, 0)
    optimizer.step()
    before = [p.numpy().copy() for p in params]
    params[0].grad = params[2].grad = None
    optimizer.step()
    changed = [not np.array_equal(p.numpy(), b) for p, b in zip(params, before, strict=True)]
    assert changed == [False, True, False, True]


def test_gradients_accumulate_into_the_flat_buffer() -> None:
    params = parameters("cpu")
    SGD(params, lr=1.0)
    set_gradients(params, 0)
    first = [p.grad.numpy().copy() for p in params]
    for p in params:
        p.backward(np.ones(p.shape, np.float32))
    for p, f in zip(params, first, strict=True):
        assert p.grad.data is p._gradient_home.array
        assert_close(p.grad.numpy(), f + 1, "float32")


def bad(build: Callable[[list[gpucnn.Tensor]], Any], error: type[Exception], match: str) -> Any:
    return pytest.param(build, error, match, id=match)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        bad(lambda p: SGD([], 0.1), ValueError, "params must hold at least one"),
        bad(lambda p: SGD([p[0], p[0]], 0.1), ValueError, "twice"),
        bad(lambda p: SGD([1.0], 0.1), TypeError, r"params\[0\] must be a Tensor"),
        bad(lambda p: SGD([p[0].detach()], 0.1), ValueError, r"params\[0\] must be a leaf"),
        bad(lambda p: SGD(p, -0.1), ValueError, "lr must be"),
        bad(lambda p: SGD(p, float("nan")), ValueError, "lr must be"),
        bad(lambda p: SGD(p, 0.1, momentum=1.0), ValueError, "momentum must be"),
        bad(lambda p: SGD(p, 0.1, nesterov=True), ValueError, "nesterov=True needs"),
        bad(lambda p: Adam(p, betas=(0.9, 1.0)), ValueError, r"betas\[1\] must be"),
        bad(lambda p: Adam(p, betas=0.9), ValueError, "betas must be a pair"),
        bad(lambda p: Adam(p, eps=-1), ValueError, "eps must be"),
        bad(lambda p: AdamW(p, weight_decay=-1), ValueError, "weight_decay must be"),
        bad(lambda p: Adam(p).load_state_dict({}), ValueError, "entries differ"),
        bad(lambda p: Adagrad(p, lr_decay=-1), ValueError, "lr_decay must be"),
        bad(
            lambda p: Adagrad(p, initial_accumulator_value=-1),
            ValueError,
            "initial_accumulator_value must be",
        ),
        bad(lambda p: Adadelta(p, rho=1.0), ValueError, "rho must be"),
        bad(lambda p: RMSprop(p, alpha=-0.1), ValueError, "alpha must be"),
        bad(lambda p: RMSprop(p, momentum=1.0), ValueError, "momentum must be"),
        bad(lambda p: Nadam(p, momentum_decay=-1), ValueError, "momentum_decay must be"),
        bad(lambda p: Lion(p, betas=(1.0, 0.9)), ValueError, r"betas\[0\] must be"),
        bad(lambda p: Adam([p[0], {"params": p[1:]}]), TypeError, "params must hold tensors or"),
        bad(lambda p: Adam([{"lr": 0.1}]), ValueError, r"params\[0\] must have an entry"),
        bad(lambda p: Adam([{"params": []}]), ValueError, "got only empty groups"),
        bad(
            lambda p: Adam([{"params": p, "momentum": 0.9}]),
            ValueError,
            r"params\[0\]: 'momentum' is no option of Adam",
        ),
        bad(lambda p: Adam([{"params": p, "lr": -1}]), ValueError, "lr must be"),
        bad(lambda p: Adam([{"params": p[:1]}, {"params": p[0]}]), ValueError, "a tensor twice"),
    ],
)
def test_bad_arguments(build: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build(parameters("cpu"))


@needs_torch
def test_a_moved_parameter_is_noticed() -> None:
    params = parameters("cpu")
    optimizer = SGD(params, lr=0.1)
    SGD(params, lr=0.1)
    set_gradients(params, 0)
    with pytest.raises(RuntimeError, match=r"params\[0\] has been moved"):
        optimizer.step()
