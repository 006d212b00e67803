"""``gpucnn check``: right and wrong kernels from outside."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn.functional  # noqa: F401  registers every primitive
from bench.checking import rank, run
from bench.checking.run import Configuration, checks, run_check
from bench.checking.source import read_kernel
from bench.checking.target import FEATURES, targets
from bench.harness import verify
from bench.tolerances import float32_bar
from gpucnn.cli import main
from gpucnn.kernel import Kernel, kernel_folder, nvrtc_version
from gpucnn.primitive import PRIMITIVES
from tests.foreign_kernels import (
    CONV,
    POOL,
    RELU,
    TILED,
    TILED_OPTIONS,
    Check,
    changed,
    checker,
    refused,
)

pytestmark = pytest.mark.emulated


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Check]:
    """Run ``gpucnn check``; afterwards no primitive has a foreign kernel."""
    yield checker(tmp_path, capsys)
    for made in PRIMITIVES.values():
        assert "yours" not in made.launchers


def test_a_right_convolution_is_ranked_beside_ours(check: Check) -> None:
    code, out, err = check(CONV, "--as", "conv2d_forward", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["ok"]
    assert result["first_failure"] is None
    assert {case["device"] for case in result["cases"]} >= {"emulated"}
    tried = {feature for case in result["cases"] for feature in case["features"]}
    assert tried == set(FEATURES) - {"ties"}
    assert all(case["ok"] and case["error"] < 1e-3 for case in result["cases"])
    kernels = {k["name"]: k for k in result["ranking"]["kernels"]}
    assert next(iter(kernels)) != "yours"
    assert set(kernels) >= {"tiled", "naive", "yours"}
    assert kernels["yours"]["counters"]["flops"] == kernels["naive"]["counters"]["flops"]


def test_a_tiled_convolution_with_its_own_launch(check: Check) -> None:
    code, out, err = check(TILED, "--as", "conv2d_forward", *TILED_OPTIONS)
    assert (code, err) == (0, ""), out
    assert re.search(r"(\d+) of \1 cases are right", out)
    assert "tiled_conv (yours)" in out
    assert "groups" not in out


def test_a_race_is_found_with_its_line(check: Check) -> None:
    racy = changed(TILED, "        __syncthreads();  // before the next channel is staged\n", "")
    code, out, _ = check(racy, "--as", "conv2d_forward", *TILED_OPTIONS, "--json")
    assert code == 1
    failure = json.loads(out)["first_failure"]
    assert failure["kind"] == "race"
    assert failure["lines"]
    assert "patch" in failure["lines"][0]["text"]


def test_a_read_out_of_bounds_is_found_with_its_line(check: Check) -> None:
    code, out, _ = check(changed(CONV, "h >= H", "h > H"), "--as", "conv2d_forward")
    assert code == 1
    assert "First failing case: 2x8x9x4*33x3x2x4,padding=((0,2),(1,0)) (padding)" in out
    assert "mine.cu:16: out-of-bounds in kernel my_conv" in out
    assert "reads x[576], an array of 576" in out
    assert re.search(r"mine.cu:\d+: sum \+= x\[", out)


def test_a_loop_that_ends_early_is_a_wrong_value(check: Check) -> None:
    short = changed(CONV, "kh < KH;", "kh < KH - 1;")
    code, out, _ = check(short, "--as", "conv2d_forward", "--without", "NaN")
    assert code == 1
    assert "First failing case: 2x5x7x3*4x3x3x3, emulated" in out
    assert re.search(r"y\[0, 0, 0, 0\]: expected -?[\d.]+, found -?[\d.]+ \(120 of 120", out)
    assert "written at mine.cu:19: y[i] = sum;" in out


def test_an_output_left_out_was_never_written(check: Check) -> None:
    code, out, _ = check(changed(CONV, "if (i >=", "if (i + 1 >="), "--as", "conv2d_forward")
    assert code == 1
    assert "y[1, 2, 4, 3]: expected " in out
    assert "never written (1 of 120 elements are wrong)" in out


@pytest.mark.parametrize(
    ("old", "new", "features"),
    [
        ("v != v", "false", {"NaN"}),
        ("oh * SH - PT", "oh * SH", {"padding"}),
        ("kw * DW", "kw", {"dilation"}),
        ("oh >= ZH || ow >= ZW", "oh >= ZH", {"stride"}),
        ("v > best", "v >= best", {"ties"}),
    ],
)
def test_what_a_pooling_forgets(check: Check, old: str, new: str, features: set[str]) -> None:
    code, out, _ = check(changed(POOL, old, new), "--as", "max_pool2d_forward", "--json")
    result = json.loads(out)
    assert code == 1
    failing = [set(case["features"]) for case in result["cases"] if not case["ok"]]
    assert all(features <= found for found in failing)
    assert result["first_failure"]["array"] in ("y", "indices")


def test_a_right_pooling(check: Check) -> None:
    code, out, _ = check(POOL, "--as", "max_pool2d_forward")
    assert code == 0, out
    assert "my_pool (yours)" in out


def test_a_relu_from_our_headers(check: Check) -> None:
    options = ("--as", "relu_forward", "--grid", "n / (4*threads)")
    code, out, _ = check(RELU, *options)
    assert code == 0, out
    code, out, _ = check(changed(RELU, "v <= 0.0f ? 0.0f : v", "v > 0.0f ? v : 0.0f"), *options)
    assert code == 1
    assert re.search(r"First failing case: \S+,NaN \(NaN\)", out)
    assert "expected nan, found 0" in out


def test_long_sums_have_the_tolerance_of_the_bench() -> None:
    one = np.ones(1)
    off = np.float32(1 + 5e-5)[None]
    origin = "y", None
    assert run._compare(off, one, 100, origin)[1] is not None
    assert run._compare(off, one, 129, origin)[1] is None
    assert verify.compare([off], [one], 129, float32_bar(129)).trouble == ""
    assert verify.compare([off], [one], 100, float32_bar(100)).trouble != ""


def test_an_input_must_stay_as_it_is(check: Check) -> None:
    text = """extern "C" __global__ void k(float* y, float* x, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) { y[i] = x[i] <= 0.0f ? 0.0f : x[i]; x[i] = 0.0f; }
    }"""
    code, out, _ = check(text, "--as", "relu_forward")
    assert code == 1
    assert "x is an input, but the kernel changes it" in out


def test_steps_in_place_and_macros(check: Check) -> None:
    text = """extern "C" __global__ void average(
        float* e, const float* p, const float* share, int n) {
        int i = blockIdx.x * blockDim.x + threadIdx.x;
        if (i < n) e[i] += SCALE * *share * (p[i] - e[i]);
    }"""
    assert check(text, "--as", "ema_step", "-D", "SCALE=1")[0] == 0
    code, out, _ = check(text, "--as", "ema_step", "-D", "SCALE=2")
    assert code == 1
    assert "e[0]: expected" in out


@pytest.mark.parametrize("name", ["conv_transpose2d_forward", "max_pool2d_forward", "gelu_forward"])
def test_our_own_kernels_pass(name: str) -> None:
    target = targets()[name]
    path = kernel_folder() / f"{target.kernel.spec.family}.cu"
    kernel = read_kernel(path, target.kernel.signature, name, target.kernel.name, {})
    for each in checks(target)[::3]:
        outcome = run_check(target, each, kernel, Configuration(ours=True), "emulated")
        assert outcome.trouble is None, outcome


def test_the_kernel_of_the_readme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("## A kernel of yours")
    kernel, shown = re.findall(r"```c?\n(.*?)```", section, re.DOTALL)[:2]
    (command,) = re.findall(r"`gpucnn (check my_relu\S+ --as \w+)`", section)
    (tmp_path / "my_relu.cu").write_text(kernel, encoding="utf-8")
    arguments = command.replace("my_relu.cu", str(tmp_path / "my_relu.cu")).split()
    assert main(arguments) == 1
    assert capsys.readouterr().out.endswith(shown)


class TestCuda:
    """The path of a GPU, with NumPy arrays, the emulator and invented times in its place."""

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ran: list[str] = []
        self.failure: Exception | None = None

        def cuda(launch: Any, arguments: Any) -> None:
            self.ran.append(launch.kernel.name)
            if self.failure is not None:
                raise self.failure
            run._emulated(launch, arguments)

        monkeypatch.setattr("gpucnn.device.cuda_available", lambda: True)
        monkeypatch.setattr(run, "_cuda", cuda)
        monkeypatch.setattr(run, "to_device", lambda array, device: np.copy(array))
        monkeypatch.setattr(rank, "_times", lambda case, names: {n: 9.0 - len(n) for n in names})
        monkeypatch.setattr(sys.modules["gpucnn.cli.check"], "architecture", lambda: "sm_90")

    def test_cases_run_on_cuda_too_and_time_ranks(self, check: Check) -> None:
        code, out, _ = check(RELU, "--as", "relu_forward", "--grid", "n / (4*threads)")
        assert code == 0, out
        assert set(self.ran) == {"my_relu"}
        assert len(self.ran) == out.count("│ cuda ")
        assert "by median time" in out
        assert out.index("my_relu (yours)") < out.rindex("relu_forward")

    def test_what_the_driver_raises_is_a_failing_case(self, check: Check) -> None:
        self.failure = RuntimeError("an illegal memory access was encountered")
        code, out, _ = check(RELU, "--as", "relu_forward", "--grid", "n / (4*threads)")
        assert code == 1
        assert "First failing case: 1, cuda\n" in out
        assert "RuntimeError: an illegal memory access" in out
        assert len(self.ran) == 1

    @pytest.mark.skipif(nvrtc_version() is None, reason="needs NVRTC")
    def test_what_nvrtc_refuses_is_not_run(self, check: Check) -> None:
        text = "#include <cmath>\n" + RELU
        err = refused(check(text, "--as", "relu_forward", "--grid", "n / (4*threads)"))
        assert err.startswith("mine.cu(1): catastrophic error: could not open source file")
        assert "my_relu does not compile for the GPU" in err
        assert self.ran == []


@pytest.mark.skipif(nvrtc_version() is None, reason="needs NVRTC")
def test_what_nvrtc_refuses_is_said_without_a_gpu(check: Check) -> None:
    text = "#include <cmath>\n" + RELU
    code, out, _ = check(text, "--as", "relu_forward", "--grid", "n / (4*threads)")
    assert code == 0
    assert "NVRTC does not compile my_relu: mine.cu(1): catastrophic error" in out


def test_kernel_objects_of_foreign_files_are_told_apart(tmp_path: Path) -> None:
    signature = targets()["relu_forward"].kernel.signature

    def read(text: str) -> Kernel:
        (tmp_path / "mine.cu").write_text(text, encoding="utf-8")
        return read_kernel(tmp_path / "mine.cu", signature, "relu_forward", None, {})

    assert read(RELU) == read(RELU)
    assert read(RELU) != read(changed(RELU, "0.0f : v", "1.0f : v"))
