"""The command line on pictures and arrays of one's own, and its lists."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from gpucnn import models, training
from gpucnn.cli import main
from tests.test_cli import TINY, fails
from tests.test_data_own import levels, write_pictures

pytest.importorskip("PIL.Image", reason="needs Pillow")


def test_a_folder_is_trained_on_resumed_and_predicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, run = tmp_path / "pictures", tmp_path / "run"
    write_pictures(pictures, 8, (20, 16))
    (pictures / "cat" / "odd.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    options = ["--size", "16x20", "--gray", "--batch-size", "4", "--epochs", "2", "--no-report"]
    assert main(["train", "pictures", *options]) == 2
    assert "odd.png: not a PNG" in capsys.readouterr().err
    with warnings.catch_warnings():  # which the suite turns into errors
        warnings.simplefilter("always")
        assert main(["train", "pictures", *options, "--skip-unreadable", "--out", str(run)]) == 0
    out, err = capsys.readouterr()
    assert "on 5 images" in out
    assert "Warning: left out 1 of 25 pictures:" in err
    model, config, _ = training.load_model(run)
    assert config.dataset == str(pictures)
    assert (config.image_shape, config.size, config.gray) == ((16, 20, 1), (16, 20), True)
    assert config.classes == ("cat", "dog", "emu")
    assert config.model == "fashionnet"
    assert model[0].weight.shape == (16, 3, 3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", "--resume", str(run), "--no-report"]) == 0
    assert "is finished" in capsys.readouterr().err
    assert main(["predict", str(run), "pictures/dog/1.jpg", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["probabilities"].keys() == {"cat", "dog", "emu"}


def test_arrays_are_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "mine.npz", x=levels(40, 50, 48), y=np.arange(40) % 2)
    command = ["train", str(tmp_path / "mine.npz"), "--epochs", "1", "--no-report"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert "on 8 images" in capsys.readouterr().out
    config = training.RunFolder(tmp_path / "run").read_config()
    assert (config.model, config.batch_size, config.size) == ("shapenet", 8, None)
    maps = np.arange(40 * 64).reshape(40, 8, 8) % 3
    np.savez(tmp_path / "maps.npz", x=levels(40, 8, 8), y=maps)
    command = ["train", str(tmp_path / "maps.npz"), "--epochs", "1", "--no-report", "--json"]
    assert main([*command, "--out", str(tmp_path / "maps")]) == 0
    assert "test_mean_iou" in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["shapes", "--gray"], "gray is for a folder of pictures, shapes is none"),
        (["./nowhere"], "nowhere: no such folder"),
        (["nowhere.npz"], "nowhere.npz: cannot be read"),
        (["x", "--size", "big"], "'big' is no size, such as 64 or 48x64"),
        (["mnist"], "data_dir must name the folder of mnist's files"),
        (["shapes", "--model", "vgg_small", "--images", "9"], ""),
    ],
)
def test_errors(
    args: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if message:
        assert message in fails(capsys, "train", *args)
    else:  # a network made for other images takes these
        assert main(["train", *args, *TINY[4:], "--batch-size", "4", "--epochs", "1"]) == 0


def test_too_small_images_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", x=levels(20, 6, 6), y=np.arange(20) % 2)
    error = fails(capsys, "train", str(tmp_path / "a.npz"))
    assert "model fashionnet: images of 6 x 6 are too small" in error


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datasets"]) == 0
    out = capsys.readouterr().out
    for name in ("shapes ", "cifar10 ", "FOLDER ", "FILE.npz "):
        assert f"\n{name}" in f"\n{out}"
    assert main(["datasets", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() >= {"mnist", "cifar10"}
    assert main(["models", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert tuple(found) == models.names()
    assert found["lenet5"]["parameters"] == 61_706
    assert main(["models"]) == 0
    assert "   61,706 parameters  For 28×28×1" in capsys.readouterr().out
