"""Which input cells an output cell of a model can see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.nn import (
    BatchNorm1d,
    BatchNorm2d,
    Dropout,
    Dropout2d,
    Flatten,
    Linear,
    LocalResponseNorm,
    Module,
    activation,
)
from gpucnn.nn.adaptive_pooling import AdaptiveAvgPool, AdaptiveMaxPool, GlobalPool
from gpucnn.nn.module import inference
from gpucnn.ops.geometry import padding_of_axes, resolve_padding, sizes
from gpucnn.tensor import Reshape, Tensor

_ACTIVATIONS = tuple(
    value for value in vars(activation).values() if isinstance(value, type) and value is not Module
)
_POINTWISE = (BatchNorm1d, BatchNorm2d, Dropout, Dropout2d, *_ACTIVATIONS)


@dataclass(frozen=True)
class Reach:
    """Along one axis, the first and the last input cell that each output cell sees.

    low > high where it sees none. Of outputs o apart by one, the centres of what they would see of
    an endless input lie at ``offset + jump * o``; None where they are not evenly spaced.
    """

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    jump: float | None
    offset: float | None

    @classmethod
    def of_input(cls, n: int) -> Reach:
        return cls(np.arange(n), np.arange(n), 1.0, 0.0)

    @property
    def size(self) -> int:
        """Of the output cell that sees most."""
        return max(0, int((self.high - self.low).max()) + 1)

    def _gather(
        self,
        n: int,
        taps: list[NDArray[np.int64]],
        valid: list[NDArray[np.bool_]],
        jump: float,
        offset: float,
    ) -> Reach:
        """Behind ``n`` cells that see, of this axis, taps[t][o] where valid[t][o]."""
        last = len(self.low) - 1
        low = np.full(n, np.iinfo(np.int64).max // 2)
        high = np.full(n, -1)
        for positions, allowed in zip(taps, valid, strict=True):
            at = np.clip(positions, 0, last)
            seen = allowed & (positions == at) & (self.low[at] <= self.high[at])
            low = np.where(seen, np.minimum(low, self.low[at]), low)
            high = np.where(seen, np.maximum(high, self.high[at]), high)
        if self.jump is None or self.offset is None:
            return Reach(low, high, None, None)
        return Reach(low, high, jump * self.jump, self.offset + offset * self.jump)

    def windows(self, n: int, kernel: int, stride: int, before: int, dilation: int) -> Reach:
        """Behind ``n`` windows over this axis: o sees ``o * stride - before + k * dilation``."""
        taps = [np.arange(n) * stride - before + k * dilation for k in range(kernel)]
        every = [np.ones(n, np.bool_)] * kernel
        return self._gather(n, taps, every, stride, dilation * (kernel - 1) / 2 - before)

    def spread(self, n: int, kernel: int, stride: int, before: int, dilation: int) -> Reach:
        """Behind the adjoint of windows: o sees i if a window at i covers o."""
        shifted = [np.arange(n) + before - k * dilation for k in range(kernel)]
        hits = [s % stride == 0 for s in shifted]
        offset = (before - dilation * (kernel - 1) / 2) / stride
        return self._gather(n, [s // stride for s in shifted], hits, 1 / stride, offset)

    def adaptive(self, n: int) -> Reach:
        """Behind ``n`` windows that divide this axis, as in F.adaptive_avg_pool2d."""
        size = len(self.low)
        start, stop = np.arange(n) * size // n, -(-np.arange(1, n + 1) * size // n)
        taps = [start + k for k in range(int((stop - start).max()))]
        behind = self._gather(n, taps, [t < stop for t in taps], size / n, (size / n - 1) / 2)
        return behind if size % n == 0 else Reach(behind.low, behind.high, None, None)

    def merged(self) -> Reach:
        """One cell that sees what all of these see."""
        return Reach(self.low.min(keepdims=True), self.high.max(keepdims=True), None, None)

    def joined(self, other: Reach) -> Reach:
        """Cells that see what both of two see."""
        same = (self.jump, self.offset) == (other.jump, other.offset)
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Reach(low, high, *((self.jump, self.offset) if same else (None, None)))


Field = tuple[Reach, ...]


@dataclass(frozen=True)
class ReceptiveField:
    """What the outputs of a model see of its input; per axis (rows and columns of an image).

    Attributes:
        size: input cells from the first to the last that one output sees, of the output that sees
            most; cells in the padding are none.
        jump: input cells between the centres of what neighbouring outputs see: the product of the
            strides, over those of transposed layers. None where it is no one number.
        offset: input position of the centre of what the first output would see of an endless input,
            0 for the centre of the first cell; None as above.
        axes: what each output sees, per axis.
    """

    size: tuple[int, ...]
    jump: tuple[float | None, ...]
    offset: tuple[float | None, ...]
    axes: Field

    def cells(self, *output: int) -> tuple[slice, ...]:
        """The box of input cells that one output, (row, column), sees, as slices.

        Empty slices where it sees none. Raises ValueError for another number of positions,
        IndexError for one outside the output.
        """
        if len(output) != len(self.axes):
            raise ValueError(f"output must be {len(self.axes)} positions, got {output}")
        ends = [(int(a.low[o]), int(a.high[o]) + 1) for a, o in zip(self.axes, output, strict=True)]
        return tuple(slice(low, high) if low < high else slice(0, 0) for low, high in ends)


def _behind(module: Module, field: Field, x: Tensor, y: Tensor) -> Field | None:
    """The reach behind a layer, from that before it."""
    if isinstance(module, Linear):
        return tuple(axis.merged() for axis in field)
    if isinstance(module, GlobalPool):
        return tuple(axis.merged() for axis in field)
    if isinstance(module, AdaptiveAvgPool | AdaptiveMaxPool):
        return tuple(axis.adaptive(n) for axis, n in zip(field, y.shape[1:-1], strict=True))
    if isinstance(module, LocalResponseNorm) and module.region == "within":
        n = module.size
        return tuple(axis.windows(len(axis.low), n, 1, n // 2, 1) for axis in field)
    if isinstance(module, (*_POINTWISE, Flatten, LocalResponseNorm)):
        return field
    dims = len(field)
    if not hasattr(module, "kernel_size") or not x.ndim == y.ndim == dims + 2:
        return None
    kernel, stride = (sizes(n, getattr(module, n), dims) for n in ("kernel_size", "stride"))
    dilation = sizes("dilation", getattr(module, "dilation", 1), dims)
    back = getattr(module, "transposed", False) or "Unpool" in type(module).__name__
    tied = getattr(module, "_tied", None)
    large = (y if back else x).shape[1:-1]
    padding = (
        padding_of_axes(tied.padding, dims)
        if tied is not None
        else resolve_padding(getattr(module, "padding", 0), large, kernel, stride, dilation)
    )
    return tuple(
        (axis.spread if back else axis.windows)(n, k, s, before, d)
        for axis, n, k, s, (before, _), d in zip(
            field, y.shape[1:-1], kernel, stride, padding, dilation, strict=True
        )
    )


def _behind_windows(function: Any, field: Field, back: bool) -> Field:
    """The reach behind F.max_pool2d, or a max-unpooling, without a layer around it."""
    s = function.geometry
    if back:
        depth = (s.D, s.KD, s.SD, s.PF, 1)
        axes = (depth, (s.H, s.KH, s.SH, s.PT, 1), (s.W, s.KW, s.SW, s.PL, 1))[-s.dims :]
        return tuple(axis.spread(*sizes) for axis, sizes in zip(field, axes, strict=True))
    rows, columns = (s.OH, s.KH, s.SH, s.PT, s.DH), (s.OW, s.KW, s.SW, s.PL, s.DW)
    return tuple(axis.windows(*sizes) for axis, sizes in zip(field, (rows, columns), strict=True))


def _leaves(model: Module) -> dict[str, Module]:
    first = {id(module): name for name, module in reversed([*model.named_modules()])}
    return {
        name: module
        for name, module in model.named_modules()
        if first[id(module)] == name
        and not any(other is not module for _, other in module.named_modules())
    }


class Trace:
    """What the tensors of one forward pass see, and the pass itself, layer by layer."""

    def __init__(self, input_shape: tuple[int, ...], batch_size: int = 1) -> None:
        self.blank = Tensor(np.zeros((batch_size, *input_shape), np.float32), requires_grad=True)
        field = tuple(Reach.of_input(n) for n in input_shape[:-1])
        # The tensors are kept so that their ids are not used again.
        self._seen: dict[int, tuple[Tensor, Field | None]] = {id(self.blank): (self.blank, field)}
        self._computed: dict[int, tuple[Tensor, bool]] = {}

    def field(self, y: Tensor) -> Field | None:
        """What a tensor sees: the output of a layer, of elementwise operations, a reshaped one."""
        if id(y) not in self._seen:
            self._seen[id(y)] = y, self._from_creator(y)
        return self._seen[id(y)][1]

    def _sees(self, t: Tensor) -> bool:
        """Whether a tensor was computed from the input."""
        if id(t) in self._seen:
            return True
        if t._creator is None:
            return False
        if id(t) not in self._computed:
            inputs = t._creator._inputs
            self._computed[id(t)] = t, any(self._sees(u) for u in inputs if u is not None)
        return self._computed[id(t)][1]

    def _from_creator(self, y: Tensor) -> Field | None:
        function = y._creator
        if function is None:
            return None
        # Constants and parameters see nothing of the input.
        inputs = [t for t in function._inputs if t is not None and self._sees(t)]
        fields = [self.field(t) for t in inputs]
        if isinstance(function, Reshape):
            return fields[0]
        family = type(function).__module__.rsplit(".", 1)[-1]
        if family in ("pool2d", "unpool2d"):
            return fields[0] and _behind_windows(function, fields[0], family == "unpool2d")
        if family not in ("activation", "concatenate", "elementwise"):
            return None
        joined: Field | None = None
        for t, field in zip(inputs, fields, strict=True):
            if field is None or t.shape[:-1] != y.shape[:-1]:
                return None
            joined = (
                field
                if joined is None
                else tuple(a.joined(b) for a, b in zip(joined, field, strict=True))
            )
        return joined

    @contextmanager
    def watch(
        self, model: Module, called: Callable[[str, Module, Tensor, Tensor], None]
    ) -> Iterator[None]:
        """``called(name, layer, input, output)`` after each call of a layer inside; eval mode."""

        def watched(name: str, module: Module, forward: Callable[..., Any]) -> Callable[..., Any]:
            def call(x: Tensor, *args: Any, **options: Any) -> Any:
                output = forward(x, *args, **options)
                # A pool that also returns indices: the indices are no further layer's image.
                y: Tensor = output[0] if isinstance(output, tuple) else output
                before = self.field(x)
                field = None if before is None else _behind(module, before, x, y)
                if y is not x:
                    self._seen[id(y)] = y, field
                called(name, module, x, y)
                return output

            return call

        leaves = _leaves(model)
        with inference(model):
            try:
                for name, module in leaves.items():
                    vars(module)["forward"] = watched(name, module, module.forward)
                yield
            finally:
                for module in leaves.values():
                    vars(module).pop("forward", None)


def receptive_field(model: Module, input_shape: tuple[int, ...]) -> ReceptiveField:
    """What each output of a model can see of its input, by running one blank image through it.

    Per axis the interval of cells behind each output is carried through the layers: windows of
    convolutions and pools (dilation, padding and clipped borders included), transposed convolutions
    and unpooling, which see the inputs whose windows cover them, elementwise operations, sums and
    concatenations of branches, and linear layers, which see all.

    model: any module; its mode is restored afterwards. input_shape: without the batch dimension,
    (H, W, C) for images. Raises ValueError if the model does not take such inputs, or holds a layer
    whose reach is not known.

    >>> from gpucnn import nn
    >>> two = nn.Sequential(nn.Conv2d(1, 1, 3), nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1))
    >>> field = receptive_field(two, (12, 12, 1))
    >>> field.size, field.jump, field.offset, field.cells(0, 2)
    ((8, 8), (2.0, 2.0), (1.5, 1.5), (slice(0, 6, None), slice(2, 10, None)))

    Source: the interval method; checked against the true support of the gradient.
    """
    trace = Trace(input_shape)
    unknown: list[str] = []

    def called(name: str, module: Module, x: Tensor, y: Tensor) -> None:
        if trace.field(y) is None:
            unknown.append(f"{name} {module!r}".strip())

    with trace.watch(model, called):
        output = model(trace.blank)
    field = trace.field(output[0] if isinstance(output, tuple) else output)
    if field is None:
        culprit = unknown[0] if unknown else "an operation between its layers"
        raise ValueError(f"model: the reach of {culprit} is not known")
    return ReceptiveField(
        tuple(axis.size for axis in field),
        tuple(axis.jump for axis in field),
        tuple(axis.offset for axis in field),
        field,
    )
