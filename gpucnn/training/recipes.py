"""The default arguments of each dataset's training run."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, Final

from gpucnn import optim
from gpucnn.data.dataset import Dataset


@dataclass(frozen=True)
class Method:
    """Attributes:
    optimizer: the class.
    options: the arguments that differ from its own defaults.
    lr: the highest learning rate of the one-cycle schedule, or None: the recipe's, times share.
    """

    optimizer: type[optim.Optimizer]
    options: dict[str, Any] = field(default_factory=dict)
    lr: float | None = None
    share: float = 1.0


_DECAY: Final = {"weight_decay": 5e-4}

OPTIMIZERS: Final = {
    "sgd": Method(optim.SGD, _DECAY, lr=0.5),
    "momentum": Method(optim.SGD, {"momentum": 0.9, **_DECAY}, lr=0.1),
    "nesterov": Method(optim.SGD, {"momentum": 0.9, "nesterov": True, **_DECAY}, lr=0.1),
    "adagrad": Method(optim.Adagrad, share=3.0),
    "adadelta": Method(optim.Adadelta, lr=3.0),
    "rmsprop": Method(optim.RMSprop, share=0.3),
    "adam": Method(optim.Adam),
    "amsgrad": Method(optim.AMSGrad),
    "adamw": Method(optim.AdamW),
    "adamax": Method(optim.Adamax, share=3.0),
    "nadam": Method(optim.Nadam),
    "lion": Method(optim.Lion, share=0.3),
}


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    model: the model's name.
    epochs, batch_size: at least 1.
    optimizer: one of ``OPTIMIZERS``.
    lr: the highest learning rate of the one-cycle schedule with Adam.
    """

    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float


RECIPES: Final = {
    "shapes": Recipe(
        model="shapenet",
        epochs=3,
        batch_size=64,
        optimizer="adam",
        lr=1e-2,
    ),
    "shapes-segmentation": Recipe(
        model="segnet_small",
        epochs=5,
        batch_size=16,
        optimizer="adam",
        lr=8e-3,
    ),
    "fashion-mnist": Recipe(
        model="fashionnet",
        epochs=5,
        batch_size=128,
        optimizer="adam",
        lr=4e-3,
    ),
    "mnist": Recipe(
        model="fashionnet",
        epochs=3,
        batch_size=128,
        optimizer="adam",
        lr=4e-3,
    ),
    "cifar10": Recipe(
        model="resnet20",
        epochs=30,
        batch_size=128,
        optimizer="adam",
        lr=1e-2,
    ),
}
_LARGE: Final = 48  # from this side on images of one's own are halved by the first convolution
_STEPS: Final = 1500  # that a run on images of one's own has, about


def recipe(dataset: str) -> Recipe:
    """The defaults for a dataset.

    Raises:
        ValueError: unknown dataset.
    """
    if dataset not in RECIPES:
        raise ValueError(f"dataset must be one of {', '.join(RECIPES)}, got {dataset!r}")
    return RECIPES[dataset]


def own_recipe(train: Dataset) -> Recipe:
    """The defaults for images of one's own: a small network, a few thousand steps."""
    batch_size = min(64, max(1, len(train) // 4))
    epochs = min(50, max(5, round(_STEPS * batch_size / len(train))))
    model = "shapenet" if min(train.image_shape[:2]) >= _LARGE else "fashionnet"
    return Recipe(
        model="segnet_small" if train.per_pixel else model,
        epochs=epochs,
        batch_size=batch_size,
        optimizer="adam",
        lr=4e-3,
    )


def _method(name: str) -> Method:
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {name!r}")
    return OPTIMIZERS[name]


def learning_rate(name: str, recipe: Recipe) -> float:
    """The highest learning rate that suits an optimizer and a dataset.

    Raises:
        ValueError: unknown optimizer.
    """
    method = _method(name)
    return recipe.lr * method.share if method.lr is None else method.lr


def optimizer_options(
    name: str, momentum: float | None = None, weight_decay: float | None = None
) -> dict[str, Any]:
    """The arguments of an optimizer besides the learning rate; None takes its default.

    Raises:
        ValueError: unknown optimizer, or one without momentum or weight decay where that is given.
    """
    options = {
        key: parameter.default
        for key, parameter in inspect.signature(_method(name).optimizer).parameters.items()
        if key not in ("params", "lr")
    }
    options.update(OPTIMIZERS[name].options)
    for key, value in (("momentum", momentum), ("weight_decay", weight_decay)):
        if value is not None:
            if key not in options:
                having = [n for n in OPTIMIZERS if key in optimizer_options(n)]
                raise ValueError(f"{key}: {name} has none, {', '.join(having)} have")
            options[key] = value
    return options
