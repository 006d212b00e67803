"""Fully connected layer and matrix product: ``kernels/linear.cu``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array
from gpucnn.fusion import fuses
from gpucnn.kernel import Kernel, KernelFile
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, REGISTER_TILED, Rung, pipelined
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.geometry import Geometry, remembered, same_float_dtype
from gpucnn.ops.reduce import column_sum, empty_slices, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, SPECIALISATIONS, THREADS, slices, tile
from gpucnn.primitive import Primitive, chosen_by_hand, storing_primitive
from gpucnn.storage import stored_weight
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks

# geometry


@dataclass(frozen=True)
class LinearGeometry(Geometry):
    """The sizes of y (M, O) = x (M, I) · weight (O, I)ᵀ."""

    M: int
    I: int
    O: int


@remembered(arrays=slice(0, 3))
def linear_geometry(x: Any, weight: Any, bias: Any) -> LinearGeometry:
    """Check the arguments of :func:`linear` and work out its sizes."""
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"x must have shape (N, in_features), not empty, got {tuple(x.shape)}")
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(f"weight must have shape (out_features, in_features), got {weight.shape}")
    if x.shape[1] != weight.shape[1]:
        raise ValueError(f"x must have {weight.shape[1]} features like weight, got {x.shape[1]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({weight.shape[0]},), got {bias.shape}")
    same_float_dtype(x=x, weight=weight, bias=bias)
    return LinearGeometry(x.shape[0], x.shape[1], weight.shape[0])


# primitives

_CHUNK_PRODUCTS = 1 << 21  # multiply-adds: worth handing to a thread


def _rows_per_chunk(products_per_row: int) -> int:
    return max(1, _CHUNK_PRODUCTS // products_per_row)


@storing_primitive(0)
def linear_forward(x: Array, w: Array, b: Array | None, geometry: LinearGeometry) -> Array:
    """y = x wᵀ + b: x (M, I), w (O, I), b (O) or None -> y (M, O)."""
    s = geometry
    y = buffers.empty((s.M, s.O), x.dtype)

    def rows(start: int, stop: int) -> None:
        np.matmul(x[start:stop], w.T, out=y[start:stop])
        if b is not None:
            y[start:stop] += b

    map_chunks(rows, s.M, _rows_per_chunk(s.I * s.O))
    return y


@storing_primitive(0)
def linear_data_gradient(dy: Array, w: Array, geometry: LinearGeometry) -> Array:
    """dx = dy w: dy (M, O), w (O, I) -> dx (M, I)."""
    s = geometry
    dx = buffers.empty((s.M, s.I), dy.dtype)

    def rows(start: int, stop: int) -> None:
        np.matmul(dy[start:stop], w, out=dx[start:stop])

    map_chunks(rows, s.M, _rows_per_chunk(s.I * s.O))
    return dx


@storing_primitive()
def linear_weight_gradient(dy: Array, x: Array, geometry: LinearGeometry) -> Array:
    """dw = dyᵀ x: dy (M, O), x (M, I) -> dw (O, I)."""
    s = geometry
    dw = buffers.empty((s.O, s.I), dy.dtype)

    def rows(start: int, stop: int) -> None:
        np.matmul(dy[:, start:stop].T, x, out=dw[start:stop])

    map_chunks(rows, s.O, _rows_per_chunk(s.I * s.M))
    return dw


_kernels = KernelFile("linear", *SPECIALISATIONS)


def _product(
    name: str, rows: int, columns: int, terms: int, arrays: tuple[Array, ...], s: LinearGeometry
) -> tuple[Array, bool]:
    """Launch one of the three products -> (partial (slices, rows, columns), is it one slice)."""
    plan = s.known.get(name)
    if plan is None:
        plan = s.known[name] = _plan(name, rows, columns, terms)
    kernel, grid, each = plan
    count = grid[2]
    partial = empty_slices(arrays[0], count, (rows, columns))
    if name == "linear_forward" and count > 1:
        arrays = (*arrays[:2], None)
    kernel(grid, (THREADS,), partial, *arrays, s.M, s.I, s.O, each)
    return partial, count == 1


def _plan(
    name: str, rows: int, columns: int, terms: int
) -> tuple[Kernel, tuple[int, int, int], int]:
    """(kernel, grid, terms of a slice) of a product."""
    index, row_tiles, column_tiles = tile(rows, columns)
    if column_tiles > GRID_YZ:
        raise ValueError(f"linear: {columns} columns are more than the grid holds")
    count, each = slices(terms, row_tiles * column_tiles)
    return _kernels[name, index], (row_tiles, column_tiles, count), each


def _best(primitive: Primitive, x: Array, s: LinearGeometry) -> Callable[..., Array]:
    return primitive.launchers[pipelined(x, s.once(pointwise)) or "tiled"]


@linear_forward.kernel(native=True)
def _forward(x: Array, w: Array, b: Array | None, geometry: LinearGeometry) -> Array:
    return _best(linear_forward, x, geometry)(x, w, b, geometry)


@linear_data_gradient.kernel(native=True)
def _data_gradient(dy: Array, w: Array, geometry: LinearGeometry) -> Array:
    return _best(linear_data_gradient, dy, geometry)(dy, w, geometry)


@linear_weight_gradient.kernel(native=True)
def _weight_gradient(dy: Array, x: Array, geometry: LinearGeometry) -> Array:
    return _best(linear_weight_gradient, dy, geometry)(dy, x, geometry)


@linear_forward.kernel("tiled")
def _launch_forward(x: Array, w: Array, b: Array | None, geometry: LinearGeometry) -> Array:
    s = geometry
    partial, direct = _product("linear_forward", s.M, s.O, s.I, (x, w, b), s)
    return launch_sum_slices(partial, None if direct else b)


@linear_data_gradient.kernel("tiled")
def _launch_data_gradient(dy: Array, w: Array, geometry: LinearGeometry) -> Array:
    s = geometry
    return launch_sum_slices(_product("linear_data_gradient", s.M, s.I, s.O, (dy, w), s)[0], None)


@linear_weight_gradient.kernel("tiled")
def _launch_weight_gradient(dy: Array, x: Array, geometry: LinearGeometry) -> Array:
    s = geometry
    return launch_sum_slices(_product("linear_weight_gradient", s.O, s.I, s.M, (dy, x), s)[0], None)


def pointwise(s: LinearGeometry) -> ConvGeometry:
    """A linear layer as the 1×1 convolution of images of one pixel."""
    pixel = (1, 1, 1)
    sizes = (s.M, *pixel, s.I, s.O, *pixel, *pixel)
    return ConvGeometry(2, *sizes, *(1, 1, 1), *(0, 0, 0), *(1, 1, 1), 1)


def _register_rung(rung: Rung) -> None:
    """Make a rung of the convolutions a variant of the three passes."""

    def of_convolution(stores: Callable[..., bool]) -> Callable[..., bool]:
        return lambda *arguments: stores(*arguments[:-1], arguments[-1].once(pointwise))

    @linear_forward.kernel(rung.name, native=of_convolution(rung.stores_forward))
    def forward(x: Array, w: Array, b: Array | None, geometry: LinearGeometry) -> Array:
        return rung.forward(x, w, b, geometry.once(pointwise)).reshape(geometry.M, geometry.O)

    @linear_data_gradient.kernel(rung.name, native=of_convolution(rung.stores_gather))
    def data_gradient(dy: Array, w: Array, geometry: LinearGeometry) -> Array:
        return rung.data_gradient(dy, w, geometry.once(pointwise)).reshape(geometry.M, geometry.I)

    @linear_weight_gradient.kernel(rung.name, native=of_convolution(rung.stores_weight_gradient))
    def weight_gradient(dy: Array, x: Array, geometry: LinearGeometry) -> Array:
        dw = rung.weight_gradient(dy, x, geometry.once(pointwise))
        return dw.reshape(geometry.O, geometry.I)


for _rung in (REGISTER_TILED, IMPLICIT_GEMM):
    _register_rung(_rung)


# tape


class Linear(Function):
    """linear and its three gradients."""

    activations: tuple[int, ...] = (0,)
    narrows = True
    batched: tuple[int, ...] = (0,)

    def forward(self, x: Array, weight: Array, bias: Array | None) -> Array:
        self.geometry = linear_geometry(x, weight, bias)
        weight = stored_weight(self, x, weight)
        self.keep(x, weight)
        return cast("Array", self.run(linear_forward, x, weight, bias, self.geometry))

    def keep(self, x: Array, weight: Array) -> None:
        """What the backward pass needs."""
        if self.recording:
            self.x, self.weight, self.fuses = x, weight, fuses()

    def _data_gradient(self, dy: Array) -> Array:
        from gpucnn.ops.conv2d_fused import gradient_through

        def alone() -> Array:
            return cast("Array", self.run(linear_data_gradient, dy, self.weight, self.geometry))

        if not self.fuses or chosen_by_hand("linear"):
            return alone()
        s = self.geometry.once(pointwise)
        images = (dy.reshape(s.y_shape), self.x.reshape(s.x_shape), self.weight.reshape(s.w_shape))
        return gradient_through(self, *images, s, alone).reshape(self.x.shape)

    def _weight_gradient(self, dy: Array) -> Array:
        made = self.run_for((1,), linear_weight_gradient, dy, self.x, self.geometry)
        return cast("Array", made)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        needs_x, needs_weight, needs_bias = self.needs
        return (
            self._data_gradient(dy) if needs_x else None,
            self._weight_gradient(dy) if needs_weight else None,
            self.run_for((2,), column_sum, dy) if needs_bias else None,
        )


class Matmul(Function):
    """a b: the data gradient of a linear layer; its gradients are the other two products."""

    batched = (0,)

    def forward(self, a: Array, b: Array) -> Array:
        if a.ndim != 2 or 0 in a.shape:
            raise ValueError(f"a must have shape (M, K), not empty, got {tuple(a.shape)}")
        if b.ndim != 2 or 0 in b.shape or b.shape[0] != a.shape[1]:
            raise ValueError(f"b must have shape ({a.shape[1]}, N), got {tuple(b.shape)}")
        same_float_dtype(a=a, b=b)
        self.geometry = LinearGeometry(a.shape[0], b.shape[1], a.shape[1])
        if self.recording:
            self.a, self.b = a, b
        return self.run(linear_data_gradient, a, b, self.geometry)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None]:
        needs_a, needs_b = self.needs
        return (
            self.run(linear_forward, dy, self.b, None, self.geometry) if needs_a else None,
            self.run(linear_weight_gradient, self.a, dy, self.geometry) if needs_b else None,
        )


# public


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product ``y[m,n] = Σ_k a[m,k]·b[k,n]``; also ``a @ b``.

    a: (M, K) float32 (float64 on cpu). b: (K, N), the same dtype. Returns (M, N). The gradients are
    ``da = dy bᵀ`` and ``db = aᵀ dy``.

    Raises ValueError or TypeError naming the argument if a shape or dtype does not fit, also for an
    empty matrix; DeviceError if the tensors live on two devices.

    Source: torch.matmul.
    """
    return cast("Tensor", Matmul.apply(a, b))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Fully connected layer: ``y = x · weightᵀ + bias``.

    x: (N, in_features) float32 (float64 on cpu). weight: (out_features, in_features), the same
    dtype. bias: (out_features) or None. Returns (N, out_features).

    Raises ValueError or TypeError naming the argument if a shape or dtype does not fit, also for an
    x without features; DeviceError if the tensors live on two devices. Variants:
    ``use_variant(linear="tiled" | "register_tiled" | "implicit_gemm")``. By itself a layer of eight
    features or more on both sides takes "implicit_gemm", on tensor cores, or in the precision
    "fp32" "register_tiled"; others "tiled".

    Source: torch.nn.functional.linear.
    """
    return cast("Tensor", Linear.apply(x, weight, bias))
