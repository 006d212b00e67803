"""Networks by name: the ones that the command line trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from gpucnn.nn import BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, Module, ReLU, Sequential


def shapenet(num_classes: int = 3) -> Sequential:
    """For 72×72×1: three blocks of convolution, batch norm, ReLU and pooling, two linear layers."""
    return Sequential(
        Conv2d(1, 16, 5, stride=2, padding=2, bias=False),
        BatchNorm2d(16),
        ReLU(),
        MaxPool2d(2),
        Conv2d(16, 32, 3, padding=1, bias=False),
        BatchNorm2d(32),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 32, 3, padding=1, bias=False),
        BatchNorm2d(32),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(4 * 4 * 32, 64),
        ReLU(),
        Linear(64, num_classes),
    )


def fashionnet(num_classes: int = 10) -> Sequential:
    """For 28×28×1: three blocks of convolution, batch norm, ReLU and pooling, two linear layers."""
    return Sequential(
        Conv2d(1, 16, 3, padding=1, bias=False),
        BatchNorm2d(16),
        ReLU(),
        MaxPool2d(2),
        Conv2d(16, 32, 3, padding=1, bias=False),
        BatchNorm2d(32),
        ReLU(),
        MaxPool2d(2),
        Conv2d(32, 64, 3, padding=1, bias=False),
        BatchNorm2d(64),
        ReLU(),
        MaxPool2d(2),
        Flatten(),
        Linear(3 * 3 * 64, 128),
        ReLU(),
        Linear(128, num_classes),
    )


@dataclass(frozen=True)
class _Entry:
    build: Callable[[int], Module]
    input_shape: tuple[int, int, int]
    num_classes: int


_MODELS = {
    "shapenet": _Entry(shapenet, (72, 72, 1), 3),
    "fashionnet": _Entry(fashionnet, (28, 28, 1), 10),
}


def names() -> tuple[str, ...]:
    """The names that :func:`create` takes."""
    return tuple(_MODELS)


def _entry(name: str) -> _Entry:
    if name not in _MODELS:
        close = get_close_matches(name, _MODELS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"model must be one of {', '.join(_MODELS)}, got {name!r}{hint}")
    return _MODELS[name]


def create(name: str, num_classes: int | None = None) -> Module:
    """A new network with fresh weights; ValueError for an unknown name."""
    entry = _entry(name)
    return entry.build(entry.num_classes if num_classes is None else num_classes)


def input_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the images that a network takes."""
    return _entry(name).input_shape
