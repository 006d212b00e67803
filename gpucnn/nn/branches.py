"""Layers beside each other: skip connections and branches."""

from __future__ import annotations

from typing import Any

from gpucnn import functional as F
from gpucnn.nn.module import Module
from gpucnn.ops.geometry import integer
from gpucnn.tensor import Tensor


def _check_module(name: str, value: Any) -> None:
    if not isinstance(value, Module):
        raise TypeError(f"{name} must be a Module, got {type(value).__name__}")


class Residual(Module):
    """``module(x) + x``, or ``module(x) + projection(x)`` where the shapes differ.

    projection: a module that brings x to the shape of ``module(x)``, such as a 1×1 convolution.
    Source: He et al., arXiv:1512.03385.
    """

    def __init__(self, module: Module, projection: Module | None = None) -> None:
        _check_module("module", module)
        if projection is not None:
            _check_module("projection", projection)
        self.module = module
        self.projection = projection

    def forward(self, x: Tensor) -> Tensor:
        skipped = x if self.projection is None else self.projection(x)
        return F.add(self.module(x), skipped)


class Concat(Module):
    """Every branch applied to the same input, their outputs concatenated: along the channels.

    An :class:`Identity` as a branch makes a skip connection. axis: an int, negative from the end.
    Source: Szegedy et al., arXiv:1409.4842; Ronneberger et al., arXiv:1505.04597 (U-Net).
    """

    def __init__(self, *branches: Module, axis: int = -1) -> None:
        if not branches:
            raise ValueError("branches must hold at least one Module, got none")
        for i, branch in enumerate(branches):
            _check_module(f"branches[{i}]", branch)
        self.branches = branches
        self.axis = integer("axis", axis, -64)

    def named_children(self) -> Any:
        return ((str(i), branch) for i, branch in enumerate(self.branches))

    def forward(self, x: Tensor) -> Tensor:
        return F.concatenate([branch(x) for branch in self.branches], self.axis)
