"""The clocks of the bench and their statistics; the GPU's against a stand-in."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench import machine
from bench.harness import timing
from bench.harness.cpu_timer import CpuTimer
from bench.harness.ours import Ours, sets_for
from bench.harness.timing import Contender, interleave, summarise
from bench.harness.verify import Reference
from bench.problems import Problem, all_problems
from bench.rivals import Gap, Rival
from bench.run import Bench, Options
from gpucnn import emulator, kernel, launch_plan
from gpucnn.primitive import PRIMITIVES
from tests import fake_cuda


def problem(primitive: str, case: str) -> Problem:
    return next(p for p in all_problems() if p.primitive == primitive and p.case == case)


def test_statistics_are_the_median_and_two_percentiles() -> None:
    timing_ = summarise([5.0, 1.0, 2.0, 3.0, 4.0, 100.0], "1 call")
    assert (timing_.p20, timing_.median, timing_.p80) == (2.0, 3.5, 5.0)
    assert (timing_.samples, timing_.timer) == (6, "1 call")
    with pytest.raises(ValueError, match="samples must not be empty"):
        summarise([], "")


class Ticks:
    """Runs that take turns on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, ""
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)

    def run(self, name: str, seconds: float) -> Any:
        class Run:
            timer = ""

            def sample(run) -> float:
                self.now += seconds
                self.order += name
                return seconds * 1e6

        return Run()


def test_runs_take_turns_until_their_time_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks(monkeypatch)
    samples = interleave({"a": ticks.run("a", 0.01), "b": ticks.run("b", 0.02)}, 0.145)
    assert ticks.order.startswith("abababab")
    assert {name: len(s) for name, s in samples.items()} == {"a": 15, "b": 8}
    assert samples["a"][0] == pytest.approx(1e4)


def test_slow_and_fast_runs_have_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = Ticks(monkeypatch)
    samples = interleave({"a": ticks.run("a", 1.0), "b": ticks.run("b", 1e-6)}, 0.5)
    assert len(samples["a"]) == timing.FEWEST_SAMPLES
    assert len(samples["b"]) == timing.MOST_SAMPLES
    slow = interleave({"a": ticks.run("a", 2 * timing.PATIENCE)}, 0.5)
    assert len(slow["a"]) == 1


def test_garbage_waits_while_samples_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []

    class Run:
        timer = ""

        def sample(self) -> float:
            enabled.append(gc.isenabled())
            return 1.0

    interleave({"": Run()}, 0)
    assert enabled == [False] * timing.FEWEST_SAMPLES
    assert gc.isenabled()


def test_the_cpu_clock_counts_calls() -> None:
    calls: list[int] = []
    run = CpuTimer().prepare(Contender("a", calls.append))
    before = len(calls)
    assert run.sample() > 0
    assert len(calls) - before == 1 + run._calls
    assert run.timer == f"{run._calls} calls"
    assert run._calls > 100


def test_sets_of_inputs_overflow_the_cache() -> None:
    assert sets_for(1000, 0) == 1
    assert sets_for(10 << 20, 50 << 20) == 10
    assert sets_for(1, 50 << 20) == 20
    assert sets_for(1 << 32, 50 << 20) == 1


# the clock of a GPU


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made = fake_cuda.module()
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    kernel._cuda_kernel.cache_clear()
    launch_plan.forget()
    yield made
    kernel._cuda_kernel.cache_clear()
    launch_plan.forget()


@pytest.fixture
def timer(cupy: Any) -> Any:
    from bench.harness.cuda_timer import CudaTimer

    return CudaTimer()


TINY = ("softmax_forward", "3x5")


def tiny() -> Problem:
    found = [p for p in all_problems() if p.primitive == "softmax_forward" and p.group == "edge"]
    return found[1]


def own_memory(case: Ours) -> bool:
    """Whether the last result lies in the memory that is overwritten before each sample."""
    assert case._workspace is not None
    address = case._last.data.ptr
    return any(start <= address < start + size for start, size in case._workspace._chunks)


@pytest.mark.emulated
def test_a_short_kernel_is_timed_in_a_graph_of_copies(timer: Any) -> None:
    """7 µs a launch, so 7 µs a copy: neither the writing of NaN nor the flush is in the window."""
    case = Ours(Reference(tiny()), "default", "cuda", timer, sets=3)
    case.first_results()
    run = timer.prepare(case.contender)
    assert run.timer == "graph of 142"
    memsets = fake_cuda.Clock.memsets
    assert run.sample() == pytest.approx(fake_cuda.LAUNCH_US)
    assert fake_cuda.Clock.memsets - memsets >= 2  # the results' memory, and the cache
    assert own_memory(case)
    assert case.last_results_hold()


@pytest.mark.emulated
def test_a_long_kernel_is_timed_call_by_call(timer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda, "LAUNCH_US", 80.0)
    case = Ours(Reference(tiny()), "default", "cuda", timer, sets=1)
    case.first_results()
    run = timer.prepare(case.contender)
    assert run.timer == "calls: 1"
    assert run.sample() == pytest.approx(80.0)
    assert own_memory(case)
    assert case.last_results_hold()


@pytest.mark.emulated
def test_a_kernel_that_does_nothing_leaves_nan(timer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its old results would still be right, if nobody had overwritten them."""
    case = Ours(Reference(tiny()), "default", "cuda", timer, sets=2)
    assert np.isfinite(case.first_results()[0]).all()
    monkeypatch.setattr(fake_cuda.RawKernel, "__call__", lambda *_, **__: None)
    run = timer.prepare(case.contender)
    run.sample()
    assert not case.last_results_hold()


@pytest.mark.emulated
def test_in_place_results_are_checked_from_fresh_values(timer: Any) -> None:
    found = next(p for p in all_problems() if p.primitive == "sgd_step" and p.group == "edge")
    case = Ours(Reference(found), "default", "cuda", timer, sets=2)
    assert Reference(found).compare(case.first_results()).trouble == ""
    run = timer.prepare(case.contender)
    run.sample()
    assert case.last_results_hold()


def test_a_launcher_that_waits_for_the_gpu_is_called_in_a_row(timer: Any) -> None:
    x = timer.cupy.empty((4,), "float32")
    run = timer.prepare(Contender("waits", lambda i: x.get()))
    assert run.timer == "calls: 200"
    assert fake_cuda.Clock.captured is None
    assert run.sample() == 0


def test_cupy_computes_in_memory_of_its_own(timer: Any) -> None:
    """Its graph goes on writing to what it has freed: nobody else may get that."""
    from bench.harness.cuda_timer import Workspace
    from bench.rivals.cupy_rival import Cupy

    rival = Cupy.__new__(Cupy)
    rival.cupy, rival._timer = timer.cupy, timer
    found = problem("conv2d_forward", "16to32-b16")
    (offered,) = rival.rivals("conv2d_forward", found.make(0), 2)
    assert isinstance(offered, Rival)
    assert isinstance(offered.contender.outputs, Workspace)
    assert isinstance(rival.rivals("relu_forward", (), 1)[0], Gap)
    grouped = problem("conv2d_forward", "depthwise-32-b16")
    assert isinstance(rival.rivals("conv2d_forward", grouped.make(0), 1)[0], Gap)


def test_out_of_memory_is_not_taken_for_a_refusal(timer: Any) -> None:
    calls: list[int] = []

    def call(i: int) -> None:
        calls.append(i)
        if len(calls) > 12:
            raise MemoryError("no memory")

    with pytest.raises(MemoryError):
        timer.prepare(Contender("large", call))


def test_the_queue_is_filled_before_the_window(timer: Any) -> None:
    assert timer.evictions_for(0) == 1
    assert timer.evictions_for(10 * timer._eviction_us) == 15
    assert timer.evictions_for(1e9) == 50


@pytest.mark.emulated
def test_rows_of_a_gpu(
    cupy: Any, timer: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(machine, "_COPY_BYTES", {"cuda": 1 << 12})
    monkeypatch.setattr(machine, "_ROUNDS", 2)
    monkeypatch.setattr("bench.harness.cuda_timer._MOST_COPIES", 21)
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    names = ("default", "tiled", "naive")
    bench = Bench(Options(device="cuda", variants=names, against=(), seconds=0), timer)
    found = bench.results.machine
    assert (found.gpu, found.cupy, found.name) == ("Stand-in", "14.2.0", "Stand-in")
    assert found.overheads["node_us"] == pytest.approx(fake_cuda.LAUNCH_US)
    assert found.copy_gb_s == pytest.approx((1 << 12) / fake_cuda.LAUNCH_US / 1e3)
    flops = 2 * 16 * 2 * 8 * 256
    assert found.peak_gflop_s["fp32"] == pytest.approx(flops / fake_cuda.LAUNCH_US / 1e3)
    flops = 16 * 8 * 8 * 2 * 8 * 2 * 64
    assert found.peak_gflop_s["tf32"] == pytest.approx(flops / fake_cuda.LAUNCH_US / 1e3)
    for name in ("bf16", "fp16"):
        assert found.peak_gflop_s[name] == pytest.approx(2 * found.peak_gflop_s["tf32"])
    rows = bench.rows_of(problem("conv2d_forward", "2x5x7x3*4x3x3x3"))
    assert {row["variant"] for row in rows} == set(names)
    for row in rows:
        assert row["note"] == ""
        assert (row["status"], row["gpu"], row["timer"]) == ("ok", "Stand-in", "graph of 21")
        assert row["registers"] == 40
        assert row["median_us"] == pytest.approx(fake_cuda.LAUNCH_US)
        assert row["host_us"] > 0
    long = problem("conv2d_forward", "2x4x4x33*35x3x3x33,padding=1")
    bench.options.variants = ("implicit_gemm",)
    errors = {}
    for precision in gpucnn.precision.modes:
        (row,) = bench.rows_of(long, precision)
        assert (row["status"], row["precision"], row["note"]) == ("ok", precision, "")
        assert row["floor_us"] > 0
        errors[precision] = row["max_error"]
    assert 50 * errors["fp32"] < errors["tf32"] < 0.5 * errors["bf16"]
    assert errors["fp16"] == pytest.approx(errors["tf32"], rel=0.5)
    hashes = {row["variant"]: row["source_hash"] for row in rows}
    assert hashes["tiled"] != hashes["naive"]
    naive = next(row for row in rows if row["variant"] == "naive")
    assert (naive["shared_bytes"], naive["occupancy"]) == (1024, 0.5)
    assert hashes["default"] in hashes.values()


@pytest.mark.emulated
def test_a_training_step_of_a_gpu(cupy: Any, timer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.steps import Step

    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    roofs = machine.Machine("cuda", "", 1, "G", "1", "1", "1", "", "", 1.0, {"fp32": 1.0})
    options = Options(device="cuda", variants=("default",), against=(), seconds=0)
    bench = Bench(options, timer, roofs)
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 1)
    monkeypatch.setattr("bench.harness.cuda_timer._FEWEST_COPIES", 1)
    with gpucnn.use_device("cuda"):
        (row,) = bench.rows_of(Step("lenet5", 1, "typical"))
    assert (row["note"], row["status"], row["variant"]) == ("", "ok", "default")
    assert row["median_us"] > 20 * fake_cuda.LAUNCH_US


# the kernels behind the roofs


@pytest.mark.emulated
def test_the_copy_kernel_copies_every_element() -> None:
    copy = machine.kernels(emulator.RawKernel)[machine.COPY]
    for n in (1, 63, 640, 1000):
        x = np.arange(4 * n, dtype=np.float32)
        y = emulator.empty(x.shape, np.float32)
        copy((2,), (32,), (y, x, np.int32(n)))
        assert np.array_equal(y, x)


@pytest.mark.emulated
def test_the_multiply_add_kernel_does_what_is_counted() -> None:
    run = machine.kernels(emulator.RawKernel)[machine.MULTIPLY_ADD]
    y = emulator.empty((64,), np.float32)
    run((2,), (32,), (y, np.float32(0.5), np.float32(1), np.int32(3)))
    chains = np.arange(machine._CHAINS)
    for _ in range(3):
        chains = chains * 0.5 + 1
    assert np.array_equal(y, np.full(64, chains.sum(), np.float32))


@pytest.mark.emulated
@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_the_tensor_core_kernels_do_what_is_counted(precision: str) -> None:
    name, operations = machine.TENSOR_CORE_PEAKS[precision]
    run = machine.kernels(emulator.RawKernel)[name]
    y = emulator.empty((64,), np.float32)
    run((1,), (64,), (y, np.float32(0.5), np.int32(3)))
    # each instruction adds 8 or 16 products of 0.25 to each of the four sums that a thread holds
    products = operations // 2 // (16 * 8)
    tiles = 4 * (np.arange(machine._TILES) + 3 * products * 0.25)
    assert np.array_equal(y, np.full(64, tiles.sum(), np.float32))


@pytest.mark.skipif(kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC")
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_the_roof_kernels_compile_without_warnings(arch: str) -> None:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(machine.source(), "machine.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", "-ftz=true", f"-arch={arch}"))
    assert nvrtc.getProgramLog(program).strip() == ""
    nvrtc.destroyProgram(program)


def test_every_launcher_is_a_variant() -> None:
    from bench.harness.ours import implementation, variants_of

    for name, primitive in PRIMITIVES.items():
        assert variants_of(name, "cpu") == ("numpy",)
        assert implementation(name, "numpy", "cpu") is primitive.definition
        found = [implementation(name, v, "cuda") for v in variants_of(name, "cuda")]
        by_name = [f for v, f in primitive.launchers.items() if v]
        default = [primitive.on("cuda")] if "" in primitive.launchers else []
        assert found == [*default, *by_name]
