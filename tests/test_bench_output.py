"""The files of a bench run, and the comparison of two."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bench import compare as comparing
from bench import page, plots, readme
from bench.compare import FASTER, SAME, SLOWER, compare, lines, verdict
from bench.crosscheck import Agreement, chosen
from bench.machine import Machine, read_machine
from bench.output import as_json, write_all
from bench.problems import all_problems
from bench.rivals import COLUMNS as RIVALS
from bench.rows import COLUMNS, Row, add_ratios, add_timing
from bench.run import Results
from bench.tables import columns_for, markdown, read_csv, roofs, short, show, title, write_csv
from tests.test_bench_rows import MACHINE, Timing, empty_row, problem

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

GPU = Machine(
    device="cuda",
    processor="Chip",
    threads=2,
    gpu="Accelerator <9>",
    driver="580.1",
    cupy="14.2",
    numpy="2",
    torch="2.13",
    date="2026-01-01",
    copy_gb_s=4000.0,
    peak_gflop_s={"fp32": 60_000.0, "tf32": 400_000.0},
    overheads={"node_us": 1.25, "launch_us": 6.5, "l2_copy_gb_s": 9000.0},
)


def timed(primitive: str, case: str, variant: str, us: float, machine: Machine = MACHINE) -> Row:
    found = empty_row(problem(primitive, case), variant, machine, "fp32")
    add_timing(found, Timing(us, 0.9 * us, 1.2 * us, 9, "3 calls"), machine)
    return found | {"max_error": 1e-6, "source_hash": "0123456789ab"}


def results(machine: Machine = MACHINE) -> Results:
    conv = "conv2d_forward", "16to32-b16"
    rows = [timed(*conv, name, us, machine) for name, us in (("numpy", 50.0), ("torch", 125.0))]
    rows.append(timed("softmax_forward", "8192x10", "numpy", 1234.5, machine))
    rows.append(empty_row(problem("relu_forward"), "numpy", machine, "fp32"))
    rows[-1] |= {"status": "wrong", "note": "output 0 at (1, 2) is 3, not 4 <b>|</b>"}
    add_ratios(rows[:2])
    gaps = Counter({("cupy", "CuPy computes on a GPU only"): 1, ("torch", "no such function"): 2})
    return Results(machine, rows, gaps)


def test_csv_holds_every_column_and_comes_back(tmp_path: Path) -> None:
    path, made = tmp_path / "a.csv", results()
    write_csv(path, made.rows)
    with path.open(encoding="utf-8") as file:
        assert next(csv.reader(file)) == list(COLUMNS)
    assert read_csv(path) == made.rows
    asked = "family case variant device precision median_us p20_us p80_us gb_s gflop_s floor_us"
    asked += " floor_share ratio_torch ratio_cupy max_error registers shared_bytes occupancy gpu"
    asked += " driver cupy source_hash date"
    assert set(asked.split()) <= set(COLUMNS)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"a\.csv is not a table of gpucnn bench: no family"):
        read_csv(path)
    write_csv(path, results().rows)
    path.write_text(path.read_text().replace("50.0", "fast"))
    with pytest.raises(ValueError, match="median_us must be a number, got 'fast'"):
        read_csv(path)


def test_the_title_says_what_was_measured() -> None:
    assert title(MACHINE) == (
        "gpucnn bench: NumPy definitions on the CPU (Chip, 2 threads, no GPU), 2026-01-01"
    )
    assert title(GPU) == (
        "gpucnn bench: CUDA kernels (Accelerator <9>, driver 580.1, CuPy 14.2), 2026-01-01"
    )
    assert roofs(GPU).endswith(
        "copy 4,000.0 GB/s, 60,000 GFLOP/s fp32, 400,000 GFLOP/s tf32; an empty kernel 1.25 µs in "
        "a graph, 6.50 µs launched from Python"
    )


def test_markdown_shows_gaps_and_trouble() -> None:
    text = markdown(results(), ("torch", "cupy"))
    assert text.startswith("# gpucnn bench: NumPy definitions on the CPU")
    table = [line for line in text.splitlines() if line.startswith("| conv2d_forward")]
    cells = [cell.strip() for cell in table[0].split("|")[1:-1]]
    header = next(line for line in text.splitlines() if line.startswith("| primitive"))
    by = dict(zip((c.strip() for c in header.split("|")[1:-1]), cells, strict=True))
    assert (by["µs"], by["p20–p80"], by["× torch"], by["× cupy"]) == ("50", "45–60", "2.50", "–")
    assert "registers" not in by
    assert "- cupy: CuPy computes on a GPU only\n- torch: no such function (2 times)" in text
    assert "relu_forward 16-b8 numpy: wrong: output 0 at (1, 2)" in text
    assert "| relu_forward | 16-b8 | numpy | wrong | – |" in text


def test_columns_that_make_no_sense_are_left_out() -> None:
    made = results(GPU)
    names = [c.name for c in columns_for(made.rows, ())]
    assert "registers" not in names
    assert "ratio_cupy" not in names
    made.rows[0]["registers"] = 40
    assert "registers" in [c.name for c in columns_for(made.rows, ())]


def test_times_are_short() -> None:
    assert [short(v) for v in (0.01234, 3.14159, 99.94, 123.4, 12345.6)] == [
        *("0.0123", "3.14", "99.9", "123", "12,346")
    ]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags[tag] += 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_all_files_of_a_run(tmp_path: Path) -> None:
    made = results(GPU)
    files, missing = write_all(tmp_path, made, ("torch",), "old.csv", ["1 faster"])
    assert missing == []
    names = {path.name for path in files}
    assert names == {
        *("bench.csv", "bench.md", "bench.html", "machine.json"),
        *("roofline.png", "conv2d.png", "softmax.png"),
    }
    assert read_machine(tmp_path / "machine.json") == GPU
    html = (tmp_path / "bench.html").read_text(encoding="utf-8")
    seen = _Page()
    seen.feed(html)
    assert seen.tags["img"] == 3
    assert all(source.startswith("data:image/png;base64,") for source in seen.sources)
    assert seen.tags["script"] == seen.tags["link"] == seen.tags["b"] == 0
    assert "Accelerator <9>" in seen.text
    assert "is 3, not 4 <b>|</b>" in seen.text
    assert "Compared with old.csv" in seen.text
    assert "<9>" not in html


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    from PIL import Image

    made = results()
    base = timed("conv2d_forward", "16to32-b16", "numpy", 10.0)
    made.rows += [
        base | {"case": f"scaling-{axis}-{n}", "variant": variant}
        for axis in ("batch", "channels")
        for n in (1, 2, 4)
        for variant in ("numpy", "torch")
    ]
    step = {"family": "training_step", "primitive": "training_step", "case": "lenet5-b64"}
    made.rows += [base | step, base | step | {"variant": "torch"}]
    names = [path.name for path in plots.draw(tmp_path, made.rows, MACHINE)]
    assert names[:3] == ["training-steps.png", "roofline.png", "scaling.png"]
    assert names[3:] == ["conv2d.png", "softmax.png", "training_step.png"]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert 600 <= picture.width <= 1200
            assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 8


def in_precision(row: Row, precision: str, us: float) -> Row:
    return row | {"precision": precision, "median_us": us}


def test_precisions_are_told_apart(tmp_path: Path) -> None:
    base = timed("conv2d_forward", "16to32-b16", "default", 10.0, GPU)
    rows = [base, in_precision(base, "tf32", 5.0)]
    figure = plots.bars("conv2d", rows, plots._styles(["default"]))
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [10.0, 5.0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["forward 16to32-b16", "forward tf32 16to32-b16"]
    roofs_drawn = plots.roofline(rows, GPU, plots._styles(["default"])).axes[0]
    assert [max(line.get_ydata()) for line in roofs_drawn.lines] == [60_000.0, 400_000.0]
    assert roofs_drawn.get_legend_handles_labels()[1] == ["gpucnn", "gpucnn tf32"]
    step = {"family": "training_step", "primitive": "training_step", "case": "lenet5-b64"}
    steps = [row | step for row in rows]
    drawn = plots.overview(steps, GPU, plots._styles(["default"]))
    assert [axes.get_title("left") for axes in drawn.axes] == ["fp32", "tf32"]
    table = readme.steps_table(steps)
    assert "| lenet5, batch 64 | 0.01 | – |" in table
    assert "| lenet5, batch 64, tf32 | 0.005 | – |" in table
    text = markdown(Results(GPU, rows), ())
    assert "| default | 10 |" in text
    assert "| default tf32 | 5 |" in text
    changed = in_precision(rows[1], "tf32", 50.0) | {"p20_us": 49.0, "p80_us": 51.0}
    assert "16to32-b16 default tf32: 5 → 50 µs" in lines(compare([changed], rows))[1]


def test_pure_copies_are_not_on_the_roofline() -> None:
    copies = timed("max_pool2d_forward", "lenet-6-b32", "numpy", 10.0) | {"flops": 0}
    figure = plots.roofline([copies], MACHINE, plots._styles(["numpy"]))
    assert "(without 1 rows that only move data)" in figure.axes[0].get_title("left")


def test_a_busy_machine_is_named_at_the_head(capsys: pytest.CaptureFixture[str]) -> None:
    busy = dataclasses.replace(MACHINE, remark="the machine was busy")
    made = results(busy)
    assert "Not to be trusted: the machine was busy." in markdown(made).split("##")[0]
    assert "Not to be trusted: the machine was busy." in page.render(made, []).split("<h2")[0]
    show(made, ())
    assert "not to be trusted: the machine was busy" in capsys.readouterr().out.split("conv2d")[0]


def test_a_narrow_terminal_breaks_no_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = results()
    show(made, ("torch", "torch_channels_last"))
    wide = capsys.readouterr().out
    assert "45–60" in wide
    assert "not shown" not in wide
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setenv("COLUMNS", "72")
    show(made, ("torch", "torch_channels_last"))
    narrow = re.sub("\x1b\\[[0-9]*m", "", capsys.readouterr().out)
    assert "…" not in narrow
    assert re.search(r" forward +16to32-b16 +numpy +50 .* 2\.50 ", narrow)
    assert "1.0e-06" in narrow
    assert re.search(r"not shown on 72 columns: .*GB/s", narrow)


def test_series_have_colours_and_marks_of_their_own() -> None:
    own = ["default", "naive", "tiled", "register_tiled", "implicit_gemm"]
    styles = plots._styles([*own, *RIVALS])
    assert len({colour for colour, _ in styles.values()}) == len(own) + len(RIVALS)
    assert len({marker for _, marker in styles.values()}) == len(own) + len(RIVALS)
    assert list(styles)[:5] == own


def test_a_run_without_rows_has_no_pictures(tmp_path: Path) -> None:
    files, _ = write_all(tmp_path, Results(MACHINE), ())
    assert {path.suffix for path in files} == {".csv", ".md", ".html", ".json"}


def test_missing_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "matplotlib", None)
    monkeypatch.setitem(modules, "jinja2", None)
    files, missing = write_all(tmp_path, results(), ())
    assert {path.suffix for path in files} == {".csv", ".md", ".json"}
    assert missing == [plots.available(), page.available()]
    assert "pip install 'gpucnn[plot]'" in missing[0]


def test_json_has_null_for_what_is_not_known() -> None:
    made = results()
    made.rows[3]["max_error"] = float("inf")
    found = json.loads(json.dumps(as_json(made, ["x"]), allow_nan=False))
    assert found["rows"][3]["median_us"] is None
    assert found["rows"][3]["max_error"] is None
    assert found["rows"][0]["median_us"] == 50.0
    assert found["machine"]["copy_gb_s"] == 10.0
    assert found["gaps"][0]["rival"] == "cupy"


# two runs


def pair(old: float, new: float, spread: float) -> tuple[Row, Row]:
    base = timed("conv2d_forward", "16to32-b16", "numpy", 1.0)

    def run(us: float) -> Row:
        low, high = us * (1 - spread), us * (1 + spread)
        return base | {"median_us": us, "p20_us": low, "p80_us": high}

    return run(new), run(old)


@pytest.mark.parametrize(
    ("old", "new", "spread", "expected"),
    [
        (100, 80, 0.05, FASTER),
        (100, 125, 0.05, SLOWER),
        (100, 80, 0.15, SAME),  # 68–92 against 85–115
        (100, 125, 0.15, SAME),
        (100, 100, 0.01, SAME),
        (100, 98.5, 0.001, SAME),  # apart, but by too little
        (100, 97, 0.001, FASTER),
    ],
)
def test_changes_are_judged_by_the_noise(
    old: float, new: float, spread: float, expected: str
) -> None:
    assert verdict(*pair(old, new, spread)) == expected


def test_comparison_of_runs() -> None:
    new, old = pair(100, 50, 0.04)
    other = old | {"case": "gone"}
    rival = old | {"variant": "torch"}
    broken = old | {"case": "broken", "status": "wrong", "median_us": ""}
    fresh = old | {"case": "fresh"}
    found = compare([new, rival, fresh, broken], [old, other, rival, broken])
    assert [c.verdict for c in found.changes] == [FASTER]
    assert [r["case"] for r in found.added] == ["fresh"]
    assert [r["case"] for r in found.removed] == ["gone"]
    assert found.changes[0].ratio == 2
    assert found.changes[0].noise == pytest.approx(0.04)
    said = lines(found)
    assert said[0] == "1 faster, 0 slower, 0 within the noise; 1 new, 1 not measured now"
    assert said[1].endswith("100 → 50 µs, ×2.00, noise ±4.0%: faster")
    elsewhere = [r | {"processor": "Other"} for r in (old, other)]
    assert lines(compare([new], elsewhere))[1] == "two machines: Other then, Chip now"


def test_the_largest_change_comes_first() -> None:
    slower, old = pair(100, 300, 0.01)
    slight, _ = pair(100, 120, 0.01)
    rows = [slight, slower | {"case": "b"}, old | {"case": "c"}]
    found = compare(rows, [old | {"case": r["case"]} for r in rows])
    assert found.changes[0].row["case"] == "b"
    assert found.changes[-1].verdict == comparing.SAME


# the second clock


def test_two_clocks_agree_within_five_percent() -> None:
    assert Agreement("a", 104.9, 100.0).agrees
    assert not Agreement("a", 105.1, 100.0).agrees
    assert not Agreement("a", 94.0, 100.0).agrees
    assert str(Agreement("a", 110.0, 100.0)).endswith("+10.0%: differ by more than 5%")


def test_ten_kernels_are_large_enough_for_both_clocks() -> None:
    found = chosen(all_problems())
    assert len(found) == 10
    assert len({p.primitive for p in found}) == 10
    assert all(p.bytes >= 1 << 28 for p in found)
