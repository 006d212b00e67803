"""Pictures of runs and models, with matplotlib, in colours that everyone tells apart.

Every function returns a ``matplotlib.figure.Figure``; :func:`png` makes a file's bytes of it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpucnn.visualize.probe import LayerOutput

Array = NDArray[Any]

# Okabe and Ito: told apart by people with any colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SEQUENTIAL: Final = "cividis"
DIVERGING: Final = "RdBu_r"
_DPI: Final = 110
_MOST_CLASSES_NUMBERED: Final = 12  # of a confusion matrix whose cells hold numbers
_MANY: Final = 500  # numbers of an array whose histogram is logarithmic
_CHANNELS: Final = 8  # of a layer's output that are shown


def available() -> str:
    """Why there are no pictures, or ""."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "pictures need matplotlib, which is not installed: pip install 'gpucnn[plot]'"
    return ""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises ValueError where matplotlib is missing."""
    if available():
        raise ValueError(available())
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)


def curves(rows: Sequence[Mapping[str, Any]], per_pixel: bool = False) -> Figure:
    """Loss, accuracy (mean IoU for labels per pixel) and learning rate over the steps of a run.

    rows: of ``metrics.jsonl``.
    """
    steps = [row for row in rows if "loss" in row]
    epochs = [row for row in rows if "test_loss" in row]
    figure = new_figure(9, 3.2)
    score = "test_mean_iou" if per_pixel else "test_accuracy"
    named = "mean IoU" if per_pixel else "accuracy"
    loss, right, rate = figure.subplots(1, 3)
    for axes, title in ((loss, "cross-entropy"), (right, named), (rate, "learning rate")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step")
        _plain(axes)
    at = [row["step"] for row in steps]
    ends = [row["step"] for row in epochs]
    loss.plot(at, [row["loss"] for row in steps], color=GREY, linewidth=0.8, label="batch")
    trained = [row["train_loss"] for row in epochs]
    if all(value is not None for value in trained):
        loss.plot(ends, trained, "o-", color=BLUE, markersize=4, label="training, epoch's mean")
    tested = [row["test_loss"] for row in epochs]
    loss.plot(ends, tested, "s-", color=ORANGE, markersize=4, label="test")
    if not per_pixel:
        right.plot(at, [r["accuracy"] for r in steps], color=GREY, linewidth=0.8, label="batch")
    right.plot(ends, [r[score] for r in epochs], "s-", color=ORANGE, markersize=4, label="test")
    right.set_ylim(None, 1.005)
    rate.plot(at, [row["lr"] for row in steps], color=BLUE)
    rate.ticklabel_format(axis="y", scilimits=(-2, 3))
    loss.set_ylim(0, None)
    loss.legend(fontsize=8, frameon=False)
    right.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def confusion(table: Array, classes: Sequence[str]) -> Figure:
    """Counts (C, C), rows labelled and columns predicted, coloured by the share of the row."""
    C = len(classes)
    side = min(9.0, 2.5 + 0.5 * C)
    figure = new_figure(side + 1.2, side)
    axes = figure.add_subplot()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap=SEQUENTIAL, vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, label="share of the class", shrink=0.8)
    axes.set_xticks(range(C), classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=8)
    axes.set_yticks(range(C), classes, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("labelled")
    if C <= _MOST_CLASSES_NUMBERED:
        for i in range(C):
            for j in range(C):
                colour = "black" if shares[i, j] > 0.6 else "white"
                axes.text(j, i, f"{table[i, j]:,}", ha="center", va="center", color=colour,
                          fontsize=7)  # fmt: skip
    return figure


def _grid(count: int, most_columns: int) -> tuple[int, int]:
    columns = min(most_columns, max(count, 1))
    return max(1, math.ceil(count / columns)), columns


def picture(levels: Array) -> Array:
    """uint8 (H, W, 1 or 3) as imshow takes it."""
    return levels[..., 0] if levels.shape[-1] == 1 else levels


def _show(axes: Any, image: Array, **options: Any) -> Any:
    axes.set_axis_off()
    if image.ndim == 3:
        return axes.imshow(image)
    return axes.imshow(image, **{"cmap": "gray", **options})


def captioned(images: Sequence[Array], captions: Sequence[str], columns: int = 6) -> Figure:
    """Pictures uint8 (H, W, 1 or 3) with a line or two under each."""
    rows, columns = _grid(len(images), columns)
    figure = new_figure(1.6 * columns, 2.1 * rows)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        axes = figure.add_subplot(rows, columns, index + 1)
        _show(axes, picture(image), vmin=0, vmax=255)
        axes.set_title(caption, fontsize=7.5)
    return figure


def filters(weight: Array, most: int = 64) -> Figure:
    """Filters (OC, KH, KW, C) on one scale that is symmetric about 0.

    Three channels or fewer make one picture each, side by side; of more the mean is shown.
    """
    shown = weight[:most]
    if shown.shape[-1] > 3:
        shown = shown.mean(axis=-1, keepdims=True)
    OC, KH, _, C = shown.shape
    limit = float(np.abs(shown).max()) or 1.0
    rows, columns = _grid(OC, max(1, 16 // C))
    figure = new_figure(min(9.5, 0.62 * columns * C + 1.1), 0.68 * rows + 0.55)
    parts = figure.subplots(rows, columns, squeeze=False)
    for axes in parts.flat:
        axes.set_axis_off()
    for axes, kernel in zip(parts.flat, shown, strict=False):
        gap = np.full((KH, 1), np.nan)
        beside = [part for c in range(C) for part in (kernel[..., c], gap)][:-1]
        mapped = axes.imshow(np.hstack(beside), cmap=DIVERGING, vmin=-limit, vmax=limit)
    figure.colorbar(mapped, ax=parts, shrink=0.9, aspect=14 if rows > 1 else 6)
    return figure


def feature_maps(layers: Sequence[LayerOutput], image: Array) -> Figure:
    """What each layer makes of one picture: its first channels, each on a scale of its own.

    layers: of one image, (1, …); those whose outputs are no images are drawn as bars.
    """
    rows = len(layers)
    figure = new_figure(1.05 * (_CHANNELS + 1) + 1.6, 1.02 * (rows + 1))
    parts = figure.subplots(rows + 1, _CHANNELS + 1, squeeze=False)
    for axes in parts.flat:
        axes.set_axis_off()
    _show(parts[0, 1], picture(image), vmin=0, vmax=255)
    _name(parts[0, 0], "image", image.shape)
    places = parts[0, 0].get_gridspec()
    for at, (line, layer) in enumerate(zip(parts[1:], layers, strict=True), start=1):
        output = layer.output[0]
        _name(line[0], f"{layer.name} {type(layer.module).__name__}".strip(), output.shape)
        if output.ndim == 3:
            for axes, channel in zip(line[1:], np.moveaxis(output, -1, 0), strict=False):
                axes.imshow(channel, cmap=SEQUENTIAL)
            continue
        wide = figure.add_subplot(places[at, 1:])
        values = output.reshape(-1)
        wide.bar(range(values.size), values, width=1.0, color=BLUE)
        wide.axhline(0, color="black", linewidth=0.5)
        wide.spines[["top", "right", "bottom"]].set_visible(False)
        wide.set_xticks([])
        wide.tick_params(labelsize=6)
    return figure


def _name(axes: Any, name: str, shape: tuple[int, ...]) -> None:
    sizes = " x ".join(map(str, shape))
    axes.text(1.0, 0.5, f"{name}\n{sizes}", ha="right", va="center", fontsize=7,
              transform=axes.transAxes)  # fmt: skip


def attention(
    images: Sequence[Array], saliencies: Array, cams: Array | None, captions: Sequence[str]
) -> Figure:
    """Pictures, beside each what its class's score depends on: pixel by pixel, and by Grad-CAM."""
    rows, columns = len(images), 2 if cams is None else 3
    figure = new_figure(1.9 * columns + 1.2, 1.9 * rows + 0.3)
    parts = figure.subplots(rows, columns, squeeze=False)
    for axes, title in zip(parts[0], ("image", "saliency", "Grad-CAM"), strict=False):
        axes.set_title(title, fontsize=9)
    for index, line in enumerate(parts):
        image = picture(images[index])
        _show(line[0], image, vmin=0, vmax=255)
        line[0].text(-0.06, 0.5, captions[index], rotation=90, ha="right", va="center", fontsize=8,
                     transform=line[0].transAxes)  # fmt: skip
        _show(line[1], saliencies[index], cmap=SEQUENTIAL)
        if cams is None:
            continue
        high, wide = image.shape[:2]
        extent = (-0.5, wide - 0.5, high - 0.5, -0.5)
        _show(line[2], image, vmin=0, vmax=255)
        line[2].imshow(cams[index], cmap=SEQUENTIAL, alpha=0.65, extent=extent,
                       interpolation="bilinear")  # fmt: skip
    return figure


def histograms(values: Mapping[str, Array], label: str) -> Figure:
    """How the numbers of each array are spread, with the share of zeros."""
    from matplotlib.ticker import NullFormatter

    rows, columns = _grid(len(values), 4)
    figure = new_figure(2.4 * columns, 1.6 * rows + 0.3)
    for index, (name, array) in enumerate(values.items()):
        axes = figure.add_subplot(rows, columns, index + 1)
        flat = array.reshape(-1)
        axes.hist(flat, bins=40, color=BLUE)
        if flat.size >= _MANY:
            axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
        zeros = float((flat == 0).mean())
        axes.set_title(f"{name}" + (f"\n{zeros:.0%} zeros" if zeros > 0.005 else ""), fontsize=7.5)
        axes.tick_params(labelsize=6)
        axes.ticklabel_format(axis="x", scilimits=(-2, 3))
        axes.xaxis.get_offset_text().set_fontsize(6)
        _plain(axes)
    figure.supxlabel(label, fontsize=8)
    return figure
