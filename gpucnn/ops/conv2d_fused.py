"""Convolution with what follows it, in one pass: ``kernels/epilogue.cuh``.

The rungs "register_tiled" and "implicit_gemm" send each tile through an epilogue before they store
it; "direct", from few channels, through an activation. Where another variant of the convolution
runs, where few outputs with long sums are cut into several slices, and on the ``cpu``, the same
functions follow one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np

from gpucnn.bfloat16 import as_stored, is_bfloat16
from gpucnn.device import Array, into
from gpucnn.fusion import fuses
from gpucnn.ops.activation import (
    Activation,
    Elementwise,
    Relu,
    activation_backward,
    activation_forward,
    check_positive,
    relu_backward,
    relu_forward,
)
from gpucnn.ops.batch_norm import BatchNorm, batch_norm_sums
from gpucnn.ops.batch_norm_block import batch_norm_statistics
from gpucnn.ops.batch_norm_partials import Running
from gpucnn.ops.channels import statistics
from gpucnn.ops.conv2d import (
    Convolution,
    chosen_variant,
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
)
from gpucnn.ops.conv2d_direct import direct_activated, direct_activates
from gpucnn.ops.conv2d_pipeline import (
    ACTIVATIONS,
    IMPLICIT_GEMM,
    REGISTER_TILED,
    Epilogue,
    fuses_forward,
    fuses_gather,
)
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.elementwise import add_forward
from gpucnn.ops.fused_batch_norm import FusedBatchNorm
from gpucnn.ops.geometry import Padding, Pair, choice, flag, same_float_dtype
from gpucnn.primitive import Primitive, storing_primitive
from gpucnn.storage import stored_weight
from gpucnn.tensor import Function, Tensor

# geometry


def fusible(activation: str, negative_slope: float = 0.0) -> bool:
    """Whether an epilogue computes this activation, and its gradient from its output.

    A leaky ReLU whose slope is not positive does not keep the sign of its input.
    """
    return activation in ACTIVATIONS and (activation != "leaky_relu" or negative_slope > 0)


# primitives

_RUNGS = {rung.name: rung for rung in (REGISTER_TILED, IMPLICIT_GEMM)}


def _parameters(activation: str, negative_slope: float) -> tuple[float, ...]:
    return (negative_slope,) if activation == "leaky_relu" else ()


def _forward(
    on: Callable[[Primitive], Callable[..., Any]],
    x: Array,
    w: Array,
    b: Array | None,
    residual: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> Array:
    y = on(conv2d_forward)(x, w, b, geometry)
    if residual is not None:
        y = on(add_forward)(y, residual)
    return _activate(on, y, activation, negative_slope)


def _activate(
    on: Callable[[Primitive], Callable[..., Any]], y: Array, activation: str, negative_slope: float
) -> Array:
    if activation == "relu":
        return on(relu_forward)(y)
    if activation == "identity":
        return y
    return on(activation_forward)(y, activation, _parameters(activation, negative_slope))


def _data_gradient(
    on: Callable[[Primitive], Callable[..., Any]],
    dy: Array,
    w: Array,
    residual: Array | None,
    activated: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> Array:
    dx = on(conv2d_data_gradient)(dy, w, geometry)
    if residual is not None:
        dx = on(add_forward)(dx, residual)
    if activated is None or activation == "identity":
        return dx
    if activation == "relu":
        return on(relu_backward)(dx, activated)
    parameters = _parameters(activation, negative_slope)
    return on(activation_backward)(dx, activated, activation, parameters)


def _definition(p: Primitive) -> Callable[..., Any]:
    return p.definition


def _kernels(like: Array) -> Callable[[Primitive], Callable[..., Any]]:
    device = "emulated" if isinstance(like, np.ndarray) else "cuda"
    return lambda p: p.on(device)


@storing_primitive(0)
def conv2d_fused_forward(
    x: Array,
    w: Array,
    b: Array | None,
    residual: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
    moments: bool,
    join: tuple[float, float] | None = None,
) -> tuple[Array, Any]:
    """y = f(conv2d(x, w, b) + residual), and moments or statistics of y per channel

    x, w, b as in conv2d_forward; residual like y, or None. f: an activation for which
    :func:`fusible` holds. -> y; moments (4, OC, chunks) float32, if wanted: of each chunk of the
    pixels and each channel the count, a pivot (in the first chunk y's first pixel), the mean as
    distance from the pivot and the sum of squared deviations from the mean. With join, momentum and
    eps, instead what batch_norm_statistics makes of y and these, running_mean and running_var (OC)
    or None. A kernel without an epilogue leaves nothing: None.
    """
    y = _forward(_definition, x, w, b, residual, geometry, activation, negative_slope)
    if join is not None:
        return y, batch_norm_statistics(as_stored(y), running_mean, running_var, *join)
    if not moments:
        return y, None
    y = as_stored(y)
    rows = y.reshape(-1, y.shape[-1])
    mean, var = statistics(y)
    count = np.full(mean.shape, len(rows))
    parts = np.stack([count, rows[0], mean - rows[0], var * len(rows)])
    return y, parts.astype(y.dtype)[..., None]


@storing_primitive(0)
def conv2d_fused_data_gradient(
    dy: Array,
    w: Array,
    residual: Array | None,
    activated: Array | None,
    normalised: Array | None,
    delta: Array | None,
    invstd: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> tuple[Array, tuple[Array, Array] | None]:
    """dx = (the data gradient of conv2d + residual)·f', and a normalisation's gradients before f

    dy, w as in conv2d_data_gradient; residual, activated and normalised like x, or None.
    activated: the x of the convolution, which is the output of the activation f: f' is computed
    from it, 1 if None. normalised: the input of the batch normalisation before f, delta and invstd
    (C) its mean as distance from its first row and 1/√(variance + eps). -> dx; with normalised
    dgamma = Σ dx·(normalised − mean)·invstd and dbeta = Σ dx, (C). A kernel without an epilogue
    leaves none: None.
    """
    dx = _data_gradient(
        _definition, dy, w, residual, activated, geometry, activation, negative_slope
    )
    if normalised is None:
        return dx, None
    return dx, batch_norm_sums(as_stored(dx), normalised, None, delta, cast("Array", invstd))


@conv2d_fused_forward.kernel(native=True)
def _launch_forward(
    x: Array,
    w: Array,
    b: Array | None,
    residual: Array | None,
    running_mean: Array | None,
    running_var: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
    moments: bool,
    join: tuple[float, float] | None = None,
) -> tuple[Array, Any]:
    chosen, tile = chosen_variant(conv2d_forward, x, w, b, geometry)
    rung = _RUNGS.get(chosen) if fuses_forward(geometry) else None
    if rung is not None and is_bfloat16(x) and not rung.stores_forward(x, w, b, geometry):
        rung = None
    if chosen == "direct" and residual is None and direct_activates(geometry):
        running = running_mean, running_var
        return direct_activated(x, w, b, geometry, activation, negative_slope, running, join)
    if rung is None:
        rest = (residual, geometry, activation, negative_slope)
        return _forward(_kernels(x), x, w, b, *rest), None
    epilogue = Epilogue(
        residual=residual,
        partials="moments" if moments or join is not None else None,
        join=join,
        running_mean=running_mean,
        running_var=running_var,
        activation=activation,
        negative_slope=negative_slope,
    )
    with tile:
        return rung.fused_forward(x, w, b, geometry, epilogue)


@conv2d_fused_data_gradient.kernel(native=True)
def _launch_data_gradient(
    dy: Array,
    w: Array,
    residual: Array | None,
    activated: Array | None,
    normalised: Array | None,
    delta: Array | None,
    invstd: Array | None,
    geometry: ConvGeometry,
    activation: str,
    negative_slope: float,
) -> tuple[Array, tuple[Array, Array] | None]:
    chosen, tile = chosen_variant(conv2d_data_gradient, dy, w, geometry)
    rung = _RUNGS.get(chosen) if fuses_gather(geometry) else None
    if rung is not None and is_bfloat16(dy) and not rung.stores_gather(dy, w, geometry):
        rung = None
    if rung is None:
        rest = (activated, geometry, activation, negative_slope)
        return _data_gradient(_kernels(dy), dy, w, residual, *rest), None
    epilogue = Epilogue(
        residual=residual,
        activated=activated,
        normalised=normalised,
        delta=delta,
        invstd=invstd,
        partials=None if normalised is None else "sums",
        join=None if normalised is None else (0.0, 0.0),
        activation="identity" if activated is None else activation,
        negative_slope=negative_slope,
    )
    with tile:
        return rung.fused_gather(dy, w, None, geometry, epilogue)


# tape


def gradient_through(
    function: Function,
    dy: Array,
    x: Array,
    weight: Array,
    geometry: ConvGeometry,
    alone: Callable[[], Array],
) -> Array:
    """dx of a convolution: of what made x, if an epilogue may go through that as well.

    That is an activation of whose output no other gradient is to come, those that came before
    being added, and a batch normalisation that only that activation, or this convolution, took; or
    both in one. They are told what was done for them. alone: dx of the convolution.
    """
    before = function.last_maker(0) if function.device != "cpu" else None
    fuses = isinstance(before, Activation) and before.fuses
    through = cast("Activation", before).from_output() if fuses else None
    norm = _norm(before, through is not None)
    other = None if before is None else function.take_gradient(0)
    if through is None and norm is None and other is None:
        return alone()
    activation, negative_slope = through or ("identity", 0.0)
    statistics = (None, None, None)
    if norm is not None:
        statistics = norm.x.reshape(x.shape), norm.delta, norm.invstd
    homes = [] if norm is None else norm.homes(1, 2)
    with into(*homes):
        dx, gradients = function.run(
            conv2d_fused_data_gradient,
            dy,
            weight,
            None if other is None else other.reshape(x.shape),
            None if through is None else x,
            *statistics,
            geometry,
            activation,
            negative_slope,
        )
    if through is not None:
        cast("Activation", before).passed = True
    if norm is not None and gradients is not None:
        norm.gradients = gradients
        for index, gradient in enumerate(gradients, start=1):
            norm.deliver(index, gradient)
    return cast("Array", dx)


def activated(function: Function, y: Array, activation: str, negative_slope: float) -> Array:
    """An activation of y, in a pass of its own."""
    return _activate(lambda p: p.on(function.device), y, activation, negative_slope)


def through_activation(
    function: Function, dy: Array, y: Array, activation: str, negative_slope: float
) -> Array:
    """The gradient before an activation, from its output y and the gradient dy of that."""
    if activation == "identity":
        return dy
    if activation == "relu":
        return cast("Array", function.run(relu_backward, dy, y))
    parameters = _parameters(activation, negative_slope)
    return cast("Array", function.run(activation_backward, dy, y, activation, parameters))


def _norm(before: Function | None, activated: bool) -> BatchNorm | FusedBatchNorm | None:
    """The normalisation by a batch's statistics whose gradients need sums of what comes back."""
    if isinstance(before, FusedBatchNorm):
        return before if before.delta is not None and activated else None
    # What makes an input of another activated operation is not what is activated.
    alone = isinstance(before, Relu | Elementwise)
    below = before.only_maker(0) if before is not None and alone and activated else before
    return below if isinstance(below, BatchNorm) and below.training and below.fuses else None


class FusedConvolution(Convolution, Activation):
    """conv2d, a residual and an activation; the gradient of the activation is told from y."""

    activations = (0, 3)
    batched = (0, 3)

    def forward(  # type: ignore[override]
        self,
        x: Array,
        weight: Array,
        bias: Array | None,
        residual: Array | None,
        *,
        activation: str,
        negative_slope: float,
        moments: bool,
        running: Running | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
    ) -> Array:
        self.geometry = conv2d_geometry(x, weight, bias, stride, padding, dilation, groups)
        if residual is not None and residual.shape != self.geometry.y_shape:
            raise ValueError(
                f"residual must have the shape of the output, {self.geometry.y_shape}, "
                f"got {tuple(residual.shape)}"
            )
        same_float_dtype(x=x, residual=residual)
        weight = stored_weight(self, x, weight)
        if running is None or self.geometry.outputs == 1:  # one value has no unbiased variance
            running = Running(None, None)
        y, self.moments = self.run(
            conv2d_fused_forward,
            *(x, weight, bias, residual, running.mean, running.var),
            *(self.geometry, activation, negative_slope, moments, running.join),
        )
        if self.recording:
            self.x, self.weight, self.y, self.fuses = x, weight, y, fuses()
            self.activation = activation, negative_slope
        return cast("Array", y)

    def backward(self, dy: Array) -> tuple[Array | None, ...]:
        if not self.passed:
            dy = through_activation(self, dy, self.y, *self.activation)
        return *super().backward(dy), dy if self.needs[3] else None

    def from_output(self) -> tuple[str, float] | None:
        return None if self.activation[0] == "identity" else self.activation


# public


def activation_options(activation: str, negative_slope: float) -> dict[str, Any]:
    """Both as options of a Function. Raises ValueError for what no epilogue computes."""
    choice("activation", activation, ACTIVATIONS)
    leaky = activation == "leaky_relu"
    slope = check_positive("negative_slope", negative_slope) if leaky else 0.0
    return {"activation": activation, "negative_slope": slope}


def conv2d_fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    activation: str = "relu",
    negative_slope: float = 0.01,
    stride: int | Pair = 1,
    padding: int | Pair | Padding | str = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    moments: bool = False,
    running: Running | None = None,
) -> Tensor:
    """A convolution, a residual and an activation in one pass over memory.

    ``y = f(conv2d(x, weight, bias) + residual)``; :class:`gpucnn.nn.Sequential` calls it by itself
    for neighbouring layers.

    x, weight, bias, stride, padding, dilation, groups: as in :func:`conv2d`. residual: like y, or
    None. activation: "identity", "relu", "leaky_relu" with ``negative_slope`` > 0, "sigmoid" or
    "tanh". moments: the kernel also leaves behind the mean and variance of each channel of y, for
    a :func:`batch_norm` that takes y next; y must not be changed in between. They are joined from
    those of tiles, whose size goes by the GPU's shared memory: the same bits on GPUs of one kind.
    running: running_mean, running_var (OC) float32 or None, momentum and eps of that batch_norm:
    the kernel then joins them, and updates the running statistics, itself. Returns (N, OH, OW, OC).

    Raises what :func:`conv2d` raises, and ValueError for another activation, a negative_slope that
    is not positive, or a residual of another shape. Variants: those of conv2d. "register_tiled" and
    "implicit_gemm" make one pass, unless outputs are so few that their long sums are cut into more
    than two slices; the others make several.

    Source: the layers of He et al., arXiv:1512.03385.
    """
    options = activation_options(activation, negative_slope)
    options |= {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    moments = flag("moments", moments)
    if running is not None and not isinstance(running, Running):
        raise TypeError(f"running must be a Running or None, got {running!r}")
    options |= {"moments": moments, "running": running}
    y: Tensor = FusedConvolution.apply(x, weight, bias, residual, **options)
    if isinstance(y._creator, FusedConvolution):
        y._moments = y._creator.moments
    return y
