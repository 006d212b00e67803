"""The libraries that gpucnn is compared with, in the same process and in turns.

To add one: a class with ``rivals(primitive, arguments, sets)``, which returns a :class:`Rival` or a
:class:`Gap` per column, and its line in :func:`open_rivals`. ``step_rivals(step)`` does so for
whole training steps; ``use_precision`` and ``release`` (of memory) are called where there are such.
"""

from __future__ import annotations

from typing import Any

from .rival import Gap, Rival

__all__ = ["COLUMNS", "LIBRARIES", "Gap", "Rival", "open_rivals"]

# library -> its columns in a table
LIBRARIES = {
    "torch": ("torch", "torch_channels_last", "torch_compiled", "torch_graph"),
    "cupy": ("cupy",),
    "jax": ("jax",),
}
COLUMNS = tuple(column for columns in LIBRARIES.values() for column in columns)


def _open(name: str, device: str, timer: Any, compile_seconds: float) -> Any:
    if name == "torch":
        from .torch_rival import Torch

        return Torch(device, timer, compile_seconds)
    if device == "cpu":
        does = {"cupy": "CuPy computes", "jax": "JAX is timed"}[name]
        return Gap(name, f"{does} on a GPU only")
    if name == "jax":
        from .jax_rival import Jax

        return Jax(device)
    from .cupy_rival import Cupy

    return Cupy(timer)


def open_rivals(
    names: tuple[str, ...], device: str, timer: Any, compile_seconds: float
) -> tuple[dict[str, Any], list[Gap]]:
    """The named libraries that work here, and a gap for each that does not."""

    def opened(name: str) -> Any:
        try:
            return _open(name, device, timer, compile_seconds)
        except (ImportError, OSError, RuntimeError) as error:
            return Gap(name, f"{name} does not work here: {' '.join(str(error).split())}")

    made = {name: opened(name) for name in names}
    gaps = [value for value in made.values() if isinstance(value, Gap)]
    return {name: value for name, value in made.items() if not isinstance(value, Gap)}, gaps
