"""Module: parameters, buffers and submodules found by their attribute names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import recording
from gpucnn.bfloat16 import is_bfloat16, narrowed
from gpucnn.device import require, to_device
from gpucnn.fusion import fuses, fusion
from gpucnn.tensor import Tensor
from gpucnn.weight_copies import changed

if TYPE_CHECKING:
    from gpucnn.nn.fuse import Group

Self = TypeVar("Self", bound="Module")


class Parameter(Tensor):
    """A tensor that a module owns and an optimizer updates; ``requires_grad`` is True."""

    def __init__(self, data: Any, *, device: str | None = None) -> None:
        super().__init__(data, requires_grad=True, device=device)


_state = object()  # another one whenever an attribute of any module was set or deleted


def _changed() -> None:
    global _state
    _state = object()


class Module:
    """Base of all layers. A subclass sets attributes in ``__init__`` and defines ``forward``.

    Attributes that are :class:`Parameter` are its parameters, other tensors its buffers (saved, not
    trained), modules its children; names are attribute paths such as ``features.0.weight``, in the
    order in which the attributes were first set.
    """

    training = True
    _unsized = False  # parameters that wait for the size of the first input,
    _home: str | None = None  # and where they will live, the default device if None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        _changed()

    def __delattr__(self, name: str) -> None:
        object.__delattr__(self, name)
        _changed()

    def forward(self, *inputs: Any) -> Any:
        """Compute the module; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if recording.active is not None:
            recording.watch_attribute(self, "training")
        return self.forward(*inputs, **options)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The direct submodules."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (under ``prefix``) and all below it, each before its own children."""
        yield prefix, self
        for name, child in self.named_children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def _named_tensors(self, parameters: bool) -> Iterator[tuple[str, Tensor]]:
        seen: set[int] = set()
        for path, module in self.named_modules():
            for name, value in vars(module).items():
                if not isinstance(value, Tensor) or id(value) in seen:
                    continue
                if isinstance(value, Parameter) is parameters:
                    seen.add(id(value))
                    yield f"{path}.{name}" if path else name, value

    def _require_sizes(self) -> None:
        for path, module in self.named_modules():
            if module._unsized:
                raise RuntimeError(
                    f"{f'{path} {module!r}'.strip()} has no parameters before its first forward "
                    "pass: run the model on an example first"
                )

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, parameter), a shared one once; RuntimeError where one has no size yet."""
        self._require_sizes()
        return self._named_tensors(True)

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(name, buffer), such as running statistics."""
        return self._named_tensors(False)

    def parameters(self) -> Iterator[Tensor]:
        """The parameters, in the order of :meth:`named_parameters`."""
        return (tensor for _, tensor in self.named_parameters())

    def _state(self) -> dict[str, Tensor]:
        return {**dict(self._named_tensors(True)), **dict(self.named_buffers())}

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all parameters and buffers as NumPy arrays, by name."""
        self._require_sizes()
        return {name: np.array(tensor.numpy()) for name, tensor in self._state().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Copy arrays into the parameters and buffers of these names.

        Parameters without a size take that of the state. Raises ValueError naming what is missing,
        unknown (both only if strict) or of another shape; nothing is changed then.
        """
        sized = [m for path, m in self.named_modules() if m._take_size(path, state)]
        try:
            self._load(state, strict)
        except ValueError:
            for module in sized:
                module._forget_size()
            raise

    def _take_size(self, path: str, state: Mapping[str, Any]) -> bool:
        """Make parameters that have no size yet fit the state; whether that was so."""
        return False

    def _forget_size(self) -> None:
        """Undo :meth:`_take_size`."""

    def _load(self, state: Mapping[str, Any], strict: bool) -> None:
        own = self._state()
        absent = [f"{path}.weight".strip(".") for path, m in self.named_modules() if m._unsized]
        missing, unknown = sorted({*own, *absent} - set(state)), sorted(set(state) - set(own))
        if strict and (missing or unknown):
            raise ValueError(
                f"state does not fit {type(self).__name__}: "
                f"missing {', '.join(missing) or 'nothing'}; "
                f"unknown {', '.join(unknown) or 'nothing'}"
            )
        for name in own.keys() & state.keys():
            if np.shape(state[name]) != own[name].shape:
                raise ValueError(
                    f"state[{name!r}] must have shape {own[name].shape}, "
                    f"got {np.shape(state[name])}"
                )
        for name in own.keys() & state.keys():
            tensor = own[name]
            values = np.asarray(state[name])
            if is_bfloat16(tensor.data):
                values = narrowed(np.ascontiguousarray(values, np.float32))
            tensor.data[...] = to_device(values, tensor.device)
            changed(tensor.data)

    def train(self: Self, mode: bool = True) -> Self:
        """Switch this module and all below it to training (or inference) behaviour."""
        for _, module in self.named_modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        """Switch to inference behaviour."""
        return self.train(False)

    def to(self: Self, device: str) -> Self:
        """Move all parameters and buffers to a device; make optimizers after that."""
        require(device)
        for tensor in self._state().values():
            if tensor.device != device:
                moved = tensor.to(device)
                tensor.data, tensor.device, tensor.grad = moved.data, device, None
                tensor._gradient_home = None
        for _, module in self.named_modules():
            if module._unsized:
                module._home = device
        return self

    def extra_repr(self) -> str:
        """The arguments shown between the parentheses of the repr."""
        return ""

    def __repr__(self) -> str:
        children = [f"  ({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = "\n".join(children).replace("\n", "\n  ")
        return f"{type(self).__name__}(\n  {lines.lstrip()}\n)"


@contextmanager
def inference(model: Module) -> Iterator[None]:
    """Inference behaviour inside; each module gets its own mode back, also after an error."""
    modes = [(module, module.training) for _, module in model.named_modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class Sequential(Module):
    """Modules applied one after the other; indexed, sliced and iterated like a list.

    Neighbours are computed in one pass over memory where a kernel can: a convolution or a linear
    layer and its activation; a convolution, batch norm, ReLU (or leaky ReLU) and max pooling, or a
    part of these; a :class:`Residual` block that ends in a convolution or batch norm, with the
    activation behind it. The results are those of the layers one by one, to rounding.
    ``fuse=False`` computes them so, forward and backward, as :class:`gpucnn.fusion` does
    everywhere; ``gpucnn summary`` shows what is fused. Subclasses of these layers, and layers given
    another ``forward``, are left alone.

    >>> from gpucnn import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
    >>> [(group.start, group.stop) for group in model.groups()]
    [(0, 4)]
    """

    def __init__(self, *layers: Module, fuse: bool = True) -> None:
        for i, layer in enumerate(layers):
            if not isinstance(layer, Module):
                raise TypeError(f"layers[{i}] must be a Module, got {type(layer).__name__}")
        if not isinstance(fuse, bool):
            raise TypeError(f"fuse must be True or False, got {fuse!r}")
        self.layers = layers
        self.fuse = fuse

    def named_children(self) -> Iterator[tuple[str, Module]]:
        return ((str(i), layer) for i, layer in enumerate(self.layers))

    def groups(self) -> list[Group]:
        """The runs of layers that are computed together; [] with ``fuse=False``."""
        from gpucnn.nn.fuse import groups

        return list(groups(self.layers)) if self.fuse else []

    def forward(self, x: Any) -> Any:
        return self.run(x, len(self.layers))

    def run(self, x: Any, count: int) -> Any:
        """The first ``count`` layers applied to x."""
        if recording.active is not None:
            recording.watch_attribute(self, "fuse")
            recording.watch_attribute(self, "layers")
        if self.fuse and fuses():
            return self._fused(x, self.layers[:count])
        with fusion(False):
            for layer in self.layers[:count]:
                x = layer(x)
        return x

    def _fused(self, x: Any, layers: Sequence[Module]) -> Any:
        for part in self._parts(layers):
            x = part(x) if isinstance(part, Module) else part(x, layers)
        return x

    def _parts(self, layers: Sequence[Module]) -> Sequence[Module | Group]:
        """The layers, groups of them in one; found anew when an attribute of a module was set."""
        found = vars(self).get("_found")
        if found is None or found[0] is not _state or found[1] != len(layers):
            from gpucnn.nn.fuse import groups

            state, parts, at = _state, [], 0
            for group in groups(layers):
                parts += [*layers[at : group.start], group]
                at = group.stop
            found = vars(self)["_found"] = state, len(layers), [*parts, *layers[at:]]
        return cast("Sequence[Module | Group]", found[2])

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return Sequential(*self.layers[index], fuse=self.fuse)
        return self.layers[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)
