"""A small table of GPUs, for predictions.

Rates are dense ones: data sheets often print those of 2:4 sparse matrices, which are twice as high.
Sources: NVIDIA's data sheets of T4, A10, A100 80 GB SXM, L4, H100 SXM, H200 SXM and HGX B200 (per
GPU), and the Turing, Ampere, Ada, Hopper and Blackwell architecture white papers. The float32 rate
is multiprocessors × lanes × 2 × boost clock.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True)
class GPU:
    """One product.

    clock: boost, GHz. fp32: TFLOP/s. tf32, bf16, fp16: dense TFLOP/s of the tensor cores with
    float32 sums (None where they lack the format). bandwidth: GB/s of the memory. l2: MB.
    """

    name: str
    arch: str
    multiprocessors: int
    clock: float
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float
    bandwidth: float
    l2: float

    def rate(self, precision: str) -> float:
        """FLOP/s at a precision. Raises ValueError for one that the GPU has no units for."""
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        found: float | None = getattr(self, precision)
        if found is None:
            raise ValueError(f"precision {precision!r}: {self.name} has no tensor cores for it")
        return found * 1e12


GPUS = {
    gpu.name: gpu
    for gpu in (
        GPU("T4", "sm_75", 40, 1.590, 8.1, None, None, 65, 320, 4),
        GPU("A10", "sm_86", 72, 1.695, 31.2, 62.5, 125, 125, 600, 6),
        GPU("A100", "sm_80", 108, 1.410, 19.5, 156, 312, 312, 2039, 40),
        GPU("L4", "sm_89", 58, 2.040, 30.3, 60, 121, 121, 300, 48),
        GPU("RTX 4090", "sm_89", 128, 2.520, 82.6, 82.6, 165.2, 165.2, 1008, 72),
        GPU("H100", "sm_90", 132, 1.980, 66.9, 494.7, 989.4, 989.4, 3350, 50),
        GPU("H200", "sm_90", 132, 1.980, 66.9, 494.7, 989.4, 989.4, 4800, 60),
        GPU("B200", "sm_100", 148, 1.965, 74.4, 1125, 2250, 2250, 8000, 126),
    )
}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def find_gpu(name: str) -> GPU:
    """The GPU of that name, whatever the case and blanks. Raises ValueError with the known ones."""
    by_name = {_plain(known): gpu for known, gpu in GPUS.items()}
    plain = _plain(name)
    if plain in by_name:
        return by_name[plain]
    near = difflib.get_close_matches(plain, by_name, n=1)
    hint = f" Did you mean {by_name[near[0]].name!r}?" if near else ""
    raise ValueError(f"{name!r} is not a known GPU, which must be one of {', '.join(GPUS)}.{hint}")
