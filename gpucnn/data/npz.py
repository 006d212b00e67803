"""Images and labels of one's own, from a NumPy ``.npz`` file.

Nothing in the file is unpickled, and every array's size is read from its header and compared with
what the file holds and the memory has before any memory is taken.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.data.idx import available_memory

MAX_BYTES: Final = 1 << 33  # of one array
_MOST_CLASSES: Final = 10_000
_HEADERS: Final = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: str | os.PathLike[str],
) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int32]]]:
    """Images and labels by the name of their split.

    The arrays are ``x`` and ``y``, or ``x_train``, ``y_train``, ``x_test``, ``y_test`` and maybe
    ``x_val``, ``y_val``. Images are (N, H, W) or (N, H, W, C) with C of 1 or 3: uint8, integers of
    0 to 255, or real numbers of 0 to 1. Labels are integers (N,) or, one per pixel, (N, H, W).

    Returns:
        "all", or "train", "test" and maybe "validation" -> images uint8 (N, H, W, C), labels int32.

    Raises:
        ValueError: the file is missing, no ``.npz``, damaged, or larger than the memory here; or
            its arrays are missing, pickled, or do not fit each other.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            splits = _splits(path, set(names))
            arrays = {
                name: _member(path, archive, names[name], name)
                for pair in splits.values()
                for name in pair
            }
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # or encrypted
        raise ValueError(f"{path}: not an .npz file, or a damaged one ({error})") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    return {
        split: _checked(path, (x, arrays[x]), (y, arrays[y])) for split, (x, y) in splits.items()
    }


def _splits(path: Path, names: set[str]) -> dict[str, tuple[str, str]]:
    if {"x", "y"} <= names:
        return {"all": ("x", "y")}
    wanted = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    if not {name for pair in wanted.values() for name in pair} <= names:
        raise ValueError(
            f"{path}: must hold x and y, or x_train, y_train, x_test and y_test, holds "
            f"{', '.join(sorted(names)) or 'nothing'}"
        )
    if {"x_val", "y_val"} <= names:
        wanted["validation"] = ("x_val", "y_val")
    return wanted


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> NDArray[Any]:
    """One array, after its header promises what the archive holds and the memory has."""
    with archive.open(info) as stream:
        try:
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"version {version} of the format")
            shape, fortran, dtype = _HEADERS[version](stream)
            if any(n < 0 for n in shape):
                raise ValueError(f"shape {shape}")
        except Exception as error:  # the header is Python's syntax, which fails in many ways
            raise ValueError(f"{path}: {name} is no NumPy array ({error})") from None
        if dtype.hasobject or dtype.kind not in "uifb":
            raise ValueError(f"{path}: {name} must hold numbers, its dtype is {dtype}")
        size, held = math.prod(shape) * dtype.itemsize, info.file_size - stream.tell()
        promise = f"{path}: {name} promises {' x '.join(map(str, shape))} {dtype} = {size} bytes"
        if size != held:
            raise ValueError(f"{promise}, the file holds {held}")
        limit = min(MAX_BYTES, available_memory() // 2)
        if size > limit:
            raise ValueError(f"{promise}, the memory here allows {limit}")
        data = stream.read(size)
        if len(data) != size:
            raise ValueError(f"{promise}, the file holds {len(data)}")
        array = np.frombuffer(data, dtype)
        return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _checked(
    path: Path, images: tuple[str, NDArray[Any]], labels: tuple[str, NDArray[Any]]
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    (x_name, x), (y_name, y) = images, labels
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[-1] not in (1, 3) or not x.size:
        raise ValueError(
            f"{path}: {x_name} must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), not empty, "
            f"got {images[1].shape}"
        )
    if y.dtype.kind not in "iu" or y.shape not in (x.shape[:1], x.shape[:3]):
        raise ValueError(
            f"{path}: {y_name} must be integers ({len(x)},), or one per pixel, got {y.dtype} "
            f"{y.shape}"
        )
    if int(y.min()) < 0 or int(y.max()) >= _MOST_CLASSES:
        raise ValueError(
            f"{path}: {y_name} must be 0 to {_MOST_CLASSES - 1}, got {y.min()} to {y.max()}"
        )
    return _levels(path, x_name, x), np.ascontiguousarray(y, np.int32)


def _levels(path: Path, name: str, x: NDArray[Any]) -> NDArray[np.uint8]:
    """Images as gray levels 0 to 255."""
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    low, high = float(x.min()), float(x.max())
    most = 1 if x.dtype.kind in "fb" else 255
    if not 0 <= low <= high <= most:
        kind = "real numbers of 0 to 1" if most == 1 else "integers of 0 to 255"
        raise ValueError(f"{path}: {name} must be {kind}, got {low:g} to {high:g}")
    if most == 255:
        return np.ascontiguousarray(x, np.uint8)
    out = np.empty(x.shape, np.uint8)
    for image, levels in zip(x, out, strict=True):
        np.rint(np.multiply(image, 255.0), out=levels, casting="unsafe")
    return out
