"""What NVRTC says of a kernel: registers, spills, stack and static shared memory.

NVRTC compiles to machine code without a GPU or a driver. Results are kept on disk, since all files
for one architecture take seconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from gpucnn.cache import cache_folder, published
from gpucnn.kernel import Specialisation, nvrtc_cubin, nvrtc_version

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
        try:
            for future in as_completed(running):
                error = future.exception()
                done(*running[future], "" if error is None else str(error))
        except BaseException:  # Ctrl-C, say
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_SVAL, _MAX_THREADS = 4, 5  # of an attribute in a section .nv.info.KERNEL


def launch_bound(cubin: bytes, kernel: str) -> int | None:
    """The block size of a kernel's ``__launch_bounds__`` in a cubin, None if it has none."""
    info = _section(cubin, f".nv.info.{kernel}")
    at = 0
    while at + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, at)
        if form == _SVAL and attribute == _MAX_THREADS:
            x, y, z = struct.unpack_from("<III", info, at + 4)
            return int(x * y * z)
        at += 4 + (size if form == _SVAL else 0)
    return None


def _section(elf: bytes, name: str) -> bytes:
    """The contents of a section of a 64-bit ELF file, empty if there is none."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_bytes, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_bytes) for i in range(count)]
    strings = sections[names][4]
    for name_at, _, _, _, start, size in sections:
        begin = strings + name_at
        if elf[begin : elf.index(b"\0", begin)] == name.encode():
            return elf[start : start + size]
    return b""
