"""The files of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import page, plots
from .run import Results
from .tables import markdown, write_csv

CSV, MARKDOWN, MACHINE, PAGE = "bench.csv", "bench.md", "machine.json", "bench.html"


def write_rows(folder: Path, results: Results) -> None:
    """The table so far, and the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / CSV, results.rows)
    text = json.dumps(results.machine.as_dict(), indent=2) + "\n"
    (folder / MACHINE).write_text(text, encoding="utf-8")


def write_all(
    folder: Path,
    results: Results,
    against: Sequence[str],
    compared: str = "",
    comparison: Sequence[str] = (),
    with_pictures: bool = True,
) -> tuple[list[Path], list[str]]:
    """CSV, Markdown, PNG and HTML -> (the files, why others could not be written)."""
    write_rows(folder, results)
    (folder / MARKDOWN).write_text(markdown(results, against), encoding="utf-8")
    files, missing = [folder / CSV, folder / MACHINE, folder / MARKDOWN], []
    pictures: list[Path] = []
    if not with_pictures:
        missing.append("no pictures were asked for")
    elif plots.available():
        missing.append(plots.available())
    else:
        pictures = plots.draw(folder, results.rows, results.machine)
    if page.available():
        missing.append(page.available())
    else:
        text = page.render(results, pictures, against, compared, comparison)
        (folder / PAGE).write_text(text, encoding="utf-8")
        files.append(folder / PAGE)
    return files + pictures, missing


def as_json(results: Results, comparison: Sequence[str] = ()) -> dict[str, Any]:
    """The run for ``--json``: what is not known or not finite is null."""

    def plain(value: Any) -> Any:
        if value == "" or (isinstance(value, float) and not math.isfinite(value)):
            return None
        return value

    return {
        "machine": results.machine.as_dict(),
        "rows": [{k: plain(v) for k, v in row.items()} for row in results.rows],
        "gaps": [
            {"rival": name, "reason": reason, "count": count}
            for (name, reason), count in sorted(results.gaps.items())
        ],
        "unmeasured": results.unmeasured,
        "stopped": results.stopped or None,
        "comparison": list(comparison),
    }
