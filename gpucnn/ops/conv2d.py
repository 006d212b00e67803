"""2-D convolution: ``kernels/conv2d_naive.cu``, ``conv2d_tiled.cu``; the other rungs
are in ``conv2d_pipeline.py``, the kernels for few channels in ``conv2d_few_channels.py``, that
for 3×3 windows by Winograd in ``conv2d_winograd.py``.

The primitives also take sequences (N, W, C) and volumes (N, D, H, W, C), for conv1d and conv3d:
inside, all images have three axes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.fusion import fuses
from gpucnn.kernel import Kernel, KernelFile
from gpucnn.ops import conv2d_taps, depthwise, winograd, winograd_rows
from gpucnn.ops.conv2d_few_channels import (
    FEW_CHANNELS,
    FewChannels,
    stores_where_it_fits,
    where_it_fits,
)
from gpucnn.ops.conv2d_pipeline import (
    IMPLICIT_GEMM,
    REGISTER_TILED,
    TiledLauncher,
    pipelined,
)
from gpucnn.ops.conv2d_tiles import phases_of
from gpucnn.ops.conv2d_winograd import WINOGRAD
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.ops.geometry import Padding, Pair
from gpucnn.ops.reduce import column_sum, empty_slices, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, SPECIALISATIONS, THREADS, slices, tile
from gpucnn.ops.unfold import UNFOLDING, by_group, in_cache, unfolded
from gpucnn.precision import precision_of
from gpucnn.primitive import Primitive, storing_primitive
from gpucnn.storage import stored_weight
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks

# geometry


def conv2d_geometry(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> ConvGeometry:
    """Check the arguments of :func:`conv2d` and work out its sizes."""
    return conv_geometry(2, x, weight, bias, stride, padding, dilation, groups)


# primitives


def _cheapest(s: ConvGeometry) -> Any:
    way = min((winograd, winograd_rows), key=lambda way: way.cost(s))
    return way if way.cost(s) < s.C * (s.OC + UNFOLDING) else None


def _fewer_products(s: ConvGeometry) -> Any:
    """The module that takes fewer products than the definition; None where none is faster."""
    return s.once(_cheapest)


def _images_per_chunk(s: ConvGeometry, itemsize: int) -> int:
    if (fast := _fewer_products(s)) is not None:
        return int(fast.images_per_chunk(s))
    each = s.outputs // s.N * s.K * s.G
    if depthwise.is_depthwise(s):
        each = depthwise.scratch_elements(s)
    return in_cache(each * itemsize)


@storing_primitive(0)
def conv2d_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """y[n,oh,ow,oc] = b[oc] + Σ x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, g·CG+c] · w[oc,kh,kw,c]

    x (N,H,W,C), w (OC,KH,KW,C/G), b (OC) or None -> y (N,OH,OW,OC); x is zero outside the image.
    Cross-correlation as in torch.nn.Conv2d; unfolds windows chunk by chunk and multiplies matrices.
    """
    s = geometry
    y = buffers.empty(s.y_shape, x.dtype)
    weights = w.reshape(s.G, s.OCG, s.K).transpose(0, 2, 1)
    fast = _fewer_products(s)
    transformed = None if fast is None else fast.filters(w, s)
    bias = None if b is None else np.tile(b, s.OW)

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        out = y[start:stop]
        if depthwise.is_depthwise(s):
            depthwise.forward(x[start:stop], w, s, out)
        elif fast is None or not fast.forward(x[start:stop], transformed, s, out):
            for columns, outputs in unfolded(x[start:stop], out, s):
                np.matmul(columns, weights, out=by_group(outputs, s, s.OCG))
        if bias is not None:
            rows = out.reshape(-1, bias.size)
            rows += bias

    map_chunks(images, s.N, _images_per_chunk(s, x.itemsize))
    return y


@storing_primitive(0)
def conv2d_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    """dx[n,h,w,c] = Σ_{oc,kh,kw} dy[n,oh,ow,oc] · w[oc,kh,kw,c] over the outputs that read (h,w,c).

    dy (N,OH,OW,OC), w (OC,KH,KW,C/G) -> dx (N,H,W,C): the adjoint of conv2d_forward in x.
    """
    s = geometry
    adjoint = s.adjoint()
    if adjoint is not None and (s.OC <= s.C or _fewer_products(adjoint) is not None):
        filters = w.reshape(s.G, s.OCG, s.KD, s.KH, s.KW, s.CG)
        flipped = filters[:, :, ::-1, ::-1, ::-1].transpose(0, 5, 2, 3, 4, 1)
        return conv2d_forward(dy, flipped.reshape(adjoint.w_shape), None, adjoint)
    dx = buffers.empty(s.x_shape, dy.dtype)
    each, taps = conv2d_taps.images_per_chunk(s, dy.itemsize), conv2d_taps.arrange(w, s)

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> None:
        if depthwise.is_depthwise(s):
            depthwise.data_gradient(dy[start:stop], w, s, dx[start:stop])
        else:
            conv2d_taps.add_up(dy[start:stop], taps, s, dx[start:stop])

    map_chunks(images, s.N, each)
    return dx


@storing_primitive()
def conv2d_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """dw[oc,kh,kw,c] = Σ_{n,oh,ow} dy[n,oh,ow,oc] · x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, g·CG+c]

    dy (N,OH,OW,OC), x (N,H,W,C) -> dw (OC,KH,KW,C/G). The sums of the chunks are added in order.
    """
    s = geometry
    fast = _fewer_products(s)

    @np.errstate(invalid="ignore", over="ignore")  # infinities meet
    def images(start: int, stop: int) -> Any:
        if depthwise.is_depthwise(s):
            return depthwise.weight_gradient(dy[start:stop], x[start:stop], s)
        part = None if fast is None else fast.weight_gradient(dy[start:stop], x[start:stop], s)
        if part is not None:
            return part
        parts = unfolded(x[start:stop], dy[start:stop], s)
        dw = sum(np.matmul(columns.mT, by_group(part, s, s.OCG)) for columns, part in parts)
        return cast("Array", dw).mT.reshape(s.w_shape)

    dw = sum(map_chunks(images, s.N, _images_per_chunk(s, x.itemsize)))
    return np.ascontiguousarray(cast("Array", dw).reshape(s.w_shape))


_naive = KernelFile("conv2d_naive", *({"DIMS": dims} for dims in (2, 3)))
_tiled = KernelFile(
    "conv2d_tiled", *({"DIMS": dims, **tile} for dims in (2, 3) for tile in SPECIALISATIONS)
)


def _volumes(s: ConvGeometry) -> int:
    """1 where the kernels for volumes are needed, 0 where those for images do."""
    return int(s.dims == 3)


def _tiled_kernel(name: str, s: ConvGeometry, width: int) -> Kernel:
    return _tiled[name, width + len(SPECIALISATIONS) * _volumes(s)]


def gather_grid(s: ConvGeometry) -> tuple[int, tuple[int, int, int]]:
    """(specialisation, grid) of ``kernels/conv2d_gather.cuh``: blocks own pixels of one phase."""
    phases, largest = s.once(phases_of)
    index, rows, columns = tile(largest, s.CG)
    return index, (phases * rows, columns, s.G)


def _one_thread_each(outputs: int) -> tuple[int]:
    return (-(-outputs // THREADS),)


def _untiled(s: ConvGeometry) -> bool:
    """Whether a tile would stay 7/8 empty: a group has one channel, and few outputs made from it;
    or there are more groups than a grid has planes.
    """
    return depthwise.is_depthwise(s) or s.G > GRID_YZ


def _takes_few(few: FewChannels) -> Callable[[str, Array, ConvGeometry], bool]:
    return lambda primitive, x, s: few.takes(primitive, s)


# What a problem takes by itself: the first variant whose condition holds of the primitive's name,
# an input and the sizes. The pipelined ones then choose their tile (TILES in conv2d_tiles.py).
CHOICE: tuple[tuple[str, Callable[[str, Array, ConvGeometry], bool]], ...] = (
    *((few.name, _takes_few(few)) for few in FEW_CHANNELS),
    ("naive", lambda primitive, x, s: _untiled(s)),
    ("implicit_gemm", lambda primitive, x, s: pipelined(x, s) == "implicit_gemm"),
    ("register_tiled", lambda primitive, x, s: pipelined(x, s) == "register_tiled"),
    ("tiled", lambda primitive, x, s: True),
)


def _best(primitive: Primitive, x: Array, s: ConvGeometry) -> Callable[..., Array]:
    key = (primitive.name, precision_of(x))
    chosen = s.known.get(key)
    if chosen is None:
        chosen = next(name for name, takes in CHOICE if takes(primitive.name, x, s))
        s.known[key] = chosen
    return primitive.launchers[chosen]


_ANY_TILE: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


def chosen_variant(
    primitive: Primitive, *arguments: Any
) -> tuple[str, contextlib.AbstractContextManager[None]]:
    """The variant that a call of one of these primitives takes: by hand, measured, or best; and
    what puts the tile that was measured with it in force.
    """
    launcher, tile = primitive.chosen(*arguments), _ANY_TILE
    if isinstance(launcher, TiledLauncher):
        tile, launcher = launcher.in_force(), launcher.launcher
    if launcher is primitive.launchers[""]:
        launcher = _best(primitive, arguments[0], arguments[-1])
    return next(name for name, each in primitive.launchers.items() if each is launcher), tile


@conv2d_forward.kernel(native=True)
def _forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    return _best(conv2d_forward, x, geometry)(x, w, b, geometry)


@conv2d_data_gradient.kernel(native=True)
def _data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    return _best(conv2d_data_gradient, dy, geometry)(dy, w, geometry)


@conv2d_weight_gradient.kernel(native=True)
def _weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    return _best(conv2d_weight_gradient, dy, geometry)(dy, x, geometry)


@conv2d_forward.kernel("tiled")
def _tiled_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    y = empty(x, s.y_shape)
    index, rows, columns = tile(s.outputs, s.OCG)
    launch = _tiled_kernel("conv2d_tiled_forward", s, index)
    launch((rows, columns, s.G), (THREADS,), y, x, w, b, *s.numbers)
    return y


@conv2d_data_gradient.kernel("tiled")
def _tiled_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    dx = empty(dy, s.x_shape)
    index, grid = gather_grid(s)
    launch = _tiled_kernel("conv2d_tiled_data_gradient", s, index)
    launch(grid, (THREADS,), dx, dy, w, *s.numbers)
    return dx


@conv2d_weight_gradient.kernel("tiled")
def _tiled_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    index, rows, columns = tile(s.K, s.OCG)
    count, each = slices(s.outputs, rows * columns * s.G, max(1, GRID_YZ // s.G))
    partial = empty_slices(x, count, s.w_shape)
    launch = _tiled_kernel("conv2d_tiled_weight_gradient", s, index)
    launch((rows, columns, s.G * count), (THREADS,), partial, dy, x, *s.numbers, each)
    return launch_sum_slices(partial, None)


@conv2d_forward.kernel("naive")
def _naive_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    y = empty(x, s.y_shape)
    launch = _naive["conv2d_naive_forward", _volumes(s)]
    launch(_one_thread_each(y.size), (THREADS,), y, x, w, b, *s.numbers)
    return y


@conv2d_data_gradient.kernel("naive")
def _naive_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    dx = empty(dy, s.x_shape)
    launch = _naive["conv2d_naive_data_gradient", _volumes(s)]
    launch(_one_thread_each(dx.size), (THREADS,), dx, dy, w, *s.numbers)
    return dx


@conv2d_weight_gradient.kernel("naive")
def _naive_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    blocks = _one_thread_each(s.OC * s.K)
    count, each = slices(s.outputs, blocks[0], GRID_YZ)
    partial = empty_slices(x, count, s.w_shape)
    launch = _naive["conv2d_naive_weight_gradient", _volumes(s)]
    launch((*blocks, count), (THREADS,), partial, dy, x, *s.numbers, each)
    return launch_sum_slices(partial, None)


for _rung in (REGISTER_TILED, IMPLICIT_GEMM):
    conv2d_forward.kernel(_rung.name, native=_rung.stores_forward)(_rung.forward)
    conv2d_data_gradient.kernel(_rung.name, native=_rung.stores_gather)(_rung.data_gradient)
    conv2d_weight_gradient.kernel(_rung.name, native=_rung.stores_weight_gradient)(
        _rung.weight_gradient
    )
for _partial in (*FEW_CHANNELS, WINOGRAD):
    for _primitive in (conv2d_forward, conv2d_data_gradient, conv2d_weight_gradient):
        _stores = stores_where_it_fits(_primitive, _partial)
        _primitive.kernel(_partial.name, native=_stores)(where_it_fits(_primitive, _partial))


# tape


class Convolution(Function):
    """conv1d, conv2d, conv3d and their three gradients."""

    activations: tuple[int, ...] = (0,)
    narrows = True
    batched: tuple[int, ...] = (0,)

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        dims: int,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
    ) -> Array:
        self.geometry = conv_geometry(dims, x, weight, bias, stride, padding, dilation, groups)
        weight = stored_weight(self, x, weight)
        if self.recording:
            self.x, self.weight, self.fuses = x, weight, fuses()
        return self.run(conv2d_forward, x, weight, bias, self.geometry)

    def _data_gradient(self, dy: Array) -> Array:
        from gpucnn.ops.conv2d_fused import gradient_through

        def alone() -> Array:
            return cast("Array", self.run(conv2d_data_gradient, dy, self.weight, self.geometry))

        if not self.fuses:
            return alone()
        return gradient_through(self, dy, self.x, self.weight, self.geometry, alone)

    def _weight_gradient(self, dy: Array) -> Array:
        made = self.run_for((1,), conv2d_weight_gradient, dy, self.x, self.geometry)
        return cast("Array", made)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        needs_x, needs_weight, needs_bias = self.needs[:3]
        return (
            self._data_gradient(dy) if needs_x else None,
            self._weight_gradient(dy) if needs_weight else None,
            self.run_for((2,), column_sum, dy) if needs_bias else None,
        )


# public


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | Padding | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution (cross-correlation: the filter is not flipped).

    ``y[n,oh,ow,oc] = bias[oc] + Σ x[n, oh·SH − PT + kh·DH, ow·SW − PL + kw·DW, g·CG + c] ·
    weight[oc,kh,kw,c]`` over kh, kw and the CG = C/groups channels of the group g of oc; x counts
    as zero outside the image. ``OH = (H + PT + PB − DH·(KH − 1) − 1) // SH + 1``, likewise OW.

    x: (N, H, W, C) float32 (float64 on cpu). weight: (OC, KH, KW, C/groups), the same dtype.
    bias: (OC) or None. stride, dilation: int or (height, width), >= 1. padding: int, (PH, PW),
    ((PT, PB), (PL, PR)), "valid" (none) or "same" (OH = ceil(H / SH); an odd cell goes to the
    bottom right). groups: divides C and OC. Returns (N, OH, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty image and for a dilated window larger than the padded image; DeviceError if
    the tensors live on two devices. Variants: ``use_variant(conv2d="tiled" | "naive" |
    "register_tiled" | "implicit_gemm" | "direct" | "depthwise" | "winograd")``. "direct" takes one
    group with up to four channels on either side, but where only OC is small, gradients with
    strides of 1 alone; "depthwise" takes groups of one channel, and of two or four if as many come
    out and four divides OC; "winograd" takes 3×3 windows of stride and dilation 1 padded by up to
    two cells, not their weight gradient; what they do not take runs the default. That is
    "depthwise" or "direct" where they fit, else where a group has eight channels or more on both
    sides "implicit_gemm", on tensor cores, or in the precision "fp32" "register_tiled"; else
    "tiled", or "naive" where that leaves its tiles empty.

    Source: torch.nn.functional.conv2d; arithmetic: Dumoulin and Visin, arXiv:1603.07285.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return cast("Tensor", Convolution.apply(x, weight, bias, dims=2, **options))
