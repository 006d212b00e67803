"""Training steps of the bench on a GPU: as graphs, in a row, and PyTorch's; against stand-ins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench import run
from bench.harness import timing
from bench.harness.cuda_timer import CudaTimer
from bench.harness.timing import Contender
from bench.harness.verify import compare
from bench.machine import Machine
from bench.rivals.rival import Gap, Rival
from bench.run import Bench, Options
from bench.steps import GRAPH, GRAPH_8, PERSISTENT, Step, expected_losses
from gpucnn import kernel
from tests import fake_capture
from tests.fake_cuda import LAUNCH_US, Clock
from tests.support import needs_torch, torch

ROOFS = Machine(
    "cuda", "", 1, "G", "1", "1", "1", "", "", 1.0, dict.fromkeys(("fp32", "bf16"), 1.0)
)
LENET = Step("lenet5", 1, "typical")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A bench of the device ``cuda`` over the stand-in."""
    monkeypatch.setitem(sys.modules, "cupy", fake_capture.module())
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 1)
    monkeypatch.setattr(run, "ROW", 2)
    monkeypatch.setattr(run, "PARTS", 2)
    monkeypatch.setattr(run, "_GRAPH_CALLS", 4)
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    kernel._cuda_kernel.cache_clear()
    made = Bench(Options(device="cuda", against=(), seconds=0), CudaTimer(), ROOFS)
    with gpucnn.use_device("cuda"):
        yield made
    kernel._cuda_kernel.cache_clear()


class Library:
    """A rival whose graph takes 70 µs, with the losses of the definition."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.modes = error, []  # type: tuple[Any, list[str]]

    def use_precision(self, precision: str) -> None:
        self.modes.append(precision)

    def reference(self, step: Step) -> list[Any]:
        return [expected_losses(step)]

    def step_rivals(self, step: Step) -> list[Rival | Gap]:
        if self.error:
            raise self.error
        replay = lambda: Clock.do(lambda: None, 70.0)  # noqa: E731
        contender = Contender("torch_graph", lambda i: None, row=2, record=lambda n: replay)
        return [Rival(contender, lambda: [expected_losses(step)])]


@pytest.mark.emulated
def test_steps_of_graphs_follow_each_other(bench: Bench) -> None:
    bench._rivals = {"torch": Library()}
    found = bench.rows_of(LENET, "bf16")
    assert [r["note"] for r in found] == [""] * 5
    eager, graph, eight, at_once, theirs = found
    assert (eager["variant"], graph["variant"], eight["variant"]) == ("default", GRAPH, GRAPH_8)
    assert bench._rivals["torch"].modes == ["bf16"]
    assert graph["timer"] == eight["timer"] == "2 in a row"
    assert graph["median_us"] == pytest.approx(eight["median_us"], rel=1e-3)
    assert graph["median_us"] >= 20 * LAUNCH_US
    assert (at_once["variant"], at_once["median_us"]) == (PERSISTENT, pytest.approx(LAUNCH_US))
    assert (theirs["variant"], theirs["median_us"]) == ("torch_graph", 70)


@pytest.mark.emulated
def test_a_rival_that_fails_is_a_gap(bench: Bench) -> None:
    bench._rivals = {"torch": Library(OSError("no cuDNN"))}
    bench.options.variants = ("default",)
    (row,) = bench.rows_of(LENET, "bf16")
    assert row["status"] == "ok"
    assert bench.results.gaps == {("torch", "OSError: no cuDNN"): 1}


@pytest.mark.emulated
def test_a_graph_that_runs_eagerly_gets_no_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Peeking(Step):
        def ours(self, device: str, dtype: Any = np.float32) -> Any:
            made = super().ours(device, dtype)

            def step() -> Any:
                loss = made()
                loss.item()
                return loss

            return step

    bench.options.variants = (GRAPH,)
    with pytest.warns(gpucnn.MisuseWarning, match="runs eagerly"):
        (row,) = bench.rows_of(Peeking("lenet5", 1, "typical"))
    assert (row["status"], row["median_us"]) == ("failed", "")
    assert "are read on the host" in row["note"]


@pytest.mark.emulated
def test_replays_with_other_losses_get_no_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpucnn.graph import CudaGraph

    replay = CudaGraph._replay

    def twice(self: CudaGraph, *arguments: Any) -> Any:
        replay(self, *arguments)
        return replay(self, *arguments)

    monkeypatch.setattr(CudaGraph, "_replay", twice)
    bench.options.variants = (GRAPH,)
    (row,) = bench.rows_of(LENET)
    assert row["status"] == "failed"
    assert row["note"].startswith("RuntimeError: a graph gives ")


def test_what_launches_elsewhere_is_timed_by_the_host(bench: Bench) -> None:
    calls: list[str] = []
    wait = lambda: calls.append("wait")  # noqa: E731
    contender = Contender("jax", lambda i: calls.append("call"), row=3, parts=2, wait=wait)
    made = bench.timer.prepare(contender)
    assert made.timer == "200 in a row, host clock"
    calls.clear()
    assert made.sample() > 0
    assert calls == ["call"] * 200 + ["wait"]


@needs_torch
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pytorch_trains_in_a_precision(precision: str) -> None:
    from bench.rivals.torch_rival import Torch

    threads = torch.get_num_threads()
    try:
        library = Torch("cpu", None, 0.0)
        library.use_precision(precision)
        step = Step("lenet5", 2, "typical")
        plain, last = library.step_rivals(step)
        assert isinstance(plain, Rival)
        assert isinstance(last, Rival)
        expected = [expected_losses(step)]
        assert compare(library.reference(step), expected, 1, "float64").trouble == ""
        bar = "bf16" if precision == "bf16" else "training"
        errors = [compare(r.results(), expected, 1, bar) for r in (plain, last)]
        assert [e.trouble for e in errors] == ["", ""]
        rounded = [e.error > 1e-4 for e in errors]
        assert rounded == [precision == "bf16"] * 2
    finally:
        torch.set_num_threads(threads)


@needs_torch
def test_what_pytorch_compiles_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of the compiler a wrapper, which is called once before anything is timed."""
    from bench.rivals.torch_rival import Torch

    compiled: list[Any] = []

    def wrap(module: Any, first: Any) -> Any:
        compiled.append(module)
        made = torch.nn.Sequential(module)
        first(made)
        return made

    library, step = Torch("cpu", None, 0.0), Step("shapenet", 2, "typical")
    monkeypatch.setattr(library, "compiled", wrap)
    monkeypatch.setattr(library, "record", lambda call: None)
    monkeypatch.setattr(step.__class__, "torchs", lambda s, t, last, capturable, dtype: (
        t.network_step(s.build(), *s.batch_of_images(), last, False, dtype)
    ))  # fmt: skip
    rival = library._step("torch_compiled", step, images_last=True)
    assert compare(rival.results(), [expected_losses(step)], 1, "training").trouble == ""
    assert len(compiled) == 1


def test_losses_in_float64_come_from_pytorch_where_it_is_no_rival(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def open_rivals(names: Any, *rest: Any) -> Any:
        opened.append(names)
        return {"torch": Library()}, []

    monkeypatch.setattr(run, "open_rivals", open_rivals)
    assert bench._expected(LENET, {}) == [pytest.approx(expected_losses(LENET))]
    assert bench._expected(LENET, {"jax": None}) == [pytest.approx(expected_losses(LENET))]
    assert opened == [("torch",)]
