"""``gpucnn evaluate`` and ``gpucnn predict`` over folders and standard input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gpucnn import data, training
from gpucnn.cli import main
from gpucnn.data.pictures import write_picture
from gpucnn.data.shapes import CLASSES, shape_levels
from tests.test_cli import TINY, fails

pytest.importorskip("PIL.Image", reason="needs Pillow")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "shapes", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of class folders, in which the classes are in another order than in the run."""
    root = tmp_path / "pictures"
    for i, (image, label) in enumerate(zip(*shape_levels(12, 5, "test"), strict=True)):
        (root / CLASSES[label]).mkdir(parents=True, exist_ok=True)
        write_picture(root / CLASSES[label] / f"{i}.png", image)
    return root


def test_the_runs_own_test_images(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = training.RunFolder(run).read_metrics()
    assert result["accuracy"] == rows[-1]["test_accuracy"]
    assert result["loss"] == rows[-1]["test_loss"]
    assert result["images"] == 2000
    assert result["images_per_second"] > 0
    assert result["classes"].keys() == set(CLASSES)
    assert sum(each["count"] for each in result["classes"].values()) == 2000
    assert main(["evaluate", str(run)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"accuracy {result['accuracy']:.2%}  loss {result['loss']:.4f}")
    assert out.splitlines()[1].split() == ["class", "labels", "precision", "recall"]
    assert err.endswith("images per second\n")


def test_pictures_are_matched_by_the_names_of_their_classes(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), str(pictures), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    levels, labels = shape_levels(12, 5, "test")
    model, config, _ = training.load_model(run)
    images = data.normalize(levels, config.mean, config.std)
    expected = training.scores(model, images).argmax(axis=1) == labels
    assert result["images"] == 12
    assert result["accuracy"] == pytest.approx(expected.mean())
    (pictures / "square").mkdir()
    write_picture(pictures / "square" / "a.png", levels[0])
    error = fails(capsys, "evaluate", str(run), str(pictures))
    assert "pictures has classes that the run does not know: square; it knows tri" in error


def test_arrays_are_matched_by_number(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels, labels = shape_levels(20, 6, "test")
    np.savez(tmp_path / "a.npz", x=levels, y=labels)
    assert main(["evaluate", str(run), str(tmp_path / "a.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 20
    np.savez(tmp_path / "a.npz", x=levels[:, :9], y=labels)
    error = fails(capsys, "evaluate", str(run), str(tmp_path / "a.npz"))
    assert "the run takes images of 72 x 72 x 1, a has 9 x 72 x 1" in error
    np.savez(tmp_path / "a.npz", x=levels, y=labels + 2)
    assert "does not know: 0, 1, 2" in fails(capsys, "evaluate", str(run), str(tmp_path / "a.npz"))


def test_predict_over_a_folder(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, pictures.rglob("*.png")))
    assert main(["predict", str(run), *files, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(sys.modules["gpucnn.cli.predict"], "_AT_ONCE", 5)
    (pictures / "notes.txt").write_text("no picture, and not looked at")
    assert main(["predict", str(run), str(pictures), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert [each["file"] for each in found] == files
    for a, b in zip(found, expected, strict=True):
        assert a["probabilities"] == pytest.approx(b["probabilities"], rel=1e-4)
    assert err.startswith("12 pictures, ")
    (pictures / "circle" / "odd.png").write_text("no picture")
    assert "odd.png: not a PNG" in fails(capsys, "predict", str(run), str(pictures), "--json")
    empty = pictures.parent / "empty"
    empty.mkdir()
    assert "holds no PNG, JPEG or BMP file" in fails(capsys, "predict", str(run), str(empty))


def test_predict_from_standard_input(
    run: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(map(str, pictures.rglob("*.png")))[:2]

    def given(content: bytes) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(content))
        monkeypatch.setattr("sys.stdin", stdin)

    given("\n".join(files).encode())
    assert main(["predict", str(run), "-", "--json"]) == 0
    assert [each["file"] for each in json.loads(capsys.readouterr().out)] == files
    given(Path(files[0]).read_bytes())
    assert main(["predict", str(run), "-"]) == 0
    assert capsys.readouterr().out.startswith("-: ")
    for content, message in (
        (b"\n", "standard input: is empty"),
        (b"\xff\xfe\x00", "standard input: neither a picture nor paths"),
        (b"\x89PNG\r\n", "standard input: not a PNG, JPEG or BMP picture"),
        (b"nowhere.png\n", "nowhere.png: no such file"),
    ):
        given(content)
        assert message in fails(capsys, "predict", str(run), "-")
    monkeypatch.setattr(sys.modules["gpucnn.cli.predict"], "_MOST_BYTES", 10)
    given(b"x" * 11)
    assert "standard input: holds more than 10 bytes" in fails(capsys, "predict", str(run), "-")
