"""Reads kernel parameter lists from CUDA C source and checks launch arguments against them.

A kernel is launched through untyped pointers: a Python ``float`` handed over as a double, or an
int64 array where the kernel reads int32, is silent garbage. The parameter list in the source is the
one truth about what a kernel takes, so it is parsed and every argument is checked against it.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

__all__ = [
    "Packed",
    "Packer",
    "Parameter",
    "Signature",
    "convert_arguments",
    "numpy_dtype",
    "parse_kernels",
]

MAX_ELEMENTS = 2**31 - 1  # of an array argument: what int32 offsets reach


STORED = "stored"  # the type that the macros of a specialisation choose: kernels/storage.cuh


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter.

    ``type`` is the C element type without ``const``, ``*`` and ``__restrict__``; ``const`` says
    that the memory behind a pointer is read-only (always False for scalars).
    """

    name: str
    type: str
    pointer: bool
    const: bool


@dataclass(frozen=True)
class Signature:
    """A kernel's name, its parameters in order, and its line (``#line`` directives counted)."""

    kernel: str
    parameters: tuple[Parameter, ...]
    line: int

    def __hash__(self) -> int:
        return hash((self.kernel, self.line))

    def storing(self, c_type: str) -> Signature:
        """This signature with activations stored as ``c_type``: what ``stored`` stands for."""
        if all(p.type != STORED for p in self.parameters):
            return self
        parameters = tuple(
            replace(p, type=c_type) if p.type == STORED else p for p in self.parameters
        )
        return replace(self, parameters=parameters)


_CANONICAL = {
    "unsigned": "unsigned int",
    "signed": "int",
    "signed int": "int",
    "short int": "short",
    "signed short": "short",
    "unsigned short int": "unsigned short",
    "long int": "long",
    "signed long": "long",
    "unsigned long int": "unsigned long",
    "long unsigned int": "unsigned long",
    "long long int": "long long",
    "signed long long": "long long",
    "long long unsigned int": "unsigned long long",
    "unsigned long long int": "unsigned long long",
}

_SCALARS = {
    "bool": "bool",
    "char": "int8",
    "signed char": "int8",
    "unsigned char": "uint8",
    "short": "int16",
    "unsigned short": "uint16",
    "int": "int32",
    "unsigned int": "uint32",
    "long": "int64",
    "unsigned long": "uint64",
    "long long": "int64",
    "unsigned long long": "uint64",
    "size_t": "uint64",
    "ptrdiff_t": "int64",
    "uintptr_t": "uint64",
    "intptr_t": "int64",
    "float": "float32",
    "double": "float64",
    "half": "float16",
    "__half": "float16",
    "half2": "float16",
    "__half2": "float16",
    "nv_bfloat16": "uint16",
    "__nv_bfloat16": "uint16",
    "nv_bfloat162": "uint16",
    "__nv_bfloat162": "uint16",
    "bfloat16": "uint16",
    **{f"{sign}int{bits}_t": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}

_VECTOR = re.compile(r"(u?(?:char|short|int|long|longlong)|float|double)([1-4])")
_VECTOR_BASE = {
    "char": "int8", "uchar": "uint8", "short": "int16", "ushort": "uint16", "int": "int32",
    "uint": "uint32", "long": "int64", "ulong": "uint64", "longlong": "int64",
    "ulonglong": "uint64", "float": "float32", "double": "float64",
}  # fmt: skip

_QUALIFIERS = re.compile(
    r"\b(?:volatile|__restrict__|__restrict|restrict|__grid_constant__|register|typename|struct)\b"
    r"|\[\[[^\]]*\]\]"
)


def numpy_dtype(c_type: str) -> np.dtype[Any]:
    """The NumPy dtype of a C element type; vector types (``float4``) give their component's.

    ``__half`` maps to float16; ``bfloat16`` (``kernels/storage.cuh``) and ``__nv_bfloat16``, which
    NumPy lacks, to uint16 bit patterns.

    Raises:
        TypeError: the type is not a known scalar or vector type.
    """
    name = _canonical_type(c_type)
    if name in _SCALARS:
        return np.dtype(_SCALARS[name])
    vector = _VECTOR.fullmatch(name)
    if vector and vector[1] in _VECTOR_BASE:
        return np.dtype(_VECTOR_BASE[vector[1]])
    raise TypeError(f"C type {c_type!r} has no NumPy dtype")


def _canonical_type(text: str) -> str:
    words = re.sub(r"(?:\bstd)?::", " ", text).split()
    if len(words) > 1 and "unsigned" in words:
        words.remove("unsigned")
        words.insert(0, "unsigned")
    name = " ".join(words)
    return _CANONICAL.get(name, name)


def strip_comments(source: str) -> str:
    """The source with comments and literals blanked out, every offset and newline kept.

    The linkage string ``"C"`` stays, since it is grammar rather than data.
    """

    def blank(match: re.Match[str]) -> str:
        text = match[0]
        if text == '"C"':
            return text
        if text[0] in "\"'":
            return text[0] + " " * (len(text) - 2) + text[-1]
        return re.sub(r"[^\n]", " ", text)

    return re.sub(
        r"//(?:\\\n|[^\n])*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'",
        blank,
        source,
        flags=re.S,
    )


def _matching(text: str, start: int) -> int:
    """Index of the bracket closing the one at ``start``, or -1."""
    opening = text[start]
    closing = {"(": ")", "{": "}"}[opening]
    depth = 0
    for match in re.compile(f"[{re.escape(opening + closing)}]").finditer(text, start):
        depth += 1 if match[0] == opening else -1
        if depth == 0:
            return match.start()
    return -1


def _split_parameters(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "(<[{":
            depth += 1
        elif c in ")>]}":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip() not in ("", "void")]


def _aliases(text: str) -> dict[str, str]:
    found = {
        m[1]: m[2].strip() for m in re.finditer(r"\busing\s+(\w+)\s*=\s*([\w:\s]+?)\s*;", text)
    }
    found.update(
        {m[2]: m[1].strip() for m in re.finditer(r"\btypedef\s+([\w:\s]+?)\s+(\w+)\s*;", text)}
    )
    found.pop(STORED, None)
    return found


def _parse_parameter(text: str, kernel: str, aliases: dict[str, str]) -> Parameter:
    declaration = _QUALIFIERS.sub(" ", text.split("=", 1)[0])
    declaration = re.sub(r"\b(?:alignas|__align__|__attribute__)\s*\((?:[^()]|\([^()]*\))*\)", " ",
                         declaration)  # fmt: skip
    array = re.search(r"\[[^\]]*\]\s*$", declaration)
    if array:
        declaration = declaration[: array.start()]
    named = re.fullmatch(r"\s*(.*?[\s*&])(\w+)\s*", declaration, flags=re.S)
    if named is None:
        raise ValueError(f"kernel {kernel}: parameter {text.strip()!r} needs a type and a name")
    head, name = named[1], named[2]
    stars = head.count("*") + (1 if array else 0)
    pointee = head.rsplit("*", 1)[0] if "*" in head else head
    const = bool(stars) and re.search(r"\bconst\b", pointee) is not None
    c_type = _canonical_type(re.sub(r"\bconst\b|[*&]", " ", head))
    seen: set[str] = set()
    while c_type in aliases and c_type not in seen:
        seen.add(c_type)
        c_type = _canonical_type(aliases[c_type])
    return Parameter(name, c_type + "*" * max(0, stars - 1), stars > 0, const)


def _line_of(text: str, offset: int) -> int:
    line = 1
    start = 0
    for m in re.finditer(r"^[ \t]*#[ \t]*(?:line[ \t]+)?(\d+)\b[^\n]*\n", text[:offset], re.M):
        line, start = int(m[1]), m.end()
    return line + text.count("\n", start, offset)


def _linkage_blocks(text: str) -> list[tuple[int, int]]:
    return [
        (m.end() - 1, _matching(text, m.end() - 1))
        for m in re.finditer(r'\bextern\s*"C"\s*\{', text)
    ]


def parse_kernels(source: str) -> dict[str, Signature]:
    """Every ``extern "C" __global__`` kernel defined in CUDA source, by name.

    Comments and strings are ignored, simple ``using``/``typedef`` aliases are resolved, and macros
    are not expanded. A forward declaration counts only through its definition.

    Raises:
        ValueError: a parameter has no name, or two definitions of one kernel (in two branches of an
            ``#if``, say) take different parameters.
    """
    text = strip_comments(source)
    blocks = _linkage_blocks(text)
    aliases = _aliases(text)
    kernels: dict[str, Signature] = {}
    for match in re.finditer(r"\b__global__\b", text):
        before = re.split(r"[;{}]|^[ \t]*#.*$", text[max(0, match.start() - 400) : match.start()],
                          flags=re.M)[-1]  # fmt: skip
        in_block = any(a < match.start() and (b < 0 or match.start() < b) for a, b in blocks)
        if not in_block and not re.search(r'\bextern\s*"C"', before):
            continue
        at = match.end()
        name, call, end = None, None, -1
        while call := re.compile(r"\s*([^(;{}]*?)(\w+)\s*\(").match(text, at):
            end = _matching(text, call.end() - 1)
            if end < 0:
                break
            if call[2] not in ("__launch_bounds__", "__attribute__", "__maxnreg__",
                               "__cluster_dims__", "__block_size__"):  # fmt: skip
                name = call[2]
                break
            at = end + 1
        if name is None or call is None or not re.match(r"[^;{]*\{", text[end + 1 :]):
            continue
        parameters = tuple(
            _parse_parameter(re.sub(r"^[ \t]*#.*$", " ", p, flags=re.M), name, aliases)
            for p in _split_parameters(text[call.end() : end])
        )
        signature = Signature(name, parameters, _line_of(text, call.start(2)))
        known = kernels.setdefault(name, signature)
        if known.parameters != parameters:
            raise ValueError(
                f"kernel {name} is defined twice with different parameters, "
                f"at lines {known.line} and {signature.line}"
            )
    return kernels


def _convert_scalar(signature: Signature, parameter: Parameter, value: Any) -> np.generic:
    where = f"kernel {signature.kernel}: {parameter.type} {parameter.name}"
    dtype = numpy_dtype(parameter.type)
    if _VECTOR.fullmatch(parameter.type):
        raise TypeError(f"{where}: vector types are not passed by value")
    scalar = isinstance(value, (bool, int, float, np.generic))
    kind = np.asarray(value).dtype.kind if scalar else "O"
    if isinstance(value, int):
        kind = "i"
    if kind not in ("biuf" if dtype.kind in "fb" else "biu") or (kind == "f" and dtype.kind == "b"):
        allowed = "a real number" if dtype.kind == "f" else "an integer"
        raise TypeError(f"{where} takes {allowed}, got {value!r} of type {type(value).__name__}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not limits.min <= int(value) <= limits.max:
            raise ValueError(f"{where} takes {limits.min} to {limits.max}, got {int(value)}")
        return cast(np.generic, dtype.type(int(value)))
    if dtype.kind == "b":
        if int(value) not in (0, 1):
            raise ValueError(f"{where} takes 0 or 1, got {value!r}")
        return np.bool_(value)
    try:
        number = float(value)
    except OverflowError:
        number = np.inf if value > 0 else -np.inf
    if (
        dtype.itemsize < 8
        and abs(number) > float(np.finfo(dtype).max)
        and (isinstance(value, int) or np.isfinite(number))
    ):
        raise ValueError(f"{where} takes up to {np.finfo(dtype).max}, got {value!r}")
    return cast(np.generic, dtype.type(number))


def _check_array(signature: Signature, parameter: Parameter, value: Any) -> Any:
    where = f"kernel {signature.kernel}: {parameter.type}* {parameter.name}"
    if value is None:
        return None
    if not hasattr(value, "dtype") or not hasattr(value, "flags") or isinstance(value, np.generic):
        raise TypeError(f"{where} takes an array or None, got {value!r} of type "
                        f"{type(value).__name__}")  # fmt: skip
    if parameter.type != "void":
        dtype = numpy_dtype(parameter.type)
        if value.dtype != dtype:
            raise TypeError(f"{where} takes an array of {dtype}, got {value.dtype}")
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{where} takes a C-contiguous array, got shape {value.shape} with strides "
            f"{value.strides}"
        )
    return value


def convert_arguments(signature: Signature, args: Sequence[Any] | Iterable[Any]) -> list[Any]:
    """Launch arguments checked against a kernel's parameters, scalars in their exact C type.

    Arrays (NumPy, CuPy or anything with ``dtype`` and ``flags.c_contiguous``) are returned as they
    are; ``None`` is a null pointer.

    Raises:
        TypeError: the number of arguments, an array's dtype, or a scalar's kind is wrong.
        ValueError: an array is not C-contiguous, or a scalar does not fit its C type.
    """
    values = list(args)
    if len(values) != len(signature.parameters):
        names = ", ".join(p.name for p in signature.parameters)
        raise TypeError(
            f"kernel {signature.kernel} takes {len(signature.parameters)} arguments ({names}), "
            f"got {len(values)}"
        )
    return [convert(value) for convert, value in zip(_converters(signature), values, strict=True)]


@functools.cache
def _converters(signature: Signature) -> tuple[Callable[[Any], Any], ...]:
    """One function per parameter: the common case first, everything else and errors behind it."""
    return tuple(
        _array_converter(signature, p) if p.pointer else _scalar_converter(signature, p)
        for p in signature.parameters
    )


def _array_converter(signature: Signature, parameter: Parameter) -> Callable[[Any], Any]:
    if parameter.type == "void":
        return functools.partial(_check_array, signature, parameter)
    dtype = numpy_dtype(parameter.type)

    def convert(value: Any) -> Any:
        fits = getattr(value, "dtype", None) == dtype and not isinstance(value, np.generic)
        return value if fits and value.flags.c_contiguous else check(value)

    check = functools.partial(_check_array, signature, parameter)
    return convert


def _scalar_converter(signature: Signature, parameter: Parameter) -> Callable[[Any], Any]:
    check = functools.partial(_convert_scalar, signature, parameter)
    name = _SCALARS.get(parameter.type, "")
    if name not in ("int32", "uint64", "float32"):
        return check
    scalar = np.dtype(name).type
    if name == "float32":
        most = float(np.finfo(np.float32).max)
        return lambda value: (
            scalar(value) if type(value) is float and -most <= value <= most else check(value)
        )
    limits = np.iinfo(name)
    low, high = int(limits.min), int(limits.max)
    return lambda value: (
        scalar(value) if type(value) is int and low <= value <= high else check(value)
    )


class Packed:
    """The numbers of a launch, in order: NumPy scalars in their exact C types."""

    __slots__ = ("for_cupy", "scalars")

    def __init__(self, scalars: tuple[Any, ...]) -> None:
        self.scalars = scalars
        self.for_cupy: tuple[Any, ...] | None = None  # the same as CuPy takes them fastest


_FORMATS = {"float32": "f", "float64": "d", "bool": "B", "int32": "i", "uint64": "Q"}
_MOST_KNOWN = 1024


class Packer:
    """Checks and packs the arguments of one kernel, quickly where they are right.

    Numbers that were packed before, which is most of them from the second training step on, are
    looked up by their bytes.
    """

    def __init__(self, signature: Signature) -> None:
        parameters = signature.parameters
        pointers = [p for p in parameters if p.pointer]
        self._count, self.arrays = len(parameters), len(pointers)
        self._known: dict[bytes, Packed] = {}
        self._dtypes: tuple[tuple[int, np.dtype[Any]], ...] = ()
        self._reals: tuple[int, ...] = ()
        self._pack: Callable[..., bytes] | None = None
        types = [_SCALARS.get(p.type, "") for p in parameters[self.arrays :]]
        plain = all(p.type in _SCALARS or _VECTOR.fullmatch(p.type) for p in pointers)
        if plain and pointers == list(parameters[: self.arrays]) and set(types) <= _FORMATS.keys():
            self._dtypes = tuple((i, numpy_dtype(p.type)) for i, p in enumerate(pointers))
            self._reals = tuple(i for i, t in enumerate(types, self.arrays) if t[0] == "f")
            self._converters = _converters(signature)[self.arrays :]
            self._pack = struct.Struct("=" + "".join(_FORMATS[t] for t in types)).pack

    def __call__(self, args: tuple[Any, ...]) -> Packed | None:
        """The numbers of a launch, whose first ``arrays`` arguments are arrays or None; None where
        something may be wrong with the arguments: :func:`convert_arguments` then says what, or
        converts them.
        """
        if self._pack is None or len(args) != self._count:
            return None
        try:
            for i, dtype in self._dtypes:
                array = args[i]
                if array is not None and (
                    array.dtype is not dtype
                    or not array.flags.c_contiguous
                    or not array.ndim
                    or array.size > MAX_ELEMENTS
                ):
                    return None
            for i in self._reals:
                if not isinstance(args[i], float | int):
                    return None
            numbers = args[self.arrays :]
            key = self._pack(*numbers)
        except (AttributeError, OverflowError, struct.error):
            return None
        found = self._known.get(key)
        return self._remember(key, numbers) if found is None else found

    def _remember(self, key: bytes, numbers: tuple[Any, ...]) -> Packed:
        made = Packed(tuple([f(v) for f, v in zip(self._converters, numbers, strict=True)]))
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[key] = made
        return made
