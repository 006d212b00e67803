"""Every kernel once, for a checker of memory: which, in which order, and what it says."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

import gpucnn
from bench import sanitize
from bench.harness.ours import variants_of
from bench.problems import all_problems
from bench.steps import Step
from gpucnn import kernel
from gpucnn.primitive import PRIMITIVES
from tests import fake_capture


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The device ``cuda`` over a stand-in, which notes the allocators it is given."""
    made = fake_capture.module()
    made.allocators = []  # type: ignore[attr-defined]
    for name in ("set_allocator", "set_pinned_memory_allocator"):
        setattr(made.cuda, name, made.allocators.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupy", made)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    monkeypatch.setenv("GPUCNN_EMULATOR_CHECK", "0")
    kernel._cuda_kernel.cache_clear()
    yield made
    kernel._cuda_kernel.cache_clear()


def run(*arguments: str) -> Any:
    return CliRunner().invoke(sanitize.main, arguments)


def test_every_variant_comes_before_the_second_case_of_any() -> None:
    found = sanitize.calls((), "cuda")
    edge = {p.primitive for p in all_problems() if p.group == "edge"}
    first = {(name, variant) for name in edge for variant in variants_of(name, "cuda")}
    assert {(c.problem.primitive, c.variant) for c in found[: len(first)]} == first
    assert len(found) > 4 * len(first)
    assert edge == set(PRIMITIVES) & edge


@pytest.mark.emulated
def test_kernels_are_run_without_a_pool(gpu: Any) -> None:
    said = run("softmax", "--minutes", "1")
    assert said.exit_code == 0, said.output
    count = len(sanitize.calls(["softmax"], "cuda"))
    assert said.output == f"{count} of {count} calls, 0 wrong\n"
    assert gpu.allocators == [None, None]


@pytest.mark.emulated
def test_steps_come_first(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize, "STEPS", (Step("lenet5", 1, "edge"),))
    monkeypatch.setattr(sanitize, "calls", lambda *_: [])
    assert run().output == "0 of 0 calls, 0 wrong\n"
    monkeypatch.setattr(sanitize, "first_values", lambda step, run: [float("nan")])
    said = run()
    assert said.exit_code == 1
    assert "lenet5-b1] eager: " in said.output
    assert said.output.endswith("0 of 0 calls, 2 wrong\n")


def test_what_is_wrong_is_said(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Any) -> Any:
        return gpu.zeros(x.shape, x.dtype)

    def broken(x: Any) -> Any:
        raise RuntimeError("an illegal memory access was encountered")

    problem = next(p for p in all_problems() if str(p) == "log_softmax_forward[5x3]")
    one = [sanitize.Call(problem, "default")]
    monkeypatch.setattr(sanitize, "calls", lambda *_: one)
    monkeypatch.setattr(sanitize, "implementation", lambda *_: wrong)
    said = run("softmax")
    assert said.exit_code == 1
    assert said.output.startswith("log_softmax_forward[")
    assert "1 of 1 calls, 1 wrong" in said.output
    monkeypatch.setattr(sanitize, "implementation", lambda *_: broken)
    assert "RuntimeError: an illegal memory access" in run("softmax").output


def test_arguments() -> None:
    assert "'soft' is none of activation, " in run("soft").output
    assert run("softmax", "--device", "cpu").exit_code == 2
