"""The pictures of a run: bars per family, a roofline, scaling curves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .machine import Machine
from .rivals import COLUMNS as RIVALS
from .rows import OK, Row
from .scaling import point_of
from .tables import families, machine_title, series, short, title

# Okabe and Ito's palette without black (the floor's) and four more, told apart by people with any
# colour vision; each series also has its own marker, and bars are named.
_COLOURS = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#777777"),
    *("#882255", "#DDCC77", "#332288"),
)
_MARKERS = "osD^vP*X<>h"
_MOST_BARS = 16  # groups of bars in one picture
_BAR = 0.8  # of the distance between groups


def available() -> str:
    """Why there are no pictures, or ""."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "matplotlib is missing; pip install 'gpucnn[plot]'"
    return ""


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker per series, ours first; the same in every picture of a run."""
    ordered = [n for n in names if n not in RIVALS] + [n for n in RIVALS if n in names]
    return {
        name: (_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(ordered)
    }


def _variants(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["variant"] for row in rows))


def _label(name: str) -> str:
    """What a legend calls a series."""
    variant, _, precision = name.partition(" ")
    variant = {"numpy": "gpucnn (NumPy)", "default": "gpucnn"}.get(variant, variant)
    return f"{variant} {precision}".strip()


def _timed(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["status"] == OK]


def _short(primitive: str, family: str) -> str:
    """A primitive's name without its family's."""
    return primitive.removeprefix(family).strip("_").replace("_", " ")


def _precisions(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["precision"] for row in rows))


def bars(family: str, rows: Sequence[Row], styles: dict[str, tuple[str, str]]) -> Any:
    """Times of one family, a group of bars per problem, the floor as a black line in each."""
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in _timed(rows):
        if point_of(row["case"]) is None:
            of = row["primitive"], row["case"], row["precision"]
            groups.setdefault(of, {})[row["variant"]] = row
    shown = sorted(groups.items(), key=lambda item: -_longest(item[1]))[:_MOST_BARS]
    names = [name for name in styles if any(name in by for _, by in shown)]
    figure, axes = _figure(9, 1.3 + 0.18 * sum(len(by) + 1 for _, by in shown))
    height, at, ticks, labels = 1.0, 0.0, [], []
    for (primitive, case, precision), by in shown:
        own = [name for name in names if name in by]
        for k, name in enumerate(own):
            row = by[name]
            low, high = row["median_us"] - row["p20_us"], row["p80_us"] - row["median_us"]
            axes.barh(
                at + k * height,
                row["median_us"],
                height * _BAR,
                color=styles[name][0],
                xerr=[[max(low, 0)], [max(high, 0)]],
                error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
            )
        middle = at + (len(own) - 1) * height / 2
        floor = next(iter(by.values()))["floor_us"]
        axes.plot([floor, floor], [at - 0.5, at + len(own) - 0.5], color="black", linewidth=1.6)
        ticks.append(middle)
        passes = _short(primitive, family) + ("" if precision == "fp32" else f" {precision}")
        labels.append(("\n" if len(own) > 1 else " ").join(part for part in (passes, case) if part))
        at += (len(own) + 0.8) * height
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylim(at - 0.6, -1)
    axes.set_xscale("log")
    axes.set_xlim(left=min(_shortest(by) for _, by in shown) / 3)
    axes.set_xlabel("microseconds per call, logarithmic (median, 20–80 %)")
    some = f" (the {len(shown)} longest of {len(groups)})" if len(shown) < len(groups) else ""
    where = machine_title(next(iter(shown[0][1].values())))
    axes.set_title(f"{family}{some}: {where}", fontsize=10, loc="left")
    _legend(figure, [(name, styles[name][0]) for name in names], floor=True)
    return figure


def _longest(by: dict[str, Row]) -> float:
    return float(max(row["median_us"] for row in by.values()))


def _shortest(by: dict[str, Row]) -> float:
    return float(min(min(row["median_us"], row["floor_us"]) for row in by.values()))


def _legend(figure: Any, colours: Sequence[tuple[str, str]], *, floor: bool = False) -> None:
    """Below the axes, where it hides nothing."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=colour, label=_label(name)) for name, colour in colours]
    if floor:
        handles.append(Line2D([], [], color="black", linewidth=1.6, label="floor"))
    columns = min(len(handles), 6)
    figure.legend(handles=handles, fontsize=7.5, loc="outside lower center", ncols=columns)


def roofline(rows: Sequence[Row], machine: Machine, styles: dict[str, tuple[str, str]]) -> Any:
    """Every kernel by its arithmetic intensity and its FLOP/s, under the two measured roofs."""
    ours = [r for r in _timed(rows) if r["variant"] not in RIVALS]
    points = [r for r in ours if r["flops"] > 0]
    without = len(ours) - len(points)
    figure, axes = _figure(9, 5.5)
    intensity = [r["flops"] / r["bytes"] for r in points] or [1.0]
    low = 10 ** math.floor(math.log10(min(intensity) / 1.5))
    high = 10 ** math.ceil(math.log10(max(*intensity, 100.0)))
    shown = _precisions(points) or ["fp32"]
    peaks = {name: machine.peak_gflop_s[name] for name in shown}
    right = max(high, 2 * max(peaks.values()) / machine.copy_gb_s)
    for name, peak in peaks.items():
        ridge = peak / machine.copy_gb_s
        axes.plot([low, ridge, right], [low * machine.copy_gb_s, peak, peak], "k", linewidth=1.6)
        text = f"{peak:,.0f} GFLOP/s" + (f" {name}" if len(peaks) > 1 else "")
        axes.text(right, peak, text, ha="right", va="bottom", fontsize=8)
    for name in dict.fromkeys(series(r) for r in points):
        own = [r for r in points if series(r) == name]
        colour, marker = styles[own[0]["variant"]]
        hollow = own[0]["precision"] != "fp32"
        axes.scatter(
            [r["flops"] / r["bytes"] for r in own],
            [r["gflop_s"] for r in own],
            s=22,
            facecolor="none" if hollow else colour,
            marker=marker,
            edgecolors=colour if hollow else "white",
            linewidths=1.0 if hollow else 0.4,
            label=_label(name),
            zorder=3,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("arithmetic intensity, FLOP per byte that must be moved")
    axes.set_ylabel("GFLOP/s")
    slope = f"{machine.copy_gb_s:,.0f} GB/s "
    axes.text(low * 2, low * 2 * machine.copy_gb_s, slope, ha="right", va="bottom", fontsize=8)
    some = "" if without == 0 else f" (without {without} rows that only move data)"
    axes.set_title(f"Roofline: {machine_title(machine)}{some}", fontsize=10, loc="left")
    if points:
        axes.legend(fontsize=8, loc="lower right")
    return figure


def scaling(rows: Sequence[Row], styles: dict[str, tuple[str, str]]) -> Any | None:
    """FLOP/s of a convolution over batch and over channels; None without such rows."""
    points: dict[str, dict[str, dict[int, Row]]] = {}
    for row in _timed(rows):
        point = point_of(row["case"])
        if point is not None:
            by = points.setdefault(point[0], {}).setdefault(series(row), {})
            by[point[1]] = row
    if not points:
        return None
    from matplotlib.ticker import NullLocator, ScalarFormatter

    figure, first = _figure(9, 4)
    first.remove()
    for i, (curve, by_variant) in enumerate(points.items(), 1):
        axes = figure.add_subplot(1, len(points), i)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#DDDDDD", linewidth=0.6)
        values: set[int] = set()
        for name, by_value in by_variant.items():
            xs = sorted(by_value)
            values.update(xs)
            colour, marker = styles[by_value[xs[0]]["variant"]]
            axes.plot(
                xs,
                [by_value[x]["gflop_s"] for x in xs],
                color=colour,
                marker=marker,
                markersize=5,
                linestyle="-" if by_value[xs[0]]["precision"] == "fp32" else "--",
                linewidth=1.4,
                label=_label(name),
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sorted(values))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel({"batch": "batch size", "channels": "channels in and out"}[curve])
        if i == 1:
            axes.set_ylabel("GFLOP/s")
            axes.legend(fontsize=8)
    any_row = _timed(rows)[0]
    figure.suptitle(f"3×3 convolution: {machine_title(any_row)}", fontsize=10, x=0.01, ha="left")
    return figure


def overview(rows: Sequence[Row], machine: Machine, styles: dict[str, tuple[str, str]]) -> Any:
    """The whole training steps, precision by precision: what a reader of the README looks for."""
    own = _timed([row for row in rows if row["family"] == "training_step"])
    if not own:
        return None
    precisions = _precisions(own)
    figure, first = _figure(8, 3.2 * len(precisions))
    first.remove()
    figure.suptitle(title(machine), fontsize=9, x=0.01, ha="left")
    for i, precision in enumerate(precisions, 1):
        axes = figure.add_subplot(len(precisions), 1, i)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
        axes.set_axisbelow(True)
        _steps(axes, [row for row in own if row["precision"] == precision], styles)
        if len(precisions) > 1:
            axes.set_title(precision, fontsize=9, loc="left")
    shown = {row["variant"] for row in own}
    _legend(figure, [(name, colour) for name, (colour, _) in styles.items() if name in shown])
    return figure


def _steps(axes: Any, own: Sequence[Row], styles: dict[str, tuple[str, str]]) -> None:
    """A group of bars per training step, each with its milliseconds."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    cases = list(dict.fromkeys(row["case"] for row in own))
    names = [name for name in styles if any(row["variant"] == name for row in own)]
    width = _BAR / len(names)
    narrow = len(names) * len(cases) > 21 or max(row["median_us"] for row in own) >= 1e6
    for k, name in enumerate(names):
        found = {row["case"]: row for row in own if row["variant"] == name}
        xs = [i + (k - (len(names) - 1) / 2) * width for i, c in enumerate(cases) if c in found]
        ys = [found[c]["median_us"] / 1e3 for c in cases if c in found]
        drawn = axes.bar(xs, ys, width * 0.95, color=styles[name][0])
        axes.bar_label(drawn, [short(y) for y in ys], fontsize=6.5, padding=2, rotation=90 * narrow)
    axes.set_xticks(range(len(cases)), [c.replace("-b", "\nbatch ") for c in cases], fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("ms per training step")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.margins(y=0.2)


def pictures(rows: Sequence[Row], machine: Machine) -> Iterator[tuple[str, Any]]:
    """(file name, figure) of every picture of a run."""
    styles = _styles(_variants(rows))
    if not _timed(rows):
        return
    steps = overview(rows, machine, styles)
    if steps is not None:
        yield "training-steps.png", steps
    yield "roofline.png", roofline(rows, machine, styles)
    curves = scaling(rows, styles)
    if curves is not None:
        yield "scaling.png", curves
    for family, own in families(rows).items():
        if any(point_of(row["case"]) is None for row in _timed(own)):
            yield f"{family}.png", bars(family, own, styles)


def draw(folder: Path, rows: Sequence[Row], machine: Machine) -> list[Path]:
    """Write every picture as PNG."""
    written = []
    for name, figure in pictures(rows, machine):
        path = folder / name
        figure.savefig(path)
        written.append(path)
    return written
