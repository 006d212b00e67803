"""What can go wrong in an emulated kernel, and where."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
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


def source_lines(library: Path, offsets: Sequence[int]) -> list[tuple[str, int]]:
    """File and line of the code at each of the ``offsets`` in a library: those of the innermost
    inlined function outside the shim and the system's headers. ("", 0) where addr2line is missing
    or does not know."""
    found = [("", 0)] * len(offsets)
    tool = shutil.which("addr2line")
    if tool is None or not offsets:
        return found
    # A return address belongs to the instruction after the call.
    addresses = "".join(f"{max(offset - 1, 0):#x}\n" for offset in offsets)
    command = [tool, "-e", str(library), "-a", "-i"]
    try:
        text = subprocess.run(command, input=addresses, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return found
    # For each address, the address and then its frames, innermost first.
    for i, frames in enumerate(re.split(r"(?m)^0x[0-9a-f]+\n", text.stdout)[1:]):
        for frame in frames.splitlines():
            match = re.match(r"(.*):(\d+)", frame)
            if (
                match
                and int(match[2])
                and not match[1].startswith(("??", SHIM_FOLDER, "/usr/include/", "/usr/lib/"))
            ):
                found[i] = match[1].removeprefix(f"{BUILD_FOLDER}/"), int(match[2])
                break
    return found


def source_line(library: Path, offset: int) -> tuple[str, int]:
    """File and line of the code at one offset in a library, as ``source_lines`` finds them."""
    return source_lines(library, [offset])[0] if offset > 0 else ("", 0)
