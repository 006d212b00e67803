"""CUDA graphs over a stand-in for CuPy: capture, the private arena, numbers, and what fails.

While the stand-in captures, nothing runs; a replay reads and writes addresses, whoever has the
memory by then; and memory that its pool hands out is full of NaN.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench import machine
from bench.harness import timing
from bench.harness.cuda_timer import CudaTimer
from bench.run import Bench, Options
from bench.steps import Step
from gpucnn import Tensor, kernel
from gpucnn.graph import CudaGraph
from gpucnn.misuse import MisuseWarning
from gpucnn.optim import SGD
from tests import fake_capture, test_graph
from tests.fake_cuda import LAUNCH_US, Clock, Graph
from tests.graphs import Run, trace
from tests.support import randn
from tests.test_graph_training import make_trainer
from tests.test_training import quiet

pytestmark = pytest.mark.emulated


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """The device ``cuda`` over the stand-in."""
    made = fake_capture.module()
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    kernel._cuda_kernel.cache_clear()
    yield made
    kernel._cuda_kernel.cache_clear()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each launch of a graph: the launches that the host has made by then."""
    launched: list[int] = []
    launch = Graph.launch

    def counted(self: Graph, stream: Any = None) -> None:
        launched.append(Clock.launches)
        launch(self, stream)

    monkeypatch.setattr(Graph, "launch", counted)
    return launched


def test_replays_are_single_launches_with_the_bits_of_eager_steps(graphs: list[int]) -> None:
    """Also where everything that the pool has is taken and spoiled between replays."""
    run, held = Run("small", "cuda", graph=True), []

    def spoil() -> None:
        for size in (1, 512, 1024, 2048, 4096, 8192, 16384):
            held.extend(fake_capture.empty((size,), np.uint8) for _ in range(3))
        del held[: len(held) // 2]

    run.steps(0, 12, spoil)
    assert run.step.reason == ""
    assert len(graphs) == 10, "the launch after the capture and nine replays"
    assert len(set(graphs)) == 1, "the host launches nothing else"
    assert run.step.launches > 20
    assert run.trace() == trace("small", "emulated", False, 12)
    assert not list(run.step.memory.overlaps())


def test_the_arena_is_one_block_that_the_pool_has_lost() -> None:
    run = Run("small", "cuda", graph=True)
    run.steps(0, 3)
    mallocs = fake_capture._pool.mallocs
    run.steps(3, 8)
    assert fake_capture._pool.mallocs == mallocs, "a replay asks for no memory"
    plan = run.step.memory
    assert plan.live_bytes <= plan.bytes < 0.7 * plan.unshared_bytes


def test_numbers_go_to_the_gpu_in_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("small", "cuda", graph=True)
    run.steps(0, 3)
    copies: list[int] = []
    copy = fake_capture.MemoryPointer.copy_from_host_async

    def counted(self: Any, source: int, size: int, stream: Any) -> None:
        copies.append(size)
        copy(self, source, size, stream)

    monkeypatch.setattr(fake_capture.MemoryPointer, "copy_from_host_async", counted)
    x, y = run.data(3)
    run.step(x, y)
    # Places of two dropouts (24 bytes), 7 numbers of Adam, one of the average: at multiples of 16.
    assert copies == [3 * 32 + 4]


def test_a_copy_from_the_gpu_fails_the_capture_and_counts_once(graphs: list[int]) -> None:
    """What only CuPy notices: the step is repeated eagerly, and state advances once."""

    class Peeking(Run):
        def compute(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            found = super().compute(x, y)
            found[0].data.get()
            return found

    run = Peeking("small", "cuda", graph=True)
    with pytest.warns(MisuseWarning, match="the capture failed .*not permitted") as said:
        run.steps(0, 6)
    assert len(said) == 1
    assert not graphs
    assert Clock.captured is None
    assert run.trace() == trace("small", "emulated", False, 6)


def test_an_error_of_the_step_itself_comes_once() -> None:
    """What the step had computed by then is computed, as eagerly."""

    def train(graph: bool) -> tuple[Any, ...]:
        w = Tensor(randn(3), requires_grad=True, device="cuda")
        optimizer = SGD([w], lr=0.1)
        calls: list[int] = []

        def step(x: Tensor) -> None:
            calls.append(1)
            optimizer.zero_grad()
            (w * x).sum().backward()
            optimizer.step()
            if len(calls) == 3:
                raise KeyError("mine")

        run = gpucnn.cuda_graph(step) if graph else step
        for i in range(7):
            with contextlib.suppress(KeyError):
                run(Tensor(randn(3, seed=i), device="cuda"))
        return w.numpy().tobytes(), optimizer.steps, len(calls)

    assert train(False)[1:] == (7, 7)
    assert train(True) == (*train(False)[:2], 5)


def test_gradients_of_a_failed_capture_are_forgotten() -> None:
    """They were never computed, and what repeats the step must not add to them."""
    w = Tensor(randn(3), requires_grad=True, device="cuda")
    optimizer = SGD([w], lr=0.1)

    def step(x: Tensor) -> None:
        optimizer.zero_grad()
        y = (w * x).sum()
        y.backward()
        y.data.get()

    graph = gpucnn.cuda_graph(step)

    def gradient(x: np.ndarray) -> np.ndarray:
        graph(Tensor(x, device="cuda"))
        assert w.grad is not None
        return w.grad.numpy()

    batches = [randn(3, seed=i) for i in range(5)]
    with pytest.warns(MisuseWarning, match="the capture failed"):
        found = [gradient(x) for x in batches]
    np.testing.assert_array_equal(found, batches)


ON_EVERY_DEVICE = [
    test
    for name, test in vars(test_graph).items()
    if name.startswith("test_")
    and list(inspect.signature(test).parameters) == ["device"]
    and "threads" not in name  # of which the stand-in has one
]


@pytest.mark.parametrize("test", ON_EVERY_DEVICE, ids=lambda test: test.__name__)
@pytest.mark.usefixtures("unwarned")
def test_what_holds_on_every_device(test: Callable[[str], None]) -> None:
    test("cuda")


def test_a_capture_that_goes_another_way_counts_once() -> None:
    class Third(Run):
        count = 0

        def compute(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            self.count += 1
            if self.count == 3:
                (x * 1.0).sum()
            return super().compute(x, y)

    run = Third("small", "cuda", graph=True)
    with pytest.warns(MisuseWarning, match="of one size in one call"):
        run.steps(0, 6)
    assert run.count == 6
    assert run.trace() == trace("small", "emulated", False, 6)


def test_constants_of_the_host_are_copied_once() -> None:
    def step(x: Tensor) -> Tensor:
        return x + Tensor(np.full(3, 2, np.float32), device="cuda")

    graph = gpucnn.cuda_graph(step, device="cuda")
    for i in range(6):
        assert graph(np.full(3, i, np.float32)).numpy().tolist() == [i + 2] * 3
    assert graph.replays == 3


def test_a_trainer_on_cuda() -> None:
    def weights(device: str) -> dict[str, bytes]:
        trainer = make_trainer(None, device, None)
        trainer.fit(quiet(trainer))
        step = trainer._train_on_batch
        assert (step.replays if isinstance(step, CudaGraph) else 0) == (
            11 if device == "cuda" else 0
        )
        return {name: a.tobytes() for name, a in trainer.state().tensors.items()}

    assert weights("cuda") == weights("emulated")


def test_the_bench_times_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its host launches one graph and nothing else."""
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    roofs = machine.Machine("cuda", "", 1, "G", "1", "1", "1", "", "", 1.0, {"fp32": 1.0})
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 1)
    monkeypatch.setattr("bench.harness.cuda_timer._FEWEST_COPIES", 1)
    options = Options(device="cuda", variants=("graph",), against=(), seconds=0)
    with gpucnn.use_device("cuda"):
        (row,) = Bench(options, CudaTimer(), roofs).rows_of(Step("lenet5", 1, "typical"))
    assert (row["note"], row["status"], row["variant"]) == ("", "ok", "graph")
    assert row["median_us"] > 20 * LAUNCH_US


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(x: Tensor) -> Tensor:
        Tensor(randn(3), device="cpu") * 2.0
        return x * 2.0

    with pytest.warns(MisuseWarning, match="it computes on cpu and cuda"):
        gpucnn.cuda_graph(both)(Tensor([1.0], device="cuda"))
    monkeypatch.setenv("GPUCNN_SYNC", "1")
    with pytest.warns(MisuseWarning, match="GPUCNN_SYNC=1 waits"):
        gpucnn.cuda_graph(lambda x: x * 2.0)(Tensor([1.0], device="cuda"))


def test_memory_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    step = gpucnn.cuda_graph(lambda x: x * 2.0)
    x = Tensor(np.ones(100), device="cuda")
    step(x)
    step(x)

    def full(size: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(fake_capture, "_allocators", [full])
    with pytest.warns(MisuseWarning, match="does not fit beside"), pytest.raises(MemoryError):
        step(x)
