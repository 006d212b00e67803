"""What can be counted without a GPU: launches, bytes and planned memory of a step, beside PyTorch.

The launches and arrays of the ``emulated`` device are those of a GPU. No kernel runs, so memory is
asked for and never touched.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gpucnn
from gpucnn import emulator, kernel
from gpucnn.primitive import PRIMITIVES

from ..problems import Problem
from ..steps import Step

DEVICE = "emulated"
UNTIL_RECORDED = 3  # calls of a step
SMALL_BATCHES = (8, 16)


@dataclass(frozen=True)
class Counts:
    """One step in a precision, as a graph.

    launches: kernels. moved: bytes of the arrays that they are handed, each once a launch, and once
    more where a launch changes what was there before the step. least: the bytes that no step can do
    without. arena: bytes of memory planned once. kept: bytes of parameters, gradients, the
    optimizer's state and inputs. torch: bytes that PyTorch has in use at once, eager, in float32
    or as bf16 autocast casts; without what cuDNN takes on top.
    """

    case: str
    precision: str
    launches: int
    moved: int
    least: int
    arena: int
    kept: int
    torch: int | None

    @property
    def peak(self) -> int:
        """Ours: the arena and what is kept."""
        return self.arena + self.kept


class _Memory:
    """Stands in for the emulator's memory: never filled; knows which arrays are new and alive."""

    def __init__(self) -> None:
        self._new: dict[int, weakref.ref[Any]] = {}

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        array = np.zeros(shape, dtype)  # memory that the system gives when it is touched
        self._new[id(array)] = weakref.ref(array)
        return array

    def is_new(self, array: Any) -> bool:
        while isinstance(array.base, np.ndarray):
            array = array.base
        found = self._new.get(id(array))
        return found is not None and found() is array

    def forget(self) -> None:
        """From now on everything is old."""
        self._new.clear()

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the ``with`` block the emulator's arrays come from here."""
        filled = emulator.empty
        emulator.empty = self.empty
        try:
            yield
        finally:
            emulator.empty = filled


class _Launches:
    """Counts launches and what they are handed, and runs nothing. One number per part of a run."""

    def __init__(self, memory: _Memory) -> None:
        self._memory = memory
        self.counts: list[int] = []
        self.moved: list[int] = []

    def begin(self) -> None:
        """What comes now is a part of its own, and all memory so far is old."""
        self._memory.forget()
        self.counts.append(0)
        self.moved.append(0)

    def __call__(self, launch: kernel.Launch, arguments: Sequence[Any]) -> None:
        self.counts[-1] += 1
        for parameter, a in zip(launch.kernel.signature.parameters, arguments, strict=True):
            if isinstance(a, np.ndarray):
                self.moved[-1] += a.nbytes
                if not parameter.const:
                    self.moved[-1] += a.nbytes * (not self._memory.is_new(a))
                    if a.dtype.kind == "i":  # indices are checked where they are used
                        a[...] = 0


def count_problem(problem: Problem) -> Counts:
    """Call a primitive once, in float32, and count."""
    memory, arguments = _Memory(), problem.make(0)
    launches = _Launches(memory)
    launches.begin()
    with memory.in_place(), gpucnn.precision("fp32"), kernel.standing_in(launches):
        PRIMITIVES[problem.primitive].on(DEVICE)(*arguments)
    (number,), (moved,) = launches.counts, launches.moved
    return Counts(str(problem), "fp32", number, moved, problem.bytes, 0, 0, None)


def count(step: Step, precision: str, with_torch: bool = False) -> Counts:
    """Record a step and count; RuntimeError if it is no graph."""
    memory = _Memory()
    launches = _Launches(memory)
    with memory.in_place(), gpucnn.precision(precision), kernel.standing_in(launches):
        graph = gpucnn.cuda_graph(step.ours(DEVICE))
        for _ in range(UNTIL_RECORDED):
            launches.begin()
            graph()
        if graph.memory is None:
            raise RuntimeError(f"{step.case} is no graph: {graph.reason}")
    whole = type(step) is Step
    return Counts(
        step.case,
        precision,
        graph.launches,
        launches.moved[1],  # in the second call all arrays of the step are new
        step.bytes,
        graph.memory.bytes,
        kept_bytes(step) if whole else 0,
        torch_peak(step, precision) if with_torch and whole else None,
    )


def kept_bytes(step: Step) -> int:
    """Parameters, gradients and two moments in float32, running statistics, images and labels."""
    model = step.build()
    parameters = sum(p.size for p in model.parameters())
    buffers = sum(b.size for _, b in model.named_buffers())
    given = sum(int(a.nbytes) for a in step.batch_of_images())
    return int(4 * (4 * parameters + buffers)) + given


def torch_peak(step: Step, precision: str) -> int:
    """The most bytes that PyTorch's tensors hold at once in an eager step, channels last.

    Measured on the CPU at two small batches: images, activations and their gradients grow with the
    batch, the rest does not.
    """
    small, large = (_torch_peak(replace(step, batch=b), precision) for b in SMALL_BATCHES)
    low, high = SMALL_BATCHES
    more: int = (large - small) * (step.batch - high) // (high - low)
    return large + more


def _torch_peak(step: Step, precision: str) -> int:
    import torch

    from ..rivals.torch_rival import Torch

    library = Torch("cpu", None, 0.0)
    library.use_precision(precision)
    with storages(torch) as most:
        calls = step.torchs(library, True, False, torch.float32)
        for _ in range(2):  # the optimizer makes its state in the first
            calls.step(calls.module)
        found: int = most()
    return found


@contextlib.contextmanager
def storages(torch: Any) -> Iterator[Callable[[], int]]:
    """Inside the ``with`` block the memory behind PyTorch's tensors is counted; yields what tells
    the most bytes so far.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        now = most = 0

        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call]
            self._known: set[int] = set()

        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            for t in tree_leaves((args, kwargs, result)):
                if isinstance(t, torch.Tensor):
                    self._meet(t.untyped_storage())
            return result

        def _meet(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self._known:
                return
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, key, size)

        def _gone(self, key: int, size: int) -> None:
            self._known.discard(key)
            self.now -= size

    with Watch() as watch:
        yield lambda: watch.most
