"""kernels/README.md names every file, and its numbers are what the command prints."""

from __future__ import annotations

import csv
import re

import pytest

from bench import ladder
from gpucnn.kernel import kernel_folder
from gpucnn.xray.record import compiler_version
from gpucnn.xray.report import Tools

TEXT = ladder.README.read_text(encoding="utf-8")
TOOLS = Tools.here()
with ladder.TENSOR_CORES.open(newline="", encoding="utf-8") as file:
    WRITTEN_WITH = next(csv.DictReader(file))["nvrtc"]
HOW = "out of date: python -m bench.ladder"

same_tools = pytest.mark.skipif(
    not (TOOLS.compiler and TOOLS.disassembler and TOOLS.emulator)
    or compiler_version() != WRITTEN_WITH,
    reason=f"needs NVRTC {WRITTEN_WITH}, nvdisasm and g++",
)


def test_every_file_is_named_and_exists() -> None:
    named = set(re.findall(r"\w+\.cuh?\b", TEXT))
    there = {path.name for path in kernel_folder().glob("*.cu*")}
    assert there == named, f"only in the folder: {there - named}; only named: {named - there}"


@same_tools
def test_the_ladder_is_what_the_command_prints() -> None:
    assert ladder.generated_part(TEXT) == ladder.ladder(), HOW


@same_tools
def test_the_tensor_core_table_is_what_the_command_prints() -> None:
    assert ladder.TENSOR_CORES.read_text(encoding="utf-8") == ladder.tensor_cores(), HOW


def test_only_the_generated_part_is_replaced() -> None:
    made = ladder.replaced(TEXT, "| new |\n")
    assert ladder.generated_part(made) == "| new |\n"
    assert ladder.replaced(made, ladder.generated_part(TEXT)) == TEXT
    with pytest.raises(ValueError, match="must hold"):
        ladder.replaced("# no marks\n", "")
