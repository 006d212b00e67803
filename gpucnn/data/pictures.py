"""Picture files, read and written with Pillow."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.threads import thread_count

if TYPE_CHECKING:
    from PIL import Image

FORMATS: Final = ("PNG", "JPEG", "BMP")
_ORIENTATION: Final = 0x0112  # EXIF: 5 to 8 lie on their side
SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp")
_KINDS: Final = "PNG, JPEG or BMP"


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ValueError(
            "reading pictures needs Pillow, which is not installed: pip install 'gpucnn[plot]'"
        ) from None
    return PIL


def _eight_bits(image: Image.Image) -> Image.Image:
    """Upright, opaque, 8 bits per channel: mode "L" or "RGB"."""
    pil = _pillow()
    image = pil.ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Pillow's own conversion would clip 16-bit gray at 255 instead of scaling it.
        levels = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return pil.Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # type: ignore[no-any-return]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = pil.Image.new("RGBA", image.size, "white")
        image = pil.Image.alpha_composite(white, image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """Scale into width x height with proportions kept, on the median colour of the border."""
    if image.size == (width, height):
        return image
    pil = _pillow()
    levels = np.asarray(image)
    levels = levels.reshape(*levels.shape[:2], -1)
    border = np.concatenate([levels[0], levels[-1], levels[:, 0], levels[:, -1]])
    colour = tuple(int(level) for level in np.median(border, axis=0))
    scale = min(width / image.width, height / image.height)
    size = (
        min(width, max(1, round(image.width * scale))),
        min(height, max(1, round(image.height * scale))),
    )
    canvas = pil.Image.new(image.mode, (width, height), colour if len(colour) > 1 else colour[0])
    corner = ((width - size[0]) // 2, (height - size[1]) // 2)
    canvas.paste(image.resize(size, pil.Image.Resampling.LANCZOS), corner)
    return canvas  # type: ignore[no-any-return]


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without Pillow's warnings of odd files; for one thread, which may start others inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture whose header has been read; whatever Pillow raises inside becomes a ValueError."""
    pil = _pillow()
    if path.is_dir():
        raise ValueError(f"{path}: is a directory, expected a {_KINDS} file")
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    if not path.is_file():
        raise ValueError(f"{path}: not a regular file, expected a {_KINDS} file")
    most = pil.Image.MAX_IMAGE_PIXELS
    try:
        with pil.Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > most:
                raise pil.Image.DecompressionBombError
            yield image
    except pil.UnidentifiedImageError:
        raise ValueError(f"{path}: not a {_KINDS} picture") from None
    except pil.Image.DecompressionBombError:
        raise ValueError(f"{path}: too large, a picture may have at most {most:,} pixels") from None
    # Pillow's decoders raise any of these for a damaged file.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ValueError(f"{path}: the picture cannot be read ({error})") from None


def picture_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a picture file when it stands upright; reads no more than its header.

    Raises:
        ValueError: as :func:`read_picture`, but for damage behind the header.
    """
    with _silence(), _opened(Path(path)) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= 5
        return image.size if turned else image.size[::-1]


def read_picture(
    path: str | os.PathLike[str], image_shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Read a PNG, JPEG or BMP file as a network's input.

    The picture is turned upright as its EXIF data says; transparency is put on white; 16-bit gray
    is scaled to 8 bits; colour becomes gray (ITU-R 601-2 luma) where the network takes one channel.
    It is scaled to fit with its proportions kept, and centred on the median colour of its border.

    Args:
        path: the file.
        image_shape: (H, W, C) of the result; C is 1 or 3.

    Returns:
        uint8 (H, W, C).

    Raises:
        ValueError: Pillow is missing, or the file is missing, no picture of these types, damaged,
            or has more pixels than Pillow's limit.
    """
    with _silence():
        return _read(path, image_shape)


def read_pictures(
    paths: Sequence[str | os.PathLike[str]], image_shape: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """:func:`read_picture` of many files, on all cores.

    Returns:
        uint8 (N, H, W, C), and for each file None or why it could not be read.
    """
    images = np.zeros((len(paths), *image_shape), np.uint8)

    def read(index: int) -> str | None:
        try:
            images[index] = _read(paths[index], image_shape)
        except ValueError as error:
            return str(error)
        return None

    with _silence(), ThreadPoolExecutor(thread_count()) as pool:
        return images, list(pool.map(read, range(len(paths))))


def _read(path: str | os.PathLike[str], image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"image_shape must have 1 or 3 channels, got {channels}")
    with _opened(Path(path)) as image:
        fitted = _fit(_eight_bits(image), width, height)
    levels = np.asarray(fitted.convert("L" if channels == 1 else "RGB"), dtype=np.uint8)
    return levels.reshape(image_shape)


def pictures_available() -> bool:
    """Whether Pillow is installed."""
    return importlib.util.find_spec("PIL") is not None


def write_picture(path: str | os.PathLike[str], levels: NDArray[np.uint8]) -> None:
    """Write uint8 (H, W, 1 or 3) as a PNG file.

    Raises:
        ValueError: Pillow is missing.
        OSError: the file cannot be written.
    """
    image = _pillow().Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)
    image.save(path, "PNG")
