"""``gpucnn.cuda_graph``: a training step that is recorded once and replayed."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np

from gpucnn import recording
from gpucnn.device import Array, default_device, require
from gpucnn.flat_gradients import settle_everything
from gpucnn.fusion import fuses
from gpucnn.graph.host import HostRecording
from gpucnn.graph.plan import MemoryPlan
from gpucnn.graph.record import Observer, Store, Watched, is_array
from gpucnn.misuse import warn_once
from gpucnn.ops.geometry import integer
from gpucnn.precision import chosen_precision
from gpucnn.primitive import chosen_variants
from gpucnn.recording import recording_by
from gpucnn.tensor import Tensor, converted, is_recording_gradients

_MOST_GRAPHS = 32  # kept at once: each has memory of its own
_MOST_KEYS = 8  # calls that differ from all before them, until that is said


class Graph(Protocol):
    """A step that was recorded."""

    memory: MemoryPlan
    launches: int

    def replay(self) -> None:
        """Compute the step once."""


class _Recorded:
    """One graph with the arguments that it reads, what it returns, and when it holds."""

    def __init__(self, graph: Graph, store: Store, result: Any, watched: Watched) -> None:
        self.graph, self.store, self.result, self.watched = graph, store, result, watched


class _Entry:
    """What is known of calls with one kind of arguments."""

    def __init__(self, held: tuple[Any, ...]) -> None:
        self.held = held  # objects that the key knows by identity
        self.reason = ""
        self.devices: set[str] | None = None  # of the eager call before a recording
        self.first: Any = None
        self.graphs: list[_Recorded] = []


class CudaGraph:
    """A step that is recorded and replayed; made by :func:`cuda_graph`.

    reason: why it last ran eagerly, "" if it never had to. replays: how many there have been.
    """

    def __init__(self, step: Callable[..., Any], device: str | None = None, steps: int = 1) -> None:
        if not callable(step):
            raise TypeError(f"step must be a function, got {type(step).__name__}")
        functools.update_wrapper(self, step)
        self._step = step if integer("steps", steps, 1) == 1 else _many(step, steps)
        self._device = None if device is None else require(device)
        self._entries: dict[Hashable, _Entry] = {}
        self._last: _Recorded | None = None
        self._name = getattr(step, "__name__", type(step).__name__)
        self.reason = ""
        self.replays = 0

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method of a class: each instance has graphs of its own."""
        return self if instance is None else types.MethodType(self, instance)

    @property
    def memory(self) -> MemoryPlan | None:
        """The arena of the graph that was last recorded or replayed, None before there is one."""
        return None if self._last is None else self._last.graph.memory

    @property
    def launches(self) -> int:
        """Kernel launches of that graph (primitives on ``cpu``), 0 before there is one."""
        return 0 if self._last is None else self._last.graph.launches

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the step: eagerly, while recording, or by a replay."""
        if recording.active is not None and recording.current() is not None:
            return self._step(*args, **kwargs)  # a part of the graph that is being recorded
        settle_everything()
        arrays: list[Tensor] = []
        held: list[Any] = []
        form = self._form((args, kwargs), arrays, held)
        key = form, chosen_precision(), chosen_variants(), fuses(), is_recording_gradients()
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = self._new_entry(tuple(held))
        for recorded in entry.graphs:
            if recorded.watched.holds():
                return self._replay(recorded, arrays)
        if entry.reason:
            return self._run(args, kwargs, arrays)
        if any(t.requires_grad for t in arrays):
            return self._give_up(entry, "an argument requires a gradient", args, kwargs, arrays)
        if entry.devices is None:
            return self._observe(entry, args, kwargs, arrays)
        return self._record(entry, args, kwargs, arrays)

    # ---- arguments

    def _form(self, value: Any, arrays: list[Tensor], held: list[Any]) -> Hashable:
        """What must be equal for calls to share a graph; collects the arrays, as tensors."""
        if isinstance(value, Tensor):
            arrays.append(value)
            return value.device, value.data.dtype, value.data.shape
        if isinstance(value, tuple | list):
            return type(value).__name__, tuple([self._form(v, arrays, held) for v in value])
        if isinstance(value, dict):
            items = [(k, self._form(v, arrays, held)) for k, v in value.items()]
            return "dict", tuple(items)
        if is_array(value):
            if not isinstance(value, np.ndarray):
                return self._form(Tensor(value, device="cuda"), arrays, held)
            device = self._device or default_device()
            # It stays where it is: a replay copies it into the memory that the graph reads.
            there = np.asarray(converted(value, device), order="C")
            return self._form(Tensor._wrap(there, device), arrays, held)
        if isinstance(value, int | float | str | np.generic) or value is None:
            return type(value), value
        held.append(value)  # so that nothing else gets its id
        return type(value), id(value)

    def _with(self, value: Any, arrays: list[Tensor]) -> Any:
        """The arguments with the arrays replaced, in order; empties the list."""
        if isinstance(value, Tensor) or is_array(value):
            return arrays.pop(0)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[self._with(v, arrays) for v in value])
        if isinstance(value, tuple | list):
            return type(value)([self._with(v, arrays) for v in value])
        if isinstance(value, dict):
            return {k: self._with(v, arrays) for k, v in value.items()}
        return value

    def _run(self, args: Any, kwargs: Any, arrays: list[Tensor]) -> Any:
        given = [t if _is_there(t) else Tensor(t.data, device=t.device) for t in arrays]
        args, kwargs = self._with((args, kwargs), given)
        return self._step(*args, **kwargs)

    # ---- calls

    def _new_entry(self, held: tuple[Any, ...]) -> _Entry:
        if len(self._entries) == _MOST_KEYS and not any(e.graphs for e in self._entries.values()):
            self._say("the shapes or numbers that it is called with are others in each call")
        if len(self._entries) >= _MOST_GRAPHS:
            del self._entries[next(iter(self._entries))]
        return _Entry(held)

    def _say(self, reason: str) -> None:
        self.reason = reason
        warn_once(
            f"graph: {self._name}: {reason}",
            f"{self._name} runs eagerly instead of as a graph: {reason}",
        )

    def _give_up(
        self, entry: _Entry, reason: str, args: Any, kwargs: Any, arrays: list[Tensor]
    ) -> Any:
        entry.reason, entry.first = reason, None
        self._say(reason)
        return self._run(args, kwargs, arrays)

    def _observe(self, entry: _Entry, args: Any, kwargs: Any, arrays: list[Tensor]) -> Any:
        """The first call: what is made lazily is made, kernels are compiled."""
        observer = Observer()
        with recording_by(observer):
            result = self._run(args, kwargs, arrays)
        entry.devices = observer.devices or {"cpu"}
        reason = observer.reason
        if "cuda" in entry.devices:
            from gpucnn.graph.gpu import why_not

            reason = reason or why_not(entry.devices)
        if reason:
            entry.reason = reason
            self._say(reason)
        return result

    def _record(self, entry: _Entry, args: Any, kwargs: Any, arrays: list[Tensor]) -> Any:
        """The second call (how long memory lives) and the third (in planned memory)."""
        make: Any = HostRecording
        if entry.devices == {"cuda"}:
            from gpucnn.graph.gpu import GpuRecording

            make = GpuRecording
        before = entry.first
        store = before.store if before is not None else Store([_static(t) for t in arrays])
        _fill(store, arrays)
        try:
            now = make(store, before)
        except MemoryError:
            return self._give_up(
                entry, "its memory does not fit beside that of eager steps", args, kwargs, arrays
            )
        entry.first = None
        inputs = [Tensor._wrap(a, t.device) for a, t in zip(store.inputs, arrays, strict=True)]

        def step() -> Any:
            returned = self._run(args, kwargs, inputs)
            settle_everything()
            return returned

        result = now.run(step)
        if now.reason:
            entry.reason = now.reason
            self._say(now.reason)
        elif before is None:
            entry.first = now
        else:
            recorded = _Recorded(now.graph(), store, result, now.watched)
            entry.graphs.append(recorded)
            entry.devices = None
            del entry.graphs[:-_MOST_GRAPHS]
            self._last = recorded
        return result

    def _replay(self, recorded: _Recorded, arrays: list[Tensor]) -> Any:
        _fill(recorded.store, arrays)
        recorded.graph.replay()
        self._last = recorded
        self.replays += 1
        return recorded.result


def _is_there(t: Tensor) -> bool:
    """Whether an argument lies on its device."""
    return t.device != "cuda" or not isinstance(t.data, np.ndarray)


def _static(t: Tensor) -> Array:
    if t.device == "cuda":
        import cupy

        return cupy.empty(t.shape, t.data.dtype)
    return np.empty(t.shape, t.data.dtype)


def _fill(store: Store, arrays: list[Tensor]) -> None:
    for static, t in zip(store.inputs, arrays, strict=True):
        if not _is_there(t):
            static.set(t.data)
        elif t.data is not static:
            static[...] = t.data


def _many(step: Callable[..., Any], count: int) -> Callable[..., list[Any]]:
    """``count`` steps in a row, each with its own part of the arguments."""

    def part(value: Any, i: int) -> Any:
        if isinstance(value, Tensor):
            if value.shape[:1] != (count,):
                raise ValueError(
                    f"with steps={count} arrays hold {count} batches along their first axis, "
                    f"got shape {value.shape}"
                )
            return Tensor._wrap(value.data[i : i + 1].reshape(value.shape[1:]), value.device)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*[part(v, i) for v in value])
        if isinstance(value, tuple | list):
            return type(value)([part(v, i) for v in value])
        if isinstance(value, dict):
            return {k: part(v, i) for k, v in value.items()}
        return value

    def run(*args: Any, **kwargs: Any) -> list[Any]:
        return [step(*part(args, i), **part(kwargs, i)) for i in range(count)]

    return run


def cuda_graph(step: Callable[..., Any], *, device: str | None = None, steps: int = 1) -> CudaGraph:
    """A function that computes what ``step`` does, as one graph over memory planned once.

    The first call with arguments of a kind runs eagerly: kernels are compiled, and what is made
    lazily is made. The second notes which memory lives how long, the third computes in memory
    planned by that, in one arena, and is recorded. From the fourth on the record is replayed: on
    ``cuda`` one launch of a CUDA graph, on ``emulated`` and ``cpu`` the same launches and the same
    primitives one by one. The bits are those of the eager step, on every device.

    step: any function of this library's operations, such as forward pass, loss, backward pass,
    clipping, optimizer, schedule, moving average. Its Python code does not run in a replay. What
    the library counts on the host goes on all the same: steps of optimizers, schedules and
    averages, positions of random numbers; rates and other options may be changed at any time.

    Arguments: tensors, NumPy or CuPy arrays (which reach ``step`` as tensors of ``device``, the
    default device if None), and lists, tuples and dicts of them: they are copied into memory that
    the graph reads. Numbers, strings and other objects are part of what was recorded. Returns what
    ``step`` returned: the same tensors at each replay, which overwrites them; copy what shall stay.

    Recorded anew are calls with other shapes, dtypes, numbers or objects, another precision,
    variant, fusion or ``no_grad``, after ``train()`` or ``eval()`` of a module, and where the
    ``data`` of a parameter was replaced. A graph that was recorded is kept for when its kind of
    call comes back.

    steps: how many steps one call makes, one after the other in one graph, which saves launches of
    small networks. Arrays then hold that many batches along a new first axis, and the results of
    all steps are returned in a list.

    What cannot be recorded runs eagerly, and a warning says why, once; ``.reason`` keeps it: values
    read on the host (``item()``, ``numpy()``, printing a tensor), numbers and host arrays that
    change from call to call without being arguments, arrays handed from one call to the next other
    than in place, arguments that require a gradient. Checks of values, such as of class labels, are
    made while recording only.

    ``.memory`` is the :class:`gpucnn.graph.MemoryPlan`, ``.launches`` the number of kernels in a
    replay, ``.replays`` how many there have been.

    Raises TypeError if step is no function, ValueError for steps < 1 and for arrays that do not
    hold as many batches, DeviceError for a device that is not at hand.
    """
    return CudaGraph(step, device, steps)
