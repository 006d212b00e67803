"""The default arguments of each dataset's training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OPTIMIZERS: Final = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Recipe:
    """Attributes:
    model: the model's name.
    epochs, batch_size: at least 1.
    optimizer: one of ``OPTIMIZERS``.
    lr: the highest learning rate of the one-cycle schedule, by optimizer.
    """

    model: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: dict[str, float]


RECIPES: Final = {
    "shapes": Recipe(
        model="shapenet",
        epochs=3,
        batch_size=64,
        optimizer="adam",
        lr={"sgd": 0.1, "adam": 1e-2, "adamw": 1e-2},
    ),
    "shapes-segmentation": Recipe(
        model="segnet_small",
        epochs=5,
        batch_size=16,
        optimizer="adam",
        lr={"sgd": 0.1, "adam": 8e-3, "adamw": 8e-3},
    ),
    "fashion-mnist": Recipe(
        model="fashionnet",
        epochs=5,
        batch_size=128,
        optimizer="adam",
        lr={"sgd": 0.1, "adam": 4e-3, "adamw": 4e-3},
    ),
}


def recipe(dataset: str) -> Recipe:
    """The defaults for a dataset.

    Raises:
        ValueError: unknown dataset.
    """
    if dataset not in RECIPES:
        raise ValueError(f"dataset must be one of {', '.join(RECIPES)}, got {dataset!r}")
    return RECIPES[dataset]
