"""One fused step of Adam and its relatives over a flat buffer: ``kernels/adam.cu``."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpucnn.device import Array
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.ops.optimizer import (
    CHUNK,
    decayed_gradient,
    running_mean,
    running_square,
    temporary,
)
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks

# geometry


@dataclass(frozen=True)
class AdamStep:
    """The numbers of one step of Adam or a relative of it; ``step`` counts from 1."""

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
        """The weight decay that is added to the gradient: none if decoupled."""
        return 0.0 if self.decoupled else self.weight_decay

    @property
    def shrink(self) -> float:
        """The factor on the parameters: 1 − lr·weight_decay if decoupled."""
        return 1.0 - self.lr * self.weight_decay if self.decoupled else 1.0

    def adam(self) -> tuple[float, ...]:
        """The numbers of :func:`adam_step`."""
        return (
            self.step_size, self.root_correction, self.beta1, self.beta2, self.eps, self.l2,
            self.shrink,
        )  # fmt: skip

    def nadam(self, gradient_factor: float, mean_factor: float) -> tuple[float, ...]:
        """The numbers of :func:`nadam_step`."""
        return (gradient_factor, mean_factor, *self.adam()[1:])

    def adamax(self) -> tuple[float, ...]:
        """The numbers of :func:`adamax_step`."""
        return self.step_size, self.beta1, self.beta2, self.eps, self.l2


# primitives


@primitive
def adam_step(
    p: Array, m: Array, v: Array, largest: Array | None, g: Array, numbers: Array
) -> None:
    """In place: m += (1−β₁)(g−m); v = β₂v + (1−β₂)g²; p −= lr·m̂/(√v̂ + ε).

    p, m, v, g: (n); m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ). Adam adds wd·p to g first, AdamW (decoupled)
    multiplies p by 1 − lr·wd. With largest (n), AMSGrad: largest = max(largest, v) in place of v
    under the root. numbers: (7) :meth:`AdamStep.adam`. Source: torch.optim.Adam, AdamW.
    """
    step_size, root_correction, beta1, beta2, eps, l2, shrink = numbers.tolist()

    def part(start: int, stop: int) -> None:
        parameters, mean, square = p[start:stop], m[start:stop], v[start:stop]
        d = decayed_gradient(parameters, g[start:stop], l2)
        running_mean(mean, d, 1.0 - beta1)
        running_square(square, d, beta2)
        if largest is not None:
            square = np.maximum(largest[start:stop], square, out=largest[start:stop])
        np.sqrt(square, out=d)
        d *= root_correction
        d += eps
        np.divide(mean, d, out=d)
        d *= step_size
        parameters *= shrink
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def nadam_step(p: Array, m: Array, v: Array, g: Array, numbers: Array) -> None:
    """In place, m and v as in Adam: p −= (c_g·g + c_m·m)/(√v̂ + ε).

    p, m, v, g: (n); v̂ = v/(1−β₂ᵗ), and wd·p is added to g first (or p multiplied by 1 − lr·wd if
    decoupled). numbers: (8) :meth:`AdamStep.nadam`, c_g = lr·(1−μ_t)/(1−μ_1⋯μ_t) and
    c_m = lr·μ_{t+1}/(1−μ_1⋯μ_{t+1}) first. Source: torch.optim.NAdam.
    """
    gradient_factor, mean_factor, root_correction, beta1, beta2, eps, l2, shrink = numbers.tolist()

    def part(start: int, stop: int) -> None:
        parameters, mean, square = p[start:stop], m[start:stop], v[start:stop]
        d = decayed_gradient(parameters, g[start:stop], l2)
        update = temporary("update", d)
        running_mean(mean, d, 1.0 - beta1)
        running_square(square, d, beta2)
        np.multiply(mean, mean_factor, out=update)
        d *= gradient_factor
        d += update
        np.sqrt(square, out=update)
        update *= root_correction
        update += eps
        d /= update
        parameters *= shrink
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def adamax_step(p: Array, m: Array, u: Array, g: Array, numbers: Array) -> None:
    """In place: m += (1−β₁)(g'−m); u = max(β₂u, |g'| + ε); p −= lr/(1−β₁ᵗ)·m/u, g' = g + wd·p.

    p, m, u, g: (n). numbers: (5) :meth:`AdamStep.adamax`. Source: torch.optim.Adamax.
    """
    step_size, beta1, beta2, eps, l2 = numbers.tolist()

    def part(start: int, stop: int) -> None:
        parameters, mean, largest = p[start:stop], m[start:stop], u[start:stop]
        d = decayed_gradient(parameters, g[start:stop], l2)
        running_mean(mean, d, 1.0 - beta1)
        np.abs(d, out=d)
        d += eps
        largest *= beta2
        np.maximum(largest, d, out=largest)
        np.divide(mean, largest, out=d)
        d *= step_size
        parameters -= d

    map_chunks(part, p.size, CHUNK)


_kernels = KernelFile("adam")


@adam_step.kernel()
def _launch_adam(
    p: Array, m: Array, v: Array, largest: Array | None, g: Array, numbers: Array
) -> None:
    _kernels["adam"](four_each(p.size), (THREADS,), p, m, v, largest, g, numbers, p.size)


@nadam_step.kernel()
def _launch_nadam(p: Array, m: Array, v: Array, g: Array, numbers: Array) -> None:
    _kernels["nadam"](four_each(p.size), (THREADS,), p, m, v, g, numbers, p.size)


@adamax_step.kernel()
def _launch_adamax(p: Array, m: Array, u: Array, g: Array, numbers: Array) -> None:
    _kernels["adamax"](four_each(p.size), (THREADS,), p, m, u, g, numbers, p.size)
