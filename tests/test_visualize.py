"""Reports of runs: what they measure is right, the page is whole and harmless."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import data, models, nn, training
from gpucnn.cli import main
from gpucnn.training import RunFolder
from gpucnn.training.run import Config
from gpucnn.visualize import figures, probe
from gpucnn.visualize.report import chosen_images, measure, mistakes, write_report
from tests.support import assert_close, randn

ODD = '<script>alert("x")</script>'


def dataset(n: int = 30, per_pixel: bool = False) -> data.Dataset:
    levels = (np.arange(n * 144) * 37 % 251).astype(np.uint8).reshape(n, 12, 12, 1)
    labels = np.arange(n, dtype=np.int32) % 3
    if per_pixel:
        labels = np.broadcast_to(labels[:, None, None], (n, 12, 12)).copy()
    labels[4] = -100
    return data.Dataset("odd & even", levels, labels, ("a", ODD, "c"), 0.5, 0.3)


def network(classes: int = 3) -> nn.Sequential:
    gpucnn.seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(80, classes),
    )


def test_measured_scores_are_those_of_loops() -> None:
    model, test = network(), dataset()
    found = measure(model, test)
    table = np.zeros((3, 3), int)
    for i in range(len(test)):
        with nn.module.inference(model), gpucnn.no_grad():
            scores = model(gpucnn.Tensor(test.normalize(test.images[i : i + 1]))).numpy()[0]
        assert found.predicted[i] == scores.argmax()
        assert_close(found.probabilities[i], np.exp(scores) / np.exp(scores).sum(), "torch")
        if test.labels[i] >= 0:
            table[test.labels[i], scores.argmax()] += 1
    assert (found.confusion == table).all()
    assert found.accuracy == np.trace(table) / 29
    for c, row in enumerate(found.classes(test.classes)):
        assert row.count == table[c].sum()
        assert row.recall == table[c, c] / table[c].sum()
        guessed = table[:, c].sum()
        assert row.precision == (table[c, c] / guessed if guessed else None)
        if row.precision is None or not table[c, c]:
            assert row.f1 is None
        else:
            assert row.f1 == pytest.approx(2 * table[c, c] / (guessed + row.count))
    wrong = mistakes(found, test)
    assert all(found.predicted[i] != test.labels[i] >= 0 for i, _ in wrong)
    sure = [p for _, p in wrong]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] == max(
        found.probabilities[i].max() for i in range(30) if found.predicted[i] != test.labels[i] >= 0
    )
    assert chosen_images(found, test) == [0, 1, 2]


def test_label_maps_are_measured_pixel_by_pixel() -> None:
    model, test = nn.Conv2d(1, 3, 1), dataset(7, per_pixel=True)
    found = measure(model, test)
    assert found.confusion.sum() == 6 * 144
    assert found.probabilities is None
    assert found.predicted.shape == (7, 12, 12)


def score_of(model: nn.Module, image: np.ndarray, label: int) -> float:
    with nn.module.inference(model), gpucnn.no_grad():
        return float(model(gpucnn.Tensor(image, device="cpu")).numpy()[0, label])


def test_saliency_is_the_slope_of_the_score() -> None:
    model = network().to("cpu")
    image = randn(1, 12, 12, 1, seed=4)
    found = probe.saliency(model, image, np.array([1]))
    assert found.shape == (1, 12, 12)
    for h, w in ((0, 0), (5, 7), (11, 3)):
        step = np.zeros_like(image)
        step[0, h, w] = 1e-2
        slope = (score_of(model, image + step, 1) - score_of(model, image - step, 1)) / 2e-2
        assert abs(slope) == pytest.approx(found[0, h, w], abs=2e-3)


def test_grad_cam_by_hand() -> None:
    """A linear layer's weights are the gradient behind Flatten; here they are averaged by hand."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)).to("cpu")
    images = randn(2, 12, 12, 1, seed=5)
    found = probe.grad_cam(model, images, np.array([2, 0]))
    maps = next(o.output for o in probe.layer_outputs(model, images) if o.name == "1")
    for n, label in enumerate((2, 0)):
        slopes = model[3].weight.numpy()[label].reshape(10, 10, 4)
        expected = np.zeros((10, 10))
        for c in range(4):
            expected += slopes[..., c].mean() * maps[n, ..., c]
        assert_close(found[n], np.maximum(expected, 0), "torch", 16)
    other = probe.grad_cam(model, images, np.array([2, 0]), "0")
    assert other.shape == (2, 10, 10)
    with pytest.raises(ValueError, match="layer must be one whose output is an image, 0, 1; got"):
        probe.grad_cam(model, images, np.array([0, 0]), "3")
    with pytest.raises(ValueError, match="no layer's output is an image"):
        probe.grad_cam(nn.Linear(3, 2), randn(2, 3), np.array([0, 0]))


@pytest.mark.parametrize("name", ["resnet20", "unet_small", "alexnet_mini"])
def test_looking_inside_changes_nothing(name: str) -> None:
    model = models.create(name).to("cpu").train()
    before = model.state_dict()
    shape = models.input_shape(name)
    images = randn(1, *shape)
    outputs = probe.layer_outputs(model, images)
    assert {o.name for o in outputs} >= {
        n for n, m in model.named_modules() if hasattr(m, "weight")
    }
    labels = np.zeros((1, *shape[:2]) if models.kind(name) == "pixel" else 1, np.int64)
    assert probe.saliency(model, images, labels).shape == (1, *shape[:2])
    assert probe.grad_cam(model, images, labels).ndim == 3
    found = probe.gradients(model, images, labels)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(m) for _, m in model.named_modules())
    for key, value in model.state_dict().items():
        assert value.tobytes() == before[key].tobytes()


def make_run(tmp_path: Path, test: data.Dataset) -> RunFolder:
    config = Config(
        dataset=test.name, data_dir=None, images=30, model=f"m{ODD}", device="cpu", seed=0,
        epochs=2, batch_size=4, optimizer="adam", optimizer_options={}, lr=0.01,
        classes=test.classes, image_shape=test.image_shape, mean=0.5, std=0.3,
    )  # fmt: skip
    run = RunFolder.create(tmp_path / "run", config)
    for step in (10, 20):
        run.log({"step": step, "epoch": 1, "loss": 1 / step, "accuracy": 0.5, "lr": 0.01})
    row: dict[str, Any] = {"step": 20, "epoch": 1, "train_loss": 0.1, "train_accuracy": 0.5}
    run.log({**row, "test_loss": 0.2, "test_accuracy": 0.4, "test_mean_iou": 0.3})
    return run


@pytest.mark.parametrize("per_pixel", [False, True])
def test_the_report_is_one_harmless_file(tmp_path: Path, per_pixel: bool) -> None:
    test = dataset(6, per_pixel)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()) if per_pixel else network()
    run = make_run(tmp_path, test)
    path = write_report(run, model, test, tmp_path / "pictures")
    page = path.read_text("utf-8")
    assert ODD not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page) == []
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    wanted = ["Classes", "Training", "Confusion matrix", "Filters of the first layer",
              "What the prediction depends on", "Activations", "Gradients", "Model"]  # fmt: skip
    assert [title for title in titles if title in wanted] == wanted
    assert ("Most confident mistakes" in titles) is not per_pixel
    assert sum(title.startswith("Feature maps of test image") for title in titles) == 3
    if not per_pixel:
        assert re.search(r'<li class="fused">\s*<div class="layer"><code>0 Conv2d', page)
        assert "416 parameters" not in page
        assert "185 parameters" in page  # of the second convolution
    written = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert "attention.png" in written
    assert page.count("data:image/png;base64,") == len(written)


def test_every_picture_of_a_network_without_images_inside(tmp_path: Path) -> None:
    test = dataset()
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    page = write_report(make_run(tmp_path, test), model, test).read_text("utf-8")
    assert "Filters of the first layer" not in page
    assert "What the prediction depends on" in page


def test_filters_of_many_channels_and_of_three() -> None:
    for shape in ((70, 3, 3, 5), (4, 5, 5, 3), (1, 1, 1, 1)):
        assert figures.png(figures.filters(randn(*shape)))[:4] == b"\x89PNG"


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "available", lambda: "pictures need matplotlib")
    with pytest.raises(ValueError, match="pictures need matplotlib"):
        figures.new_figure(1, 1)


def test_train_writes_the_report_and_visualize_the_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ["--images", "32", "--epochs", "1", "--batch-size", "16", "--device", "cpu"]
    assert main(["train", "shapes", *options, "--out", str(run)]) == 0
    assert f"report         {run / 'report.html'}" in capsys.readouterr().out
    first = (run / "report.html").read_text("utf-8")
    assert main(["visualize", str(run), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"report    {run / 'report.html'}",
        f"pictures  {run / 'pictures'}",
    ]
    assert (run / "report.html").read_text("utf-8") == first  # the same bits
    assert len(list((run / "pictures").glob("*.png"))) == 10
    model, config, _ = training.load_model(run)
    assert config.classes == ("triangle", "circle", "rectangle")
    assert f"{sum(p.size for p in model.parameters()):,}" in first
    assert main(["visualize", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
