"""The sizes of a convolution over one, two or three axes, and their checks."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from gpucnn.ops.geometry import (
    AXES,
    Geometry,
    Pair,
    batch_shape,
    conv_output_size,
    conv_transpose_output_size,
    integer,
    remembered,
    resolve_padding,
    same_float_dtype,
    sizes,
)


@dataclass(frozen=True)
class ConvGeometry(Geometry):
    """The sizes of one convolution: ``dims``, then those that the kernels take, in their order.

    Axes that the images lack (D of 2-D images, D and H of sequences) have size 1.
    """

    dims: int
    N: int
    D: int
    H: int
    W: int
    C: int
    OC: int
    KD: int
    KH: int
    KW: int
    OD: int
    OH: int
    OW: int
    SD: int
    SH: int
    SW: int
    PF: int
    PT: int
    PL: int
    DD: int
    DH: int
    DW: int
    G: int

    __hash__ = Geometry.__hash__

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """What the kernels take."""
        return self.values[1:]

    @functools.cached_property
    def CG(self) -> int:
        """Input channels per group."""
        return self.C // self.G

    @functools.cached_property
    def OCG(self) -> int:
        """Output channels per group."""
        return self.OC // self.G

    @functools.cached_property
    def K(self) -> int:
        """Weights per output channel."""
        return self.KD * self.KH * self.KW * self.CG

    @functools.cached_property
    def inputs(self) -> int:
        """Input pixels of the batch."""
        return self.N * self.D * self.H * self.W

    @functools.cached_property
    def outputs(self) -> int:
        """Output pixels of the batch."""
        return self.N * self.OD * self.OH * self.OW

    @functools.cached_property
    def x_shape(self) -> tuple[int, ...]:
        """The input, without the axes that the images lack."""
        return (self.N, *(self.D, self.H, self.W)[-self.dims :], self.C)

    @functools.cached_property
    def w_shape(self) -> tuple[int, ...]:
        """The weight."""
        return (self.OC, *(self.KD, self.KH, self.KW)[-self.dims :], self.CG)

    @functools.cached_property
    def y_shape(self) -> tuple[int, ...]:
        """The output."""
        return (self.N, *(self.OD, self.OH, self.OW)[-self.dims :], self.OC)

    def exchanged(self) -> ConvGeometry | None:
        """The convolution of dy with flipped filters that makes dx; None where strides are not 1.

        Its padding is negative where this one's exceeds the window.
        """
        return self.once(_exchanged)

    def adjoint(self) -> ConvGeometry | None:
        """What :meth:`exchanged` gives, where its padding is not negative; else None."""
        found = self.exchanged()
        return found if found is not None and min(found.PF, found.PT, found.PL) >= 0 else None


def _exchanged(s: ConvGeometry) -> ConvGeometry | None:
    if max(s.SD, s.SH, s.SW) > 1:
        return None
    pads = (
        (s.KD - 1) * s.DD - s.PF,
        (s.KH - 1) * s.DH - s.PT,
        (s.KW - 1) * s.DW - s.PL,
    )
    inputs = {"D": s.OD, "H": s.OH, "W": s.OW, "C": s.OC}
    outputs = {"OD": s.D, "OH": s.H, "OW": s.W, "OC": s.C}
    before = dict(zip(("PF", "PT", "PL"), pads, strict=True))
    return replace(s, **inputs, **outputs, **before)


def _make(
    dims: int,
    batch: int,
    channels: Pair,
    groups: int,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    out: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[Pair, ...],
    dilation: tuple[int, ...],
) -> ConvGeometry:
    absent = 3 - dims
    before = tuple(low for low, _ in padding)
    numbers = (
        *(batch, *(1,) * absent, *size, *channels),
        *((1,) * absent + kernel),
        *((1,) * absent + out),
        *((1,) * absent + stride),
        *((0,) * absent + before),
        *((1,) * absent + dilation),
        groups,
    )
    return ConvGeometry(dims, *numbers)


def _check_arrays(
    dims: int, x: Any, weight: Any, bias: Any, weight_form: tuple[str, str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(image sizes, kernel sizes) of arrays that have the right ranks and dtypes."""
    axes = AXES[-dims:]
    batch_shape("x", x, dims)
    if weight.ndim != dims + 2 or 0 in weight.shape:
        first, last = weight_form
        taps = ", ".join(f"K{axis}" if dims > 1 else "K" for axis in axes)
        raise ValueError(f"weight must have shape ({first}, {taps}, {last}), got {weight.shape}")
    same_float_dtype(x=x, weight=weight, bias=bias)
    return x.shape[1:-1], weight.shape[1:-1]


@remembered(arrays=slice(1, 4))
def conv_geometry(
    dims: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> ConvGeometry:
    """Check the arguments of a convolution over ``dims`` axes and work out its sizes."""
    size, kernel = _check_arrays(dims, x, weight, bias, ("OC", "C/groups"))
    C, OC, CG = x.shape[-1], weight.shape[0], weight.shape[-1]
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
    steps, spread = sizes("stride", stride, dims), sizes("dilation", dilation, dims)
    pads = resolve_padding(padding, size, kernel, steps, spread)
    out = tuple(
        conv_output_size(n, k, stride=s, padding=p, dilation=d)
        for n, k, s, p, d in zip(size, kernel, steps, pads, spread, strict=True)
    )
    return _make(dims, x.shape[0], (C, OC), G, size, kernel, out, steps, pads, spread)


@remembered(arrays=slice(1, 4))
def conv_transpose_geometry(
    dims: int,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: Any,
) -> ConvGeometry:
    """Check the arguments of a transposed convolution -> the sizes of its adjoint convolution.

    That convolution takes what the transposed one returns, and makes what the transposed one takes.
    """
    size, kernel = _check_arrays(dims, x, weight, bias, ("C", "OC/groups"))
    C, G = x.shape[-1], integer("groups", groups, 1)
    if weight.shape[0] != C:
        raise ValueError(
            f"weight must have shape ({C}, …) like the channels of x, got {weight.shape}"
        )
    if C % G:
        raise ValueError(f"groups must divide the {C} input channels, got {G}")
    OC = weight.shape[-1] * G
    if bias is not None and bias.shape != (OC,):
        raise ValueError(f"bias must have shape ({OC},), got {bias.shape}")
    if isinstance(padding, str):
        raise ValueError(f"padding of a transposed convolution must be numbers, got {padding!r}")
    steps, spread = sizes("stride", stride, dims), sizes("dilation", dilation, dims)
    extra = sizes("output_padding", output_padding, dims, 0)
    pads = resolve_padding(padding, size, kernel, steps, spread)
    out = tuple(
        conv_transpose_output_size(n, k, stride=s, padding=p, output_padding=e, dilation=d)
        for n, k, s, p, e, d in zip(size, kernel, steps, pads, extra, spread, strict=True)
    )
    return _make(dims, x.shape[0], (OC, C), G, out, kernel, size, steps, pads, spread)
