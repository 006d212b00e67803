"""2-D convolution: ``kernels/conv2d_naive.cu``, ``kernels/conv2d_tiled.cu``."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.geometry import (
    Padding,
    Pair,
    conv_output_size,
    image_shape,
    integer,
    pair,
    resolve_padding,
    same_float_dtype,
)
from gpucnn.ops.reduce import column_sum, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, SPECIALISATIONS, THREADS, slices, tile
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


@dataclass(frozen=True)
class Conv2dGeometry:
    """The sizes of one convolution, in the order in which the kernels take them."""

    N: int
    H: int
    W: int
    C: int
    OC: int
    KH: int
    KW: int
    OH: int
    OW: int
    SH: int
    SW: int
    PT: int
    PL: int
    DH: int
    DW: int
    G: int

    @property
    def CG(self) -> int:
        """Input channels per group."""
        return self.C // self.G

    @property
    def OCG(self) -> int:
        """Output channels per group."""
        return self.OC // self.G

    @property
    def K(self) -> int:
        """Weights per output channel."""
        return self.KH * self.KW * self.CG


def conv2d_geometry(
    x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> Conv2dGeometry:
    """Check the arguments of :func:`conv2d` and work out its sizes."""
    N, H, W, C = image_shape("x", x)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(f"weight must have shape (OC, KH, KW, C/groups), got {weight.shape}")
    OC, KH, KW, CG = weight.shape
    G = integer("groups", groups, 1)
    if C % G or OC % G:
        raise ValueError(f"groups must divide the {C} input and {OC} output channels, got {G}")
    if CG * G != C:
        raise ValueError(
            f"weight must have {C // G} channels (x has {C}, groups is {G}), "
            f"got shape {weight.shape}"
        )
    if bias is not None and bias.shape != (OC,):
        raise ValueError(f"bias must have shape ({OC},), got {bias.shape}")
    same_float_dtype(x=x, weight=weight, bias=bias)
    (SH, SW), (DH, DW) = pair("stride", stride), pair("dilation", dilation)
    (PT, PB), (PL, PR) = resolve_padding(padding, (H, W), (KH, KW), (SH, SW), (DH, DW))
    OH = conv_output_size(H, KH, stride=SH, padding=(PT, PB), dilation=DH)
    OW = conv_output_size(W, KW, stride=SW, padding=(PL, PR), dilation=DW)
    return Conv2dGeometry(N, H, W, C, OC, KH, KW, OH, OW, SH, SW, PT, PL, DH, DW, G)


# primitives

_CHUNK_BYTES = 1 << 20  # of scratch per thread: what a core's L2 cache holds
_SHORT_RUN = 12  # floats: below this a copy of one row of a window is mostly loop overhead


def _images_per_chunk(scratch_elements: int, itemsize: int) -> int:
    return max(1, _CHUNK_BYTES // (scratch_elements * itemsize))


def _padded_shape(s: Conv2dGeometry, n: int) -> tuple[int, int, int, int]:
    """Images that hold every cell that a window touches, from (-PT, -PL) on."""
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    return n, high, wide, s.C


def _windows(x: NDArray[Any], s: Conv2dGeometry) -> NDArray[Any]:
    """A view (G, N, OH, OW, KH, KW, CG) of the zero-padded windows of a few images."""
    shape = _padded_shape(s, len(x))
    if shape[1:] != x.shape[1:]:
        padded = scratch("conv2d padded", shape, x.dtype)
        bottom, right = s.PT + s.H, s.PL + s.W
        padded[:, : s.PT] = 0
        padded[:, bottom:] = 0
        padded[:, s.PT : bottom, : s.PL] = 0
        padded[:, s.PT : bottom, right:] = 0
        padded[:, s.PT : bottom, s.PL : right] = x
        x = padded
    n, h, w, c = x.strides
    return as_strided(
        x,
        (s.G, len(x), s.OH, s.OW, s.KH, s.KW, s.CG),
        (s.CG * c, n, h * s.SH, w * s.SW, h * s.DH, w * s.DW, c),
        writeable=False,
    )


def _unfold(x: NDArray[Any], s: Conv2dGeometry) -> NDArray[Any]:
    """The windows as matrices (G, pixels, K), a view of a scratch buffer or of x itself."""
    pixels = len(x) * s.OH * s.OW
    view = _windows(x, s)
    if s.G == 1 and view.flags.c_contiguous and s.K == s.C:
        return view.reshape(1, pixels, s.C)
    if s.KW * s.CG < _SHORT_RUN:
        columns = scratch("conv2d columns", (s.G, s.K, pixels), x.dtype)
        into = columns.reshape(s.G, s.KH, s.KW, s.CG, len(x), s.OH, s.OW)
        np.copyto(into, view.transpose(0, 4, 5, 6, 1, 2, 3))
        return cast("NDArray[Any]", columns.transpose(0, 2, 1))
    columns = scratch("conv2d columns", (s.G, pixels, s.K), x.dtype)
    np.copyto(columns.reshape(view.shape), view)
    return columns


def _by_group(y: NDArray[Any], s: Conv2dGeometry, channels: int) -> NDArray[Any]:
    """Images (…, G * channels) as matrices (G, pixels, channels), a view."""
    return cast("NDArray[Any]", y.reshape(-1, s.G, channels).transpose(1, 0, 2))


@primitive
def conv2d_forward(x: Array, w: Array, b: Array | None, geometry: Conv2dGeometry) -> Array:
    """y[n,oh,ow,oc] = b[oc] + Σ x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, g·CG+c] · w[oc,kh,kw,c]

    x (N,H,W,C), w (OC,KH,KW,C/G), b (OC) or None -> y (N,OH,OW,OC); x is zero outside the image.
    Cross-correlation as in torch.nn.Conv2d; unfolds windows chunk by chunk and multiplies matrices.
    """
    s = geometry
    y = buffers.empty((s.N, s.OH, s.OW, s.OC), x.dtype)
    weights = w.reshape(s.G, s.OCG, s.K).transpose(0, 2, 1)

    def images(start: int, stop: int) -> None:
        out = y[start:stop]
        if s.G == 1:
            np.matmul(_unfold(x[start:stop], s), weights, out=out.reshape(1, -1, s.OC))
        else:
            np.copyto(_by_group(out, s, s.OCG), np.matmul(_unfold(x[start:stop], s), weights))
        if b is not None:
            out += b

    map_chunks(images, s.N, _images_per_chunk(s.OH * s.OW * s.K * s.G, x.itemsize))
    return y


@primitive
def conv2d_data_gradient(dy: Array, w: Array, geometry: Conv2dGeometry) -> Array:
    """dx[n,h,w,c] = Σ_{oc,kh,kw} dy[n,oh,ow,oc] · w[oc,kh,kw,c] over the outputs that read (h,w,c).

    dy (N,OH,OW,OC), w (OC,KH,KW,C/G) -> dx (N,H,W,C): the adjoint of conv2d_forward in x.
    """
    s = geometry
    dx = buffers.empty((s.N, s.H, s.W, s.C), dy.dtype)
    taps = w.reshape(s.G, s.OCG, s.KH, s.KW, s.CG).transpose(2, 3, 0, 1, 4)
    taps = np.ascontiguousarray(taps)

    def images(start: int, stop: int) -> None:
        n = stop - start
        padded = scratch("conv2d padded", _padded_shape(s, n), dy.dtype)
        padded[...] = 0
        product = scratch("conv2d columns", (s.G, n * s.OH * s.OW, s.CG), dy.dtype)
        outputs = _by_group(dy[start:stop], s, s.OCG)
        for kh in range(s.KH):
            for kw in range(s.KW):
                np.matmul(outputs, taps[kh, kw], out=product)
                top, left = kh * s.DH, kw * s.DW
                cells = padded[
                    :,
                    top : top + (s.OH - 1) * s.SH + 1 : s.SH,
                    left : left + (s.OW - 1) * s.SW + 1 : s.SW,
                ]
                cells = cells.reshape(n, s.OH, s.OW, s.G, s.CG) if s.G > 1 else cells[..., None, :]
                cells += product.transpose(1, 0, 2).reshape(n, s.OH, s.OW, s.G, s.CG)
        dx[start:stop] = padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]

    cells = math.prod(_padded_shape(s, 1)) + s.OH * s.OW * s.C
    map_chunks(images, s.N, _images_per_chunk(cells, dy.itemsize))
    return dx


@primitive
def conv2d_weight_gradient(dy: Array, x: Array, geometry: Conv2dGeometry) -> Array:
    """dw[oc,kh,kw,c] = Σ_{n,oh,ow} dy[n,oh,ow,oc] · x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, g·CG+c]

    dy (N,OH,OW,OC), x (N,H,W,C) -> dw (OC,KH,KW,C/G). The sums of the chunks are added in order.
    """
    s = geometry

    def images(start: int, stop: int) -> NDArray[Any]:
        outputs = _by_group(dy[start:stop], s, s.OCG).transpose(0, 2, 1)
        return cast("NDArray[Any]", np.matmul(outputs, _unfold(x[start:stop], s)))

    dw = sum(map_chunks(images, s.N, _images_per_chunk(s.OH * s.OW * s.K * s.G, x.itemsize)))
    return cast("Array", dw).reshape(s.OC, s.KH, s.KW, s.CG)


_naive = KernelFile("conv2d_naive")
_tiled = KernelFile("conv2d_tiled", *SPECIALISATIONS)


def _one_thread_each(outputs: int) -> tuple[int]:
    return (-(-outputs // THREADS),)


@conv2d_forward.kernel("tiled")
def _tiled_forward(x: Array, w: Array, b: Array | None, geometry: Conv2dGeometry) -> Array:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.OC))
    index, rows, columns = tile(s.N * s.OH * s.OW, s.OCG)
    launch = _tiled["conv2d_tiled_forward", index]
    launch((rows, columns, s.G), (THREADS,), y, x, w, b, *astuple(s))
    return y


@conv2d_data_gradient.kernel("tiled")
def _tiled_data_gradient(dy: Array, w: Array, geometry: Conv2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.H, s.W, s.C))
    index, rows, columns = tile(s.N * s.H * s.W, s.CG)
    launch = _tiled["conv2d_tiled_data_gradient", index]
    launch((rows, columns, s.G), (THREADS,), dx, dy, w, *astuple(s))
    return dx


@conv2d_weight_gradient.kernel("tiled")
def _tiled_weight_gradient(dy: Array, x: Array, geometry: Conv2dGeometry) -> Array:
    s = geometry
    index, rows, columns = tile(s.K, s.OCG)
    count, each = slices(s.N * s.OH * s.OW, rows * columns * s.G, max(1, GRID_YZ // s.G))
    partial = empty(x, (count, s.OC, s.KH, s.KW, s.CG))
    launch = _tiled["conv2d_tiled_weight_gradient", index]
    launch((rows, columns, s.G * count), (THREADS,), partial, dy, x, *astuple(s), each)
    return launch_sum_slices(partial, None)


@conv2d_forward.kernel("naive")
def _naive_forward(x: Array, w: Array, b: Array | None, geometry: Conv2dGeometry) -> Array:
    s = geometry
    y = empty(x, (s.N, s.OH, s.OW, s.OC))
    launch = _naive["conv2d_naive_forward"]
    launch(_one_thread_each(y.size), (THREADS,), y, x, w, b, *astuple(s))
    return y


@conv2d_data_gradient.kernel("naive")
def _naive_data_gradient(dy: Array, w: Array, geometry: Conv2dGeometry) -> Array:
    s = geometry
    dx = empty(dy, (s.N, s.H, s.W, s.C))
    launch = _naive["conv2d_naive_data_gradient"]
    launch(_one_thread_each(dx.size), (THREADS,), dx, dy, w, *astuple(s))
    return dx


@conv2d_weight_gradient.kernel("naive")
def _naive_weight_gradient(dy: Array, x: Array, geometry: Conv2dGeometry) -> Array:
    s = geometry
    blocks = _one_thread_each(s.OC * s.K)
    count, each = slices(s.N * s.OH * s.OW, blocks[0], GRID_YZ)
    partial = empty(x, (count, s.OC, s.KH, s.KW, s.CG))
    launch = _naive["conv2d_naive_weight_gradient"]
    launch((*blocks, count), (THREADS,), partial, dy, x, *astuple(s), each)
    return launch_sum_slices(partial, None)


# tape


class Conv2d(Function):
    """conv2d and its three gradients."""

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
    ) -> Array:
        self.geometry = conv2d_geometry(x, weight, bias, stride, padding, dilation, groups)
        if self.recording:
            self.x, self.weight = x, weight
        return self.run(conv2d_forward, x, weight, bias, self.geometry)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        needs_x, needs_weight, needs_bias = self.needs
        return (
            self.run(conv2d_data_gradient, dy, self.weight, self.geometry) if needs_x else None,
            self.run(conv2d_weight_gradient, dy, self.x, self.geometry) if needs_weight else None,
            self.run(column_sum, dy) if needs_bias else None,
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
    also for an empty batch and for a dilated window larger than the padded image; DeviceError if
    the tensors live on two devices. Variants: ``use_variant(conv2d="tiled" | "naive")``.

    Source: torch.nn.functional.conv2d; arithmetic: Dumoulin and Visin, arXiv:1603.07285.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return cast("Tensor", Conv2d.apply(x, weight, bias, **options))
