"""Rewrites preprocessed CUDA C into C++ that g++ compiles; no line moves.

Working on the preprocessor's output means that macros are expanded, and that comments and inactive
branches are gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpucnn.emulator.fault import Unsupported
from gpucnn.signature import Signature, parse_kernels, strip_comments

ANCHOR = "gpucnn_shared_anchor"

_UNSUPPORTED = (
    (r"\b(?:asm|__asm__|__asm)\b(?:\s+(?:volatile|__volatile__))?\s*[({]", "inline PTX (asm)"),
    (r"<<<", "dynamic parallelism (<<<...>>>)"),
    (r"GPUCNN_UNSUPPORTED_HEADER_cooperative_groups|\bcooperative_groups\b", "cooperative groups"),
    (r"GPUCNN_UNSUPPORTED_HEADER_mma|\b(?:nvcuda|wmma)\s*::", "WMMA fragments (mma.h)"),
    (r"GPUCNN_UNSUPPORTED_HEADER_cuda_pipeline", "asynchronous copies (cuda_pipeline.h)"),
    (r"\b(?:cudaTextureObject_t|tex[123]D(?:fetch|Lod|Grad)?\s*[<(])", "textures"),
    (r"\b(?:cudaSurfaceObject_t|surf[123]D(?:read|write)\s*[<(])", "surfaces"),
    (r"\bcuda\s*::\s*(?:barrier|pipeline|atomic|memcpy_async)\b", "libcu++ (cuda::)"),
)

# A parenthesis and its content, nested deeper than __attribute__((aligned(sizeof(T)))).
_PARENTHESIS = r"\([^()]*\)"
for _ in range(5):
    _PARENTHESIS = rf"\((?:[^()]|{_PARENTHESIS})*\)"
_ATTRIBUTE = rf"(?:(?:alignas|__attribute__)\s*{_PARENTHESIS}\s*)"
_DYNAMIC = re.compile(
    rf"\bextern\s+(?:{_ATTRIBUTE})?__shared__\s+((?:{_ATTRIBUTE})*)([^;{{}}()]*?)(\w+)\s*"
    rf"((?:{_ATTRIBUTE})*)\[\s*\]((?:\s*\[[^\]]*\])*)\s*;"
)
_STATIC = re.compile(r"(?:\b(?:static|thread_local)\s+)*\b__shared__\b(?:\s*\bstatic\b)?")

# The C library's own would escape the checks.
_MEMORY_CALL = re.compile(r"(?:\bstd\s*::\s*)?\b(memcpy|memset)\s*\(")

_EXPORT = 'extern "C" __attribute__((visibility("default")))'

# A launch goes through one function per kernel, which takes pointers to the arguments.
_PROLOGUE = f"""
extern "C" char gpucnn_dynamic_shared[];
extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[], _end[];
static thread_local char {ANCHOR}[16];
{_EXPORT} void* gpucnn_shared_address() {{ return {ANCHOR}; }}
{_EXPORT} void* gpucnn_image_begin() {{ return __ehdr_start; }}
{_EXPORT} void* gpucnn_image_end() {{ return _end; }}
template <int...> struct gpucnn_indices {{}};
// The call through a volatile pointer keeps the kernel, which is instrumented, from being inlined
// here, where nothing is.
template <class... P, int... I>
__attribute__((no_sanitize_thread))
static void gpucnn_invoke(void (*kernel)(P...), void** a, gpucnn_indices<I...>) {{
    void (*volatile call)(P...) = kernel;
    call(*static_cast<P*>(a[I])...);
}}
template <class... P>
static void gpucnn_invoke(void (*kernel)(P...), void** a) {{
    gpucnn_invoke(kernel, a, gpucnn_indices<__integer_pack(sizeof...(P))...>());
}}
"""


@dataclass(frozen=True)
class Translation:
    """C++ text, the kernels in it, and the element types of the shared variables by name."""

    text: str
    signatures: dict[str, Signature]
    shared_types: dict[str, str]


def _line_and_file(text: str, offset: int) -> str:
    line, file, start = 1, "kernel.cu", 0
    for m in re.finditer(
        r'^#[ \t]*(?:line[ \t]+)?(\d+)[ \t]+"([^"]*)"[^\n]*\n', text[:offset], re.M
    ):
        line, file, start = int(m[1]), m[2], m.end()
    return f"{file}:{line + text.count(chr(10), start, offset)}"


def _place(text: str, found: re.Match[str]) -> str:
    """File and line of what was found; of its #include, where it is the mark of a header."""
    if found[0].startswith("GPUCNN_"):
        back = re.compile(r'^#[ \t]*(\d+)[ \t]+"([^"]*)" 2', re.M).search(text, found.end())
        if back is not None:
            return f"{back[2]}:{int(back[1]) - 1}"
    return _line_and_file(text, found.start())


def translate(preprocessed: str) -> Translation:
    """C++ for a preprocessed translation unit.

    Raises:
        Unsupported: the source uses what the emulator cannot run, by name and line.
        ValueError: a kernel's parameters cannot be parsed.
    """
    start = _user_text(preprocessed)
    prefix, text = preprocessed[:start], preprocessed[start:]
    bare = _without_system_headers(strip_comments(text))
    for pattern, name in _UNSUPPORTED:
        if match := re.search(pattern, bare):
            raise Unsupported(f"{_place(text, match)}: the emulator does not run {name}")
    for match in reversed([*_MEMORY_CALL.finditer(bare)]):
        start, end = match.span()
        call = f"gpucnn_{match[1]}("
        text, bare = text[:start] + call + text[end:], bare[:start] + call + bare[end:]
    signatures = parse_kernels(text)
    types = _shared_types(bare)
    text = _rewrite_dynamic(text, bare)
    text = _STATIC.sub("static thread_local", text)
    text = re.sub(rf"(static thread_local\s+)alignas\s*({_PARENTHESIS})",
                  r"\1__attribute__((aligned\2))", text)  # fmt: skip
    text = re.sub(r"\b__global__\b", "", text)
    text = re.sub(r"(?<![(\w,])(\s|^)__noinline__\b", r"\1__attribute__((noinline))", text)
    stubs = "".join(_stub(s) for s in signatures.values())
    return Translation(
        f'{prefix}\n{text}\n# 1 "gpucnn_stubs"\n{_PROLOGUE}{stubs}', signatures, types
    )


def _shared_types(bare: str) -> dict[str, str]:
    """Element types of shared variables, as ``kernel.variable`` for those of kernels, and by plain
    name where all of that name agree."""
    kernels = [
        (m.start(), m[1])
        for m in re.finditer(r"\b__global__\b[^;{]*?(\w+)\s*\((?!\s*\()[^;{]*\{", bare)
    ]
    types: dict[str, str] = {}
    declarator = r"\w+\s*(?:\[[^\]]*\]\s*)*"
    declaration = re.compile(
        rf"\b__shared__\s+((?:{_ATTRIBUTE})*[\w:\s<>,]+?)\s*\b"
        rf"({declarator}(?:,\s*{declarator})*)[;=]"
    )
    for match in declaration.finditer(bare):
        element = re.sub(_ATTRIBUTE, " ", match[1]).replace("volatile", "").strip()
        inside = [name for start, name in kernels if start < match.start()]
        for name in re.findall(r"(?:^|,)\s*(\w+)", re.sub(r"\[[^\]]*\]", "", match[2])):
            if inside:
                types[f"{inside[-1]}.{name}"] = element
            types[name] = element if types.get(name, element) == element else ""
    return types


def _user_text(preprocessed: str) -> int:
    """Where the source proper begins: behind the shim, which the compiler includes first."""
    marker = preprocessed.find('\n# 1 "kernel.cu"')
    return max(marker, 0)


def _without_system_headers(text: str) -> str:
    """The text with the lines of system headers blanked (line markers with flag 3)."""
    system = False
    lines = text.split("\n")
    for i, line in enumerate(lines):
        if marker := re.match(r'#[ \t]*\d+[ \t]+"[^"]*"((?:[ \t]+\d)*)', line):
            system = "3" in marker[1]
        elif system:
            lines[i] = " " * len(line)
    return "\n".join(lines)


def _rewrite_dynamic(text: str, bare: str) -> str:
    """``extern __shared__ T x[];`` becomes a constant pointer to the one dynamic buffer."""
    seen: set[str] = set()

    def replace(match: re.Match[str]) -> str:
        element, name, inner = match[2].strip(), match[3], match[5].strip()
        if not _inside_function(bare, match.start()):
            if name in seen:
                return "\n" * match[0].count("\n")
            seen.add(name)
        cast = f"{element} (*)" + inner if inner else f"{element}*"
        declared = f"{element} (* const {name})" + inner if inner else f"{element}* const {name}"
        line = f"static {declared} = ({cast})gpucnn_dynamic_shared;"
        return line + "\n" * match[0].count("\n")

    return 'extern "C" char gpucnn_dynamic_shared[]; ' + _DYNAMIC.sub(replace, text)


def _inside_function(bare: str, offset: int) -> bool:
    text = re.sub(r'extern\s*"C"\s*\{|namespace\s*\w*\s*\{', "", bare[:offset])
    return text.count("{") > text.count("}")


def _stub(signature: Signature) -> str:
    return (
        f"{_EXPORT} void gpucnn_call_{signature.kernel}"
        f"(void** gpucnn_arguments) {{ gpucnn_invoke({signature.kernel}, gpucnn_arguments); }}\n"
    )
