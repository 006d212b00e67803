"""No kernel takes more registers, sectors or bank conflicts than the committed table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.problems import all_problems
from gpucnn import emulator, kernel
from gpucnn.xray import record, report, select

TABLE = Path(__file__).resolve().parent.parent / "bench" / "results" / "xray" / "kernels.csv"
HOW = (
    "\n\nIf that is meant: gpucnn kernels --write-table bench/results/xray/kernels.csv"
    "\nTo see all differences: gpucnn kernels --compare bench/results/xray/kernels.csv"
)
LINES = record.read_records(TABLE)


def test_every_kernel_is_in_the_table() -> None:
    new, gone = record.unlisted(select.all_kernels(), LINES)
    assert not new, f"not in the table: {', '.join(new)}{HOW}"
    assert not gone, f"in the table, but no longer a kernel: {', '.join(gone)}{HOW}"


@pytest.mark.parametrize("family", kernel.FILES)
def test_nothing_got_worse(family: str) -> None:
    here = report.Tools.here()
    same_compiler = record.compiler_version() == LINES[0]["nvrtc"]
    tools = report.Tools(here.compiler and same_compiler, False, here.emulator)
    if not tools.compiler and not tools.emulator:
        pytest.skip(f"needs NVRTC {LINES[0]['nvrtc']} or g++: {emulator.why_unavailable()}")
    keys = [key for key in select.all_kernels() if key[0].family == family]
    calls = record.same_calls(LINES, keys, all_problems())
    counted = [x for x in LINES if x["file"] == family and x["problem"]]
    lost = {x["problem"] for x in counted} - {str(call.problem) for call in calls.values()}
    assert not lost, f"no longer a problem: {', '.join(lost)}{HOW}"
    now = record.records(report.examine(keys, calls, record.ARCHITECTURES, tools))
    worse = [str(change) for change in record.compare(LINES, now) if change.worse]
    assert not worse, "worse than the table:\n  " + "\n  ".join(worse) + HOW
