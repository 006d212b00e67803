"""Models as ONNX files: what a model computes on an example, operator by operator.

Images are NCHW in the file, N is free. Each function of the trace becomes one or a few operators
of opset 17 (:mod:`gpucnn.interop.onnx_operators`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn.interop.trace import Call, Trace, trace
from gpucnn.nn import Module
from gpucnn.tensor import Tensor
from gpucnn.training.checkpoint import write_atomically

if TYPE_CHECKING:
    import onnx

OPSET: Final = 17
IR_VERSION: Final = 8  # that of the first release with this opset
INPUT: Final = "images"
OUTPUT: Final = "scores"


def channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """An array whose last axis are channels with them behind the first axis."""
    return np.moveaxis(array, -1, 1) if array.ndim > 2 else array


def to_first(rank: int) -> list[int]:
    """The permutation of :func:`channels_first`."""
    return [0, rank - 1, *range(1, rank - 1)] if rank > 2 else list(range(rank))


def to_last(rank: int) -> list[int]:
    """Its inverse."""
    return [0, *range(2, rank), 1] if rank > 2 else list(range(rank))


class Graph:
    """Nodes and constants of a model that grows; every value has a name.

    Tensors of three axes and more are channels first in it. Example shapes say sizes, but for the
    first one, which is free.
    """

    def __init__(self, traced: Trace, names: Mapping[int, str]) -> None:
        self.traced = traced
        self.nodes: list[Any] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._names = names  # id of a parameter -> its name
        self._values: dict[int, str] = {id(traced.x): INPUT}  # id of a tensor -> its value
        self._count = 0

    def fresh(self, kind: str) -> str:
        """A name that no other value has."""
        self._count += 1
        return f"{kind.lower()}_{self._count}"

    def node(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add an operator -> the name of its output, or of its outputs."""
        from onnx import helper

        made = [self.fresh(kind) for _ in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), made, name=made[0], **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, array: Any, name: str | None = None) -> str:
        """A constant, in float32 unless it holds integers."""
        array = np.array(array, order="C")
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        key = self.fresh("constant") if name is None else name
        self.constants[key] = array
        return key

    def parameter(self, tensor: Tensor, array: NDArray[Any]) -> str:
        """A parameter in the layout of the file, under the name that it has in the model."""
        name = self._names.get(id(tensor), "")
        if name in self.constants and not np.array_equal(self.constants[name], array):
            name = ""  # shared by layers that read it in two layouts
        return self.constant(array, name or None)

    def value(self, tensor: Tensor | None) -> str:
        """The value of a tensor that was computed, or a constant of one that was not."""
        assert tensor is not None
        if id(tensor) not in self._values:
            self._values[id(tensor)] = self.parameter(tensor, channels_first(tensor.numpy()))
        return self._values[id(tensor)]

    def define(self, tensor: Tensor, value: str) -> None:
        """Say which value a tensor is."""
        self._values[id(tensor)] = value

    def permute(self, value: str, axes: list[int]) -> str:
        """A transpose, unless it is none."""
        if axes == sorted(axes):
            return value
        return str(self.node("Transpose", value, perm=axes))

    def shaped(self, value: str, shape: list[int]) -> str:
        """A reshape; 0 keeps a size, -1 takes what is left."""
        return str(self.node("Reshape", value, self.constant(np.array(shape, np.int64))))

    def maker(self, tensor: Tensor | None) -> Call | None:
        """The call that returned a tensor."""
        return self.traced.maker(tensor)


def _require_onnx() -> None:
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("writing ONNX files needs the package onnx: pip install 'gpucnn[onnx]'")


def to_onnx(
    model: Module,
    image_shape: tuple[int, ...],
    *,
    metadata: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """A model, as at inference, in ONNX.

    Args:
        model: takes images (N, H, W, C) and returns one tensor; not changed.
        image_shape: (H, W, C).
        metadata: texts by name to be kept in the file.

    Returns:
        A checked model of opset 17. Its input "images" is float32 (N, C, H, W), its output "scores"
        what the model returns, channels behind N where there are three axes or more.

    Raises:
        ValueError: the package onnx is missing, or the model uses a function that has no
            counterpart, which is named.
    """
    _require_onnx()
    import onnx
    from onnx import helper, numpy_helper

    from gpucnn import __version__
    from gpucnn.interop.onnx_operators import OPERATORS

    traced = trace(model, image_shape)
    names = {id(t): name for name, t in model.named_parameters()}
    names |= {id(t): name for name, t in model.named_buffers()}
    graph = Graph(traced, names)
    for call in traced.calls:
        write = OPERATORS.get(call.function.__name__)
        if write is None:
            raise ValueError(f"{call.function.__name__} has no counterpart in ONNX opset {OPSET}")
        write(graph, call)
    last = graph.value(traced.y)
    graph.nodes.append(helper.make_node("Identity", [last], [OUTPUT], name=OUTPUT))

    def free(tensor: Tensor) -> list[Any]:
        return ["N", *[tensor.shape[axis] for axis in to_first(tensor.ndim)[1:]]]

    float32 = onnx.TensorProto.FLOAT
    made = helper.make_model(
        helper.make_graph(
            graph.nodes,
            type(model).__name__,
            [helper.make_tensor_value_info(INPUT, float32, free(traced.x))],
            [helper.make_tensor_value_info(OUTPUT, float32, free(traced.y))],
            [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="gpucnn",
        producer_version=__version__,
    )
    helper.set_model_props(made, dict(metadata or {}))
    onnx.checker.check_model(made, full_check=True)
    return made


def export(
    model: Module,
    path: str | os.PathLike[str],
    image_shape: tuple[int, ...],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write :func:`to_onnx` to a file.

    Raises:
        ValueError: as :func:`to_onnx`.
        OSError: the file cannot be written.
    """
    made = to_onnx(model, image_shape, metadata=metadata)
    write_atomically(path, made.SerializeToString())
