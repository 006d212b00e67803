"""Each function of the tape as operators of ONNX: how a call becomes nodes of a graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from gpucnn.interop.onnx import Graph, channels_first, to_first, to_last
from gpucnn.interop.trace import Call
from gpucnn.ops.avg_pool2d import avg_pool2d_geometry, window_divisor
from gpucnn.ops.conv_geometry import conv_geometry
from gpucnn.ops.conv_transpose2d import transposed_geometry
from gpucnn.ops.geometry import sizes
from gpucnn.ops.pool2d import max_pool2d_geometry
from gpucnn.ops.pool3d import max_pool3d_geometry
from gpucnn.tensor import Tensor

Write = Callable[[Graph, Call], None]


def _unary(graph: Graph, call: Call, value: str) -> None:
    graph.define(call.outputs[0], value)


def _first(call: Call) -> Tensor:
    x = call.inputs[0]
    assert x is not None
    return x


def _unsupported(what: str) -> ValueError:
    return ValueError(f"{what} has no counterpart in ONNX")


# ---- products


def _axes(s: Any, dims: int) -> tuple[list[list[int]], list[int]]:
    """Of a convolution (kernel, stride, dilation), and the cells before its first window."""
    names = [("KD", "SD", "DD", "PF"), ("KH", "SH", "DH", "PT"), ("KW", "SW", "DW", "PL")][-dims:]
    kernel, stride, dilation, before = ([getattr(s, n[i]) for n in names] for i in range(4))
    return [kernel, stride, dilation], before


def _after(
    size: Sequence[int], out: Sequence[int], windows: list[list[int]], before: Sequence[int]
) -> list[int]:
    """The cells behind an image that its last windows reach; below 0 where they do not reach it."""
    axes = zip(size, out, *windows, before, strict=True)
    return [(o - 1) * s + d * (k - 1) + 1 - n - b for n, o, k, s, d, b in axes]


def _convolution(graph: Graph, call: Call) -> None:
    x, weight, bias = call.inputs[:3]
    assert x is not None
    assert weight is not None
    dims, y = call.options["dims"], call.outputs[0]
    chosen = {k: v for k, v in call.options.items() if k != "dims"}
    arrays = (x.data, weight.data, None if bias is None else bias.data)
    s = conv_geometry(dims, *arrays, *(chosen[n] for n in _CONVOLUTION))
    windows, before = _axes(s, dims)
    after = _after(x.shape[1:-1], y.shape[1:-1], windows, before)
    inputs = [graph.value(x), graph.parameter(weight, channels_first(weight.numpy()))]
    if bias is not None:
        inputs.append(graph.value(bias))
    pads = [*before, *(max(0, n) for n in after)]
    made = graph.node(
        "Conv",
        *inputs,
        kernel_shape=windows[0],
        strides=windows[1],
        dilations=windows[2],
        pads=pads,
        group=s.G,
    )
    _unary(graph, call, made)


_CONVOLUTION: Final = ("stride", "padding", "dilation", "groups")


def _transposed(graph: Graph, call: Call) -> None:
    x, weight, bias = call.inputs[:3]
    assert x is not None
    assert weight is not None
    dims, y = call.options["dims"], call.outputs[0]
    chosen = {k: v for k, v in call.options.items() if k != "dims"}
    arrays = (x.data, weight.data, None if bias is None else bias.data)
    s = transposed_geometry(dims, *arrays, **chosen)
    windows, before = _axes(s, dims)
    # Where the adjoint's last window ends: what lies behind it is cut off, or filled in.
    after = _after(y.shape[1:-1], x.shape[1:-1], windows, before)
    inputs = [graph.value(x), graph.parameter(weight, channels_first(weight.numpy()))]
    if bias is not None:
        inputs.append(graph.value(bias))
    made = graph.node(
        "ConvTranspose",
        *inputs,
        kernel_shape=windows[0],
        strides=windows[1],
        dilations=windows[2],
        pads=[*before, *(max(0, n) for n in after)],
        output_padding=[max(0, -n) for n in after],
        group=s.G,
    )
    _unary(graph, call, made)


def _linear(graph: Graph, call: Call) -> None:
    x, weight, bias = call.inputs
    inputs = [graph.value(x), graph.value(weight)]
    if bias is not None:
        inputs.append(graph.value(bias))
    _unary(graph, call, graph.node("Gemm", *inputs, transB=1))


def _matmul(graph: Graph, call: Call) -> None:
    _unary(graph, call, graph.node("MatMul", *map(graph.value, call.inputs)))


# ---- elementwise


def _relu(graph: Graph, call: Call) -> None:
    _unary(graph, call, graph.node("Relu", graph.value(call.inputs[0])))


def _gelu(graph: Graph, x: str) -> str:
    inner = graph.node("Erf", graph.node("Mul", x, graph.constant(math.sqrt(0.5))))
    half = graph.node("Mul", x, graph.constant(0.5))
    return str(graph.node("Mul", half, graph.node("Add", inner, graph.constant(1.0))))


def _gelu_tanh(graph: Graph, x: str) -> str:
    cube = graph.node("Mul", graph.node("Mul", x, x), x)
    inner = graph.node("Add", x, graph.node("Mul", cube, graph.constant(0.044715)))
    inner = graph.node("Tanh", graph.node("Mul", inner, graph.constant(math.sqrt(2 / math.pi))))
    half = graph.node("Mul", x, graph.constant(0.5))
    return str(graph.node("Mul", half, graph.node("Add", inner, graph.constant(1.0))))


def _elu(graph: Graph, x: str, alpha: float, scale: float) -> str:
    value = graph.node("Elu", x, alpha=alpha)
    return str(value if scale == 1.0 else graph.node("Mul", value, graph.constant(scale)))


def _softplus(graph: Graph, x: str, beta: float, threshold: float) -> str:
    product = x if beta == 1.0 else graph.node("Mul", x, graph.constant(beta))
    value = graph.node("Softplus", product)
    if beta != 1.0:
        value = graph.node("Mul", value, graph.constant(1 / beta))
    if threshold >= _STRAIGHT:  # there x and softplus are one number
        return str(value)
    beyond = graph.node("Greater", product, graph.constant(threshold))
    return str(graph.node("Where", beyond, x, value))


_STRAIGHT: Final = 20.0  # log(1 + exp(20)) - 20 is 2e-9
_ELEMENTWISE: Final[dict[str, Callable[..., str]]] = {
    "leaky_relu": lambda g, x, slope: g.node("LeakyRelu", x, alpha=slope),
    "elu": _elu,
    "sigmoid": lambda g, x: g.node("Sigmoid", x),
    "tanh": lambda g, x: g.node("Tanh", x),
    "softplus": _softplus,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": lambda g, x: g.node("Mul", x, g.node("Sigmoid", x)),
    "hardswish": lambda g, x: g.node("HardSwish", x),
}


def _elementwise(graph: Graph, call: Call) -> None:
    write = _ELEMENTWISE.get(call.options["name"])
    if write is None:
        raise _unsupported(call.options["name"])
    _unary(graph, call, write(graph, graph.value(call.inputs[0]), *call.options["parameters"]))


def _per_channel(graph: Graph, vector: Tensor | None, rank: int) -> str:
    """A vector (C) as it is broadcast over values of this rank, channels first."""
    assert vector is not None
    if rank <= 2:
        return graph.value(vector)
    return graph.parameter(vector, vector.numpy().reshape(-1, *(1,) * (rank - 2)))


def _pair(kind: str) -> Write:
    def write(graph: Graph, call: Call) -> None:
        a, b = call.inputs
        assert a is not None
        assert b is not None
        operator = "Sub" if call.options.get("sign", 1.0) < 0 else kind
        vector = b.ndim == 1 and a.ndim > 2
        other = _per_channel(graph, b, a.ndim) if vector else graph.value(b)
        _unary(graph, call, graph.node(operator, graph.value(a), other))

    return write


def _affine(graph: Graph, call: Call) -> None:
    value = graph.value(call.inputs[0])
    if call.options["scale"] != 1.0:
        value = graph.node("Mul", value, graph.constant(float(call.options["scale"])))
    if call.options["shift"] != 0.0:
        value = graph.node("Add", value, graph.constant(float(call.options["shift"])))
    _unary(graph, call, value)


def _prelu(graph: Graph, call: Call) -> None:
    x, weight = call.inputs
    slopes = _per_channel(graph, weight, _first(call).ndim)
    _unary(graph, call, graph.node("PRelu", graph.value(x), slopes))


def _softmax(kind: str) -> Write:
    def write(graph: Graph, call: Call) -> None:
        axis = min(1, _first(call).ndim - 1)
        _unary(graph, call, graph.node(kind, graph.value(call.inputs[0]), axis=axis))

    return write


def _dropout(graph: Graph, call: Call) -> None:
    raise _unsupported("dropout with training=True")


# ---- normalisation


def _batch_norm(graph: Graph, call: Call) -> None:
    x, gamma, beta, mean, var = call.inputs
    if call.options["training"] or mean is None:
        raise _unsupported("batch normalisation by the statistics of a batch")
    C = mean.shape[0]
    scale = graph.constant(np.ones(C)) if gamma is None else graph.value(gamma)
    shift = graph.constant(np.zeros(C)) if beta is None else graph.value(beta)
    arrays = (graph.value(x), scale, shift, graph.value(mean), graph.value(var))
    made = graph.node("BatchNormalization", *arrays, epsilon=float(call.options["eps"]))
    _unary(graph, call, made)


def _group_norm(graph: Graph, call: Call) -> None:
    x, weight, bias = call.inputs
    assert x is not None
    (rows, _, _), groups, eps = call.options["view"], call.options["groups"], call.options["eps"]
    rank = x.ndim
    per_channel = all(t is None or t.ndim == 1 for t in (weight, bias))
    if rows == x.shape[0] and per_channel and rank > 2:
        flat = graph.shaped(graph.value(x), [0, groups, -1])
        ones, zeros = graph.constant(np.ones(groups)), graph.constant(np.zeros(groups))
        flat = graph.node("InstanceNormalization", flat, ones, zeros, epsilon=float(eps))
        value = graph.shaped(flat, [0, *(x.shape[axis] for axis in to_first(rank)[1:])])
        for kind, tensor in (("Mul", weight), ("Add", bias)):
            if tensor is not None:
                value = graph.node(kind, value, _per_channel(graph, tensor, rank))
        _unary(graph, call, value)
        return
    if groups != 1:
        raise _unsupported("group normalisation of (N, C)")
    axis = next(a for a in range(1, rank) if math.prod(x.shape[:a]) == rows)
    inputs = [graph.permute(graph.value(x), to_last(rank))]
    shape = x.shape[axis:]
    scale = np.ones(shape) if weight is None else weight.numpy().reshape(shape)
    inputs.append(graph.constant(scale) if weight is None else graph.parameter(weight, scale))
    if bias is not None:
        inputs.append(graph.parameter(bias, bias.numpy().reshape(shape)))
    made = graph.node("LayerNormalization", *inputs, axis=axis, epsilon=float(eps))
    _unary(graph, call, graph.permute(made, to_first(rank)))


def _local_response_norm(graph: Graph, call: Call) -> None:
    x, window = _first(call), call.options["window"]
    value = graph.value(x)
    squares = graph.node("Mul", value, value)
    C = x.shape[-1]
    if window.region == "across":
        near = np.subtract.outer(np.arange(C), np.arange(C))  # of output and input channels
        band = np.where((near <= window.before) & (-near <= window.after), window.a, 0.0)
        sums = graph.node("Conv", squares, graph.constant(band[:, :, None, None]))
    else:
        side = window.before + window.after + 1
        taps = graph.constant(np.full((C, 1, side, side), window.a))
        pads = [window.before] * 2 + [window.after] * 2
        sums = graph.node("Conv", squares, taps, group=C, pads=pads)
    sums = graph.node("Add", sums, graph.constant(window.k))
    power = graph.node("Pow", sums, graph.constant(-window.beta))
    _unary(graph, call, graph.node("Mul", value, power))


# ---- pooling


def _max_pool2d(graph: Graph, call: Call) -> None:
    x, options = _first(call), call.options
    names = ("kernel_size", "stride", "padding", "dilation", "edge")
    s = max_pool2d_geometry(x.data, *(options[name] for name in names))
    windows = [[s.KH, s.KW], [s.SH, s.SW], [s.DH, s.DW]]
    _max_pool(graph, call, windows, [s.PT, s.PL])


def _max_pool3d(graph: Graph, call: Call) -> None:
    g = max_pool3d_geometry(_first(call).data, **call.options)
    p, d = g.planes, g.depth
    windows = [[d.KH, p.KH, p.KW], [d.SH, p.SH, p.SW], [d.DH, p.DH, p.DW]]
    _max_pool(graph, call, windows, [d.PT, p.PT, p.PL])


def _max_pool(graph: Graph, call: Call, windows: list[list[int]], before: list[int]) -> None:
    x, y = _first(call), call.outputs[0]
    if call.options["edge"] == "zero":
        raise _unsupported('max pooling with edge="zero"')
    after = _after(x.shape[1:-1], y.shape[1:-1], windows, before)
    values = graph.node(
        "MaxPool",
        graph.value(x),
        outputs=len(call.outputs),
        kernel_shape=windows[0],
        strides=windows[1],
        dilations=windows[2],
        pads=[*before, *(max(0, n) for n in after)],
    )
    names = [values] if len(call.outputs) == 1 else values
    for tensor, name in zip(call.outputs, names, strict=True):
        graph.define(tensor, name)


def _avg_pool2d(graph: Graph, call: Call) -> None:
    x, y = _first(call), call.outputs[0]
    g = avg_pool2d_geometry(x.data, **call.options)
    s = g.windows
    windows = [[s.KH, s.KW], [s.SH, s.SW], [1, 1]]
    before = [s.PT, s.PL]
    after = _after(x.shape[1:-1], y.shape[1:-1], windows, before)
    pads = [*before, *(max(0, n) for n in after)]
    value = graph.node(
        "AveragePool",
        graph.value(x),
        kernel_shape=windows[0],
        strides=windows[1],
        pads=pads,
        count_include_pad=1,
    )
    # What it divides by here is the whole window; what it shall be divided by differs at edges.
    share = s.KH * s.KW / np.asarray(window_divisor(g, np.float64))
    if (share != 1).any():
        value = graph.node("Mul", value, graph.constant(share[..., 0] if share.ndim else share))
    _unary(graph, call, value)


def _adaptive_avg_pool2d(graph: Graph, call: Call) -> None:
    x, y = _first(call), call.outputs[0]
    if y.shape[1:3] == (1, 1):
        _unary(graph, call, graph.node("GlobalAveragePool", graph.value(x)))
        return
    rows, columns = (_regions(n, o) for n, o in zip(x.shape[1:3], y.shape[1:3], strict=True))
    value = graph.node("MatMul", graph.constant(rows), graph.value(x))
    _unary(graph, call, graph.node("MatMul", value, graph.constant(columns.T)))


def _regions(size: int, out: int) -> np.ndarray[Any, Any]:
    """(out, size): row o averages the cells ⌊o·size/out⌋ … ⌈(o + 1)·size/out⌉ − 1."""
    matrix = np.zeros((out, size))
    for o in range(out):
        region = slice(o * size // out, -(-(o + 1) * size // out))
        matrix[o, region] = 1 / (region.stop - region.start)
    return matrix


def _adaptive_max_pool2d(graph: Graph, call: Call) -> None:
    x, y = _first(call), call.outputs[0]
    size, out = x.shape[1:3], y.shape[1:3]
    if out == (1, 1):
        graph.define(y, graph.node("GlobalMaxPool", graph.value(x)))
        return
    if any(n % o for n, o in zip(size, out, strict=True)):
        raise _unsupported(f"adaptive max pooling of {size} to {out}")
    each = [n // o for n, o in zip(size, out, strict=True)]
    graph.define(y, graph.node("MaxPool", graph.value(x), kernel_shape=each, strides=each))


def _size_of(graph: Graph, reference: str, shape: Sequence[int]) -> str:
    """A shape (N, …) at run time, with the N of a value."""
    zero, one = (graph.constant(np.array([n], np.int64)) for n in (0, 1))
    n = graph.node("Slice", graph.node("Shape", reference), zero, one)
    return str(graph.node("Concat", n, graph.constant(np.array(shape, np.int64)), axis=0))


def _max_unpool(graph: Graph, call: Call) -> None:
    x, indices, y = _first(call), call.inputs[1], call.outputs[0]
    pool = graph.maker(indices)
    if pool is None or pool.function.__name__ != "MaxPool2d":
        raise _unsupported("unpooling by indices that no max_pool2d of the model returned")
    given = pool.inputs[0]
    assert given is not None
    if given.shape[1:] != y.shape[1:] or call.options["overlap"] == "sum":
        raise _unsupported("unpooling to another size than was pooled, or a sum of overlaps")
    kernel = list(sizes("kernel_size", call.options["kernel_size"], call.options["dims"]))
    value = graph.value(x)
    shape = _size_of(graph, value, [y.shape[axis] for axis in to_first(y.ndim)[1:]])
    made = graph.node(
        "MaxUnpool", value, graph.value(indices), shape, kernel_shape=kernel, strides=kernel
    )
    _unary(graph, call, made)


# ---- shapes


def _reshape(graph: Graph, call: Call) -> None:
    x, y = _first(call), call.outputs[0]
    _unary(graph, call, _in_shape(graph, graph.value(x), x.shape, y.shape))


def _in_shape(graph: Graph, value: str, given: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """A value of the first shape in the second; shapes have their channels last."""
    if given[:1] != wanted[:1]:
        raise _unsupported(f"a change of shape that touches the batch, {given} to {wanted},")
    one_pixel = math.prod(given[1:-1]) == 1
    flat = value if one_pixel else graph.permute(value, to_last(len(given)))
    if math.prod(wanted[1:-1]) == 1:
        return graph.shaped(flat, [0, *(wanted[axis] for axis in to_first(len(wanted))[1:])])
    return graph.permute(graph.shaped(flat, [0, *wanted[1:]]), to_first(len(wanted)))


def _concatenate(graph: Graph, call: Call) -> None:
    rank = call.outputs[0].ndim
    axis = to_first(rank).index(call.options["axis"] % rank)
    _unary(graph, call, graph.node("Concat", *map(graph.value, call.inputs), axis=axis))


def _transpose(graph: Graph, call: Call) -> None:
    rank = _first(call).ndim
    last, first = to_last(rank), to_first(rank)
    through = [last[axis] for axis in call.options["axes"]]
    value = graph.permute(graph.value(call.inputs[0]), [through[axis] for axis in first])
    _unary(graph, call, value)


def _reduction(kind: str) -> Write:
    def write(graph: Graph, call: Call) -> None:
        x, (O, R, C) = _first(call), call.options["sizes"]
        if x.shape[0] > O or O % x.shape[0]:
            raise _unsupported("a sum or maximum over the batch")
        value = graph.permute(graph.value(x), to_last(x.ndim))
        value = graph.shaped(value, [-1, R, C])
        if kind == "ReduceSum":
            value = graph.node(kind, value, graph.constant(np.array([1])), keepdims=0)
            if call.options["factor"] != 1.0:
                value = graph.node("Mul", value, graph.constant(float(call.options["factor"])))
        else:
            value = graph.node(kind, value, axes=[1], keepdims=0)
        shape = call.outputs[0].shape
        value = graph.shaped(value, [-1, *shape[1:]])
        _unary(graph, call, graph.permute(value, to_first(len(shape))))

    return write


def _broadcast(graph: Graph, call: Call) -> None:
    x, shape = _first(call), call.options["shape"]
    if x.ndim < len(shape) and x.ndim:
        wide = x.numpy().reshape(*(1,) * (len(shape) - x.ndim), *x.shape)
        if graph.maker(x) is not None:
            raise _unsupported("a computed vector in a larger shape")
        value = graph.constant(channels_first(wide))
    else:
        value = graph.value(x)
    # Operators broadcast by themselves.
    _unary(graph, call, value)


OPERATORS: Final[dict[str, Write]] = {
    "AdaptiveAvgPool2d": _adaptive_avg_pool2d,
    "AdaptiveMaxPool2d": _adaptive_max_pool2d,
    "Add": _pair("Add"),
    "Affine": _affine,
    "AvgPool2d": _avg_pool2d,
    "AxisMax": _reduction("ReduceMax"),
    "AxisSum": _reduction("ReduceSum"),
    "BatchNorm": _batch_norm,
    "Broadcast": _broadcast,
    "Concatenate": _concatenate,
    "Convolution": _convolution,
    "Dropout": _dropout,
    "Elementwise": _elementwise,
    "GroupNorm": _group_norm,
    "Linear": _linear,
    "LocalResponseNorm": _local_response_norm,
    "LogSoftmax": _softmax("LogSoftmax"),
    "Matmul": _matmul,
    "MaxPool2d": _max_pool2d,
    "MaxPool3d": _max_pool3d,
    "MaxUnpool": _max_unpool,
    "Multiply": _pair("Mul"),
    "PRelu": _prelu,
    "Relu": _relu,
    "Reshape": _reshape,
    "Softmax": _softmax("Softmax"),
    "TransposedConvolution": _transposed,
    "Transpose": _transpose,
}
