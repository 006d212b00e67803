"""What a run has measured: lines of JSON, written as they come, so that a broken run loses little.

Kinds of lines: "row" (a row of the bench, with its stage), "figure" (a number with a name, a unit
and a note), "machine", "note", and "stage" (how a stage ended).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..rows import OK, Row

FILE = "goals.jsonl"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Journal:
    """Appends the lines of one stage."""

    def __init__(self, folder: Path, stage: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._stage = folder / FILE, stage

    def _write(self, kind: str, fields: dict[str, Any]) -> None:
        line = {"kind": kind, "stage": self._stage, **{k: _plain(v) for k, v in fields.items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rows(self, rows: Iterable[Row]) -> None:
        """Rows of the bench."""
        for row in rows:
            self._write("row", {k: v for k, v in row.items() if v != ""})

    def figure(self, name: str, value: float, unit: str, note: str = "") -> None:
        """A number. name: what it is of, slashes between its parts."""
        self._write("figure", {"name": name, "value": float(value), "unit": unit, "note": note})

    def note(self, text: str) -> None:
        """Why something is missing."""
        self._write("note", {"text": text})

    def machine(self, found: Any) -> None:
        """What the stage ran on, a :class:`bench.machine.Machine`."""
        self._write("machine", found.as_dict())

    def ended(self, how: str, seconds: float) -> None:
        """How the stage ended, and after how long."""
        self._write("stage", {"how": how, "seconds": round(seconds, 1)})


class Found:
    """The lines of runs; later ones of the same thing count."""

    def __init__(self, lines: Sequence[dict[str, Any]] = ()) -> None:
        self.lines = list(lines)
        self._times: dict[tuple[str, str, str, str], float] = {}
        self._rows: dict[tuple[str, ...], Row] = {}
        self.figures: dict[str, dict[str, Any]] = {}
        for line in self.lines:
            if line["kind"] == "row":
                key = line["stage"], line["case"], line["precision"], line["variant"]
                whole = (*key, line["primitive"])
                self._rows[whole] = line
                if line["status"] == OK:
                    self._times[key] = float(line["median_us"])
            elif line["kind"] == "figure" and line["value"] is not None:
                self.figures[line["name"]] = line

    def us(self, stage: str, case: str, precision: str, *variants: str) -> float | None:
        """The least microseconds of some variants, None where none was measured."""
        keys = [(stage, case, precision, variant) for variant in variants]
        times = [self._times[key] for key in keys if key in self._times]
        return min(times) if times else None

    def figure(self, name: str) -> float | None:
        """A number, None where it was not measured."""
        found = self.figures.get(name)
        return None if found is None else float(found["value"])

    def rows(self, stage: str) -> list[Row]:
        """The rows of a stage."""
        return [row for row in self._rows.values() if row["stage"] == stage]

    def machines(self) -> list[dict[str, Any]]:
        """What the stages were on."""
        return [line for line in self.lines if line["kind"] == "machine"]

    def notes(self) -> list[str]:
        """What is missing, and how stages ended that did not reach their end."""
        said = [f"{x['stage']}: {x['text']}" for x in self.lines if x["kind"] == "note"]
        ended = [x for x in self.lines if x["kind"] == "stage" and x["how"] != "done"]
        said += [f"{x['stage']}: {x['how']} after {x['seconds']:g} s" for x in ended]
        wrong = [row for row in self._rows.values() if row["status"] != OK]
        said += [
            f"{r['stage']}: {r['primitive']} {r['case']} {r['variant']}: {r['status']}: "
            f"{r.get('note', '')}"
            for r in wrong
        ]
        return list(dict.fromkeys(said))


def read(*paths: Path) -> Found:
    """The lines of files; a line that was cut off is left out."""
    lines: list[dict[str, Any]] = []
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            if isinstance(line, dict):
                lines.append(line)
    return Found(lines)
