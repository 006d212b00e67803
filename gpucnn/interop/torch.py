"""Weights in PyTorch's layouts; nothing here needs PyTorch.

What differs: convolutions are (OC, C/groups, KH, KW) there and (OC, KH, KW, C/groups) here, and a
linear layer behind a flattened image reads its features channel by channel there, pixel by pixel
here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from gpucnn import nn
from gpucnn.interop.trace import Trace, trace
from gpucnn.nn.conv import Convolution
from gpucnn.nn.module import Module
from gpucnn.ops.activation import Activation, Elementwise, Relu
from gpucnn.ops.dropout import Dropout
from gpucnn.ops.elementwise import Affine
from gpucnn.ops.linear import Linear
from gpucnn.tensor import Reshape, Tensor
from gpucnn.training.checkpoint import write_atomically

_PER_FEATURE = (Activation, Elementwise, Relu, Dropout, Affine)  # between flattening and a layer
_BATCHES = "num_batches_tracked"


class _Layout(NamedTuple):
    """Between an array here and there; shape: of the array there."""

    to_torch: Callable[[NDArray[Any]], NDArray[Any]]
    from_torch: Callable[[NDArray[Any]], NDArray[Any]]
    shape: tuple[int, ...]


def _moved(shape: tuple[int, ...], source: int, target: int) -> _Layout:
    """An axis is elsewhere."""
    there = list(shape)
    there.insert(target, there.pop(source))
    return _Layout(
        lambda a: np.moveaxis(a, source, target),
        lambda a: np.moveaxis(a, target, source),
        tuple(there),
    )


def _flattened(weight: tuple[int, ...], image: tuple[int, ...]) -> _Layout:
    """Columns of a linear layer (O, H·W·C) behind an image (H, W, C)."""
    rows, (*size, channels) = weight[0], image

    def to_torch(a: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(a.reshape(rows, *image), -1, 1).reshape(weight)

    def from_torch(a: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(a.reshape(rows, channels, *size), 1, -1).reshape(weight)

    return _Layout(to_torch, from_torch, weight)


def _images_before(traced: Trace) -> dict[int, tuple[int, ...]]:
    """id of a linear layer's weight -> the image (H, W, C) whose elements are its features."""
    found: dict[int, tuple[int, ...]] = {}
    for call in traced.calls:
        if not issubclass(call.function, Linear):
            continue
        before = traced.maker(call.inputs[0])
        while before is not None and issubclass(before.function, _PER_FEATURE):
            before = traced.maker(before.inputs[0])
        if before is None or not issubclass(before.function, Reshape):
            continue
        given, weight = before.inputs[0], call.inputs[1]
        assert given is not None
        assert weight is not None
        if given.ndim > 2 and weight.shape[1:] == (int(np.prod(given.shape[1:])),):
            found[id(weight)] = given.shape[1:]
    return found


def _layouts(model: Module, image_shape: tuple[int, ...] | None) -> dict[str, _Layout]:
    images: dict[int, tuple[int, ...]] = {}
    if image_shape is not None:
        images = _images_before(trace(model, image_shape))
    elif any(isinstance(module, nn.Flatten) for _, module in model.named_modules()):
        raise ValueError(
            "image_shape must be given, (H, W, C): the model flattens images, and the order of "
            "their elements depends on it"
        )
    layouts: dict[str, _Layout] = {}
    for path, module in model.named_modules():
        for name, tensor in vars(module).items():
            if isinstance(tensor, Tensor):
                key = f"{path}.{name}" if path else name
                layouts[key] = _layout(key, module, name, tensor, images)
    return layouts


def _layout(
    key: str, module: Module, name: str, tensor: Tensor, images: dict[int, tuple[int, ...]]
) -> _Layout:
    shape = tensor.shape
    if isinstance(module, Convolution) and name == "weight":
        return _moved(shape, -1, 1)
    if isinstance(module, nn.LayerNorm) and len(shape) > 1:
        return _moved(shape, -1, 0)
    if id(tensor) in images:
        return _flattened(shape, images[id(tensor)])
    if len(shape) > 1 and not isinstance(module, nn.Linear):
        raise ValueError(f"{key}: PyTorch has no layer like {type(module).__name__}")
    return _Layout(lambda a: a, lambda a: a, shape)


def state_dict_for_torch(
    model: Module, image_shape: tuple[int, ...] | None = None
) -> dict[str, NDArray[Any]]:
    """The parameters and buffers of a model as ``load_state_dict`` of the same network there takes.

    The names are those of :meth:`gpucnn.nn.Module.state_dict`, which are PyTorch's where the
    attributes are called alike; batch normalisations also get the ``num_batches_tracked`` that they
    have there.

    Args:
        model: on any device.
        image_shape: (H, W, C) of its images, needed where it flattens them.

    Returns:
        Copies as contiguous NumPy arrays; ``{n: torch.from_numpy(a) for n, a in ….items()}``.

    Raises:
        ValueError: image_shape is needed, or a layer has no counterpart there.
    """
    layouts = _layouts(model, image_shape)
    # A copy: a view with other strides would be written to files in the wrong order.
    state = {
        name: np.array(layouts[name].to_torch(value), order="C")
        for name, value in model.state_dict().items()
    }
    for name in _batch_counters(model):
        state.setdefault(name, np.zeros((), np.int64))
        state[name] = state[name].astype(np.int64)
    return state


def _batch_counters(model: Module) -> list[str]:
    return [
        f"{path}.{_BATCHES}" if path else _BATCHES
        for path, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_mean is not None
    ]


def load_torch_state_dict(
    model: Module, state: Mapping[str, Any], image_shape: tuple[int, ...] | None = None
) -> None:
    """Copy what ``state_dict()`` of the same network in PyTorch gives into a model.

    Args:
        model: on any device; nothing of it is changed where the state does not fit.
        state: PyTorch tensors or NumPy arrays by name, as of :func:`state_dict_for_torch`.
        image_shape: as there.

    Raises:
        ValueError: a name is missing or unknown, a shape differs, image_shape is needed, or a
            layer has no counterpart there.
    """
    layouts = _layouts(model, image_shape)
    given = {name: _array(value) for name, value in state.items()}
    for name in _batch_counters(model):
        if name not in layouts:
            given.pop(name, None)
    for name, value in given.items():
        if name in layouts and value.shape != layouts[name].shape:
            raise ValueError(
                f"state[{name!r}] must have shape {layouts[name].shape}, got {value.shape}"
            )
    model.load_state_dict(
        {
            name: layouts[name].from_torch(value) if name in layouts else value
            for name, value in given.items()
        }
    )


def _array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        value = value.numpy()
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def save_for_torch(
    model: Module, path: str | os.PathLike[str], image_shape: tuple[int, ...] | None = None
) -> None:
    """Write :func:`state_dict_for_torch` as a safetensors file.

    PyTorch reads it with ``model.load_state_dict(safetensors.torch.load_file(path))``.

    Raises:
        ValueError: as :func:`state_dict_for_torch`.
        OSError: the file cannot be written.
    """
    write_atomically(path, safetensors.numpy.save(state_dict_for_torch(model, image_shape)))
