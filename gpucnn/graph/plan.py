"""Where each array of a step lies in one arena: memory planned once, shared by those that never
live at the same time.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

ALIGNMENT = 256  # bytes: what cudaMalloc gives, and more than any access needs


def aligned(size: int) -> int:
    """``size`` rounded up to a multiple of :data:`ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass
class Lifetime:
    """The memory of one array: bytes, and when it was had and given back, in order of events.

    died is None for what is still in use when the step ends: outputs, gradients.
    """

    size: int
    born: int
    died: int | None = None

    def meets(self, other: Lifetime) -> bool:
        """Whether both are in use at some moment."""
        return not (
            (self.died is not None and self.died < other.born)
            or (other.died is not None and other.died < self.born)
        )


@dataclass(frozen=True)
class PlannedBuffer:
    """One array: its lifetime and its first byte in the arena."""

    lifetime: Lifetime
    offset: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.lifetime.size


@dataclass(frozen=True)
class MemoryPlan:
    """The arena of a graph.

    buffers: in the order in which the step asks for them. bytes: size of the arena.
    unshared_bytes: what the buffers add up to. live_bytes: the most that is in use at one moment,
    below which no arena can be.
    """

    buffers: tuple[PlannedBuffer, ...]

    @property
    def bytes(self) -> int:
        return max((aligned(b.end) for b in self.buffers), default=0)

    @property
    def unshared_bytes(self) -> int:
        return sum(aligned(b.lifetime.size) for b in self.buffers)

    @property
    def live_bytes(self) -> int:
        changes: list[tuple[int, int]] = []
        for b in self.buffers:
            changes.append((b.lifetime.born, aligned(b.lifetime.size)))
            if b.lifetime.died is not None:
                changes.append((b.lifetime.died, -aligned(b.lifetime.size)))
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def overlaps(self) -> Iterator[tuple[int, int]]:
        """Pairs of buffers that share bytes while both are in use: none, or the plan is wrong."""
        for i, a in enumerate(self.buffers):
            for j, b in enumerate(self.buffers[:i]):
                if a.offset < b.end and b.offset < a.end and a.lifetime.meets(b.lifetime):
                    yield j, i

    def __str__(self) -> str:
        return (
            f"{len(self.buffers)} buffers of {self.unshared_bytes:,} bytes in an arena of "
            f"{self.bytes:,}; {self.live_bytes:,} are in use at once"
        )


def plan_memory(lifetimes: Sequence[Lifetime]) -> MemoryPlan:
    """Place buffers, the largest first, each into the smallest gap that it fits between those that
    live when it does.
    """
    offsets = [0] * len(lifetimes)
    placed: list[tuple[int, int]] = []  # (offset, index), in order of offset
    by_size = sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].size, lifetimes[i].born))
    for i in by_size:
        need, best, waste, end = aligned(lifetimes[i].size), -1, 0, 0
        for offset, j in placed:
            if not lifetimes[i].meets(lifetimes[j]):
                continue
            gap = offset - end
            if gap >= need and (best < 0 or gap - need < waste):
                best, waste = end, gap - need
            end = max(end, offset + aligned(lifetimes[j].size))
        offsets[i] = end if best < 0 else best
        bisect.insort(placed, (offsets[i], i))
    return MemoryPlan(
        tuple(PlannedBuffer(life, at) for life, at in zip(lifetimes, offsets, strict=True))
    )
