"""The emulator's kernel object, called as ``cupy.RawKernel`` is."""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.emulator import build, counting
from gpucnn.emulator.fault import CompileError, KernelFault
from gpucnn.emulator.launch import Library, output_arrays, run
from gpucnn.signature import Signature, convert_arguments

_BLOCK_LIMITS = (1024, 1024, 64)
_GRID_LIMITS = (2**31 - 1, 65535, 65535)
_MOST_THREADS = 1024
_MOST_STATIC_SHARED = 48 * 1024
_MOST_SHARED = 227 * 1024
_MOST_ALIVE = 8192  # threads of all blocks of a cooperative launch

_Key = tuple[str, tuple[str, ...], build.Mode]
_libraries: dict[_Key, Library] = {}
# One lock per source: threads compile different sources at once, but none twice.
_compiling: defaultdict[_Key, threading.Lock] = defaultdict(threading.Lock)


def _library(source: str, options: tuple[str, ...], mode: build.Mode) -> Library:
    key = (source, options, mode)
    with _compiling[key]:
        if key not in _libraries:
            _libraries[key] = Library(build.compile_source(source, options, mode), source)
        return _libraries[key]


def check_by_default() -> bool:
    """Whether kernels are checked where nothing else is said: not if GPUCNN_EMULATOR_CHECK is 0.

    Raises:
        ValueError: it is neither 0 nor 1.
    """
    text = os.environ.get("GPUCNN_EMULATOR_CHECK") or "1"
    if text not in ("0", "1"):
        raise ValueError(f"GPUCNN_EMULATOR_CHECK must be 0 or 1, got {text!r}")
    return text == "1"


class RawKernel:
    """A CUDA kernel that runs on the CPU.

    Args:
        source: CUDA C with an ``extern "C" __global__`` kernel called ``name``.
        name: the kernel.
        options: compile options as for NVRTC; ``-D``, ``-U``, ``-I`` and ``-std`` have effect.
        enable_cooperative_groups: whether its blocks wait for each other, and so are all alive at
            once: what CuPy calls a cooperative launch.
        check: whether to watch every memory access and report faults; None leaves it to
            ``GPUCNN_EMULATOR_CHECK``, which is on unless it is 0.

    Nothing is compiled before the first launch or ``compile()``. Products and sums are not
    contracted into fused multiply-adds and denormals are kept, where NVRTC as CuPy calls it
    contracts and flushes: the last bits of a result may differ.
    """

    def __init__(
        self,
        source: str,
        name: str,
        options: Sequence[str] = (),
        *,
        enable_cooperative_groups: bool = False,
        check: bool | None = None,
    ) -> None:
        self.source = source
        self.name = name
        self.options = tuple(options)
        self.cooperative = enable_cooperative_groups
        self.check = check_by_default() if check is None else check
        self._loaded: Library | None = None

    def __repr__(self) -> str:
        return f"<emulated kernel {self.name}>"

    def compile(self) -> None:
        """Compiles the source, or finds it compiled.

        Raises:
            CompileError: g++ is missing or refuses the source, or it has no kernel of this name.
            Unsupported: the source uses what the emulator does not run.
        """
        if self._loaded is not None:
            return
        library = _library(self.source, self.options, "checked" if self.check else "plain")
        kernels = library.module.signatures
        if self.name not in kernels:
            raise CompileError(
                f"no kernel {self.name!r} in the source, which has: {', '.join(kernels) or 'none'}"
            )
        self._loaded = library

    @property
    def signature(self) -> Signature:
        """The kernel's parameters; compiles the source if need be."""
        return self._library().module.signatures[self.name]

    def _library(self) -> Library:
        self.compile()
        assert self._loaded is not None
        return self._loaded

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        """Runs the kernel to its end.

        Args:
            grid, block: 1 to 3 sizes.
            args: NumPy arrays (C-contiguous), None for a null pointer, and scalars.
            shared_mem: bytes of dynamic shared memory.

        Raises:
            KernelFault: the kernel did something undefined.
            TypeError, ValueError: the launch is not one that a GPU would accept.
        """
        self._launch(grid, block, args, shared_mem)

    def _launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int,
        order: int = 0,
        seed: int = 0,
    ) -> None:
        collectors = counting.collectors()
        library = self._library()
        if collectors:
            library = _library(self.source, self.options, "counted")
        signature = library.module.signatures[self.name]
        grid3 = _sizes(self.name, "grid", grid, _GRID_LIMITS)
        block3 = _sizes(self.name, "block", block, _BLOCK_LIMITS)
        if block3[0] * block3[1] * block3[2] > _MOST_THREADS:
            raise ValueError(
                f"kernel {self.name}: block {block3} has {block3[0] * block3[1] * block3[2]} "
                f"threads; at most {_MOST_THREADS} are allowed"
            )
        self._check_shared(library, shared_mem)
        if self.cooperative:
            self._check_alive(grid3, block3)
        converted = convert_arguments(signature, args)
        for parameter, value in zip(signature.parameters, converted, strict=True):
            if parameter.pointer and value is not None and not isinstance(value, np.ndarray):
                raise TypeError(
                    f"kernel {self.name}: {parameter.name} must be a NumPy array, "
                    f"got {type(value).__name__}"
                )
        counted = run(library, signature, grid3, block3, converted, shared_mem,
                      check=self.check or bool(collectors), order=order, seed=seed,
                      count=bool(collectors), cooperative=self.cooperative)  # fmt: skip
        if counted is not None:
            launch = counting.CountedLaunch(self.name, grid3, block3, shared_mem, counted)
            for collector in collectors:
                collector(launch)

    def _check_alive(self, grid: tuple[int, int, int], block: tuple[int, int, int]) -> None:
        blocks, threads = math.prod(grid), math.prod(block)
        if blocks * threads > _MOST_ALIVE:
            raise ValueError(
                f"kernel {self.name}: grid {grid} has {blocks} blocks that wait for each other; at "
                f"most {_MOST_ALIVE // threads} of {threads} threads are alive at once"
            )

    def _check_shared(self, library: Library, shared_mem: int) -> None:
        prefix = f"_ZZ{len(self.name)}{self.name}E"
        static = sum(s.bytes for s in library.module.shared if s.mangled.startswith(prefix))
        if static > _MOST_STATIC_SHARED:
            raise ValueError(
                f"kernel {self.name} declares {static} bytes of static shared memory; "
                f"at most {_MOST_STATIC_SHARED} are allowed"
            )
        if not shared_mem >= 0 or static + shared_mem > _MOST_SHARED:
            raise ValueError(
                f"kernel {self.name}: shared_mem={shared_mem} with {static} static bytes; "
                f"at most {_MOST_SHARED} bytes in all are allowed"
            )


def _sizes(
    kernel: str, what: str, sizes: Sequence[int], limits: tuple[int, int, int]
) -> tuple[int, int, int]:
    try:
        given = tuple(int(s) for s in sizes)
    except (TypeError, ValueError):
        raise TypeError(f"kernel {kernel}: {what} must be 1 to 3 sizes, got {sizes!r}") from None
    if not 1 <= len(given) <= 3:
        raise ValueError(f"kernel {kernel}: {what} {given} must have 1 to 3 sizes")
    full = given + (1,) * (3 - len(given))
    if any(not 1 <= s <= limit for s, limit in zip(full, limits, strict=True)):
        raise ValueError(f"kernel {kernel}: {what} {given} must be within 1 and {limits}")
    return full[0], full[1], full[2]


_ORDERS = (("reverse", 1, 0), ("shuffled", 2, 1), ("shuffled", 2, 2))


def check_order(
    kernel: RawKernel,
    grid: Sequence[int],
    block: Sequence[int],
    args: Sequence[Any],
    shared_mem: int = 0,
) -> None:
    """Runs a kernel forward, in reverse and in two shuffled orders of threads and blocks.

    The arrays are left as the forward run leaves them.

    Raises:
        KernelFault: of kind ``order-dependence`` if an output differs by a bit between orders, or
            of any other kind if a run faults.
    """
    args = list(args)
    outputs = [a for _, a in output_arrays(kernel.signature, args)]
    before = [a.copy() for a in outputs]
    kernel._launch(grid, block, args, shared_mem)
    forward = [a.copy() for a in outputs]
    try:
        for name, order, seed in _ORDERS:
            _restore(outputs, before)
            kernel._launch(grid, block, args, shared_mem, order, seed)
            for (parameter, array), expected in zip(
                output_arrays(kernel.signature, args), forward, strict=True
            ):
                different = _first_difference(array, expected)
                if different is not None:
                    raise KernelFault(
                        "order-dependence",
                        f"{parameter.name}[{different}] is {array.flat[different]!r} when threads "
                        f"and blocks run in {name} order, {expected.flat[different]!r} forward",
                        kernel=kernel.name,
                    )
    finally:
        _restore(outputs, forward)


def _restore(arrays: list[Any], contents: list[Any]) -> None:
    for array, content in zip(arrays, contents, strict=True):
        np.copyto(array, content)


def _first_difference(a: Any, b: Any) -> int | None:
    differs = a.reshape(-1).view(np.uint8) != b.reshape(-1).view(np.uint8)
    return int(np.argmax(differs)) // a.itemsize if differs.any() else None
