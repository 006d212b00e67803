"""Steps of batch_norm_block, and of the functions that it is made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import BatchNormBlockCase
from gpucnn import Tensor
from gpucnn import functional as F
from tests.support import randn

MOMENTUM, EPS = 0.1, 1e-5
POOL = ("kernel_size", "stride", "padding", "edge")
NAMES = ("dx", "dgamma", "dbeta", "dresidual")


def arrays_of(case: BatchNormBlockCase, dtype: Any = np.float32, seed: int = 0) -> list[Any]:
    """x, gamma, beta, running_mean, running_var and the residual or None."""
    C = case.x[-1]
    shapes = (case.x, (C,), (C,), (C,), (C,), case.x)
    made: list[Any] = [randn(*s, seed=10 * seed + i, dtype=dtype) for i, s in enumerate(shapes)]
    made[4] = np.abs(made[4]) + dtype(0.5)
    made[5] = made[5] if case.residual else None
    return made


def step(
    function: Any, arrays: list[Any], training: bool, options: dict[str, Any], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """y, the gradients and the running statistics after one step."""
    tensors = [
        None if a is None else Tensor(a.copy(), requires_grad=i not in (3, 4), device=device)
        for i, a in enumerate(arrays)
    ]
    y = function(*tensors, training=training, momentum=MOMENTUM, eps=EPS, **options)
    y.backward(randn(*y.shape, seed=9, dtype=y.dtype))
    x, gamma, beta, mean, var, residual = tensors
    found = {"y": y, "mean": mean, "var": var}
    found |= {
        name: t.grad
        for name, t in zip(NAMES, (x, gamma, beta, residual), strict=True)
        if t is not None
    }
    return {name: t.numpy().copy() for name, t in found.items()}


def composed(
    x: Tensor, gamma: Any, beta: Any, mean: Any, var: Any, residual: Any, **options: Any
) -> Tensor:
    """The same by the functions that the block is made of."""
    numbers = {name: options.pop(name) for name in ("training", "momentum", "eps")}
    pool = {name: options.pop(name) for name in POOL if name in options}
    y = F.batch_norm(x, gamma, beta, mean, var, **numbers)
    y = y if residual is None else F.add(y, residual)
    activation = options.get("activation", "relu")
    if activation == "relu":
        y = F.relu(y)
    elif activation == "leaky_relu":
        y = F.leaky_relu(y, options.get("negative_slope", 0.01))
    return F.max_pool2d(y, **pool) if pool else y
