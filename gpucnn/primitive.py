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

from gpucnn import recording, storage
from gpucnn.bfloat16 import BFLOAT16, is_bfloat16, narrowed, storing, widened
from gpucnn.planned_calls import planned

PRIMITIVES: dict[str, Primitive] = {}

_variant_of: dict[str, str] = {}  # family -> the variant chosen by use_variant


class Primitive:
    """A function on bare arrays with one body per device; made by :func:`primitive`.

    stores: None for a primitive of float32 and float64. Otherwise it also takes arrays of bfloat16,
    and these of its results are in bfloat16 then; the others stay float32.
    """

    def __init__(
        self, definition: Callable[..., Any], stores: tuple[int, ...] | None = None
    ) -> None:
        functools.update_wrapper(self, definition)
        self.stores = stores
        self.on_cpu = self._storing(definition, widened, narrowed)
        self.name = definition.__name__
        self.family = definition.__module__.rsplit(".", 1)[-1]
        self.definition = definition
        self.launchers: dict[str, Callable[..., Any]] = {}
        self.default: Callable[..., Any]  # the launcher that was registered first
        self._planned: dict[str, Callable[..., Any]] = {}  # by device, when first asked for
        # (primitive, arguments) -> the launcher that was measured to be fastest, None if none was
        self.tuned: Callable[[Primitive, tuple[Any, ...]], Callable[..., Any] | None] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.definition(*args, **kwargs)

    def _storing(
        self,
        body: Callable[..., Any],
        widen: Callable[..., Any],
        narrow: Callable[..., Any],
        takes: Callable[..., bool] | None = None,
    ) -> Callable[..., Any]:
        """A body of float32 that also takes bfloat16: widened before it, narrowed after it.

        takes: whether the body takes these arguments in bfloat16 as they are.
        """

        @functools.wraps(body)
        def call(*args: Any, **kwargs: Any) -> Any:
            if not BFLOAT16.in_use or not any(_holds_bfloat16(a) for a in args):
                return body(*args, **kwargs)
            if self.stores is None:
                raise TypeError(f"{self.name} does not take bfloat16")
            if takes is not None and takes(*args, **kwargs):
                return body(*args, **kwargs)
            with storing():
                results = body(*[_widened(a, widen) for a in args], **kwargs)
            if not isinstance(results, tuple):
                return narrow(results) if self.stores else results
            return tuple(
                [narrow(r) if i in self.stores and r is not None else r
                 for i, r in enumerate(results)]
            )  # fmt: skip

        return call

    def kernel(
        self, variant: str = "", *, native: bool | Callable[..., bool] = False
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a launcher. The first registered variant is the one used by default.

        native: it takes bfloat16 as it is, always or where this holds of its arguments; for others
        kernels widen and narrow what is stored.
        Raises TypeError if the launcher's signature is not the definition's.
        """

        def register(launcher: Callable[..., Any]) -> Callable[..., Any]:
            want, got = inspect.signature(self.definition), inspect.signature(launcher)
            if list(want.parameters.values()) != list(got.parameters.values()):
                raise TypeError(
                    f"launcher {launcher.__name__}{got} must have the signature of "
                    f"{self.name}{want}"
                )
            if self.stores is not None and native is not True:
                takes = native or None
                launcher = self._storing(launcher, storage.widen_there, storage.narrow_there, takes)
            if not self.launchers:
                self.default = launcher
            self.launchers[variant] = launcher
            return launcher

        return register

    def on(self, device: str) -> Callable[..., Any]:
        """The function that computes this primitive on ``device``."""
        if recording.active is not None and (recorder := recording.current()) is not None:
            return recorder.body(self, device) or self._body(device)
        if _variant_of or device == "cpu":
            return self._body(device)
        return self._planned.get(device) or self._plan(device)

    def _plan(self, device: str) -> Callable[..., Any]:
        body = functools.partial(self._body, device)
        made = planned(self.definition, device, body, _variant_of)
        return self._planned.setdefault(device, made)

    def _body(self, device: str) -> Callable[..., Any]:
        if device == "cpu":
            return self.on_cpu if BFLOAT16.in_use else self.definition
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


def _holds_bfloat16(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_holds_bfloat16(item) for item in value)
    return hasattr(value, "dtype") and is_bfloat16(value)


def _widened(value: Any, widen: Callable[..., Any]) -> Any:
    if not _holds_bfloat16(value):
        return value
    if isinstance(value, tuple | list):
        return type(value)([_widened(item, widen) for item in value])
    return widen(value)


def primitive(definition: Callable[..., Any]) -> Primitive:
    """Make a function on NumPy arrays the definition of a primitive of its module's family."""
    made = Primitive(definition)
    PRIMITIVES[made.name] = made
    return made


def storing_primitive(*stores: int) -> Callable[[Callable[..., Any]], Primitive]:
    """:func:`primitive` that takes bfloat16 as well; these of its results are stored so then."""

    def make(definition: Callable[..., Any]) -> Primitive:
        made = Primitive(definition, stores)
        PRIMITIVES[made.name] = made
        return made

    return make


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
