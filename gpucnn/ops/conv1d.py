"""1-D convolution, by the kernels of conv2d: a sequence is an image one pixel high."""

from __future__ import annotations

from typing import cast

from gpucnn.ops.conv2d import Convolution
from gpucnn.ops.geometry import Pair
from gpucnn.tensor import Tensor


def conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int | tuple[int] = 1,
    padding: int | tuple[int] | tuple[Pair] | str = 0,
    dilation: int | tuple[int] = 1,
    groups: int = 1,
) -> Tensor:
    """1-D convolution (cross-correlation: the filter is not flipped).

    ``y[n,ow,oc] = bias[oc] + Σ x[n, ow·SW − PL + k·DW, g·CG + c] · weight[oc,k,c]`` over k and the
    CG = C/groups channels of the group g of oc; x counts as zero outside the sequence.
    ``OW = (W + PL + PR − DW·(K − 1) − 1) // SW + 1``.

    x: (N, W, C) float32 (float64 on cpu). weight: (OC, K, C/groups), the same dtype. bias: (OC) or
    None. stride, dilation: int >= 1. padding: int, (P,), ((PL, PR),), "valid" (none) or "same"
    (OW = ceil(W / SW); an odd cell goes to the right). groups: divides C and OC. Returns
    (N, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty sequence and a dilated window larger than the padded one; DeviceError if
    the tensors live on two devices. Variants: those of conv2d.

    Source: torch.nn.functional.conv1d.
    """
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return cast("Tensor", Convolution.apply(x, weight, bias, dims=1, **options))
