"""One row: one implementation of one problem, as measured, and the columns of a table."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpucnn.kernel import translation_unit
from gpucnn.primitive import PRIMITIVES

from .harness.timing import Timing
from .machine import Machine
from .rivals import COLUMNS as RIVALS

OK, WRONG, OUT_OF_MEMORY, FAILED = "ok", "wrong", "out of memory", "failed"

# What tells rows apart, when two runs are compared.
KEY = ("family", "primitive", "case", "variant", "device", "precision")
RATIOS = tuple(f"ratio_{name}" for name in RIVALS)
COLUMNS = (
    *("family", "primitive", "direction", "case", "variant", "device", "precision", "status"),
    *("median_us", "p20_us", "p80_us", "gb_s", "gflop_s", "floor_us", "floor_share"),
    *RATIOS,
    *("max_error", "kernel", "registers", "shared_bytes", "occupancy"),
    *("host_us", "samples", "timer"),
    *("bytes", "flops", "gpu", "driver", "cupy", "processor", "threads", "numpy", "torch"),
    *("source_hash", "date", "note"),
)

Row = dict[str, Any]


def _rounded(value: float, digits: int = 5) -> float:
    return float(f"{value:.{digits}g}")


def empty_row(problem: Any, variant: str, machine: Machine, precision: str) -> Row:
    """A row that nothing is known of but its problem and its machine."""
    row: Row = dict.fromkeys(COLUMNS, "")
    for name in ("family", "primitive", "direction", "case", "bytes", "flops"):
        row[name] = getattr(problem, name)
    for name in ("gpu", "driver", "cupy", "processor", "threads", "numpy", "torch", "date"):
        row[name] = getattr(machine, name)
    row |= {"variant": variant, "device": machine.device, "precision": precision}
    return row


def add_timing(row: Row, timing: Timing, machine: Machine) -> None:
    """Fill in the times and what follows from them."""
    us, floor = timing.median, machine.floor_us(row["bytes"], row["flops"], row["precision"])
    row |= {
        "status": OK,
        "median_us": _rounded(us),
        "p20_us": _rounded(timing.p20),
        "p80_us": _rounded(timing.p80),
        "gb_s": _rounded(row["bytes"] / us / 1e3),
        "gflop_s": _rounded(row["flops"] / us / 1e3),
        "floor_us": _rounded(floor),
        "floor_share": _rounded(floor / us, 3),
        "samples": timing.samples,
        "timer": timing.timer,
    }


def add_ratios(rows: Sequence[Row]) -> None:
    """Rival time ÷ own time, in the rows of one problem: above 1 is faster than the rival."""
    times = {row["variant"]: row["median_us"] for row in rows if row["status"] == OK}
    for row in rows:
        if row["status"] == OK and row["variant"] not in RIVALS:
            for name in RIVALS:
                if name in times:
                    row[f"ratio_{name}"] = _rounded(times[name] / row["median_us"], 3)


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def kernel_hash(specialisations: Iterable[Any]) -> str:
    """Of the CUDA sources, headers inlined, with their macros: 12 hexadecimal digits."""
    found = {f"{spec}\0{translation_unit(spec.family)}" for spec in specialisations}
    return _digest(sorted(found))


def definition_hash(primitive: str) -> str:
    """Of the file of the NumPy definition, which is what the ``cpu`` device computes."""
    return file_hash(PRIMITIVES[primitive].definition.__code__.co_filename)


def file_hash(*paths: str | Path) -> str:
    """Of some files: 12 hexadecimal digits."""
    return _digest(Path(path).read_text(encoding="utf-8") for path in paths)
