"""2-D convolution without weight sharing: ``kernels/locally_connected2d.cu``."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.ops.geometry import Padding, Pair, image_shape, integer, same_float_dtype
from gpucnn.ops.reduce import sum_slices
from gpucnn.ops.tile import SPECIALISATIONS, THREADS, tile
from gpucnn.primitive import primitive
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks, scratch

# geometry


def locally_connected2d_geometry(
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    groups: Any = 1,
) -> ConvGeometry:
    """Check the arguments of :func:`locally_connected2d` -> the sizes of the shared convolution."""
    channels, G = image_shape("x", x)[3], integer("groups", groups, 1)
    fits = weight.ndim == 6 and 0 not in weight.shape
    if not fits or (channels % G == 0 and weight.shape[5] * G != channels):
        of_groups = f" in {G} groups" if G > 1 else ""
        raise ValueError(
            f"weight must have shape (OH, OW, OC, KH, KW, {channels // G}) for x with {channels} "
            f"channels{of_groups}, got {weight.shape}"
        )
    s = conv_geometry(2, x, weight[0, 0], None, stride, padding, dilation, groups)
    if weight.shape[:2] != (s.OH, s.OW):
        raise ValueError(
            f"weight must have filters for {s.OH} x {s.OW} output positions, got {weight.shape}"
        )
    if bias is not None and bias.shape != weight.shape[:3]:
        raise ValueError(f"bias must have shape {weight.shape[:3]}, got {bias.shape}")
    same_float_dtype(x=x, weight=weight, bias=bias)
    return s


# primitives


def _by_group(row: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """A row of outputs (N, OW, OC) as matrices (OW, G, N, OC/G), a view."""
    return cast("NDArray[Any]", row.reshape(len(row), s.OW, s.G, s.OCG).transpose(1, 2, 0, 3))


def _columns(x: NDArray[Any], s: ConvGeometry, oh: int) -> NDArray[Any]:
    """The windows of output row ``oh`` as matrices (OW, G, N, KH·KW·C/G), in a scratch buffer."""
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)
    band = scratch("locally connected band", (s.N, s.KH, wide, s.C), x.dtype)
    band[...] = 0
    for kh in range(s.KH):
        ih = oh * s.SH - s.PT + kh * s.DH
        if 0 <= ih < s.H:
            band[:, kh, s.PL : s.PL + s.W] = x[:, ih]
    n, h, w, c = band.strides
    shape, strides = (s.OW, s.G, s.N, s.KH, s.KW, s.CG), (w * s.SW, s.CG * c, n, h, w * s.DW, c)
    view = as_strided(band, shape, strides, writeable=False)
    columns = scratch("locally connected columns", (s.OW, s.G, s.N, s.K), x.dtype)
    np.copyto(columns.reshape(shape), view)
    return columns


def _filters(w: NDArray[Any], s: ConvGeometry) -> NDArray[Any]:
    """The weights as matrices (OH, OW, G, OC/G, KH·KW·C/G)."""
    return w.reshape(s.OH, s.OW, s.G, s.OCG, s.K)


@primitive
def locally_connected2d_forward(
    x: Array, w: Array, b: Array | None, geometry: ConvGeometry
) -> Array:
    """y[n,oh,ow,oc] = b[oh,ow,oc] + Σ x[n,ih,iw,g·CG+c] · w[oh,ow,oc,kh,kw,c]

    ih = oh·SH−PT+kh·DH, iw = ow·SW−PL+kw·DW, g the group of oc, CG = C/G. x (N,H,W,C),
    w (OH,OW,OC,KH,KW,C/G), b (OH,OW,OC) or None -> y (N,OH,OW,OC); x is zero outside the image. Row
    by row of the output: one matrix product per position and group.
    """
    s = geometry
    y = buffers.empty(s.y_shape, x.dtype)
    filters = _filters(w, s).swapaxes(3, 4)

    def rows(start: int, stop: int) -> None:
        for oh in range(start, stop):
            out = _by_group(y[:, oh], s)
            np.copyto(out, np.matmul(_columns(x, s, oh), filters[oh]))
            if b is not None:
                out += b[oh].reshape(s.OW, s.G, 1, s.OCG)

    map_chunks(rows, s.OH, 1)
    return y


@primitive
def locally_connected2d_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    """dx[n,h,w,c] = Σ_{oc,kh,kw} dy[n,oh,ow,oc] · w[oh,ow,oc,kh,kw,c], outputs that read (h,w,c).

    dy (N,OH,OW,OC), w (OH,OW,OC,KH,KW,C/G) -> dx (N,H,W,C): the adjoint of the forward pass in x.
    """
    s = geometry
    dx = buffers.empty(s.x_shape, dy.dtype)
    filters = _filters(w, s)
    high = max((s.OH - 1) * s.SH + (s.KH - 1) * s.DH + 1, s.PT + s.H)
    wide = max((s.OW - 1) * s.SW + (s.KW - 1) * s.DW + 1, s.PL + s.W)

    def images(start: int, stop: int) -> None:
        n = stop - start
        padded = scratch("locally connected padded", (n, high, wide, s.C), dy.dtype)
        padded[...] = 0
        product = scratch("locally connected columns", (s.OW, s.G, n, s.K), dy.dtype)
        taps = product.reshape(s.OW, s.G, n, s.KH, s.KW, s.CG).transpose(2, 0, 1, 3, 4, 5)
        for oh in range(s.OH):
            np.matmul(_by_group(dy[start:stop, oh], s), filters[oh], out=product)
            for kh, kw in np.ndindex(s.KH, s.KW):
                left = kw * s.DW
                right = left + (s.OW - 1) * s.SW + 1
                cells = padded[:, oh * s.SH + kh * s.DH, left : right : s.SW]
                cells = cells.reshape(n, s.OW, s.G, s.CG)
                cells += taps[:, :, :, kh, kw]
        dx[start:stop] = padded[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]

    map_chunks(images, s.N, -(-s.N // 2))  # each chunk reads all weights
    return dx


@primitive
def locally_connected2d_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    """dw[oh,ow,oc,kh,kw,c] = Σ_n dy[n,oh,ow,oc] · x[n, oh·SH−PT+kh·DH, ow·SW−PL+kw·DW, g·CG+c]

    dy (N,OH,OW,OC), x (N,H,W,C) -> dw (OH,OW,OC,KH,KW,C/G).
    """
    s = geometry
    dw = buffers.empty((s.OH, s.OW, s.G, s.OCG, s.K), dy.dtype)

    def rows(start: int, stop: int) -> None:
        for oh in range(start, stop):
            np.matmul(_by_group(dy[:, oh], s).swapaxes(2, 3), _columns(x, s, oh), out=dw[oh])

    map_chunks(rows, s.OH, 1)
    return dw.reshape(s.OH, s.OW, *s.w_shape)


_kernels = KernelFile("locally_connected2d", *({"DIMS": 2, **tile} for tile in SPECIALISATIONS))


def _numbers(s: ConvGeometry) -> tuple[int, ...]:
    sizes = (s.N, s.H, s.W, s.C, s.OC, s.KH, s.KW, s.OH, s.OW)
    return (*sizes, s.SH, s.SW, s.PT, s.PL, s.DH, s.DW, s.G)


@locally_connected2d_forward.kernel()
def _launch_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    y = empty(x, s.y_shape)
    index, rows, columns = tile(s.N, s.OCG)
    launch = _kernels["locally_connected2d_forward", index]
    grid = (s.OH * s.OW * rows, columns, s.G)
    launch(grid, (THREADS,), y, x, w, b, *_numbers(s))
    return y


@locally_connected2d_data_gradient.kernel()
def _launch_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    dx = empty(dy, s.x_shape)
    index, rows, columns = tile(s.N, s.CG)
    launch = _kernels["locally_connected2d_data_gradient", index]
    launch((s.H * s.W * rows, columns, s.G), (THREADS,), dx, dy, w, *_numbers(s))
    return dx


@locally_connected2d_weight_gradient.kernel()
def _launch_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    dw = empty(x, (s.OH, s.OW, *s.w_shape))
    index, rows, columns = tile(s.OCG, s.K)
    launch = _kernels["locally_connected2d_weight_gradient", index]
    launch((s.OH * s.OW * rows, columns, s.G), (THREADS,), dw, dy, x, *_numbers(s))
    return dw


# tape


class LocallyConnected2d(Function):
    """locally_connected2d and its three gradients."""

    batched = (0,)

    def forward(self, x: Array, weight: Array, bias: Array | None, **options: Any) -> Array:
        self.geometry = locally_connected2d_geometry(x, weight, bias, **options)
        if self.recording:
            self.x, self.weight = x, weight
        return self.run(locally_connected2d_forward, x, weight, bias, self.geometry)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        needs_x, needs_weight, needs_bias = self.needs
        s = self.geometry
        return (
            self.run(locally_connected2d_data_gradient, dy, self.weight, s) if needs_x else None,
            self.run(locally_connected2d_weight_gradient, dy, self.x, s) if needs_weight else None,
            self.run(sum_slices, dy, None) if needs_bias else None,
        )


# public


def locally_connected2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | Padding | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
) -> Tensor:
    """2-D convolution without weight sharing: each output position has its own filters and bias.

    ``y[n,oh,ow,oc] = bias[oh,ow,oc] + Σ x[n, oh·SH − PT + kh·DH, ow·SW − PL + kw·DW, g·CG + c] ·
    weight[oh,ow,oc,kh,kw,c]`` over kh, kw and the CG = C/groups channels of the group g of oc; x
    counts as zero outside the image. Where all positions hold the same filters it is conv2d.
    ``OH = (H + PT + PB − DH·(KH − 1) − 1) // SH + 1``, OW alike.

    x: (N, H, W, C) float32 (float64 on cpu). weight: (OH, OW, OC, KH, KW, C/groups), the same
    dtype: a weight of conv2d per position. bias: (OH, OW, OC) or None. stride, dilation: int or
    (height, width), >= 1. padding: int, (PH, PW), ((PT, PB), (PL, PR)), "valid" or "same", as in
    conv2d. groups: divides C and OC. Returns (N, OH, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty image, a window larger than the padded image, and a weight for another number
    of positions; DeviceError if the tensors live on two devices.

    Source: keras.layers.LocallyConnected2D (Keras 2), implementation 1, which knows neither
    dilation nor groups: these as in conv2d.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return cast("Tensor", LocallyConnected2d.apply(x, weight, bias, **options))
