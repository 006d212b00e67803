"""Operators that work element by element: activations, sums, products, dropout, PReLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpucnn.ops.activation import activation_forward, relu_forward
from gpucnn.ops.activation_formulas import ACTIVATIONS
from gpucnn.ops.dropout import place

from ..cases import ACTIVATION, DROPOUT, ELEMENTWISE, ELEMENTWISE_VECTOR, PRELU
from .problem import Arguments, Problem, Shape, draws, label, normal, size, words

# An elementwise yardstick, a ResNet-9 activation; shapenet's first; LeNet's first.
TYPICAL: dict[str, Shape] = {"16-b8": (8, 32, 32, 16)}
LAYERS: dict[str, Shape] = {
    "resnet9-64": (512, 32, 32, 64),
    "shapenet-16": (256, 72, 72, 16),
    "lenet-6": (128, 28, 28, 6),
}

# name -> parameters, and the operations of the formula and of its slope times dy
ACTIVATION_COSTS: dict[str, tuple[tuple[float, ...], int, int]] = {
    "leaky_relu": ((0.01,), 2, 2),
    "elu": ((1.0, 1.0), 4, 4),
    "sigmoid": ((), 3, 3),
    "tanh": ((), 1, 3),
    "softplus": ((1.0, 20.0), 5, 5),
    "gelu": ((), 5, 10),
    "gelu_tanh": ((), 9, 16),
    "silu": ((), 4, 8),
    "hardswish": ((), 5, 5),
}


def _relu(name: str, shape: Shape, group: str) -> Iterator[Problem]:
    def backward(seed: int) -> Arguments:
        return normal(seed, 1, *shape), relu_forward(normal(seed, 0, *shape))

    n = size(shape)
    forward = draws(shape)
    yield Problem("activation", "relu_forward", name, group, forward, words(shape, shape), n)
    moved = words(shape, shape, shape)
    yield Problem("activation", "relu_backward", name, group, backward, moved, n)


def _activation(name: str, shape: Shape, function: str, group: str) -> Iterator[Problem]:
    parameters, forward_flops, backward_flops = ACTIVATION_COSTS[function]

    def backward(seed: int) -> Arguments:
        kept = normal(seed, 0, *shape)
        if ACTIVATIONS[function].keeps_output:
            kept = activation_forward(kept, function, parameters)
        return normal(seed, 1, *shape), kept, function, parameters

    case, forward = f"{function},{name}", draws(shape, then=(function, parameters))
    for primitive, make, arrays, flops in (
        ("activation_forward", forward, 2, forward_flops),
        ("activation_backward", backward, 3, backward_flops),
    ):
        moved = arrays * words(shape)
        yield Problem("activation", primitive, case, group, make, moved, flops * size(shape))


def _elementwise(name: str, shape: Shape, group: str) -> Iterator[Problem]:
    for primitive, inputs, numbers, flops in (
        ("add_forward", (shape, shape), (), 1),
        ("subtract_forward", (shape, shape), (), 1),
        ("multiply_forward", (shape, shape), (), 1),
        ("affine_forward", (shape,), (0.5, 2.0), 2),
        ("scale_forward", (shape, (1,)), (), 1),
    ):
        make, moved = draws(*inputs, then=numbers), words(shape, *inputs)
        yield Problem("elementwise", primitive, name, group, make, moved, flops * size(shape))


def _vector(name: str, shape: Shape, group: str) -> Iterator[Problem]:
    b = (shape[-1],)
    for primitive, numbers in (("add_vector", (-1.0,)), ("multiply_vector", ())):
        make, moved = draws(shape, b, then=numbers), words(shape, shape, b)
        yield Problem("elementwise", primitive, name, group, make, moved, size(shape))


def _dropout(name: str, shape: Shape, group: str) -> Iterator[Problem]:
    def make(seed: int) -> Arguments:
        return normal(seed, 0, *shape), place(seed, 1, 0), 0.5

    primitives = ["dropout_forward"] + (["dropout2d_forward"] if len(shape) == 4 else [])
    for primitive in primitives:
        moved = words(shape, shape) + place(0, 0, 0).nbytes
        yield Problem("dropout", primitive, name, group, make, moved, size(shape))


def prelu(name: str, shape: Shape, slopes: int, group: str) -> Iterator[Problem]:
    n, w = size(shape), (slopes,)
    sums = n if slopes == 1 else n // shape[-1]
    for direction, inputs, outputs, flops, terms in (
        ("forward", (shape, w), (shape,), 2 * n, 1),
        ("backward", (shape, shape, w), (shape, w), 4 * n, sums),
    ):
        make, moved = draws(*inputs), words(*inputs, *outputs)
        yield Problem("prelu", f"prelu_{direction}", name, group, make, moved, flops, terms)


def problems() -> Iterator[Problem]:
    """Every elementwise operator."""
    edge: list[Any] = [(label(shape), shape, "edge") for shape in ACTIVATION]
    large = [
        (n, shape, g)
        for g, table in (("typical", TYPICAL), ("layer", LAYERS))
        for n, shape in table.items()
    ]
    for name, shape, group in edge + large:
        yield from _relu(name, shape, group)
        for function in ACTIVATION_COSTS:
            yield from _activation(name, shape, function, group)
    for name, shape, group in [(str(n), (n,), "edge") for n in ELEMENTWISE] + large:
        yield from _elementwise(name, shape, group)
    for name, shape, group in [(label(s), s, "edge") for s in ELEMENTWISE_VECTOR] + large:
        yield from _vector(name, shape, group)
    for name, shape, group in [(label(s), s, "edge") for s in DROPOUT] + large:
        yield from _dropout(name, shape, group)
    for shape, slopes in PRELU:
        yield from prelu(label(shape, {"slopes": slopes}), shape, slopes, "edge")
    for name, shape, group in large:
        yield from prelu(name, shape, shape[-1], group)
    for name, shape, group in large[:1]:
        yield from prelu(f"{name},slopes=1", shape, 1, group)
