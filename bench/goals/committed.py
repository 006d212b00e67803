"""The committed table: what was counted, and what runs on GPUs have measured so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from ..steps import STEPS, Step
from .counts import Counts, count, count_problem
from .journal import FILE, read
from .parts import BLOCKS, UPDATES
from .steps import PRECISIONS, counted_kernels
from .table import markdown

RESULTS = Path(__file__).resolve().parents[1] / "results"
COUNTS, TABLE = RESULTS / "goals-counts.json", RESULTS / "goals.md"


def counted() -> Iterator[tuple[Step, str]]:
    """The steps of the table, with their precisions."""
    by_case = {s.case: s for s in STEPS}
    yield from ((by_case[case], precision) for case, precision in PRECISIONS.items())
    yield from ((part, "tf32") for part in (*BLOCKS, *UPDATES))


def read_counts() -> list[Counts]:
    """What was counted last; nothing where the file is absent."""
    if not COUNTS.exists():
        return []
    return [Counts(**line) for line in json.loads(COUNTS.read_text(encoding="utf-8"))]


def write_counts(pytorch: bool = False) -> None:
    """Count anew; of PyTorch, which no change of ours changes, only what is absent or asked for."""
    known = {} if pytorch else {(c.case, c.precision): c.torch for c in read_counts()}
    found = []
    for step, precision in counted():
        there = (step.case, precision) in known
        counts = count(step, precision, with_torch=not there)
        if there:
            counts = replace(counts, torch=known[step.case, precision])
        found.append(counts)
    found += map(count_problem, counted_kernels())
    lines = ",\n".join(json.dumps(asdict(counts)) for counts in found)
    COUNTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def table() -> str:
    """The Markdown of the committed counts and of all committed runs."""
    return markdown(read(*sorted(RESULTS.glob(f"*/{FILE}"))), read_counts())


def write(pytorch: bool = False) -> None:
    """Count, and write the table."""
    write_counts(pytorch)
    TABLE.write_text(table(), encoding="utf-8")
