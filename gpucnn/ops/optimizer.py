"""One fused step of a gradient-descent method over a flat buffer: ``kernels/optimizer.cu``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpucnn.device import Array
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks, scratch

# geometry


@dataclass(frozen=True)
class SGDStep:
    """The numbers of one SGD step."""

    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one Adam or AdamW step; ``step`` counts from 1."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    step: int

    @property
    def step_size(self) -> float:
        """lr / (1 − β₁ᵗ)."""
        return self.lr / (1.0 - self.beta1**self.step)

    @property
    def root_correction(self) -> float:
        """1 / √(1 − β₂ᵗ)."""
        return 1.0 / math.sqrt(1.0 - self.beta2**self.step)

    @property
    def l2(self) -> float:
        """The weight decay that is added to the gradient: none for AdamW."""
        return 0.0 if self.decoupled else self.weight_decay

    @property
    def shrink(self) -> float:
        """The factor on the parameters: 1 − lr·weight_decay for AdamW."""
        return 1.0 - self.lr * self.weight_decay if self.decoupled else 1.0


# primitives

_CHUNK = 1 << 15  # elements: five float32 buffers of it fit a core's cache


@primitive
def sgd_step(p: Array, v: Array | None, g: Array, step: SGDStep) -> None:
    """In place: g' = g + wd·p; v = μ·v + g'; p −= lr·(g' + μ·v with Nesterov, else v).

    p, v, g: (n). v is None when momentum is 0. Source: torch.optim.SGD (dampening 0).
    """

    def part(start: int, stop: int) -> None:
        parameters = p[start:stop]
        d = scratch("optimizer d", parameters.shape, p.dtype)
        np.multiply(parameters, step.weight_decay, out=d)
        d += g[start:stop]
        if v is not None:
            velocity = v[start:stop]
            velocity *= step.momentum
            velocity += d
            if step.nesterov:
                update = scratch("optimizer update", parameters.shape, p.dtype)
                np.multiply(velocity, step.momentum, out=update)
                d += update
            else:
                d[...] = velocity
        d *= step.lr
        parameters -= d

    map_chunks(part, p.size, _CHUNK)


@primitive
def adam_step(p: Array, m: Array, v: Array, g: Array, step: AdamStep) -> None:
    """In place: m += (1−β₁)(g−m); v = β₂v + (1−β₂)g²; p −= lr·m̂/(√v̂ + ε).

    p, m, v, g: (n); m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ). Adam adds wd·p to g first, AdamW (decoupled)
    multiplies p by 1 − lr·wd. Source: torch.optim.Adam, AdamW.
    """

    def part(start: int, stop: int) -> None:
        parameters, mean, square = p[start:stop], m[start:stop], v[start:stop]
        d = scratch("optimizer d", parameters.shape, p.dtype)
        update = scratch("optimizer update", parameters.shape, p.dtype)
        np.multiply(parameters, step.l2, out=d)
        d += g[start:stop]
        np.subtract(d, mean, out=update)
        update *= 1.0 - step.beta1
        mean += update
        d *= d
        d *= 1.0 - step.beta2
        square *= step.beta2
        square += d
        np.sqrt(square, out=update)
        update *= step.root_correction
        update += step.eps
        np.divide(mean, update, out=update)
        update *= step.step_size
        parameters *= step.shrink
        parameters -= update

    map_chunks(part, p.size, _CHUNK)


_kernels = KernelFile("optimizer")


@sgd_step.kernel()
def _launch_sgd(p: Array, v: Array | None, g: Array, step: SGDStep) -> None:
    _kernels["sgd"](
        four_each(p.size), (THREADS,), p, v, g, p.size,
        step.lr, step.momentum, step.weight_decay, step.nesterov,
    )  # fmt: skip


@adam_step.kernel()
def _launch_adam(p: Array, m: Array, v: Array, g: Array, step: AdamStep) -> None:
    _kernels["adam"](
        four_each(p.size), (THREADS,), p, m, v, g, p.size, step.step_size, step.root_correction,
        step.beta1, step.beta2, step.eps, step.l2, step.shrink,
    )  # fmt: skip
