"""``gpucnn kernels``: output, options, what is missing, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpucnn import emulator, kernel
from gpucnn.cli import main
from gpucnn.xray import record, report, sass, select, tables
from gpucnn.xray.occupancy import LIMITS

needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)
CASE = ["--problem", "relu_forward[16-b8]"]


def output(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> tuple[str, str]:
    """Run ``gpucnn kernels`` and return what it printed on stdout and on stderr."""
    assert main(["kernels", *args]) == code
    out, err = capsys.readouterr()
    return out, err


def refused(capsys: pytest.CaptureFixture[str], *args: str, code: int = 2) -> str:
    out, err = output(capsys, *args, code=code)
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["conv2d_tield"], "'conv2d_tield' is not a kernel. Did you mean 'conv2d_tiled'"),
        (["nosuch"], "Files: activation, adam, adaptive_pool2d, "),
        (["--gpu", "H2000"], "must be one of T4, A10, A100, L4, RTX 4090, H100, H200, B200. Did "),
        (["--gpu", "T4", "--precision", "tf32"], "T4 has no tensor cores for it"),
        (["--gpu", "H200", "--precision", "int8"], "one of fp32, tf32, bf16, fp16, got 'int8'"),
        (["--precision", "bf16"], "--precision belongs to --gpu"),
        (["--arch", "sm_42"], "'sm_42' is not one of sm_75, sm_80, sm_86"),
        (["conv2d", "--problem", "16to33-b16"], "Did you mean '16to32-b16'"),
        (["dropout", "--problem", "nosuch"], "Cases: 16-b8, resnet9-64, shapenet-16, lenet-6, and"),
        (["--problem", "nosuch"], "A NAME beside it lists its cases: conv2d, conv2d_fused, "),
        (["adam", "--problem", "16to32-b16"], "none of the kernels named"),
        (["--annotate"], "--annotate needs a NAME"),
        (["adam", "--annotate", "--json"], "cannot stand beside --json"),
        (["adam", "--write-table", "x.csv"], "leave out NAME, --problem and --arch"),
        (["--compare", "/nowhere.csv"], "does not exist"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert message in refused(capsys, *args)


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "--help")
    assert "gpucnn kernels conv2d --problem 16to32-b16 --gpu H200\n" in out


@needs_nvrtc
@pytest.mark.emulated
def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, *CASE, "--arch", "sm_80", "--arch", "sm_90", "--gpu", "A10", "--json")
    result = json.loads(out)
    assert result["gpu"]["bandwidth"] == 600
    assert result["nvrtc"] == record.compiler_version()
    assert [row["arch"] for row in result["kernels"]] == ["sm_80", "sm_90"]
    row = result["kernels"][0]
    assert (row["kernel"], row["file"], row["macros"]) == ("relu_forward", "activation", {})
    assert (row["threads"], row["dynamic_shared"]) == (256, 0)
    assert row["usage"]["spill_stores"] == 0
    assert row["occupancy"]["warps"] == LIMITS["sm_80"].warps
    assert (row["problem"], row["variant"]) == ("relu_forward[16-b8]", "")
    n = 4 * 8 * 32 * 32 * 16
    counters = row["counters"]
    assert counters["read_bytes"] == counters["written_bytes"] == n
    assert counters["footprint_bytes"] == counters["problem_bytes"] == 2 * n
    assert counters["sectors_per_request"] == 16
    assert {site["access"] for site in counters["sites"]} == {"read", "write"}
    assert row["prediction"]["floor_us"] == pytest.approx(2 * n / 600e9 * 1e6 + 1)
    if sass.disassembler():
        assert row["instructions"]["all"]["LDG.128"] >= 1


@needs_nvrtc
@pytest.mark.emulated
def test_details_of_a_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "transpose_tiles", "--gpu", "rtx 4090")
    for text in (
        "compiled for sm_90, counted by the emulator",
        "requests by source line: loads and stores",
        "transpose.cu:",
        "registers, occupancy and what limits it",
        "predicted for RTX 4090 in fp32: 1008 GB/s, 82.6 TFLOP/s",
        *LIMITS,
    ):
        assert text in out
    assert "\x1b" not in out  # no colours in a pipe
    assert "transpose_forward[to-nchw-16-b8]" in out


@needs_nvrtc
@pytest.mark.emulated
@pytest.mark.parametrize("width", [80, 120])
def test_a_narrow_terminal_gets_several_tables(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr(tables, "_WIDE", width)
    out, _ = output(capsys, *CASE)
    first = out[: out.index("instructions, most")] if "instructions, most" in out else out
    assert max(map(len, first.splitlines())) <= width
    assert "…" not in first
    for text in ("regis-", "524.3", "16.00 / 16.00", "MFLOP", "relu_forward[16-b8]"):
        assert text in first
    assert first.count("┏") > 1


@pytest.mark.emulated
def test_annotated_source(capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capsys, "transpose_tiles", "--annotate")
    assert out.startswith("transpose_tiles [] on transpose")
    source = (kernel.kernel_folder() / "transpose.cu").read_text(encoding="utf-8")
    assert all(f"| {line}" in out for line in source.splitlines() if line)
    (barrier,) = [line for line in out.splitlines() if "__syncthreads();" in line]
    assert barrier.split()[0] == "bar"


@pytest.mark.emulated
def test_the_margin_in_the_readme_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")
    shown = readme[readme.index("\naccess requests") + 1 :].partition("\n```")[0].splitlines()
    out, _ = output(capsys, "conv2d_tiled", "--annotate")
    printed = out.splitlines()
    assert shown[0] in printed
    at = printed.index(shown[1])
    assert printed[at : at + len(shown) - 1] == shown[1:]


@pytest.mark.emulated
def test_without_nvrtc_the_counters_stay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "nvrtc_version", lambda: None)
    monkeypatch.setattr(record, "nvrtc_version", lambda: None)
    out, err = output(capsys, *CASE)
    assert "counted by the emulator" in out
    assert "16.00 / 16.00" in out
    assert "compiled for" not in out
    assert err.splitlines() == [
        "note: no registers and no occupancy: CuPy or NVRTC is missing "
        "(pip install 'gpucnn[cuda13x]')"
    ]
    assert json.loads(output(capsys, *CASE, "--json")[0])["nvrtc"] is None


@needs_nvrtc
def test_without_gxx_the_compiler_stays(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emulator, "available", lambda: False)
    monkeypatch.setattr(emulator, "why_unavailable", lambda: "no g++ here")
    out, err = output(capsys, "relu_forward")
    assert "compiled for sm_90" in out
    assert "counted" not in out
    assert "note: no counters: no g++ here" in err.splitlines()
    assert "no g++ here" in refused(capsys, "relu_forward", "--annotate")


@needs_nvrtc
def test_without_the_disassembler_a_note_names_the_wheel(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sass, "disassembler", lambda: None)
    out, err = output(capsys, "relu_forward")
    assert "instructions" not in out
    assert err.splitlines().count(f"note: {sass.HINT}") == 1
    assert "pip install nvidia-cuda-nvdisasm" in sass.HINT


def test_without_both_it_is_one_sentence_and_exit_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "nvrtc_version", lambda: None)
    monkeypatch.setattr(emulator, "available", lambda: False)
    assert "no registers" in refused(capsys, code=1)


def test_a_kernel_that_does_not_compile_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise RuntimeError("pool2d: error:\n  too bad")

    monkeypatch.setattr(report, "examine", fail)
    assert refused(capsys, "relu_forward") == "Error: pool2d: error: too bad"


# the table


def line(**numbers: str) -> record.Record:
    return {**dict.fromkeys(record.COLUMNS, ""), "kernel": "k", "problem": "p", "nvrtc": "13.4",
            **numbers}  # fmt: skip


def test_what_got_worse_is_named() -> None:
    before = [line(registers_sm_90="32", sectors_per_request="4.0000", worst_conflict="2")]
    now = [line(registers_sm_90="40", sectors_per_request="3.5000", worst_conflict="2")]
    worse, better = sorted(record.compare(before, now), key=lambda change: not change.worse)
    assert str(worse) == "k: registers_sm_90 32 -> 40"
    assert worse.worse
    assert str(better) == "k: sectors_per_request 4.0000 -> 3.5000"
    assert not better.worse
    assert record.compare(before, before) == []


def test_what_cannot_be_compared_is_left_out() -> None:
    before = line(registers_sm_90="32", barriers="1")
    other_compiler = line(registers_sm_90="40", barriers="2", nvrtc="13.5")
    (change,) = record.compare([before], [other_compiler])
    assert change.column == "barriers"
    assert record.compare([before], [line(registers_sm_90="", barriers="")]) == []
    assert record.compare([before], [line(barriers="9", problem="another")]) == []
    assert record.compare([before], [line(barriers="9", macros="TILE_GN=8")]) == []


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "kernels.csv"
    lines = [line(file="b", registers_sm_80="8"), line(file="a", macros="W=2 T=3")]
    record.write_records(path, lines)
    assert record.read_records(path) == lines[::-1]
    path.write_text("kernel,registers\nk,3\n")
    with pytest.raises(ValueError, match="is not a table of kernels"):
        record.read_records(path)


@needs_nvrtc
@pytest.mark.emulated
def test_a_table_written_and_compared(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    only = select.find_kernels("relu_forward")[:1]
    monkeypatch.setattr(select, "all_kernels", lambda: only)
    path = tmp_path / "new" / "kernels.csv"
    _, err = output(capsys, "--write-table", str(path))
    assert err.splitlines()[-1] == f"1 kernels written to {path}"
    (written,) = record.read_records(path)
    assert written["problem"] == "relu_forward[16-b8]"
    assert (written["sectors_per_request"], written["threads"]) == ("16.0000", "256")
    assert all(written[f"registers_{arch}"].isdigit() for arch in record.ARCHITECTURES)
    out, err = output(capsys, "--compare", str(path))
    assert out == ""
    assert "0 numbers changed, 0 kernels are new, 0 gone" in err

    path.write_text(path.read_text().replace("16.0000", "8.0000", 1))
    out, _ = output(capsys, "--compare", str(path), code=1)
    assert out == "worse   relu_forward: sectors_per_request 8.0000 -> 16.0000\n"


def test_kernels_that_came_and_went() -> None:
    spec = kernel.Specialisation("pool2d", (("WINDOW", 2),))
    listed = [line(kernel="f", macros="WINDOW=2"), line(kernel="f", macros="WINDOW=9")]
    new, gone = record.unlisted([(spec, "f"), (spec, "g")], listed)
    assert (new, gone) == (["g [WINDOW=2]"], ["f [WINDOW=9]"])
