"""What the driver says of the kernels that a row launched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gpucnn.kernel import Launch


def launch_facts(cupy: Any, launches: Sequence[Launch]) -> dict[str, Any]:
    """registers, shared_bytes (static and dynamic) and occupancy of the launch of most threads.

    occupancy: resident threads by the most that a multiprocessor holds.
    """
    if not launches:
        return {}
    launch = max(launches, key=lambda one: math.prod(one.grid) * math.prod(one.block))
    compiled, threads = launch.kernel.on_gpu(), math.prod(launch.block)
    blocks = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
        compiled.kernel.ptr, threads, launch.shared_mem
    )
    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    return {
        "registers": int(compiled.num_regs),
        "shared_bytes": int(compiled.shared_size_bytes) + launch.shared_mem,
        "occupancy": round(blocks * threads / int(properties["maxThreadsPerMultiProcessor"]), 3),
    }
