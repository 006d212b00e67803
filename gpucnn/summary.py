"""What each layer of a model makes, costs and sees."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

from gpucnn.kernel import Launch, observe_launches, without_running
from gpucnn.nn import Linear, LocallyConnected2d, Module, Parameter
from gpucnn.nn.conv import Convolution
from gpucnn.nn.fuse import fused_layers
from gpucnn.receptive_field import Trace
from gpucnn.tensor import Tensor
from gpucnn.tuning import kernel_label


@dataclass(frozen=True)
class LayerSummary:
    """One call of one layer, for one image; or what is left of a module's parameters.

    Attributes:
        name: as in ``named_modules()``.
        layer: its repr.
        output_shape: without the batch dimension; () where nothing was called.
        parameters: numbers that are trained; 0 where they were counted at an earlier call.
        multiply_adds: of convolutions and linear layers, padding included; 0 for other layers.
        kernel: the variant and tile that the device takes for the batch at the present precision,
            "numpy" on the cpu; "" for a layer that is neither a convolution nor linear.
        fused: the layer before that this one is computed together with; "" if it runs on its own.
        receptive_field: (rows, columns) of the input that one output can see, the largest over the
            outputs; None behind a layer whose reach is not known.
    """

    name: str
    layer: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int
    kernel: str
    fused: str
    receptive_field: tuple[int, ...] | None


def _multiply_adds(module: Module, x: Tensor, y: Tensor) -> int:
    if isinstance(module, Convolution):
        # weight (OC, ..., C/groups): each output is one dot product of the last dimensions.
        # Transposed, (C, ..., OC/groups): each input is multiplied with the last dimensions.
        each = x if module.transposed else y
        return math.prod(each.shape[1:]) * math.prod(module.weight.shape[1:])
    if isinstance(module, LocallyConnected2d):
        return math.prod(module.weight.shape)
    if isinstance(module, Linear):
        return math.prod(y.shape[1:]) * module.weight.shape[1]
    return 0


def _kernel(module: Module, launches: list[Launch]) -> str:
    if not isinstance(module, Convolution | Linear):
        return ""
    return kernel_label(reversed(launches)) if launches else "numpy"


def summarize(
    model: Module, input_shape: tuple[int, ...], batch_size: int = 1
) -> list[LayerSummary]:
    """Run blank images through a model and describe each layer it calls, in order.

    Behind them come the modules whose parameters no such call counted: those that hold parameters
    beside other modules, and layers that were not called. Each parameter counts once, and what is
    not trained, such as running statistics, not at all.

    Args:
        model: any module; its mode is restored afterwards.
        input_shape: (H, W, C) for images: without the batch dimension.
        batch_size: how many images; kernels depend on it, and nothing else does.

    Raises:
        ValueError: the model does not take images of that shape.
    """
    rows: list[LayerSummary] = []
    counted: set[int] = set()
    launched: list[Launch] = []
    fused = fused_layers(model)
    trace = Trace(input_shape, batch_size)

    def called(name: str, module: Module, x: Tensor, y: Tensor) -> None:
        fresh = [p for p in module.parameters() if id(p) not in counted]
        counted.update(map(id, fresh))
        field = trace.field(y)
        launches, launched[:] = list(launched), []
        rows.append(
            LayerSummary(
                name=name,
                layer=repr(module),
                output_shape=tuple(y.shape[1:]),
                parameters=sum(p.size for p in fresh),
                multiply_adds=_multiply_adds(module, x, y),
                kernel=_kernel(module, launches),
                fused=fused.get(name, ""),
                receptive_field=None if field is None else tuple(axis.size for axis in field),
            )
        )

    emulated = trace.blank.device == "emulated"
    with (
        trace.watch(model, called),
        observe_launches(launched.append),
        without_running() if emulated else contextlib.nullcontext(),
    ):
        model(trace.blank)
    for name, module in model.named_modules():
        own = [p for p in vars(module).values() if isinstance(p, Parameter)]
        left = {id(p): p.size for p in own if id(p) not in counted}
        if left:
            counted.update(left)
            size = sum(left.values())
            rows.append(LayerSummary(name, type(module).__name__, (), size, 0, "", "", None))
    return rows
