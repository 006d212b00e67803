"""Seconds from nothing to an imported library, with an empty and with a filled compile cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from .journal import Journal

ROOT = Path(__file__).resolve().parents[2]
WARM_RUNS = 3
_PROGRAM = """
import time
start = time.perf_counter()
import cupy
between = time.perf_counter()
import gpucnn
print(between - start, time.perf_counter() - between)
"""


def import_seconds(environment: Mapping[str, str], limit: float) -> tuple[float, float]:
    """(of ``import cupy``, of ``import gpucnn`` behind it) in a new process; raises its trouble."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=limit,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no message").splitlines()[-1])
    cupy, gpucnn = map(float, done.stdout.split()[-2:])
    return cupy, gpucnn


def measure(journal: Journal, until: float) -> None:
    """An import that compiles every default kernel, then the least of several that compile none."""
    with tempfile.TemporaryDirectory() as cache:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("GPUCNN_")}
        environment = {**kept, "CUPY_CACHE_DIR": cache}
        left = max(5.0, until - time.monotonic())
        cupy, cold = import_seconds(environment, left)
        journal.figure("import/cold", cold, "s", f"after {cupy:.2f} s for cupy")
        warm = [import_seconds(environment, left) for _ in range(WARM_RUNS)]
        least = min(warm, key=lambda pair: pair[1])
        journal.figure("import/warm", least[1], "s", f"after {least[0]:.2f} s for cupy")
        journal.figure("import/cupy", min(first for first, _ in warm), "s")
