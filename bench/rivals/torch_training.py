"""Losses and optimizers in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..problems.optimizers import ADAM, ADAM_L2
from .expression import Expression, expression


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


@expression("cross_entropy_reduced")
def _cross_entropy_reduced(
    torch: Any, x: Any, target: Any, weight: Any, smoothing: float, ignore: int, mean: bool,
    gradient: bool,
) -> Expression:  # fmt: skip
    def loss(x: Any, target: Any, weight: Any) -> Any:
        options: dict[str, Any] = {"ignore_index": ignore, "label_smoothing": smoothing}
        options["reduction"] = "mean" if mean else "sum"
        return torch.nn.functional.cross_entropy(x, target, weight, **options)

    inputs = [x, target.astype(np.int64), weight]
    return Expression(inputs, _with_gradient(torch, loss, gradient))


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


def _weighted_bce(torch: Any, x: Any, weight: Any, pos_weight: Any) -> Any:
    """loss(x, target, weight, pos_weight) per element; None for vectors that repeat otherwise."""
    if any(v is not None and v.size not in (1, x.shape[-1]) for v in (weight, pos_weight)):
        return None

    def loss(x: Any, target: Any, weight: Any, pos_weight: Any) -> Any:
        return torch.nn.functional.binary_cross_entropy_with_logits(
            x, target, weight, pos_weight=pos_weight, reduction="none"
        )

    return loss


@expression("weighted_bce_forward")
def _weighted_bce_forward(
    torch: Any,
    x: Any,
    target: Any,
    weight: Any,
    pos_weight: Any,
    factor: float,
    add: bool,
    gradient: bool,
) -> Expression | None:
    each = _weighted_bce(torch, x, weight, pos_weight)
    if each is None:
        return None

    def loss(*arrays: Any) -> Any:
        y = each(*arrays)
        return (y.sum() if add else y) * factor

    return Expression([x, target, weight, pos_weight], _with_gradient(torch, loss, gradient))


@expression("weighted_bce_backward")
def _weighted_bce_backward(
    torch: Any, dy: Any, x: Any, target: Any, weight: Any, pos_weight: Any
) -> Expression | None:
    """PyTorch walks back through the forward pass, which is timed with it."""
    each = _weighted_bce(torch, x, weight, pos_weight)
    if each is None:
        return None

    def run(dy: Any, x: Any, *rest: Any) -> Any:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(each(x, *rest), x, dy)[0]

    return Expression([dy, x, target, weight, pos_weight], run)


@expression("sgd_step")
def _sgd(torch: Any, p: Any, v: Any, g: Any, numbers: Any) -> Expression:
    lr, momentum, weight_decay, nesterov = numbers.tolist()

    def run(p: Any, v: Any, g: Any) -> None:
        torch._fused_sgd_(
            [p],
            [g],
            [] if v is None else [v],
            weight_decay=weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=bool(nesterov),
            maximize=False,
            is_first_step=False,
        )

    return Expression([p, v, g], run, updated=(0, 1) if v is not None else (0,))


@expression("adam_step")
def _adam(torch: Any, p: Any, m: Any, v: Any, largest: Any, g: Any, numbers: Any) -> Expression:
    step = next(
        s for s in (ADAM, ADAM_L2) if np.array_equal(np.array(s.adam(), np.float32), numbers)
    )
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
def _adagrad(torch: Any, p: Any, s: Any, g: Any, numbers: Any) -> Expression:
    lr, eps, weight_decay = numbers.tolist()

    def run(p: Any, s: Any, g: Any) -> None:
        if weight_decay:
            g = g + weight_decay * p
        s.addcmul_(g, g)
        p.addcdiv_(g, s.sqrt().add_(eps), value=-lr)

    return Expression([p, s, g], run, updated=(0, 1))


@expression("rmsprop_step")
def _rmsprop(torch: Any, p: Any, s: Any, m: Any, v: Any, g: Any, numbers: Any) -> Expression | None:
    if m is not None:
        return None
    lr, alpha, eps, momentum, weight_decay, _ = numbers.tolist()

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
def _ema(torch: Any, e: Any, p: Any, share: Any) -> Expression:
    weight = share.item()

    def run(e: Any, p: Any) -> None:
        e.lerp_(p, weight)

    return Expression([e, p], run, updated=(0,))
