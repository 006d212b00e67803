"""How exactly matrix products are computed: ``gpucnn.precision("tf32")``."""

from __future__ import annotations

import functools

import numpy as np

from gpucnn.bfloat16 import is_bfloat16, use
from gpucnn.device import Array

_chosen: str | None = None


class precision:
    """Choose how tensor cores compute: ``precision("tf32")``, also as ``with precision(…)``.

    "fp32": float32 products and sums; on tensor cores each product is made of three TF32 ones, and
    sums are rounded outside them: under the emulator, which adds as an A100 does, errors against
    float64 stay below three times those of float32 multiply-adds, and below these from a hundred
    terms on.
    "tf32", "fp16": the operands of matrix products are rounded to nearest with 10 bits of mantissa,
    "fp16" with a range of only 6e-8 to 65504; sums and all that is stored are float32. Only kernels
    on tensor cores round.
    "bf16": activations and their gradients are stored in bfloat16, float32 with 7 bits of mantissa,
    from the first matrix product on, and the products take weights rounded likewise. Parameters,
    their gradients, statistics, losses and all sums are float32. The same on every device.

    ``None`` returns to the default: "tf32" on GPUs that have it (compute capability 8.0 and newer;
    "fp16" from 7.5), "fp32" elsewhere. The device ``cpu`` computes in the dtype of its arrays
    whatever is chosen, but for "bf16", whose storage is the same there. Raises ValueError for
    another mode.
    """

    modes = ("fp32", "tf32", "bf16", "fp16")

    def __init__(self, mode: str | None) -> None:
        global _chosen
        check_precision(mode)
        self._previous = _chosen
        _chosen = mode
        if mode == "bf16":
            use()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._previous


def check_precision(mode: str | None) -> None:
    """Raise ValueError unless :class:`precision` takes the mode."""
    if mode is not None and mode not in precision.modes:
        raise ValueError(f"precision is one of {', '.join(precision.modes)}, or None, got {mode!r}")


def chosen_precision() -> str | None:
    """The mode that was chosen, None for the default."""
    return _chosen


@functools.cache
def has_tf32(gpu: int) -> bool:
    """Whether the tensor cores of a GPU take TF32 and bfloat16."""
    import cupy

    return int(cupy.cuda.Device(gpu).compute_capability) >= 80


def precision_of(x: Array) -> str:
    """The precision of matrix products whose operands live where ``x`` does."""
    if is_bfloat16(x):
        return "bf16"
    if _chosen is not None and _chosen != "bf16":
        return _chosen
    # In "bf16" the products of what is stored in float32 lose nothing that matters beside it.
    tf32 = _chosen == "bf16" if isinstance(x, np.ndarray) else has_tf32(x.device.id)
    return "tf32" if tf32 else "fp32"
