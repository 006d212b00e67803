"""Choosing kernels by measurement: what is measured, kept, read again and taken."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.cases import Conv2dCase
from bench.harness.timing import Contender
from bench.problems import Problem
from bench.problems.convolution import passes
from bench.tune import Tuner, measure, selected
from gpucnn import cache, emulator, kernel, nn, tuning
from gpucnn.cli import main
from gpucnn.ops.conv2d import conv2d_data_gradient, conv2d_forward, conv2d_weight_gradient
from gpucnn.ops.conv2d_fused import conv2d_fused_data_gradient, conv2d_fused_forward
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, REGISTER_TILED, Rung
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.ops.linear import LinearGeometry
from gpucnn.summary import summarize
from gpucnn.tuning import Choice, Line
from tests.support import randn

needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)
GPU = "Stand-in GPU"


def geometry(channels: int = 8, filters: int = 20, dims: int = 2) -> ConvGeometry:
    x, w = (np.zeros((n, *(6,) * dims, channels), np.float32) for n in (1, filters))
    return conv_geometry(dims, x, w[(slice(None), *(slice(3),) * dims)], None, 1, 1, 1, 1)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The table of a GPU on which host arrays are said to live."""
    monkeypatch.setenv("GPUCNN_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("GPUCNN_TUNED", raising=False)
    monkeypatch.setattr(tuning, "cache_folder", cache.cache_folder.__wrapped__)
    monkeypatch.setattr(tuning, "_gpu_of", lambda x: GPU)
    tuning.forget()
    yield tuning.table_path(GPU)
    tuning.forget()


def label(made: Any = conv2d_forward, mode: str = "fp32", s: ConvGeometry | None = None) -> str:
    """What the cuda path of a primitive launches, on host arrays and without running it."""
    s = s or geometry()
    x, w, y = (np.zeros(shape, np.float32) for shape in (s.x_shape, s.w_shape, s.y_shape))
    inputs: dict[Any, tuple[Any, ...]] = {
        conv2d_forward: (x, w, None), conv2d_data_gradient: (y, w), conv2d_weight_gradient: (y, x)
    }  # fmt: skip
    launches: list[kernel.Launch] = []
    with (
        gpucnn.precision(mode),
        kernel.without_running(),
        kernel.observe_launches(launches.append),
    ):
        made.on("cuda")(*inputs[made], s)
    return tuning.kernel_label(launches)


def line(variant: str, tile: str = "", made: Any = conv2d_forward, mode: str = "fp32") -> Line:
    return Line(made.name, mode, geometry(), Choice(variant, tile), 1.0, 2.0)


def names(choices: list[Choice]) -> list[str]:
    return [str(choice) for choice in choices]


def test_candidates_are_all_variants_and_tiles() -> None:
    found = names(tuning.candidates("conv2d_forward", "fp32", geometry(), Choice("tiled")))
    assert {"naive", "tiled", "register_tiled 128×128", "implicit_gemm 64×64"} <= set(found)
    assert {"direct", "depthwise"}.isdisjoint(found)
    assert "implicit_gemm 256×128" not in found  # three products do not fit its registers
    assert len(found) == len(set(found))
    in_tf32 = names(tuning.candidates("conv2d_forward", "tf32", geometry(), Choice("tiled")))
    assert "implicit_gemm 256×128" in in_tf32


def test_kernels_for_few_channels_are_candidates_where_they_fit() -> None:
    s = geometry(3, 16)
    assert "direct" in names(tuning.candidates("conv2d_forward", "fp32", s, Choice("direct")))
    strided = dataclasses.replace(geometry(16, 4), SH=2)
    rules = Choice("tiled")
    assert "direct" in names(tuning.candidates("conv2d_data_gradient", "fp32", s, rules))
    assert "direct" not in names(tuning.candidates("conv2d_data_gradient", "fp32", strided, rules))


@pytest.mark.parametrize("s", [geometry(7), geometry(8, dims=3)], ids=["7 channels", "volumes"])
def test_where_a_rung_has_one_tile_it_is_not_named(s: ConvGeometry) -> None:
    found = names(tuning.candidates("conv2d_forward", "fp32", s, Choice("tiled")))
    assert {"register_tiled", "implicit_gemm"} <= set(found)


def test_weight_gradients_keep_their_kernel() -> None:
    """Another one would cut the sum into other slices."""
    name = "conv2d_weight_gradient"
    assert names(tuning.candidates(name, "fp32", geometry(), Choice("tiled"))) == ["tiled"]
    rules = Choice("implicit_gemm", "64×64")
    found = tuning.candidates(name, "tf32", geometry(), rules)
    assert {choice.variant for choice in found} == {"implicit_gemm"}
    assert len(found) == len(IMPLICIT_GEMM.tiles)
    assert names(tuning.candidates(name, "tf32", geometry(8, 18), rules)) == ["implicit_gemm"]


def test_candidates_of_linear_layers() -> None:
    s = LinearGeometry(5, 8, 12)
    found = names(tuning.candidates("linear_forward", "tf32", s, Choice("tiled")))
    assert {"tiled", "register_tiled 64×64", "implicit_gemm 128×16"} <= set(found)


@needs_emulator
@pytest.mark.parametrize("rung", [REGISTER_TILED, IMPLICIT_GEMM], ids=lambda r: r.name)
def test_tiles_leave_every_bit(rung: Rung) -> None:
    s = conv_geometry(2, randn(2, 9, 10, 8), randn(20, 3, 3, 8), None, 1, 1, 1, 1)
    x, w, y = randn(*s.x_shape), randn(*s.w_shape, seed=1), randn(*s.y_shape, seed=2)
    for made, inputs in (
        (conv2d_forward, (x, w, None)),
        (conv2d_data_gradient, (y, w)),
        (conv2d_weight_gradient, (y, x)),
    ):
        with gpucnn.precision("tf32"):
            results = {
                str(tile): Choice(rung.name, str(tile)).launcher(made)(*inputs, s).tobytes()
                for tile in rung.tiles
            }
        assert len(set(results.values())) == 1, made.name


# ---- measuring


class FakeTimer:
    """Takes a time for each name instead of measuring it."""

    l2_bytes = 0

    def __init__(self, **times: float) -> None:
        self.times, self.called = times, list[str]()

    def prepare(self, contender: Contender) -> Any:
        launches: list[kernel.Launch] = []
        with kernel.observe_launches(launches.append):
            contender.call(0)
        self.called.append(f"{contender.name}: {tuning.kernel_label(launches)}")
        us = self.times.get(contender.name.replace(" ", "_").replace("×", "x"), 100.0)
        return type("FakeRun", (), {"timer": "", "sample": lambda self: us})()


def small_problem(primitive: str = "conv2d_forward", channels: int = 8) -> Problem:
    """Of channels too many for the kernels for few."""
    case = Conv2dCase((1, 6, 6, channels), (20, 3, 3, channels), {"padding": 1})
    found = passes("conv2d", 2, "own", case, "edge")
    return next(p for p in found if p.primitive == primitive)


def tuner(**times: float) -> Tuner:
    return Tuner(FakeTimer(**times), "emulated", 0.0)


@needs_emulator
def test_the_fastest_is_chosen_and_each_runs_as_named() -> None:
    mine = tuner(register_tiled_128x64=50.0)
    found = mine.tune(small_problem(), "fp32")
    assert found is not None
    assert str(found.choice) == "register_tiled 128×64"
    assert (found.us, found.rules_us) == (50.0, 100.0)
    assert mine.troubles == []
    for entry in mine.timer.called:
        name, ran = entry.split(": ")
        assert ran == name or ran.split()[0] == name


@needs_emulator
def test_a_kernel_for_some_problems_is_chosen_and_taken(table: Path) -> None:
    mine = tuner(winograd=50.0)
    for primitive in ("conv2d_forward", "conv2d_data_gradient"):
        found = mine.tune(small_problem(primitive), "fp32")
        assert found is not None
        assert str(found.choice) == "winograd"
    assert mine.troubles == []
    assert "winograd: winograd" in mine.timer.called
    tuning.write_table(table, GPU, [line("winograd")])
    tuning.forget()
    assert label() == "winograd"


@needs_emulator
def test_noise_does_not_move_the_choice() -> None:
    found = tuner(register_tiled_128x64=99.0).tune(small_problem(), "fp32")
    assert found is not None
    assert str(found.choice) == "register_tiled 128×32"


@needs_emulator
def test_a_wrong_candidate_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = conv2d_forward.launchers["naive"]
    monkeypatch.setitem(conv2d_forward.launchers, "naive", lambda *a: wrong(*a) + 1)
    mine = tuner(naive=1.0)
    found = mine.tune(small_problem(), "fp32")
    assert found is not None
    assert found.choice.variant != "naive"
    assert ["naive" in trouble for trouble in mine.troubles] == [True]


@needs_emulator
def test_nothing_to_choose_is_no_line() -> None:
    lines: list[Line] = []
    measure(tuner(), [(small_problem("conv2d_weight_gradient", 6), "fp32")], lines)
    assert lines == []


# ---- the table


def test_a_measured_choice_is_taken(table: Path) -> None:
    assert label() == "register_tiled 128×32"
    tuning.write_table(table, GPU, [line("register_tiled", "128×64"), line("naive", mode="tf32")])
    tuning.forget()
    assert label() == "register_tiled 128×64"
    assert label(mode="tf32") == "naive"
    assert label(s=geometry(filters=24)) == "register_tiled 128×32"
    assert label(conv2d_data_gradient) == "register_tiled 128×16"
    with gpucnn.use_variant(conv2d="naive"):
        assert label() == "naive"


@needs_emulator
@pytest.mark.usefixtures("cuda_path")
def test_fused_convolutions_take_the_measured_choice(table: Path) -> None:
    s = geometry()
    shapes = s.x_shape, s.w_shape, s.y_shape
    x, w, y = (gpucnn.Tensor(np.zeros(n), device="cuda").data for n in shapes)

    def fused(made: Any, *arguments: Any) -> str:
        launches: list[kernel.Launch] = []
        with gpucnn.precision("fp32"), kernel.observe_launches(launches.append):
            made.on("cuda")(*arguments)
        return tuning.kernel_label(launches)

    forward = conv2d_fused_forward, x, w, *(None,) * 4, s, "relu", 0.0, True
    backward = conv2d_fused_data_gradient, y, w, None, x, None, None, None, s, "relu", 0.0
    for tile in ("128×64", "64×64"):
        lines = [line("register_tiled", tile), line("implicit_gemm", tile, conv2d_data_gradient)]
        tuning.write_table(table, GPU, lines)
        tuning.forget()
        assert fused(*forward) == f"register_tiled {tile}"
        assert fused(*backward) == f"implicit_gemm {tile}"


def test_the_table_can_be_ignored(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.write_table(table, GPU, [line("naive")])
    monkeypatch.setenv("GPUCNN_TUNED", "0")
    tuning.forget()
    assert label() == "register_tiled 128×32"


def test_new_lines_replace_those_of_the_same_problem(table: Path) -> None:
    tuning.write_table(table, GPU, [line("naive"), line("naive", mode="tf32")])
    tuning.write_table(table, GPU, [line("register_tiled", "64×64")])
    found = {entry.precision: str(entry.choice) for entry in tuning.read_table(table)}
    assert found == {"fp32": "register_tiled 64×64", "tf32": "naive"}


def test_other_kernels_are_another_table(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.write_table(table, GPU, [line("naive")])
    monkeypatch.setattr(tuning, "kernel_hash", lambda: "0" * 16)
    assert tuning.table_path(GPU) != table
    assert tuning.table_path("Another GPU").name.startswith("Another-GPU-")
    tuning.forget()
    assert label() == "register_tiled 128×32"


def test_the_hash_is_of_the_sources_and_their_macros(monkeypatch: pytest.MonkeyPatch) -> None:
    before = tuning.kernel_hash.__wrapped__()
    assert before == tuning.kernel_hash.__wrapped__()
    specs = list(kernel.specialisations())
    dropped = [s for s in specs if not s.family.startswith("conv2d_naive")]
    monkeypatch.setattr(tuning, "specialisations", lambda: dropped)
    assert tuning.kernel_hash.__wrapped__() != before


def entry(**changes: Any) -> str:
    good = {"primitive": "conv2d_forward", "precision": "fp32", "variant": "naive", "tile": "",
            "geometry": [2, *geometry().numbers], "us": 1, "rules_us": 2}  # fmt: skip
    return json.dumps({"lines": [{**good, **changes}]})


def test_an_entry_is_read(table: Path) -> None:
    table.write_text(entry())
    tuning.forget()
    assert label() == "naive"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"lines": 3}', '{"lines": [3]}', "\xff\xfe",
        entry(primitive="conv9"), entry(precision="fp8"), entry(variant="fast"),
        entry(variant="register_tiled", tile="3×3"), entry(geometry=[1, 2]), entry(us="soon"),
    ],
)  # fmt: skip
def test_a_broken_table_is_ignored_with_a_warning(table: Path, text: str) -> None:
    table.write_bytes(text.encode("latin-1", "replace"))
    tuning.forget()
    with pytest.warns(UserWarning, match="is not a table of 'gpucnn tune'"):
        assert label() == "register_tiled 128×32"


def test_host_arrays_have_no_gpu() -> None:
    assert tuning._gpu_of(np.zeros(1)) == ""


# ---- where it shows


def test_the_summary_names_the_kernels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 20, 3), nn.ReLU(), nn.Flatten(), nn.Linear(320, 5))
    assert [row.kernel for row in summarize(model, (6, 6, 3))] == ["numpy", "", "", "numpy"]


@needs_emulator
def test_the_summary_of_another_device_and_precision() -> None:
    with gpucnn.use_device("emulated"):
        model = nn.Sequential(nn.Conv2d(8, 20, 3), nn.Flatten(), nn.Linear(320, 5))
        rows = summarize(model, (6, 6, 8))
        assert [row.kernel for row in rows] == ["register_tiled 128×32", "", "tiled 128×8"]
        with gpucnn.precision("tf32"):
            assert summarize(model, (6, 6, 8))[0].kernel == "implicit_gemm 128×32"
            wide = nn.Sequential(nn.Conv2d(8, 64, 1))
            tiles = [summarize(wide, (16, 16, 8), n)[0].kernel for n in (1, 256)]
            assert tiles == ["implicit_gemm 64×64", "implicit_gemm 128×64"]


@needs_emulator
def test_the_command_shows_the_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["summary", "resnet20", "--json", "--precision", "tf32", "--batch-size", "4"]
    with gpucnn.use_device("emulated"):
        assert main(command) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    found = {layer["kernel"] for layer in layers if layer["layer"].startswith("Conv2d")}
    assert {"direct", "implicit_gemm 128×16", "implicit_gemm 128×32"} <= found
    assert main(["summary", "resnet20", "--precision", "fp8"]) == 2
    assert "'fp8' is not a precision" in capsys.readouterr().err


# ---- the command


@pytest.mark.skipif(gpucnn.cuda_available(), reason="a GPU works here: nothing to refuse")
def test_without_a_gpu_the_command_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "conv2d"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: tune measures on a GPU, and none can be used here: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pool2d"], "'pool2d' is not a family, which is one of conv2d, "),
        (["--case", "nothing"], "'nothing' is not a case, which is one of lenet-6to16-b32, "),
        (["--device", "emulated"], "No such option"),
    ],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_what_is_measured_by_default() -> None:
    every = selected((), ())
    assert {p.group for p in every} == {"typical", "layer"}
    assert {p.family for p in selected(["linear"], ())} == {"linear"}
    assert [str(p) for p in selected(["conv2d"], ["I-vgg-128"])] == [
        f"conv2d_{direction}[I-vgg-128]"
        for direction in ("forward", "data_gradient", "weight_gradient")
    ]
