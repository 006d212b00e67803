"""The measured part of the README, generated from committed tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench import publish, readme
from bench.output import write_rows
from bench.publish import folder_name
from tests.test_bench_output import results, timed


def test_the_readme_is_generated(tmp_path: Path) -> None:
    folder = tmp_path / "bench" / "results" / "cpu-chip"
    made = results()
    base = timed("conv2d_forward", "16to32-b16", "numpy", 2000.0)
    step = {"family": "training_step", "primitive": "training_step", "case": "lenet5-b64"}
    epoch = base | step | {"case": "shapenet-b64"}
    made.rows += [epoch, epoch | {"variant": "torch", "median_us": 4000.0}]
    own = base | step | {"ratio_torch": 4.0, "ratio_torch_channels_last": 2.5}
    made.rows += [own, base | step | {"variant": "torch", "median_us": 8000.0}]
    write_rows(folder, made)
    text = readme.generated(tmp_path)
    assert "**Chip, 2 threads, no GPU**, 2026-01-01 (NumPy definitions, no GPU used)" in text
    assert "| ms per step | gpucnn | PyTorch | best rival ÷ gpucnn |" in text
    assert "| lenet5, batch 64 | 2 | 8 | 2.50 |" in text
    assert "The steps of an epoch take: shapes (24,000 images) 0.8 s, with PyTorch 1.5 s." in text
    assert re.search(r"\| `conv2d` \| 1 \| \d+% \| 2.50 \|", text)
    marks = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n"
    new = readme.rewritten(marks, text)
    assert new.startswith("a\n" + readme.BEGIN)
    assert new.endswith(readme.END + "\nb\n")
    assert "old" not in new
    assert readme.rewritten(new, text) == new
    assert readme.generated(tmp_path / "bench").startswith("No measurement is committed")
    with pytest.raises(ValueError, match="needs the marks"):
        readme.rewritten("no marks", text)


def test_gpus_come_first(tmp_path: Path) -> None:
    for name in ("cpu-b", "h200", "cpu-a", "a100"):
        write_rows(tmp_path / "bench" / "results" / name, results())
    found = [path.name for path in readme.result_folders(tmp_path)]
    assert found == ["a100", "h200", "cpu-a", "cpu-b"]


def test_the_readme_says_what_was_measured() -> None:
    text = (readme.ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.rewritten(text, readme.generated()) == text


def test_folders_are_named_after_machines() -> None:
    assert folder_name("cpu", "AMD EPYC (9) @2.5GHz", 2) == "cpu-amd-epyc-9-2-5ghz-2-threads"
    assert folder_name("cuda", "NVIDIA H200", 0) == "nvidia-h200"


@pytest.mark.parametrize("code", [0, 130])
def test_publishing_measures_and_rewrites_the_readme(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def measure(arguments: list[str]) -> int:
        calls.append(arguments)
        folder = Path(arguments[-1])
        write_rows(folder, results())
        (folder / "bench.html").write_text("page")
        return code

    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "main", measure)
    monkeypatch.setattr(readme.main, "main", lambda **_: calls.append("readme"))
    assert publish.publish() == code
    arguments, *rest = calls
    assert arguments[:4] == ["bench", "--device", "cpu", "--quick"]
    assert Path(arguments[-1]).parent == tmp_path / "bench" / "results"
    assert rest == (["readme"] if code == 0 else [])
    assert (Path(arguments[-1]) / "bench.html").exists() is (code != 0)
