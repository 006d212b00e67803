"""CIFAR-10: 32 x 32 colour images of ten classes, 50,000 to train and 10,000 to test.

Its binary version holds records of 3,073 bytes: a label, then the red, the green and the blue
plane, row by row. Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images",
2009.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

CLASSES: Final = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
SIZE: Final = 32
ARCHIVE: Final = "cifar-10-binary.tar.gz"
_RECORD: Final = 1 + 3 * SIZE * SIZE
_MOST_RECORDS: Final = 10_000  # in a file, as it is published
_FILES: Final = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_PICKLES: Final = ("data_batch_1", "cifar-10-batches-py", "cifar-10-python.tar.gz")


def cifar10(
    split: str = "train", data_dir: str | os.PathLike[str] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Read one split from the files of the binary version.

    Args:
        split: "train" or "test".
        data_dir: folder of ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, or
            the folder that holds their folder ``cifar-10-batches-bin``.

    Returns:
        images uint8 (N, 32, 32, 3), labels int32 (N,) that index ``CLASSES``.

    Raises:
        ValueError: a file is missing, is no whole number of records, holds more than 10,000 or a
            label of 10 or more, or the folder has the version for Python, whose pickles could run
            any code.
    """
    if split not in _FILES:
        raise ValueError(f"split must be one of {', '.join(_FILES)}, got {split!r}")
    if data_dir is None:
        raise ValueError(
            f"data_dir must name the folder of cifar10's files: unpack {ARCHIVE} and name its "
            "folder with --data (data_dir)"
        )
    folder = Path(data_dir)
    if (folder / "cifar-10-batches-bin").is_dir():
        folder /= "cifar-10-batches-bin"
    parts = [_read(folder / name) for name in _FILES[split]]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    if not path.is_file():
        pickled = next((name for name in _PICKLES if (path.parent / name).exists()), None)
        if pickled is not None:
            raise ValueError(
                f"{path.parent / pickled}: this is the version for Python, made of pickles, which "
                f"can run any code and are not read; get the binary version, {ARCHIVE}"
            )
        raise ValueError(f"{path} is missing: unpack {ARCHIVE} there")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0 or size % _RECORD:
                raise ValueError(
                    f"{path}: holds {size} bytes, which is no whole number of records of {_RECORD} "
                    "bytes; it is truncated or not of CIFAR-10's binary version"
                )
            if size > _MOST_RECORDS * _RECORD:
                raise ValueError(
                    f"{path}: holds {size // _RECORD} records, a file of CIFAR-10 has at most "
                    f"{_MOST_RECORDS}"
                )
            data = np.frombuffer(file.read(size), np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    if data.size != size:
        raise ValueError(f"{path}: ends after {data.size} of {size} bytes")
    records = data.reshape(-1, _RECORD)
    labels = records[:, 0]
    if labels.max() >= len(CLASSES):
        at = int(labels.argmax())
        raise ValueError(f"{path}: record {at} has the label {labels[at]}, labels must be 0 to 9")
    planes = records[:, 1:].reshape(-1, 3, SIZE, SIZE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels.astype(np.int32)
