"""``gpucnn check``: files that cannot be checked, options, signatures, expressions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gpucnn.functional  # noqa: F401  registers every primitive
from bench.checking.expression import parse_sizes
from bench.checking.source import parameter_list
from bench.checking.target import targets, why_not
from gpucnn.cli import main
from gpucnn.primitive import PRIMITIVES
from tests.foreign_kernels import POOL, RELU, Check, changed, checker, refused

pytestmark = pytest.mark.emulated


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    return checker(tmp_path, capsys)


def test_files_that_cannot_be_checked(check: Check, tmp_path: Path) -> None:
    relu = ("--as", "relu_forward")
    assert "has no kernel" in refused(check("int x;", *relu))
    assert 'write extern "C"' in refused(check("__global__ void k(float* y) {}", *relu))
    two = RELU + changed(RELU, "my_relu", "other").split("\n", 1)[1]
    assert "choose one with --kernel: my_relu, other" in refused(check(two, *relu))
    assert "only my_relu, other" in refused(check(two, *relu, "--kernel", "third"))
    err = refused(check(changed(RELU, "float* y", "int* y"), *relu))
    assert "expected: relu_forward(\n              float* y,\n" in err
    assert "got:      my_relu(\n              int* y,\n" in err
    assert "parameter 1, float* y, holds int here (int* y)" in err
    assert "is const here, but must be written" in refused(
        check(changed(RELU, "float* y", "const float* y"), *relu)
    )
    assert "3 are expected, it has 4" in refused(
        check(changed(RELU, "int n)", "int n, int m)"), *relu)
    )
    err = refused(check(changed(RELU, "});", "})"), *relu))
    assert "mine.cu:3:68: error: expected ';'" in err
    assert err.endswith("Error: my_relu does not compile: see line 3\n")
    assert "inline PTX" in refused(check(changed(RELU, "map_four", 'asm("nop;"); map_four'), *relu))
    (tmp_path / "mine.cu").write_bytes(b"\x7fELF\0\xff")
    assert main(["check", str(tmp_path / "mine.cu"), *relu]) == 2
    assert main(["check", str(tmp_path / "none.cu"), *relu]) == 2
    assert main(["check", str(tmp_path), *relu]) == 2


def test_files_of_other_editors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "// f\u00fcr jede Zahl\n" + RELU
    options = ["--as", "relu_forward", "--grid", "n / (4*threads)"]
    for encoding in ("utf-8-sig", "latin-1"):
        (tmp_path / "mine.cu").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert main(["check", str(tmp_path / "mine.cu"), *options]) == 0
    assert capsys.readouterr().err == ""


def test_options_that_are_refused(check: Check) -> None:
    assert "'bogus' is not a primitive with one kernel" in refused(check(RELU, "--as", "bogus"))
    assert "takes several kernels one after another" in refused(
        check(RELU, "--as", "batch_norm_training")
    )
    assert "leaky_relu_forward" in refused(check(RELU, "--as", "activation_forward"))
    assert "--as NAME is missing" in refused(check(RELU))
    relu = ("--as", "relu_forward")
    assert "only n, outputs, threads are known" in refused(check(RELU, *relu, "--grid", "OW/16"))
    assert "must be within 1 and" in refused(check(RELU, *relu, "--grid", "n - n"))
    assert "--ours takes the place" in refused(check(RELU, *relu, "--grid", "1", "--ours"))
    assert "'foo' is not a feature" in refused(check(RELU, *relu, "--without", "foo"))
    err = refused(check(POOL, "--as", "max_pool2d_forward", "--without", "stride,padding,C = 1"))
    assert "--without leaves no case of max_pool2d_forward" in err
    assert "is not NAME or NAME=VALUE" in refused(check(RELU, *relu, "-D", "2x"))
    assert "takes one size" in refused(check(RELU, *relu, "--shared", "1, 2"))


def test_signatures(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--signatures"]) == 0
    out = capsys.readouterr().out
    for name in targets():
        assert f"\n{name}\n" in f"\n{out}"
    assert "const float* __restrict__ w,  // (OC, KD, KH, KW, CG)" in out
    assert main(["check", "--signatures", "--as", "max_pool2d_forward", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["as"] == "max_pool2d_forward"
    assert "(N,OH,OW,C)" in row["definition"]
    assert (
        row["parameters"].splitlines()[1].strip()
        == "int* __restrict__ indices,     // (N, OH, OW, C)"
    )


def test_every_primitive_is_a_target_or_says_why_not() -> None:
    found = targets()
    assert len(found) > 90
    for primitive in PRIMITIVES:
        assert primitive in found or primitive in why_not(primitive)
    for name, target in found.items():
        assert target.cases, name
        assert parameter_list(target.kernel.signature).startswith(target.kernel.name)


def test_expressions() -> None:
    names = {"OW": 17, "OH": 3, "N": 2}

    def value(text: str) -> list[int]:
        return [e.value(names) for e in parse_sizes("--grid", text, names)]

    assert value("OW/16, OH/16, N") == [2, 1, 2]
    assert value("OW // 16 + 2 * (OH - 1) % 3") == [2]
    assert value("max(OW, 4, N), min(OH, 2)") == [17, 2]
    with pytest.raises(ValueError, match="divides by 0"):
        value("OW / (N - 2)")
    for bad in ("", "1,2,3,4", "OW.real", "x", "1.5", "N and 1", "(lambda: 1)()", "'a'", "True",
                "N**N", "-N", "min()", "max(N, key=1)", "[1]", "N if 1 else 2", "a b"):  # fmt: skip
        with pytest.raises(ValueError, match="--grid"):
            value(bad)
