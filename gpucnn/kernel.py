"""From ``kernels/*.cu`` to a checked launch, on a GPU or under the emulator.

A file becomes one translation unit: the headers it includes are inlined with ``#line``, because
CuPy's compile cache does not see headers found by ``-I``, and because errors should name the real
file. Every launch is checked against the parameter list in that file before it happens.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import launch_plan
from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, current_gpu
from gpucnn.launch_plan import Watch
from gpucnn.signature import (
    MAX_ELEMENTS,
    Packed,
    Packer,
    Signature,
    convert_arguments,
    parse_kernels,
)

Dim = tuple[int, ...]
Macros = Mapping[str, int]

GRID_LIMITS = (2**31 - 1, 65535, 65535)  # of every GPU; CuPy wraps what is larger
_ANY_AXIS = min(GRID_LIMITS)

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"[^\n]*$', re.MULTILINE)


@functools.cache
def kernel_folder() -> Path:
    """The folder of the ``.cu`` files: inside the installed package, else that of the checkout."""
    package = Path(__file__).resolve().parent
    installed, checkout = package / "_kernels", package.parent / "kernels"
    for folder in (installed, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"the CUDA sources are missing: neither {installed} nor {checkout}")


def inline_headers(text: str, name: str, folders: Sequence[Path], seen: set[Path]) -> str:
    """CUDA source with the headers it includes in quotes inlined once each.

    name: what errors call the source. A header is looked for in the ``folders`` in order; one that
    none of them has stays an ``#include``. seen: the headers so far, which grows.
    """
    out, position = [f'#line 1 "{name}"\n'], 0
    for match in _INCLUDE.finditer(text):
        paths = (folder / match.group(1) for folder in folders)
        found = next((path for path in paths if path.is_file()), None)
        if found is None:
            continue
        out.append(text[position : match.start()])
        position = match.end()
        if found in seen:
            continue
        seen.add(found)
        own = found.parent == kernel_folder()
        header, shown = found.read_text(encoding="utf-8"), f"kernels/{found.name}"
        out.append(inline_headers(header, shown if own else found.name, folders, seen))
        out.append(f'\n#line {text.count(chr(10), 0, match.start()) + 1} "{name}"\n')
    return "".join(out) + text[position:]


@functools.cache
def translation_unit(family: str) -> str:
    """``kernels/<family>.cu`` with its headers inlined once each."""
    folder = kernel_folder()
    text = (folder / f"{family}.cu").read_text(encoding="utf-8")
    return inline_headers(text, f"kernels/{family}.cu", [folder], set())


@functools.cache
def signatures(family: str) -> dict[str, Signature]:
    """The kernels of a file and their parameters."""
    return parse_kernels(translation_unit(family))


def compile_options(macros: Macros) -> tuple[str, ...]:
    """The compiler options of a specialisation, the same for NVRTC and for the emulator."""
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in sorted(macros.items())))


@dataclass(frozen=True)
class Specialisation:
    """One file compiled with one set of macros: a compiled module on each device."""

    family: str
    macros: tuple[tuple[str, int], ...]

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.family, self.macros))

    @functools.cached_property
    def cooperative(self) -> bool:
        """Whether blocks wait for each other, so that all must be resident at once."""
        return '"kernels/grid_barrier.cuh"' in self.source

    @property
    def source(self) -> str:
        return translation_unit(self.family)

    @property
    def options(self) -> tuple[str, ...]:
        return compile_options(dict(self.macros))

    def __str__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.macros)
        return f"{self.family}[{values}]" if values else self.family


@dataclass
class _CudaKernel:
    """A kernel on one GPU, and the bytes of dynamic shared memory that were asked for so far."""

    raw: Any
    wait: bool  # after each launch
    shared: int = 0

    def allow(self, shared_mem: int) -> None:
        # Unasked a block has 48 KiB, of which the kernel's static arrays are a part.
        with _lock:
            if shared_mem > self.shared:
                self.raw.max_dynamic_shared_size_bytes = shared_mem
                self.shared = shared_mem

    def launch_and_wait(
        self, grid: Dim, block: Dim, arguments: tuple[Any, ...], shared_mem: int
    ) -> None:
        import cupy

        self.raw(grid, block, arguments, shared_mem=shared_mem)
        cupy.cuda.get_current_stream().synchronize()


@functools.cache
def _cuda_kernel(spec: Specialisation, name: str, device: int) -> _CudaKernel:
    import cupy

    wait = os.environ.get("GPUCNN_SYNC") == "1"
    together = {"enable_cooperative_groups": True} if spec.cooperative else {}
    return _CudaKernel(cupy.RawKernel(spec.source, name, spec.options, **together), wait)


@functools.cache
def _emulated_kernel(spec: Specialisation, name: str) -> Any:
    from gpucnn import emulator

    together = spec.cooperative
    return emulator.RawKernel(spec.source, name, spec.options, enable_cooperative_groups=together)


_lock = threading.Lock()
_StandIn = Callable[["Launch", Sequence[Any]], None]
_stand_ins: list[_StandIn] = []  # the last one is in force
_observers: list[Callable[[Launch], None]] = []


@dataclass(frozen=True)
class Launch:
    """One launch, as it was asked for."""

    kernel: Kernel
    grid: Dim
    block: Dim
    shared_mem: int  # bytes of dynamic shared memory


@contextlib.contextmanager
def observe_launches(observer: Callable[[Launch], None]) -> Iterator[None]:
    """Call ``observer`` after each launch inside the ``with`` block."""
    _observers.append(observer)
    try:
        with launch_plan.without_plans():
            yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def standing_in(run: _StandIn) -> Iterator[None]:
    """Inside the ``with`` block call ``run(launch, arguments)`` in place of each launch.

    The arguments are checked, and scalars have their C type. Observers see the launch afterwards.
    """
    _stand_ins.append(run)
    try:
        with launch_plan.without_plans():
            yield
    finally:
        _stand_ins.pop()


def stand_in() -> _StandIn | None:
    """What is called in place of each launch, None where kernels run."""
    return _stand_ins[-1] if _stand_ins else None


def _clear_outputs(launch: Launch, arguments: Sequence[Any]) -> None:
    for parameter, array in zip(launch.kernel.signature.parameters, arguments, strict=True):
        if parameter.pointer and not parameter.const and array is not None:
            array[...] = 0


def without_running() -> contextlib.AbstractContextManager[None]:
    """Inside the ``with`` block launches are checked and observed, but not run: outputs become 0.

    Needs neither a GPU nor g++; NumPy arrays only.
    """
    return standing_in(_clear_outputs)


@dataclass(frozen=True)
class Kernel:
    """One kernel of one specialisation; calling it checks the arguments and launches it."""

    spec: Specialisation
    name: str
    signature: Signature = field(repr=False, compare=False)

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], *args: Any, shared_mem: int = 0
    ) -> None:
        """Launch on the device that the array arguments live on.

        grid, block: up to three ints; args: outputs, inputs, sizes, as in the ``.cu`` file;
        shared_mem: bytes of dynamic shared memory. Raises TypeError or ValueError before the launch
        if an argument does not fit its parameter, or the grid is empty or too large.
        """
        if not 1 <= min(grid) <= max(grid) <= _ANY_AXIS:
            for n, most in zip(grid, GRID_LIMITS, strict=False):
                if not 1 <= n <= most:
                    raise ValueError(
                        f"{self.name}: grid {tuple(grid)} must lie within (1, 1, 1) and "
                        f"{GRID_LIMITS}"
                    )
        packer = self._packer
        packed = packer(args)
        if packed is None or _stand_ins or _observers:
            self._launch_watched(Launch(self, tuple(grid), tuple(block), shared_mem), args)
        else:
            self._start(tuple(grid), tuple(block), shared_mem, args[: packer.arrays], packed)
        if launch_plan.watched is not None and (watch := launch_plan.current()) is not None:
            if packed is None:
                watch.unusual()
            else:
                self._tell(watch, tuple(grid), tuple(block), shared_mem, args, packed)

    @functools.cached_property
    def _packer(self) -> Packer:
        return Packer(self.signature)

    def _tell(
        self,
        watch: Watch,
        grid: Dim,
        block: Dim,
        shared_mem: int,
        args: tuple[Any, ...],
        packed: Packed,
    ) -> None:
        """Tell who watches what was launched, and how to do it again."""
        arrays = args[: self._packer.arrays]
        if any(a is not None and not isinstance(a, np.ndarray) for a in arrays):
            compiled = _cuda_kernel(self.spec, self.name, current_gpu())
            (null,), numbers = _for_cupy(_NULL), _for_cupy(packed)
            run = compiled.launch_and_wait if compiled.wait else compiled.raw
        else:
            run, null = _emulated_kernel(self.spec, self.name), None
            numbers = packed.scalars
        watch.launched(run, grid, block, arrays, null, numbers, shared_mem)

    def _launch_watched(self, launch: Launch, args: Sequence[Any]) -> None:
        """Check the arguments one by one, launch or let a stand-in do it, and tell observers."""
        for a in args:
            if getattr(a, "ndim", 0) and a.size > MAX_ELEMENTS:
                raise ValueError(
                    f"{self.name}: an array of shape {a.shape} has more than 2**31 - 1 elements; "
                    "split the batch"
                )
        converted = convert_arguments(self.signature, args)
        if _stand_ins:
            _stand_ins[-1](launch, converted)
        else:
            self.run(launch, converted)
        for observer in _observers:
            observer(launch)

    def on_gpu(self) -> Any:
        """The ``cupy.RawKernel`` of the current GPU, which tells registers and shared memory."""
        import cupy

        return _cuda_kernel(self.spec, self.name, cupy.cuda.runtime.getDevice()).raw

    def resident_blocks(self, block: Sequence[int], shared_mem: int = 0) -> int:
        """How many blocks the current GPU runs at the same time: the most of a cooperative launch.

        block: threads, up to three ints; shared_mem: bytes of dynamic shared memory of each.
        """
        import cupy

        gpu = cupy.cuda.runtime.getDevice()
        compiled = _cuda_kernel(self.spec, self.name, gpu)
        compiled.allow(shared_mem)
        on_each = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
            compiled.raw.kernel.ptr, math.prod(block), shared_mem
        )
        return int(on_each * cupy.cuda.Device(gpu).attributes["MultiProcessorCount"])

    def run(self, launch: Launch, converted: Sequence[Any]) -> None:
        """Run this kernel for a launch whose arguments :func:`convert_arguments` has checked."""
        self._start(launch.grid, launch.block, launch.shared_mem, tuple(converted), Packed(()))

    def _start(
        self, grid: Dim, block: Dim, shared_mem: int, arrays: tuple[Any, ...], numbers: Packed
    ) -> None:
        """Launch with checked arguments, the arrays (and what comes among them) first: the one way
        to a device.
        """
        first = arrays[0]
        if first is None or isinstance(first, np.generic):
            first = next((a for a in arrays if getattr(a, "ndim", 0)), None)
        if first is not None and not isinstance(first, np.ndarray):
            self._launch_cuda(grid, block, shared_mem, arrays, numbers)
            return
        compiled = _emulated_kernel(self.spec, self.name)
        compiled(grid, block, arrays + numbers.scalars, shared_mem=shared_mem)

    def _launch_cuda(
        self, grid: Dim, block: Dim, shared_mem: int, arrays: tuple[Any, ...], numbers: Packed
    ) -> None:
        current = current_gpu()
        try:
            in_place = {a.device.id for a in arrays if a is not None} <= {current}
        except AttributeError:  # of NumPy's
            in_place = False
        if not in_place:
            self._check_places(arrays, current)
        # CuPy hands None to the driver as a missing argument; a null pointer is a zero of its size.
        (null,) = _for_cupy(_NULL)
        passed = [null if a is None else a for a in arrays]
        passed += _for_cupy(numbers)
        compiled = _cuda_kernel(self.spec, self.name, current)
        if shared_mem > compiled.shared:
            compiled.allow(shared_mem)
        if self.spec.cooperative and math.prod(grid) > self.resident_blocks(block, shared_mem):
            raise ValueError(
                f"{self.name}: grid {grid} has {math.prod(grid)} blocks that wait for each other; "
                f"this GPU runs {self.resident_blocks(block, shared_mem)} of {math.prod(block)} "
                f"threads and {shared_mem} bytes of shared memory at a time"
            )
        run = compiled.launch_and_wait if compiled.wait else compiled.raw
        run(grid, block, tuple(passed), shared_mem=shared_mem)

    def _check_places(self, arrays: tuple[Any, ...], current: int) -> None:
        for a in arrays:
            if a is None or isinstance(a, np.generic):
                continue
            if isinstance(a, np.ndarray) or a.device.id != current:
                where = "a NumPy array" if isinstance(a, np.ndarray) else f"on GPU {a.device.id}"
                raise ValueError(
                    f"{self.name}: every array must be on GPU {current}, one is {where}"
                )


_NULL = Packed((np.uint64(0),))


def _for_cupy(numbers: Packed) -> tuple[Any, ...]:
    """The numbers wrapped as CuPy wraps NumPy scalars anew in each launch, which takes it longer
    than most of the launch.
    """
    if numbers.for_cupy is None:
        import cupy

        wrap = getattr(getattr(cupy.cuda, "function", None), "CNumpyArray", None)
        numbers.for_cupy = numbers.scalars
        if wrap is not None:
            numbers.for_cupy = tuple(wrap(np.asarray(n)) for n in numbers.scalars)
    return numbers.for_cupy


class KernelFile:
    """``kernels/<family>.cu`` and the table of its specialisations, the default first.

    ``file["name"]`` is a kernel of the default specialisation, ``file["name", 1]`` of the second.
    storage: whether each is there for activations in float and once more, behind all of them, in
    bfloat16 (``kernels/storage.cuh``).
    """

    def __init__(self, family: str, *specialisations: Macros, storage: bool = False) -> None:
        self.family = family
        macros = [*(specialisations or ({},))]
        self._doubles = len(macros)
        if storage:
            macros += [{**each, "BFLOAT16": 1} for each in macros]
        self.specialisations = tuple(
            Specialisation(family, tuple(sorted(each.items()))) for each in macros
        )
        self._kernels: dict[str | tuple[str, int], Kernel] = {}
        FILES[family] = self

    def storing(self, like: Array, name: str, index: int = 0) -> Kernel:
        """A kernel of a specialisation without bfloat16 or, if ``like`` is, its double with it."""
        return self[name, index + self._doubles if is_bfloat16(like) else index]

    def __getitem__(self, key: str | tuple[str, int]) -> Kernel:
        found = self._kernels.get(key)
        if found is None:
            name, index = (key, 0) if isinstance(key, str) else key
            signature = signatures(self.family).get(name)
            if signature is None:
                known = ", ".join(signatures(self.family))
                raise KeyError(f"kernels/{self.family}.cu has no kernel {name!r}, only {known}")
            spec = self.specialisations[index]
            c_type = "bfloat16" if dict(spec.macros).get("BFLOAT16") else "float"
            found = Kernel(spec, name, signature.storing(c_type))
            if index == 0:  # by both names one object
                found = self._kernels.setdefault((name, 0), found)
            self._kernels[key] = found
        return found


FILES: dict[str, KernelFile] = {}


def specialisations(*, defaults_only: bool = False) -> Iterator[Specialisation]:
    """Every specialisation of every kernel file that an operator has declared."""
    for file in FILES.values():
        yield from file.specialisations[:1] if defaults_only else file.specialisations


def compile_all(*, defaults_only: bool = True) -> None:
    """Compile for the current GPU, in parallel threads (NVRTC releases the GIL).

    CuPy keeps the results on disk: with a warm cache this reads files.
    """
    import cupy

    device = cupy.cuda.runtime.getDevice()

    def compile_one(spec: Specialisation) -> None:
        with cupy.cuda.Device(device):
            for name in signatures(spec.family):
                _cuda_kernel(spec, name, device).raw.compile()

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, specialisations(defaults_only=defaults_only)))


@dataclass(frozen=True)
class CompileRow:
    """What one compiler said of one specialisation."""

    file: str
    kernels: tuple[str, ...]
    compiler: str
    ok: bool
    seconds: float
    message: str


def nvrtc_cubin(spec: Specialisation, arch: str, extra: tuple[str, ...] = ()) -> tuple[bytes, str]:
    """Compile with NVRTC for ``arch`` ("sm_90"), no driver needed -> (cubin, compiler log).

    Raises ``cupy.cuda.compiler.CompileException``-like RuntimeError with the log on an error, and
    ImportError where CuPy or NVRTC is missing.
    """
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(spec.source, f"kernels/{spec.family}.cu", (), ())
    try:
        options = (*spec.options, "-ftz=true", f"-arch={arch}", *extra)
        try:
            nvrtc.compileProgram(program, options)
        except nvrtc.NVRTCError as error:
            raise RuntimeError(f"{spec}: {error}\n{nvrtc.getProgramLog(program)}") from None
        # CuPy takes the cubin for a C string and drops its last byte, always a zero of padding.
        return bytes(nvrtc.getCUBIN(program)) + b"\0", nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)


def compile_report(arch: str = "sm_80") -> list[CompileRow]:
    """Compile every specialisation with every compiler found here: NVRTC and g++."""
    from gpucnn import emulator

    compilers: dict[str, Any] = {}
    if nvrtc_version() is not None:
        compilers["nvrtc"] = lambda spec: nvrtc_cubin(spec, arch)
    if emulator.available():
        compilers["g++"] = lambda spec: emulator.RawKernel(
            spec.source, next(iter(signatures(spec.family))), spec.options
        ).compile()
    rows = []
    for compiler, build in compilers.items():
        for spec in specialisations():
            start, message = time.perf_counter(), ""
            try:
                build(spec)
            except Exception as error:  # reported, whatever a compiler raises
                message = str(error)
            rows.append(
                CompileRow(
                    file=str(spec),
                    kernels=tuple(signatures(spec.family)),
                    compiler=compiler,
                    ok=not message,
                    seconds=time.perf_counter() - start,
                    message=message,
                )
            )
    return rows


@functools.cache
def nvrtc_version() -> tuple[int, int] | None:
    """The (major, minor) of NVRTC, None where CuPy or NVRTC is missing."""
    try:
        from cupy.cuda import nvrtc

        major, minor = nvrtc.getVersion()
    except Exception:  # a missing library raises ImportError, OSError or CuPy's own type
        return None
    return int(major), int(minor)
