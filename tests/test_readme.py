"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpucnn
from gpucnn import emulator

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_ten_lines_learn_and_go_on_as_a_graph() -> None:
    scope: dict[str, object] = {}
    exec(compile(PYTHON[0], "README.md", "exec"), scope)
    loss = scope["loss"]
    assert isinstance(loss, gpucnn.Tensor)
    before = loss.item()
    assert before < 1.0986  # ln 3: guessing among three classes
    exec(compile(PYTHON[1], "README.md", "exec"), scope)
    step, loss = scope["step"], scope["loss"]
    assert isinstance(step, gpucnn.graph.CudaGraph)
    assert isinstance(loss, gpucnn.Tensor)
    assert step.replays == 37
    assert loss.item() < before


@pytest.mark.emulated
def test_the_planted_race_is_reported_in_these_words() -> None:
    with pytest.raises(emulator.KernelFault) as fault:
        exec(compile(PYTHON[2], "README.md", "exec"), {})
    assert fault.value.kind == "race"
    (shown,) = re.findall(r"raises\n\n```\n(.*?)\n```", README, re.DOTALL)
    assert " ".join(shown.split()) == f"gpucnn.emulator.KernelFault: {fault.value}"


def test_every_command_exists() -> None:
    from gpucnn.cli import cli

    shown = set(re.findall(r"`gpucnn (\w+)", README))
    assert shown == set(cli.commands)
