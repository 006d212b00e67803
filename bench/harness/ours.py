"""One implementation of a primitive of gpucnn, ready to be checked and timed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from gpucnn.device import to_device, to_host
from gpucnn.kernel import Launch, observe_launches
from gpucnn.primitive import PRIMITIVES
from gpucnn.storage import handed_over

from .arguments import flat, in_float32, map_arrays, results
from .cuda_timer import Workspace
from .timing import Contender
from .verify import Reference, same_bits

_MOST_SETS = 20
_MOST_BYTES = 1 << 31  # of all sets together

# How tables call the launcher that is registered without a name, and the NumPy definition.
DEFAULT, DEFINITION = "default", "numpy"


def variants_of(primitive: str, device: str) -> tuple[str, ...]:
    """The implementations of a primitive on a device, as tables call them."""
    if device == "cpu":
        return (DEFINITION,)
    return tuple(name or DEFAULT for name in PRIMITIVES[primitive].launchers)


def _on_host(array: Any) -> Any:
    return np.array(in_float32(to_host(array)), order="C")


def implementation(primitive: str, variant: str, device: str) -> Callable[..., Any]:
    """The function behind a name of :func:`variants_of`."""
    made = PRIMITIVES[primitive]
    if device == "cpu":
        return made.definition
    return made.on(device) if variant == DEFAULT else made.launchers[variant]


def sets_for(moved: int, l2_bytes: int) -> int:
    """Sets of inputs, so that what a call reads was not left in the cache by the one before."""
    wanted = math.ceil(2 * l2_bytes / max(moved, 1))
    return max(1, min(wanted, _MOST_SETS, _MOST_BYTES // max(moved, 1)))


class Ours:
    """A variant with its inputs on the device."""

    def __init__(
        self, reference: Reference, variant: str, device: str, timer: Any, sets: int
    ) -> None:
        problem = reference.problem
        self._reference, self._device, self._timer = reference, device, timer
        self._run = implementation(problem.primitive, variant, device)
        self._workspace = Workspace(timer.cupy) if device == "cuda" else None
        self._last: Any = None
        self._first: list[Any] = []
        self.launches: list[Launch] = []
        with self._place():
            self._sets = [self._fresh() for _ in range(sets)]
        self.contender = Contender(variant, self._call, sets, outputs=self._workspace)

    def _fresh(self) -> tuple[Any, ...]:
        copy = np.copy if self._device == "cpu" else lambda a: to_device(a, self._device)
        family = self._reference.problem.family
        return map_arrays(handed_over(family, self._reference.arguments), copy)

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        if self._workspace is None:
            yield
        else:
            with self._timer.stream:
                yield

    def _call(self, i: int) -> Any:
        self._last = self._run(*self._sets[i])
        return self._last

    def _host_results(self, i: int) -> list[Any]:
        made = results(self._last, self._sets[i], self._reference.problem.updated)
        return [_on_host(a) for a in made]

    def _restore(self, i: int) -> None:
        """Give the arguments that calls update their first values again."""
        arguments = self._reference.arguments
        for k in self._reference.problem.updated:
            for a, fresh in zip(flat(self._sets[i][k]), flat(arguments[k]), strict=True):
                a[...] = to_device(fresh, self._device)

    def first_results(self) -> list[Any]:
        """The results of a first call, as host arrays; its launches are kept."""
        with self._place():
            context = contextlib.nullcontext()
            if self._workspace is not None:
                context = self._workspace.using()
            with context, observe_launches(self.launches.append):
                self._call(0)
            self._first = self._host_results(0)
            self._restore(0)
            self._spoil()
        return self._first

    def _spoil(self) -> None:
        """Leave NaN in the memory of the results, from which the next results are made."""
        if self._workspace is not None:
            self._workspace.spoil(self._timer.stream)
        else:
            for a in flat(self._last):
                if a.ndim and a.flags.writeable and not self._is_input(a):
                    a.fill(np.nan if a.dtype.kind == "f" else 0)
        self._last = None

    def _is_input(self, result: Any) -> bool:
        inputs = (b for b in flat(self._sets[0]) if isinstance(b, np.ndarray))
        return any(np.may_share_memory(result, b) for b in inputs)

    def last_results_hold(self) -> bool:
        """Whether the last timed call left the bits of the first; in place, a call after it."""
        with self._place():
            if not self._reference.problem.updated:
                if self._last is None:
                    return False
                made = [_on_host(a) for a in flat(self._last)]
                return same_bits(self._first, made)
            context = contextlib.nullcontext()
            if self._workspace is not None:
                context = self._workspace.using()
            self._restore(0)
            with context:
                self._call(0)
            return same_bits(self._first, self._host_results(0))

    def free(self) -> None:
        """Give the memory back."""
        self._last, self._sets, self._first = None, [], []
        if self._workspace is not None:
            self._timer.synchronize()
            self._workspace.free()
