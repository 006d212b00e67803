"""What the tests of the optimizers share: parameters, textbook formulas, and the comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import gpucnn
from gpucnn.optim import (
    SGD,
    Adadelta,
    Adagrad,
    Adamax,
    AdamW,
    AMSGrad,
    Lion,
    Nadam,
    Optimizer,
    RMSprop,
)
from gpucnn.primitive import Primitive
from tests.support import assert_close, on, randn, torch

Config = tuple[str, type[Optimizer], dict[str, Any]]

SHAPES = [(3, 5), (7,), (1,), (2, 3, 3, 4)]


def parametrize(configs: Sequence[Config]) -> pytest.MarkDecorator:
    """``ours, options`` of each configuration."""
    names = [c[0] for c in configs]
    return pytest.mark.parametrize(("ours", "options"), [c[1:] for c in configs], ids=names)


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


def follow_pytorch(ours: type[Optimizer], options: dict[str, Any], steps: int) -> None:
    """As many steps beside PyTorch's optimizer, in float64."""
    params = parameters("cpu", np.float64)
    tensors = [torch.tensor(p.numpy().copy(), requires_grad=True) for p in params]
    optimizer, theirs = ours(params, **options), reference(ours, tensors, options)
    for step in range(steps):
        optimizer.zero_grad()
        set_gradients(params, step)
        for p, t in zip(params, tensors, strict=True):
            t.grad = torch.tensor(p.grad.numpy().copy())
        optimizer.step()
        theirs.step()
    for p, t in zip(params, tensors, strict=True):
        assert_close(p.numpy(), t.detach().numpy(), "float64", 100)


def follow_the_formula(ours: type[Optimizer], options: dict[str, Any]) -> None:
    """100 steps of six parameters, each beside :func:`loops`."""
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


def follow_the_definition(
    ours: type[Optimizer], options: dict[str, Any], kernel_device: str
) -> None:
    """Three steps of the kernels beside those of the definitions."""
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


def continue_to_the_bit(ours: type[Optimizer], options: dict[str, Any]) -> None:
    """Ten steps equal five, the state saved and loaded, and five more."""

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


def check_step(
    step: Primitive, states: int, numbers: tuple[Any, ...], n: int, kernel_device: str
) -> None:
    """One step of n elements on a device beside the definition: p, its states, g.

    numbers: those of the step, which are device data, and its other arguments.
    """
    # the first state is far above the square of the second: no cancellation when centered
    buffers = [np.abs(randn(n, seed=9 + i)) / 2 + (20 if i == 0 else 1) for i in range(states)]
    given = [randn(n), *buffers, randn(n, seed=1)]
    wide = [a.astype(np.float64) for a in given]
    first, *options = numbers
    step(*wide, np.array(first), *options)
    arrays = on(kernel_device, *(a.copy() for a in given))
    step.on(kernel_device)(*arrays, *on(kernel_device, np.array(first, np.float32)), *options)
    for a, e in zip(arrays, wide, strict=True):
        assert_close(a, e, "float32")


def drawn(**values: Sequence[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Options, each one of its values."""
    return st.fixed_dictionaries({name: st.sampled_from(v) for name, v in values.items()})


RATES, DECAYS = [0.0, 1e-3, 0.05], [0.0, 0.01, 0.3]
