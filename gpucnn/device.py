"""Devices: where arrays live and how kernels run.

========== ======= =============================================================
device     arrays  kernels
========== ======= =============================================================
cpu        NumPy   none: the NumPy definitions
cuda       CuPy    ``cupy.RawKernel``, compiled by NVRTC
emulated   NumPy   the same ``.cu`` files, compiled by g++ and run by the emulator
========== ======= =============================================================

``GPUCNN_DEVICE`` or :func:`use_device` chooses; the default is ``cuda`` where a GPU works, else
``cpu``. CuPy is imported on the first need of it, and never where there is no driver.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, cast

import numpy as np

from gpucnn import launch_plan, recording
from gpucnn.driver import driver_cuda_version, fitting_extra

DEVICES = ("cpu", "cuda", "emulated")

Array = Any  # numpy.ndarray or cupy.ndarray: the element of every signature in gpucnn.ops


class DeviceError(RuntimeError):
    """A device is missing, or arrays of two devices meet in one operation."""


@functools.cache
def _cuda_trouble() -> str:
    """Why ``cuda`` cannot be used, as the rest of a sentence; empty when it can."""
    if driver_cuda_version() is None:
        return "no NVIDIA driver was found (libcuda.so.1)"
    if importlib.util.find_spec("cupy") is None:
        extra = fitting_extra() or "cuda13x"
        return f"CuPy is not installed; pip install 'gpucnn[{extra}]'"
    try:
        import cupy
        from cupy.cuda import nvrtc

        nvrtc.getVersion()
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own types for each missing library
        reason = " ".join(str(error).split())
        return f"CuPy does not work here ({type(error).__name__}: {reason})"
    return "" if count else "the driver reports no GPU"


def cuda_available() -> bool:
    """Whether a CUDA GPU can be used; the first call imports CuPy where there is a driver."""
    return not _cuda_trouble()


def _check_name(name: str) -> str:
    if name not in DEVICES:
        raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {name!r}")
    return name


def require(name: str) -> str:
    """Return ``name`` if the device can be used here, else raise :class:`DeviceError`."""
    if _check_name(name) == "cuda" and _cuda_trouble():
        raise DeviceError(f"device 'cuda' cannot be used: {_cuda_trouble()}")
    if name == "emulated":
        from gpucnn import emulator

        if not emulator.available():
            raise DeviceError(f"device 'emulated' cannot be used: {emulator.why_unavailable()}")
    return name


_chosen: str | None = None


def default_device() -> str:
    """The device of tensors made without ``device=``."""
    if _chosen is not None:
        return _chosen
    name = os.environ.get("GPUCNN_DEVICE", "")
    if name:
        if name not in DEVICES:
            raise DeviceError(f"GPUCNN_DEVICE must be one of {', '.join(DEVICES)}, got {name!r}")
        return require(name)
    return "cuda" if cuda_available() else "cpu"


class use_device:
    """Choose the default device: ``use_device("emulated")``, also ``with use_device("emulated"):``.

    Raises ValueError for an unknown name and :class:`DeviceError` for a device that cannot be used.
    """

    def __init__(self, name: str) -> None:
        global _chosen
        self._previous = _chosen
        _chosen = require(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global _chosen
        _chosen = self._previous


def why_cpu() -> str:
    """One sentence that says which device is the default, and why."""
    if _chosen is not None:
        return f"The device is '{_chosen}' because use_device('{_chosen}') was called."
    if os.environ.get("GPUCNN_DEVICE"):
        name = default_device()
        return f"The device is '{name}' because GPUCNN_DEVICE={name} is set."
    trouble = _cuda_trouble()
    if trouble:
        return f"The device is 'cpu' because {trouble}."
    return "The device is 'cuda': a GPU and CuPy were found."


def free_memory() -> int:
    """Bytes of the current GPU's memory that nobody has taken, what CuPy holds ready included."""
    import cupy

    free, _ = cupy.cuda.runtime.memGetInfo()
    return int(free) + int(cupy.get_default_memory_pool().free_bytes())


def module_of(array: Array) -> ModuleType:
    """The array's module: ``numpy`` or ``cupy``."""
    if isinstance(array, np.ndarray):
        return np
    import cupy

    module: ModuleType = cupy
    return module


def to_device(array: Array, device: str) -> Array:
    """The C-contiguous array of ``device`` with these values; copies only where it has to."""
    recorder = recording.active and recording.current()
    if recorder:
        return recorder.to_device(array, device, lambda: move_to_device(array, device))
    return move_to_device(array, device)


def move_to_device(array: Array, device: str) -> Array:
    """:func:`to_device` behind the back of a recorder."""
    if device == "cuda":
        import cupy

        return cupy.asarray(array, order="C")
    return np.asarray(to_host(array), order="C")


def to_host(array: Array) -> Any:
    """The NumPy array with these values; waits for the GPU where the array lives on one."""
    return array if isinstance(array, np.ndarray | np.generic) else array.get()


@functools.cache
def _emulator() -> Any:
    from gpucnn import emulator

    return emulator


def address(array: Array) -> int:
    """Where the first element of an array lies, on its device."""
    if launch_plan.watched is not None and (watch := launch_plan.current()) is not None:
        watch.looked_at(array)
    return int(_emulator().address(array) if isinstance(array, np.ndarray) else array.data.ptr)


def current_gpu() -> int:
    """The number of the GPU that launches go to."""
    import cupy

    return int(cupy.cuda.runtime.getDevice())


def _memory(like: Array) -> Callable[[Any, Any], Array]:
    """What makes memory beside an array."""
    make = _emulator().empty if isinstance(like, np.ndarray) else module_of(like).empty
    return cast("Callable[[Any, Any], Array]", make)


def empty(like: Array, shape: tuple[int, ...], dtype: Any = np.float32) -> Array:
    """An array that a kernel will fill, beside ``like``.

    On ``emulated`` the emulator tracks it, so that reading an element nobody wrote is a fault.
    """
    make = _memory(like)
    if recording.active is not None and isinstance(like, np.ndarray):
        recorder = recording.current()
        if recorder is not None:
            return recorder.empty(shape, dtype, lambda: make(shape, dtype), True)
    array = make(shape, dtype)
    if launch_plan.watched is not None and (watch := launch_plan.current()) is not None:
        watch.asked_for(array, make, dtype)
    return array


class _Offers(threading.local):
    """Memory for the next results of a thread's kernels."""

    def __init__(self) -> None:
        self.arrays: list[Array | None] = []


offers = _Offers()


class into:
    """Inside, the first arrays that :func:`result` is asked for are these, None for fresh ones."""

    def __init__(self, *arrays: Array | None) -> None:
        self._arrays = [*arrays]

    def __enter__(self) -> None:
        offers.arrays = self._arrays

    def __exit__(self, *_: object) -> None:
        offers.arrays = []


def _offered(shape: tuple[int, ...]) -> Array | None:
    if not offers.arrays:
        return None
    array = offers.arrays.pop(0)
    if array is None or array.shape == shape:
        return array
    return array.reshape(shape) if array.size == math.prod(shape) else None


def result(like: Array, shape: tuple[int, ...]) -> Array:
    """:func:`empty`, of float32, for what a primitive returns: perhaps where the caller wants it.

    A launcher may ask for an array that it fills as a whole, writes last and does not read.
    """
    if launch_plan.watched is None or (watch := launch_plan.current()) is None:
        offered = _offered(shape)
        return empty(like, shape) if offered is None else offered
    memory = _memory(like)

    def make(shape: tuple[int, ...], dtype: Any) -> Array:
        if offers.arrays and (offered := _offered(shape)) is not None:
            return offered
        return memory(shape, dtype)

    array = make(shape, np.float32)
    watch.asked_for(array, make, np.float32)
    return array
