"""Normalisation and softmax in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .expression import Expression, channels_first, channels_last, expression

for _name, _function in (("softmax_forward", "softmax"), ("log_softmax_forward", "log_softmax")):

    def _forward(torch: Any, x: Any, _function: str = _function) -> Expression:
        return Expression([x], lambda x: getattr(torch, _function)(x, -1))

    expression(_name)(_forward)


@expression("softmax_backward")
def _softmax_backward(torch: Any, dy: Any, y: Any) -> Expression:
    run = torch.ops.aten._softmax_backward_data
    return Expression([dy, y], lambda dy, y: run(dy, y, -1, dy.dtype))


@expression("log_softmax_backward")
def _log_softmax_backward(torch: Any, dy: Any, y: Any) -> Expression:
    run = torch.ops.aten._log_softmax_backward_data
    return Expression([dy, y], lambda dy, y: run(dy, y, -1, dy.dtype))


def _images(x: Any) -> Any:
    """(…, C) -> (N, C, …), or (M, C)."""
    return channels_first(x) if x.ndim > 2 else x


def _back(y: Any) -> Any:
    return channels_last(y) if y.ndim > 2 else y


@expression("batch_norm_training")
def _batch_norm(
    torch: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, momentum: float, eps: float
) -> Expression:
    def run(x: Any, *vectors: Any) -> Any:
        # what torch.nn.BatchNorm2d calls: cuDNN's kernel where that is the faster one
        implementation = torch.ops.aten._batch_norm_impl_index
        return implementation(x, *vectors, True, momentum, eps, True)[:3]

    first = x.reshape(-1, x.shape[-1])[0]
    updated = tuple(i for i, v in ((3, mean), (4, var)) if v is not None)

    def results(r: list[Any]) -> list[Any]:
        return [_back(r[0]), r[1] - first, *r[2:]]

    return Expression([_images(x), gamma, beta, mean, var], run, results, updated)


@expression("batch_norm_inference")
def _batch_norm_inference(
    torch: Any, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, eps: float
) -> Expression:
    def run(x: Any, gamma: Any, beta: Any, mean: Any, var: Any) -> Any:
        return torch.nn.functional.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)

    return Expression([_images(x), gamma, beta, mean, var], run, lambda r: [_back(r[0]), None])


def _batch_norm_backward(torch: Any, arrays: list[Any], mask: list[bool]) -> Expression:
    def run(dy: Any, x: Any, gamma: Any, mean: Any, invstd: Any) -> Any:
        made = torch.ops.aten.native_batch_norm_backward(
            dy, x, gamma, None, None, mean, invstd, True, 1e-5, mask
        )
        return tuple(part for part, wanted in zip(made, mask, strict=True) if wanted)

    return Expression(arrays, run, lambda r: [_back(part) for part in r])


@expression("batch_norm_sums")
def _batch_norm_sums(torch: Any, dy: Any, x: Any, mean: Any, delta: Any, invstd: Any) -> Expression:
    if mean is None:
        mean = x.reshape(-1, x.shape[-1])[0] + delta
    arrays = [_images(dy), _images(x), np.ones_like(invstd), mean, invstd]
    return _batch_norm_backward(torch, arrays, [False, True, True])


@expression("batch_norm_data_gradient")
def _batch_norm_data_gradient(
    torch: Any, dy: Any, x: Any, gamma: Any, delta: Any, invstd: Any, dgamma: Any, dbeta: Any
) -> Expression | None:
    """PyTorch computes dgamma and dbeta again, ours are given: compared where ours are right."""
    mean = x.reshape(-1, x.shape[-1])[0] + delta
    gamma = np.ones_like(invstd) if gamma is None else gamma
    arrays = [_images(dy), _images(x), gamma, mean, invstd]
    return _batch_norm_backward(torch, arrays, [True, False, False])


def _grouped(x: Any) -> Any:
    """(N, P, C) -> (N, C, P)."""
    return np.ascontiguousarray(x.transpose(0, 2, 1))


@expression("group_norm_forward")
def _group_norm(torch: Any, x: Any, weight: Any, bias: Any, groups: int, eps: float) -> Expression:
    N, P, C = x.shape

    def run(x: Any, weight: Any, bias: Any) -> Any:
        return torch.ops.aten.native_group_norm(x, weight, bias, N, C, P, groups, eps)[0]

    return Expression([_grouped(x), weight, bias], run, lambda r: [r[0].transpose(0, 2, 1), None])


def _group_norm_backward(
    torch: Any, arrays: list[Any], groups: int, mask: list[bool]
) -> Expression:
    N, C, P = arrays[0].shape

    def run(dy: Any, x: Any, mean: Any, invstd: Any, weight: Any) -> Any:
        made = torch.ops.aten.native_group_norm_backward(
            dy, x, mean, invstd, weight, N, C, P, groups, mask
        )
        return tuple(part for part, wanted in zip(made, mask, strict=True) if wanted)

    def results(r: list[Any]) -> list[Any]:
        return [part.transpose(0, 2, 1) if part.ndim == 3 else part for part in r]

    return Expression(arrays, run, results)


def _statistics(statistics: Any) -> tuple[Any, Any]:
    mean = statistics[..., 0] + statistics[..., 1]
    return np.ascontiguousarray(mean), np.ascontiguousarray(statistics[..., 2])


@expression("group_norm_data_gradient")
def _group_norm_data(torch: Any, dy: Any, x: Any, weight: Any, statistics: Any) -> Expression:
    arrays = [_grouped(dy), _grouped(x), *_statistics(statistics), weight]
    return _group_norm_backward(torch, arrays, statistics.shape[1], [True, False, False])


@expression("group_norm_sums")
def _group_norm_sums(torch: Any, dy: Any, x: Any, statistics: Any) -> Expression:
    weight = np.ones(x.shape[-1], x.dtype)
    arrays = [_grouped(dy), _grouped(x), *_statistics(statistics), weight]
    return _group_norm_backward(torch, arrays, statistics.shape[1], [False, True, True])


@expression("local_response_norm_forward")
def _local_response_norm(torch: Any, x: Any, window: Any) -> Expression | None:
    size = window.before + window.after + 1
    if window.region != "across" or window.before != size // 2 or x.ndim < 3:
        return None

    def run(x: Any) -> Any:
        return torch.nn.functional.local_response_norm(
            x, size, window.a * size, window.beta, window.k
        )

    return Expression([channels_first(x)], run, lambda r: [channels_last(r[0]), None])
