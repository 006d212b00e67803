"""The machine instructions (SASS) of a kernel, counted by what they do.

Needs NVIDIA's disassembler ``nvdisasm``: the wheel ``nvidia-cuda-nvdisasm`` or a toolkit on PATH.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpucnn.cache import cache_folder, published

HINT = "no instruction mix: nvdisasm is missing (pip install nvidia-cuda-nvdisasm)"

# The first pattern that an opcode is says its class; a U in front (the unit that computes once per
# warp) makes no difference. Widths are in bits.
_CLASSES = [
    (r"(?:FFMA|FMUL|FADD)2?|[HD](?:FMA|MUL|ADD)2?", "{name}"),
    (r"(?:[HIQDO]|HG|UTC\w*)MMA", "{name}"),
    (r"MUFU", "MUFU"),
    (r"LDSM|STSM", "{name}"),
    (r"LDGSTS|(?:LD|ST)[GSL]?", "{name}.{width}"),
    (r"ATOM\w*|RED|REDG", "atomic"),
    (r"BAR|SYNCS|DEPBAR|LDGDEPBAR|MEMBAR|ERRBAR|ARRIVES", "{name}"),
    (r"SHFL|VOTE\w*|MATCH|REDUX", "{name}"),
    (r"[FI]2[FI]\w*|FRND|F2IP", "convert"),
    (r"FMNMX\w*|[FDH]SETP2?|FSET|FSEL|FCHK|HMNMX2|FCMP", "float compare"),
    (r"LDCU?|S2U?R|CS2R|MOV\w*|PRMT|SEL|[RPB]2U?[RPB]", "move"),
    (r"BR[AX]U?|JMP|CALL|RET|EXIT|BSSY|BSYNC|BREAK|WARPSYNC\w*|YIELD|KILL|BPT|BMOV"
     r"|ENDCOLLECTIVE|PREEXIT|ACQBULK", "branch"),
    (r"NOP", "NOP"),
    (r"I(?:MAD|ADD\w*|SETP|MNMX\w*|ABS|MUL|DP)|V(?:IADD|IADDMNMX|IMNMX\d?|ABSDIFF)|LEA|P?LOP\d?"
     r"|SH[FLR]|ISET|PSETP|POPC|FLO|BREV|BMSK|SGXT", "integer"),
]  # fmt: skip
_PATTERNS = [(re.compile(rf"(?:{pattern})$"), form) for pattern, form in _CLASSES]

MATH = ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2", "HFMA2", "HMUL2", "HADD2", "DFMA",
        "DMUL", "DADD", "HMMA", "IMMA", "QMMA", "DMMA", "HGMMA", "OMMA")  # fmt: skip
LOADS = ("LDG", "LDS", "LDSM", "LDGSTS", "LDL", "LD")


def classify(opcode: str, operands: str = "") -> str:
    """The class of an instruction: ``LDG.128`` of ``LDG.E.128``, ``integer`` of ``IMAD.WIDE``."""
    name, *modifiers = opcode.split(".")
    if name == "HFMA2" and "RZ" in operands:
        return "move"  # of a constant, by way of an idle unit
    known = name if any(p.match(name) for p, _ in _PATTERNS) else name.removeprefix("U")
    for pattern, form in _PATTERNS:
        if pattern.match(known):
            widths = [m for m in modifiers if m in ("64", "128", "256")]
            small = [m for m in modifiers if re.fullmatch(r"[US](?:8|16)", m)]
            width = widths[0] if widths else small[0][1:] if small else "32"
            return form.format(name=known, width=width)
    return "other"


@dataclass(frozen=True)
class Mix:
    """Instructions of a kernel by class, and those of its main loop: the one with most math.

    Both count what stands in the code, not what is executed.
    """

    all: dict[str, int]
    loop: dict[str, int]

    @property
    def math_per_load(self) -> float | None:
        """Multiplies and adds per load in the main loop; in the whole kernel where it has none."""
        mix = self.loop or self.all
        loads = _total(mix, LOADS)
        return _total(mix, MATH) / loads if loads else None


def _total(mix: dict[str, int], names: Sequence[str]) -> int:
    return sum(count for key, count in mix.items() if key.split(".")[0] in names)


def _ordered(classes: Sequence[str]) -> dict[str, int]:
    counts = Counter(name for name in classes if name != "NOP")
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


_INSTRUCTION_BYTES = 16


def _operations(name: str) -> int:
    """What a lane computes by one instruction; on tensor cores 64 at least."""
    if name not in MATH:
        return 0
    return 64 if name.endswith("MMA") else 2 if "FMA" in name else 1


def _main_loop(classes: Sequence[str], targets: dict[int, int]) -> tuple[int, int] | None:
    """[start, stop) of the loop that computes most, without the loops around it.

    targets: index of a branch -> index that it goes to. A loop is what stands between a branch
    backwards and its target. Where loops copy behind their arithmetic (LDGSTS), others do not
    count: those are what a pipelined kernel is about, whatever it does with its results.
    """
    math = [_operations(name) for name in classes]
    loops = [
        (sum(math[start : at + 1]), start, at + 1) for at, start in targets.items() if start <= at
    ]
    # a loop around another one that does at least half of its math is not the main one
    inner = [
        (count, start, stop)
        for count, start, stop in loops
        if count
        and not any(
            2 * other >= count and start <= a and b <= stop and (a, b) != (start, stop)
            for other, a, b in loops
        )
    ]
    if not inner:
        return None
    pipelined = [
        loop for loop in inner if any(c.startswith("LDGSTS") for c in classes[slice(*loop[1:])])
    ]
    _, start, stop = max(pipelined or inner, key=lambda loop: (loop[0], loop[1] - loop[2]))
    return start, stop


def _mix(instructions: Sequence[dict[str, Any]]) -> Mix:
    classes, targets = [], {}
    for i, instruction in enumerate(instructions):
        opcode, operands = instruction["opcode"], instruction.get("operands", "")
        classes.append(classify(opcode, operands))
        # the last operand of a branch is an address within the kernel; code ends in one to itself
        target = re.search(r"(0x[0-9a-f]+)$", operands)
        if target and opcode.split(".")[0] in ("BRA", "JMP"):
            index = int(target[1], 16) // _INSTRUCTION_BYTES
            if index != i:
                targets[i] = index
    loop = _main_loop(classes, targets)
    return Mix(_ordered(classes), _ordered(classes[slice(*loop)]) if loop else {})


@functools.cache
def disassembler() -> str | None:
    """The path of nvdisasm, of a wheel or on PATH; None if there is none."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or () if spec else ():
        for found in sorted(Path(folder).glob("*/bin/nvdisasm"), reverse=True):
            return str(found)
    return shutil.which("nvdisasm")


@functools.cache
def instruction_mix(cubin: bytes) -> dict[str, Mix]:
    """The mix of each kernel of a cubin, by kernel.

    Raises FileNotFoundError without a disassembler, RuntimeError if it does not know the cubin.
    """
    program = disassembler()
    if program is None:
        raise FileNotFoundError(HINT)
    key = hashlib.sha256(program.encode() + cubin + Path(__file__).read_bytes()).hexdigest()[:32]
    path = cache_folder("sass") / f"{key}.json"
    if not path.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            run = subprocess.run([program, "-json", file.name], capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"nvdisasm: {run.stderr.strip()}")
        _, functions = json.loads(run.stdout)
        mixes = {f["function-name"]: _mix(f["sass-instructions"]) for f in functions}
        with published(path) as scratch:
            scratch.write_text(json.dumps({k: vars(m) for k, m in mixes.items()}))
    return {name: Mix(**mix) for name, mix in json.loads(path.read_text()).items()}
