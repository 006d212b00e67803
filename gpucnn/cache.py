"""Folders for compiled kernels, kept between runs."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@functools.cache
def cache_folder(name: str) -> Path:
    """``name`` below ``GPUCNN_CACHE_DIR`` or the user's cache; a temporary folder if that can't be
    written."""
    if explicit := os.environ.get("GPUCNN_CACHE_DIR"):
        folder = Path(explicit) / name
    else:
        base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
        folder = Path(base) / "gpucnn" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        scratch = tempfile.mkdtemp(prefix=f"gpucnn-{name}-")
        atexit.register(shutil.rmtree, scratch, ignore_errors=True)
        return Path(scratch)


@contextlib.contextmanager
def published(path: Path) -> Iterator[Path]:
    """A scratch path that becomes ``path`` in one step if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
