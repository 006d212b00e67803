"""Rows of the bench: what is refused, what is computed from a time, what survives trouble."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench import run, steps
from bench.harness import timing, verify
from bench.harness.ours import Ours
from bench.harness.timing import Contender, Timing
from bench.harness.verify import Reference, compare, same_bits
from bench.machine import Machine, measure_cpu
from bench.problems import Problem, all_problems
from bench.rivals import COLUMNS as RIVALS
from bench.rivals import Gap, Rival
from bench.rows import COLUMNS, Row, add_ratios, add_timing, empty_row, file_hash
from bench.run import Bench, Options
from bench.scaling import curves, point_of
from bench.scaling import problems as scaling_problems
from bench.steps import STEPS, Step, first_values, our_step
from gpucnn.primitive import PRIMITIVES
from tests.support import needs_torch, torch

MACHINE = Machine("cpu", "Chip", 2, "", "", "", "2", "", "2026-01-01", 10.0, {"fp32": 100.0})


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 3)


def bench(*against: str) -> Bench:
    return Bench(Options(against=against, seconds=0), machine=MACHINE)


def problem(primitive: str = "softmax_forward", case: str = "") -> Problem:
    found = (p for p in all_problems() if p.primitive == primitive and case in ("", p.case))
    return next(p for p in found if p.group == "typical" or case)


# comparing


def test_comparison_finds_the_worst_element() -> None:
    a = np.zeros((3, 4), np.float32)
    b = a.astype(np.float64)
    assert compare([a], [b]).trouble == ""
    a[1, 2], a[2, 0] = 5e-7, -0.25
    verdict = compare([a], [b])
    assert verdict.error == 0.25
    assert verdict.trouble == "output 0 at (2, 0) is -0.25, not 0"


def test_comparison_across_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "_CHUNK", 7)
    a = np.zeros(50, np.float32)
    a[33] = 1
    assert compare([a], [np.zeros(50)]).trouble == "output 0 at (33,) is 1, not 0"


@pytest.mark.parametrize(
    ("actual", "expected", "right"),
    [
        ([np.nan], [np.nan], True),
        ([np.nan], [1.0], False),
        ([1.0], [np.nan], False),
        ([np.inf], [np.inf], True),
        ([-np.inf], [np.inf], False),
        ([1.0], [np.inf], False),
        ([np.inf], [1.0], False),
        ([1.0 + 5e-6], [1.0], True),
        ([1.0 + 5e-5], [1.0], False),
    ],
)
def test_comparison_of_single_numbers(actual: Any, expected: Any, right: bool) -> None:
    found = compare([np.array(actual, np.float32)], [np.array(expected)])
    assert (found.trouble == "") is right


def test_comparison_of_integers_shapes_and_counts() -> None:
    one, two = np.array([1], np.int32), np.array([2], np.int32)
    assert compare([one], [one]).trouble == ""
    assert "is 2, not 1" in compare([two], [one]).trouble
    assert compare([one[:0]], [one]).trouble == "output 0 has shape (0,), not (1,)"
    assert compare([], [one]).trouble == "0 outputs, not 1"
    assert compare([None], [one]).trouble == ""


def test_bits_tell_zeros_and_nans_apart() -> None:
    x = np.array([0.0, np.nan], np.float32)
    assert same_bits([x], [x.copy()])
    assert not same_bits([x], [-x])
    assert not same_bits([x], [x, x])
    assert not same_bits([x], [x[:1]])


# what follows from a time


def row(variant: str = "numpy", **values: Any) -> Row:
    made = empty_row(problem(), variant, MACHINE, "fp32")
    return made | {"bytes": 40_000, "flops": 2_000_000} | values


def test_floor_rates_and_share() -> None:
    """40 kB at 10 GB/s take 4 µs, 2 MFLOP at 100 GFLOP/s take 20 µs."""
    assert MACHINE.floor_us(40_000, 2_000_000) == pytest.approx(20)
    assert MACHINE.floor_us(400_000, 2_000_000) == pytest.approx(40)
    found = row()
    add_timing(found, Timing(50.0, 40.0, 70.0, 9, "2 calls"), MACHINE)
    expected = {"floor_us": 20.0, "floor_share": 0.4, "gb_s": 0.8, "gflop_s": 40.0}
    expected |= {"median_us": 50.0, "p20_us": 40.0, "p80_us": 70.0, "samples": 9}
    assert {name: found[name] for name in expected} == expected
    assert set(found) == set(COLUMNS)


def test_ratios_are_rival_by_own_time() -> None:
    own, other = row(status="ok", median_us=10.0), row("naive", status="wrong")
    rival = row("torch", status="ok", median_us=25.0)
    add_ratios([own, other, rival])
    assert own["ratio_torch"] == 2.5
    assert own["ratio_cupy"] == other["ratio_torch"] == rival["ratio_torch"] == ""


def test_a_changed_file_changes_its_hash(tmp_path: Any) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = 1")
    first = file_hash(path)
    path.write_text("x = 2")
    assert len(first) == 12
    assert file_hash(path) != first


# measuring


def test_a_row_of_the_cpu() -> None:
    (found,) = bench().rows_of(problem())
    assert (found["status"], found["variant"], found["device"]) == ("ok", "numpy", "cpu")
    assert found["p20_us"] <= found["median_us"] <= found["p80_us"]
    assert 0 <= found["max_error"] < 1e-6
    assert len(found["source_hash"]) == 12
    assert found["registers"] == found["gpu"] == found["ratio_torch"] == ""


@pytest.fixture
def wrong_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PRIMITIVES["softmax_forward"].definition

    def wrong(x: Any) -> Any:
        y = right(x)
        if x.dtype == np.float32:
            y.reshape(-1)[7] += 0.5
        return y

    monkeypatch.setattr(PRIMITIVES["softmax_forward"], "definition", wrong)


def test_a_wrong_kernel_gets_no_time(wrong_softmax: None) -> None:
    (found,) = bench().rows_of(problem())
    assert (found["status"], found["median_us"]) == ("wrong", "")
    assert found["max_error"] == pytest.approx(0.5, rel=1e-3)
    assert found["note"].startswith("output 0 at (0, 7) is 0.5")


def test_results_that_change_while_timed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right when it is checked, and a lazy kernel afterwards."""
    right, calls = PRIMITIVES["softmax_forward"].definition, []

    def lazy(x: Any) -> Any:
        if x.dtype == np.float32:
            calls.append(x)
            if len(calls) > 1:
                return np.zeros_like(x)
        return right(x)

    monkeypatch.setattr(PRIMITIVES["softmax_forward"], "definition", lazy)
    (found,) = bench().rows_of(problem())
    assert (found["status"], found["median_us"]) == ("wrong", "")
    assert found["note"] == "the last timed call left other results"


def test_results_are_overwritten_between_check_and_timing() -> None:
    case = Ours(Reference(problem()), "numpy", "cpu", None, 1)
    kept: list[Any] = []
    original = case._call
    case._call = lambda i: kept.append(original(i))  # type: ignore[method-assign]
    case.first_results()
    assert np.isnan(kept[0]).all()
    assert not case.last_results_hold()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError("too large"), "out of memory"),
        (RuntimeError("broken"), "failed"),
        (type("OutOfMemoryError", (RuntimeError,), {})("pool"), "out of memory"),
    ],
)
def test_trouble_is_a_row_and_the_rest_goes_on(
    error: Exception, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(x: Any) -> Any:
        if x.dtype == np.float32:
            raise error
        return x

    monkeypatch.setattr(PRIMITIVES["softmax_forward"], "definition", fail)
    shown: list[Any] = []
    tasks = [(problem(), "fp32"), (problem("relu_forward"), "fp32")]
    results = bench().measure(tasks, lambda rows, i, n: shown.append((len(rows), i, n)))
    assert [r["status"] for r in results.rows] == [status, "ok"]
    assert results.rows[0]["note"] == f"{type(error).__name__}: {error}"
    assert shown == [(1, 1, 2), (1, 2, 2)]


def test_a_problem_that_cannot_be_made_is_a_row() -> None:
    def make(seed: int) -> Any:
        raise MemoryError("inputs")

    (found,) = bench().rows_of(dataclasses.replace(problem(), make=make))
    assert (found["status"], found["case"]) == ("out of memory", problem().case)


def test_ctrl_c_keeps_what_was_measured() -> None:
    def interrupt(seed: int) -> Any:
        raise KeyboardInterrupt

    tasks = [problem(), dataclasses.replace(problem(), make=interrupt), problem()]
    results = bench().measure([(p, "fp32") for p in tasks], lambda *_: None)
    assert [r["status"] for r in results.rows] == ["ok"]
    assert results.stopped == "interrupted"


def test_no_problem_is_begun_when_the_time_is_over() -> None:
    made = bench()
    made.options.minutes = 1e-9
    results = made.measure([(problem(), "fp32")] * 2, lambda *_: None)
    assert results.rows == []
    assert results.unmeasured == [str(problem())] * 2
    assert results.stopped == "the 1e-09 minutes are over"


def test_updated_arguments_are_results() -> None:
    (found,) = bench().rows_of(problem("sgd_step"))
    assert (found["status"], found["direction"]) == ("ok", "step")
    assert found["max_error"] > 0


# rivals


class Library:
    """A rival whose numbers a test chooses."""

    def __init__(self, value: float = 1.0, error: Exception | None = None) -> None:
        self.value, self.error = value, error

    def use_precision(self, precision: str) -> None:
        pass

    def rivals(self, primitive: str, arguments: Any, sets: int) -> list[Rival | Gap]:
        if self.error:
            raise self.error
        y = PRIMITIVES[primitive].definition(*arguments) * self.value
        contender = Contender("torch", lambda i: y)
        return [Rival(contender, lambda: [y]), Gap("torch_graph", "no GPU")]


@pytest.mark.parametrize(
    ("library", "ratio", "gaps"),
    [
        (Library(), True, {("torch_graph", "no GPU")}),
        (
            Library(1.5),
            False,
            {("torch_graph", "no GPU"), ("torch", "computes something else: output 0")},
        ),
        (Library(error=OSError("broken library")), False, {("torch", "OSError: broken library")}),
    ],
)
def test_a_missing_rival_is_a_gap(library: Library, ratio: bool, gaps: Any) -> None:
    made = bench()
    made._rivals = {"torch": library}
    rows = made.rows_of(problem())
    assert rows[0]["status"] == "ok"
    assert (rows[0]["ratio_torch"] != "") is ratio
    assert [r["variant"] for r in rows] == ["numpy", "torch"][: 1 + ratio]
    found = {(name, reason.split(" at ")[0]) for name, reason in made.results.gaps}
    assert found == gaps


def test_rivals_leave_a_gap_in_half_precision() -> None:
    made = bench()
    made._rivals = {"torch": Library()}
    step = Step("lenet5", 2, "typical")
    made._precision = "tf32"
    assert made._opponents(problem()) == made._rivals
    made._precision = "bf16"
    assert made._opponents(step) == {}, "this library has no steps"
    assert made._opponents(problem()) == {}
    assert made.results.gaps == {("torch", "no bf16 products of float32 arrays"): 1}


def test_threads_of_a_busy_machine_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(
        importlib, "import_module", lambda name: seen.append(os.environ["OMP_WAIT_POLICY"])
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    run.import_patient_torch()
    assert seen == ["passive"]
    assert "OMP_WAIT_POLICY" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    run.import_patient_torch()
    assert seen == ["passive"]


def test_a_library_that_is_not_there_is_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    made = bench("torch", "cupy")
    assert {name for name, _ in made.results.gaps} == {"torch", "cupy"}
    assert any("torch does not work here" in reason for _, reason in made.results.gaps)
    assert made.rows_of(problem())[0]["status"] == "ok"


@needs_torch
def test_rivals_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        rows = bench("torch").rows_of(problem("max_pool2d_forward"))
    finally:
        torch.set_num_threads(threads)
    assert [r["variant"] for r in rows] == ["numpy", "torch", "torch_channels_last"]
    assert all(r["status"] == "ok" for r in rows)
    assert rows[0]["ratio_torch"] > 0
    assert rows[0]["ratio_torch_channels_last"] > 0
    assert rows[1]["max_error"] == 0
    assert set(rows[0]) == set(COLUMNS)
    assert {"torch", "torch_channels_last"} < set(RIVALS)


def test_edge_cases_have_no_rivals() -> None:
    made = bench()
    made._rivals = {"torch": Library()}
    edge = next(p for p in all_problems() if p.primitive == "softmax_forward")
    assert edge.group == "edge"
    assert [r["variant"] for r in made.rows_of(edge)] == ["numpy"]


# training steps


def test_a_training_step_is_checked_in_float64() -> None:
    (found,) = bench().rows_of(Step("lenet5", 2, "typical"))
    assert (found["family"], found["case"], found["status"]) == ("training_step", "lenet5-b2", "ok")
    assert 0 < found["max_error"] < 1e-5


def test_a_wrong_training_step_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = steps.our_step

    def wrong(step: Step, device: str, dtype: Any = np.float32) -> Any:
        made = right(step, device, dtype)
        return made if dtype == np.float64 else lambda: made() * 1.1

    monkeypatch.setattr(run, "our_step", wrong)
    (found,) = bench().rows_of(Step("lenet5", 2, "typical"))
    assert (found["status"], found["median_us"]) == ("wrong", "")
    assert found["note"].startswith("losses: output 0 at (")


def test_the_work_of_a_training_step() -> None:
    step = Step("lenet5", 3, "typical")
    first = 28 * 28 * 6 * 25
    rest = 10 * 10 * 16 * 25 * 6 + 400 * 120 + 120 * 84 + 84 * 10
    assert step.flops == 2 * 3 * (2 * first + 3 * rest)
    parameters = sum(p.size for p in step.build().parameters())
    assert step.bytes == 4 * (3 * 28 * 28 + 6 * parameters)


def test_every_named_network_is_among_the_steps() -> None:
    named = {"lenet5", "shapenet", "resnet20", "resnet9", "unet_small", "segnet_small"}
    for group in ("typical", "layer"):
        assert named <= {s.model for s in STEPS if s.group == group}


@needs_torch
@pytest.mark.parametrize("model", ["lenet5", "shapenet", "resnet20", "unet_small", "segnet_small"])
def test_pytorch_takes_the_same_steps(model: str) -> None:
    from bench.rivals.torch_models import as_torch

    step = Step(model, 2, "typical")
    images, labels = step.batch_of_images()
    twin = as_torch(step.build())
    x = torch.tensor(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    target = torch.tensor(labels).long()
    optimizer = torch.optim.Adam(twin.parameters(), lr=steps.LEARNING_RATE)

    def theirs() -> Any:
        loss = torch.nn.functional.cross_entropy(twin(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    ours = first_values(step, our_step(step, "cpu", np.float64))
    assert compare([first_values(step, theirs)], [ours], 1, "training").trouble == ""


@needs_torch
def test_a_layer_without_a_twin_is_refused() -> None:
    from bench.rivals.torch_models import as_torch

    with pytest.raises(TypeError, match="no PyTorch layer for GELU"):
        as_torch(gpucnn.nn.Sequential(gpucnn.nn.GELU()))


# scaling


def test_scaling_problems_lie_on_curves() -> None:
    found = list(scaling_problems(quick=True))
    batch, channels = curves(quick=True)
    assert len(found) == len(batch.cases) + len(channels.cases)
    assert point_of(found[0].case) == ("batch", 1)
    assert point_of("depthwise-32-b16") is None
    flops = {point_of(p.case): p.flops for p in found}
    assert flops["batch", 8] == 8 * flops["batch", 1]
    assert flops["channels", 8] == 64 * flops["channels", 1]


def test_the_roofs_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine._COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("bench.machine._MATRIX", 64)
    found = measure_cpu()
    assert found.copy_gb_s > 0.01
    assert found.peak_gflop_s["fp32"] > 0.01
    assert found.processor
    assert (found.gpu, found.driver, found.cupy) == ("", "", "")
