"""``gpucnn bench``: arguments, files, exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from bench import command, crosscheck, plots
from bench.harness import timing
from bench.problems import all_problems
from bench.run import Bench
from bench.steps import STEPS
from bench.tables import read_csv
from gpucnn.cli import main
from tests import fake_cuda
from tests.test_bench_rows import MACHINE
from tests.test_cli import fails


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timing, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(command, "_SECONDS", {"quick": 0.0, "full": 0.0})
    run = command.run
    monkeypatch.setattr(
        command, "run", lambda *a, **k: run(*a, **k, make_bench=lambda o: Bench(o, machine=MACHINE))
    )
    monkeypatch.setattr(plots, "available", lambda: "no pictures in this test")
    monkeypatch.chdir(tmp_path)


def test_one_case_to_all_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["bench", "softmax", "--case", "512x200", "--against", "none", "--out", str(out)]
    assert main(arguments) == 0
    stdout, err = capsys.readouterr()
    assert "NumPy definitions on the CPU (Chip, 2 threads, no GPU)" in stdout
    assert "softmax_backward" in stdout
    assert "[4/4] log_softmax_backward 512x200: numpy " in err
    rows = read_csv(out / "bench.csv")
    assert len(rows) == 4
    assert {(r["case"], r["status"]) for r in rows} == {("512x200", "ok")}
    again = ["--json", "--compare", str(out / "bench.csv"), "--out", str(tmp_path / "again")]
    assert main([*arguments[:-2], *again]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rows"]) == 4
    assert found["comparison"][0].endswith("0 new, 0 not measured now")


def test_the_folder_has_a_name_of_its_own(tmp_path: Path) -> None:
    arguments = ["bench", "--case", "512x200", "--against", "none", "--variant", "numpy"]
    assert main(["bench", "softmax", *arguments[1:]]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("bench-cpu-")
    assert (folder / "bench.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convolution"], "'convolution' is not a family, which must be one of activation, adam, "),
        (["softmx"], "Did you mean 'softmax'?"),
        (["softmax", "--case", "1x1x1"], "'1x1x1' is not a case, which must be one of "),
        (["softmax", "--case", "relu"], "512x200"),
        (["--variant", "fast"], "'fast' is not a variant, which must be one of numpy."),
        (["--variant", "naive"], "'naive' is not a variant, which must be one of numpy."),
        (["--precision", "fp8"], "'fp8' is not a precision of cpu, which must be one of fp32."),
        (["--precision", "tf32"], "'tf32' is not a precision of cpu"),
        (
            ["--against", "tvm"],
            "'tvm' is not a rival, which must be one of torch, cupy, jax, none.",
        ),
        (["--device", "emulated"], "'emulated' is not one of 'cpu', 'cuda'."),
        (["--minutes", "0"], "--minutes"),
        (["--compare", "missing.csv"], "'missing.csv' does not exist"),
        (["--cross-check"], "--cross-check compares two clocks of a GPU, and none is used here."),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(capsys, "bench", "--device", "cpu", *arguments)
    assert not Path("runs").exists()


def test_a_table_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.csv"
    path.write_text("a\n1\n")
    assert "is not a table of gpucnn bench" in fails(capsys, "bench", "--compare", str(path))


def test_the_emulator_has_no_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import gpucnn

    monkeypatch.setattr("gpucnn.device.require", lambda name: name)
    with gpucnn.use_device("emulated"):
        assert "has no times worth measuring" in fails(capsys, "bench")


def test_nvbench_is_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "_choose_device", lambda device: "cuda")
    monkeypatch.setattr(crosscheck.importlib.util, "find_spec", lambda name: None)
    said = fails(capsys, "bench", "--cross-check")
    assert said == "Error: --cross-check: cuda-bench is not installed; pip install cuda-bench."


@pytest.mark.parametrize("agree", [True, False])
def test_the_exit_code_of_a_cross_check(
    agree: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [crosscheck.Agreement("a", 100.0, 101.0), crosscheck.Agreement("b", 100.0, 150.0)]
    found = pairs[: 1 if agree else 2]
    monkeypatch.setattr(command, "_choose_device", lambda device: "cuda")
    monkeypatch.setattr(command, "open_timer", lambda device: None)
    monkeypatch.setattr(crosscheck, "unavailable", lambda: "")
    monkeypatch.setattr(crosscheck, "cross_check", lambda timer, problems: found)
    assert main(["bench", "--cross-check"]) == (0 if agree else 1)
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"1 of {len(found)} kernels agree within 5%"


def test_ctrl_c_writes_the_rows_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows_of, calls = Bench.rows_of, []

    def interrupted(self: Bench, *task: Any) -> Any:
        calls.append(task)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows_of(self, *task)

    monkeypatch.setattr(Bench, "rows_of", interrupted)
    out = tmp_path / "out"
    arguments = ["bench", "softmax", "--quick", "--against", "none", "--out", str(out)]
    assert main(arguments) == 130
    assert "the run is not complete: interrupted" in capsys.readouterr().err
    assert len(read_csv(out / "bench.csv")) == 2
    assert "interrupted" in (out / "bench.md").read_text(encoding="utf-8")


def test_quick_and_full_sets() -> None:
    quick, full = (command.selected((), (), quick) for quick in (True, False))
    assert {p.group for p in quick} == {"typical", "scaling"}
    assert {p.group for p in full} == {"layer", "edge", "scaling"}
    assert full[: len([s for s in STEPS if s.group == "layer"])] == [
        s for s in STEPS if s.group == "layer"
    ]
    edge = [p for p in all_problems() if p.group == "edge"]
    assert full[-len(edge) :] == edge
    primitives = {p.primitive for p in all_problems()}
    assert {p.primitive for p in quick if p.family != "training_step"} == primitives
    letters = {p.case[0] for p in full if p.family == "conv2d" and p.group == "layer"}
    assert letters == set("ABCDEFGHIJKLMNOPQ")


def test_precisions_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", fake_cuda.module())
    assert command.precisions_of("cuda", ()) == ("fp32", "tf32")
    assert command.precisions_of("cuda", ("bf16", "fp16")) == ("bf16", "fp16")
    assert command.precisions_of("cpu", ()) == ("fp32",)
    with pytest.raises(click.UsageError, match="must be one of fp32, tf32, bf16, fp16"):
        command.precisions_of("cuda", ("fp8",))


def test_other_precisions_are_for_tensor_cores() -> None:
    problems = command.selected(("conv2d", "softmax", "training_step"), (), quick=True)
    found = command.tasks(problems, ("fp32", "tf32"))
    both = {p.family for p, precision in found if precision == "tf32"}
    assert both == {"conv2d", "training_step"}
    assert len([p for p, precision in found if precision == "fp32"]) == len(problems)
