"""What ``import gpucnn`` does on a machine with a GPU: compile the default kernels."""

from __future__ import annotations

import os

from gpucnn.device import cuda_available
from gpucnn.kernel import compile_all


def compile_at_import() -> None:
    """Compile every kernel's default specialisation where the GPU will be used.

    ``GPUCNN_COMPILE=lazy`` postpones it to the first launch of each kernel, and with it the first
    touch of the driver; so does a ``GPUCNN_DEVICE`` other than ``cuda``.
    Raises ValueError for another value of ``GPUCNN_COMPILE``.
    """
    mode = os.environ.get("GPUCNN_COMPILE", "import")
    if mode not in ("import", "lazy"):
        raise ValueError(f"GPUCNN_COMPILE must be import or lazy, got {mode!r}")
    if mode == "import" and os.environ.get("GPUCNN_DEVICE", "cuda") == "cuda" and cuda_available():
        compile_all()
