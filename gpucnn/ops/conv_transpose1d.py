"""1-D transposed convolution, by the kernels of two axes: a sequence is an image one pixel high."""

from __future__ import annotations

from typing import cast

from gpucnn.ops.conv_transpose2d import TransposedConvolution
from gpucnn.ops.geometry import Pair
from gpucnn.tensor import Tensor

Size = int | tuple[int]


def conv_transpose1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Size = 1,
    padding: Size | tuple[Pair] = 0,
    output_padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    output_size: int | tuple[int, ...] | None = None,
) -> Tensor:
    """1-D transposed convolution: the adjoint of conv1d with the same weight, plus a bias.

    ``y[n,ow,oc] = bias[oc] + Σ x[n,w,c] · weight[c,k,oc − g·OC/groups]`` over the channels c of the
    group g of oc and all w, k with ``w·S − PL + k·D = ow``. Without bias,
    ``⟨conv1d(y, weight), x⟩ = ⟨y, conv_transpose1d(x, weight)⟩`` for the same options.
    ``OW = (W − 1)·S − PL − PR + D·(K − 1) + output_padding + 1``.

    x: (N, W, C) float32 (float64 on cpu). weight: (C, K, OC/groups), the same dtype: the very
    tensor of a convolution from OC to C channels. bias: (OC) or None. stride, dilation: int >= 1.
    padding: int, (P,) or ((PL, PR),): places cut off from y. output_padding: int,
    0 … max(stride, dilation) − 1; groups: divides C; output_size: OW, in the place of
    output_padding, or a whole shape (N, OW, OC): as in
    :func:`gpucnn.functional.conv_transpose2d`. Returns (N, OW, OC).

    Raises ValueError or TypeError naming the argument if a shape, dtype or number does not fit,
    also for an empty sequence and for padding that leaves no output; DeviceError if the tensors
    live on two devices. The gradients use the kernels of conv2d and their variants.

    Source: torch.nn.functional.conv_transpose1d.
    """
    options = {
        "stride": stride,
        "padding": padding,
        "output_padding": output_padding,
        "dilation": dilation,
        "groups": groups,
        "output_size": output_size,
    }
    return cast("Tensor", TransposedConvolution.apply(x, weight, bias, dims=1, **options))
