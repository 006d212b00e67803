"""What ``import gpucnn`` does on a machine with a GPU: compile the default kernels."""

from __future__ import annotations

import os
import warnings

from gpucnn.device import cuda_available
from gpucnn.kernel import compile_all


def compile_at_import() -> None:
    """Compile every kernel's default specialisation where the GPU will be used.

    ``GPUCNN_COMPILE=lazy`` postpones it to the first launch of each kernel, and with it the first
    touch of the driver; so does a ``GPUCNN_DEVICE`` other than ``cuda``. An import never fails for
    this: another value of ``GPUCNN_COMPILE`` and kernels that do not compile are a RuntimeWarning,
    and a launch of such a kernel raises the error.
    """
    mode = os.environ.get("GPUCNN_COMPILE") or "import"
    if mode not in ("import", "lazy"):
        _warn(f"GPUCNN_COMPILE must be import or lazy, got {mode!r}; import is taken")
    if mode == "lazy" or (os.environ.get("GPUCNN_DEVICE") or "cuda") != "cuda":
        return
    if cuda_available():
        try:
            compile_all()
        except Exception as error:  # whatever a compiler, a driver or a disk raises
            reason = (str(error).strip() or "no message").splitlines()[0]
            _warn(
                f"the kernels do not compile here ({type(error).__name__}: {reason}); "
                "gpucnn doctor shows more, GPUCNN_DEVICE=cpu does without"
            )


def _warn(message: str) -> None:
    warnings.warn(f"gpucnn: {message}", RuntimeWarning, stacklevel=3)
