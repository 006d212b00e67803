"""3-D convolution, by the kernels of conv2d compiled for three axes."""

from __future__ import annotations

from typing import cast

from gpucnn.ops.conv2d import Convolution
from gpucnn.ops.geometry import Pair
from gpucnn.tensor import Tensor

Triple = tuple[int, int, int]


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | Triple = 1,
    padding: int | Triple | tuple[Pair, Pair, Pair] | str = 0,
    dilation: int | Triple = 1,
    groups: int = 1,
) -> Tensor:
    """3-D convolution (cross-correlation: the filter is not flipped).

    ``y[n,od,oh,ow,oc] = bias[oc] + Σ x[n, od·SD − PF + kd·DD, oh·SH − PT + kh·DH, ow·SW − PL +
    kw·DW, g·CG + c] · weight[oc,kd,kh,kw,c]`` over kd, kh, kw and the CG = C/groups channels of the
    group g of oc; x counts as zero outside the volume.
    ``OD = (D + PF + PB − DD·(KD − 1) − 1) // SD + 1``, likewise OH and OW.

    x: (N, D, H, W, C) float32 (float64 on cpu). weight: (OC, KD, KH, KW, C/groups), the same dtype.
    bias: (OC) or None. stride, dilation: int or (depth, height, width), >= 1. padding: int,
    (PD, PH, PW), ((front, back), (top, bottom), (left, right)), "valid" (none) or "same"
    (ceil(size / stride) outputs; an odd cell goes to the end). groups: divides C and OC. Returns
    (N, OD, OH, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty volume and for a dilated window larger than the padded volume; DeviceError if
    the tensors live on two devices. Variants: those of conv2d.

    Source: torch.nn.functional.conv3d.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return cast("Tensor", Convolution.apply(x, weight, bias, dims=3, **options))
