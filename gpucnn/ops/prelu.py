"""PReLU, a leaky ReLU with learned slopes: ``kernels/prelu.cu``."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.activation import check_input
from gpucnn.ops.activation_formulas import two_slopes, two_slopes_slope
from gpucnn.ops.geometry import same_float_dtype
from gpucnn.ops.reduce import launch_column_sum, launch_sum_slices, vector_column_blocks
from gpucnn.primitive import storing_primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


def prelu_check(x: Any, weight: Any) -> None:
    """Check the arguments of :func:`prelu`."""
    if x.ndim == 0:
        raise ValueError("x must have shape (…, C), got ()")
    check_input(x)
    same_float_dtype(x=x, weight=weight)
    channels = x.shape[-1]
    if weight.shape not in ((1,), (channels,)):
        allowed = "(1,)" if channels == 1 else f"(1,) or ({channels},)"
        raise ValueError(f"weight must have shape {allowed}, got {tuple(weight.shape)}")


# primitives

_CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


@storing_primitive(0)
def prelu_forward(x: Array, weight: Array) -> Array:
    """y = x where x > 0, else weight·x: x (…, C), weight (C) or (1) -> (…, C)."""
    rows = x.reshape(-1, x.shape[-1])
    y = buffers.empty_like(x)
    out = y.reshape(rows.shape)

    def part(start: int, stop: int) -> None:
        two_slopes(rows[start:stop], out[start:stop], weight)

    map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    return y


@storing_primitive(0)
def prelu_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    """dx = dy where x > 0, else weight·dy; dweight = Σ x·dy over x <= 0, per channel or over all

    dy, x (…, C), weight (C) or (1) -> dx (…, C), dweight of weight's shape.
    """
    rows = x.reshape(-1, x.shape[-1])
    gradients = dy.reshape(rows.shape)
    dx = buffers.empty_like(x)
    out = dx.reshape(rows.shape)

    def part(start: int, stop: int) -> NDArray[Any]:
        values, g = rows[start:stop], gradients[start:stop]
        two_slopes_slope(values, out[start:stop], weight)
        out[start:stop] *= g
        product = scratch("prelu product", values.shape, x.dtype)
        np.minimum(values, 0, out=product)
        product *= g
        return cast("NDArray[Any]", np.ones(len(product), x.dtype) @ product)

    parts = map_chunks(part, len(rows), max(1, _CHUNK // rows.shape[1]))
    sums = np.stack(parts).sum(axis=0, dtype=np.float64)
    if weight.size == 1:
        sums = sums.sum(keepdims=True)
    return dx, sums.astype(x.dtype)


_kernels = KernelFile("prelu", storage=True)


@prelu_forward.kernel(native=True)
def _launch_forward(x: Array, weight: Array) -> Array:
    y = empty(x, x.shape, x.dtype)
    C = x.shape[-1]
    rows = x.size // C
    grid, block, each = vector_column_blocks(rows, C)
    launch = _kernels.storing(x, "prelu_forward")
    launch(grid, block, y, x, weight, rows, C, each, weight.size == 1)
    return y


@prelu_backward.kernel(native=True)
def _launch_backward(dy: Array, x: Array, weight: Array) -> tuple[Array, Array]:
    C = x.shape[-1]
    rows = x.size // C
    grid, block, each = vector_column_blocks(rows, C)
    dx, partial = empty(dy, dy.shape, dy.dtype), empty(dy, (grid[0], C))
    launch, shared = _kernels.storing(dy, "prelu_backward"), weight.size == 1
    launch(grid, block, dx, partial, dy, x, weight, rows, C, each, shared)
    dweight = launch_sum_slices(partial, None)
    return dx, launch_column_sum(dweight.reshape(C, 1)) if shared else dweight


# tape


class PRelu(Function):
    """prelu and the gradients of its input and slopes; keeps the input."""

    activations = (0,)
    batched = (0,)

    def forward(self, x: Array, weight: Array) -> Array:
        prelu_check(x, weight)
        if self.recording:
            self.x, self.weight = x, weight
        return self.run(prelu_forward, x, weight)

    def backward(self, dy: Array) -> tuple[Array, Array]:
        dx, dweight = self.run(prelu_backward, dy, self.x, self.weight)
        return dx, dweight


# public


def prelu(x: Tensor, weight: Tensor) -> Tensor:
    """``y = x`` where x > 0, else ``weight · x``, with one learned slope or one per channel.

    x: (…, C), C >= 1, float32 (float64 on cpu). weight: (1,) or (C,) of its
    dtype. Returns a tensor of the shape of x. The gradient of weight is Σ x·dy over x <= 0, added
    in a fixed order; the gradient of x at 0 is weight·dy. The backward pass works from x, so that
    negative slopes are right too.

    Raises ValueError if x is 0-d, its rows are empty or weight has another shape, TypeError for
    integers or two dtypes, DeviceError for tensors on two devices.

    Source: He et al., arXiv:1502.01852; torch.nn.functional.prelu.
    """
    return cast("Tensor", PRelu.apply(x, weight))
