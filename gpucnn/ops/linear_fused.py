"""A linear layer and its activation in one pass: the 1×1 convolution of images of one pixel."""

from __future__ import annotations

from typing import cast

from gpucnn.device import Array
from gpucnn.ops.activation import Activation
from gpucnn.ops.conv2d_fused import (
    activated,
    activation_options,
    conv2d_fused_forward,
    through_activation,
)
from gpucnn.ops.linear import Linear, linear_forward, linear_geometry, pointwise
from gpucnn.primitive import chosen_by_hand
from gpucnn.storage import stored_weight
from gpucnn.tensor import Tensor

# tape


class FusedLinear(Linear, Activation):
    """linear and an activation whose gradient is told from y."""

    activations = (0,)

    def forward(  # type: ignore[override]
        self, x: Array, weight: Array, bias: Array | None, *, activation: str, negative_slope: float
    ) -> Array:
        self.geometry = linear_geometry(x, weight, bias)
        weight = stored_weight(self, x, weight)
        if chosen_by_hand("linear"):
            y = self.run(linear_forward, x, weight, bias, self.geometry)
            y = activated(self, y, activation, negative_slope)
        else:
            s = self.geometry.once(pointwise)
            images, filters = x.reshape(s.x_shape), weight.reshape(s.w_shape)
            rest = (bias, None, None, None, s, activation, negative_slope, False)
            y, _ = self.run(conv2d_fused_forward, images, filters, *rest)
            y = y.reshape(self.geometry.M, self.geometry.O)
        self.keep(x, weight)
        if self.recording:
            self.y, self.activation = y, (activation, negative_slope)
        return cast("Array", y)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        if not self.passed:
            dy = through_activation(self, dy, self.y, *self.activation)
        return super().backward(dy)

    def from_output(self) -> tuple[str, float] | None:
        return None if self.activation[0] == "identity" else self.activation


# public


def linear_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
) -> Tensor:
    """A fully connected layer and an activation in one pass over memory.

    ``y = f(x · weightᵀ + bias)``; :class:`gpucnn.nn.Sequential` calls it by itself for neighbouring
    layers.

    x, weight, bias: as in :func:`linear`. activation: "identity", "relu", "leaky_relu" with
    ``negative_slope`` > 0, "sigmoid" or "tanh". Returns (N, out_features).

    Raises what :func:`linear` raises, and ValueError for another activation or a negative_slope
    that is not positive. Variants: those of linear, and its activation, if one was chosen by hand;
    else those of conv2d, of which "register_tiled" and "implicit_gemm" make one pass.

    Source: torch.nn.functional.linear.
    """
    options = activation_options(activation, negative_slope)
    return cast("Tensor", FusedLinear.apply(x, weight, bias, **options))
