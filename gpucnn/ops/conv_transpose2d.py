"""2-D transposed convolution: ``kernels/conv_transpose2d.cu``.

The primitive also takes sequences (N, W, C) and volumes (N, D, H, W, C), for conv_transpose1d and
conv_transpose3d, as those of conv2d do.
"""

from __future__ import annotations

from typing import Any, cast

from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_weight_gradient,
    gather_grid,
)
from gpucnn.ops.conv2d_few_channels import FEW_CHANNELS, where_it_fits
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, REGISTER_TILED, pipelined
from gpucnn.ops.conv_geometry import ConvGeometry, conv_transpose_geometry
from gpucnn.ops.geometry import AXES, Padding, Pair, integer, padding_of_axes, sizes
from gpucnn.ops.reduce import column_sum
from gpucnn.ops.tile import SPECIALISATIONS, THREADS
from gpucnn.primitive import storing_primitive
from gpucnn.storage import stored_weight
from gpucnn.tensor import Function, Tensor
from gpucnn.threads import map_chunks

# geometry


def output_padding_for(
    output_size: Any,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: Any,
    dilation: tuple[int, ...],
) -> tuple[int, ...]:
    """The output_padding that makes ``output_size``, an int, (OH, OW) or (N, OH, OW, OC).

    Likewise for one and three axes.
    """
    dims = len(size)
    several = isinstance(output_size, tuple | list)
    given = tuple(output_size) if several else (output_size,) * dims
    wanted = given[1:-1] if len(given) == dims + 2 else given
    wanted = tuple(integer("output_size", n, 1) for n in wanted)
    if len(wanted) != dims:
        axes = ", ".join(f"O{axis}" for axis in AXES[-dims:])
        raise ValueError(f"output_size must be an int, ({axes}) or (N, {axes}, OC), got {given}")
    pads = padding_of_axes(padding, dims)
    windows = zip(size, kernel, stride, pads, dilation, strict=True)
    least = tuple((n - 1) * s + d * (k - 1) + 1 - low - high for n, k, s, (low, high), d in windows)
    extra = tuple(want - low for want, low in zip(wanted, least, strict=True))
    if not all(0 <= e < s for e, s in zip(extra, stride, strict=True)):
        first = tuple(max(low, 1) for low in least)
        last = tuple(low + s - 1 for low, s in zip(least, stride, strict=True))
        raise ValueError(f"output_size must be {first} … {last}, got {wanted}")
    return extra


def transposed_geometry(
    dims: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: Any,
    output_size: Any = None,
) -> ConvGeometry:
    """Check the arguments of a transposed convolution -> the sizes of the adjoint convolution."""
    if output_size is not None:
        if any(sizes("output_padding", output_padding, dims, 0)):
            raise ValueError(
                f"output_padding follows from output_size: leave it 0, got {output_padding}"
            )
        if x.ndim == weight.ndim == dims + 2 and not isinstance(padding, str):
            steps, spread = sizes("stride", stride, dims), sizes("dilation", dilation, dims)
            windows = (x.shape[1:-1], weight.shape[1:-1], steps, padding, spread)
            output_padding = output_padding_for(output_size, *windows)
    options = (stride, padding, output_padding, dilation, groups)
    return conv_transpose_geometry(dims, x, weight, bias, *options)


def conv_transpose2d_geometry(x: Any, weight: Any, bias: Any, **options: Any) -> ConvGeometry:
    """:func:`transposed_geometry` of images."""
    return transposed_geometry(2, x, weight, bias, **options)


# primitives


@storing_primitive(0)
def conv_transpose2d_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """y[n,h,w,o] = b[o] + Σ_{c,kh,kw} x[n,ih,iw,c] · w[c,kh,kw,o], ih·SH−PT+kh·DH = h, likewise w.

    Shapes by the names of the adjoint convolution, which makes x from y: x (N,OH,OW,OC),
    w (OC,KH,KW,C/G), b (C) or None -> y (N,H,W,C); also sequences and volumes. The data gradient of
    conv2d, and a bias.
    """
    y = cast("Array", conv2d_data_gradient(x, w, geometry))
    if b is not None:

        def images(start: int, stop: int) -> None:
            y[start:stop] += b

        map_chunks(images, len(y), 1)
    return y


_kernels = KernelFile(
    "conv_transpose2d", *({"DIMS": dims, **tile} for dims in (2, 3) for tile in SPECIALISATIONS)
)


@conv_transpose2d_forward.kernel(native=True)
def _forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    few = (v.name for v in FEW_CHANNELS if v.takes(conv_transpose2d_forward.name, geometry))
    chosen = next(few, pipelined(x, geometry) or "tiled")
    return conv_transpose2d_forward.launchers[chosen](x, w, b, geometry)


@conv_transpose2d_forward.kernel("tiled")
def _tiled_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    y = empty(x, s.x_shape)
    index, grid = gather_grid(s)
    volumes = len(SPECIALISATIONS) * (s.dims == 3)
    launch = _kernels["conv_transpose2d_forward", index + volumes]
    launch(grid, (THREADS,), y, x, w, b, *s.numbers)
    return y


@conv_transpose2d_forward.kernel("register_tiled")
def _register_tiled_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    return REGISTER_TILED.gather(x, w, b, geometry)


@conv_transpose2d_forward.kernel("implicit_gemm", native=IMPLICIT_GEMM.stores_gather)
def _implicit_gemm_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    return IMPLICIT_GEMM.gather(x, w, b, geometry)


for _few in FEW_CHANNELS:
    conv_transpose2d_forward.kernel(_few.name, native=True)(
        where_it_fits(conv_transpose2d_forward, _few)
    )


# tape


class TransposedConvolution(Function):
    """conv_transpose1d, 2d, 3d and their gradients: those of the adjoint convolution, swapped."""

    activations = (0,)
    narrows = True
    batched = (0,)

    def forward(
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        *,
        dims: int,
        **options: Any,
    ) -> Array:
        self.geometry = transposed_geometry(dims, x, weight, bias, **options)
        weight = stored_weight(self, x, weight)
        if self.recording:
            self.x, self.weight = x, weight
        return self.run(conv_transpose2d_forward, x, weight, bias, self.geometry)

    def backward(self, dy: Array) -> tuple[Array | None, Array | None, Array | None]:
        needs_x, needs_weight, needs_bias = self.needs
        s = self.geometry
        return (
            self.run(conv2d_forward, dy, self.weight, None, s) if needs_x else None,
            self.run_for((1,), conv2d_weight_gradient, self.x, dy, s) if needs_weight else None,
            self.run_for((2,), column_sum, dy) if needs_bias else None,
        )


# public


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Pair = 1,
    padding: int | Pair | Padding = 0,
    output_padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    output_size: int | Pair | tuple[int, ...] | None = None,
) -> Tensor:
    """2-D transposed convolution: the adjoint of conv2d with the same weight, plus a bias.

    ``y[n,oh,ow,oc] = bias[oc] + Σ x[n,h,w,c] · weight[c,kh,kw,oc − g·OC/groups]`` over the channels
    c of the group g of oc and all h, w, kh, kw with ``h·SH − PT + kh·DH = oh`` and
    ``w·SW − PL + kw·DW = ow``: each x spreads over a window of y. Without bias,
    ``⟨conv2d(y, weight), x⟩ = ⟨y, conv_transpose2d(x, weight)⟩`` for the same options.
    ``OH = (H − 1)·SH − PT − PB + DH·(KH − 1) + output_padding + 1``, likewise OW.

    x: (N, H, W, C) float32 (float64 on cpu). weight: (C, KH, KW, OC/groups), the same dtype: the
    very tensor of a convolution from OC to C channels. bias: (OC) or None. stride, dilation: int or
    (height, width), >= 1. padding: int, (PH, PW) or ((PT, PB), (PL, PR)): cells cut off from y.
    output_padding: int or (height, width), 0 … max(stride, dilation) − 1: rows and columns that y
    has more at the bottom and on the right. They are computed like all others, not filled with
    zeros: conv2d maps several sizes to one, and this chooses between them. groups: divides C.
    output_size: (OH, OW) or an int for both, in the place of output_padding: from the OH above (for
    output_padding 0) to OH + SH − 1, likewise OW; also a whole shape (N, OH, OW, OC).
    Returns (N, OH, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty image and for padding that leaves no output; DeviceError if the tensors live
    on two devices. Variants: ``use_variant(conv_transpose2d="tiled" | "register_tiled" |
    "implicit_gemm" | "depthwise" | "direct")``; by default "direct" where x or y has up to four
    channels (x: with strides of 1) and "depthwise" where its groups have, as for the data gradient
    of conv2d; else, where a group has eight channels or more on both sides, "implicit_gemm", or
    "register_tiled" in the precision "fp32"; else "tiled". The gradients are passes of conv2d and
    take its variants.

    Source: torch.nn.functional.conv_transpose2d; Dumoulin and Visin, arXiv:1603.07285.
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
        "groups": groups,
        "output_size": output_size,
    }
    return cast("Tensor", TransposedConvolution.apply(x, weight, bias, dims=2, **options))
