"""``gpucnn train`` as a user runs it: a process with signals, exit codes and a run folder."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gpucnn
from gpucnn.training import RunFolder, load_checkpoint

ARGS = ["shapes", "--images", "480", "--epochs", "5", "--batch-size", "16", "--seed", "3"]
ARGS += ["--no-report"]
CHECKOUT = str(Path(gpucnn.__file__).parents[1])
ENVIRONMENT = {**os.environ, "GPUCNN_DEVICE": "cpu", "GPUCNN_THREADS": "2", "PYTHONPATH": CHECKOUT}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "gpucnn", *args]


def run_command(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def run_in_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a printed command as a user would: pasted into a shell."""
    return subprocess.run(
        line, shell=True, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def interrupt_after_first_epoch(cwd: Path, out: str, number: int) -> tuple[int, str, str]:
    """Train, send a signal in the second epoch, and return exit code, stdout and stderr."""
    with subprocess.Popen(
        command("train", *ARGS, "--out", out, "--json"),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        seen = []
        for line in process.stderr:
            seen.append(line)
            if line.startswith("epoch 1/5"):
                process.send_signal(number)
                break
        stdout, rest = process.communicate(timeout=60)
    return process.returncode, stdout, "".join(seen) + rest


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run, made with --json."""
    folder = tmp_path_factory.mktemp("whole")
    result = run_command("train", *ARGS, "--out", "my run", "--json", cwd=folder)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    (folder / "stderr").write_text(result.stderr)
    return folder


def test_json_is_one_line_and_progress_goes_to_stderr(whole: Path) -> None:
    lines = (whole / "stdout").read_text().splitlines()
    assert len(lines) == 1
    result = json.loads(lines[0])
    assert result.keys() == {"run", "test_accuracy", "seconds"}
    assert result["run"] == "my run"
    assert 0.3 < result["test_accuracy"] <= 1
    assert 0 < result["seconds"] < 60
    shown = (whole / "stderr").read_text().splitlines()
    assert len(shown) == 6
    assert [line[:9] for line in shown[1:]] == [f"epoch {n}/5" for n in range(1, 6)]


def test_the_run_folder(whole: Path) -> None:
    run = RunFolder.open(whole / "my run")
    config = run.read_config()
    assert (config.dataset, config.epochs, config.batch_size, config.seed) == ("shapes", 5, 16, 3)
    assert config.classes == ("triangle", "circle", "rectangle")
    rows = run.read_metrics()
    assert [row["epoch"] for row in rows if "test_accuracy" in row] == [1, 2, 3, 4, 5]
    latest = run.latest_checkpoint()
    assert latest == run.checkpoint_path(150)
    state = load_checkpoint(latest).state
    assert state["seed"] == 3
    assert state["progress"]["step"] == 150
    assert {p.name for p in run.path.iterdir()} == {
        "config.json",
        "environment.json",
        "metrics.jsonl",
        "checkpoints",
        "examples",
    }


def assert_same_bits(run: Path, other: Path) -> None:
    got, expected = (load_checkpoint(RunFolder(p).checkpoint_path(150)) for p in (run, other))
    assert got.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert got.tensors[name].tobytes() == value.tobytes(), name


def test_ctrl_c_then_the_printed_command_gives_the_same_bits(whole: Path, tmp_path: Path) -> None:
    code, stdout, stderr = interrupt_after_first_epoch(tmp_path, "my run", signal.SIGINT)
    assert code == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    printed = re.search(r"^Resume with: (.*)$", stderr, re.MULTILINE)
    assert printed, stderr
    resumed = run_in_shell(f"{printed[1]} --json", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumes at step" in resumed.stderr
    assert "epoch 1/5" not in resumed.stderr

    assert_same_bits(tmp_path / "my run", whole / "my run")
    accuracies = [
        json.loads(text)["test_accuracy"]
        for text in (resumed.stdout, (whole / "stdout").read_text())
    ]
    assert accuracies[0] == accuracies[1]
    environment = json.loads((tmp_path / "my run" / "environment.json").read_text())
    assert len(environment["resumed"]) == 1


def test_a_killed_run_resumes_from_its_last_checkpoint_to_the_same_bits(
    whole: Path, tmp_path: Path
) -> None:
    code, _, _ = interrupt_after_first_epoch(tmp_path, "run", signal.SIGKILL)
    assert code == -signal.SIGKILL
    resumed = run_command("train", "shapes", "--resume", "run", "--graph", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert_same_bits(tmp_path / "run", whole / "my run")


def test_sigterm_saves_and_exits_143(tmp_path: Path) -> None:
    code, _, stderr = interrupt_after_first_epoch(tmp_path, "run", signal.SIGTERM)
    assert code == 143, stderr
    assert "Stopped by SIGTERM after step" in stderr
    latest = RunFolder(tmp_path / "run").latest_checkpoint()
    assert latest is not None
    assert str(latest.relative_to(tmp_path)) in stderr


def test_divergence_exits_3_and_keeps_a_good_checkpoint(tmp_path: Path) -> None:
    result = run_command(
        "train", *ARGS, "--optimizer", "sgd", "--lr", "1e30", "--out", "run", cwd=tmp_path
    )
    assert result.returncode == 3
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert re.search(r"step \d+.*; the last good checkpoint is run/checkpoints/step-", errors[0])
    assert "Traceback" not in result.stderr
    assert RunFolder(tmp_path / "run").latest_checkpoint() is not None


def test_the_summary_names_the_run_and_a_command_that_works(tmp_path: Path) -> None:
    tiny = ["--images", "32", "--epochs", "1", "--batch-size", "16"]
    result = run_command("train", "shapes", *tiny, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert re.search(r"test accuracy +\d", result.stdout)
    folder = re.search(r"run folder +(runs/shapes-shapenet-\S+)", result.stdout)
    assert folder
    assert (tmp_path / folder[1] / "config.json").is_file()
    printed = re.search(r"try next +(.*)$", result.stdout, re.MULTILINE)
    assert printed
    predicted = run_in_shell(printed[1], cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    assert len(predicted.stdout.splitlines()) == 3
