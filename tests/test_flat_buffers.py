"""The one launch of an optimizer: parts of flat buffers, slices that wait, copies of weights."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import flat_gradients, kernel, nn, optim, weight_copies
from gpucnn import functional as F
from gpucnn.bfloat16 import narrowed
from gpucnn.device import to_host
from gpucnn.ops.adam import AdamStep, adam_step, adamax_step, nadam_step
from gpucnn.ops.clip import launch_gradient_norm
from gpucnn.ops.optimizer import adadelta_step, adagrad_step, lion_step, rmsprop_step, sgd_step
from gpucnn.ops.optimizer_parts import Copies, Parts, Stretch, slice_lane_bits
from gpucnn.primitive import Primitive
from tests.support import assert_close, on, randn

ADAM = AdamStep(1e-2, 0.9, 0.99, 1e-3, 1e-2, False, 3)
STEPS: list[tuple[Primitive, int, tuple[float, ...]]] = [  # (step, its states, numbers)
    (sgd_step, 1, (0.1, 0.9, 0.1, 1.0)),
    (adagrad_step, 1, (0.1, 1e-3, 0.1)),
    (adadelta_step, 2, (0.1, 0.9, 1e-3, 0.1)),
    (rmsprop_step, 3, (0.1, 0.9, 1e-3, 0.5, 0.1, 1.0)),
    (lion_step, 1, (0.1, 0.9, 0.99, 0.99)),
    (adam_step, 3, ADAM.adam()),
    (nadam_step, 2, ADAM.nadam(0.01, 0.02)),
    (adamax_step, 2, ADAM.adamax()),
]
# (size, slices, whether scaled, the sizes of its copy): tails on every side, few and many slices
STRETCHES: list[tuple[int, int, bool, tuple[int, int, int, int] | None]] = [
    (1500, 0, False, None),
    (7, 2, True, None),
    (1100, 9, False, None),
    (130, 70, False, None),
    (9, 300, True, None),
    (40 * 2 * 33, 0, False, (1, 40, 2, 33)),
    (2 * 5 * 3 * 7, 3, True, (2, 5, 3, 7)),
    (16 * 9 * 16, 40, False, (1, 16, 9, 16)),
    (70 * 3, 20, False, (1, 70, 1, 3)),
    (3 * 70, 130, True, (1, 3, 1, 70)),
    (64, 0, True, (8, 8, 1, 1)),
]


def stretches() -> tuple[list[Stretch], int, int, int]:
    """(stretches, elements of the flat buffers, of the slices, of the copies)"""
    found, n, slices, copies = [], 64, 0, 0  # nothing belongs to the first elements
    for size, count, scaled, sizes in STRETCHES:
        place = (slices, count) if count else None
        copy = None
        if sizes:  # every kind of copy, and none of some kinds
            kept = [copies if (len(found) + kind) % 3 else -1 for kind in range(3)]
            kept[2] += 20000 if kept[2] >= 0 else 0
            copy = Copies(*sizes, *kept)
        found.append(Stretch(n, n + size, len(found) % 2, place, scaled, copy))
        n += -(-size // 64) * 64
        slices += -(-size * count // 64) * 64
        copies += -(-size // 64) * 64 if sizes else 0
    return found, n, slices, copies


class Problem:
    """The arguments of a step in parts, on a device."""

    def __init__(
        self, states: int, numbers: tuple[float, ...], device: str, dtype: Any = np.float32
    ) -> None:
        found, n, slices, copies = stretches()
        # the first state is far above the square of the second: no cancellation when centered
        given = [randn(n), *[abs(randn(n, seed=9 + i)) + (1 if i else 20) for i in range(states)]]
        given += [randn(n, seed=1), randn(slices, seed=2), randn(copies, seed=3)]
        given.append(np.array([numbers, [0.5 * v for v in numbers]]))
        given.append(np.array([0.25]))
        arrays = on(device, *(a.astype(dtype) for a in given))
        *self.buffers, self.slices, self.copies, self.numbers, self.scale = arrays
        (self.narrow,) = on(device, np.full(20000 + copies, 0x1234, np.uint16))
        self.parts = Parts(found, device, self.slices, self.copies, self.narrow)

    def run(self, step: Primitive, device: str) -> None:
        step.on(device)(*self.buffers, self.numbers, self.parts, self.scale)


steps = pytest.mark.parametrize(
    ("step", "states", "numbers"), STEPS, ids=[s[0].name for s in STEPS]
)


def check_copies(s: Stretch, made: Problem, before: Problem | None = None) -> None:
    """Each copy of a stretch is what its parameters are now; what is not kept is as it was."""
    if s.copy is None:
        return
    values = to_host(made.buffers[0])[s.start : s.stop].reshape(s.copy.sizes)
    exchanged = np.empty([s.copy.G, s.copy.CG, s.copy.taps, s.copy.OCG], values.dtype)
    for g, oc, tap, c in np.ndindex(*values.shape):
        exchanged[g, c, tap, oc] = values[g, oc, tap, c]
    n, copies, narrow = values.size, to_host(made.copies), to_host(made.narrow)
    for first, buffer, expected in (
        (s.copy.exchanged, copies, exchanged),
        (s.copy.narrowed, narrow, narrowed(values.astype(np.float32))),
        (s.copy.narrowed_exchanged, narrow, narrowed(exchanged.astype(np.float32))),
    ):
        if first >= 0:
            assert_close(buffer[first : first + n], expected.reshape(-1), "exact")
    if before is not None and s.copy.exchanged < 0:
        first = s.copy.narrowed
        assert_close(copies[first : first + n], before.copies[first : first + n], "exact")


@steps
def test_parts_are_loops(step: Primitive, states: int, numbers: tuple[float, ...]) -> None:
    """Parts of the flat buffers, each by itself, its gradient put together first."""
    made = Problem(states, numbers, "cpu", np.float64)
    before = Problem(states, numbers, "cpu", np.float64)
    made.run(step, "cpu")
    for s in made.parts.stretches:
        g = before.buffers[-1][s.start : s.stop]
        if s.slices:
            first, count = s.slices
            for i in range(g.size):
                g[i] = sum(before.slices[first + j * g.size + i] for j in range(count))
        if s.scaled:
            g *= 0.25
        own = [b[s.start : s.stop] for b in before.buffers]
        step(*own, before.numbers[s.group])
        for now, expected in zip(made.buffers, own, strict=True):
            assert_close(now[s.start : s.stop], expected, "float64", 300)
        check_copies(s, made)
    assert_close(made.buffers[0][:64], before.buffers[0][:64], "exact")


@steps
def test_kernels_go_through_parts(
    step: Primitive, states: int, numbers: tuple[float, ...], kernel_device: str
) -> None:
    found = Problem(states, numbers, kernel_device)
    found.run(step, kernel_device)
    expected = Problem(states, numbers, "cpu", np.float64)
    expected.run(step, "cpu")
    for a, e in zip(found.buffers, expected.buffers, strict=True):
        assert_close(a, e, "float32", 300)
    before = Problem(states, numbers, "cpu")
    for s in found.parts.stretches:
        check_copies(s, found, before)


def test_norm_of_parts(kernel_device: str) -> None:
    found, wide = Problem(0, (0.0,), kernel_device), Problem(0, (0.0,), "cpu", np.float64)
    total = 0.0
    for s in wide.parts.stretches:
        g = wide.buffers[-1][s.start : s.stop]
        if s.slices:
            first, count = s.slices
            g = wide.slices[first : first + count * g.size].reshape(count, -1).sum(axis=0)
        total += float((g * g).sum())
    for _ in range(2):  # the second time gradients are where the first has put them
        norm, scale = launch_gradient_norm(found.buffers[-1], found.parts, 2.0)
    assert_close(norm, np.asarray(total**0.5), "float32", 3000)
    assert_close(scale, np.asarray([2.0 / (total**0.5 + 1e-6)]), "float32", 3000)


def test_lanes_keep_the_threads_of_a_block_busy() -> None:
    lanes = [(count, 1 << slice_lane_bits(count)) for count in (1, 8, 9, 16, 17, 64, 65, 1000)]
    assert lanes == [(1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (64, 8), (65, 16), (1000, 16)]


# training


def net(device: str) -> nn.Sequential:
    """Weights whose gradients come in slices; data gradients that read exchanged filters."""
    gpucnn.seed(3)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 12, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(12, 8, 3, groups=1), nn.Flatten(), nn.Linear(8 * 8 * 8, 10)),
    ).to(device)


def loss_of(model: nn.Module, device: str, seed: int = 0) -> gpucnn.Tensor:
    x = gpucnn.Tensor(randn(3, 10, 10, 1, seed=seed), device=device)
    return F.cross_entropy(model(x), gpucnn.Tensor(np.arange(3, dtype=np.int32), device=device))


def bits(model: nn.Module) -> list[np.ndarray]:
    return [p.numpy().copy() for p in model.parameters()]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@contextmanager
def launched() -> Iterator[list[str]]:
    names: list[str] = []
    with kernel.observe_launches(lambda launch: names.append(launch.kernel.name)):
        yield names


Between = Callable[[nn.Module, optim.Optimizer], None]


def train(
    device: str, between: Between = lambda model, optimizer: None, steps: int = 4
) -> tuple[list[np.ndarray], list[list[str]], list[np.ndarray]]:
    """(parameters, the launches of each step, the last gradients)"""
    model = net(device)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    names = []
    for step in range(steps):
        with launched() as seen:
            optimizer.zero_grad()
            loss_of(model, device, step).backward()
            between(model, optimizer)
            optimizer.step()
        names.append(seen)
    gradients = [p.grad.numpy().copy() for p in model.parameters() if p.grad is not None]
    return bits(model), names, gradients


@pytest.fixture(scope="module")
def eager() -> dict[str, Any]:
    """What :func:`train` gives on each device, computed once."""
    return {}


def trained(eager: dict[str, Any], device: str) -> Any:
    if device not in eager:
        eager[device] = train(device)
    return eager[device]


def test_slices_wait_and_copies_are_kept(
    eager: dict[str, Any], kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on nothing is launched for them, and no bit is another."""
    found, names, gradients = trained(eager, kernel_device)
    assert names[0].count("sum_slices") == 4  # one of them in the forward pass
    assert names[0].count("transpose_tiles") >= 3
    for seen in names[1:]:
        assert (seen.count("sum_slices"), seen.count("transpose_tiles")) == (1, 0)
        assert seen.count("adam") == 1
    monkeypatch.setattr(flat_gradients, "MOST_BYTES", 0)
    monkeypatch.setattr(weight_copies, "_places", {})
    at_once, names, expected = train(kernel_device)
    assert all(seen.count("sum_slices") == 4 for seen in names)
    assert same(found, at_once)
    assert same(gradients, expected)


def test_gradients_can_be_read_before_the_step(eager: dict[str, Any], kernel_device: str) -> None:
    seen: list[list[np.ndarray]] = []

    def read(model: nn.Module, optimizer: optim.Optimizer) -> None:
        seen.append([p.grad.numpy().copy() for p in model.parameters() if p.grad is not None])

    found, names, gradients = train(kernel_device, read)
    assert same(found, trained(eager, kernel_device)[0])
    assert same(gradients, seen[-1])
    assert names[-1].count("sum_slices") == 4


def test_a_second_backward_pass_adds_to_the_first(kernel_device: str) -> None:
    def again(model: nn.Module, optimizer: optim.Optimizer) -> None:
        loss_of(model, kernel_device, 7).backward()

    _, _, gradients = train(kernel_device, again, 3)
    model = net(kernel_device)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    for step in range(3):
        sums: list[Any] = []
        for seed in (step, 7):
            optimizer.zero_grad()
            loss_of(model, kernel_device, seed).backward()
            sums.append([p.grad.numpy().copy() for p in model.parameters() if p.grad])
        expected = [a + b for a, b in zip(*sums, strict=True)]
        for p, g in zip(model.parameters(), expected, strict=True):
            p.grad = gpucnn.Tensor(g, device=kernel_device)
        optimizer.step()
    assert same(gradients, expected)


def test_gradients_that_are_forgotten_are_not_used(kernel_device: str) -> None:
    """Slices wait when the parameter is told that it has no gradient, or another one."""
    model = net(kernel_device)
    optimizer = optim.SGD(model.parameters(), 1.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, kernel_device).backward()
        optimizer.step()
    loss_of(model, kernel_device).backward()
    optimizer.zero_grad()
    loss_of(model, kernel_device).backward()
    before = bits(model)
    first, *rest = model.parameters()
    for p in rest:
        p.grad = None
    first.grad = gpucnn.Tensor(np.ones(first.shape, np.float32), device=kernel_device)
    optimizer.step()
    assert_close(first.numpy(), before[0] - 1, "float32")
    assert same(bits(model)[1:], before[1:])


def test_a_gradient_that_is_set_must_fit(device: str) -> None:
    p = gpucnn.Tensor(randn(3), requires_grad=True, device=device)
    optim.SGD([p], 0.1)
    with pytest.raises(ValueError, match=r"grad must have shape \(3,\)"):
        p.grad = gpucnn.Tensor(randn(4), device=device)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_graph_has_the_bits_of_eager_steps(clip: float | None, kernel_device: str) -> None:
    found = []
    for graph in (False, True):
        model = net(kernel_device)
        optimizer = optim.Adam(model.parameters(), 1e-2)
        norms: list[float] = []

        def step(x: Any, model: Any = model, optimizer: Any = optimizer) -> Any:
            logits = model(x)
            optimizer.zero_grad()
            (logits * logits).mean().backward()
            norm = None if clip is None else optim.clip_grad_norm_(optimizer, clip)
            optimizer.step()
            return norm

        call = gpucnn.cuda_graph(step) if graph else step
        for i in range(5):
            norm = call(gpucnn.Tensor(randn(2, 10, 10, 1, seed=i), device=kernel_device))
            norms.append(0.0 if norm is None else float(norm.item()))
        if graph:
            assert call.replays == 2
        grads = [p.grad.numpy().copy() for p in model.parameters()]
        found.append((bits(model), grads, norms))
    assert same(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize("inside", ["backward", "step"])
def test_no_slices_cross_the_border_of_a_graph(
    inside: str, eager: dict[str, Any], kernel_device: str
) -> None:
    """Half of a step as a graph, the other half by itself."""
    model = net(kernel_device)
    optimizer = optim.Adam(model.parameters(), 1e-2)

    def backward(x: Any) -> None:
        optimizer.zero_grad()
        target = gpucnn.Tensor(np.arange(3, dtype=np.int32), device=kernel_device)
        F.cross_entropy(model(x), target).backward()

    step: Any = optimizer.step
    if inside == "backward":
        backward = gpucnn.cuda_graph(backward)  # type: ignore[assignment]
    else:
        step = gpucnn.cuda_graph(lambda: optimizer.step())
    for i in range(4):
        backward(gpucnn.Tensor(randn(3, 10, 10, 1, seed=i), device=kernel_device))
        step()
    assert (backward if inside == "backward" else step).replays == 1
    assert same(bits(model), trained(eager, kernel_device)[0])


# copies


def kept_by(optimizer: optim.Optimizer) -> list[tuple[np.ndarray, np.ndarray]]:
    """(copy, what it is to be) of each."""
    copies = optimizer._copies
    assert copies is not None
    assert copies.kept
    found = []
    for i, made in copies.kept.items():
        p = optimizer.params[i].numpy()
        exchanged = p.reshape(made.sizes).transpose(0, 3, 2, 1)
        for what, expected in (
            ("exchanged", exchanged),
            ("narrowed", narrowed(p)),
            ("narrowed_exchanged", narrowed(np.ascontiguousarray(exchanged))),
        ):
            if getattr(made, what) >= 0:
                found.append((to_host(copies._copy(i, what)), expected))
    return found


def two_steps(model: nn.Module, optimizer: optim.Optimizer, device: str) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model, device).backward()
        optimizer.step()


def test_copies_follow_whatever_writes_parameters(kernel_device: str) -> None:
    model = net(kernel_device)
    optimizer = optim.SGD(model.parameters(), 0.1, momentum=0.9)
    average = optim.EMA(optimizer, 0.5)
    two_steps(model, optimizer, kernel_device)

    def check() -> None:
        for copy, expected in kept_by(optimizer):
            assert_close(copy, expected, "exact")

    check()
    average.update()
    with average.applied():
        check()
    check()
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
    check()
    weight = next(p for p in model.parameters() if p.ndim == 4 and p.shape[-1] == 8)
    nn.init.normal_(weight, 0.1)
    check()
    weight.data[...] = 3.0
    optimizer.parameters_changed()
    check()


def test_only_what_an_optimizer_keeps_is_read(kernel_device: str) -> None:
    model = net(kernel_device)
    optimizer = optim.SGD(model.parameters(), 0.1)
    two_steps(model, optimizer, kernel_device)
    p = next(p for p in model.parameters() if p.ndim == 4 and p.shape[-1] == 8)
    OC, KH, KW, C = p.shape
    w = p.numpy()
    with launched() as names:
        copy = weight_copies.exchanged(p.data, 1, OC, KH * KW, C)
    assert names == []
    assert_close(copy, w.reshape(1, OC, KH * KW, C).transpose(0, 3, 2, 1), "exact")
    with launched() as names:  # the same memory as another filter
        copy = weight_copies.exchanged(p.data, 2, OC // 2, KH * KW, C)
    assert names == ["transpose_tiles"]
    assert_close(copy, w.reshape(2, OC // 2, KH * KW, C).transpose(0, 3, 2, 1), "exact")
    p.data = p.data.copy()
    with launched() as names:
        weight_copies.exchanged(p.data, 1, OC, KH * KW, C)
    assert names == ["transpose_tiles"]


def test_copies_die_with_their_optimizer(kernel_device: str) -> None:
    model = net(kernel_device)
    optimizer = optim.SGD(model.parameters(), 0.1)
    two_steps(model, optimizer, kernel_device)
    copies = weakref.ref(optimizer._copies)
    w = next(p for p in model.parameters() if p.ndim == 4 and p.shape[-1] == 8).data
    assert weight_copies._find(w, weight_copies._places)[0] is copies()
    del optimizer
    gc.collect()
    assert copies() is None
    assert weight_copies._find(w, weight_copies._places)[0] is None


def test_clipping_waits_for_the_step(kernel_device: str) -> None:
    """It takes two launches; a gradient that is read in between has been clipped."""
    runs = []
    for reading in (False, True):
        model = net(kernel_device)
        optimizer = optim.SGD(model.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model, kernel_device).backward()
            with launched() as names:
                norm = optim.clip_grad_norm_(optimizer, 0.05)
                if reading:
                    grads = [p.grad.numpy().copy() for p in model.parameters()]
                    total = sum(float((g.astype(float) ** 2).sum()) for g in grads) ** 0.5
                    assert total == pytest.approx(0.05, rel=1e-4)
                optimizer.step()
        if not reading:
            assert names == ["gradient_norm", "sgd"]
        runs.append((bits(model), [p.grad.numpy().copy() for p in model.parameters()], norm.item()))
    assert same(runs[0][0], runs[1][0])
    assert same(runs[0][1], runs[1][1])
    assert runs[0][2] == runs[1][2] > 0.05


def test_calls_that_go_by_plans_let_slices_wait_as_well(kernel_device: str) -> None:
    """Without observers, which keep launchers from being spared."""
    model = net(kernel_device)
    optimizer = optim.SGD(model.parameters(), 0.1)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, kernel_device, step).backward()
        assert (len(optimizer._gradients.pending) >= 2) == (step > 0)
        optimizer.step()
    for copy, expected in kept_by(optimizer):
        assert_close(copy, expected, "exact")


def test_bf16_reads_weights_that_the_step_has_narrowed(kernel_device: str) -> None:
    """From the third step on no weight is narrowed or exchanged, with the bits of steps without
    an optimizer that keeps copies.
    """
    found = []
    for keeps in (True, False):
        with gpucnn.precision("bf16"):
            model = net(kernel_device)
            optimizer = optim.SGD(model.parameters(), 0.1)
            if not keeps:
                optimizer._copies = None
            names: list[list[str]] = []
            for step in range(4):
                with launched() as seen:
                    optimizer.zero_grad()
                    loss_of(model, kernel_device, step).backward()
                    optimizer.step()
                names.append(seen)
        found.append((bits(model), names))
        if keeps:
            assert optimizer._copies is not None
            made = optimizer._copies.kept.values()
            assert sum(c.narrowed >= 0 for c in made) == 4
            assert sum(c.narrowed_exchanged >= 0 for c in made) == 3
            for copy, expected in kept_by(optimizer):
                assert_close(copy, expected, "exact")
    (kept, with_copies), (expected, without) = found
    assert same(kept, expected)
    assert without[-1].count("narrow") - with_copies[-1].count("narrow") == 4
    assert without[-1].count("transpose_tiles") > 0 == with_copies[-1].count("transpose_tiles")
