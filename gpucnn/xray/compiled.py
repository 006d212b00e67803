"""What NVRTC says of a kernel: registers, spills, stack and static shared memory.

NVRTC compiles to machine code without a GPU or a driver. Results are kept on disk, since all files
for one architecture take seconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from gpucnn.cache import cache_folder, published
from gpucnn.kernel import Specialisation, nvrtc_cubin, nvrtc_version, translation_unit
from gpucnn.signature import strip_comments

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

_USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What one thread (registers, stack and spills in bytes) and one block (shared bytes) take."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    static_shared: int

    @property
    def spills(self) -> int:
        return self.spill_stores + self.spill_loads


@dataclass(frozen=True)
class Compiled:
    """One specialisation compiled for one architecture: the cubin, and the usage by kernel."""

    cubin: bytes
    log: str
    usage: dict[str, Usage]


def parse_log(log: str) -> dict[str, Usage]:
    """The usage of each kernel in a log of ``--ptxas-options=-v``."""
    found = {}
    for name, stack, stores, loads, registers, rest in _USAGE.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        found[name] = Usage(
            registers=int(registers),
            stack=int(stack),
            spill_stores=int(stores),
            spill_loads=int(loads),
            static_shared=int(shared[1]) if shared else 0,
        )
    return found


@functools.cache
def _compiler_version() -> str:
    import cupy

    return f"{nvrtc_version()} {cupy.__version__}"


_locks: defaultdict[tuple[Specialisation, str], threading.Lock] = defaultdict(threading.Lock)


def compiled(spec: Specialisation, arch: str) -> Compiled:
    """Compile for ``arch`` ("sm_90"), or find it compiled.

    Raises RuntimeError with NVRTC's log on an error, ImportError where NVRTC is missing.
    """
    with _locks[spec, arch]:
        return _compiled(spec, arch)


@functools.cache
def _compiled(spec: Specialisation, arch: str) -> Compiled:
    parts = (_compiler_version(), spec.family, spec.source, *spec.options, arch)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    path = cache_folder("nvrtc") / f"{key}.cubin"
    try:
        log, _, cubin = path.read_bytes().partition(b"\0")
    except FileNotFoundError:
        cubin, text = nvrtc_cubin(spec, arch, ("--ptxas-options=-v",))
        log = text.encode()
        with published(path) as scratch:
            scratch.write_bytes(log.rstrip(b"\0") + b"\0" + cubin)
    text = log.rstrip(b"\0").decode()
    return Compiled(cubin, text, parse_log(text))


def compile_each(
    pairs: Iterable[tuple[Specialisation, str]],
    done: Callable[[Specialisation, str, str], None] = lambda spec, arch, error: None,
) -> None:
    """Compile in parallel threads; ``done`` gets each pair and its error message, empty if fine."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        running = {pool.submit(compiled, *pair): pair for pair in pairs}
        for future in as_completed(running):
            error = future.exception()
            done(*running[future], "" if error is None else str(error))


def launch_bound(spec: Specialisation, kernel: str) -> int | None:
    """The block size of a kernel's ``__launch_bounds__``, None if it has none."""
    text = strip_comments(translation_unit(spec.family))
    bound = re.search(rf"__launch_bounds__\s*\(\s*(\w+)[^()]*\)\s*{kernel}\s*\(", text)
    if bound is None:
        return None
    if bound[1].isdigit():
        return int(bound[1])
    constant = dict(spec.macros).get(bound[1])
    if constant is not None:
        return constant
    named = re.search(rf"\b{bound[1]}\s*=?\s*(\d+)\b", text)
    return int(named[1]) if named else None
