"""Compiles CUDA C with g++ into shared libraries that the emulator's runtime executes.

Checked builds hand every memory access to the runtime: ``-fsanitize=thread`` makes the compiler
call a hook per access and ``-fsanitize=alignment,bounds`` one per violation, and the runtime
defines those hooks itself instead of linking a sanitizer. Optimisations that would split, merge,
move or invent accesses before the hooks are inserted are off, so that a ``float4`` load is seen
where it stands and as one access of 16 bytes.

Counted builds are checked builds whose hooks also count (csrc/count.cpp) and whose floating-point
instructions are counted (flops.py). In them no access is left out or moved, so that what is counted
is what the source says: a value loaded twice counts twice.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from gpucnn.cache import cache_folder, published
from gpucnn.emulator import flops
from gpucnn.emulator.elf import Symbol, thread_local_symbols
from gpucnn.emulator.fault import BUILD_FOLDER, SHIM_FOLDER, CompileError, Unsupported
from gpucnn.emulator.translate import ANCHOR, Translation, translate
from gpucnn.signature import Parameter, Signature

Mode = Literal["plain", "checked", "counted"]

_HERE = Path(__file__).resolve().parent
_LANGUAGE = ("-fPIC", "-g1", "-gdwarf-4", "-fno-optimize-sibling-calls", "-ffp-contract=off",
             "-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-trapping-math",
             "-fno-strict-aliasing", "-fno-stack-protector", "-fcf-protection=none",
             "-fvisibility=hidden", "-fno-asynchronous-unwind-tables", "-Wno-attributes",
             "-Wno-unknown-pragmas")  # fmt: skip
_CHECKED = ("-O1", "-fno-tree-sra", "-fno-tree-fre", "-fno-tree-pre", "-fno-tree-phiprop",
            "-fno-tree-sink", "-fno-hoist-adjacent-loads", "-finline-small-functions",
            "-fsanitize=thread,alignment,bounds",
            "--param=tsan-instrument-func-entry-exit=0")  # fmt: skip
# Of whatever would take loads out of loops, join repeated ones, duplicate code or run it ahead of
# its condition, all is off.
_COUNTED = (*_CHECKED, "-fno-tree-loop-im", "-fno-tree-dominator-opts", "-fno-tree-dse",
            "-fno-tree-ch", "-fno-thread-jumps", "-fno-if-conversion", "-fno-if-conversion2",
            "-fno-ssa-phiopt", *flops.FLAGS, "-DGPUCNN_COUNTED=1")  # fmt: skip
_FLAGS = {"plain": ("-O2",), "checked": _CHECKED, "counted": _COUNTED}
# Aligned, because where the hooks happen to lie makes some percent of a checked run.
_RUNTIME = ("-std=c++17", "-O2", "-falign-functions=64", "-fPIC", "-shared", "-fvisibility=hidden",
            "-fno-exceptions", "-fno-rtti", "-fno-stack-protector", "-fcf-protection=none",
            "-g1")  # fmt: skip
# Bytes that belong to nobody behind each shared variable, so that an overrun does not land in the
# next one.
_RED_ZONE = 64

_HOOK = re.compile(r"\b__tsan_((?:unaligned_)?(?:volatile_)?(?:read|write)(?:\d+|_range))\b")

# Held while the runtime or the shim is compiled, so that threads do not do it twice.
_preparing = threading.Lock()

_IGNORED_OPTIONS = re.compile(
    r"-?-(?:gpu-architecture|arch|generate-code|gencode|fmad|ftz|prec-sqrt|prec-div|use_fast_math"
    r"|maxrregcount|lineinfo|generate-line-info|device-debug|G|default-device|dopt|Xptxas|w|rdc"
    r"|device-as-default-execution-space|relocatable-device-code|extra-device-vectorization"
    r"|restrict|diag-\w+|dlto|split-compile|ptxas-options|jitify|version-ident|minimal)(?:[= ].*)?"
)


@functools.cache
def compiler() -> str | None:
    """The path of g++, or None."""
    return shutil.which("g++")


def available() -> bool:
    """True if kernels can be compiled here."""
    return sys.platform == "linux" and compiler() is not None


def why_unavailable() -> str:
    """One sentence on what is missing; empty if nothing is."""
    if available():
        return ""
    if sys.platform != "linux":
        return "the emulator runs on Linux only, on x86-64 or another 64-bit CPU"
    return (
        "the emulator compiles kernels with g++, which is not on PATH: install it "
        "(Debian and Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"
    )


@functools.cache
def _version() -> str:
    gxx = compiler()
    if gxx is None:
        raise CompileError(why_unavailable())
    return subprocess.run([gxx, "--version"], capture_output=True, text=True).stdout


def _digest(*parts: object) -> str:
    text = "\0".join(str(p) for p in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _own_sources() -> str:
    """The runtime's and the shim's text, and what they are compiled with."""
    files = sorted([*(_HERE / "csrc").iterdir(), *(_HERE / "include").iterdir()])
    texts = [f"{f.name}\n{f.read_text(encoding='utf-8')}" for f in files if f.is_file()]
    python = [
        (_HERE / name).read_text(encoding="utf-8")
        for name in ("build.py", "flops.py", "translate.py")
    ]
    return _digest(_version(), *texts, *python)


def _run(command: Sequence[str], source: str | None = None, folder: str | None = None) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        command,
        input=source,
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        cwd=folder,
    )
    if done.returncode:
        raise CompileError(done.stderr.strip() or f"{command[0]} exited with {done.returncode}")
    return done.stdout


def runtime_path() -> Path:
    """The runtime's shared library, compiled if need be."""
    path = cache_folder("emulator") / f"libgpucnn_runtime_{_own_sources()}.so"
    with _preparing:
        if path.exists():
            return path
        with published(path) as scratch:
            _run([str(compiler()), *_RUNTIME, f"-Wl,-soname,{path.name}", "-o", str(scratch),
                  *map(str, sorted((_HERE / "csrc").glob("*.cpp")))])  # fmt: skip
    return path


@functools.cache
def runtime() -> ctypes.CDLL:
    """The runtime, loaded once per process; kernel libraries resolve their hooks against it."""
    library = ctypes.CDLL(str(runtime_path()))
    library.gpucnn_begin.argtypes = [ctypes.c_void_p]
    library.gpucnn_run.argtypes = [ctypes.c_void_p]
    library.gpucnn_end.argtypes = [ctypes.c_int]
    library.gpucnn_end.restype = None
    library.gpucnn_counts.restype = ctypes.c_void_p
    return library


def poison_function() -> Callable[[Any, int, int], None]:
    """The runtime's function that fills (memory, words, salt).

    It keeps Python's lock: letting go of that takes longer than most arrays.
    """
    function = ctypes.PyDLL(runtime()._name).gpucnn_poison
    function.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32]
    function.restype = None
    return cast("Callable[[Any, int, int], None]", function)


def _shim(standard: str, mode: Mode) -> Path:
    """The shim header in the cache, precompiled for one set of flags."""
    folder = cache_folder("emulator") / f"shim_{_digest(_own_sources(), _HERE, standard, mode)}"
    header = folder / "gpucnn_shim.h"
    precompiled = folder / "gpucnn_shim.h.gch"
    with _preparing:
        if precompiled.exists():
            return header
        folder.mkdir(parents=True, exist_ok=True)
        with published(header) as scratch:
            scratch.write_text(f'#include "{_HERE}/include/gpucnn_shim.h"\n', encoding="utf-8")
        with published(precompiled) as scratch:
            _run([str(compiler()), standard, *_flags(mode), "-x", "c++-header", str(header),
                  "-o", str(scratch)])  # fmt: skip
    return header


def _flags(mode: Mode) -> tuple[str, ...]:
    # A cached kernel is the same wherever gpucnn is installed, so it must not name the place.
    include = _HERE / "include"
    mapped = f"-fdebug-prefix-map={include}={SHIM_FOLDER}"
    return (*_LANGUAGE, *_FLAGS[mode], f"-I{include}", mapped)


def split_options(options: Iterable[str]) -> tuple[str, list[str]]:
    """The language standard, and the preprocessor options, out of NVRTC-style ``options``.

    Options that only mean something to NVRTC are dropped.

    Raises:
        ValueError: an option is neither.
    """
    standard = "-std=c++17"
    kept: list[str] = []
    rest = iter(options)
    for option in rest:
        if match := re.fullmatch(r"--?std=(?:c|gnu)\+\+(\d+)", option):
            standard = f"-std=c++{max(17, int(match[1]))}"
        elif option in ("-D", "-U", "-I", "--define-macro", "--include-path"):
            flag = {"--define-macro": "-D", "--include-path": "-I"}.get(option, option)
            kept.append(flag + next(rest, ""))
        elif match := re.fullmatch(r"--(define-macro|undefine-macro|include-path)=(.*)", option):
            kept.append({"d": "-D", "u": "-U", "i": "-I"}[match[1][0]] + match[2])
        elif re.match(r"-[DUI]", option):
            kept.append(option[:2] + option[2:].lstrip())
        elif not _IGNORED_OPTIONS.fullmatch(option):
            raise ValueError(f"compile option {option!r} means nothing to the emulator")
    return standard, kept


@dataclass(frozen=True)
class Module:
    """A compiled source: its library, the kernels in it and its static shared variables."""

    path: Path
    signatures: dict[str, Signature]
    shared_types: dict[str, str]
    shared: tuple[Symbol, ...]
    operations: tuple[str, ...]  # of the counters of a counted build (flops.py)

    @property
    def anchor(self) -> Symbol:
        """The variable from whose address all thread-local ones are found."""
        return next(s for s in self.shared if s.name == ANCHOR)


def compile_source(source: str, options: Sequence[str], mode: Mode) -> Module:
    """Compiles CUDA C, or finds the result in the cache.

    Raises:
        CompileError: with g++'s message.
        Unsupported: the source uses what the emulator cannot run.
    """
    standard, defines = split_options(options)
    key = _digest(_own_sources(), source, standard, defines, mode)
    path = cache_folder("emulator") / f"kernel_{key}.so"
    facts = path.with_suffix(".json")
    if not (path.exists() and facts.exists()):
        _build(source, standard, defines, mode, path, facts)
    known = json.loads(facts.read_text(encoding="utf-8"))
    stored = "bfloat16" if "-DBFLOAT16=1" in defines else "float"
    signatures = {
        name: Signature(name, tuple(Parameter(**p) for p in parameters), line).storing(stored)
        for name, parameters, line in known["kernels"]
    }
    return Module(
        path, signatures, known["shared"], thread_local_symbols(path), tuple(known["operations"])
    )


def _build(
    source: str, standard: str, defines: list[str], mode: Mode, path: Path, facts: Path
) -> None:
    if mode == "counted" and not flops.available():
        raise Unsupported("the emulator counts operations on x86-64 only")
    gxx = str(compiler())
    flags = [standard, *_flags(mode)]
    shim = _shim(standard, mode)
    text = f'#line 1 "kernel.cu"\n{source}\n'
    preprocessed = _run(
        [gxx, *flags, *defines, "-x", "c++", "-E", "-fno-working-directory",
         "-fpch-preprocess", "-include", str(shim),
         "-o", "-", "-"], text)  # fmt: skip
    translation: Translation = translate(preprocessed)
    with tempfile.TemporaryDirectory(prefix="gpucnn-") as scratch:
        unit, assembly = Path(scratch, "kernel.ii"), Path(scratch, "kernel.s")
        unit.write_text(translation.text, encoding="utf-8")
        _run([gxx, *flags, f"-fdebug-prefix-map={scratch}={BUILD_FOLDER}", "-fpreprocessed",
              "-x", "c++-cpp-output", "-S", str(unit), "-o", str(assembly)],
             folder=scratch)  # fmt: skip
        operations: list[str] = []
        if mode != "plain":
            text = _separate_shared(assembly.read_text())
            if mode == "counted":
                text, operations = flops.instrument(_HOOK.sub(r"gpucnn_counted_\1", text))
            assembly.write_text(text)
        with published(path) as library:
            _run([gxx, "-shared", "-Wl,-z,now", "-Wl,-Bsymbolic", "-Wl,-rpath,$ORIGIN", "-o",
                  str(library), str(assembly), str(runtime_path())])  # fmt: skip
    known = {
        "kernels": [
            (s.kernel, [vars(p) for p in s.parameters], s.line)
            for s in translation.signatures.values()
        ],
        "shared": translation.shared_types,
        "operations": operations,
    }
    with published(facts) as scratch_facts:
        scratch_facts.write_text(json.dumps(known), encoding="utf-8")


def _separate_shared(assembly: str) -> str:
    """Assembly in which a red zone follows each thread-local (that is, shared) variable."""
    sections = re.split(r"(?m)^(?=\t\.(?:section|text|data|bss)\b)", assembly)
    for i, section in enumerate(sections):
        if section.startswith(("\t.section\t.tbss", "\t.section\t.tdata")):
            sections[i] = re.sub(
                r"(?m)^(\S+:\n(?:\t\.(?:zero|long|quad|value|byte|string|ascii)\t.*\n)+)",
                rf"\1\t.zero\t{_RED_ZONE}\n",
                section,
            )
    return "".join(sections)
