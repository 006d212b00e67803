"""Elements, vectors, rows and matrices in PyTorch: no layout of images comes in."""

from __future__ import annotations

from typing import Any

import numpy as np

from .expression import Expression, expression


def _pointwise(name: str) -> Any:
    def build(torch: Any, a: Any, b: Any) -> Expression:
        return Expression([a, b], getattr(torch, name))

    return build


for _primitive, _name in (("add_forward", "add"), ("subtract_forward", "sub")):
    expression(_primitive)(_pointwise(_name))
expression("multiply_forward")(_pointwise("mul"))
expression("multiply_vector")(_pointwise("mul"))
expression("scale_forward")(_pointwise("mul"))


@expression("affine_forward")
def _affine(torch: Any, x: Any, scale: float, shift: float) -> Expression:
    return Expression([x], lambda x: x * scale + shift)


@expression("add_vector")
def _add_vector(torch: Any, a: Any, b: Any, sign: float) -> Expression:
    return Expression([a, b], lambda a, b: torch.add(a, b, alpha=sign))


@expression("relu_forward")
def _relu(torch: Any, x: Any) -> Expression:
    return Expression([x], torch.relu)


@expression("relu_backward")
def _relu_backward(torch: Any, dy: Any, y: Any) -> Expression:
    return Expression([dy, y], lambda dy, y: torch.ops.aten.threshold_backward(dy, y, 0))


def _activation(torch: Any, name: str, parameters: tuple[float, ...]) -> Any:
    """(forward, backward from dy and what our kernel keeps), None where PyTorch has no such one."""
    aten, F = torch.ops.aten, torch.nn.functional
    if name in ("elu", "selu"):
        alpha, scale = (*parameters, 1.0)[:2]
        return (
            lambda x: aten.elu(x, alpha, scale, 1.0),
            lambda dy, kept: aten.elu_backward(dy, alpha, scale, 1.0, False, kept),
        )
    found: Any = {
        "leaky_relu": lambda: (
            lambda x: F.leaky_relu(x, *parameters),
            lambda dy, x: aten.leaky_relu_backward(dy, x, *parameters, False),
        ),
        "sigmoid": lambda: (torch.sigmoid, aten.sigmoid_backward),
        "tanh": lambda: (torch.tanh, aten.tanh_backward),
        "softplus": lambda: (
            lambda x: F.softplus(x, *parameters),
            lambda dy, x: aten.softplus_backward(dy, x, *(*parameters, 1.0, 20.0)[:2]),
        ),
        "gelu": lambda: (F.gelu, aten.gelu_backward),
        "gelu_tanh": lambda: (
            lambda x: F.gelu(x, approximate="tanh"),
            lambda dy, x: aten.gelu_backward(dy, x, approximate="tanh"),
        ),
        "silu": lambda: (F.silu, aten.silu_backward),
        "hardswish": lambda: (F.hardswish, aten.hardswish_backward),
    }.get(name)
    return found() if found else None


@expression("activation_forward")
def _activation_forward(torch: Any, x: Any, name: str, parameters: Any) -> Expression | None:
    functions = _activation(torch, name, parameters)
    return functions and Expression([x], functions[0])


@expression("activation_backward")
def _activation_backward(
    torch: Any, dy: Any, kept: Any, name: str, parameters: Any
) -> Expression | None:
    functions = _activation(torch, name, parameters)
    return functions and Expression([dy, kept], functions[1])


@expression("linear_forward")
def _linear(torch: Any, x: Any, w: Any, b: Any, _: Any) -> Expression:
    return Expression([x, w, b], torch.nn.functional.linear)


@expression("linear_data_gradient")
def _linear_data(torch: Any, dy: Any, w: Any, _: Any) -> Expression:
    return Expression([dy, w], torch.matmul)


@expression("linear_weight_gradient")
def _linear_weight(torch: Any, dy: Any, x: Any, _: Any) -> Expression:
    return Expression([dy, x], lambda dy, x: dy.t() @ x)


@expression("column_sum")
def _column_sum(torch: Any, x: Any) -> Expression:
    return Expression([x.reshape(-1, x.shape[-1])], lambda x: x.sum(0))


@expression("axis_sum")
def _axis_sum(torch: Any, x: Any, factor: float) -> Expression:
    return Expression([x], lambda x: x.sum(1) if factor == 1 else x.sum(1) * factor)


@expression("axis_max")
def _axis_max(torch: Any, x: Any) -> Expression:
    """PyTorch's index of equal maxima is any of them, and int64: the values are compared."""
    return Expression([x], lambda x: x.max(1), lambda r: [r[0], r[1].astype(np.int32)])


@expression("sum_slices")
def _sum_slices(torch: Any, partial: Any, bias: Any) -> Expression:
    return Expression([partial, bias], lambda p, b: p.sum(0) if b is None else p.sum(0) + b)


@expression("transpose_forward")
def _transpose(torch: Any, x: Any, axes: Any) -> Expression:
    return Expression([x], lambda x: x.permute(tuple(axes)).contiguous())


@expression("join_columns")
def _join(torch: Any, parts: Any) -> Expression:
    return Expression([list(parts)], lambda parts: torch.cat(parts, 1))


@expression("cut_columns")
def _cut(torch: Any, y: Any, start: int, width: int) -> Expression:
    return Expression([y], lambda y: y[:, start : start + width].contiguous())


@expression("dropout_forward")
def _dropout(torch: Any, x: Any, place: Any, p: float) -> Expression:
    """Other random numbers: the time is compared, the values are not."""
    return Expression([x], lambda x: torch.dropout(x, p, True), lambda r: [None])


@expression("prelu_forward")
def _prelu(torch: Any, x: Any, weight: Any) -> Expression:
    return Expression([x, weight], lambda x, w: torch.ops.aten._prelu_kernel(x, w))


@expression("prelu_backward")
def _prelu_backward(torch: Any, dy: Any, x: Any, weight: Any) -> Expression:
    rows = (-1, x.shape[-1])

    def run(dy: Any, x: Any, w: Any) -> Any:
        dx, slopes = torch.ops.aten._prelu_kernel_backward(dy, x, w)
        return dx, slopes.sum(0) if w.numel() > 1 else slopes.sum().reshape(1)

    inputs = [dy.reshape(rows), x.reshape(rows), weight]
    return Expression(inputs, run, lambda r: [r[0].reshape(x.shape), r[1]])


@expression("clip_value")
def _clip_value(torch: Any, gradients: Any, limit: float) -> Expression:
    def run(gradients: Any) -> None:
        torch._foreach_clamp_min_(gradients, -limit)
        torch._foreach_clamp_max_(gradients, limit)

    return Expression([list(gradients)], run, updated=(0,))


@expression("clip_norm")
def _clip_norm(torch: Any, gradients: Any, max_norm: float) -> Expression:
    def run(gradients: Any) -> Any:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, torch.clamp(max_norm / (norm + 1e-6), max=1.0))
        return norm

    return Expression([list(gradients)], run, updated=(0,))
