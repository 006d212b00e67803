"""Convolution and pooling in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .expression import Expression, channels_first, channels_last, expression


def _images(results: list[Any]) -> list[Any]:
    return [channels_last(y) for y in results]


def _padding(s: Any) -> tuple[int, ...] | None:
    """The padding per axis, if PyTorch's own, alike on both sides, makes the same output."""
    axes = (
        (s.D, s.KD, s.SD, s.PF, s.DD, s.OD),
        (s.H, s.KH, s.SH, s.PT, s.DH, s.OH),
        (s.W, s.KW, s.SW, s.PL, s.DW, s.OW),
    )[-s.dims :]
    if any((n + 2 * p - d * (k - 1) - 1) // t + 1 != out for n, k, t, p, d, out in axes):
        return None
    return tuple(axis[3] for axis in axes)


def _settings(s: Any) -> tuple[Any, ...]:
    steps, spread = (s.SD, s.SH, s.SW)[-s.dims :], (s.DD, s.DH, s.DW)[-s.dims :]
    return steps, _padding(s), spread


@expression("conv2d_forward")
def _convolution(torch: Any, x: Any, w: Any, b: Any, s: Any) -> Expression | None:
    steps, pads, spread = _settings(s)
    if pads is None:
        return None

    def run(x: Any, w: Any, b: Any) -> Any:
        return torch.ops.aten.convolution(x, w, b, steps, pads, spread, False, [0] * s.dims, s.G)

    return Expression([channels_first(x), channels_first(w), b], run, _images)


def _convolution_backward(
    torch: Any, s: Any, mask: list[bool], inputs: list[Any]
) -> Expression | None:
    steps, pads, spread = _settings(s)
    if pads is None:
        return None
    index = mask.index(True)

    def run(dy: Any, x: Any, w: Any) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, w, None, steps, pads, spread, False, [0] * s.dims, s.G, mask
        )[index]

    return Expression(inputs, run, _images)


@expression("conv2d_data_gradient")
def _data_gradient(torch: Any, dy: Any, w: Any, s: Any) -> Expression | None:
    x = np.zeros((s.N, s.C, *s.x_shape[1:-1]), dy.dtype)  # only its shape is read
    inputs = [channels_first(dy), x, channels_first(w)]
    return _convolution_backward(torch, s, [True, False, False], inputs)


@expression("conv2d_weight_gradient")
def _weight_gradient(torch: Any, dy: Any, x: Any, s: Any) -> Expression | None:
    w = np.zeros((s.OC, s.CG, *s.w_shape[1:-1]), dy.dtype)
    inputs = [channels_first(dy), channels_first(x), w]
    return _convolution_backward(torch, s, [False, True, False], inputs)


@expression("conv_transpose2d_forward")
def _transposed(torch: Any, x: Any, w: Any, b: Any, s: Any) -> Expression | None:
    """The geometry is that of the adjoint convolution, from H, W to OH, OW."""
    axes = ((s.H, s.KH, s.SH, s.PT, s.DH, s.OH), (s.W, s.KW, s.SW, s.PL, s.DW, s.OW))
    extra = [n - ((out - 1) * t - 2 * p + d * (k - 1) + 1) for n, k, t, p, d, out in axes]
    if any(not 0 <= e < max(a[2], a[4]) for e, a in zip(extra, axes, strict=True)):
        return None

    def run(x: Any, w: Any, b: Any) -> Any:
        pads = (s.PT, s.PL)
        return torch.nn.functional.conv_transpose2d(
            x, w, b, (s.SH, s.SW), pads, extra, s.G, (s.DH, s.DW)
        )

    return Expression([channels_first(x), channels_first(w), b], run, _images)


def pool_windows(s: Any) -> tuple[Any, ...] | None:
    """(kernel, stride, padding, dilation, ceil_mode) of PyTorch, None if it has no such edges."""
    if (s.ZH, s.ZW) != (s.OH, s.OW):
        return None
    axes = ((s.H, s.KH, s.SH, s.PT, s.DH, s.OH), (s.W, s.KW, s.SW, s.PL, s.DW, s.OW))
    for ceil in (False, True):
        up = [t - 1 if ceil else 0 for _, _, t, _, _, _ in axes]
        found = [
            (n + 2 * p - d * (k - 1) - 1 + u) // t + 1 == out
            for (n, k, t, p, d, out), u in zip(axes, up, strict=True)
        ]
        if all(found) and all(2 * p <= k for _, k, _, p, _, _ in axes):
            return (s.KH, s.KW), (s.SH, s.SW), (s.PT, s.PL), (s.DH, s.DW), ceil
    return None


def _indices(indices: Any) -> Any:
    return channels_first(indices.astype(np.int64))


@expression("max_pool2d_forward")
def _max_pool(torch: Any, x: Any, s: Any) -> Expression | None:
    windows = pool_windows(s)
    if windows is None:
        return None

    def run(x: Any) -> Any:
        return torch.ops.aten.max_pool2d_with_indices(x, *windows)

    return Expression([channels_first(x)], run, _images)


@expression("max_pool2d_backward")
def _max_pool_backward(torch: Any, dy: Any, indices: Any, s: Any) -> Expression | None:
    windows = pool_windows(s)
    if windows is None or (indices < 0).any():
        return None
    x = np.zeros((s.N, s.C, s.H, s.W), dy.dtype)  # only its shape is read

    def run(dy: Any, x: Any, indices: Any) -> Any:
        return torch.ops.aten.max_pool2d_with_indices_backward(dy, x, *windows, indices)

    return Expression([channels_first(dy), x, _indices(indices)], run, _images)


def _average(g: Any) -> tuple[Any, ...] | None:
    windows = pool_windows(g.windows)
    if windows is None or g.ZERO or windows[3] != (1, 1):
        return None
    divisor = None if g.AVERAGE else 1
    return (*windows[:3], windows[4], g.INCLUDE, divisor)


@expression("avg_pool2d_forward")
def _avg_pool(torch: Any, x: Any, g: Any) -> Expression | None:
    options = _average(g)
    if options is None:
        return None
    return Expression(
        [channels_first(x)], lambda x: torch.ops.aten.avg_pool2d(x, *options), _images
    )


@expression("avg_pool2d_backward")
def _avg_pool_backward(torch: Any, dy: Any, g: Any) -> Expression | None:
    options, s = _average(g), g.windows
    if options is None:
        return None
    x = np.zeros((s.N, s.C, s.H, s.W), dy.dtype)  # only its shape is read

    def run(dy: Any, x: Any) -> Any:
        return torch.ops.aten.avg_pool2d_backward(dy, x, *options)

    return Expression([channels_first(dy), x], run, _images)


@expression("adaptive_avg_pool2d_forward")
def _adaptive_avg(torch: Any, x: Any, s: Any) -> Expression:
    def run(x: Any) -> Any:
        return torch.nn.functional.adaptive_avg_pool2d(x, (s.OH, s.OW))

    return Expression([channels_first(x)], run, _images)


@expression("adaptive_avg_pool2d_backward")
def _adaptive_avg_backward(torch: Any, dy: Any, s: Any) -> Expression:
    x = np.zeros((s.N, s.C, s.H, s.W), dy.dtype)  # only its shape is read

    def run(dy: Any, x: Any) -> Any:
        return torch.ops.aten._adaptive_avg_pool2d_backward(dy, x)

    return Expression([channels_first(dy), x], run, _images)


@expression("adaptive_max_pool2d_forward")
def _adaptive_max(torch: Any, x: Any, s: Any) -> Expression:
    def run(x: Any) -> Any:
        return torch.ops.aten.adaptive_max_pool2d(x, (s.OH, s.OW))

    return Expression([channels_first(x)], run, _images)


@expression("adaptive_max_pool2d_backward")
def _adaptive_max_backward(torch: Any, dy: Any, indices: Any, s: Any) -> Expression:
    x = np.zeros((s.N, s.C, s.H, s.W), dy.dtype)  # only its shape is read

    def run(dy: Any, x: Any, indices: Any) -> Any:
        return torch.ops.aten.adaptive_max_pool2d_backward(dy, x, indices)

    return Expression([channels_first(dy), x, _indices(indices)], run, _images)


@expression("max_unpool2d_forward")
def _unpool(torch: Any, x: Any, indices: Any, last: bool, s: Any) -> Expression | None:
    """PyTorch leaves open which of several values stays: compared where each cell has one."""
    if (indices < 0).any() or not _apart(indices, s):
        return None

    def run(x: Any, indices: Any) -> Any:
        return torch.ops.aten.max_unpool2d(x, indices, (s.H, s.W))

    return Expression([channels_first(x), _indices(indices)], run, _images)


@expression("max_unpool2d_backward")
def _unpool_backward(torch: Any, dy: Any, indices: Any, last: bool, s: Any) -> Expression | None:
    if (indices < 0).any() or not _apart(indices, s):
        return None

    def run(dy: Any, indices: Any) -> Any:
        flat = torch.gather(dy.flatten(2), 2, indices.flatten(2))
        return flat.view_as(indices)

    return Expression([channels_first(dy), _indices(indices)], run, _images)


def _apart(indices: Any, s: Any) -> bool:
    order = np.sort(indices.reshape(s.N, -1, s.C), axis=1)
    return not (order[:, 1:] == order[:, :-1]).any()


def _tiles(s: Any) -> bool:
    """Whether the windows cover the image without overlap or padding."""
    kernel, steps = (s.KH, s.KW), (s.SH, s.SW)
    return kernel == steps and (s.H, s.W) == (s.OH * s.KH, s.OW * s.KW) and not (s.PT or s.PL)


@expression("avg_repeat_forward")
def _repeat(torch: Any, x: Any, s: Any) -> Expression | None:
    if not _tiles(s):
        return None

    def run(x: Any) -> Any:
        return torch.nn.functional.interpolate(x, size=(s.H, s.W), mode="nearest")

    return Expression([channels_first(x)], run, _images)


@expression("avg_repeat_backward")
def _repeat_backward(torch: Any, dy: Any, s: Any) -> Expression | None:
    if not _tiles(s):
        return None

    def run(dy: Any) -> Any:
        return torch.ops.aten.upsample_nearest2d_backward(
            dy, [s.H, s.W], [s.N, s.C, s.OH, s.OW], None, None
        )

    return Expression([channels_first(dy)], run, _images)


@expression("dropout2d_forward")
def _dropout2d(torch: Any, x: Any, place: Any, p: float) -> Expression:
    """Other random numbers: the time is compared, the values are not."""
    run = torch.nn.functional.dropout2d
    return Expression([channels_first(x)], lambda x: run(x, p), lambda r: [None])
