"""Optimizers: obvious loops -> steps -> kernels; PyTorch's trajectories beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import OPTIMIZER
from gpucnn.ops.adam import AdamStep, adam_step, adamax_step, nadam_step
from gpucnn.ops.optimizer import (
    SGDStep,
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
from tests.support import assert_close, needs_torch, on, randn, torch

SHAPES = [(3, 5), (7,), (1,), (2, 3, 3, 4)]

CONFIGS: list[tuple[str, type[Optimizer], dict[str, Any]]] = [
    ("sgd", SGD, {"lr": 0.05}),
    ("sgd decay", SGD, {"lr": 0.05, "weight_decay": 0.1}),
    ("momentum", SGD, {"lr": 0.02, "momentum": 0.9}),
    (
        "nesterov",
        SGD,
        {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05},
    ),
    ("adam", Adam, {"lr": 0.01}),
    (
        "adam decay",
        Adam,
        {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
    ),
    ("adamw", AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    ("amsgrad", AMSGrad, {"lr": 0.02, "betas": (0.8, 0.9), "weight_decay": 0.1}),
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
    ("adamax", Adamax, {}),
    ("adamax decay", Adamax, {"lr": 0.01, "betas": (0.8, 0.9), "weight_decay": 0.1}),
    ("nadam", Nadam, {}),
    ("nadam decay", Nadam, {"lr": 0.01, "weight_decay": 0.1, "momentum_decay": 1.0}),
    ("nadamw", Nadam, {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("lion", Lion, {"lr": 0.01}),
    ("lion decay", Lion, {"lr": 0.01, "betas": (0.8, 0.95), "weight_decay": 0.1}),
]
configs = pytest.mark.parametrize(
    ("ours", "options"), [c[1:] for c in CONFIGS], ids=[c[0] for c in CONFIGS]
)


def parameters(device: str, dtype: Any = np.float32) -> list[gpucnn.Tensor]:
    return [
        gpucnn.Tensor(randn(*s, seed=i, dtype=dtype), requires_grad=True, device=device)
        for i, s in enumerate(SHAPES)
    ]


def set_gradients(params: list[gpucnn.Tensor], step: int) -> None:
    """Through the tape, as training does: d/dp of the sum of p times noise."""
    for i, p in enumerate(params):
        p.grad = None
        p.backward(randn(*p.shape, seed=100 * step + i, dtype=p.dtype) + p.numpy())


def reference(ours: type[Optimizer], tensors: list[Any], options: dict[str, Any]) -> Any:
    """PyTorch's optimizer of the same options."""
    name = {AMSGrad: "Adam", Nadam: "NAdam"}.get(ours, ours.__name__)
    extra = {"amsgrad": True} if ours is AMSGrad else {}
    return getattr(torch.optim, name)(tensors, **options, **extra)


@pytest.fixture
def float64_numbers() -> Iterator[None]:
    """PyTorch keeps Nadam's product of momenta in its default dtype."""
    if torch is None:
        yield
        return
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@needs_torch
@pytest.mark.usefixtures("float64_numbers")
@pytest.mark.parametrize(
    ("ours", "options"),
    [c[1:] for c in CONFIGS if c[1] is not Lion],
    ids=[c[0] for c in CONFIGS if c[1] is not Lion],
)
def test_100_steps_of_pytorch(ours: type[Optimizer], options: dict[str, Any]) -> None:
    params = parameters("cpu", np.float64)
    tensors = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]
    optimizer, theirs = ours(params, **options), reference(ours, tensors, options)
    for step in range(100):
        optimizer.zero_grad()
        set_gradients(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        optimizer.step()
        theirs.step()
    for p, t in zip(params, tensors, strict=True):
        assert_close(p.numpy(), t.detach().numpy(), "float64", 100)


def loops(ours: type[Optimizer], o: dict[str, Any]) -> Callable[[float, float, int], float]:
    """The textbook formula of one parameter: (p, g, t) -> p, with its state inside."""
    lr, wd = o["lr"], o["weight_decay"]
    b1, b2 = o.get("betas", (0.0, 0.0))
    eps = o.get("eps", 0.0)
    m = v = u = w = 0.0
    s = o.get("initial_accumulator_value", 0.0)
    product = 1.0

    def momentum(t: int) -> float:
        return float(b1 * (1 - 0.5 * 0.96 ** (t * o["momentum_decay"])))

    def step(p: float, g: float, t: int) -> float:
        nonlocal m, v, u, w, s, product
        decoupled = ours in (AdamW, Lion) or o.get("decoupled_weight_decay", False)
        p, g = (p * (1 - lr * wd), g) if decoupled else (p, g + wd * p)
        if ours is SGD:
            v = o["momentum"] * v + g
            return p - lr * (g + o["momentum"] * v if o["nesterov"] else v)
        if ours is Adagrad:
            s += g * g
            return p - lr / (1 + (t - 1) * o["lr_decay"]) * g / (math.sqrt(s) + eps)
        if ours is Adadelta:
            rho = o["rho"]
            s = rho * s + (1 - rho) * g * g
            d = g * math.sqrt(u + eps) / math.sqrt(s + eps)
            u = rho * u + (1 - rho) * d * d
            return p - lr * d
        if ours is RMSprop:
            alpha = o["alpha"]
            s = alpha * s + (1 - alpha) * g * g
            m = alpha * m + (1 - alpha) * g
            root = math.sqrt(s - m * m if o["centered"] else s)
            v = o["momentum"] * v + g / (root + eps)
            return p - lr * v
        if ours is Lion:
            p -= lr * np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
            return p
        m = b1 * m + (1 - b1) * g
        if ours is Adamax:
            u = max(b2 * u, abs(g) + eps)
            return p - lr / (1 - b1**t) * m / u
        v = b2 * v + (1 - b2) * g * g
        w = max(w, v) if ours is AMSGrad else v
        root = math.sqrt(w / (1 - b2**t)) + eps
        if ours is Nadam:
            product *= momentum(t)
            after = product * momentum(t + 1)
            gradient = (1 - momentum(t)) / (1 - product) * g
            return p - lr * (gradient + momentum(t + 1) / (1 - after) * m) / root
        return p - lr * m / (1 - b1**t) / root

    return step


@configs
def test_steps_are_the_formulas(ours: type[Optimizer], options: dict[str, Any]) -> None:
    p = gpucnn.Tensor(randn(2, 3, dtype=np.float64), requires_grad=True)
    optimizer = ours([p], **options)
    formulas = [loops(ours, {**optimizer.param_groups[0], **options}) for _ in range(p.size)]
    expected = p.numpy().reshape(-1).copy()
    for t in range(1, 101):
        g = randn(2, 3, seed=t, dtype=np.float64)
        for i, formula in enumerate(formulas):
            expected[i] = formula(expected[i], g.reshape(-1)[i], t)
        p.grad = None
        p.backward(g)
        optimizer.step()
    assert_close(p.numpy().reshape(-1), expected, "float64", 100)


@configs
def test_kernels_follow_the_definition(
    ours: type[Optimizer], options: dict[str, Any], kernel_device: str
) -> None:
    runs = []
    for device in ("cpu", kernel_device):
        params = parameters(device)
        optimizer = ours(params, **options)
        for step in range(3):
            set_gradients(params, step)
            optimizer.step()
        runs.append([p.numpy() for p in params])
    for a, e in zip(runs[1], runs[0], strict=True):
        assert_close(a, e, "float32", 3)


ALL = [Adagrad, Adadelta, Adam, Adamax, AMSGrad, Lion, Nadam, RMSprop, SGD]

STEP = AdamStep(0.1, 0.9, 0.99, 1e-8, 0.1, True, 3)
STEPS: list[tuple[Primitive, int, tuple[Any, ...]]] = [  # (step, its states, its numbers)
    (sgd_step, 1, (SGDStep(0.1, 0.9, 0.1, True),)),
    (adagrad_step, 1, (0.1, 1e-3, 0.1)),
    (adadelta_step, 2, (0.1, 0.9, 1e-3, 0.1)),
    (rmsprop_step, 3, (0.1, 0.9, 1e-3, 0.5, 0.1)),
    (lion_step, 1, (0.1, 0.9, 0.99, 0.1)),
    (ema_step, 0, (0.9,)),
    (adam_step, 3, (STEP,)),
    (nadam_step, 2, (0.2, 0.3, STEP)),
    (adamax_step, 2, (STEP,)),
]


@pytest.mark.parametrize("n", OPTIMIZER)
@pytest.mark.parametrize(("step", "states", "numbers"), STEPS, ids=[s[0].name for s in STEPS])
def test_kernel_tails(
    step: Primitive, states: int, numbers: tuple[Any, ...], n: int, kernel_device: str
) -> None:
    # the first state is far above the square of the second: no cancellation when centered
    buffers = [np.abs(randn(n, seed=9 + i)) / 2 + (20 if i == 0 else 1) for i in range(states)]
    given = [randn(n), *buffers, randn(n, seed=1)]
    wide = [a.astype(np.float64) for a in given]
    step(*wide, *numbers)
    arrays = on(kernel_device, *(a.copy() for a in given))
    step.on(kernel_device)(*arrays, *numbers)
    for a, e in zip(arrays, wide, strict=True):
        assert_close(a, e, "float32")


def test_sgd_kernel_without_momentum(kernel_device: str) -> None:
    p, g = randn(7), randn(7, seed=1)
    arrays = on(kernel_device, p.copy(), g)
    sgd_step.on(kernel_device)(arrays[0], None, arrays[1], SGDStep(0.1, 0.0, 0.1, False))
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
        assert p.grad.data is p._gradient_home
        assert_close(p.grad.numpy(), f + 1, "float32")


@configs
def test_state_continues_to_the_bit(ours: type[Optimizer], options: dict[str, Any]) -> None:
    def run(steps: range, state: Any = None) -> tuple[list[np.ndarray], dict[str, Any]]:
        params = parameters("cpu")
        optimizer = ours(params, **options)
        if state is not None:
            for p, a in zip(params, state[0], strict=True):
                p.data[...] = a
            optimizer.load_state_dict(state[1])
        for step in steps:
            set_gradients(params, step)
            optimizer.step()
        return [p.numpy().copy() for p in params], optimizer.state_dict()

    whole, half = run(range(10)), run(range(5))
    rest = run(range(5, 10), half)
    assert all(np.array_equal(a, b) for a, b in zip(whole[0], rest[0], strict=True))
    assert all(np.array_equal(whole[1][k], rest[1][k]) for k in whole[1])


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
