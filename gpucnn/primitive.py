"""Primitives: one name, a NumPy body that defines it, and CUDA launchers beside it.

``@primitive`` marks the definition. Calling the primitive calls the definition;
``conv2d_forward.on(device)`` is the function that runs it on a device. A launcher takes the same
arguments as the definition (checked when it is registered), as CuPy arrays on ``cuda`` and as NumPy
arrays on ``emulated``: which one, the kernel reads off the arrays.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import recording

PRIMITIVES: dict[str, Primitive] = {}

_variant_of: dict[str, str] = {}  # family -> the variant chosen by use_variant


class Primitive:
    """A function on bare arrays with one body per device; made by :func:`primitive`."""

    def __init__(self, definition: Callable[..., Any]) -> None:
        functools.update_wrapper(self, definition)
        self.name = definition.__name__
        self.family = definition.__module__.rsplit(".", 1)[-1]
        self.definition = definition
        self.launchers: dict[str, Callable[..., Any]] = {}
        self.default: Callable[..., Any]  # the launcher that was registered first
        # (primitive, arguments) -> the launcher that was measured to be fastest, None if none was
        self.tuned: Callable[[Primitive, tuple[Any, ...]], Callable[..., Any] | None] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.definition(*args, **kwargs)

    def kernel(self, variant: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a launcher. The first registered variant is the one used by default.

        Raises TypeError if the launcher's signature is not the definition's.
        """

        def register(launcher: Callable[..., Any]) -> Callable[..., Any]:
            want, got = inspect.signature(self.definition), inspect.signature(launcher)
            if list(want.parameters.values()) != list(got.parameters.values()):
                raise TypeError(
                    f"launcher {launcher.__name__}{got} must have the signature of "
                    f"{self.name}{want}"
                )
            if not self.launchers:
                self.default = launcher
            self.launchers[variant] = launcher
            return launcher

        return register

    def on(self, device: str) -> Callable[..., Any]:
        """The function that computes this primitive on ``device``."""
        if recording.active is not None and (recorder := recording.current()) is not None:
            return recorder.body(self, device) or self._body(device)
        return self._body(device)

    def _body(self, device: str) -> Callable[..., Any]:
        if device == "cpu":
            return self.definition
        if _variant_of and (variant := _variant_of.get(self.family)) in self.launchers:
            return self.launchers[variant]
        if self.tuned is not None and device == "cuda":
            return self._measured_fastest
        return self.default

    def _measured_fastest(self, *arguments: Any) -> Any:
        return self._fastest(arguments)(*arguments)

    def _fastest(self, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        found = None if self.tuned is None else self.tuned(self, arguments)
        return found or self.default

    def chosen(self, *arguments: Any) -> Callable[..., Any]:
        """The launcher that a call with these arguments takes, NumPy arrays or CuPy's."""
        on_gpu = not isinstance(arguments[0], np.ndarray)
        launcher = self._body("cuda" if on_gpu else "emulated")
        return self._fastest(arguments) if launcher == self._measured_fastest else launcher


def primitive(definition: Callable[..., Any]) -> Primitive:
    """Make a function on NumPy arrays the definition of a primitive of its module's family."""
    made = Primitive(definition)
    PRIMITIVES[made.name] = made
    return made


def variants(family: str) -> tuple[str, ...]:
    """The names that ``use_variant`` takes for a family, the default first."""
    names: dict[str, None] = {}
    for made in PRIMITIVES.values():
        if made.family == family:
            names.update(dict.fromkeys(name for name in made.launchers if name))
    return tuple(names)


def chosen_by_hand(family: str) -> str | None:
    """The variant that use_variant chose for a family, None for its default."""
    return _variant_of.get(family)


def chosen_variants() -> tuple[tuple[str, str], ...]:
    """Each family whose kernels were chosen by hand, with its variant."""
    return tuple(sorted(_variant_of.items()))


class use_variant:
    """Choose kernels by hand: ``use_variant(conv2d="naive")``, also as ``with use_variant(…)``.

    ``None`` returns a family to its default. Raises ValueError for an unknown family or variant.
    """

    def __init__(self, **choice: str | None) -> None:
        for family, name in choice.items():
            known = variants(family)
            if not known:
                families = sorted({p.family for p in PRIMITIVES.values() if variants(p.family)})
                raise ValueError(
                    f"use_variant: {family!r} has no variants, only {', '.join(families)} has"
                )
            if name is not None and name not in known:
                raise ValueError(
                    f"use_variant: {family} is one of {', '.join(known)}, got {name!r}"
                )
        self._previous = dict(_variant_of)
        for family, name in choice.items():
            if name is None:
                _variant_of.pop(family, None)
            else:
                _variant_of[family] = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        _variant_of.clear()
        _variant_of.update(self._previous)
