"""Measure this machine for the repository: ``python -m bench.publish``.

Runs the quick set without a GPU and the full set on one, writes it to
``bench/results/<cpu or gpu>`` and rewrites the measured part of the README.
"""

from __future__ import annotations

import re
import sys

from gpucnn.cli import main
from gpucnn.device import default_device

from . import readme
from .machine import processor_name
from .output import PAGE


def folder_name(device: str, name: str, threads: int) -> str:
    """Lower case and hyphens: "cpu-amd-epyc-2-threads", "nvidia-h200"."""
    words = f"cpu {name} {threads} threads" if device == "cpu" else name
    return "-".join(re.findall(r"[a-z0-9]+", words.lower()))


def _here(device: str) -> str:
    if device == "cpu":
        from gpucnn.threads import thread_count

        return folder_name(device, processor_name(), thread_count())
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(runtime.getDevice())["name"].decode()
    return folder_name(device, name, 0)


def publish() -> int:
    """Measure, remove the page (its pictures lie beside it), rewrite the README."""
    device = default_device()
    out = readme.ROOT / "bench" / "results" / _here(device)
    size = ["--quick"] if device == "cpu" else ["--minutes", "6.5"]
    code = main(["bench", "--device", device, *size, "--out", str(out)])
    if code == 0:
        (out / PAGE).unlink(missing_ok=True)
        readme.main.main(args=[], standalone_mode=False)
    return code


if __name__ == "__main__":
    sys.exit(publish())
