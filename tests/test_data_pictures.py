"""Picture files of every kind a user may have become the network's 8-bit input."""

from __future__ import annotations

import builtins
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from gpucnn import random
from gpucnn.data.pictures import read_picture, write_picture

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

GRAY = random.bits(0, 0, 48).view(np.uint8).reshape(12, 16)[:, :10].copy()  # 12 rows, 10 columns


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def read(path: Path, height: int = 12, width: int = 10, channels: int = 1) -> np.ndarray:
    levels = read_picture(path, (height, width, channels))
    assert levels.dtype == np.uint8
    assert levels.shape == (height, width, channels)
    return levels


def test_a_gray_picture_of_the_right_size_is_not_changed(path: Path) -> None:
    write_picture(path, GRAY[..., None])
    np.testing.assert_array_equal(read(path)[..., 0], GRAY)


def test_a_colour_picture_of_the_right_size_is_not_changed(path: Path) -> None:
    colour = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=2)
    write_picture(path, colour)
    np.testing.assert_array_equal(read(path, channels=3), colour)


def test_sixteen_bit_gray_is_scaled_not_clipped(path: Path) -> None:
    Image.fromarray(GRAY.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read(path)[..., 0], GRAY)


def test_black_and_white(path: Path) -> None:
    Image.fromarray(GRAY > 127).save(path)
    np.testing.assert_array_equal(read(path)[..., 0], np.where(GRAY > 127, 255, 0))


def test_palette(path: Path) -> None:
    Image.fromarray(GRAY).convert("P").save(path)
    np.testing.assert_array_equal(read(path)[..., 0], GRAY)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(path: Path, mode: str) -> None:
    image = Image.fromarray(GRAY).convert(mode)
    alpha = np.zeros((12, 10), np.uint8)
    alpha[3:6] = 255
    image.putalpha(Image.fromarray(alpha))
    image.save(path)
    expected = np.where(alpha > 0, GRAY, 255)
    np.testing.assert_array_equal(read(path)[..., 0], expected)


def test_a_transparent_palette_colour_is_white(path: Path) -> None:
    image = Image.new("P", (10, 12), 0)
    image.putpalette([0, 0, 0, 90, 90, 90])
    image.paste(1, (0, 0, 10, 6))
    image.save(path, transparency=0)
    np.testing.assert_array_equal(
        read(path)[..., 0], np.repeat([[90], [255]], 6, axis=0) + np.zeros(10, int)
    )


def test_exif_orientation(tmp_path: Path) -> None:
    gradient = np.repeat(np.arange(0, 240, 10, dtype=np.uint8)[None], 24, axis=0)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    path = tmp_path / "photo.jpg"
    Image.fromarray(gradient).save(path, exif=exif, quality=95)
    turned = np.rot90(gradient, -1).astype(int)
    assert np.abs(read(path, 24, 24)[..., 0] - turned).max() < 12
    assert np.abs(read(path, 24, 24)[..., 0] - gradient.astype(int)).max() > 100


def test_cmyk_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (10, 12), (0, 0, 0, 0)).save(path)
    assert read(path).min() > 250


def test_proportions_are_kept_on_the_colour_of_the_border(path: Path) -> None:
    wide = np.full((20, 80), 200, np.uint8)
    wide[4:16, 34:46] = 0  # a square
    write_picture(path, wide[..., None])
    levels = read(path, 40, 40)[..., 0]
    dark = levels < 100
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    assert len(rows) == len(columns) == 6
    assert abs((rows.mean() + columns.mean()) / 2 - 19.5) < 1
    assert (levels[:15] == 200).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 200)])
def test_extreme_sizes(path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 77).save(path)
    assert (read(path) == 77).all()


def refusal(path: Path) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)
    assert "no such file" in refusal(tmp_path / "nothing.png")
    text = tmp_path / "text.png"
    text.write_text("not a picture")
    assert "not a PNG, JPEG or BMP picture" in refusal(text)
    other = tmp_path / "other.gif"
    Image.fromarray(GRAY).save(other)
    assert "not a PNG, JPEG or BMP picture" in refusal(other)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "picture"
    Image.fromarray(random.bits(0, 1, 2500).view(np.uint8).reshape(100, 100)).save(path, kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "cannot be read" in refusal(path)


def test_mutated_pictures_are_read_or_refused(path: Path) -> None:
    write_picture(path, GRAY[..., None])
    good = path.read_bytes()
    refused = 0
    for place, value in random.bits(3, 0, 400).reshape(200, 2).tolist():
        content = bytearray(good)
        content[place % len(good)] = value % 256
        path.write_bytes(content)
        try:
            read(path)
        except ValueError:
            refused += 1
    assert 20 < refused < 200


def test_pillows_pixel_limit_is_kept(path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (9500, 30_000):  # above the limit, where Pillow warns, and above twice the limit
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
        assert "too large, a picture may have at most 89,478,485 pixels" in refusal(path)


def test_without_pillow_the_extra_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_picture(path, GRAY[..., None])
    real = builtins.__import__

    def no_pillow(name: str, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pillow)
    with pytest.raises(ValueError, match=r"pip install 'gpucnn\[plot\]'"):
        read_picture(path, (12, 10, 1))
