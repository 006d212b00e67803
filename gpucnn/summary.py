"""What each layer of a model makes, costs and sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.nn import (
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    Dropout,
    Dropout2d,
    Flatten,
    Linear,
    LocalResponseNorm,
    MaxPool2d,
    Module,
    ReLU,
    Softmax,
)
from gpucnn.ops.geometry import pair, resolve_padding
from gpucnn.tensor import Tensor, no_grad

_POINTWISE = (BatchNorm1d, BatchNorm2d, Dropout, Dropout2d, ReLU, Softmax)


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer, for one image.

    Attributes:
        name: as in ``named_modules()``.
        layer: its repr.
        output_shape: without the batch dimension.
        parameters: numbers that are trained; 0 where they were counted at an earlier call.
        multiply_adds: of convolutions and linear layers, padding included; 0 for other layers.
        receptive_field: (rows, columns) of the input that one output can see, the largest over the
            outputs; None behind a layer whose reach is not known, or where layers are not a chain.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    receptive_field: tuple[int, int] | None


@dataclass(frozen=True)
class _Axis:
    """For each output position along one axis, the first and the last input position it sees."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @property
    def reach(self) -> int:
        return int((self.high - self.low).max()) + 1

    def windows(self, n: int, kernel: int, stride: int, before: int, dilation: int) -> _Axis:
        """Behind ``n`` windows over this axis, clipped to it."""
        first = np.arange(n) * stride - before
        last = len(self.low) - 1
        return _Axis(
            self.low[np.clip(first, 0, last)],
            self.high[np.clip(first + dilation * (kernel - 1), 0, last)],
        )

    def merged(self) -> _Axis:
        """One position that sees what all of these see."""
        return _Axis(self.low.min(keepdims=True), self.high.max(keepdims=True))


_Field = tuple[_Axis, _Axis]


def _behind(module: Module, field: _Field, x: Tensor, y: Tensor) -> _Field | None:
    """The receptive fields behind a layer, from those before it.

    A window at o starts at ``o * stride - padding`` and spans ``dilation * (kernel - 1) + 1``.
    """
    if isinstance(module, Conv2d | MaxPool2d):
        kernel = pair("kernel_size", module.kernel_size)
        stride = pair("stride", module.stride)
        dilation = pair("dilation", module.dilation)
        size = (x.shape[1], x.shape[2])
        padding = resolve_padding(module.padding, size, kernel, stride, dilation)
        high, wide = (
            field[axis].windows(
                y.shape[1 + axis], kernel[axis], stride[axis], padding[axis][0], dilation[axis]
            )
            for axis in (0, 1)
        )
        return high, wide
    if isinstance(module, LocalResponseNorm):
        if module.region == "across":
            return field
        high, wide = (
            field[axis].windows(x.shape[1 + axis], module.size, 1, module.size // 2, 1)
            for axis in (0, 1)
        )
        return high, wide
    if isinstance(module, Linear):
        return field[0].merged(), field[1].merged()
    return field if isinstance(module, (*_POINTWISE, Flatten)) else None


def _multiply_adds(module: Module, y: Tensor) -> int:
    if isinstance(module, Conv2d):
        # weight (OC, KH, KW, C/groups): each output is one dot product of the last three.
        return math.prod(y.shape[1:]) * math.prod(module.weight.shape[1:])
    if isinstance(module, Linear):
        return math.prod(y.shape[1:]) * module.weight.shape[1]
    return 0


def _leaves(model: Module) -> dict[str, Module]:
    modules = dict(model.named_modules())
    return {
        name: module
        for name, module in modules.items()
        if not any(other is not module for _, other in module.named_modules())
    }


def summarize(model: Module, input_shape: tuple[int, int, int]) -> list[LayerSummary]:
    """Run one blank image through a model and describe each layer it calls, in order.

    Args:
        model: any module that takes images; its mode is restored afterwards.
        input_shape: (H, W, C).

    Raises:
        ValueError: the model does not take images of that shape.
    """
    rows: list[LayerSummary] = []
    counted: set[int] = set()
    leaves = _leaves(model)
    sight = tuple(_Axis(np.arange(n), np.arange(n)) for n in input_shape[:2])
    blank = Tensor(np.zeros((1, *input_shape), np.float32))
    # What each tensor's elements see; the tensor is kept so that its id is not used again.
    seen: dict[int, tuple[Tensor, _Field | None]] = {id(blank): (blank, (sight[0], sight[1]))}

    def watch(name: str, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        def watched(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            output = forward(x, *args, **kwargs)
            # A pool that also returns indices: the indices are no further layer's image.
            y: Tensor = output[0] if isinstance(output, tuple) else output
            before = seen.get(id(x), (x, None))[1]
            field = None if before is None else _behind(module, before, x, y)
            seen[id(y)] = y, field
            fresh = [p for p in module.parameters() if id(p) not in counted]
            counted.update(map(id, fresh))
            rows.append(
                LayerSummary(
                    name=name,
                    layer=repr(module),
                    output_shape=tuple(y.shape[1:]),
                    parameters=sum(p.size for p in fresh),
                    multiply_adds=_multiply_adds(module, y),
                    receptive_field=None if field is None else (field[0].reach, field[1].reach),
                )
            )
            return output

        return watched

    training = model.training
    model.eval()
    try:
        for name, module in leaves.items():
            vars(module)["forward"] = watch(name, module, module.forward)
        with no_grad():
            model(blank)
    finally:
        for module in leaves.values():
            vars(module).pop("forward", None)
        model.train(training)
    return rows
