"""Steps recorded and replayed: the bits of eager steps, and what is recorded anew or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, nn, optim
from gpucnn import functional as F
from gpucnn.kernel import observe_launches
from gpucnn.misuse import MisuseWarning
from gpucnn.optim import Optimizer
from tests.graphs import Run, trace
from tests.support import randn


@pytest.mark.parametrize("net", ["small", "lenet5"])
def test_22_steps_are_those_of_eager_training(net: str, device: str) -> None:
    run = Run(net, device, graph=True)
    run.steps(0, 22)
    assert (run.step.replays, run.step.reason) == (19, "")
    eager = trace(net, device, False, 22)
    recorded = run.trace()
    assert recorded.outputs == eager.outputs
    assert recorded.state == eager.state
    assert recorded.counters == eager.counters
    assert len(set(eager.outputs)) > 20


def test_half_eager_half_recorded(device: str) -> None:
    """State goes from one to the other: steps, moments, positions of random numbers."""
    run = Run("small", device, graph=True)
    run.steps(0, 6)
    run.step = run.compute
    run.steps(6, 8)
    run.step = gpucnn.cuda_graph(run.compute)
    run.steps(8, 13)
    assert run.step.replays == 2
    assert run.trace() == trace("small", device, False, 13)


OPTIMIZERS: list[tuple[type[Optimizer], dict[str, Any]]] = [
    (optim.SGD, {}),
    (optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (optim.Adagrad, {"lr_decay": 0.1}),
    (optim.Adadelta, {}),
    (optim.RMSprop, {"centered": True, "momentum": 0.5}),
    (optim.Lion, {"weight_decay": 0.1}),
    (optim.AdamW, {}),
    (optim.AMSGrad, {}),
    (optim.Nadam, {}),
    (optim.Adamax, {}),
]


def descend(
    device: str, graph: bool, make: Callable[[list[Tensor]], Optimizer], change: Any = None
) -> tuple[list[bytes], Any]:
    """Eight steps of two parameters; ``change(optimizer, i)`` before step i."""
    params = [Tensor(randn(n), requires_grad=True, device=device) for n in (70, 5)]
    optimizer = make(params)

    def step(x: Tensor) -> Tensor:
        optimizer.zero_grad()
        loss = (params[0] * x).sum() + (params[1] * params[1]).mean()
        loss.backward()
        optimizer.step()
        return loss

    run = gpucnn.cuda_graph(step) if graph else step
    seen = []
    for i in range(8):
        if change:
            change(optimizer, i)
        seen.append(run(Tensor(randn(70, seed=i), device=device)).numpy().tobytes())
    return [*seen, *(p.numpy().tobytes() for p in params)], run


@pytest.mark.parametrize(("ours", "options"), OPTIMIZERS, ids=[o[0].__name__ for o in OPTIMIZERS])
def test_every_optimizer(ours: type[Optimizer], options: dict[str, Any], device: str) -> None:
    def make(params: list[Tensor]) -> Optimizer:
        return ours([{"params": params[:1]}, {"params": params[1:], "lr": 0.3}], lr=0.1, **options)

    recorded, step = descend(device, True, make)
    assert step.replays == 5
    assert recorded == descend(device, False, make)[0]


def test_options_that_change_between_steps(device: str) -> None:
    """Numbers reach the replay; what changes the launches is recorded anew."""

    def change(optimizer: Optimizer, i: int) -> None:
        optimizer.lr = 0.1 / (1 + i)
        for group in optimizer.param_groups:
            group.update(weight_decay=0.01 * i, momentum=0.9 if i < 6 else 0.5)

    def make(params: list[Tensor]) -> Optimizer:
        return optim.SGD(params, lr=0.1, momentum=0.9)

    recorded, step = descend(device, True, make, change)
    assert step.replays == 5
    assert recorded == descend(device, False, make, change)[0]

    def plain(optimizer: Optimizer, i: int) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if i < 5 else 0.0

    recorded, step = descend(device, True, make, plain)
    assert step.replays == 2
    assert recorded == descend(device, False, make, plain)[0]


def test_shapes_modes_precisions_and_variants_have_graphs_of_their_own(kernel_device: str) -> None:
    gpucnn.seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5))
    model.to(kernel_device)
    forward = gpucnn.cuda_graph(lambda x: model(x))
    plain: dict[Any, Any] = {}

    def check(what: str, shape: tuple[int, ...] = (1, 5, 4, 4)) -> None:
        for i in range(5):
            x = Tensor(randn(*shape, seed=i), device=kernel_device)
            position = gpucnn.random.dropout_generator().position
            y = forward(x).numpy().copy()
            gpucnn.random.dropout_generator().position = position
            assert y.tobytes() == model(x).numpy().tobytes(), what
            plain[what] = y

    check("training")
    assert forward.replays == 2
    check("wider", (2, 5, 4, 4))
    model.eval()
    check("inference")
    with gpucnn.use_variant(conv2d="naive"):
        check("variant")
    with gpucnn.use_variant(conv2d="implicit_gemm"):
        with gpucnn.precision("bf16"):
            check("bf16")
        check("gemm")
    with gpucnn.no_grad():
        check("no_grad")
    with gpucnn.fusion(False):
        check("unfused")
    model.fuse = False
    check("unfused by the model")
    model.fuse = True
    assert forward.replays == 9 * 2
    model.train()
    check("training")
    assert forward.replays == 9 * 2 + 5, "the first graph still holds"
    assert plain["bf16"].tobytes() != plain["gemm"].tobytes()
    assert (plain["training"] == 0).any()
    assert forward.reason == ""


def test_parameters_that_are_replaced(device: str) -> None:
    w = Tensor(randn(4), requires_grad=True, device=device)
    step = gpucnn.cuda_graph(lambda x: (w * x).sum())
    x = Tensor(np.ones(4, np.float32), device=device)
    for _ in range(4):
        step(x)
    w.data = Tensor(np.full(4, 2, np.float32), device=device).data
    assert [step(x).item() for _ in range(4)] == [8, 8, 8, 8]
    assert step.replays == 2


def test_arguments_and_results_of_any_form(device: str) -> None:
    """NumPy arrays become tensors; lists, dicts, numbers and None pass."""

    def step(
        pair: list[Tensor], *, names: dict[str, Tensor], factor: float, nothing: None
    ) -> dict[str, Any]:
        total = pair[0] * factor + names["b"]
        return {"total": total, "rest": (pair[1], 7, nothing)}

    graph = gpucnn.cuda_graph(step, device=device)
    for i in range(6):
        a, b, c = (randn(3, seed=10 * i + j) for j in range(3))
        found = graph([a, c.astype(np.float64)], names={"b": b}, factor=2.0, nothing=None)
        np.testing.assert_array_equal(found["total"].numpy(), 2 * a + b)
        np.testing.assert_array_equal(found["rest"][0].numpy(), c)
        assert found["rest"][1:] == (7, None)
    assert graph.replays == 3
    graph([a, c], names={"b": b}, factor=3.0, nothing=None)
    assert graph.replays == 3, "another number is another graph"
    with pytest.raises(TypeError, match="step must be a function, got int"):
        gpucnn.cuda_graph(3)  # type: ignore[arg-type]


def test_results_are_the_same_tensors_at_each_replay(device: str) -> None:
    step = gpucnn.cuda_graph(lambda x: x * 2.0)
    results = [step(Tensor([float(i)], device=device)) for i in range(5)]
    assert results[2] is results[3] is results[4]
    assert results[0].item() == 0
    assert results[4].item() == 8


def test_gradients_that_add_up_over_steps(device: str) -> None:
    """No zero_grad inside: the gradient lives in the optimizer's buffer."""

    def train(graph: bool) -> bytes:
        w = Tensor(randn(5), requires_grad=True, device=device)
        optimizer = optim.SGD([w], lr=0.1)

        def accumulate(x: Tensor) -> None:
            (w * x).sum().backward()

        run = gpucnn.cuda_graph(accumulate) if graph else accumulate
        for i in range(9):
            run(Tensor(randn(5, seed=i), device=device))
            if i % 4 == 3:
                optimizer.step()
        assert w.grad is not None
        return bytes(w.numpy().tobytes() + w.grad.numpy().tobytes())

    assert train(True) == train(False)


@pytest.mark.parametrize("net", ["small"])
def test_many_steps_in_one_graph(net: str, device: str) -> None:
    run = Run(net, device, graph=False)
    many = gpucnn.cuda_graph(run.compute, steps=3, device=device)
    for i in range(0, 15, 3):
        xs, ys = zip(*(run.data(j) for j in range(i, i + 3)), strict=True)
        batches = np.stack([x.numpy() for x in xs]), np.stack([y.numpy() for y in ys])
        run.outputs += [t.numpy().tobytes() for result in many(*batches) for t in result]
    assert (many.replays, many.reason) == (2, "")
    assert run.trace() == trace(net, device, False, 15)
    with pytest.raises(ValueError, match=r"steps=3 arrays hold 3 batches .*got shape \(2, 5\)"):
        many(np.zeros((2, 5), np.float32), ys)
    with pytest.raises(ValueError, match="steps must be"):
        gpucnn.cuda_graph(run.compute, steps=0)


def test_copies_inside_a_step(device: str) -> None:
    """Losses of each row; statistics that are kept for the backward pass; weights put aside."""
    gpucnn.seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).to(device).eval()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    average = optim.EMA(optimizer, 0.5)

    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        losses = F.cross_entropy(model(x), np.arange(5) % 3, reduction="none")
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        average.update()
        with average.applied():
            return losses, model(x)

    def train(run: Any) -> list[bytes]:
        optimizer.steps, seen = 0, []
        for i in range(7):
            x = Tensor(randn(5, 4, seed=i), device=device)
            seen += [t.numpy().tobytes() for t in run(x)]
        return seen

    before = optimizer._flat.copy()
    expected = train(step)
    optimizer._flat[...] = average._average[...] = before
    optimizer.parameters_changed()
    graph = gpucnn.cuda_graph(step)
    assert train(graph) == expected
    assert (graph.replays, graph.reason) == (4, "")


def test_a_method(device: str) -> None:
    class Scale:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        @gpucnn.cuda_graph
        def apply(self, x: Tensor) -> Tensor:
            """x times the factor."""
            return x * self.factor

    double, triple = Scale(2.0), Scale(3.0)
    for i in range(5):
        x = Tensor([float(i)], device=device)
        assert (double.apply(x).item(), triple.apply(x).item()) == (2 * i, 3 * i)
    assert Scale.apply.replays == double.apply.replays == 4
    assert Scale.apply.__doc__ == "x times the factor."


def test_a_step_inside_a_step(device: str) -> None:
    inner = gpucnn.cuda_graph(lambda x: x * 2.0)
    outer = gpucnn.cuda_graph(lambda x: inner(x) + 1.0)
    assert [outer(Tensor([float(i)], device=device)).item() for i in range(5)] == [1, 3, 5, 7, 9]
    assert (outer.replays, inner.replays) == (2, 0)


def test_errors_pass_and_later_calls_are_recorded(device: str) -> None:
    trouble = [False, True, False, True, False, False, False, False]
    calls = iter(trouble)

    def step(x: Tensor) -> Tensor:
        y = x * 3.0
        if next(calls):
            raise KeyError("mine")
        return y

    graph = gpucnn.cuda_graph(step)
    for i, bad in enumerate(trouble):
        x = Tensor([float(i)], device=device)
        if bad:
            with pytest.raises(KeyError, match="mine"):
                graph(x)
        else:
            assert graph(x).item() == 3 * i
    assert gpucnn.recording.active is None


def test_replays_are_seen_by_observers(kernel_device: str) -> None:
    step = gpucnn.cuda_graph(lambda x: (x * 2.0).sum())
    x = Tensor(randn(5), device=kernel_device)
    counts = []
    for _ in range(4):
        launches: list[Any] = []
        with observe_launches(launches.append):
            step(x)
        counts.append(len(launches))
    assert step.launches == counts[0] > 1
    if kernel_device == "emulated":
        assert counts == [counts[0]] * 4


# ---- what cannot be a graph


def reads_a_value(x: Tensor) -> Any:
    return x * 2.0 if (x * 1.0).sum().item() > 0 else x * 3.0


def prints_a_tensor(x: Tensor) -> Any:
    str(x * 1.0)
    return x * 2.0


def takes_numpy(x: Tensor) -> Any:
    return Tensor((x * 1.0).numpy() * 2, device=x.device)


def asks_for_apart(x: Tensor) -> Any:
    _, at = F.max_pool1d(x.reshape(1, 2, 1), 1, return_indices=True)
    return F.max_unpool1d(x.reshape(1, 2, 1), at, 1, overlap="error").reshape(2)


@pytest.mark.parametrize("step", [reads_a_value, prints_a_tensor, takes_numpy, asks_for_apart])
def test_values_read_on_the_host(step: Callable[[Tensor], Any], device: str) -> None:
    graph = gpucnn.cuda_graph(step)
    inputs = [Tensor([1.0, i - 2.0], device=device) for i in range(5)]
    with pytest.warns(MisuseWarning, match=r"are read on the host \(.*test_graph.py:\d+") as said:
        found = [graph(x).numpy().tolist() for x in inputs]
    assert found == [step(x).numpy().tolist() for x in inputs]
    assert len(said) == 1
    assert graph.replays == 0
    assert step.__name__ in str(said[0].message)


def test_numbers_and_arrays_of_the_host_that_change(device: str) -> None:
    count = 0

    def number(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x * float(count)

    def array(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x + Tensor(np.full(2, count, np.float32), device=device)

    for step, reason in ((number, r"a number that .*affine"), (array, "is not the same in each")):
        count, graph = 0, gpucnn.cuda_graph(step)
        with pytest.warns(MisuseWarning, match=reason) as said:
            found = [graph(Tensor([1.0, 1.0], device=device)).numpy()[0] for _ in range(5)]
        assert found == [1, 2, 3, 4, 5] if step is number else found == [2, 3, 4, 5, 6]
        assert len(said) == 1
        assert said[0].filename == __file__


def test_state_of_the_callers_own(device: str) -> None:
    state = Tensor([0.0], device=device)

    def step(x: Tensor) -> Tensor:
        nonlocal state
        state = state + x
        return state

    graph = gpucnn.cuda_graph(step)
    with pytest.warns(MisuseWarning, match="one that an earlier call made"):
        found = [graph(Tensor([1.0], device=device)).item() for _ in range(5)]
    assert found == [1, 2, 3, 4, 5]


def test_arrays_that_are_kept_now_and_then(device: str) -> None:
    """What an earlier call dropped, and this one keeps, must not be overwritten."""
    kept, count = [], 0

    def step(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        y = x * 2.0
        if count == 3:
            kept.append(y)
        for _ in range(3):
            y = y + 1.0
        return y

    graph = gpucnn.cuda_graph(step)
    with pytest.warns(MisuseWarning, match="keeps an array in one call that it drops"):
        found = [graph(Tensor([float(i)], device=device)).item() for i in range(5)]
    assert found == [3, 5, 7, 9, 11]
    assert kept[0].item() == 4


def test_arguments_with_gradients(device: str) -> None:
    x = Tensor([2.0], requires_grad=True, device=device)

    def step(x: Tensor) -> None:
        (x * x).sum().backward()

    with pytest.warns(MisuseWarning, match="an argument requires a gradient"):
        gpucnn.cuda_graph(step)(x)
    assert x.grad is not None
    assert x.grad.item() == 4


def test_shapes_that_are_others_in_each_call(device: str) -> None:
    step = gpucnn.cuda_graph(lambda x: (x * 2.0).sum())
    with pytest.warns(MisuseWarning, match="are others in each call"):
        found = [step(Tensor(np.ones(n), device=device)).item() for n in range(1, 50)]
    assert found == [2 * n for n in range(1, 50)]
    assert len(step._entries) <= 32


def test_nothing_is_recorded_in_other_threads(device: str) -> None:
    """A loader that computes while a step is recorded is no part of it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:

        def step(x: Tensor) -> Tensor:
            y = x * 2.0
            pool.submit(lambda: F.relu(Tensor(np.ones(3), device=device))).result()
            return y + 1.0

        graph = gpucnn.cuda_graph(step)
        found = [graph(Tensor([float(i)], device=device)).item() for i in range(5)]
    assert found == [1, 3, 5, 7, 9]
    assert graph.replays == 2
    assert graph.launches == 2


def test_gradients_that_come_or_go_outside_the_step_are_noticed(device: str) -> None:
    """Without zero_grad() a step leaves gradients where it found none: it runs eagerly, rightly."""
    losses = {}
    for recorded in (False, True):
        gpucnn.seed(0)
        model = gpucnn.nn.Linear(5, 3).to(device)
        optimizer = gpucnn.optim.SGD(model.parameters(), lr=0.5)
        x, labels = gpucnn.Tensor(randn(8, 5), device=device), np.arange(8) % 3

        def backward(x: gpucnn.Tensor, model: Any = model, labels: Any = labels) -> Any:
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            return loss

        step = gpucnn.cuda_graph(backward, device=device) if recorded else backward
        losses[recorded] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(6):
                optimizer.zero_grad()
                losses[recorded].append(step(x).item())
                optimizer.step()
        if recorded:
            assert "zero_grad(), backward() and step() belong into one function" in step.reason
    assert losses[True] == losses[False]


def test_an_optimizers_graph_sees_that_a_gradient_is_gone(device: str) -> None:
    weight = gpucnn.nn.Parameter(np.ones(3, np.float32), device=device)
    optimizer = gpucnn.optim.SGD([weight], lr=1.0)
    step = gpucnn.cuda_graph(optimizer.step, device=device)
    for _ in range(5):
        weight.grad = gpucnn.Tensor(np.full(3, 0.5, np.float32), device=device)
        step()
    assert step.replays
    before = weight.numpy().copy()
    weight.grad = None
    step()
    assert (weight.numpy() == before).all()
