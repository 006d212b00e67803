"""Makes assembly count the floating-point operations that it executes.

Behind the compiler, each arithmetic instruction on ``float`` or ``double``, and each call of a
mathematical function, gets a counter of its own that is incremented before it. The increment
changes no flag and no register, so the code around it needs no thought.

Each of these is one operation: addition, subtraction, multiplication, division, square root,
comparison, minimum, maximum, and a call of exp, log, sin, tanh, erf, pow and the like. A fused
multiply-add is two. Negations, absolute values, copies, conversions and roundings to integers are
none. What is counted is what g++ compiles, which, as a GPU's compiler, leaves out results that
nobody uses, computes constants beforehand, and may compute once what the source asks for twice.
"""

from __future__ import annotations

import platform
import re

COUNTERS, PLACES = "gpucnn_flop_counters", "gpucnn_flop_places"

# Without a red zone below the stack pointer, the increment may push a register.
FLAGS = ("-mno-red-zone", "-msse4.1", "-fno-tree-vectorize", "-fno-builtin-round",
         "-fno-builtin-roundf")  # fmt: skip

# Operations in one execution, where that is not 1.
WEIGHTS = {"fma": 2, "sincos": 2}

_INSTRUCTIONS = {"add": "add", "sub": "add", "mul": "mul", "div": "div", "sqrt": "sqrt",
                 "min": "compare", "max": "compare", "comi": "compare", "ucomi": "compare",
                 "cmp": "compare"}  # fmt: skip
_INSTRUCTION = re.compile(
    r"\t(add|sub|mul|div|sqrt|min|max|u?comi|cmp)(?:eq|lt|le|unord|neq|nlt|nle|ord)?(ss|sd|ps|pd)\t"
)
_LANES = {"ss": 1, "sd": 1, "ps": 4, "pd": 2}

_CALL = re.compile(r"\tcall\t(\w+)(?:@PLT)?$")
_LIBRARY = frozenset(
    {"exp", "exp2", "exp10", "expm1", "log", "log2", "log10", "log1p", "pow", "sqrt", "cbrt",
     "hypot", "sin", "cos", "sincos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
     "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "tgamma", "lgamma", "fmod", "remainder",
     "fma", "fmin", "fmax", "fdim"}
)  # fmt: skip
# Functions that the shim marks GPUCNN_OPERATION: what is inside them is not counted.
_SHIM = {"rsqrtf": "rsqrt", "rsqrt": "rsqrt", "rcbrtf": "rcbrt", "sinpif": "sin",
         "cospif": "cos", "normcdff": "normcdf", "gpucnn_float_to_half_bits": "",
         "gpucnn_half_bits_to_float": "", "gpucnn_to_int": "", "gpucnn_to_uint": ""}  # fmt: skip
_RENAMED = {"fmin": "compare", "fmax": "compare", "fdim": "add"}

_INCREMENT = """.Lgpucnn_flop_{0}:
\tpushq\t%rax
\tmovq\t.Lgpucnn_flop_counters+{1}(%rip), %rax
\tleaq\t{2}(%rax), %rax
\tmovq\t%rax, .Lgpucnn_flop_counters+{1}(%rip)
\tpopq\t%rax"""


def available() -> bool:
    """True if this machine's assembly can be made to count."""
    return platform.machine().lower() in ("x86_64", "amd64")


def instrument(assembly: str) -> tuple[str, list[str]]:
    """Assembly that counts its floating-point operations, and the operation of each counter.

    The library gets two symbols: ``COUNTERS``, an array of 64-bit numbers, and ``PLACES``, an array
    of the 32-bit distances from there to the code that each one counts.
    """
    operations: list[str] = []
    out: list[str] = []
    inside = ""  # of which of the shim's functions
    for line in assembly.split("\n"):
        if line.endswith(", @function"):
            inside = _shim_function(line.split()[1].rstrip(","))
        elif not inside:
            operation, times = _operation(line)
            if operation:
                out.append(_INCREMENT.format(len(operations), 8 * len(operations), times))
                operations.append(operation)
        out.append(line)
    return "\n".join([*out, _tables(len(operations))]), operations


def _operation(line: str) -> tuple[str, int]:
    """What one line computes, and how often; ("", 0) if that is nothing to count."""
    if match := _INSTRUCTION.match(line):
        return _INSTRUCTIONS[match[1]], _LANES[match[2]]
    if match := _CALL.match(line):
        if shim := _shim_function(match[1]):
            return _SHIM[shim], 1
        name = match[1] if match[1] in _LIBRARY else match[1].removesuffix("f")
        if name in _LIBRARY:
            return _RENAMED.get(name, name), 1
    return "", 0


def _shim_function(symbol: str) -> str:
    """The name of a function of the shim that is one operation; "" for any other symbol."""
    match = re.match(r"_ZL(\d+)(\w+)", symbol)
    name = match[2][: int(match[1])] if match else ""
    return name if name in _SHIM else ""


def _tables(count: int) -> str:
    distances = "".join(
        f"\t.long\t.Lgpucnn_flop_{i} - .Lgpucnn_flop_places\n" for i in range(count)
    )
    return f"""
\t.bss
\t.p2align\t3
\t.globl\t{COUNTERS}
{COUNTERS}:
.Lgpucnn_flop_counters:
\t.zero\t{8 * max(count, 1)}
\t.section\t.rodata
\t.p2align\t2
\t.globl\t{PLACES}
{PLACES}:
.Lgpucnn_flop_places:
{distances}\t.long\t0
"""
