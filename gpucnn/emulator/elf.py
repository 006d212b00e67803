"""Reads the thread-local symbols, which is where shared variables live, of an ELF library."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

_SYMBOL_TABLE = 2
_THREAD_LOCAL = 6


@dataclass(frozen=True)
class Symbol:
    """A variable: its source name, its mangled name, its offset in the segment and its bytes."""

    name: str
    mangled: str
    offset: int
    bytes: int


def source_name(mangled: str) -> str:
    """The last identifier of a mangled variable name: ``tile`` of ``_ZZ6kernelE4tile_0``."""
    if not mangled.startswith("_Z"):
        return mangled
    for match in re.finditer(r"\d+", mangled):
        # Digits may run together with those of a preceding literal (``E14tile``): try every split.
        for start in range(match.start(), match.end()):
            length = int(mangled[start : match.end()])
            name = mangled[match.end() : match.end() + length]
            rest = mangled[match.end() + length :]
            if (
                len(name) == length
                and re.fullmatch(r"[A-Za-z_]\w*", name)
                and re.fullmatch(r"E?(?:_\d+_?|B\w+)?", rest)
            ):
                return name
    return mangled


def thread_local_symbols(path: Path) -> tuple[Symbol, ...]:
    """Every thread-local variable defined in a 64-bit little-endian ELF file, by offset."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
    table_at = struct.unpack_from("<Q", data, 0x28)[0]
    entry_bytes, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [
        struct.unpack_from("<IIQQQQIIQQ", data, table_at + i * entry_bytes) for i in range(count)
    ]
    found: dict[int, Symbol] = {}
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        strings = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name_at, info, _, index, value, size = struct.unpack_from("<IBBHQQ", data, at)
            if info & 15 == _THREAD_LOCAL and index and size:
                start = strings + name_at
                mangled = data[start : data.index(b"\0", start)].decode()
                found[value] = Symbol(source_name(mangled), mangled, value, size)
    return tuple(found[offset] for offset in sorted(found))
