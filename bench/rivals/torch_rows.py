"""Normalisation, softmax, losses and optimizers in PyTorch."""

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


def _with_gradient(torch: Any, loss: Any, gradient: bool) -> Any:
    """loss(x, …) per row, and the gradient of its sum if wanted."""
    if not gradient:
        return loss

    def run(x: Any, *rest: Any) -> Any:
        x = x.detach().requires_grad_()
        y = loss(x, *rest)
        (dx,) = torch.autograd.grad(y.sum(), x)
        return y.detach(), dx

    return run


def _rows(r: list[Any], counts: Any) -> list[Any]:
    return [np.stack([r[0], counts.astype(r[0].dtype)], 1), *r[1:]]


@expression("cross_entropy_forward")
def _cross_entropy(
    torch: Any, x: Any, target: Any, weight: Any, smoothing: float, ignore: int, gradient: bool
) -> Expression | None:
    if weight is not None:
        return None

    def loss(x: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(
            x, target, ignore_index=ignore, reduction="none", label_smoothing=smoothing
        )

    inputs = [x, target.astype(np.int64)]
    counts = target != ignore
    return Expression(inputs, _with_gradient(torch, loss, gradient), lambda r: _rows(r, counts))


@expression("cross_entropy_probabilities")
def _soft_cross_entropy(
    torch: Any, x: Any, target: Any, weight: Any, smoothing: float, gradient: bool
) -> Expression | None:
    if weight is not None:
        return None

    def loss(x: Any, target: Any) -> Any:
        return torch.nn.functional.cross_entropy(
            x, target, reduction="none", label_smoothing=smoothing
        )

    counts = np.ones(len(x))
    run = _with_gradient(torch, loss, gradient)
    return Expression([x, target], run, lambda r: _rows(r, counts))


@expression("nll_forward")
def _nll(
    torch: Any, x: Any, target: Any, weight: Any, ignore: int, gradient: bool
) -> Expression | None:
    if weight is not None:
        return None

    def loss(x: Any, target: Any) -> Any:
        return torch.nn.functional.nll_loss(x, target, ignore_index=ignore, reduction="none")

    inputs = [x, target.astype(np.int64)]
    counts = target != ignore
    return Expression(inputs, _with_gradient(torch, loss, gradient), lambda r: _rows(r, counts))


@expression("multi_margin_forward")
def _multi_margin(
    torch: Any, x: Any, target: Any, weight: Any, p: int, margin: float, gradient: bool
) -> Expression | None:
    if weight is not None:
        return None

    def loss(x: Any, target: Any) -> Any:
        return torch.nn.functional.multi_margin_loss(
            x, target, p=p, margin=margin, reduction="none"
        )

    inputs, counts = [x, target.astype(np.int64)], np.ones(len(x))
    return Expression(inputs, _with_gradient(torch, loss, gradient), lambda r: _rows(r, counts))


def _regression_loss(torch: Any, name: str, parameters: tuple[float, ...]) -> Any:
    """loss(x, target) per element, None where PyTorch has no such loss of pairs."""
    F = torch.nn.functional
    if name == "huber_loss":
        delta, curvature = parameters
        return lambda x, t: F.huber_loss(x, t, reduction="none", delta=delta) * curvature
    return {
        "l1_loss": lambda x, t: F.l1_loss(x, t, reduction="none"),
        "mse_loss": lambda x, t: F.mse_loss(x, t, reduction="none"),
        "bce_with_logits_loss": lambda x, t: F.binary_cross_entropy_with_logits(
            x, t, reduction="none"
        ),
        "hinge_loss": lambda x, t: torch.clamp(1 - x * t, min=0),
        "kl_div": lambda x, t: F.kl_div(x, t, reduction="none"),
        "kl_div_log": lambda x, t: F.kl_div(x, t, reduction="none", log_target=True),
    }.get(name)


@expression("regression_loss_forward")
def _regression(
    torch: Any,
    x: Any,
    target: Any,
    name: str,
    parameters: Any,
    factor: float,
    add: bool,
    gradient: bool,
) -> Expression | None:
    each = _regression_loss(torch, name, parameters)
    if each is None:
        return None

    def loss(x: Any, target: Any) -> Any:
        y = each(x, target)
        return (y.sum() if add else y) * factor

    return Expression([x, target], _with_gradient(torch, loss, gradient))


@expression("regression_loss_backward")
def _regression_backward(
    torch: Any, dy: Any, x: Any, target: Any, name: str, parameters: Any
) -> Expression | None:
    """PyTorch walks back through the forward pass, which is timed with it."""
    each = _regression_loss(torch, name, parameters)
    if each is None:
        return None

    def run(dy: Any, x: Any, target: Any) -> Any:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(each(x, target), x, dy)[0]

    return Expression([dy, x, target], run)


@expression("sgd_step")
def _sgd(torch: Any, p: Any, v: Any, g: Any, step: Any) -> Expression:
    def run(p: Any, v: Any, g: Any) -> None:
        torch._fused_sgd_(
            [p],
            [g],
            [] if v is None else [v],
            weight_decay=step.weight_decay,
            momentum=step.momentum,
            lr=step.lr,
            dampening=0.0,
            nesterov=step.nesterov,
            maximize=False,
            is_first_step=False,
        )

    return Expression([p, v, g], run, updated=(0, 1) if v is not None else (0,))


@expression("adam_step")
def _adam(torch: Any, p: Any, m: Any, v: Any, largest: Any, g: Any, step: Any) -> Expression:
    fused = torch._fused_adamw_ if step.decoupled else torch._fused_adam_
    count = np.array(float(step.step), np.float32)

    def run(p: Any, m: Any, v: Any, largest: Any, g: Any, count: Any) -> None:
        fused(
            [p],
            [g],
            [m],
            [v],
            [] if largest is None else [largest],
            [count],
            lr=step.lr,
            beta1=step.beta1,
            beta2=step.beta2,
            weight_decay=step.weight_decay,
            eps=step.eps,
            amsgrad=largest is not None,
            maximize=False,
        )

    updated = (0, 1, 2) if largest is None else (0, 1, 2, 3)
    return Expression([p, m, v, largest, g, count], run, updated=updated)


@expression("adagrad_step")
def _adagrad(
    torch: Any, p: Any, s: Any, g: Any, lr: float, eps: float, weight_decay: float
) -> Expression:
    def run(p: Any, s: Any, g: Any) -> None:
        if weight_decay:
            g = g + weight_decay * p
        s.addcmul_(g, g)
        p.addcdiv_(g, s.sqrt().add_(eps), value=-lr)

    return Expression([p, s, g], run, updated=(0, 1))


@expression("rmsprop_step")
def _rmsprop(
    torch: Any,
    p: Any,
    s: Any,
    m: Any,
    v: Any,
    g: Any,
    lr: float,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> Expression | None:
    if m is not None:
        return None

    def run(p: Any, s: Any, v: Any, g: Any) -> None:
        if weight_decay:
            g = g + weight_decay * p
        s.mul_(alpha).addcmul_(g, g, value=1 - alpha)
        root = s.sqrt().add_(eps)
        if v is None:
            p.addcdiv_(g, root, value=-lr)
        else:
            p.add_(v.mul_(momentum).addcdiv_(g, root), alpha=-lr)

    return Expression([p, s, v, g], run, updated=(0, 1) if v is None else (0, 1, 2))


@expression("ema_step")
def _ema(torch: Any, e: Any, p: Any, decay: float) -> Expression:
    def run(e: Any, p: Any) -> None:
        e.lerp_(p, 1 - decay)

    return Expression([e, p], run, updated=(0,))
