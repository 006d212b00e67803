"""What a kernel asks of the memory system and of the arithmetic units, counted as it runs emulated.

::

    with count() as counted:
        PRIMITIVES["conv2d_forward"].launchers["tiled"](*arguments)  # NumPy arrays
    for launch in counted.launches:
        print(launch.kernel, launch.sectors_per_request, launch.bank_conflicts, launch.flops)

Counted launches run in full and are checked like any other, but take two to five times as long.
They need an x86-64 CPU.

**Requests.** The n-th execution of an access instruction by the 32 lanes of a warp is one request.
Executions are numbered anew behind each barrier, and behind each warp operation that names every
lane of the warp. Where lanes diverge, a request has fewer lanes; two sides of a branch are two
instructions. A loop whose lanes make different numbers of turns pairs their n-th turns.

**Global memory.** A request touches 32-byte *sectors*: 4 when 32 lanes read consecutive 4-byte
words from an aligned address, 32 when each lane reads from another row. ``ideal_sectors`` is the
fewest that could hold the words asked for. Caches are not modelled: ``read_bytes`` is what lanes
ask for, 32 bytes per sector what the first cache is asked for, and ``read_footprint`` the bytes of
the distinct sectors touched in the whole launch, which is the least that must come from DRAM.

**Shared memory.** There are 32 banks of 4-byte words. A request takes as many *wavefronts* as the
most distinct words that it asks of one bank; lanes that ask for the same word share it. (CUDA C++
Programming Guide, "Shared Memory" under "Compute Capability 5.x", to which later ones refer.)
Requests of 8 bytes a lane are taken to be served in two half-warps, of 16 bytes in four
quarter-warps: the customary model, the guide being silent; a GPU may need fewer where these parts
ask for the same words. Conflicts are the wavefronts beyond one for each part.

**FLOPs.** Additions, subtractions, multiplications, divisions, roots, comparisons, minima, maxima
and calls of functions such as exp and tanh count one each, a fused multiply-add two, whatever its
result is used for; negations, absolute values, copies and conversions count nothing.

**Tensor cores.** A matrix instruction m x n x k is 2mnk operations, of kind "mma"; a matrix load is
a read of 16 bytes by each lane; an asynchronous copy is a global read and a shared write, where it
is issued.

**What a GPU may do otherwise.** The accesses counted are those of the source. A GPU's compiler
keeps a value that the source loads twice, or loads in a loop without need, in a register where it
can prove that it does not change; it may also join neighbouring loads. An assignment of a
``float2`` or ``float4`` is one access of 8 or 16 bytes; a copy of any other structure, and
``memcpy``, counts in pieces as wide as its size and addresses allow. Variables and arrays on the
stack are registers and are not counted, nor are ``__constant__`` and other constants of the file.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from gpucnn.emulator.counting import ACCESSES, CountedLaunch, collecting
from gpucnn.emulator.flops import WEIGHTS
from gpucnn.kernel import Launch, Specialisation, observe_launches

_GLOBAL = 1


@dataclass
class Site:
    """What one source line does to one memory space in one way.

    ``lanes`` and ``bytes`` are sums over the lanes that took part, ``worst_conflict`` is the most
    words of one bank that one request asked for (1 is free of conflicts). The sector counters
    belong to global memory, the others to shared memory; they are 0 elsewhere.
    """

    file: str
    line: int
    space: str  # "global" or "shared"
    access: str  # "read", "write" or "atomic"
    requests: int = 0
    lanes: int = 0
    bytes: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    coalesced: int = 0  # requests that touch no more sectors than ideal
    wavefronts: int = 0
    conflicts: int = 0
    worst_conflict: int = 0

    @property
    def bytes_per_lane(self) -> float:
        """The width of the access: 4, 8 or 16, or between where a line has several."""
        return self.bytes / self.lanes

    @property
    def sectors_per_request(self) -> float:
        return self.sectors / self.requests

    @property
    def ideal_sectors_per_request(self) -> float:
        return self.ideal_sectors / self.requests


@dataclass(frozen=True)
class Event:
    """What a warp or a block did at one source line, and how often."""

    file: str
    line: int
    kind: str  # "barrier" of a block; "shuffle", "vote", "reduce" or "sync" of a warp
    count: int


@dataclass(frozen=True)
class Arithmetic:
    """How often lanes executed one kind of floating-point operation at one source line.

    ``operation``: "add" (and subtract), "mul", "fma", "div", "sqrt", "compare" (and minimum and
    maximum), the name of a function ("exp", "tanh", "rsqrt"), or "mma", of which every operation
    inside the matrix instruction counts. ``flops`` is twice ``count`` for a fused multiply-add.
    """

    file: str
    line: int
    operation: str
    count: int
    flops: int


@dataclass(frozen=True)
class LaunchCounters:
    """The counters of one launch; bytes are bytes, and every count is over the whole grid.

    ``spec`` is None for a kernel that does not come from ``gpucnn.kernel``. ``barriers`` is the
    number of barriers that a block passes, the most where blocks differ. ``read_footprint`` and
    ``written_footprint`` are the bytes of the distinct 32-byte sectors of global memory touched.
    """

    kernel: str
    spec: Specialisation | None
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_mem: int
    sites: list[Site]
    events: list[Event]
    arithmetic: list[Arithmetic]
    barriers: int
    read_footprint: int
    written_footprint: int

    def _sum(self, counter: str, space: str, *accesses: str) -> int:
        return sum(
            getattr(s, counter)
            for s in self.sites
            if s.space == space and (not accesses or s.access in accesses)
        )

    @property
    def read_bytes(self) -> int:
        """Bytes that lanes read from global memory."""
        return self._sum("bytes", "global", "read")

    @property
    def written_bytes(self) -> int:
        """Bytes that lanes write to global memory, atomics apart."""
        return self._sum("bytes", "global", "write")

    @property
    def read_sectors(self) -> int:
        return self._sum("sectors", "global", "read")

    @property
    def written_sectors(self) -> int:
        return self._sum("sectors", "global", "write")

    @property
    def global_requests(self) -> int:
        return self._sum("requests", "global")

    @property
    def shared_requests(self) -> int:
        return self._sum("requests", "shared")

    @property
    def shared_wavefronts(self) -> int:
        return self._sum("wavefronts", "shared")

    @property
    def bank_conflicts(self) -> int:
        """Wavefronts of shared-memory requests beyond the fewest possible."""
        return self._sum("conflicts", "shared")

    @property
    def worst_conflict(self) -> int:
        """The most words of one bank in one request: 1 without conflicts, 0 without requests."""
        return max((s.worst_conflict for s in self.sites), default=0)

    @property
    def atomics(self) -> int:
        """Atomic operations, one per lane."""
        return self._sum("lanes", "global", "atomic") + self._sum("lanes", "shared", "atomic")

    @property
    def sectors_per_request(self) -> float:
        """Of all global requests; 0 if there are none."""
        return self._sum("sectors", "global") / max(self.global_requests, 1)

    @property
    def ideal_sectors_per_request(self) -> float:
        """What ``sectors_per_request`` would be if every request were coalesced."""
        return self._sum("ideal_sectors", "global") / max(self.global_requests, 1)

    @property
    def coalesced_share(self) -> float:
        """The share of global requests that touch no more sectors than they must; 1 if none."""
        requests = self.global_requests
        return self._sum("coalesced", "global") / requests if requests else 1.0

    @property
    def flops(self) -> int:
        """Floating-point operations that lanes executed, those of matrix instructions included."""
        return sum(a.flops for a in self.arithmetic)

    @property
    def matrix_flops(self) -> int:
        """Floating-point operations of matrix instructions."""
        return sum(a.flops for a in self.arithmetic if a.operation == "mma")

    @property
    def operations(self) -> dict[str, int]:
        """Executions by kind of operation, most frequent first."""
        counts: dict[str, int] = {}
        for a in self.arithmetic:
            counts[a.operation] = counts.get(a.operation, 0) + a.count
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def events_of(self, kind: str) -> int:
        """How often something of ``Event.kind`` happened."""
        return sum(e.count for e in self.events if e.kind == kind)

    @property
    def shuffles(self) -> int:
        """Shuffles, one per warp."""
        return self.events_of("shuffle")


@dataclass
class Counted:
    """The counters of the launches so far, in order."""

    launches: list[LaunchCounters] = field(default_factory=list)


@contextlib.contextmanager
def count() -> Iterator[Counted]:
    """Count every emulated launch of this thread inside the ``with`` block.

    Raises, at the first launch, what compiling the kernel for the emulator raises. A launch that
    faults is not listed. Launches on a GPU are not counted.
    """
    counted, thread = Counted(), threading.get_ident()

    def collect(launch: CountedLaunch) -> None:
        if threading.get_ident() == thread:
            counted.launches.append(_counters(launch))

    def name(launch: Launch) -> None:
        # Called behind `collect` for the same launch, if it was an emulated one.
        if threading.get_ident() == thread and counted.launches:
            last = counted.launches[-1]
            if last.spec is None and last.kernel == launch.kernel.name:
                counted.launches[-1] = replace(last, spec=launch.kernel.spec)

    with collecting(collect), observe_launches(name):
        yield counted


def _counters(launch: CountedLaunch) -> LaunchCounters:
    raw = launch.counted
    sites: dict[tuple[str, int, str, str], Site] = {}
    for (file, line), c in raw.accesses:
        space, access = "global" if c.space == _GLOBAL else "shared", ACCESSES[c.access]
        site = sites.setdefault((file, line, space, access), Site(file, line, space, access))
        site.requests += c.requests
        site.lanes += c.lanes
        site.bytes += c.lanes * c.size
        site.sectors += c.sectors
        site.ideal_sectors += c.ideal_sectors
        site.coalesced += c.coalesced
        site.wavefronts += c.wavefronts
        site.conflicts += c.conflicts
        site.worst_conflict = max(site.worst_conflict, c.worst)
    events: dict[tuple[str, int, str], int] = {}
    arithmetic: dict[tuple[str, int, str], int] = {}
    for (file, line), kind, times in raw.events:
        where = arithmetic if kind == "mma" else events
        where[file, line, kind] = where.get((file, line, kind), 0) + times
    for (file, line), operation, times in raw.operations:
        arithmetic[file, line, operation] = arithmetic.get((file, line, operation), 0) + times
    return LaunchCounters(
        kernel=launch.kernel,
        spec=None,
        grid=launch.grid,
        block=launch.block,
        shared_mem=launch.shared_mem,
        sites=[sites[key] for key in sorted(sites)],
        events=[Event(*key, times) for key, times in sorted(events.items())],
        arithmetic=[
            Arithmetic(*key, times, times * WEIGHTS.get(key[2], 1))
            for key, times in sorted(arithmetic.items())
        ],
        barriers=raw.most_barriers,
        read_footprint=raw.read_footprint,
        written_footprint=raw.written_footprint,
    )
