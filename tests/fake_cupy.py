"""A stand-in for CuPy that offers only what the ``cuda`` device may use of it.

Arrays can be made, copied, cut, reshaped, converted and moved: no arithmetic, so that a
computation by anything but our own kernels fails. Kernels run under the emulator, and get their
arguments as strictly as CuPy hands them to the driver: arrays of this GPU, and NumPy scalars, bare
or as CuPy wraps them; never None and never a Python number.
"""

from __future__ import annotations

import types
from typing import Any, ClassVar

import numpy as np

from gpucnn import arrivals, emulator
from gpucnn.signature import numpy_dtype, parse_kernels


class Device:
    compute_capability = "90"
    attributes: ClassVar = {
        "MaxSharedMemoryPerBlockOptin": 227 * 1024,
        "MultiProcessorCount": 3,
    }

    def __init__(self, number: int = 0) -> None:
        self.id = number

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ndarray:  # CuPy's own name
    def __init__(self, values: np.ndarray, device: int = 0) -> None:
        self._values = values
        self.device = Device(device)

    shape = property(lambda self: self._values.shape)
    dtype = property(lambda self: self._values.dtype)
    ndim = property(lambda self: self._values.ndim)
    size = property(lambda self: self._values.size)
    itemsize = property(lambda self: self._values.itemsize)
    nbytes = property(lambda self: self._values.nbytes)
    flags = property(lambda self: self._values.flags)
    data = property(lambda self: types.SimpleNamespace(ptr=self._values.ctypes.data))

    def get(self) -> np.ndarray:
        return self._values.copy()

    def set(self, values: np.ndarray, stream: Any = None) -> None:
        assert values.flags.c_contiguous
        assert (values.shape, values.dtype) == (self.shape, self.dtype)
        self._values[...] = values

    def copy(self) -> ndarray:
        return ndarray(self._values.copy())

    def reshape(self, *shape: Any) -> ndarray:
        return ndarray(self._values.reshape(*shape))

    def astype(self, dtype: Any, copy: bool = True) -> ndarray:
        return ndarray(self._values.astype(dtype, copy=copy))

    def __getitem__(self, key: Any) -> ndarray:
        return ndarray(np.asarray(self._values[key]))

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        self._values[key] = value._values if isinstance(value, ndarray) else value

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")


class CNumpyArray:
    """CuPy's wrapper of a number, which its launches take as it is."""

    def __init__(self, value: np.ndarray) -> None:
        assert isinstance(value, np.ndarray)
        assert value.ndim == 0
        self.number = value[()]


class RawKernel:
    launches = 0

    kernel = types.SimpleNamespace(ptr=0)

    def __init__(
        self,
        code: str,
        name: str,
        options: tuple[str, ...] = (),
        *,
        enable_cooperative_groups: bool = False,
    ) -> None:
        self._parameters = parse_kernels(code)[name].parameters
        together = enable_cooperative_groups
        self._kernel = emulator.RawKernel(code, name, options, enable_cooperative_groups=together)
        # A GPU's 48 KiB, less the static arrays: never enough here, so that nobody counts on it.
        self.max_dynamic_shared_size_bytes = 0

    def compile(self) -> None:
        self._kernel.compile()

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: tuple[Any, ...],
        *,
        shared_mem: int,
    ) -> None:
        assert isinstance(grid, tuple)
        assert isinstance(block, tuple)
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        passed: list[Any] = []
        for parameter, given in zip(self._parameters, args, strict=True):
            argument = given.number if isinstance(given, CNumpyArray) else given
            if parameter.pointer and isinstance(argument, np.uint64):
                assert argument == 0
                passed.append(None)
            elif parameter.pointer:
                assert isinstance(argument, ndarray), parameter
                passed.append(argument._values)
            else:
                assert isinstance(argument, np.generic), parameter
                assert argument.dtype == numpy_dtype(parameter.type), parameter
                passed.append(argument)
        RawKernel.launches += 1
        self._kernel(grid, block, tuple(passed), shared_mem=shared_mem)


def asarray(values: Any, order: str | None = None) -> ndarray:
    if isinstance(values, ndarray):
        return ndarray(np.asarray(values._values, order="C" if order == "C" else None))
    return ndarray(np.array(values, order="C"))


def empty(shape: Any, dtype: Any) -> ndarray:
    return ndarray(emulator.empty(shape, dtype))


def zeros(shape: Any, dtype: Any) -> ndarray:
    return ndarray(np.zeros(shape, dtype))


def module() -> types.ModuleType:
    """The module to put in ``sys.modules["cupy"]``: one GPU, device 0."""
    made = types.ModuleType("cupy")
    runtime = types.SimpleNamespace(
        getDevice=lambda: 0,
        getDeviceCount=lambda: 1,
        memGetInfo=lambda: (1 << 33, 1 << 34),
        getDeviceProperties=lambda device: {"name": b"Stand-in"},
    )
    stream = types.SimpleNamespace(ptr=0, synchronize=lambda: None, is_capturing=lambda: False)
    arrivals._pools.of_stream.clear()  # of another module's arrays
    made.cuda = types.SimpleNamespace(  # type: ignore[attr-defined]
        runtime=runtime,
        driver=types.SimpleNamespace(
            occupancyMaxActiveBlocksPerMultiprocessor=lambda kernel, threads, shared: 1
        ),
        Device=Device,
        get_current_stream=lambda: stream,
        function=types.SimpleNamespace(CNumpyArray=CNumpyArray),
    )
    made.get_default_memory_pool = lambda: types.SimpleNamespace(  # type: ignore[attr-defined]
        free_bytes=lambda: 0
    )
    for item in (ndarray, RawKernel, asarray, empty, zeros):
        setattr(made, item.__name__, item)
    return made
