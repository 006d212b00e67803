"""One fused step of a gradient-descent method over a flat buffer: ``kernels/optimizer.cu``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


# primitives

CHUNK = 1 << 15  # elements: six float32 buffers of it fit a core's cache


def temporary(name: str, like: Array) -> NDArray[Any]:
    """A scratch buffer of the shape and dtype of a chunk."""
    return scratch(f"optimizer {name}", like.shape, like.dtype)


def decayed_gradient(p: Array, g: Array, weight_decay: float) -> NDArray[Any]:
    """g + weight_decay·p of a chunk, in scratch memory."""
    d = temporary("d", p)
    np.multiply(p, weight_decay, out=d)
    d += g
    return d


def running_mean(mean: Array, value: Array, share: float) -> None:
    """mean += share·(value − mean), in place."""
    difference = temporary("difference", mean)
    np.subtract(value, mean, out=difference)
    difference *= share
    mean += difference


def running_square(mean: Array, value: Array, decay: float) -> None:
    """mean = decay·mean + (1 − decay)·value², in place."""
    square = temporary("square", mean)
    np.multiply(value, value, out=square)
    square *= 1.0 - decay
    mean *= decay
    mean += square


@primitive
def sgd_step(p: Array, v: Array | None, g: Array, step: SGDStep) -> None:
    """In place: g' = g + wd·p; v = μ·v + g'; p −= lr·(g' + μ·v with Nesterov, else v).

    p, v, g: (n). v is None when momentum is 0. Source: torch.optim.SGD (dampening 0).
    """

    def part(start: int, stop: int) -> None:
        parameters = p[start:stop]
        d = decayed_gradient(parameters, g[start:stop], step.weight_decay)
        if v is not None:
            velocity = v[start:stop]
            velocity *= step.momentum
            velocity += d
            if step.nesterov:
                update = temporary("update", d)
                np.multiply(velocity, step.momentum, out=update)
                d += update
            else:
                d[...] = velocity
        d *= step.lr
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def adagrad_step(p: Array, s: Array, g: Array, lr: float, eps: float, weight_decay: float) -> None:
    """In place: g' = g + wd·p; s += g'²; p −= lr·g'/(√s + ε).

    p, s, g: (n). Source: torch.optim.Adagrad.
    """

    def part(start: int, stop: int) -> None:
        parameters, square = p[start:stop], s[start:stop]
        d = decayed_gradient(parameters, g[start:stop], weight_decay)
        update = temporary("update", d)
        np.multiply(d, d, out=update)
        square += update
        np.sqrt(square, out=update)
        update += eps
        d *= lr
        d /= update
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def adadelta_step(
    p: Array, s: Array, u: Array, g: Array, lr: float, rho: float, eps: float, weight_decay: float
) -> None:
    """In place: s = ρs + (1−ρ)g'²; Δ = g'·√(u+ε)/√(s+ε); u = ρu + (1−ρ)Δ²; p −= lr·Δ.

    g' = g + wd·p. p, s, u, g: (n). Source: torch.optim.Adadelta.
    """

    def part(start: int, stop: int) -> None:
        parameters, square, steps = p[start:stop], s[start:stop], u[start:stop]
        d = decayed_gradient(parameters, g[start:stop], weight_decay)
        running_square(square, d, rho)
        root = temporary("update", d)
        for mean, combine in ((steps, np.multiply), (square, np.divide)):
            np.add(mean, eps, out=root)
            np.sqrt(root, out=root)
            combine(d, root, out=d)
        running_square(steps, d, rho)
        d *= lr
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def rmsprop_step(
    p: Array,
    s: Array,
    m: Array | None,
    v: Array | None,
    g: Array,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """In place: s = αs + (1−α)g'²; v = μv + g'/(√s + ε); p −= lr·v.

    g' = g + wd·p. p, s, m, v, g: (n). With m, centered: m += (1−α)(g'−m), and s − m² (0 where
    rounding makes it negative) in place of s under the root. v is None when momentum is 0.
    Source: torch.optim.RMSprop.
    """

    def part(start: int, stop: int) -> None:
        parameters, square = p[start:stop], s[start:stop]
        d = decayed_gradient(parameters, g[start:stop], weight_decay)
        running_square(square, d, alpha)
        root = temporary("update", d)
        if m is None:
            np.sqrt(square, out=root)
        else:
            mean = m[start:stop]
            running_mean(mean, d, 1.0 - alpha)
            np.multiply(mean, mean, out=root)
            np.subtract(square, root, out=root)
            np.maximum(root, 0.0, out=root)
            np.sqrt(root, out=root)
        root += eps
        d /= root
        if v is not None:
            velocity = v[start:stop]
            velocity *= momentum
            velocity += d
            d[...] = velocity
        d *= lr
        parameters -= d

    map_chunks(part, p.size, CHUNK)


@primitive
def lion_step(
    p: Array, m: Array, g: Array, lr: float, beta1: float, beta2: float, weight_decay: float
) -> None:
    """In place: p = (1 − lr·wd)·p − lr·sign(β₁m + (1−β₁)g); m = β₂m + (1−β₂)g; sign(0) = 0.

    p, m, g: (n). Source: Chen et al., arXiv:2302.06675, algorithm 2.
    """

    def part(start: int, stop: int) -> None:
        parameters, mean, gradient = p[start:stop], m[start:stop], g[start:stop]
        c, share = temporary("d", mean), temporary("update", mean)
        np.multiply(mean, beta1, out=c)
        np.multiply(gradient, 1.0 - beta1, out=share)
        c += share
        np.sign(c, out=c)
        c *= lr
        parameters *= 1.0 - lr * weight_decay
        parameters -= c
        mean *= beta2
        np.multiply(gradient, 1.0 - beta2, out=share)
        mean += share

    map_chunks(part, p.size, CHUNK)


@primitive
def ema_step(e: Array, p: Array, decay: float) -> None:
    """In place: e += (1 − decay)·(p − e), that is e = decay·e + (1 − decay)·p. e, p: (n)."""

    def part(start: int, stop: int) -> None:
        running_mean(e[start:stop], p[start:stop], 1.0 - decay)

    map_chunks(part, p.size, CHUNK)


_kernels = KernelFile("optimizer")


@sgd_step.kernel()
def _launch_sgd(p: Array, v: Array | None, g: Array, step: SGDStep) -> None:
    _kernels["sgd"](
        four_each(p.size), (THREADS,), p, v, g, p.size,
        step.lr, step.momentum, step.weight_decay, step.nesterov,
    )  # fmt: skip


@adagrad_step.kernel()
def _launch_adagrad(
    p: Array, s: Array, g: Array, lr: float, eps: float, weight_decay: float
) -> None:
    grid = four_each(p.size)
    _kernels["adagrad"](grid, (THREADS,), p, s, g, p.size, lr, eps, weight_decay)


@adadelta_step.kernel()
def _launch_adadelta(
    p: Array, s: Array, u: Array, g: Array, lr: float, rho: float, eps: float, weight_decay: float
) -> None:
    grid = four_each(p.size)
    _kernels["adadelta"](grid, (THREADS,), p, s, u, g, p.size, lr, rho, eps, weight_decay)


@rmsprop_step.kernel()
def _launch_rmsprop(
    p: Array,
    s: Array,
    m: Array | None,
    v: Array | None,
    g: Array,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    _kernels["rmsprop"](
        four_each(p.size), (THREADS,), p, s, m, v, g, p.size,
        lr, alpha, eps, momentum, weight_decay,
    )  # fmt: skip


@lion_step.kernel()
def _launch_lion(
    p: Array, m: Array, g: Array, lr: float, beta1: float, beta2: float, weight_decay: float
) -> None:
    shrink = 1.0 - lr * weight_decay
    _kernels["lion"](four_each(p.size), (THREADS,), p, m, g, p.size, lr, beta1, beta2, shrink)


@ema_step.kernel()
def _launch_ema(e: Array, p: Array, decay: float) -> None:
    _kernels["ema"](four_each(p.size), (THREADS,), e, p, p.size, 1.0 - decay)
