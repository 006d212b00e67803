"""What the ``cuda`` device and the bench call CuPy's exists: the stand-ins cannot know."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
# cupy.cuda.Stream, self.cupy.cuda.Stream, timer.cupy…; not "cupy.py", cupy-cuda13x
CHAIN = re.compile(r"(?<![\w\"'-])(?:\w+\.)*_?cupy((?:\.[A-Za-z_]\w*)+)")
ELSEWHERE = {"cupy.org", "cupy.py"}


def names(text: str) -> set[str]:
    """The dotted names of CuPy in a source text."""
    found = {f"cupy{match.group(1)}" for match in CHAIN.finditer(text)}
    return found - ELSEWHERE


def missing(cupy: Any, name: str) -> str:
    """The first part of a dotted name that CuPy does not have, or ""."""
    value, known = cupy, "cupy"
    for part in name.split(".")[1:]:
        known = f"{known}.{part}"
        if not hasattr(value, part):
            return known
        value = getattr(value, part)
        if isinstance(value, type) or callable(value):  # what it has depends on its instances
            return ""
    return ""


def test_names_are_found_in_sources() -> None:
    text = "x = self._cupy.cuda.Graph(); timer.cupy.get_it(1)\nimport cupy.cuda\n'cupy.py'"
    assert names(text) == {"cupy.cuda.Graph", "cupy.get_it", "cupy.cuda"}


def test_every_name_of_cupy_exists() -> None:
    cupy = pytest.importorskip("cupy", reason="needs CuPy, no GPU", exc_type=ImportError)
    used: dict[str, Path] = {}
    for folder in ("gpucnn", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for name in names(path.read_text(encoding="utf-8")):
                used.setdefault(name, path)
    assert len(used) > 20
    assert missing(cupy, "cupy.cuda.Streem.null") == "cupy.cuda.Streem"
    absent = {name: used[name].name for name in used if missing(cupy, name)}
    assert not absent
