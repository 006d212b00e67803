"""How exactly matrix products are computed: ``gpucnn.precision("fp32" | "tf32")``."""

from __future__ import annotations

import functools

import numpy as np

from gpucnn.device import Array

_chosen: str | None = None


class precision:
    """Choose how tensor cores compute: ``precision("tf32")``, also as ``with precision(…)``.

    "fp32": float32 products and sums; on tensor cores each product is made of three TF32 ones,
    whose error against float64 stays near float32's. "tf32": operands are rounded to 10 bits of
    mantissa, to nearest; sums are float32. ``None`` returns to the default: "tf32" on GPUs that
    have it (compute capability 8.0 and newer), "fp32" elsewhere. The device ``cpu`` computes in the
    dtype of its arrays whatever is chosen. Raises ValueError for another mode.
    """

    modes = ("fp32", "tf32")

    def __init__(self, mode: str | None) -> None:
        global _chosen
        if mode is not None and mode not in self.modes:
            raise ValueError(f"precision is one of {', '.join(self.modes)}, or None, got {mode!r}")
        self._previous = _chosen
        _chosen = mode

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._previous


@functools.cache
def _has_tf32(gpu: int) -> bool:
    import cupy

    return int(cupy.cuda.Device(gpu).compute_capability) >= 80


def precision_of(x: Array) -> str:
    """The precision of matrix products whose operands live where ``x`` does."""
    if _chosen is not None:
        return _chosen
    return "tf32" if not isinstance(x, np.ndarray) and _has_tf32(x.device.id) else "fp32"
