"""The report of a run: how training went, what the network does well, what it has learned.

``measure`` computes, ``write_report`` draws and writes one HTML file that needs no other.
"""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.dataset import Dataset
from gpucnn.nn import Conv2d, Module
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.summary import LayerSummary, summarize
from gpucnn.training.checkpoint import write_atomically
from gpucnn.training.evaluation import scores
from gpucnn.training.run import Config, RunFolder
from gpucnn.visualize import figures, probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME: Final = "report.html"
_TEMPLATE: Final = Path(__file__).with_name("report.html")
_MISTAKES: Final = 12
_CHOSEN: Final = 3  # images that are followed through the layers
_MEASURED: Final = 64  # images behind the histograms
_MOST_LAYERS: Final = 40  # rows of feature maps


@dataclass(frozen=True)
class ClassScore:
    """Attributes:
    name: of the class.
    count: labels of it.
    precision: share of the predictions of it that are right, None without any.
    recall: share of its labels that were predicted, None without any.
    """

    name: str
    count: int
    precision: float | None
    recall: float | None

    @property
    def f1(self) -> float | None:
        """The harmonic mean of precision and recall."""
        if self.precision is None or self.recall is None or not self.precision + self.recall:
            return None
        return 2 * self.precision * self.recall / (self.precision + self.recall)


@dataclass(frozen=True)
class Measured:
    """Attributes:
    confusion: counts (C, C), rows labelled and columns predicted.
    probabilities: (N, C) of the images' classes; None where pixels have classes.
    predicted: (N,) or (N, H, W).
    """

    confusion: NDArray[np.int64]
    probabilities: NDArray[np.float32] | None
    predicted: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of the labels that were predicted."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def classes(self, names: Sequence[str]) -> list[ClassScore]:
        """Precision and recall of each class."""
        hits, table = np.diagonal(self.confusion), self.confusion

        def share(part: int, whole: int) -> float | None:
            return None if whole == 0 else part / whole

        return [
            ClassScore(
                name,
                int(table[c].sum()),
                share(int(hits[c]), int(table[:, c].sum())),
                share(int(hits[c]), int(table[c].sum())),
            )
            for c, name in enumerate(names)
        ]


def measure(model: Module, test: Dataset) -> Measured:
    """What a model predicts of a dataset with at least one label."""
    classes = len(test.classes)
    confusion = np.zeros((classes, classes), np.int64)
    probabilities, predictions = [], []
    for at in range(0, len(test), 250):
        images, labels = test.batch(slice(at, at + 250))
        logits = scores(model, images)
        predicted = logits.argmax(axis=-1)
        kept = labels != IGNORE_INDEX
        np.add.at(confusion, (labels[kept], predicted[kept]), 1)
        predictions.append(predicted)
        if not test.per_pixel:
            shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
            probabilities.append(shifted / shifted.sum(axis=-1, keepdims=True))
    kept_probabilities = np.concatenate(probabilities) if probabilities else None
    return Measured(confusion, kept_probabilities, np.concatenate(predictions))


def mistakes(measured: Measured, test: Dataset, most: int = _MISTAKES) -> list[tuple[int, float]]:
    """(image, probability) of the wrong predictions that the network was surest of."""
    assert measured.probabilities is not None
    sure = measured.probabilities.max(axis=1)
    wrong = np.flatnonzero((measured.predicted != test.labels) & (test.labels != IGNORE_INDEX))
    order = wrong[np.argsort(-sure[wrong], kind="stable")][:most]
    return [(int(i), float(sure[i])) for i in order]


def chosen_images(measured: Measured, test: Dataset) -> list[int]:
    """Images to follow through the network: the first of each of three classes."""
    if test.per_pixel:
        return list(range(min(_CHOSEN, len(test))))
    firsts = [np.flatnonzero(test.labels == c)[:1] for c in range(len(test.classes))]
    return [int(i[0]) for i in firsts if len(i)][:_CHOSEN]


@dataclass(frozen=True)
class Section:
    """A picture of the report. Attributes:
    title, about: what it shows.
    file: the name of its PNG file.
    image: that file.
    """

    title: str
    about: str
    file: str
    image: bytes


def sections(
    model: Module, test: Dataset, rows: Sequence[dict[str, Any]], measured: Measured
) -> list[Section]:
    """The pictures of a run, in order; each is drawn as it is asked for.

    rows: of ``metrics.jsonl``.
    """
    made: list[Section] = []

    def add(title: str, about: str, file: str, figure: Figure) -> None:
        made.append(Section(title, about, f"{file}.png", figures.png(figure)))

    if any("test_loss" in row for row in rows):
        add(
            "Training",
            "Loss and score of batches and of the test images after each epoch, and the rate.",
            "curves",
            figures.curves(rows, test.per_pixel),
        )
    add(
        "Confusion matrix",
        "Rows are labels, columns predictions of the test images; colours are shares of the row.",
        "confusion",
        figures.confusion(measured.confusion, test.classes),
    )
    if measured.probabilities is not None and (found := mistakes(measured, test)):
        captions = [
            f"{test.classes[measured.predicted[i]]} {sure:.0%}\nis {test.classes[test.labels[i]]}"
            for i, sure in found
        ]
        add(
            "Most confident mistakes",
            "Test images whose wrong prediction the network was surest of, and their labels.",
            "mistakes",
            figures.captioned([test.images[i] for i, _ in found], captions),
        )
    first = next((m for _, m in model.named_modules() if isinstance(m, Conv2d)), None)
    if first is not None:
        add(
            "Filters of the first layer",
            "One scale for all, symmetric about 0: red adds, blue takes away.",
            "filters",
            figures.filters(first.weight.numpy()),
        )
    chosen = chosen_images(measured, test)
    images = test.normalize(test.images[chosen])
    labels = measured.predicted[chosen]
    for number, index in enumerate(chosen):
        layers = probe.layer_outputs(model, images[number : number + 1])[:_MOST_LAYERS]
        label = "" if test.per_pixel else f" of the class {test.classes[test.labels[index]]}"
        add(
            f"Feature maps of test image {index}{label}",
            "The first channels behind every layer, each on a scale of its own.",
            f"features-{number + 1}",
            figures.feature_maps(layers, test.images[index]),
        )
    cams = None
    with contextlib.suppress(ValueError):  # of a network without images inside
        cams = probe.grad_cam(model, images, labels)
    captions = [f"image {i}" if test.per_pixel else test.classes[c] for i, c in
                zip(chosen, labels, strict=True)]  # fmt: skip
    add(
        "What the prediction depends on",
        "How much each pixel changes the score of the predicted class, and where the last layer "
        "that still sees an image found what speaks for it.",
        "attention",
        figures.attention(
            [test.images[i] for i in chosen], probe.saliency(model, images, labels), cams, captions
        ),
    )
    some = slice(0, min(_MEASURED, len(test)))
    batch, targets = test.batch(some)
    outputs = probe.layer_outputs(model, batch)[:_MOST_LAYERS]
    spread = {f"{o.name} {type(o.module).__name__}".strip(): o.output for o in outputs}
    about = f"Of the first {len(batch)} test images; zeros of a ReLU are units that are silent."
    add("Activations", about, "activations", figures.histograms(spread, "output of the layer"))
    if (targets != IGNORE_INDEX).any():
        found_gradients = probe.gradients(model, batch, targets)
        add(
            "Gradients",
            f"Of the mean loss of the first {len(batch)} test images, parameter by parameter.",
            "gradients",
            figures.histograms(found_gradients, "gradient of the parameter"),
        )
    return made


def _blocks(rows: Sequence[LayerSummary]) -> list[list[LayerSummary]]:
    """Layers in order; those that are computed in one pass stand together."""
    blocks: list[list[LayerSummary]] = []
    for row in rows:
        if row.fused and blocks:
            blocks[-1].append(row)
        else:
            blocks.append([row])
    return blocks


def render(
    config: Config, environment: dict[str, Any], model: Module, test: Dataset,
    measured: Measured, pictures: Sequence[Section],
) -> str:  # fmt: skip
    """The HTML page. Raises ValueError where jinja2 is missing."""
    try:
        import jinja2
    except ImportError:
        raise ValueError(
            "the report needs jinja2, which is not installed: pip install 'gpucnn[report]'"
        ) from None
    rows = summarize(model, config.image_shape)
    page = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _TEMPLATE.read_text("utf-8")
    )
    return page.render(
        config=config,
        environment=environment,
        test=test,
        accuracy=measured.accuracy,
        classes=measured.classes(test.classes),
        blocks=_blocks(rows),
        parameters=sum(row.parameters for row in rows),
        pictures=[
            {
                "title": each.title,
                "about": each.about,
                "uri": "data:image/png;base64," + base64.b64encode(each.image).decode("ascii"),
            }
            for each in pictures
        ],
    )


def write_report(
    run: RunFolder, model: Module, test: Dataset, folder: str | os.PathLike[str] | None = None
) -> Path:
    """Write ``report.html`` to a run folder, and to another folder the pictures as PNG files.

    Args:
        run: with its config and metrics.
        model: with the weights of the run.
        test: the images to judge by.
        folder: for the PNG files, made if it is missing; None for none.

    Returns:
        The path of the report.

    Raises:
        ValueError: matplotlib or jinja2 is missing, or a file of the run is damaged.
        OSError: a file cannot be written.
    """
    config = run.read_config()
    measured = measure(model, test)
    pictures = sections(model, test, run.read_metrics(), measured)
    page = render(config, run.read_environment(), model, test, measured, pictures)
    path = run.path / NAME
    write_atomically(path, page.encode())
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for each in pictures:
            write_atomically(Path(folder) / each.file, each.image)
    return path
