"""Checkpoints: safetensors files that are written whole or not at all, and verified when read.

A file holds named arrays and, in its metadata, a JSON state and the SHA-256 of everything. Nothing
is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

FORMAT: Final = "gpucnn-checkpoint"
VERSION: Final = 1


@dataclass(frozen=True)
class Checkpoint:
    """Attributes:
    tensors: arrays by name.
    state: JSON values by name.
    """

    tensors: dict[str, NDArray[Any]]
    state: dict[str, Any]

    def group(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The tensors whose names start with ``prefix.``, under the rest of their names."""
        start = prefix + "."
        return {
            name[len(start) :]: value
            for name, value in self.tensors.items()
            if name.startswith(start)
        }


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace or create a file so that a crash at any moment leaves the old or the new content.

    The data reaches the disk before the name does; permissions follow the umask.

    Raises:
        OSError: the folder cannot be written; an existing file is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # open() would need a chmod: the mode given at creation is masked by the umask already.
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), "wb"
        ) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest(value: NDArray[Any]) -> str:
    hasher = hashlib.sha256(f"{value.dtype.str} {value.shape} ".encode())
    hasher.update(value.data if value.size else b"")
    return hasher.hexdigest()


def save_checkpoint(
    path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], state: Mapping[str, Any]
) -> None:
    """Write arrays and a JSON state to one file, atomically.

    Args:
        path: the file, replaced where it exists.
        tensors: arrays by name, of any layout; 0-d arrays keep their shape.
        state: values that JSON can hold.

    Raises:
        OSError: the file cannot be written.
    """
    # safetensors writes the memory of a strided array as if it were contiguous, without an error;
    # ascontiguousarray makes a 0-d array 1-d, so the shape is put back.
    packed = {
        name: np.ascontiguousarray(value).reshape(np.shape(value))
        for name, value in tensors.items()
    }
    text = json.dumps(dict(state), sort_keys=True)
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "state": text,
        "state_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "sha256": json.dumps({name: _digest(value) for name, value in packed.items()}),
    }
    write_atomically(path, safetensors.numpy.save(packed, metadata=metadata))


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        ValueError: the file is missing, no safetensors file, no gpucnn checkpoint, of a newer
            version, or its content does not match its SHA-256.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: not a gpucnn checkpoint, its metadata says no {FORMAT!r}")
    if metadata.get("version") != str(VERSION):
        raise ValueError(
            f"{path}: checkpoint version must be {VERSION}, found {metadata.get('version')!r}"
        )
    text = metadata.get("state", "")
    if hashlib.sha256(text.encode()).hexdigest() != metadata.get("state_sha256"):
        raise ValueError(f"{path}: damaged, its state does not match its SHA-256")
    try:
        digests = json.loads(metadata.get("sha256", ""))
        state = json.loads(text)
    except ValueError:
        raise ValueError(f"{path}: damaged, its metadata is not JSON") from None
    if not isinstance(digests, dict) or digests.keys() != tensors.keys():
        raise ValueError(f"{path}: damaged, its tensors are not those of its SHA-256 list")
    for name, value in tensors.items():
        if _digest(np.ascontiguousarray(value).reshape(value.shape)) != digests[name]:
            raise ValueError(f"{path}: damaged, tensor {name!r} does not match its SHA-256")
    return Checkpoint(tensors, state)
