"""One fused step of a gradient-descent method over flat buffers: ``kernels/optimizer.cu``.

Every step takes ``numbers``, an array of the device (float32, float64 on cpu): a step that a graph
replays finds new ones in it. With ``parts`` it goes through these, ``numbers`` has a row for each
group, and ``scale`` (1) multiplies the gradients of the parts that are scaled; without, it goes
through all elements with one row. :func:`gpucnn.ops.optimizer_parts.update_parts` says what a part
can be besides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array
from gpucnn.kernel import KernelFile
from gpucnn.ops.elementwise import THREADS, four_each
from gpucnn.ops.optimizer_parts import Parts, launch_update, temporary, update_parts
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks

# primitives


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
def sgd_step(
    p: Array,
    v: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: g' = g + wd·p; v = μ·v + g'; p −= lr·(g' + μ·v with Nesterov, else v).

    p, v, g: (n). v stays as it is where μ is 0, and may be None. numbers: (4) lr, μ, wd, 1 with
    Nesterov and else 0. Source: torch.optim.SGD (dampening 0).
    """

    def part(at: slice, lr: float, momentum: float, weight_decay: float, nesterov: float) -> None:
        parameters = p[at]
        d = decayed_gradient(parameters, g[at], weight_decay)
        if v is not None and momentum:
            velocity = v[at]
            velocity *= momentum
            velocity += d
            if nesterov:
                update = temporary("update", d)
                np.multiply(velocity, momentum, out=update)
                d += update
            else:
                d[...] = velocity
        d *= lr
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def adagrad_step(
    p: Array,
    s: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: g' = g + wd·p; s += g'²; p −= lr·g'/(√s + ε).

    p, s, g: (n). numbers: (3) lr, ε, wd. Source: torch.optim.Adagrad.
    """

    def part(at: slice, lr: float, eps: float, weight_decay: float) -> None:
        parameters, square = p[at], s[at]
        d = decayed_gradient(parameters, g[at], weight_decay)
        update = temporary("update", d)
        np.multiply(d, d, out=update)
        square += update
        np.sqrt(square, out=update)
        update += eps
        d *= lr
        d /= update
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def adadelta_step(
    p: Array,
    s: Array,
    u: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: s = ρs + (1−ρ)g'²; Δ = g'·√(u+ε)/√(s+ε); u = ρu + (1−ρ)Δ²; p −= lr·Δ.

    g' = g + wd·p. p, s, u, g: (n). numbers: (4) lr, ρ, ε, wd. Source: torch.optim.Adadelta.
    """

    def part(at: slice, lr: float, rho: float, eps: float, weight_decay: float) -> None:
        parameters, square, steps = p[at], s[at], u[at]
        d = decayed_gradient(parameters, g[at], weight_decay)
        running_square(square, d, rho)
        root = temporary("update", d)
        for mean, combine in ((steps, np.multiply), (square, np.divide)):
            np.add(mean, eps, out=root)
            np.sqrt(root, out=root)
            combine(d, root, out=d)
        running_square(steps, d, rho)
        d *= lr
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def rmsprop_step(
    p: Array,
    s: Array,
    m: Array | None,
    v: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: s = αs + (1−α)g'²; v = μv + g'/(√s + ε); p −= lr·v.

    g' = g + wd·p. p, s, m, v, g: (n). Centered: m += (1−α)(g'−m), and s − m² (0 where rounding
    makes it negative) in place of s under the root; else m stays as it is, and so does v where μ is
    0: both may be None. numbers: (6) lr, α, ε, μ, wd, 1 if centered and else 0. Source:
    torch.optim.RMSprop.
    """

    def part(
        at: slice,
        lr: float,
        alpha: float,
        eps: float,
        momentum: float,
        weight_decay: float,
        centered: float,
    ) -> None:
        parameters, square = p[at], s[at]
        d = decayed_gradient(parameters, g[at], weight_decay)
        running_square(square, d, alpha)
        root = temporary("update", d)
        if m is None or not centered:
            np.sqrt(square, out=root)
        else:
            mean = m[at]
            running_mean(mean, d, 1.0 - alpha)
            np.multiply(mean, mean, out=root)
            np.subtract(square, root, out=root)
            np.maximum(root, 0.0, out=root)
            np.sqrt(root, out=root)
        root += eps
        d /= root
        if v is not None and momentum:
            velocity = v[at]
            velocity *= momentum
            velocity += d
            d[...] = velocity
        d *= lr
        parameters -= d

    update_parts(part, p, g, numbers, parts, scale)


@primitive
def lion_step(
    p: Array,
    m: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    """In place: p = (1 − lr·wd)·p − lr·sign(β₁m + (1−β₁)g); m = β₂m + (1−β₂)g; sign(0) = 0.

    p, m, g: (n). numbers: (4) lr, β₁, β₂, 1 − lr·wd. Source: Chen et al., arXiv:2302.06675,
    algorithm 2.
    """

    def part(at: slice, lr: float, beta1: float, beta2: float, shrink: float) -> None:
        parameters, mean, gradient = p[at], m[at], g[at]
        c, share = temporary("d", mean), temporary("update", mean)
        np.multiply(mean, beta1, out=c)
        np.multiply(gradient, 1.0 - beta1, out=share)
        c += share
        np.sign(c, out=c)
        c *= lr
        parameters *= shrink
        parameters -= c
        mean *= beta2
        np.multiply(gradient, 1.0 - beta2, out=share)
        mean += share

    update_parts(part, p, g, numbers, parts, scale)


_CHUNK = 1 << 15  # elements: both buffers and one more fit a core's cache


@primitive
def ema_step(e: Array, p: Array, share: Array) -> None:
    """In place: e += share·(p − e), that is e = decay·e + (1 − decay)·p.

    e, p: (n). share: (1) 1 − decay.
    """
    step = share.item()

    def part(start: int, stop: int) -> None:
        running_mean(e[start:stop], p[start:stop], step)

    map_chunks(part, p.size, _CHUNK)


_kernels = KernelFile("optimizer")


@sgd_step.kernel()
def _launch_sgd(
    p: Array,
    v: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["sgd"], (p, v), g, numbers, parts, scale)


@adagrad_step.kernel()
def _launch_adagrad(
    p: Array,
    s: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["adagrad"], (p, s), g, numbers, parts, scale)


@adadelta_step.kernel()
def _launch_adadelta(
    p: Array,
    s: Array,
    u: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["adadelta"], (p, s, u), g, numbers, parts, scale)


@rmsprop_step.kernel()
def _launch_rmsprop(
    p: Array,
    s: Array,
    m: Array | None,
    v: Array | None,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["rmsprop"], (p, s, m, v), g, numbers, parts, scale)


@lion_step.kernel()
def _launch_lion(
    p: Array,
    m: Array,
    g: Array,
    numbers: Array,
    parts: Parts | None = None,
    scale: Array | None = None,
) -> None:
    launch_update(_kernels["lion"], (p, m), g, numbers, parts, scale)


@ema_step.kernel()
def _launch_ema(e: Array, p: Array, share: Array) -> None:
    _kernels["ema"](four_each(p.size), (THREADS,), e, p, share, p.size)
