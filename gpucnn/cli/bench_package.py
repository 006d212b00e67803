"""Where the bench is: its cases and rivals are data of the tools, not part of the library."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


@functools.cache
def _package() -> str:
    if importlib.util.find_spec("gpucnn._bench") is not None:
        return "gpucnn._bench"
    folder = Path(__file__).resolve().parents[2] / "bench"
    spec = importlib.util.spec_from_file_location(
        "bench", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if not folder.is_dir() or spec is None or spec.loader is None:
        raise FileNotFoundError(f"the bench is missing: neither gpucnn/_bench nor {folder}")
    if "bench" not in sys.modules:
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench"])
    return "bench"


def bench_module(name: str) -> ModuleType:
    """A module of the bench, ``"problems"`` say: of the installed package, else of the checkout."""
    return importlib.import_module(f"{_package()}.{name}")
