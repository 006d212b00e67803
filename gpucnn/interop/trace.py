"""What a model computes: the functions that it applies to an example."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpucnn.fusion import fusion
from gpucnn.nn import Module
from gpucnn.nn.module import inference
from gpucnn.precision import precision
from gpucnn.tensor import Function, Tensor, no_grad


@dataclass(frozen=True)
class Call:
    """One function applied: what it took, with which options, and what it returned."""

    function: type[Function]
    inputs: tuple[Tensor | None, ...]
    options: dict[str, Any]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Trace:
    """Attributes:
    x, y: the example and what the model made of it.
    calls: in order.
    """

    x: Tensor
    y: Tensor
    calls: tuple[Call, ...]

    def maker(self, tensor: Tensor | None) -> Call | None:
        """The call that returned a tensor; None for parameters and the example."""
        return next((c for c in self.calls if any(t is tensor for t in c.outputs)), None)


def trace(model: Module, image_shape: tuple[int, ...], images: int = 2) -> Trace:
    """Apply a model to random images of this shape (H, W, C), as at inference, layer by layer.

    Raises:
        ValueError: the model does not take such images, or returns no single tensor.
    """
    device = next((t.device for t in model.parameters()), None)
    values = np.random.default_rng(0).standard_normal((images, *image_shape))
    x = Tensor(values.astype(np.float32), device=device)
    with inference(model), no_grad(), fusion(False), precision("fp32"), _calls() as calls:
        y = model(x)
    if not isinstance(y, Tensor):
        raise ValueError(f"the model must return one tensor, it returned {type(y).__name__}")
    return Trace(x, y, tuple(calls))


@contextmanager
def _calls() -> Iterator[list[Call]]:
    """Collects the functions that are applied inside; one thread at a time."""
    calls: list[Call] = []
    ordinary = vars(Function)["apply"]

    def apply(cls: type[Function], *inputs: Any, **options: Any) -> Any:
        made = ordinary.__get__(None, cls)(*inputs, **options)
        calls.append(Call(cls, inputs, options, made if isinstance(made, tuple) else (made,)))
        return made

    Function.apply = classmethod(apply)  # type: ignore[method-assign, assignment]
    try:
        yield calls
    finally:
        Function.apply = ordinary  # type: ignore[method-assign]
