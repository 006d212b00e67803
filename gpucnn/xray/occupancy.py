"""Theoretical occupancy: how many warps of a kernel fit on one multiprocessor at once.

Limits per compute capability: CUDA C++ Programming Guide, "Technical Specifications per Compute
Capability". Registers are handed out per warp in units of 256, from four separate files of 16 Ki
registers; shared memory per block, in units of 128 bytes (256 on sm_75), with 1 KiB of the
system's own beside it (none on sm_75).
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
MOST_THREADS = 1024
_REGISTERS = 64 * 1024
_REGISTER_UNIT = 256
_QUARTERS = 4


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds: warps, blocks, and shared memory in bytes."""

    warps: int
    blocks: int
    shared: int
    reserved: int = 1024  # shared memory that the system takes of each block
    shared_unit: int = 128

    @property
    def shared_per_block(self) -> int:
        """The most that one block may ask for."""
        return self.shared - self.reserved


LIMITS = {
    "sm_75": Limits(warps=32, blocks=16, shared=64 * 1024, reserved=0, shared_unit=256),
    "sm_80": Limits(warps=64, blocks=32, shared=164 * 1024),
    "sm_86": Limits(warps=48, blocks=16, shared=100 * 1024),
    "sm_89": Limits(warps=48, blocks=24, shared=100 * 1024),
    "sm_90": Limits(warps=64, blocks=32, shared=228 * 1024),
    "sm_100": Limits(warps=64, blocks=32, shared=228 * 1024),
    "sm_120": Limits(warps=48, blocks=24, shared=100 * 1024),
}


@dataclass(frozen=True)
class Occupancy:
    """Blocks and warps that share a multiprocessor, the share of its warps, and what limits them.

    limits: of "warps", "blocks", "registers" and "shared memory" those that allow no more.
    """

    blocks: int
    warps: int
    share: float
    limits: tuple[str, ...]


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def occupancy(arch: str, threads: int, registers: int, shared: int = 0) -> Occupancy:
    """The occupancy of blocks of ``threads`` threads that take ``registers`` registers each.

    shared: bytes per block, static and dynamic. A block that does not fit gives 0. Raises
    ValueError for an unknown architecture, or a size of block that no GPU takes.
    """
    if arch not in LIMITS:
        raise ValueError(f"arch must be one of {', '.join(LIMITS)}, got {arch!r}")
    if not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads must be within 1 and {MOST_THREADS}, got {threads}")
    limit = LIMITS[arch]
    warps = _up(threads, WARP) // WARP
    allowed = {"warps": limit.warps // warps, "blocks": limit.blocks}
    if registers:
        per_warp = _up(registers * WARP, _REGISTER_UNIT)
        # a launch is checked as if every quarter held as many of its warps as the fullest one
        fits = per_warp * _up(warps, _QUARTERS) <= _REGISTERS
        per_quarter = _REGISTERS // _QUARTERS // per_warp
        allowed["registers"] = per_quarter * _QUARTERS // warps if fits else 0
    if shared:
        fits = shared <= limit.shared_per_block
        taken = _up(shared + limit.reserved, limit.shared_unit)
        allowed["shared memory"] = limit.shared // taken if fits else 0
    blocks = min(allowed.values())
    return Occupancy(
        blocks=blocks,
        warps=blocks * warps,
        share=blocks * warps / limit.warps,
        limits=tuple(name for name, most in allowed.items() if most == blocks),
    )
