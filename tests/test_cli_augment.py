"""``gpucnn train --augment``: what it takes, what it refuses, what a run folder keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

import gpucnn
from gpucnn.cli import main
from gpucnn.training import RunFolder, load_checkpoint
from gpucnn.training.build import resume, start
from tests.test_cli import TINY, fails
from tests.test_training import CONFIG

EVERYTHING = "flip,shift=2,crop=4,brightness=0.2,contrast=0.2,cutout=8,mixup=0.2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "Invalid value for '--augment': augmentation must be made of flip, shift, "),
        ("crop", "Invalid value for '--augment': crop needs a value"),
        ("flip=1", "Invalid value for '--augment': flip takes no value"),
        ("mixup=-1", "Invalid value for '--augment': mixup must lie between 0 and 100, got -1"),
        ("crop=72", "crop must be less than the height and the width of the images, 72 x 72"),
    ],
)
def test_what_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "run")]
    assert message in fails(capsys, "train", "shapes", *TINY, *out, "--augment", text)
    assert not (tmp_path / "run").exists()


def test_label_maps_cannot_be_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*TINY, "--augment", "mixup=0.2", "--out", str(tmp_path / "run")]
    error = fails(capsys, "train", "shapes-segmentation", *options)
    assert "mixup blends images that have one label each, which shapes-segmentation" in error


def test_augmentation_cannot_stand_beside_resume(capsys: pytest.CaptureFixture[str]) -> None:
    error = fails(capsys, "train", "--resume", "run", "--augment", "flip")
    assert "--augment cannot stand beside --resume" in error


def test_a_run_keeps_its_augmentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = []
    for name, options in (
        ("a", ["--augment", EVERYTHING]),
        ("b", []),
        ("c", ["--augment", "none"]),
    ):
        with gpucnn.use_device("cpu"):
            assert main(["train", "shapes", *TINY, *options, "--out", str(tmp_path / name)]) == 0
        run = RunFolder.open(tmp_path / name)
        assert run.read_config().augmentation == (EVERYTHING if name == "a" else "none")
        latest = run.latest_checkpoint()
        assert latest is not None
        tensors.append({k: v.tobytes() for k, v in load_checkpoint(latest).tensors.items()})
    assert tensors[1] == tensors[2]
    assert tensors[0] != tensors[1]
    assert str(resume(tmp_path / "a").train.augmentation) == EVERYTHING
    assert not resume(tmp_path / "b").train.augmentation
    assert "Traceback" not in capsys.readouterr().err


def test_a_dataset_has_an_augmentation_of_its_own(tmp_path: Path) -> None:
    try:
        made = start("fashion-mnist", images=200, device="cpu", out=tmp_path / "run")
    except ValueError as missing:
        pytest.skip(str(missing))
    assert made.run is not None
    assert made.run.read_config().augmentation == str(made.train.augmentation) == "flip"


def test_configs_of_older_runs_and_of_channels(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", replace(CONFIG, mean=(0.1, 0.2), std=(0.5, 0.25)))
    assert run.read_config() == replace(CONFIG, mean=(0.1, 0.2), std=(0.5, 0.25))
    path = run.path / "config.json"
    values = json.loads(path.read_text())
    del values["augmentation"]
    path.write_text(json.dumps(values))
    assert run.read_config().augmentation is None
    path.write_text(json.dumps({**values, "augmentation": "flop"}))
    with pytest.raises(ValueError, match=r"not the config of a run .*must be made of flip"):
        run.read_config()
