"""``gpucnn parity``: what it measures of results whose errors are known, and the command."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn.functional  # noqa: F401  registers every primitive
from bench import parity, series
from bench.problems import all_problems, select
from gpucnn.cli import main
from gpucnn.primitive import PRIMITIVES

LONGEST = 4**6


def errors(actual: Any, expected: Any, terms: int = 1) -> tuple[float, float, float, int]:
    found = parity._errors(np.asarray(actual), np.asarray(expected), terms, 1.0)
    return found.relative, found.ulp, found.scaled_ulp, found.mismatches


def single(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def test_errors_in_units_in_the_last_place() -> None:
    e = np.array([1.0, 2.0, -8.0])
    a = e.astype(np.float32)
    assert errors(a, e) == (0, 0, 0, 0)
    a[1] = np.nextafter(a[1], np.float32(3))  # 2 and its neighbour are 2**-22 apart
    assert errors(a, e) == (2.0**-23, 1, 0.25, 0)
    assert errors(a, e, terms=16) == (2.0**-23, 1, 0.0625, 0)


def test_what_cancels_counts_in_ulp_and_not_scaled() -> None:
    e = np.array([1.0, 2.0**-20])
    a = (e + np.array([0.0, 2.0**-24])).astype(np.float32)
    relative, ulp, scaled, _ = errors(a, e)
    assert (relative, ulp, scaled) == (2.0**-4, 2.0**19, 0.5)
    assert errors(single(1e-6), np.array([2e-6]))[2] == 0  # everything cancelled
    e = np.array([1.0, 2.0**-30])
    assert errors(e.astype(np.float32) * single(1, 2), e)[:2] == (0, 0)


def test_indices_nan_and_infinity_must_be_in_place() -> None:
    assert errors(np.array([1, 2, 3]), np.array([1, 5, 4]))[3] == 2
    nan, inf = np.nan, np.inf
    expected = np.array([1.0, nan, inf, -inf, 0.0])
    assert errors(expected.astype(np.float32), expected) == (0, 0, 0, 0)
    wrong = single(nan, 1, -inf, 1, 0)
    assert errors(wrong, expected)[3] == 4


Sum = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("add", "low", "high"),
    [
        (lambda x: x.sum(axis=0, dtype=np.float64).astype(np.float32), -0.1, 0.1),
        (lambda x: np.add.accumulate(x, axis=0)[-1], 0.35, 0.65),
        (lambda x: (x.sum(0, np.float64) * (1 + 1e-5 * len(x))).astype(np.float32), 0.9, 1.1),
    ],
    ids=["rounded once", "every addition rounds", "errors add up"],
)
def test_growth(add: Sum, low: float, high: float) -> None:
    growth = parity._growth("column_sum", add, "cpu", LONGEST)
    assert growth is not None
    assert low < growth < high


def test_no_growth_without_sums() -> None:
    assert series.series("relu_forward", LONGEST) == []
    assert parity._growth("relu_forward", np.abs, "cpu", LONGEST) is None


@pytest.mark.parametrize("primitive", [*series._BY_LENGTH, *series._BY_SIDE])
def test_series_have_longer_and_longer_sums(primitive: str) -> None:
    problems = series.series(primitive, 256)
    terms = [p.terms for p in problems]
    assert len(terms) == 3
    assert terms == sorted(set(terms))
    assert 16 <= terms[0] <= 20
    assert 256 <= terms[-1] <= 260
    assert all(p.primitive == primitive for p in problems)
    PRIMITIVES[primitive].definition(*problems[0].make(0))


def row(run: Callable[..., Any], primitive: str = "axis_max") -> parity.Row:
    problems = [p for p in all_problems() if p.primitive == primitive and p.group == "edge"]
    return parity._row("reduce", primitive, ("planted", run), "cpu", problems, 5, "fp32")


def test_bits_that_change_from_run_to_run_are_seen() -> None:
    right = PRIMITIVES["axis_max"].definition
    rng = np.random.default_rng(0)

    def restless(x: Any) -> Any:
        y, index = right(x)
        return y * rng.choice(single(1, 1 + 2.0**-23), y.shape), index

    assert row(right).same_bits
    found = row(restless)
    assert not found.same_bits
    assert 0 < found.ulp <= 3
    assert found.mismatches == 0


def test_wrong_indices_are_counted() -> None:
    def late(x: Any) -> Any:
        y, index = PRIMITIVES["axis_max"].definition(x)
        return y, index + 1

    found = row(late)
    assert found.mismatches > 0
    assert found.relative == 0


@pytest.mark.parametrize("family", ["linear", "pool2d", "softmax", "batch_norm", "clip"])
def test_the_cpu_loses_what_it_must(family: str) -> None:
    problems = select(all_problems(), [family], ["edge"])
    rows = parity.parity(problems, "cpu", runs=3)
    assert {r.primitive for r in rows} == {p.primitive for p in problems}
    for r in rows:
        assert r.same_bits
        assert r.mismatches == 0
        assert r.scaled_ulp < 4
        assert r.growth is None or r.growth < 0.6


@pytest.mark.emulated
def test_rungs_are_rows_of_their_own() -> None:
    problems = [p for p in all_problems() if str(p) == "conv2d_forward[2x5x7x3*4x3x3x3]"]
    rows = parity.parity(problems, "emulated", runs=2)
    assert [r.variant for r in rows] == [v for v in PRIMITIVES["conv2d_forward"].launchers if v]
    assert {"naive", "tiled"} <= {r.variant for r in rows}
    assert all(r.same_bits and r.scaled_ulp < 4 for r in rows)
    coarse = parity.parity(problems, "emulated", runs=2, precision="tf32")
    worst = {r.variant: r.scaled_ulp for r in coarse}
    assert worst["naive"] < 4
    assert 100 < worst["implicit_gemm"] < 2**14  # 10 bits of mantissa in place of 23
    half = parity.parity(problems, "emulated", runs=2, precision="bf16")
    assert worst["implicit_gemm"] < {r.variant: r.scaled_ulp for r in half}["implicit_gemm"] < 2**17


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.csv"
    arguments = ["parity", "elementwise", "--device", "cpu", "--runs", "2"]
    assert main([*arguments, "--csv", str(file)]) == 0
    out = capsys.readouterr().out
    assert "float32 on cpu against float64" in out
    assert "add_forward" in out
    assert "same bits" in out
    with file.open(encoding="utf-8") as lines:
        written = list(csv.DictReader(lines))
    assert main([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["primitive"] for r in rows] == [r["primitive"] for r in written]
    assert rows[0]["runs"] == 2
    assert rows[0]["ulp"] == 0.5 == float(written[0]["ulp"])


@pytest.mark.emulated
def test_the_command_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^gpucnn (parity .*)$", readme, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 0
    assert (tmp_path / "parity.csv").is_file()


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "conv2d", "--precision", "fp8"]) == 2
    assert "'fp32', 'tf32', 'bf16', 'fp16'" in capsys.readouterr().err
    assert main(["parity", "conv2"]) == 2
    err = capsys.readouterr().err
    assert "conv2d" in err
    assert "softmax" in err
    assert main(["parity", "pool2d", "--csv", str(tmp_path / "none" / "rows.csv")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["parity", "pool2d", "--runs", "0"]) == 2
