"""Hands a launch to the runtime and turns the fault it may end with into an exception."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpucnn.emulator.build import Module, runtime
from gpucnn.emulator.counting import Counted, clear_operations, read_counts
from gpucnn.emulator.elf import Symbol
from gpucnn.emulator.fault import KernelFault, indexed_name, source_line
from gpucnn.emulator.memory import Span, spans_of
from gpucnn.signature import Parameter, Signature, numpy_dtype

_KINDS = (
    "", "out-of-bounds", "misaligned", "uninitialised-read", "race", "divergent-barrier",
    "bad-mask", "assert",
)  # fmt: skip
_GLOBAL, _STATIC_SHARED, _DYNAMIC_SHARED = 1, 2, 3
_FAULTED, _UNFINISHED = 2, 1

# The runtime is one set of globals.
_lock = threading.Lock()

_u32, _u64, _pointer = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
_u32x3 = _u32 * 3


# These mirror csrc/runtime.h.
class _Region(ctypes.Structure):
    _fields_ = (
        ("host", _pointer), ("bytes", _u64), ("misalignment", _u64), ("poison_offset", _u64),
        ("writable", _u32), ("poisoned", _u32), ("device", _pointer),
    )  # fmt: skip


class _Variable(ctypes.Structure):
    _fields_ = (("offset", _u64), ("bytes", _u64))


class _Argument(ctypes.Structure):
    _fields_ = (("region", ctypes.c_int32), ("padding", _u32), ("value", _u64))


class _Fault(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32), ("space", ctypes.c_int32), ("index", ctypes.c_int32),
        ("size", _u32), ("is_write", _u32), ("has_other", _u32), ("offset", ctypes.c_int64),
        ("extent", _u64), ("address", _u64), ("pc", _u64), ("other_pc", _u64), ("block", _u32x3),
        ("thread", _u32x3), ("other_block", _u32x3), ("other_thread", _u32x3),
        ("text", ctypes.c_char * 512),
    )  # fmt: skip


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", _pointer), ("static_shared", _pointer), ("anchor_offset", _u64),
        ("static_shared_bytes", _u64), ("variables", _pointer), ("arguments", _pointer),
        ("regions", _pointer), ("variable_count", _u64), ("argument_count", _u64),
        ("region_count", _u64), ("image_begin", _pointer), ("image_end", _pointer),
        ("grid", _u32x3), ("block", _u32x3), ("shared_bytes", _u32), ("check", _u32),
        ("order", _u32), ("seed", _u32), ("count", _u32), ("cooperative", _u32),
    )  # fmt: skip


class Library:
    """A loaded kernel library."""

    def __init__(self, module: Module, source: str) -> None:
        runtime()
        self.module = module
        self.source = source
        self._library = ctypes.CDLL(str(module.path))
        self.image_begin = self._address_from("gpucnn_image_begin")
        self.image_end = self._address_from("gpucnn_image_end")
        self.shared_address = self.symbol("gpucnn_shared_address")
        shared = module.shared
        self.variables = (_Variable * len(shared))(*(_Variable(s.offset, s.bytes) for s in shared))

    def symbol(self, name: str) -> int:
        return ctypes.cast(getattr(self._library, name), _pointer).value or 0

    def _address_from(self, name: str) -> int:
        function = getattr(self._library, name)
        function.restype = _pointer
        return int(function())


def run(
    library: Library,
    signature: Signature,
    grid: tuple[int, int, int],
    block: tuple[int, int, int],
    args: Sequence[Any],
    shared_mem: int,
    *,
    check: bool,
    order: int = 0,
    seed: int = 0,
    count: bool = False,
    cooperative: bool = False,
) -> Counted | None:
    """Runs one launch with converted arguments; returns its counters if ``count``, which takes a
    library compiled for it.

    Raises:
        KernelFault: the kernel did something undefined; the arrays keep their content if checked.
    """
    arrays = [
        (p, a)
        for p, a in zip(signature.parameters, args, strict=True)
        if p.pointer and a is not None
    ]
    spans = spans_of(arrays)
    for parameter, array in arrays:
        if not parameter.const and not array.flags.writeable:
            raise ValueError(
                f"kernel {signature.kernel} may write {parameter.name}, but that array is read-only"
            )
    regions = (_Region * len(spans))(
        *(
            _Region(s.begin, s.end - s.begin, s.misalignment, s.poison_offset, s.writable, s.salt)
            for s in spans
        )
    )
    arguments = (_Argument * len(args))(
        *(_argument(p, a, spans) for p, a in zip(signature.parameters, args, strict=True))
    )
    module = library.module
    launch = _Launch(
        kernel=library.symbol(f"gpucnn_call_{signature.kernel}"),
        static_shared=library.shared_address,
        anchor_offset=module.anchor.offset,
        static_shared_bytes=max(s.offset + s.bytes for s in module.shared),
        variables=ctypes.addressof(library.variables),
        arguments=ctypes.addressof(arguments),
        regions=ctypes.addressof(regions),
        variable_count=len(module.shared),
        argument_count=len(args),
        region_count=len(spans),
        image_begin=library.image_begin,
        image_end=library.image_end,
        grid=grid,
        block=block,
        shared_bytes=shared_mem,
        check=check,
        order=order,
        seed=seed,
        count=count,
        cooperative=cooperative,
    )
    fault = _Fault()
    engine = runtime()
    counted = None
    with _lock:
        if count:
            clear_operations(library)
        if engine.gpucnn_begin(ctypes.addressof(launch)):
            raise MemoryError("the emulator could not reserve its address space")
        status = _UNFINISHED
        try:
            # Control returns at block boundaries, so that an interrupt is honoured in between.
            while status == _UNFINISHED:
                status = engine.gpucnn_run(ctypes.addressof(fault))
            if count and status != _FAULTED:
                counted = read_counts(engine, library)
        finally:
            engine.gpucnn_end(status == 0)
    if status == _FAULTED:
        raise _describe(fault, library, signature, spans)
    return counted


def _argument(parameter: Parameter, value: Any, spans: list[Span]) -> _Argument:
    if not parameter.pointer:
        return _Argument(-2, 0, int.from_bytes(value.tobytes(), "little"))
    if value is None:
        return _Argument(-1, 0, 0)
    address = value.ctypes.data
    for i, span in enumerate(spans):
        if any(array is value and p == parameter for p, array, _ in span.parameters):
            return _Argument(i, 0, address - span.begin)
    raise AssertionError("every array argument lies in a span")


def _describe(
    fault: _Fault, library: Library, signature: Signature, spans: list[Span]
) -> KernelFault:
    def line_of(pc: int) -> tuple[str, int]:
        return source_line(library.module.path, pc - library.image_begin)

    kind = _KINDS[fault.kind]
    text = fault.text.decode(errors="replace")
    file, line = line_of(fault.pc)
    other_file, other_line = line_of(fault.other_pc) if fault.other_pc else ("", 0)
    thread, block = tuple(fault.thread), tuple(fault.block)
    other = f"thread {tuple(fault.other_thread)}"
    other_place = f" at line {other_line}" if other_line else ""
    if other_line and other_file != file:
        other_place = f" at {other_file}:{other_line}"
    who = f"thread {thread} of block {block}"
    what = _name_of(fault, library, signature.kernel, spans)
    verb = "writes" if fault.is_write else "reads"
    if text.startswith("index"):
        array = indexed_name(library.source, file, line, fault.size)
        text = text.replace(" of ", f" of {array}, a " if array else " of a ")
    if kind == "out-of-bounds":
        message = f"{who} {_out_of_bounds(fault, text, verb, what)}"
    elif kind == "misaligned":
        message = (
            f"{who} {verb} {text} in {what}, "
            f"at byte {fault.offset}, which is no multiple of {fault.size}"
        )
    elif kind == "uninitialised-read":
        message = f"{who} reads {what}, which nothing has written"
    elif kind == "race":
        same_block = "blocks" not in text
        if "unknown" in text:
            other = "another block"
        elif not same_block:
            other += f" of block {tuple(fault.other_block)}"
        missing = "with no barrier in between" if same_block else "and blocks are unordered"
        if "unfenced" in text:
            missing += " (no __threadfence between that access and the atomic that announces it)"
        action = "updated" if "atomically" in text else text.split()[0]
        message = f"{who} {verb} {what}, which {other} {action}{other_place}, {missing}"
    elif kind == "divergent-barrier":
        if text == "grid returned":
            other_place = f": block {tuple(fault.other_block)} has returned"
        message = f"{who} {_divergent(text, other, other_place)}"
    elif kind == "bad-mask":
        message = f"{who}: {_bad_mask(text, other, other_place)}"
    else:
        message = f"{who}: assertion {text} failed"
    return KernelFault(
        kind, message, kernel=signature.kernel, file=file, line=line,
        block=(block[0], block[1], block[2]), thread=(thread[0], thread[1], thread[2]),
    )  # fmt: skip


def _divergent(text: str, other: str, place: str) -> str:
    if text == "returned":
        return f"waits at a barrier that {other} never reaches, having returned"
    if text == "warp":
        return f"waits at a barrier that {other} never reaches, waiting for its warp{place}"
    if text.startswith("grid"):
        never = "which none of them will change"
        return f"waits for other blocks at a word {never}{place}"
    if text == "not cooperative":
        return "waits for other blocks, which run at the same time in a cooperative launch only"
    if text == "kinds":
        return "is at another kind of barrier than the threads that wait already"
    return "waits for lanes of its warp that never arrive"


def _bad_mask(text: str, other: str, place: str) -> str:
    if "exited" in text:
        return f"waits for an {text.replace(' in mask', ', which its mask names:')}"
    if "meets" in text:
        first, second = text.replace("meets mask ", "").split(" with mask ")
        return f"arrives with mask {second} where {other} waits with mask {first}{place}"
    if "different" in text:
        return f"is at another warp operation than {other}{place}, which its mask names"
    return f"its {text}"


def _out_of_bounds(fault: _Fault, text: str, verb: str, what: str) -> str:
    if text == "const":
        return f"writes {what}, which the kernel takes as a pointer to const"
    if text.startswith("index"):
        return f"uses {text}"
    if fault.space == 0:
        kind = "a null pointer" if fault.address < 4096 else "memory that belongs to no array"
        return f"{verb} {kind} (address {fault.address:#x})"
    return f"{verb} {what}"


def _name_of(fault: _Fault, library: Library, kernel: str, spans: list[Span]) -> str:
    """The element an access fell on, as ``x[34] of 32 (float)``."""
    if fault.space == _GLOBAL and fault.index >= 0:
        span = spans[fault.index]
        # Of several arguments in one span, the one that the access is in or closest behind.
        parameter, array, start = next(
            (e for e in reversed(span.parameters) if e[2] <= fault.offset), span.parameters[0]
        )
        return _element(
            parameter.name, array.itemsize, fault, start, array.nbytes, array.dtype.name
        )
    if fault.space == _STATIC_SHARED and fault.index >= 0:
        symbol: Symbol = library.module.shared[fault.index]
        types = library.module.shared_types
        c_type = types.get(f"{kernel}.{symbol.name}", types.get(symbol.name, ""))
        size = _size_of(c_type, fault.size)
        return _element(symbol.name, size, fault, 0, symbol.bytes, f"shared {c_type}".strip())
    if fault.space == _DYNAMIC_SHARED:
        return f"byte {fault.offset} of the {fault.extent} bytes of dynamic shared memory"
    return "memory"


def _size_of(c_type: str, otherwise: int) -> int:
    try:
        return numpy_dtype(c_type).itemsize * (
            int(c_type[-1]) if c_type[-1] in "234" and c_type[-2:] not in ("32", "64") else 1
        )
    except (TypeError, IndexError):
        return otherwise or 1


def _element(name: str, size: int, fault: _Fault, start: int, extent: int, kind: str) -> str:
    first = (fault.offset - start) // size
    last = (fault.offset - start + max(fault.size, 1) - 1) // size
    index = f"{first}" if last == first else f"{first}:{last + 1}"
    return f"{name}[{index}], an array of {extent // size} ({kind})"


def output_arrays(
    signature: Signature, args: Sequence[Any]
) -> list[tuple[Parameter, np.ndarray[Any, Any]]]:
    """The arrays a kernel may write."""
    return [
        (p, a)
        for p, a in zip(signature.parameters, args, strict=True)
        if p.pointer and not p.const and a is not None
    ]
