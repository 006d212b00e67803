"""What the README shows is what happens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpucnn
from gpucnn import emulator

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


def block(heading: str) -> object:
    """The Python under a heading, compiled."""
    section = README.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return compile(source, "README.md", "exec")


def test_the_ten_lines_learn_and_go_on_as_a_graph() -> None:
    scope: dict[str, object] = {}
    exec(block("Ten lines"), scope)
    loss = scope["loss"]
    assert isinstance(loss, gpucnn.Tensor)
    before = loss.item()
    assert before < 1.0986  # ln 3: guessing among three classes
    exec(block("A training step as one graph"), scope)
    step, loss = scope["step"], scope["loss"]
    assert isinstance(step, gpucnn.graph.CudaGraph)
    assert isinstance(loss, gpucnn.Tensor)
    assert step.replays == 37
    assert loss.item() < before


@pytest.mark.emulated
def test_the_planted_race_is_reported_in_these_words() -> None:
    with pytest.raises(emulator.KernelFault) as fault:
        exec(block("Your own kernel, on the CPU, checked"), {})
    assert fault.value.kind == "race"
    (shown,) = re.findall(r"raises\n\n```\n(.*?)\n```", README, re.DOTALL)
    assert " ".join(shown.split()) == f"gpucnn.emulator.KernelFault: {fault.value}"


def test_weights_go_to_pytorch_and_back() -> None:
    scope: dict[str, object] = {}
    exec(block("From and to PyTorch"), scope)
    state = scope["state"]
    assert isinstance(state, dict)
    assert state["3.weight"].shape == (16, 6, 5, 5)


def test_every_block_of_python_is_run_by_a_test() -> None:
    tested = Path(__file__).read_text(encoding="utf-8").count("exec(block(")
    assert README.count("```python") == tested - 1  # less the one that looks for them


def test_every_command_exists() -> None:
    from gpucnn.cli import cli

    shown = set(re.findall(r"`gpucnn (\w+)", README))
    assert shown == set(cli.commands)
