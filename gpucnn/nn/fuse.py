"""Neighbouring layers of a :class:`~gpucnn.nn.Sequential` that are computed in one pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from gpucnn import functional as F
from gpucnn import recording
from gpucnn.nn.activation import LeakyReLU, ReLU, Sigmoid, Tanh
from gpucnn.nn.branches import Residual
from gpucnn.nn.conv import Conv2d
from gpucnn.nn.linear import Linear
from gpucnn.nn.module import Module, Sequential
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d
from gpucnn.nn.pooling import MaxPool2d
from gpucnn.tensor import Tensor

_ACTIVATIONS = {ReLU: "relu", LeakyReLU: "leaky_relu", Sigmoid: "sigmoid", Tanh: "tanh"}
_FIRST = (Conv2d, Linear, BatchNorm1d, BatchNorm2d, Residual)  # that a group begins with
_OF_EPILOGUES = tuple(_ACTIVATIONS.values())
_OF_BLOCKS = ("relu", "leaky_relu")  # that a batch_norm_block computes
_MOST_CELLS = 127  # of a window in a batch_norm_block


class Group(NamedTuple):
    """Layers ``start`` to ``stop - 1`` of a Sequential, computed together."""

    start: int
    stop: int
    conv: Conv2d | Linear | None = None
    norm: BatchNorm1d | BatchNorm2d | None = None
    activation: Module | None = None
    pool: MaxPool2d | None = None
    residual: Residual | None = None

    def __call__(self, x: Tensor, layers: Sequence[Module]) -> Tensor:
        """The output of the layers for x."""
        skipped = None
        if self.residual is not None:
            skipped = x if self.residual.projection is None else self.residual.projection(x)
            body = self.residual.module
            if isinstance(body, Sequential):
                last = len(body) - (self.norm is not None) - (self.conv is not None)
                x = body.run(x, last)
        if recording.active is not None:
            for layer in layers[self.start : self.stop]:
                recording.watch_attribute(layer, "training")
            if self.norm is not None:
                recording.watch_attribute(self.norm, "training")
        options = _activation(self.activation)
        if isinstance(self.conv, Linear):
            return F.linear_fused(x, self.conv.weight, self.conv.bias, **options)
        if self.norm is None:
            return _convolve(self.conv, x, skipped, **options)
        if self.conv is not None:
            # On the cpu statistics of one more pass cost less than those of many small parts.
            left: dict[str, Any] = {}
            if self.norm.of_batch and x.device != "cpu":
                left = {"moments": True, "running": self.norm.running(x, self.conv.out_channels)}
            x = _convolve(self.conv, x, None, activation="identity", **left)
        options["activation"] = options["activation"].replace("identity", "none")
        if self.pool is not None:
            for name in ("kernel_size", "stride", "padding", "edge"):
                options[name] = getattr(self.pool, name)
        return self.norm.normalise(
            x, functools.partial(F.batch_norm_block, residual=skipped, **options)
        )


def _convolve(conv: Any, x: Tensor, residual: Tensor | None, **options: Any) -> Tensor:
    return F.conv2d_fused(x, conv.weight, conv.bias, residual, **options, **conv._options())


def _activation(layer: Module | None) -> dict[str, Any]:
    if layer is None:
        return {"activation": "identity"}
    options: dict[str, Any] = {"activation": _ACTIVATIONS[type(layer)]}
    if isinstance(layer, LeakyReLU):
        options["negative_slope"] = layer.negative_slope
    return options


def _as_made(layer: Module) -> bool:
    """Whether nobody has put another forward in the place of the class's."""
    return "forward" not in vars(layer)


def _fits(activation: Module, allowed: Sequence[str]) -> bool:
    if _ACTIVATIONS.get(type(activation)) not in allowed or not _as_made(activation):
        return False
    return not isinstance(activation, LeakyReLU) or activation.negative_slope > 0


def _is_linear(layer: Module) -> bool:
    return type(layer) is Linear and _as_made(layer) and not layer._unsized


def _is_norm(layer: Module) -> bool:
    return type(layer) in (BatchNorm1d, BatchNorm2d) and _as_made(layer)


def _is_conv(layer: Module) -> bool:
    return type(layer) is Conv2d and _as_made(layer)


def _fits_pool(layer: Module) -> bool:
    return (
        type(layer) is MaxPool2d
        and _as_made(layer)
        and layer.edge in ("drop", "ceil")
        and layer.dilation == (1, 1)
        and not layer.return_indices
        and layer._last is None
        and layer.kernel_size[0] * layer.kernel_size[1] <= _MOST_CELLS
    )


def groups(layers: Sequence[Module]) -> Iterator[Group]:
    """What is computed together, in order; the layers in between run one by one."""
    at = 0
    while at < len(layers):
        found = _group(layers, at) if type(layers[at]) in _FIRST else None
        if found is not None:
            yield found
        at = at + 1 if found is None else found.stop


def _group(layers: Sequence[Module], start: int) -> Group | None:
    def follows(stop: int, wanted: Callable[[Module], bool]) -> bool:
        return stop < len(layers) and wanted(layers[stop])

    def fits(stop: int, allowed: Sequence[str]) -> bool:
        return stop < len(layers) and _fits(layers[stop], allowed)

    first = layers[start]
    if type(first) is Residual and _as_made(first):
        return _residual(layers, first, start)
    stop, conv, norm, activation, pool = start, None, None, None, None
    if _is_linear(first):
        if not fits(start + 1, _OF_EPILOGUES):
            return None
        return Group(start, start + 2, cast("Linear", first), None, layers[start + 1])
    if _is_conv(first):
        conv, stop = first, stop + 1
    if follows(stop, _is_norm):
        norm, stop = layers[stop], stop + 1
    if conv is None and norm is None:
        return None
    if fits(stop, _OF_EPILOGUES if norm is None else _OF_BLOCKS):
        activation, stop = layers[stop], stop + 1
        if isinstance(norm, BatchNorm2d) and follows(stop, _fits_pool):
            pool, stop = layers[stop], stop + 1
    if stop == start + 1:
        return None
    return Group(start, stop, conv, norm, activation, pool)  # type: ignore[arg-type]


def _residual(layers: Sequence[Module], block: Residual, start: int) -> Group | None:
    """A residual block that ends in a convolution, a normalisation or both, and its activation."""
    body = block.module
    if type(body) is not Sequential or not _as_made(body) or not body.fuse or not len(body):
        return None
    ends = list(body)
    norm = cast("BatchNorm2d", ends.pop()) if _is_norm(ends[-1]) else None
    conv = cast("Conv2d", ends.pop()) if ends and _is_conv(ends[-1]) else None
    if norm is None and conv is None:
        return None
    allowed = _OF_EPILOGUES if norm is None else _OF_BLOCKS
    stop = start + 1
    activation = layers[stop] if stop < len(layers) and _fits(layers[stop], allowed) else None
    stop += activation is not None
    return Group(start, stop, conv, norm, activation, None, block)


def fused_layers(model: Module) -> dict[str, str]:
    """The path of each layer that is computed together with an earlier one -> that one's path."""
    paths = {id(module): path for path, module in model.named_modules()}
    found: dict[str, str] = {}
    for _, module in model.named_modules():
        if not isinstance(module, Sequential):
            continue
        for group in module.groups():
            members: list[Module] = [m for m in (group.conv, group.norm) if m is not None]
            members += [m for m in (group.activation, group.pool) if m is not None]
            first, *others = (paths[id(m)] for m in members)
            found.update(dict.fromkeys(others, first))
    return found
