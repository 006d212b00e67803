"""How NumPy, CuPy and others take a tensor, and how one is made from their arrays, without copies.

A tensor in bfloat16 is handed on by ``.numpy()`` only, which widens it: these libraries would see
16-bit integers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.bfloat16 import is_bfloat16
from gpucnn.device import Array, default_device, require

if TYPE_CHECKING:
    from gpucnn.tensor import Tensor

_CUDA = 2  # of DLPack's devices


def _no_bfloat16(array: Array, error: type[Exception]) -> None:
    if is_bfloat16(array):
        raise error("a tensor in bfloat16 is handed on by .numpy(), which widens it")


def _no_outputs_in_bfloat16(out: Any) -> None:
    """What NumPy would write is a widened copy."""
    for target in out if isinstance(out, tuple) else (out,):
        if isinstance(target, Protocols):
            _no_bfloat16(target.data, TypeError)


class Protocols:
    """What :class:`gpucnn.Tensor` inherits. Nothing here is recorded for a backward pass."""

    device: str
    data: Array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """What ``numpy.asarray`` takes; a GPU's memory is copied by ``.numpy()`` only."""
        if self.device == "cuda":
            raise TypeError("a Tensor on 'cuda' is no NumPy array; .numpy() copies it")
        array = cast("Tensor", self).numpy()
        if copy is False and (is_bfloat16(self.data) or array.dtype != (dtype or array.dtype)):
            raise ValueError(f"a Tensor of {cast('Tensor', self).dtype} is no such array uncopied")
        return np.array(array, dtype, copy=copy) if copy else np.asarray(array, dtype)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """NumPy's functions, such as ``numpy.stack``; of tensors on a GPU CuPy's. -> arrays"""
        if function is np.copyto:
            _no_bfloat16(getattr(args[0], "data", args[0]), TypeError)
        _no_outputs_in_bfloat16(kwargs.get("out"))
        return function(*_arrays(args), **_arrays(kwargs))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """NumPy's elementwise functions: arrays; but a number of NumPy's with a tensor in ``+``,
        ``-`` or ``*`` is what the operator makes, a tensor.
        """
        _no_outputs_in_bfloat16(options.get("out"))
        if method == "at" and isinstance(inputs[0], Protocols):
            _no_bfloat16(inputs[0].data, TypeError)
        operator = _OPERATORS.get(ufunc.__name__)
        if operator and method == "__call__" and len(inputs) == 2 and not options:
            number, tensor = inputs
            if isinstance(number, np.generic) and tensor is self:
                return getattr(tensor, operator)(number)
        return getattr(ufunc, method)(*_arrays(inputs), **_arrays(options))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """What ``cupy.asarray`` and Numba take; on ``cuda`` only."""
        if self.device != "cuda":
            raise AttributeError(f"a Tensor on {self.device!r} has no __cuda_array_interface__")
        _no_bfloat16(self.data, AttributeError)
        return cast("dict[str, Any]", self.data.__cuda_array_interface__)

    def __dlpack__(self, **options: Any) -> Any:
        """What ``from_dlpack`` of NumPy, CuPy, PyTorch and JAX takes: the same memory."""
        _no_bfloat16(self.data, BufferError)
        given = {name: value for name, value in options.items() if value is not None}
        return self.data.__dlpack__(**given)

    def __dlpack_device__(self) -> tuple[int, int]:
        """(kind, number) of the device, in DLPack's terms."""
        return cast("tuple[int, int]", self.data.__dlpack_device__())


_OPERATORS = {"add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__"}


def _arrays(value: Any) -> Any:
    """The value with arrays in the place of tensors, also inside tuples, lists and dicts."""
    if isinstance(value, Protocols):
        if value.device == "cuda":
            _no_bfloat16(value.data, TypeError)
            return value.data
        return cast("Tensor", value).numpy()
    if isinstance(value, tuple | list):
        return type(value)(map(_arrays, value))
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    return value


@contextlib.contextmanager
def _as_type_error() -> Iterator[None]:
    try:
        yield
    except (BufferError, AttributeError, RuntimeError) as error:
        raise TypeError(f"data must be an array that DLPack takes ({error})") from None


def from_dlpack(data: Any, *, requires_grad: bool = False) -> Tensor:
    """A tensor on the memory of another library's array, which it shares.

    data: anything with ``__dlpack__``: an array of NumPy, CuPy, PyTorch or JAX, on the host or on
    a GPU. float32 (on the host also float64), int32, uint8 and bool in C order are taken without a
    copy, other arrays are converted as ``Tensor(data)`` does. The tensor is on ``cuda``; from the
    host on ``emulated`` if that is the default device, else on ``cpu``.

    Raises TypeError for data that is no such array or not numeric.
    """
    from gpucnn.tensor import Tensor

    with _as_type_error():
        kind, _ = data.__dlpack_device__()
        if kind == _CUDA:
            require("cuda")
            import cupy

            array, device = cupy.from_dlpack(data), "cuda"
        else:
            array = np.from_dlpack(data)
            device = default_device() if default_device() != "cuda" else "cpu"
    return Tensor(array, requires_grad=requires_grad, device=device)
