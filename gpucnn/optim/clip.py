"""Gradient clipping, between ``backward()`` and ``step()``."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gpucnn.device import Array, module_of
from gpucnn.ops.clip import clip_norm
from gpucnn.ops.clip import clip_value as clamp_gradients
from gpucnn.optim.optimizer import Optimizer, check_number
from gpucnn.recording import copied
from gpucnn.tensor import Tensor, common_device


def _gradients(target: Optimizer | Tensor | Iterable[Tensor]) -> tuple[list[Array], str, Array]:
    """(flat gradients, their device, an array there): few and long for an optimizer."""
    if isinstance(target, Optimizer):
        return target.gradient_runs(), target.device, target.params[0].data
    tensors = [target] if isinstance(target, Tensor) else list(target)
    if not tensors:
        raise ValueError("parameters must hold at least one tensor, got none")
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"parameters[{i}] must be a Tensor, got {type(t).__name__}")
    found: list[Array] = []
    for t in tensors:
        if t.grad is None:
            continue
        array: Array = t.grad.data
        if t._gradient_home is None:  # the tape may hand one array to two tensors
            array = t.grad.data = copied(array)
        found.append(array.reshape(-1))
    return found, common_device(tensors), tensors[0].data


def clip_grad_norm_(parameters: Optimizer | Tensor | Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most ``max_norm``.

    ``g *= min(1, max_norm/(‖g‖ + 1e-6))``, ‖g‖ over all gradients as one vector, summed in float64
    and in a fixed order. parameters: an optimizer, whose gradients lie in one buffer, or tensors;
    those without a gradient are skipped. Returns ‖g‖ before the scaling, a 0-d tensor that stays
    on the device: nothing waits for the GPU until its value is read. A gradient of NaN makes the
    norm and all gradients NaN; an infinite norm makes the finite gradients 0.

    max_norm: >= 0, infinity to measure only. Raises ValueError or TypeError naming the argument,
    DeviceError for tensors of two devices. Source: torch.nn.utils.clip_grad_norm_ (norm_type=2);
    Pascanu, Mikolov and Bengio, arXiv:1211.5063.
    """
    if not (isinstance(max_norm, int | float | np.number) and max_norm >= 0):
        raise ValueError(f"max_norm must be a number >= 0, got {max_norm!r}")
    if isinstance(parameters, Optimizer):
        return Tensor._wrap(parameters._clip_norm(float(max_norm)), parameters.device)
    gradients, device, like = _gradients(parameters)
    if not gradients:
        return Tensor._wrap(module_of(like).zeros((), like.dtype), device)
    return Tensor._wrap(clip_norm.on(device)(gradients, float(max_norm)), device)


def clip_grad_value_(parameters: Optimizer | Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Clamp every gradient to −clip_value … clip_value; NaN stays NaN.

    parameters: an optimizer or tensors; those without a gradient are skipped. clip_value: >= 0.
    Raises ValueError or TypeError naming the argument, DeviceError for tensors of two devices.
    Source: torch.nn.utils.clip_grad_value_.
    """
    limit = check_number("clip_value", clip_value, 0.0)
    gradients, device, _ = _gradients(parameters)
    if gradients:
        clamp_gradients.on(device)(gradients, limit)
