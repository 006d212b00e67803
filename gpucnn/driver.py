"""What the NVIDIA driver of this machine is, asked without CuPy.

``python gpucnn/driver.py`` prints the extra that fits the driver (``cuda13x``, ``cuda12x``), or
nothing where there is none; the Makefile installs what it prints. Standard library only.
"""

from __future__ import annotations

import ctypes


def driver_cuda_version() -> tuple[int, int] | None:
    """The newest CUDA (major, minor) that the installed driver runs, None without a driver."""
    try:
        libcuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if libcuda.cuDriverGetVersion(ctypes.byref(version)) != 0 or version.value == 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def fitting_extra() -> str:
    """The extra to install for this driver: "cuda13x", "cuda12x" or "" (none fits)."""
    version = driver_cuda_version()
    if version is None or version[0] < 12:
        return ""
    return "cuda12x" if version[0] == 12 else "cuda13x"


if __name__ == "__main__":
    print(fitting_extra())
