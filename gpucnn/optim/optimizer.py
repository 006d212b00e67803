"""Optimizers that keep all parameters in one flat buffer and update it with one kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array, module_of, to_host
from gpucnn.ops.optimizer import AdamStep, SGDStep, adam_step, sgd_step
from gpucnn.tensor import Tensor, common_device

_ALIGNMENT = 64  # elements between the starts of two parameters: whole 256-byte lines in float32


def check_number(name: str, value: float, low: float, high: float = math.inf) -> float:
    """``value`` as a float with low <= value < high; ValueError naming the argument otherwise."""
    if not (isinstance(value, int | float | np.number) and low <= value < high):
        top = "" if high == math.inf else f" and < {high:g}"
        raise ValueError(f"{name} must be a finite number >= {low:g}{top}, got {value!r}")
    return float(value)


class Optimizer:
    """Base of the optimizers: the flat buffers, and which stretches of them a step touches.

    params: the tensors to update, all on one device. Each one's ``data`` becomes a view of the flat
    parameter buffer, and its gradients are collected in a flat gradient buffer; make the optimizer
    after moving the model to its device. A step leaves alone a parameter whose ``grad`` is None.
    """

    _state_names: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        self.lr = lr
        self.steps = 0
        self.params = list(params)
        if not self.params:
            raise ValueError("params must hold at least one tensor, got none")
        for i, t in enumerate(self.params):
            if not isinstance(t, Tensor):
                raise TypeError(f"params[{i}] must be a Tensor, got {type(t).__name__}")
            if t._creator is not None or not t.requires_grad:
                raise ValueError(f"params[{i}] must be a leaf tensor with requires_grad=True")
        if len({id(t) for t in self.params}) != len(self.params):
            raise ValueError("params must not hold a tensor twice")
        if len({t.dtype for t in self.params}) > 1:
            raise TypeError("params must share one dtype")
        self.device = common_device(self.params)
        self._offsets = [0]
        for t in self.params:
            self._offsets.append(self._offsets[-1] + -(-t.size // _ALIGNMENT) * _ALIGNMENT)
        self._flat = self._zeros()
        self._gradients = self._zeros()
        self._state = {name: self._zeros() for name in self._state_names}
        self._views = [self._view(self._flat, i) for i in range(len(self.params))]
        for i, t in enumerate(self.params):
            self._views[i][...] = t.data
            t.data = self._views[i]
            t._gradient_home = self._view(self._gradients, i)
            if t.grad is not None:
                t._gradient_home[...] = t.grad.data
                t.grad.data = t._gradient_home

    @property
    def lr(self) -> float:
        """The learning rate of the next step, a finite number >= 0."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = check_number("lr", value, 0.0)

    def _zeros(self) -> Array:
        first = self.params[0]
        return module_of(first.data).zeros(self._offsets[-1], first.dtype)

    def _view(self, buffer: Array, index: int) -> Array:
        t, start = self.params[index], self._offsets[index]
        return buffer[start : start + t.size].reshape(t.shape)

    def zero_grad(self) -> None:
        """Forget all gradients: the next backward pass starts from nothing."""
        for t in self.params:
            t.grad = None

    def _runs(self) -> Iterator[slice]:
        """The longest stretches of the flat buffers whose parameters all have a gradient."""
        start: int | None = None
        for i, t in enumerate(self.params):
            if t.data is not self._views[i]:
                raise RuntimeError(
                    f"params[{i}] has been moved or given to another optimizer since this "
                    "one was made; make the optimizer after model.to(device)"
                )
            if t.grad is not None and start is None:
                start = self._offsets[i]
            if t.grad is None and start is not None:
                yield slice(start, self._offsets[i])
                start = None
        if start is not None:
            yield slice(start, self._offsets[-1])

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        self.steps += 1
        for run in self._runs():
            self._update(run)

    def _update(self, run: slice) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """``step`` (int64, 0-d) and each state buffer cut per parameter, ``<name>.<index>``."""
        state: dict[str, NDArray[Any]] = {"step": np.asarray(self.steps, np.int64)}
        for name, buffer in self._state.items():
            for i in range(len(self.params)):
                state[f"{name}.{i}"] = np.array(to_host(self._view(buffer, i)))
        return state

    def load_state_dict(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore what :meth:`state_dict` gave; ValueError naming a missing or unfit entry."""
        expected = self.state_dict()
        if set(state) != set(expected):
            odd = sorted(set(state) ^ set(expected))
            raise ValueError(f"optimizer state does not fit, entries differ: {', '.join(odd[:5])}")
        for name, value in state.items():
            if np.shape(value) != expected[name].shape:
                raise ValueError(
                    f"optimizer state {name!r} must have shape {expected[name].shape}, "
                    f"got {np.shape(value)}"
                )
        self.steps = int(state["step"])
        for name, buffer in self._state.items():
            xp = module_of(buffer)
            for i in range(len(self.params)):
                self._view(buffer, i)[...] = xp.asarray(state[f"{name}.{i}"])


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, Nesterov momentum and weight decay.

    ``g += weight_decay·p;  v = momentum·v + g;  p −= lr·v``, or with Nesterov momentum
    ``p −= lr·(g + momentum·v)``.

    lr, weight_decay: >= 0. momentum: in [0, 1). nesterov needs momentum > 0.
    Source: torch.optim.SGD with dampening 0; Sutskever et al., ICML 2013.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum = check_number("momentum", momentum, 0.0, 1.0)
        self.weight_decay = check_number("weight_decay", weight_decay, 0.0)
        self.nesterov = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=True needs momentum > 0")
        self._state_names = ("momentum_buffer",) if self.momentum else ()
        super().__init__(params, lr)

    def _update(self, run: slice) -> None:
        velocity = self._state["momentum_buffer"][run] if self.momentum else None
        step = SGDStep(self.lr, self.momentum, self.weight_decay, self.nesterov)
        sgd_step.on(self.device)(self._flat[run], velocity, self._gradients[run], step)


class Adam(Optimizer):
    """Adam; ``weight_decay`` is L2 regularisation, added to the gradient.

    ``m += (1−β₁)(g−m);  v = β₂v + (1−β₂)g²;  p −= lr · m/(1−β₁ᵗ) / (√(v/(1−β₂ᵗ)) + eps)``.

    lr, eps, weight_decay: >= 0. betas: both in [0, 1).
    Source: torch.optim.Adam; Kingma and Ba, arXiv:1412.6980.
    """

    _decoupled = False
    _state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
        self.betas = (
            check_number("betas[0]", betas[0], 0, 1),
            check_number("betas[1]", betas[1], 0, 1),
        )
        self.eps = check_number("eps", eps, 0.0)
        self.weight_decay = check_number("weight_decay", weight_decay, 0.0)
        super().__init__(params, lr)

    def _update(self, run: slice) -> None:
        step = AdamStep(
            self.lr, *self.betas, self.eps, self.weight_decay, self._decoupled, self.steps
        )
        adam_step.on(self.device)(
            self._flat[run],
            self._state["exp_avg"][run],
            self._state["exp_avg_sq"][run],
            self._gradients[run],
            step,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 − lr·weight_decay`` before each step.

    Source: torch.optim.AdamW; Loshchilov and Hutter, arXiv:1711.05101.
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
