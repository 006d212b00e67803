"""What the runtime counted of a launch, with a source line for each instruction."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpucnn.emulator import flops
from gpucnn.emulator.fault import source_lines

if TYPE_CHECKING:
    from gpucnn.emulator.launch import Library

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p

EVENTS = ("barrier", "shuffle", "vote", "reduce", "sync", "mma")
ACCESSES = ("read", "write", "atomic")


# These mirror csrc/count.h.
class AccessCount(ctypes.Structure):
    """One access instruction, for one memory space and access size."""

    _fields_ = (
        ("pc", _u64), ("space", _u32), ("access", _u32), ("size", _u32), ("worst", _u32),
        ("requests", _u64), ("lanes", _u64), ("sectors", _u64), ("ideal_sectors", _u64),
        ("coalesced", _u64), ("wavefronts", _u64), ("conflicts", _u64),
    )  # fmt: skip


class _EventCount(ctypes.Structure):
    _fields_ = (("pc", _u64), ("event", _u32), ("padding", _u32), ("count", _u64))


class _Counts(ctypes.Structure):
    _fields_ = (
        ("accesses", _pointer), ("events", _pointer), ("access_count", _u64),
        ("event_count", _u64), ("read_footprint", _u64), ("written_footprint", _u64),
        ("most_barriers", _u64),
    )  # fmt: skip


Line = tuple[str, int]


@dataclass(frozen=True)
class Counted:
    """The counters of one launch by instruction, each with its (file, line)."""

    accesses: list[tuple[Line, AccessCount]]
    events: list[tuple[Line, str, int]]  # one of EVENTS, times
    operations: list[tuple[Line, str, int]]  # floating-point operation, executions
    read_footprint: int
    written_footprint: int
    most_barriers: int


@dataclass(frozen=True)
class CountedLaunch:
    """One launch and its counters."""

    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_mem: int
    counted: Counted


_collectors: list[Callable[[CountedLaunch], None]] = []


@contextlib.contextmanager
def collecting(collector: Callable[[CountedLaunch], None]) -> Iterator[None]:
    """Count every launch inside the ``with`` block, and hand it to ``collector``."""
    _collectors.append(collector)
    try:
        yield
    finally:
        _collectors.remove(collector)


def collectors() -> tuple[Callable[[CountedLaunch], None], ...]:
    """Who wants counters now."""
    return tuple(_collectors)


def _counters(library: Library) -> Any:
    kind = _u64 * len(library.module.operations)
    return kind.from_address(library.symbol(flops.COUNTERS))


def clear_operations(library: Library) -> None:
    """Set the counters of floating-point operations to 0."""
    counters = _counters(library)
    ctypes.memset(ctypes.addressof(counters), 0, ctypes.sizeof(counters))


def _executed(library: Library) -> list[tuple[int, str, int]]:
    """Offset in the library, operation and executions, of operations that were executed."""
    first = library.symbol(flops.PLACES)
    distances = (ctypes.c_int32 * len(library.module.operations)).from_address(first)
    counted = zip(distances, library.module.operations, _counters(library), strict=True)
    # As of a return address, of which one byte is taken off.
    start = first - library.image_begin + 1
    return [(start + distance, operation, times) for distance, operation, times in counted if times]


def read_counts(engine: ctypes.CDLL, library: Library) -> Counted:
    """The counters of the launch that has just run."""
    counts = _Counts.from_address(engine.gpucnn_counts())
    accesses = _copy(AccessCount, counts.accesses, counts.access_count)
    events = _copy(_EventCount, counts.events, counts.event_count)
    executed = _executed(library)
    offsets = {c.pc for c in (*accesses, *events)} | {offset for offset, _, _ in executed}
    lines = _lines(library.module.path, sorted(offsets))
    return Counted(
        accesses=[(lines[c.pc], c) for c in accesses],
        events=[(lines[e.pc], EVENTS[e.event], e.count) for e in events],
        operations=[(lines[offset], operation, times) for offset, operation, times in executed],
        read_footprint=counts.read_footprint,
        written_footprint=counts.written_footprint,
        most_barriers=counts.most_barriers,
    )


def _copy(kind: Any, address: int | None, count: int) -> list[Any]:
    if not address or not count:
        return []
    return list(
        (kind * count).from_buffer_copy(ctypes.string_at(address, ctypes.sizeof(kind) * count))
    )


@functools.cache
def _known_lines(library: Path) -> dict[int, Line]:
    return {}


def _lines(library: Path, offsets: list[int]) -> dict[int, Line]:
    known = _known_lines(library)
    missing = [o for o in offsets if o not in known]
    if missing:
        known.update(zip(missing, source_lines(library, missing), strict=True))
    return known
