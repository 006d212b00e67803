"""A strict reader for IDX files, the format of MNIST and its relatives.

The header is big-endian: two zero bytes, an element type, the rank, then one uint32 per dimension;
the elements follow in C order. Only unsigned bytes (type 0x08) are read. A file holds exactly what
its header promises: a byte less or more is an error.

Source: Yann LeCun's description of the MNIST database, "The IDX file format".
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE: Final = 0x08
MAX_BYTES: Final = 1 << 30
_GZIP_MAGIC: Final = b"\x1f\x8b"
_DEFLATE_MAX_RATIO: Final = 1032  # the most bytes that one byte of a deflate stream can stand for


def available_memory() -> int:
    """Bytes of memory that can be had without swapping, or a large number where unknown."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def _read_exactly(stream: BinaryIO, n: int) -> bytearray:
    """The next ``n`` bytes, or fewer where the stream ends; memory grows with what is there."""
    data = bytearray()
    while len(data) < n:
        block = stream.read(min(n - len(data), 1 << 20))
        if not block:
            break
        data += block
    return data


def _parse(path: Path, stream: BinaryIO, rank: int, limit: int) -> NDArray[np.uint8]:
    header = _read_exactly(stream, 4 + 4 * rank)
    if len(header) >= 4:
        expected = bytes([0, 0, UNSIGNED_BYTE, rank])
        if header[:4] != expected:
            raise ValueError(
                f"{path}: expected an IDX file of unsigned bytes with rank {rank} "
                f"(magic 0x{expected.hex()}), found magic 0x{header[:4].hex()}"
            )
    if len(header) < 4 + 4 * rank:
        raise ValueError(f"{path}: the IDX header ends after {len(header)} of {4 + 4 * rank} bytes")
    shape = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
    size = math.prod(shape)
    promise = f"{path}: the IDX header promises {' x '.join(map(str, shape))} = {size} bytes"
    if size == 0:
        raise ValueError(f"{promise}, every dimension must be at least 1")
    if size > limit:
        raise ValueError(f"{promise}, the file and the memory here allow at most {limit}")
    data = _read_exactly(stream, size)
    if len(data) < size:
        raise ValueError(f"{promise}, the file holds {len(data)}")
    if stream.read(1):
        raise ValueError(f"{promise}, the file holds more")
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def read_idx(
    path: str | os.PathLike[str], rank: int, max_bytes: int = MAX_BYTES
) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, gzipped or plain.

    Args:
        path: the file; one whose name ends in ``.gz`` must be gzipped.
        rank: number of dimensions that the file must have, 1 to 255.
        max_bytes: refuse a larger array; less where the memory available is less.

    Returns:
        uint8 array of that rank, C-contiguous.

    Raises:
        ValueError: the file is missing, unreadable, truncated, damaged, no IDX file of that type
            and rank, promises more than it holds or than fits in memory, or has bytes left over.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            zipped = file.read(2) == _GZIP_MAGIC
            file.seek(0)
            if path.suffix == ".gz" and not zipped:
                raise ValueError(f"{path}: not a gzip file, though its name ends in .gz")
            holds = size * _DEFLATE_MAX_RATIO if zipped else size
            limit = min(max_bytes, available_memory(), holds)
            if not zipped:
                return _parse(path, file, rank, limit)
            with gzip.GzipFile(fileobj=file) as unzipped:
                return _parse(path, unzipped, rank, limit)  # type: ignore[arg-type]
    except EOFError:
        raise ValueError(f"{path}: the gzip file ends early; it is truncated") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
