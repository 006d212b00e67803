"""Segmentation from the command line: a short run, its numbers, its pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpucnn.cli import main

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")


def test_train_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    command = ["train", "shapes-segmentation", "--images", "48", "--epochs", "1", "--no-report"]
    command.append("--json")
    assert main([*command, "--out", str(run)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.keys() == {"run", "test_accuracy", "seconds", "test_mean_iou"}
    assert 0 < result["test_mean_iou"] <= 1
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_mean_iou"] == result["test_mean_iou"]

    pictures = sorted(str(p) for p in (run / "examples").iterdir())
    assert main(["predict", str(run), *pictures, "--json"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [p["file"] for p in predictions] == pictures
    for prediction in predictions:
        assert sum(prediction["probabilities"].values()) == pytest.approx(1)
        mask = np.asarray(Image.open(prediction["mask"]))
        assert mask.shape == (72, 72)
        assert set(np.unique(mask)) <= {0, 85, 170, 255}
        assert (mask == 0).mean() == pytest.approx(prediction["probabilities"]["background"])


@pytest.mark.parametrize(
    ("dataset", "model", "message"),
    [
        ("shapes-segmentation", "shapenet", "segnet_small, unet_small do"),
        ("shapes", "unet_small", "does not give one label per image"),
        ("shapes", "autoencoder", "does not give one label per image"),
    ],
)
def test_models_that_do_not_fit(
    dataset: str, model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", dataset, "--images", "8", "--model", model]) == 2
    assert message in capsys.readouterr().err
