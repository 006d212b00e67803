"""A CUDA C file from outside, and the kernel in it that is to stand in for ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpucnn.kernel import (
    Kernel,
    Specialisation,
    compile_options,
    inline_headers,
    kernel_folder,
    nvrtc_version,
)
from gpucnn.signature import (
    Parameter,
    Signature,
    numpy_dtype,
    parse_kernels,
    strip_comments,
)
from gpucnn.xray.compiled import compiled

from .target import is_output

_FLOATS = ("float", "double")
_LINE = 90  # characters


class Refused(ValueError):
    """A file that cannot be checked: one sentence, and lines to print before it."""

    def __init__(self, sentence: str, details: str = "") -> None:
        super().__init__(sentence)
        self.details = details


@dataclass(frozen=True)
class ForeignSpecialisation(Specialisation):
    """A file that is not one of ours, with its headers inlined."""

    text: str

    @property
    def source(self) -> str:
        return self.text


def declaration(parameter: Parameter) -> str:
    """A parameter in C: ``const float* x``."""
    const = "const " if parameter.const else ""
    return f"{const}{parameter.type}{'*' if parameter.pointer else ''} {parameter.name}"


def parameter_list(signature: Signature) -> str:
    """A kernel's name and parameters: arrays on lines of their own, numbers side by side."""
    lines = [f"{signature.kernel}("]
    last = len(signature.parameters) - 1
    for i, parameter in enumerate(signature.parameters):
        word = declaration(parameter) + (")" if i == last else ",")
        follows = i > 0 and not parameter.pointer and not signature.parameters[i - 1].pointer
        if follows and len(lines[-1]) + len(word) < _LINE:
            lines[-1] += f" {word}"
        else:
            lines.append(f"    {word}")
    return "\n".join(lines)


def _read(path: Path) -> str:
    data = path.read_bytes()
    if b"\0" in data:
        raise Refused(f"{path} is not a text file: CUDA C is expected")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # comments in an older encoding
    return text.replace("\r\n", "\n")


def _chosen(path: Path, text: str, found: Mapping[str, Signature], kernel: str | None) -> Signature:
    if not found:
        if re.search(r"\b__global__\b", strip_comments(text)):
            raise Refused(
                f'{path}: write extern "C" in front of __global__, so that the kernel keeps its '
                "name"
            )
        raise Refused(f'{path} has no kernel: extern "C" __global__ void is expected')
    names = ", ".join(found)
    if kernel is not None:
        if kernel not in found:
            raise Refused(f"{path} has no kernel {kernel!r}, only {names}")
        return found[kernel]
    if len(found) > 1:
        raise Refused(f"{path} has several kernels, choose one with --kernel: {names}")
    return next(iter(found.values()))


def _difference(ours: Parameter, theirs: Parameter) -> str:
    """Why an argument made for our parameter does not fit theirs; "" if it does."""
    if ours.pointer != theirs.pointer:
        return "is an array here" if theirs.pointer else "is a number here"
    if not ours.pointer:
        of_ours, of_theirs = (p.type in _FLOATS for p in (ours, theirs))
        return "" if of_ours == of_theirs else f"is {theirs.type} here"
    try:
        same = numpy_dtype(ours.type) == numpy_dtype(theirs.type)
    except TypeError:
        same = False
    if not same:
        return f"holds {theirs.type} here"
    return "is const here, but must be written" if is_output(ours) and theirs.const else ""


def _check_parameters(ours: Signature, theirs: Signature, target: str) -> None:
    own, given = ours.parameters, theirs.parameters
    details = f"expected: {parameter_list(ours)}\ngot:      {parameter_list(theirs)}"
    details = details.replace("\n    ", "\n              ")
    for i, (mine, yours) in enumerate(zip(own, given, strict=False)):
        if trouble := _difference(mine, yours):
            raise Refused(
                f"{theirs.kernel} does not have the parameters of {target}: parameter {i + 1}, "
                f"{declaration(mine)}, {trouble} ({declaration(yours)})",
                details,
            )
    if len(own) != len(given):
        raise Refused(
            f"{theirs.kernel} does not have the parameters of {target}: {len(own)} are expected, "
            f"it has {len(given)}",
            details,
        )


def read_kernel(
    path: Path, ours: Signature, target: str, kernel: str | None, macros: Mapping[str, str]
) -> Kernel:
    """The kernel of a file, with headers from its folder and from ours.

    ours: the parameters it must have; target: what it stands in for; kernel: its name, None where
    the file has one; macros: the values of ``-D``. Raises Refused for a file that is no such thing.
    """
    text = _read(path)
    unit = inline_headers(text, path.name, [path.parent, kernel_folder()], set())
    try:
        found = parse_kernels(unit)
        own = {name: found[name] for name in found if re.search(rf"\b{name}\s*\(", text)}
        stored = "bfloat16" if macros.get("BFLOAT16") else "float"
        signature = _chosen(path, text, own, kernel).storing(stored)
        _check_parameters(ours, signature, target)
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{path}: {error}") from None
    spec = ForeignSpecialisation(path.stem, tuple(sorted(macros.items())), unit)  # type: ignore[arg-type]
    return Kernel(spec, signature.kernel, signature)


def compile_emulated(kernel: Kernel, ours: Sequence[tuple[str, int]] = ()) -> None:
    """Compile for the emulator, with macros of ours. Raises Refused with the compiler's message."""
    from gpucnn import emulator

    defined = compile_options({**dict(ours), **dict(kernel.spec.macros)})
    raw = emulator.RawKernel(kernel.spec.source, kernel.name, defined)
    try:
        raw.compile()
    except emulator.CompileError as error:
        message = str(error)
        place = re.search(rf"^{re.escape(kernel.spec.family)}\.\w+:(\d+)", message, re.MULTILINE)
        where = f"line {place[1]}" if place else "the message above"
        raise Refused(f"{kernel.name} does not compile: see {where}", message) from None
    except emulator.Unsupported as error:
        raise Refused(str(error)) from None


def nvrtc_refuses(kernel: Kernel, arch: str) -> str:
    """What NVRTC has against a kernel, its errors first; "" if nothing, or without NVRTC."""
    if nvrtc_version() is None:
        return ""
    try:
        compiled(kernel.spec, arch)
    except RuntimeError as error:
        lines = str(error).splitlines()
        return "\n".join(sorted(lines, key=lambda line: "error:" not in line))
    return ""


def compile_cuda(kernel: Kernel, arch: str) -> None:
    """Compile for a GPU. Raises Refused with NVRTC's message."""
    if message := nvrtc_refuses(kernel, arch):
        raise Refused(f"{kernel.name} does not compile for the GPU: see NVRTC's message", message)


def source_parameters(kernel: Kernel) -> str:
    """The parameters of one of our kernels as its file has them, comments and all."""
    text = kernel.spec.source
    bare = strip_comments(text)
    found = re.search(rf"\b{kernel.name}\s*\(", bare)
    if found is None:
        return parameter_list(kernel.signature)
    end = re.compile(r"\)\s*\{").search(bare, found.end())
    return text[found.end() : end.start() if end else found.end()].strip("\n")
