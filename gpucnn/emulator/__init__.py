"""Runs CUDA C kernels on the CPU, and checks them as they run.

A kernel is launched as with ``cupy.RawKernel``::

    kernel = gpucnn.emulator.RawKernel(source, "relu")
    kernel((grid,), (block,), (y, x, x.size))

Threads of a block are fibers that change over at barriers and warp operations; blocks run one
after another. A checked kernel reports, as ``KernelFault``, accesses out of bounds or misaligned,
reads of memory nobody wrote, data races, barriers that some threads never reach and warp masks that
lie. Threads of one block are ordered by barriers and warp operations only: what a lock made of
atomics and fences guards there is reported as a race. The emulator does not model timing, weak
memory order, register limits or approximate math; it keeps denormals, and does not contract
products and sums into fused multiply-adds. ``gpucnn.xray.counters`` counts what launches read,
write and compute.
"""

from gpucnn.emulator.build import available, why_unavailable
from gpucnn.emulator.fault import CompileError, KernelFault, Unsupported
from gpucnn.emulator.memory import address, empty
from gpucnn.emulator.raw_kernel import RawKernel, check_order

__all__ = [
    "CompileError",
    "KernelFault",
    "RawKernel",
    "Unsupported",
    "address",
    "available",
    "check_order",
    "empty",
    "why_unavailable",
]

for _error in (CompileError, KernelFault, Unsupported):
    _error.__module__ = __name__  # tracebacks show the public name
