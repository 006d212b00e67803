"""The measured part of the README, generated from the tables under ``bench/results``.

``python -m bench.readme`` rewrites it; ``python -m bench.readme --check`` exits with 1 where the
README says something else.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from gpucnn.data import SHAPES_TRAIN_IMAGES
from gpucnn.training.recipes import recipe

from .machine import read_machine
from .output import CSV, MACHINE
from .rivals import COLUMNS as RIVALS
from .rows import OK, Row
from .steps import FAMILY
from .tables import families, machine_title, read_csv, roofs

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- python -m bench.readme: begin -->", "<!-- python -m bench.readme: end -->"
_OURS = ("default", "numpy")
FASHION_MNIST_IMAGES = 60_000
_NAMES = {
    "torch": "PyTorch",
    "torch_channels_last": "channels_last",
    "torch_compiled": "torch.compile",
    "torch_graph": "CUDA graph",
    "cupy": "CuPy",
    "jax": "JAX",
}


def result_folders(root: Path = ROOT) -> list[Path]:
    """The folders of committed results, GPUs first."""
    found = [path.parent for path in (root / "bench" / "results").glob(f"*/{CSV}")]
    return sorted(found, key=lambda path: (path.name.startswith("cpu"), path.name))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def _milliseconds(row: Row | None) -> str:
    return "–" if row is None else f"{row['median_us'] / 1e3:,.3g}"


def _best(row: Row) -> float | None:
    """The smallest ratio to a rival: that of its fastest way."""
    ratios = [row[f"ratio_{name}"] for name in RIVALS if row[f"ratio_{name}"] != ""]
    return min(ratios) if ratios else None


def steps_table(rows: Sequence[Row]) -> str:
    """Milliseconds of whole training steps, ours and every rival's."""
    timed = [row for row in rows if row["family"] == FAMILY and row["status"] == OK]
    by_case: dict[tuple[str, str], dict[str, Row]] = {}
    for row in timed:
        by_case.setdefault((row["case"], row["precision"]), {})[row["variant"]] = row
    rivals = [name for name in RIVALS if any(name in by for by in by_case.values())]
    body = []
    for (case, precision), by in by_case.items():
        own = next((by[name] for name in _OURS if name in by), None)
        ratio = _best(own) if own else None
        model, batch = case.rsplit("-b", 1)
        times = [_milliseconds(own), *(_milliseconds(by.get(name)) for name in rivals)]
        name = f"{model}, batch {batch}" + ("" if precision == "fp32" else f", {precision}")
        body.append([name, *times, "–" if ratio is None else f"{ratio:.2f}"])
    header = ["ms per step", "gpucnn", *(_NAMES[name] for name in rivals), "best rival ÷ gpucnn"]
    return _table(header, body)


def epochs(rows: Sequence[Row]) -> str:
    """Seconds per float32 epoch of the datasets whose network and batch are among the steps."""
    images = {"shapes": SHAPES_TRAIN_IMAGES, "fashion-mnist": FASHION_MNIST_IMAGES}
    sentences = []
    for dataset, count in images.items():
        own = recipe(dataset)
        case = f"{own.model}-b{own.batch_size}"
        timed = [
            r
            for r in rows
            if r["family"] == FAMILY
            and (r["case"], r["precision"], r["status"]) == (case, "fp32", OK)
        ]
        seconds = {r["variant"]: r["median_us"] / 1e6 * (count // own.batch_size) for r in timed}
        mine = next((seconds[name] for name in _OURS if name in seconds), None)
        if mine is not None:
            rivals = [value for name, value in seconds.items() if name in RIVALS]
            versus = f", with PyTorch {min(rivals):.1f} s" if rivals else ""
            sentences.append(f"{dataset} ({count:,} images) {mine:.1f} s{versus}")
    return f"The steps of an epoch take: {'; '.join(sentences)}." if sentences else ""


def families_table(rows: Sequence[Row]) -> str:
    """Per family: how many rows, the median share of the floor, the median ratio to the best."""
    body = []
    for family, own in families(rows).items():
        mine = [r for r in own if r["status"] == OK and r["variant"] in _OURS]
        if family == FAMILY or not mine:
            continue
        shares = statistics.median(row["floor_share"] for row in mine)
        ratios = [ratio for ratio in map(_best, mine) if ratio is not None]
        ratio = f"{statistics.median(ratios):.2f}" if ratios else "–"
        body.append([f"`{family}`", str(len(mine)), f"{shares:.0%}", ratio])
    return _table(["family", "rows", "of the floor", "best rival ÷ gpucnn"], body)


def section(folder: Path, root: Path = ROOT) -> str:
    """What one folder of results says."""
    rows, machine = read_csv(folder / CSV), read_machine(folder / MACHINE)
    where = folder.relative_to(root).as_posix()
    subject = "CUDA kernels" if machine.device == "cuda" else "NumPy definitions, no GPU used"
    parts = [f"**{machine_title(machine)}**, {machine.date} ({subject}); {roofs(machine)}."]
    if machine.remark:
        parts.append(f"Not to be trusted: {machine.remark}.")
    parts += [steps_table(rows).rstrip(), epochs(rows)]
    if (folder / "training-steps.png").exists():
        parts.append(f"![Milliseconds per training step]({where}/training-steps.png)")
    parts.append(
        "Per family, the medians over its cases: the share of what the machine allows, and the "
        f"fastest rival's time divided by ours. Every row is in [{CSV}]({where}/{CSV})."
    )
    parts.append(families_table(rows).rstrip())
    return "\n\n".join(part for part in parts if part) + "\n"


def generated(root: Path = ROOT) -> str:
    """What belongs between the two marks."""
    sections = [section(folder, root) for folder in result_folders(root)]
    return "\n".join(sections) or "No measurement is committed: `make bench-results` makes one.\n"


def rewritten(text: str, part: str) -> str:
    """The README with another part between the marks; ValueError without them."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the marks {BEGIN} and {END}")
    return head + begin + "\n" + part.strip("\n") + "\n" + end + tail


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 where it would.")
def main(check: bool) -> None:
    """Rewrite the measured part of README.md from bench/results."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    new = rewritten(text, generated())
    if check:
        sys.exit(int(new != text))
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
