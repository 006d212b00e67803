"""3-D transposed convolution, by the kernel of two axes compiled for three."""

from __future__ import annotations

from typing import cast

from gpucnn.ops.conv_transpose2d import TransposedConvolution
from gpucnn.ops.geometry import Pair
from gpucnn.tensor import Tensor

Triple = tuple[int, int, int]


def conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Triple = 1,
    padding: int | Triple | tuple[Pair, Pair, Pair] = 0,
    output_padding: int | Triple = 0,
    dilation: int | Triple = 1,
    groups: int = 1,
    output_size: int | tuple[int, ...] | None = None,
) -> Tensor:
    """3-D transposed convolution: the adjoint of conv3d with the same weight, plus a bias.

    ``y[n,od,oh,ow,oc] = bias[oc] + Σ x[n,d,h,w,c] · weight[c,kd,kh,kw,oc − g·OC/groups]`` over the
    channels c of the group g of oc and all d, h, w, kd, kh, kw with ``d·SD − PF + kd·DD = od``,
    ``h·SH − PT + kh·DH = oh`` and ``w·SW − PL + kw·DW = ow``. Without bias,
    ``⟨conv3d(y, weight), x⟩ = ⟨y, conv_transpose3d(x, weight)⟩`` for the same options.
    ``OD = (D − 1)·SD − PF − PB + DD·(KD − 1) + output_padding + 1``, likewise OH and OW.

    x: (N, D, H, W, C) float32 (float64 on cpu). weight: (C, KD, KH, KW, OC/groups), the same dtype:
    the very tensor of a convolution from OC to C channels. bias: (OC) or None. stride, dilation:
    int or (depth, height, width), >= 1. padding: int, (PD, PH, PW) or
    ((front, back), (top, bottom), (left, right)): cells cut off from y. output_padding: int or
    (depth, height, width), 0 … max(stride, dilation) − 1; groups: divides C; output_size:
    (OD, OH, OW) or an int for all three, in the place of output_padding, or a whole shape
    (N, OD, OH, OW, OC): as in :func:`gpucnn.functional.conv_transpose2d`. Returns
    (N, OD, OH, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty volume and for padding that leaves no output; DeviceError if the tensors live
    on two devices. The gradients use the kernels of conv2d and their variants.

    Source: torch.nn.functional.conv_transpose3d.
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
        "groups": groups,
        "output_size": output_size,
    }
    return cast("Tensor", TransposedConvolution.apply(x, weight, bias, dims=3, **options))
