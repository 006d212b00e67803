"""One HTML page of a run that needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .rivals import COLUMNS as RIVALS
from .rows import OK, Row
from .run import Results
from .tables import columns_for, families, gap_lines, notes, roofs, title

_TEMPLATE = Path(__file__).with_name("page.html")


def available() -> str:
    """Why there is no page, or ""."""
    try:
        import jinja2  # noqa: F401
    except ImportError:
        return "jinja2 is missing; pip install 'gpucnn[report]'"
    return ""


def _uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def _kind(row: Row) -> str:
    if row["status"] != OK:
        return "trouble"
    return "rival" if row["variant"] in RIVALS else ""


def _family(name: str, rows: Sequence[Row], picture: Path | None, against: Any) -> dict[str, Any]:
    columns = columns_for(rows, against)
    return {
        "name": name,
        "picture": _uri(picture) if picture else "",
        "headers": [c.header for c in columns],
        "rows": [{"kind": _kind(row), "cells": [c.text(row) for c in columns]} for row in rows],
    }


def render(
    results: Results,
    pictures: Sequence[Path],
    against: Iterable[str] = RIVALS,
    compared: str = "",
    comparison: Sequence[str] = (),
) -> str:
    """The page: tables per family, each with its picture, and the pictures of the whole run."""
    import jinja2

    against = tuple(against)
    by_name = {path.stem: path for path in pictures}
    groups = families(results.rows)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=title(results.machine),
        roofs=roofs(results.machine),
        remark=results.machine.remark,
        compared=compared,
        comparison=list(comparison),
        leading=[
            {"name": path.stem, "uri": _uri(path)} for path in pictures if path.stem not in groups
        ],
        families=[_family(n, rows, by_name.get(n), against) for n, rows in groups.items()],
        notes=notes(results.rows),
        gaps=gap_lines(results),
    )
