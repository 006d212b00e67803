"""What can go wrong in an emulated kernel, and where."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

# Stand for the compiler's working directory and the shim's folder in debug information.
BUILD_FOLDER = "/gpucnn-build"
SHIM_FOLDER = "/gpucnn-shim"

Index = tuple[int, int, int]


class CompileError(Exception):
    """The kernel source does not compile; the message is the compiler's."""


class Unsupported(NotImplementedError):
    """The kernel source uses a CUDA feature that the emulator does not run."""


class KernelFault(Exception):
    """A kernel did something undefined.

    ``kind`` is one of ``out-of-bounds``, ``misaligned``, ``uninitialised-read``, ``race``,
    ``divergent-barrier``, ``bad-mask``, ``assert`` and ``order-dependence``; ``block`` and
    ``thread`` are (x, y, z). ``line`` is 0 where the source line is unknown.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        kernel: str,
        file: str = "",
        line: int = 0,
        block: Index = (0, 0, 0),
        thread: Index = (0, 0, 0),
    ) -> None:
        self.kind, self.kernel, self.file, self.line = kind, kernel, file, line
        self.block, self.thread = block, thread
        where = f"{file}:{line}: " if file else ""
        super().__init__(f"{where}{kind} in kernel {kernel}: {message}")


def indexed_name(source: str, file: str, line: int, column: int) -> str:
    """The array whose index ends with the bracket at ``column`` of a line; "" if it is not there,
    as behind a macro."""
    current, name = 1, "kernel.cu"
    for text in source.split("\n"):
        if directive := re.match(r'[ \t]*#[ \t]*line[ \t]+(\d+)(?:[ \t]+"([^"]*)")?', text):
            current, name = int(directive[1]), directive[2] or name
            continue
        if (current, name) == (line, file):
            head = text[:column].rstrip()
            while head.endswith("]"):
                depth, at = 1, len(head) - 1
                while depth and at:
                    at -= 1
                    depth += {"]": 1, "[": -1}.get(head[at], 0)
                head = head[:at].rstrip()
            found = re.search(r"\w+$", head)
            return found[0] if found and len(head) < column - 1 else ""
        current += 1
    return ""


def source_line(library: Path, offset: int) -> tuple[str, int]:
    """File and line of the code at ``offset`` in a library: that of the innermost inlined function
    outside the shim. ("", 0) if addr2line is missing or does not know."""
    tool = shutil.which("addr2line")
    if tool is None or offset <= 0:
        return "", 0
    # A return address belongs to the instruction after the call.
    command = [tool, "-e", str(library), "-i", hex(offset - 1)]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "", 0
    for frame in lines.splitlines():
        match = re.match(r"(.*):(\d+)", frame)
        if match and match[1] != "??" and int(match[2]) and SHIM_FOLDER not in match[1]:
            return match[1].removeprefix(f"{BUILD_FOLDER}/"), int(match[2])
    return "", 0
