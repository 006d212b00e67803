"""Tensor, Function and the tape.

A :class:`Tensor` wraps one array of its device. A :class:`Function` that computes a tensor from
others is recorded on it; ``loss.backward()`` walks the records back, adds gradients where a tensor
was used more than once, and frees each record as it passes. No second derivatives.
"""

from __future__ import annotations

import functools
import inspect
import operator
import threading
from collections.abc import Sequence
from types import EllipsisType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import recording
from gpucnn.backward import BackwardPass, added, walk_back
from gpucnn.bfloat16 import BFLOAT16, is_bfloat16, is_float, narrowed, widened
from gpucnn.device import (
    Array,
    DeviceError,
    address,
    default_device,
    offers,
    require,
    to_device,
    to_host,
)
from gpucnn.flat_gradients import GradientHome, waiting
from gpucnn.operators import Operators
from gpucnn.primitive import Primitive
from gpucnn.protocols import Protocols
from gpucnn.storage import prepared

_FLOATS = (np.float32, np.float64)
_INTEGERS = (np.int32, np.uint8, np.bool_)


class _Mode(threading.local):
    recording = True


_mode = _Mode()


class no_grad:
    """Nothing is recorded inside ``with no_grad():``, so nothing is kept for a backward pass."""

    def __enter__(self) -> None:
        self._previous = _mode.recording
        _mode.recording = False

    def __exit__(self, *_: object) -> None:
        _mode.recording = self._previous


def _as_array(data: Any, device: str) -> Array:
    """``data`` as a C-contiguous array of ``device`` with a dtype that gpucnn computes in."""
    return to_device(converted(data, device), device)


def converted(data: Any, device: str) -> Array:
    """``data`` with a dtype that gpucnn computes in on ``device``, where it lies."""
    typed = isinstance(getattr(data, "dtype", None), np.dtype)
    array = data if typed else np.asarray(data)
    if array.dtype.kind == "f":
        fits = array.dtype in _FLOATS and (array.dtype == np.float32 or device == "cpu")
        if not fits or not typed:
            array = array.astype(np.float32)
    elif array.dtype.kind in "iub":
        if array.dtype not in _INTEGERS:
            low, high = np.iinfo(np.int32).min, np.iinfo(np.int32).max
            if array.size and not (low <= int(array.min()) and int(array.max()) <= high):
                raise ValueError(f"data: integers must fit int32, got a value outside {low}…{high}")
            array = array.astype(np.int32)
    else:
        raise TypeError(f"data must be numbers, got an array of dtype {array.dtype}")
    return array


_new = object.__new__


class Tensor(Operators, Protocols):
    """An array on a device, with the record of how it was computed.

    data: array-like of numbers. Floats become float32 (float64 is kept on ``cpu``), integers int32.
    NumPy and CuPy arrays that already fit are wrapped, not copied.
    Raises TypeError for data that is not numeric, :class:`DeviceError` for a device not at hand.
    """

    device: str
    data: Array
    requires_grad: bool = False
    _grad: Tensor | None = None
    _creator: Function | None = None
    _output_index: int = 0
    _gradient_home: GradientHome | None = None  # where an optimizer wants the gradient
    # Of each channel, left behind by the kernel that made the data: moments, or what they are
    # joined to.
    _moments: Any = None

    def __init__(
        self, data: Any, *, requires_grad: bool = False, device: str | None = None
    ) -> None:
        stored = isinstance(data, Tensor) and is_bfloat16(data.data)
        if isinstance(data, Tensor):
            device = device or data.device
            data = data.data
        self.device = default_device() if device is None else require(device)
        self.data = (to_device if stored else _as_array)(data, self.device)
        if requires_grad and not is_float(self.data):
            raise TypeError(f"requires_grad needs float data, got {self.data.dtype}")
        self.requires_grad = requires_grad

    @classmethod
    def _wrap(cls, array: Array, device: str) -> Tensor:
        tensor = _new(Tensor)
        tensor.device = device
        tensor.data = array
        return tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.data.shape)

    @property
    def ndim(self) -> int:
        return int(self.data.ndim)

    @property
    def size(self) -> int:
        return int(self.data.size)

    @property
    def dtype(self) -> Any:
        """NumPy's dtype, or ``gpucnn.bfloat16``, which NumPy lacks."""
        return BFLOAT16 if is_bfloat16(self.data) else self.data.dtype

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a 0-d Tensor has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        values = np.array2string(self.numpy(), separator=", ", prefix="Tensor(")
        return f"Tensor({values}, device='{self.device}'{grad})"

    def numpy(self) -> NDArray[Any]:
        """The values as a NumPy array; shares memory on ``cpu`` and ``emulated``.

        A tensor in bfloat16 is widened to float32.
        """
        recording.reading("the values of a tensor")
        array = to_host(self.data)
        return widened(array) if is_bfloat16(array) else cast("NDArray[Any]", array)

    def item(self) -> float | int:
        """The one value of a tensor with one element; waits for the GPU."""
        if self.size != 1:
            raise ValueError(f"item() needs one element, the tensor has shape {self.shape}")
        return cast("float | int", self.numpy().reshape(()).item())

    def detach(self) -> Tensor:
        """The same array without its record."""
        return Tensor._wrap(self.data, self.device)

    def to(self, device: str) -> Tensor:
        """A detached copy on ``device`` (the same array if it is there already)."""
        array = (to_device if is_bfloat16(self.data) else _as_array)(self.data, require(device))
        if device != self.device and array is self.data:
            array = array.copy()
        return Tensor._wrap(array, device)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements in another shape, sizes or one tuple of them; one size may be -1."""
        given = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        try:
            sizes = tuple(operator.index(n) for n in given)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"shape must be integers, got {given!r}") from None
        return cast("Tensor", Reshape.apply(self, shape=sizes))

    def backward(self, grad: Any = None) -> None:
        """Compute ``.grad`` of every tensor with ``requires_grad`` that this one depends on.

        grad: the gradient of this tensor, array-like of its shape; 1 for a one-element tensor.
        Gradients add to those already there. The record is freed: a second call needs a new
        forward pass.
        """
        if self._creator is None and not self.requires_grad:
            raise RuntimeError("backward() needs a tensor made from one with requires_grad=True")
        one = grad is None
        if one:
            if self.size != 1:
                raise ValueError(f"backward() of shape {self.shape} needs grad, an array like it")
            grad = np.empty(self.shape, np.float32 if is_bfloat16(self.data) else self.dtype)
            grad.fill(1)
        dtype = self.data.dtype
        if isinstance(grad, Tensor) and grad.device == self.device and grad.data.dtype == dtype:
            array = grad.data
        else:
            array = _as_array(grad.numpy() if isinstance(grad, Tensor) else grad, self.device)
        if array.shape != self.shape:
            raise ValueError(f"grad must have shape {self.shape}, got {array.shape}")
        if array.dtype != dtype:
            if is_bfloat16(self.data):
                array = to_device(narrowed(to_host(array).astype(np.float32)), self.device)
            array = array.astype(dtype, copy=False)
        walk_back(self, array, one)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward passes have brought, None before; may be set.

        What is set is copied to where an optimizer of this tensor reads it. Raises ValueError for
        another shape or dtype than the tensor's.
        """
        if self._gradient_home is not None and self._grad is not None:
            self._gradient_home.settle()
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if recording.active is not None:
            recording.grading(self)
        home = self._gradient_home
        if home is not None:
            home.forget()
            if value is not None and value.data is not home.array:
                if value.shape != self.shape or value.data.dtype != home.array.dtype:
                    raise ValueError(
                        f"grad must have shape {self.shape} and dtype {self.dtype}, got "
                        f"{value.shape} and {value.dtype}"
                    )
                if value.size and address(value.data) != address(home.array):
                    recording.assign(home.array, value.data)
                    value = Tensor._wrap(home.array, self.device)
        self._grad = value

    def _accumulate(self, grad: Array) -> None:
        if recording.active is not None:
            recording.grading(self, self._grad is None)
        home = self._gradient_home
        if self._grad is not None:
            if home is not None:
                home.settle()
            grad = added(self.device, self._grad.data, grad)
        if home is not None:
            if grad is not home.array and grad.size and address(grad) != address(home.array):
                recording.assign(home.array, grad)
            grad = home.array
        self._grad = Tensor._wrap(grad, self.device)


class Function:
    """One operation of the tape: ``forward`` on bare arrays, ``backward`` on their gradients.

    ``forward`` keeps what ``backward`` needs on ``self``; ``self.needs[i]`` says whether input
    ``i`` needs a gradient, ``self.device`` where to compute. ``backward`` gets one gradient per
    output (None for an output nobody used) and returns one per input (None where none is needed).
    """

    device: str
    needs: tuple[bool, ...]
    recording: bool
    batched: tuple[int, ...] = ()  # inputs whose image n alone makes image n of every output
    # The inputs that may be in bfloat16, all of them or none; `...` for every one. None: no input
    # may, see gpucnn.storage.
    activations: tuple[int, ...] | EllipsisType | None = None
    narrows = False  # whether the precision "bf16" narrows them
    _inputs: tuple[Tensor | None, ...]
    _output_count: int
    _back: BackwardPass  # during a backward pass

    def forward(self, *arrays: Any, **options: Any) -> Any:
        raise NotImplementedError

    def backward(self, *grads: Any) -> tuple[Any, ...]:
        raise NotImplementedError

    def run(self, primitive: Primitive, *args: Any) -> Any:
        """Compute a primitive on this function's device."""
        return primitive.on(self.device)(*args)

    def last_maker(self, index: int) -> Function | None:
        """In a backward pass: what made input ``index``, if no gradient but this one's is to come
        for it; what came before is for :meth:`take_gradient`.
        """
        t = self._inputs[index]
        if t is None or t._creator is None or t._creator._output_count != 1:
            return None
        return t._creator if self._back.uses[t._creator] == 1 else None

    def only_maker(self, index: int) -> Function | None:
        """:meth:`last_maker`, if nothing came before."""
        maker = self.last_maker(index)
        grads = None if maker is None else self._back.pending.get(maker)
        return None if grads is not None and grads[0] is not None else maker

    def take_gradient(self, index: int) -> Array | None:
        """In a backward pass: what has come for input ``index`` so far, to be added to by this."""
        t = cast("Tensor", self._inputs[index])
        grads = self._back.pending.get(cast("Function", t._creator))
        if grads is None:
            return None
        taken, grads[t._output_index] = grads[t._output_index], None
        return taken

    def run_for(self, inputs: tuple[int, ...], primitive: Primitive, *args: Any) -> Any:
        """:meth:`run` for the gradients of these inputs, the first results of the primitive.

        Kernels write them where an optimizer wants them, unless something is there to be added to.
        """
        homes = None if self.device == "cpu" else self._gradient_homes(inputs)
        if homes is None:
            return primitive.on(self.device)(*args)
        offers.arrays = _arrays_of_homes(homes)
        waiting.home, waiting.left = homes[0] if len(homes) == 1 else None, None
        try:
            return primitive.on(self.device)(*args)
        finally:
            offers.arrays = []
            waiting.home = waiting.left = None

    def _gradient_homes(self, inputs: tuple[int, ...]) -> list[GradientHome | None] | None:
        """Where an optimizer wants these gradients, None where it has no such place for any."""
        homes: list[GradientHome | None] = []
        for index in inputs:
            t = self._inputs[index]
            home = None if t is None or t._grad is not None else t._gradient_home
            if home is not None and self._inputs.count(t) > 1:  # its gradients are added up
                home = None
            homes.append(home)
        return homes if any(home is not None for home in homes) else None

    def homes(self, *inputs: int) -> list[Array | None]:
        """Where an optimizer wants the gradients of these inputs, for a kernel to write them."""
        return _arrays_of_homes(self._gradient_homes(inputs) or [])

    def is_one(self, grad: Array) -> bool:
        """In a backward pass: whether this gradient is known to be 1 on the host."""
        return grad is self._back.ones

    def delivers(self, index: int) -> bool:
        """In a backward pass: whether the gradient of input ``index`` may come before its turn."""
        t = self._inputs[index]
        return self.needs[index] and t is not None and t._creator is None

    def deliver(self, index: int, grad: Array) -> None:
        """In a backward pass: bring the gradient of input ``index`` now, if that may be.

        ``backward`` returns None for it then.
        """
        if self.delivers(index):
            cast("Tensor", self._inputs[index])._accumulate(grad)

    @classmethod
    def apply(cls, *inputs: Tensor | None, **options: Any) -> Any:
        """Run forward on tensors (None passes through) and record it where a gradient is needed."""
        if recording.active is not None:
            recording.using(inputs)
        if BFLOAT16.in_use:
            inputs = prepared(cls, inputs)
        device, one_device, absent, strange = "", True, False, False
        arrays: list[Array | None] = []
        needs: list[bool] = []
        for t in inputs:
            if isinstance(t, Tensor):
                arrays.append(t.data)
                needs.append(t.requires_grad)
                if t.device != device:
                    one_device = not device
                    device = t.device
            else:
                absent, strange = True, strange or t is not None
                arrays.append(None)
                needs.append(False)
        if strange or (absent and any(arrays[i] is None for i in _required(cls.forward))):
            _check_inputs(cls, inputs)
        first = arrays[0]
        if first is not None and not first.size and cls.batched and first.shape[:1] == (0,):
            from gpucnn.empty_batch import of_no_images

            return of_no_images(cls, inputs, options, cls.batched)
        if not (one_device and device):
            common_device(inputs)
        function = cls()
        function.device = device
        function.needs = tuple(needs)
        function.recording = taped = True in needs and _mode.recording
        outputs = function.forward(*arrays, **options)
        several = isinstance(outputs, tuple)
        tensors = []
        for index, array in enumerate(outputs if several else (outputs,)):
            tensor = _new(Tensor)
            tensor.device = device
            tensor.data = array
            if taped and (array.dtype.kind == "f" or is_bfloat16(array)):
                tensor.requires_grad = True
                tensor._creator, tensor._output_index = function, index
            tensors.append(tensor)
        if taped:
            function._inputs, function._output_count = inputs, len(tensors)
        return tuple(tensors) if several else tensors[0]


def _arrays_of_homes(homes: Sequence[GradientHome | None]) -> list[Array | None]:
    return [None if home is None else home.array for home in homes]


def is_recording_gradients() -> bool:
    """Whether functions are put on the tape, which they are not inside :class:`no_grad`."""
    return _mode.recording


def check_tensor(name: str, value: Any) -> None:
    """Raise TypeError naming the argument unless it is a Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a Tensor, got {type(value).__name__}; gpucnn.Tensor(...) makes one"
        )


@functools.cache
def _arrays_of(forward: Any) -> tuple[tuple[str, bool], ...]:
    """(name, whether None may stand for it) of each array that a ``forward`` takes."""
    found = list(inspect.signature(forward).parameters.values())[1:]
    arrays = (p for p in found if p.kind is p.POSITIONAL_OR_KEYWORD)
    return tuple((p.name, p.annotation != "Array") for p in arrays)


@functools.cache
def _required(forward: Any) -> tuple[int, ...]:
    """Which inputs of a ``forward`` None may not stand for."""
    return tuple(i for i, (_, optional) in enumerate(_arrays_of(forward)) if not optional)


def _check_inputs(function: type[Function], inputs: Sequence[Any]) -> None:
    for (name, optional), value in zip(_arrays_of(function.forward), inputs, strict=False):
        if value is not None or not optional:
            check_tensor(name, value)


def common_device(tensors: Sequence[Tensor | None]) -> str:
    """The one device of the tensors; raises :class:`DeviceError` if there are two."""
    devices = {t.device for t in tensors if t is not None}
    if len(devices) != 1:
        raise DeviceError(
            f"tensors of one operation must share a device, got {' and '.join(sorted(devices))}; "
            "move one with .to(device)"
        )
    return devices.pop()


class Reshape(Function):
    """y = x with another shape; no copy."""

    activations = (0,)

    def forward(self, x: Array, *, shape: tuple[int, ...]) -> Array:
        self.shape = x.shape
        try:
            return x.reshape(shape)
        except ValueError:
            raise ValueError(f"shape: cannot reshape {x.shape} to {shape}") from None

    def backward(self, dy: Array) -> tuple[Array]:
        return (dy.reshape(self.shape),)
