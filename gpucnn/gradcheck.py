"""Gradients against central differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpucnn.tensor import Tensor, no_grad


def gradcheck(
    fn: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare ``fn``'s gradients with central differences, as torch.autograd.gradcheck does.

    fn: tensors -> one float tensor. inputs: float64 tensors on ``cpu``; those with
    ``requires_grad=True`` are checked. The output is weighted with fixed numbers, so that every
    element of it counts. Returns True; raises AssertionError naming the input, the element and both
    values if |difference| > atol + rtol·|numeric|, ValueError if an input is not float64
    or none requires a gradient.
    """
    if not any(t.requires_grad for t in inputs):
        raise ValueError("inputs: one at least must have requires_grad=True")
    for i, t in enumerate(inputs):
        if t.requires_grad and t.dtype != np.float64:
            raise ValueError(f"inputs[{i}] must be float64, got {t.dtype}")
    output = fn(*inputs)
    weights = np.cos(np.arange(output.size, dtype=np.float64)).reshape(output.shape) + 0.25
    for t in inputs:
        t.grad = None
    output.backward(weights)

    def value() -> float:
        with no_grad():
            return float((fn(*inputs).numpy() * weights).sum())

    for i, t in enumerate(inputs):
        if not t.requires_grad:
            continue
        if t.grad is None:
            raise AssertionError(f"inputs[{i}] received no gradient")
        flat, gradient = t.data.reshape(-1), t.grad.numpy().reshape(-1)
        for j in range(flat.size):
            saved = flat[j]
            flat[j] = saved + eps
            above = value()
            flat[j] = saved - eps
            below = value()
            flat[j] = saved
            numeric = (above - below) / (2 * eps)
            if not abs(gradient[j] - numeric) <= atol + rtol * abs(numeric):
                raise AssertionError(
                    f"inputs[{i}], element {np.unravel_index(j, t.shape)}: gradient is "
                    f"{gradient[j]:.9g}, central differences say {numeric:.9g}"
                )
    return True
