"""The goals on a GPU of the H200's class, and the table that says which are met.

A ratio is the rival's time by ours, both from the same process, in turns. What was not measured
says so; beside it stand launches, bytes and memory, which need no GPU to be counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..rows import OK
from ..steps import GRAPH, GRAPH_8
from .counts import Counts
from .journal import Found
from .parts import BLOCKS, UPDATES
from .steps import COPYING, LOSSES, PRECISIONS

OURS = (GRAPH, GRAPH_8, "persistent")
EAGER = ("torch", "torch_channels_last")
UNMEASURED = "unmeasured"


class Value(NamedTuple):
    """A figure of a goal, and what is behind it."""

    figure: float
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """What is to be reached. least: whether ``bar`` is the least or the most that meets it; None
    where there is no bar. value: what runs have found, None if nothing.
    """

    text: str
    bar: float | None
    unit: str
    least: bool
    value: Callable[[Found], Value | None]
    counted: Callable[[dict[str, Counts]], str] = lambda counts: ""

    @property
    def bar_text(self) -> str:
        """The bar with its sign."""
        if self.bar is None:
            return "beside PyTorch's"
        number = f"{self.bar:.0%}" if self.unit == "%" else f"{self.bar:g}{_unit(self.unit)}"
        return ("≥ " if self.least else "≤ ") + number

    def shown(self, found: Found) -> tuple[str, str]:
        """(what was measured, whether it meets the bar)."""
        value = self.value(found)
        if value is None:
            return UNMEASURED, "–"
        figure = f"{value.figure:.0%}" if self.unit == "%" else _short(value.figure)
        figure = figure if self.unit == "%" else figure + _unit(self.unit)
        text = f"{figure} ({value.note})" if value.note else figure
        if self.bar is None:
            return text, "–"
        met = value.figure >= self.bar if self.least else value.figure <= self.bar
        return text, "yes" if met else "no"


def _unit(unit: str) -> str:
    return unit if unit == "×" else f" {unit}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ratio(
    stage: str, cases: Sequence[tuple[str, str]], rivals: Sequence[str], own: Sequence[str] = OURS
) -> Callable[[Found], Value | None]:
    """The least ratio over cases (name, precision) that were measured, each case's in the note."""

    def value(found: Found) -> Value | None:
        ratios: list[float] = []
        notes: list[str] = []
        for case, precision in cases:
            ours = found.us(stage, case, precision, *own)
            theirs = found.us(stage, case, precision, *rivals)
            if ours is None or theirs is None:
                continue
            ratios.append(theirs / ours)
            name = f"{case}: " if len(cases) > 1 else ""
            notes.append(f"{name}{_short(theirs)} µs by {_short(ours)} µs")
        if not ratios:
            return None
        missing = len(cases) - len(ratios)
        more = [f"{missing} of {len(cases)} cases {UNMEASURED}"] if missing else []
        return Value(min(ratios), "; ".join([*notes, *more]))

    return value


def _network(case: str, rivals: Sequence[str], stage: str = "steps") -> dict[str, Callable]:  # type: ignore[type-arg]
    precision = PRECISIONS[case]
    return {
        "value": _ratio(stage, [(case, precision)], rivals),
        "counted": lambda counts: _step_counts(counts.get(case)),
    }


def _either(*ways: Callable[[Found], Value | None]) -> Callable[[Found], Value | None]:
    """The first way that finds something."""
    return lambda found: next((v for way in ways if (v := way(found)) is not None), None)


def _step_counts(counts: Counts | None) -> str:
    if counts is None:
        return ""
    return f"{counts.launches} launches, {counts.moved / 1e6:,.1f} MB handed to them"


def _parts_counts(cases: Sequence[str]) -> Callable[[dict[str, Counts]], str]:
    def text(counts: dict[str, Counts]) -> str:
        known = [counts[case] for case in cases if case in counts]
        return "; ".join(
            f"{c.case}: {c.launches} launches, {c.moved / 1e6:,.1f} MB where "
            f"{c.least / 1e6:,.1f} is the least"
            for c in known
        )

    return text


def _kernel_counts(counts: dict[str, Counts], primitive: str) -> str:
    return _parts_counts([case for case in counts if case.startswith(f"{primitive}[")])(counts)


def _share_counts(counts: dict[str, Counts]) -> str:
    """Of the kernels that are bound by memory, those that move more than they must."""
    known = [c for case, c in counts.items() if case.split("[")[0] in COPYING]
    more = [c for c in known if c.moved > c.least / _COPY_SHARE]
    listed = ", ".join(f"{c.case} {c.moved / c.least:.2f}×" for c in more) or "none"
    return f"{len(known)} kernels; handed more than the least ÷ {_COPY_SHARE:.0%}: {listed}"


def _memory(found: Found) -> Value | None:
    ratios: dict[str, float] = {}
    for case, precision in PRECISIONS.items():
        ours = found.figure(f"memory/{case}/{precision}/ours")
        theirs = found.figure(f"memory/{case}/{precision}/torch")
        if ours is not None and theirs:
            ratios[case] = ours / theirs
    if not ratios:
        return None
    return Value(max(ratios.values()), ", ".join(f"{k} {v:.2f}" for k, v in ratios.items()))


def _memory_counts(counts: dict[str, Counts]) -> str:
    known = [c for case in PRECISIONS if (c := counts.get(case)) is not None and c.torch]
    return "; ".join(
        f"{c.case}: {c.peak / 1e6:,.1f} MB, PyTorch's tensors {(c.torch or 0) / 1e6:,.1f} MB, "
        f"{c.peak / (c.torch or 1):.2f}×"
        for c in known
    )


_COPY_SHARE = 0.85


def _copying(found: Found) -> Value | None:
    machine = next((m for m in reversed(found.machines()) if m["stage"] == "copying"), None)
    shares = {
        f"{row['primitive']} {row['case']}": row["gb_s"] / machine["copy_gb_s"]
        for row in found.rows("copying")
        if machine is not None and row["status"] == OK
    }
    if not shares:
        return None
    low = sorted((v, k) for k, v in shares.items() if v < _COPY_SHARE)
    below = ", ".join(f"{k} {v:.0%}" for v, k in low) or "none"
    missing = len(COPYING) - len(shares)
    more = f"; {missing} {UNMEASURED}" if missing else ""
    return Value(min(shares.values()), f"the least of {len(shares)}; below the bar: {below}{more}")


def _figure(name: str) -> Callable[[Found], Value | None]:
    def value(found: Found) -> Value | None:
        line = found.figures.get(name)
        return None if line is None else Value(float(line["value"]), line.get("note", ""))

    return value


def _seconds(found: Found) -> Value | None:
    ours = found.figures.get("fashion-mnist/ours")
    if ours is None:
        return None
    theirs = found.figure("fashion-mnist/torch")
    beside = UNMEASURED if theirs is None else f"{_short(theirs)} s"
    return Value(float(ours["value"]), f"{ours['note']}; PyTorch {beside}")


def _microseconds(case: str) -> Callable[[Found], Value | None]:
    def value(found: Found) -> Value | None:
        us = found.us("steps", case, PRECISIONS[case], *OURS)
        return None if us is None else Value(us)

    return value


def _blocks() -> list[tuple[str, str]]:
    return [(b.case, "tf32") for b in BLOCKS]


def _updates() -> list[tuple[str, str]]:
    return [(u.case, "tf32") for u in UPDATES]


_BEST = ("torch_graph", "torch_compiled")
_LENET, _SHAPE, _R20 = "lenet5-b128", "shapenet-b256", "resnet20-b128"
_R9, _UNET, _SEGNET = "resnet9-b512", "unet_small-b16", "segnet_small-b16"

GOALS = [
    Goal("lenet5 b128, PyTorch eager", 20, "×", True, **_network(_LENET, EAGER)),
    Goal("lenet5 b128, PyTorch's graph", 4, "×", True, **_network(_LENET, ("torch_graph",))),
    Goal("lenet5 b128, a step", 25, "µs", False, _microseconds(_LENET)),
    Goal("shapenet b256, PyTorch's graph", 1.8, "×", True, **_network(_SHAPE, ("torch_graph",))),
    Goal(
        "resnet20 b128 bf16, PyTorch's best graph",
        1.8,
        "×",
        True,
        _either(
            _ratio("compiled", [(_R20, PRECISIONS[_R20])], _BEST),
            _ratio("steps", [(_R20, PRECISIONS[_R20])], _BEST),
        ),
        lambda counts: _step_counts(counts.get(_R20)),
    ),
    Goal("unet_small b16, PyTorch's graph", 1.5, "×", True, **_network(_UNET, ("torch_graph",))),
    Goal(
        "segnet_small b16, PyTorch's graph", 1.5, "×", True, **_network(_SEGNET, ("torch_graph",))
    ),
    Goal(
        "resnet9 b512 bf16, torch.compile",
        1.0,
        "×",
        True,
        **_network(_R9, ("torch_compiled",), "compiled"),
    ),
    Goal(
        "fused batch-norm block, PyTorch eager",
        2.5,
        "×",
        True,
        _ratio("parts", _blocks(), EAGER),
        _parts_counts([case for case, _ in _blocks()]),
    ),
    Goal(
        "softmax-cross-entropy forward and backward, PyTorch eager",
        4,
        "×",
        True,
        _ratio("parts", [(case, "fp32") for case in LOSSES], EAGER, ("default",)),
        lambda counts: _kernel_counts(counts, "cross_entropy_reduced"),
    ),
    Goal(
        "optimizer, PyTorch's fused one (both as graphs)",
        1.3,
        "×",
        True,
        _ratio("parts", _updates(), ("torch_graph",)),
        _parts_counts([case for case, _ in _updates()]),
    ),
    Goal(
        "memory-bound kernels, of the copy bandwidth",
        _COPY_SHARE,
        "%",
        True,
        _copying,
        _share_counts,
    ),
    Goal("peak memory of a step, of PyTorch's eager", 0.5, "×", False, _memory, _memory_counts),
    Goal("import, compile cache warm", 0.5, "s", False, _figure("import/warm")),
    Goal("import, compile cache empty", 10, "s", False, _figure("import/cold")),
    Goal("93 % on Fashion-MNIST", None, "s", False, _seconds),
]


def markdown(found: Found, counts: Sequence[Counts]) -> str:
    """The whole table, with what was measured on what, and what is missing."""
    by_case = {c.case: c for c in counts}
    lines = ["# Goals on a GPU of the H200's class", "", __doc__.split("\n\n", 1)[1].strip(), ""]
    machines = {(m["gpu"], m["date"]): m for m in found.machines()}.values()
    if not machines:
        lines += ["No run on a GPU is committed: everything is unmeasured.", ""]
    for m in machines:
        lines += [
            f"Measured on {m['gpu']}, driver {m['driver']}, CuPy {m['cupy']}, PyTorch "
            f"{m['torch'] or 'absent'}, {m['date']}; copy {m['copy_gb_s']:,.0f} GB/s.",
            "",
        ]
    lines += ["| goal | bar | measured | met | counted |", "|---|---|---|---|---|"]
    for goal in GOALS:
        measured, met = goal.shown(found)
        cells = (goal.text, goal.bar_text, measured, met, goal.counted(by_case))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_jax(found), *_counted(counts)]
    notes = found.notes()
    if notes:
        lines += ["## Missing", "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines).rstrip() + "\n"


def _jax(found: Found) -> list[str]:
    """How the steps stand beside JAX's."""
    rows = []
    for case, precision in PRECISIONS.items():
        ours = found.us("jax", case, precision, *OURS)
        theirs = found.us("jax", case, precision, "jax")
        if ours is not None and theirs is not None:
            rows.append(f"{case} {theirs / ours:.2f}×")
    return [f"JAX jit by ours: {', '.join(rows) or UNMEASURED}.", ""]


def _counted(counts: Sequence[Counts]) -> list[str]:
    lines = [
        "## Counted",
        "",
        "Of each step as a graph: kernels; megabytes of the arrays they are handed, each once a "
        "launch, also where it is read in part, and once more where it is updated in place; "
        "the least that a step can do with; the planned arena, what is kept beside it (parameters, "
        "gradients, moments, images), and what PyTorch's tensors take at once in an eager step, "
        "without the workspace of cuDNN.",
        "",
        "| step | precision | launches | MB handed | MB least | MB arena | MB kept | MB PyTorch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for c in counts:
        sizes = [f"{n / 1e6:,.2f}" for n in (c.moved, c.least, c.arena)]
        kept = f"{c.kept / 1e6:,.2f}" if c.kept else "–"
        theirs = f"{c.torch / 1e6:,.2f}" if c.torch else "–"
        row = (c.case, c.precision, str(c.launches), *sizes, kept, theirs)
        lines.append(f"| {' | '.join(row)} |")
    return [*lines, ""]
