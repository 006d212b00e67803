"""How the CPU benches show their rows, and what every row says of the machine."""

from __future__ import annotations

import csv
import datetime
import platform
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import rich.table
import torch

from gpucnn.threads import thread_count


def machine() -> dict[str, Any]:
    """The columns that say where and when a row was measured."""
    return {
        "threads": thread_count(),
        "processor": platform.processor() or platform.machine(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def show(title: str, rows: list[dict[str, Any]], out: Path | None) -> None:
    """Print the measured columns as a table, and write whole rows to a CSV file if one is named."""
    table = rich.table.Table(title=f"{title}, {thread_count()} threads")
    columns = [name for name in rows[0] if name not in machine()]
    for name in columns:
        table.add_column(name, justify="left" if isinstance(rows[0][name], str) else "right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in columns))
    rich.console.Console().print(table)
    if out is not None:
        with out.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
