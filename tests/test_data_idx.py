"""The IDX reader refuses everything that is not exactly what its header promises."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from gpucnn import random
from gpucnn.data import idx
from gpucnn.data.idx import read_idx

IMAGES = np.arange(2 * 3 * 5, dtype=np.uint8).reshape(2, 3, 5)


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.tobytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images"


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reads_plain_and_gzipped(path: Path, pack) -> None:
    path.write_bytes(pack(idx_bytes(IMAGES)))
    read = read_idx(path, rank=3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, IMAGES)


GOOD = idx_bytes(IMAGES)
CASES = {
    "empty": (b"", "header ends after 0 of 16 bytes"),
    "header cut": (GOOD[:10], "header ends after 10 of 16 bytes"),
    "data cut": (GOOD[:-1], r"promises 2 x 3 x 5 = 30 bytes, the file holds 29"),
    "one byte more": (GOOD + b"x", r"promises 2 x 3 x 5 = 30 bytes, the file holds more"),
    "labels": (idx_bytes(IMAGES[0, 0]), r"rank 3 \(magic 0x00000803\), found magic 0x00000801"),
    "floats": (b"\0\0\x0d\x03" + GOOD[4:], "found magic 0x00000d03"),
    "not idx": (b"\x89PNG\r\n\x1a\n" + GOOD, "found magic 0x89504e47"),
    "little-endian": (b"\x03\x08\0\0" + GOOD[4:], "found magic 0x03080000"),
    "no rows": (idx_bytes(IMAGES[:0]), "every dimension must be at least 1"),
    "more than the file": (
        GOOD[:4] + struct.pack(">3I", 60000, 28, 28) + GOOD[16:],
        "promises 60000 x 28 x 28 = 47040000 bytes, the file and the memory here allow at most",
    ),
    "more than 64 bits": (
        GOOD[:4] + struct.pack(">3I", *[2**32 - 1] * 3),
        f"= {(2**32 - 1) ** 3} bytes",
    ),
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("case", CASES)
def test_refuses(path: Path, case: str, pack) -> None:
    content, message = CASES[case]
    path.write_bytes(pack(content))
    if pack is gzip.compress and case == "more than the file":
        # 46 bytes gzipped could stand for some 60 KB, not for 47 MB.
        assert path.stat().st_size * 1032 < 47_040_000
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path, rank=3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_gz_name_without_gzip_content(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"not a gzip file, though its name ends in \.gz"):
        read_idx(path, rank=3)


def test_truncated_and_damaged_gzip(path: Path) -> None:
    packed = gzip.compress(idx_bytes(random.bits(0, 0, 4000).view(np.uint8).reshape(10, 40, 40)))
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match="truncated"):
        read_idx(path, rank=3)
    path.write_bytes(packed[:-8] + bytes([packed[-8] ^ 1]) + packed[-7:])
    with pytest.raises(ValueError, match="damaged"):
        read_idx(path, rank=3)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing: cannot be read \(No such file"):
        read_idx(tmp_path / "nothing", rank=1)
    with pytest.raises(ValueError, match=r"cannot be read \(Is a directory"):
        read_idx(tmp_path, rank=1)


def test_more_than_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(GOOD)
    monkeypatch.setattr(idx, "available_memory", lambda: 29)
    with pytest.raises(ValueError, match="allow at most 29"):
        read_idx(path, rank=3)


def test_a_gzip_bomb_is_refused_without_being_unpacked(path: Path) -> None:
    bomb = gzip.compress(idx_bytes(np.zeros((1, 8, 8), np.uint8)) + bytes(64 << 20))
    path.write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="holds more"):
            read_idx(path, rank=3)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((64, 1024, 1024), np.uint8))))
    with pytest.raises(ValueError, match="allow at most 1000000"):
        read_idx(path, rank=3, max_bytes=1_000_000)


def read_or_refuse(path: Path) -> np.ndarray | None:
    """The array, or None where the file was refused in one sentence that names it."""
    try:
        return read_idx(path, rank=3)
    except ValueError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return None


def test_five_hundred_mutated_headers(path: Path) -> None:
    """Each is read in full or refused in one sentence; nothing else may come out."""
    words = random.bits(11, 0, 500 * 4).reshape(500, 4)
    read = 0
    for kind, place, value, cut in words.tolist():
        content = bytearray(GOOD)
        for n in range(1 + kind % 3):
            content[(place >> 8 * n) % 16] = (value >> 8 * n) % 256 if kind & 64 else value % 8
        if kind & 128:
            del content[cut % len(content) :]
        path.write_bytes(gzip.compress(content, 1) if kind & 32 else content)
        array = read_or_refuse(path)
        if array is not None:
            read += 1
            assert array.tobytes() == bytes(content[16:])
    assert 0 < read < 250


def test_five_hundred_mutated_gzip_files(path: Path) -> None:
    packed = gzip.compress(GOOD)
    words = random.bits(12, 0, 500 * 2).reshape(500, 2)
    for place, value in words.tolist():
        content = bytearray(packed)
        content[place % len(content)] = value % 256
        path.write_bytes(content)
        array = read_or_refuse(path)
        if array is not None:
            np.testing.assert_array_equal(array, IMAGES)
