"""One fused step of Adam and its relatives over flat buffers: ``kernels/adam.cu``.

The arguments ``numbers``, ``parts`` and ``scale`` are those of :mod:`gpucnn.ops.optimizer`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpucnn.device import Array
from gpucnn.kernel import KernelFile
from gpucnn.ops.optimizer import decayed_gradient, running_mean, running_square
from gpucnn.ops.optimizer_parts import Parts, launch_update, temporary, update_parts
from gpucnn.primitive import primitive

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
    p: Array,
    m: Array,
    v: Array,
    largest: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: m += (1−β₁)(g−m); v = β₂v + (1−β₂)g²; p −= lr·m̂/(√v̂ + ε).

    p, m, v, g: (n); m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ). Adam adds wd·p to g first, AdamW (decoupled)
    multiplies p by 1 − lr·wd. With largest (n), AMSGrad: largest = max(largest, v) in place of v
    under the root. numbers: (7) :meth:`AdamStep.adam`. Source: torch.optim.Adam, AdamW.
    """

    def part(
        at: slice,
        step_size: float,
        root_correction: float,
        beta1: float,
        beta2: float,
        eps: float,
        l2: float,
        shrink: float,
    ) -> None:
        parameters, mean, square = p[at], m[at], v[at]
        d = decayed_gradient(parameters, g[at], l2)
        running_mean(mean, d, 1.0 - beta1)
        running_square(square, d, beta2)
        if largest is not None:
            square = np.maximum(largest[at], square, out=largest[at])
        np.sqrt(square, out=d)
        d *= root_correction
        d += eps
        np.divide(mean, d, out=d)
        d *= step_size
        parameters *= shrink
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def nadam_step(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place, m and v as in Adam: p −= (c_g·g + c_m·m)/(√v̂ + ε).

    p, m, v, g: (n); v̂ = v/(1−β₂ᵗ), and wd·p is added to g first (or p multiplied by 1 − lr·wd if
    decoupled). numbers: (8) :meth:`AdamStep.nadam`, c_g = lr·(1−μ_t)/(1−μ_1⋯μ_t) and
    c_m = lr·μ_{t+1}/(1−μ_1⋯μ_{t+1}) first. Source: torch.optim.NAdam.
    """

    def part(
        at: slice,
        gradient_factor: float,
        mean_factor: float,
        root_correction: float,
        beta1: float,
        beta2: float,
        eps: float,
        l2: float,
        shrink: float,
    ) -> None:
        parameters, mean, square = p[at], m[at], v[at]
        d = decayed_gradient(parameters, g[at], l2)
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

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def adamax_step(
    p: Array,
    m: Array,
    u: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: m += (1−β₁)(g'−m); u = max(β₂u, |g'| + ε); p −= lr/(1−β₁ᵗ)·m/u, g' = g + wd·p.

    p, m, u, g: (n). numbers: (5) :meth:`AdamStep.adamax`. Source: torch.optim.Adamax.
    """

    def part(
        at: slice, step_size: float, beta1: float, beta2: float, eps: float, l2: float
    ) -> None:
        parameters, mean, largest = p[at], m[at], u[at]
        d = decayed_gradient(parameters, g[at], l2)
        running_mean(mean, d, 1.0 - beta1)
        np.abs(d, out=d)
        d += eps
        largest *= beta2
        np.maximum(largest, d, out=largest)
        np.divide(mean, largest, out=d)
        d *= step_size
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


_kernels = KernelFile("adam")


@adam_step.kernel()
def _launch_adam(
    p: Array,
    m: Array,
    v: Array,
    largest: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["adam"], (p, m, v, largest), g, numbers, parts, scale)


@nadam_step.kernel()
def _launch_nadam(
    p: Array,
    m: Array,
    v: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["nadam"], (p, m, v), g, numbers, parts, scale)


@adamax_step.kernel()
def _launch_adamax(
    p: Array,
    m: Array,
    u: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["adamax"], (p, m, u), g, numbers, parts, scale)
