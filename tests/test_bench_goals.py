"""The goals on a GPU: parts of steps, the stages of the run, its table; against stand-ins."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import gpucnn
from bench import machine
from bench.goals import __main__ as command
from bench.goals import accuracy, committed, facts, memory, stages, startup, steps, table
from bench.goals.counts import count, count_problem, torch_peak
from bench.goals.journal import Found, Journal, read
from bench.goals.parts import Block, Update
from bench.harness import timing
from bench.harness.verify import compare
from bench.machine import Machine
from bench.steps import Step, expected_losses
from gpucnn import data, kernel
from tests import fake_capture
from tests.fake_cuda import LAUNCH_US
from tests.support import needs_torch, torch

SMALL = [
    Block("bn", 2, "layer", (2, 6, 4, 8)),
    Block("bn", 2, "layer", (2, 6, 4, 8), residual=True),
    Block("bn", 2, "layer", (3, 4, 6, 5), pool=True),
    Update("lenet5", 1, "layer"),
]
ROOFS = Machine(
    *("cuda", "", 1, "Stand-in", "1", "2", "3", "", "2026-01-01", 100.0),
    dict.fromkeys(("fp32", "tf32", "bf16"), 1.0),
)


# parts of steps


@pytest.mark.parametrize("part", SMALL, ids=lambda part: part.case)
@pytest.mark.emulated
def test_parts_as_graphs_give_what_the_definition_gives(part: Step) -> None:
    graph = gpucnn.cuda_graph(part.ours("emulated"))
    found = [part.value(graph()) for _ in range(5)]
    assert graph.replays == 2, graph.reason
    assert compare([np.array(found[:2])], [expected_losses(part)], 1, "training").trouble == ""
    run = part.ours("cpu")
    assert found == pytest.approx([part.value(run()) for _ in range(5)], rel=1e-5)


@needs_torch
@pytest.mark.parametrize("part", SMALL, ids=lambda part: part.case)
def test_pytorch_computes_the_same_parts(part: Step) -> None:
    from bench.rivals.torch_rival import Torch

    threads = torch.get_num_threads()
    try:
        library = Torch("cpu", None, 0.0)
        expected = [expected_losses(part)]
        assert compare(library.reference(part), expected, 1, "float64").trouble == ""
        for rival in library.step_rivals(part):
            assert compare(rival.results(), expected, 1, "training").trouble == ""  # type: ignore
    finally:
        torch.set_num_threads(threads)


def test_every_task_of_the_goals_exists() -> None:
    assert [s.case for s, _ in steps.networks()] == list(steps.PRECISIONS)  # type: ignore
    assert len(steps.copying()) == len(steps.COPYING)
    cases = {str(problem) for problem, _ in steps.parts()}
    assert {f"cross_entropy_reduced[{case}]" for case in steps.LOSSES} < cases
    assert [s.model for s, _ in steps.compiled_networks()][:2] == ["resnet20", "resnet9"]  # type: ignore
    large = [p for p, _ in steps.copying() if p.bytes > 1e8]
    assert len(large) > len(steps.COPYING) - 4, "most miss any L2"


# stages


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The device ``cuda`` over a stand-in, with little to measure."""
    made = fake_capture.module()
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 1)
    for name in ("bench.run.ROW", "bench.run.PARTS"):
        monkeypatch.setattr(name, 2)
    monkeypatch.setattr("bench.goals.steps._SECONDS", 0)
    monkeypatch.setattr("bench.run.measure_cuda", lambda timer: ROOFS)
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    kernel._cuda_kernel.cache_clear()
    yield made
    kernel._cuda_kernel.cache_clear()


def later() -> float:
    return time.monotonic() + 600


@pytest.mark.emulated
def test_rows_are_written_as_they_come(gpu: Any, tmp_path: Path) -> None:
    part = dataclasses.replace(SMALL[0])
    steps.measure(Journal(tmp_path, "parts"), [(part, "tf32")], later(), against=())
    found = read(tmp_path / "goals.jsonl")
    assert found.notes() == []
    us = found.us("parts", part.case, "tf32", "graph")
    assert us is not None
    assert us >= 4 * LAUNCH_US
    assert found.us("steps", part.case, "tf32", "graph") is None
    assert [m["gpu"] for m in found.machines()] == ["Stand-in"]
    steps.measure(Journal(tmp_path, "late"), [(part, "tf32")], time.monotonic() - 1, against=())
    assert read(tmp_path / "goals.jsonl").notes() == [f"late: no time was left for {part}"]


@pytest.mark.emulated
def test_memory_of_a_step(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Pool:
        malloc = staticmethod(fake_capture._pool.malloc)
        used_bytes = staticmethod(lambda: 5_000_000)
        free_all_blocks = staticmethod(lambda: None)

    monkeypatch.setattr(gpu.cuda, "MemoryPool", Pool)
    step = Step("lenet5", 1, "layer")
    monkeypatch.setattr(memory, "networks", lambda: [(step, "tf32")])
    monkeypatch.setattr("bench.rivals.torch_rival.Torch", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TypeError):  # what is no trouble of a library's is a fault
        memory.measure(Journal(tmp_path, "memory"), later())

    def absent(*_: Any) -> Any:
        raise ImportError("no torch here")

    monkeypatch.setattr("bench.rivals.torch_rival.Torch", absent)
    memory.measure(Journal(tmp_path, "memory"), later())
    found = read(tmp_path / "goals.jsonl")
    counted = count(step, "tf32")
    assert found.figure("memory/lenet5-b1/tf32/ours") == pytest.approx(counted.peak / 1e6)
    assert found.figure("memory/lenet5-b1/tf32/held") == 5
    assert found.figure("kernels/lenet5-b1/tf32/ours") == counted.launches
    assert found.notes() == ["memory: no PyTorch: no torch here"]


@needs_torch
def test_peak_memory_of_pytorch_grows_with_the_batch() -> None:
    """float32 activations of lenet5: linear in the batch, so a larger one can be told."""
    step = Step("lenet5", 24, "layer")
    told = torch_peak(step, "fp32")
    assert told == pytest.approx(
        torch_peak(dataclasses.replace(step, batch=16), "fp32")
        + torch_peak(dataclasses.replace(step, batch=16), "fp32")
        - torch_peak(dataclasses.replace(step, batch=8), "fp32")
    )
    parameters = sum(p.size for p in step.build().parameters())
    images = 24 * (2 * 28 * 28 * 6 + 2 * 14 * 14 * 6)
    assert told > 4 * (4 * parameters + images)


@pytest.mark.emulated
def test_what_is_counted_of_a_step() -> None:
    """Adam: reads four buffers, writes three, and here and there a copy of the weights."""
    update = count(Update("lenet5", 1, "layer"), "tf32")
    assert (update.launches, update.arena) == (1, 0)
    assert update.least <= update.moved < 1.3 * update.least
    block = count(SMALL[0], "tf32")
    assert block.launches >= 4
    assert block.moved > 2 * block.least


def test_imports_are_timed_in_processes_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here with a module in the place of CuPy."""
    (tmp_path / "cupy.py").write_text("import time; time.sleep(0.05)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "GPUCNN_COMPILE": "lazy"}
    cupy, own = startup.import_seconds(environment, 60)
    assert cupy >= 0.05
    assert 0 < own < 30
    (tmp_path / "cupy.py").write_text("raise ImportError('no CuPy')")
    with pytest.raises(RuntimeError, match="ImportError: no CuPy"):
        startup.import_seconds(environment, 60)
    monkeypatch.setattr(startup, "import_seconds", lambda e, limit: (1.0, 2.0 + len(e) * 0))
    startup.measure(Journal(tmp_path, "startup"), later())
    found = read(tmp_path / "goals.jsonl")
    assert [found.figure(f"import/{n}") for n in ("cold", "warm", "cupy")] == [2, 2, 1]


@pytest.mark.emulated
def test_facts_of_a_gpu(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_COPY_BYTES", {"cuda": 1 << 12})
    monkeypatch.setattr(machine, "_ROUNDS", 2)
    monkeypatch.setattr(facts, "NODES", (1, 2, 4))
    monkeypatch.setattr(facts, "_CALLS", 2)
    monkeypatch.setattr(facts, "_TURNS", 1)
    monkeypatch.setattr(facts, "_SECONDS", 0)
    monkeypatch.setattr("bench.harness.cuda_timer._MOST_COPIES", 21)
    monkeypatch.setattr(facts, "barrier_us", lambda timer: 1.5)

    def absent(*_: Any) -> Any:
        raise ImportError("no torch here")

    monkeypatch.setattr("bench.rivals.torch_rival.Torch", absent)
    facts.measure(Journal(tmp_path, "facts"), later())
    found = read(tmp_path / "goals.jsonl")
    packed = "host: AssertionError"  # the stand-in takes no structures
    assert [n[:27] for n in found.notes()] == [f"facts: {packed}", "facts: PyTorch: ImportError"]
    assert found.figure("graph/node") == pytest.approx(LAUNCH_US)
    assert found.figure("graph/launch") == pytest.approx(0, abs=1e-6)
    for name in ("copy/cold", "copy/l2", "peak/bf16", "barrier", "host/facts_16-wrapped"):
        assert found.figure(name) is not None, name


@pytest.mark.emulated
@pytest.mark.parametrize("name", facts.names())
def test_the_kernels_of_facts_run(name: str) -> None:
    from gpucnn import emulator

    made = facts._kernel(emulator.RawKernel, name, enable_cooperative_groups="barrier" in name)
    y, one = emulator.empty((1,), np.float32), np.int32(1)
    if name == "facts_barriers":
        word = np.zeros(1, np.uint32)
        made((3,), (32,), (word, np.int32(2)))
        assert word[0] in (0, 1 << 31)
        return
    if name == "facts_packed":
        pytest.skip("the emulator takes no structures")
    count = int(name.split("_")[1])
    made((1,), (1,), (y, *([one] * (count - 2) + [np.float32(1)])[: count - 1]))
    assert y[0] == count - 1


@pytest.mark.skipif(kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC")
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_the_kernels_of_facts_compile_without_warnings(arch: str) -> None:
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(facts.source(), "facts.cu", (), ())
    nvrtc.compileProgram(program, ("-std=c++17", "-ftz=true", f"-arch={arch}"))
    assert nvrtc.getProgramLog(program).strip() == ""
    nvrtc.destroyProgram(program)


@needs_torch
def test_pytorch_trains_by_our_recipe() -> None:
    """Images that tell their class by their brightness: both runs learn them."""
    from bench.rivals.torch_rival import Torch

    rng = np.random.default_rng(0)
    labels = (np.arange(512) % 2).astype(np.int32)
    noise = rng.integers(0, 100, (512, 28, 28, 1))
    images = (noise + 120 * labels[:, None, None, None]).astype(np.uint8)
    mean, std = float(images.mean() / 255), float(images.std() / 255)
    every = data.Dataset("fashion-mnist", images, labels, tuple("abcdefghij"), mean, std)
    every = dataclasses.replace(every, augmentation=accuracy.AUGMENTATION)
    threads = torch.get_num_threads()
    try:
        library = Torch("cpu", None, 0.0)
        library.use_precision("fp32")
        runs = [
            accuracy.ours(every, every, 2, "cpu"),
            list(accuracy.theirs(library, every, every, 2)),
        ]
    finally:
        torch.set_num_threads(threads)
    for epochs in runs:
        assert len(epochs) == 2
        assert 0 < epochs[0].seconds < epochs[1].seconds
        assert epochs[1].accuracy > 0.9


def test_a_data_set_that_is_not_there_is_said(tmp_path: Path) -> None:
    accuracy.measure(Journal(tmp_path, "fashion"), later(), tmp_path)
    (note,) = read(tmp_path / "goals.jsonl").notes()
    assert note.startswith(f"fashion: unmeasured: {tmp_path}/train-images-idx3-ubyte.gz is missing")


def test_the_seconds_until_the_accuracy(tmp_path: Path) -> None:
    epochs = [accuracy.Epoch(float(i), 0.91 + 0.01 * i) for i in range(4)]
    accuracy._report(Journal(tmp_path, "fashion"), "ours", epochs)
    accuracy._report(Journal(tmp_path, "fashion"), "torch", epochs[:2])
    found = read(tmp_path / "goals.jsonl")
    assert found.figure("fashion-mnist/ours") == 2
    assert found.figure("fashion-mnist/torch") is None
    assert found.notes() == [
        "fashion: torch did not reach 93%: 2 epochs, best 92.00%, at the end 92.00%"
    ]


# the run


def test_a_stage_that_hangs_or_fails_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    programs = {
        "steps": "import time; print('begun', flush=True); time.sleep(60)",
        "parts": "raise SystemExit(3)",
        "memory": "print('measured')",
    }
    popen = subprocess.Popen

    def other(given: list[str], **options: Any) -> Any:
        assert given[1:3] == ["-m", "bench.goals"]
        assert options["env"]["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
        return popen([sys.executable, "-c", programs[given[3]]], **options)

    monkeypatch.setattr(stages.subprocess, "Popen", other)
    monkeypatch.setattr(stages, "RESERVE", 0.1)
    quick = dataclasses.replace(stages.STAGES["steps"], seconds=1.0)
    monkeypatch.setitem(stages.STAGES, "steps", quick)
    assert stages.run(["steps", "parts", "memory"], 1.0, stages.Options(tmp_path)) == 2
    assert "begun" in capfd.readouterr().out
    notes = read(tmp_path / "goals.jsonl").notes()
    assert notes[0].startswith("steps: was ended after 1")
    assert notes[1].startswith("parts: failed with 3 after")
    assert len(notes) == 2
    assert (
        "| lenet5 b128, a step | ≤ 25 µs | unmeasured | – |" in (tmp_path / "goals.md").read_text()
    )
    assert stages.run(["steps"], 1e-4, stages.Options(tmp_path)) == 1
    assert read(tmp_path / "goals.jsonl").notes()[-1] == "steps: no time was left after 0 s"


@pytest.mark.parametrize("name", list(stages.STAGES))
def test_every_stage_starts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each does what its name says, with its own journal, up to where the GPU begins."""
    begun: list[Any] = []
    for owner, function in (
        (steps, "measure"), (memory, "measure"), (startup, "measure"), (facts, "measure"),
        (accuracy, "measure"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, function, lambda *a, **k: begun.append((a, k)))
    monkeypatch.setattr("bench.command.run", lambda *a, **k: begun.append((a, k)) or 0)
    stages.inside(name, 30.0, stages.Options(tmp_path))
    assert len(begun) == 1
    if name == "layers":
        families = begun[0][0][0]
        assert "conv2d" in families
        assert "training_step" not in families


def test_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = CliRunner().invoke(command.main, ["steps"])
    assert said.exit_code == 2
    assert "the goals are measured on a GPU, and none can be used" in said.output
    monkeypatch.setattr(gpucnn, "cuda_available", lambda: True)
    done: list[Any] = []
    monkeypatch.setattr(stages, "run", lambda *a: done.append(a) or 0)
    out = ["--out", str(tmp_path)]
    assert (
        CliRunner().invoke(command.main, ["parts", "steps", "--minutes", "2", *out]).exit_code == 0
    )
    assert done == [(("parts", "steps"), 2.0, stages.Options(tmp_path))]
    assert CliRunner().invoke(command.main, out).exit_code == 0
    assert done[1][0] == tuple(stages.STAGES)
    assert CliRunner().invoke(command.main, ["nothing"]).exit_code == 2


# the table


def lines(*rows: Any) -> Found:
    made = []
    for stage, primitive, case, precision, variant, us in rows:
        made.append(
            {
                "kind": "row", "stage": stage, "primitive": primitive, "case": case,
                "precision": precision, "variant": variant, "status": "ok", "median_us": us,
                "gb_s": 90.0,
            }
        )  # fmt: skip
    return Found(made)


def shown(found: Found, text: str) -> tuple[str, str]:
    return next(goal for goal in table.GOALS if goal.text.startswith(text)).shown(found)


def test_ratios_are_of_one_run() -> None:
    step = "training_step"
    found = lines(
        ("steps", step, "resnet20-b128", "bf16", "graph", 100.0),
        ("steps", step, "resnet20-b128", "bf16", "torch_graph", 190.0),
        ("steps", step, "lenet5-b128", "tf32", "graph", 24.0),
        ("steps", step, "lenet5-b128", "tf32", "graph_8", 20.0),
        ("steps", step, "lenet5-b128", "tf32", "torch", 500.0),
        ("steps", step, "lenet5-b128", "tf32", "torch_channels_last", 380.0),
        ("steps", step, "lenet5-b128", "tf32", "torch_graph", 80.0),
        ("compiled", step, "resnet9-b512", "bf16", "torch_compiled", 3000.0),
        ("steps", step, "resnet9-b512", "bf16", "graph", 2500.0),
    )
    assert shown(found, "resnet20") == ("1.9× (190 µs by 100 µs)", "yes")
    assert shown(found, "lenet5 b128, PyTorch eager") == ("19× (380 µs by 20 µs)", "no")
    assert shown(found, "lenet5 b128, PyTorch's graph") == ("4× (80 µs by 20 µs)", "yes")
    assert shown(found, "lenet5 b128, a step") == ("20 µs", "yes")
    assert shown(found, "resnet9") == ("unmeasured", "–"), "not of one run"
    better = [("compiled", step, "resnet20-b128", "bf16", v, us) for v, us in
              (("graph", 100.0), ("torch_graph", 190.0), ("torch_compiled", 150.0))]  # fmt: skip
    assert shown(lines(*better), "resnet20") == ("1.5× (150 µs by 100 µs)", "no")


def test_several_cases_count_by_their_least() -> None:
    primitive = "cross_entropy_reduced"
    rows = [("parts", primitive, c, "fp32", "default", 10.0) for c in steps.LOSSES[:2]]
    rows += [("parts", primitive, c, "fp32", "torch", us) for c, us in
             zip(steps.LOSSES[:2], (80.0, 30.0), strict=True)]  # fmt: skip
    text, met = shown(lines(*rows), "softmax-cross-entropy")
    assert text.startswith("3× (digits-128x10: 80 µs by 10 µs; ")
    assert text.endswith("1 of 3 cases unmeasured)")
    assert met == "no"


def test_shares_of_the_copy_bandwidth() -> None:
    found = lines(
        ("copying", "relu_forward", "resnet9-64", "fp32", "default", 1.0),
        ("copying", "relu_backward", "resnet9-64", "fp32", "default", 1.0),
    )
    found.lines.append({"kind": "machine", "stage": "copying", "copy_gb_s": 100.0})
    assert shown(found, "memory-bound")[1] == "yes"
    found.lines.append({"kind": "machine", "stage": "copying", "copy_gb_s": 120.0})
    text, met = shown(found, "memory-bound")
    assert "below the bar: relu_backward resnet9-64 75%, relu_forward resnet9-64 75%" in text
    assert (text[:3], met) == ("75%", "no")


def test_figures_and_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "startup")
    journal.figure("import/warm", 0.4, "s", "after 0.30 s for cupy")
    journal.figure("import/cold", 12.0, "s")
    journal.figure("memory/lenet5-b128/tf32/ours", 4.0, "MB")
    journal.figure("memory/lenet5-b128/tf32/torch", 10.0, "MB")
    journal.figure("fashion-mnist/ours", 5.0, "s", "20 epochs")
    journal.figure("broken", float("nan"), "s")
    with (tmp_path / "goals.jsonl").open("a") as file:
        file.write('{"kind": "figure", "na')
    found = read(tmp_path / "goals.jsonl")
    assert shown(found, "import, compile cache warm") == ("0.4 s (after 0.30 s for cupy)", "yes")
    assert shown(found, "import, compile cache empty") == ("12 s", "no")
    assert shown(found, "peak memory") == ("0.4× (lenet5-b128 0.40)", "yes")
    assert shown(found, "93 %") == ("5 s (20 epochs; PyTorch unmeasured)", "–")
    assert found.figure("broken") is None


@pytest.mark.emulated
def test_the_committed_counts_are_those_of_the_code() -> None:
    """Of the quickest ones; ``python -m bench.goals --write`` counts them all anew."""
    known = {(c.case, c.precision): c for c in committed.read_counts()}
    listed = [(s.case, precision) for s, precision in committed.counted()]
    problems = steps.counted_kernels()
    assert list(known) == listed + [(str(p), "fp32") for p in problems]
    for step, precision in committed.counted():
        if step.case in ("lenet5-b128", "bn-relu-128x32x32x16", "adam-resnet20"):
            found = dataclasses.replace(
                count(step, precision), torch=known[step.case, precision].torch
            )
            assert found == known[step.case, precision], "python -m bench.goals --write"
    for problem in (problems[0], problems[-1]):
        wanted = known[str(problem), "fp32"]
        assert count_problem(problem) == wanted, "python -m bench.goals --write"


def test_the_committed_table_is_that_of_the_counts() -> None:
    assert committed.TABLE.read_text(encoding="utf-8") == committed.table()
    assert json.loads(committed.COUNTS.read_text(encoding="utf-8"))


def test_the_table_shows_every_goal() -> None:
    text = committed.table()
    for bar in ("≥ 20×", "≥ 4×", "≤ 25 µs", "≥ 1.8×", "≥ 1.5×", "≥ 1×", "≥ 2.5×", "≥ 1.3×",
                "≥ 85%", "≤ 0.5×", "≤ 0.5 s", "≤ 10 s", "beside PyTorch's"):  # fmt: skip
        assert f"| {bar} |" in text, bar
