"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from gpucnn.models.classification import (
    alexnet_mini,
    fashionnet,
    lenet5,
    resnet9,
    resnet20,
    shapenet,
    vgg_small,
)
from gpucnn.models.segmentation import autoencoder, segnet_small, unet_small
from gpucnn.nn import Module

__all__ = [
    "alexnet_mini",
    "autoencoder",
    "create",
    "fashionnet",
    "input_shape",
    "kind",
    "lenet5",
    "names",
    "resnet9",
    "resnet20",
    "segnet_small",
    "shapenet",
    "unet_small",
    "vgg_small",
]


@dataclass(frozen=True)
class _Entry:
    build: Callable[..., Module]
    input_shape: tuple[int, int, int]
    num_classes: int
    kind: str = "image"


_MODELS = {
    "lenet5": _Entry(lenet5, (28, 28, 1), 10),
    "fashionnet": _Entry(fashionnet, (28, 28, 1), 10),
    "shapenet": _Entry(shapenet, (72, 72, 1), 3),
    "vgg_small": _Entry(vgg_small, (32, 32, 3), 10),
    "resnet20": _Entry(resnet20, (32, 32, 3), 10),
    "resnet9": _Entry(resnet9, (32, 32, 3), 10),
    "alexnet_mini": _Entry(alexnet_mini, (32, 32, 3), 10),
    "segnet_small": _Entry(segnet_small, (72, 72, 1), 4, "pixel"),
    "unet_small": _Entry(unet_small, (72, 72, 1), 4, "pixel"),
    "autoencoder": _Entry(autoencoder, (28, 28, 1), 0, "reconstruction"),
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


def create(
    name: str,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> Module:
    """A new network with fresh weights.

    num_classes: the scores per image or pixel, by default those of the network's own dataset; the
    autoencoder has none. image_shape: (H, W, C) of the images, by default :func:`input_shape`; the
    autoencoder takes that alone.

    Raises ValueError for an unknown name, and for images that are too small for the network.
    """
    entry = _entry(name)
    if entry.kind == "reconstruction":
        if num_classes is not None:
            raise ValueError(f"num_classes: {name} gives back its input and has no classes")
        if image_shape not in (None, entry.input_shape):
            raise ValueError(f"image_shape: {name} takes {entry.input_shape}, got {image_shape}")
        return entry.build()
    classes = entry.num_classes if num_classes is None else num_classes
    return entry.build(classes, entry.input_shape if image_shape is None else image_shape)


def input_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C) of the images that a network was made for."""
    return _entry(name).input_shape


def kind(name: str) -> str:
    """What a network labels: "image", "pixel", or "reconstruction" (it gives its input back)."""
    return _entry(name).kind
