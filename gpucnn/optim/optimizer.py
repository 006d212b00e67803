"""Optimizers that keep all parameters in one flat buffer and update it with one kernel."""

from __future__ import annotations

import math
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn.device import Array, module_of, to_host
from gpucnn.flat_gradients import FlatGradients, GradientHome
from gpucnn.ops.clip import clip_norm, launch_gradient_norm
from gpucnn.ops.optimizer_parts import Parts, Stretch
from gpucnn.recording import per_step, taking_gradients, watch, watch_attribute
from gpucnn.tensor import Tensor, common_device
from gpucnn.weight_copies import WeightCopies

_ALIGNMENT = 64  # elements between the starts of two parameters: whole 256-byte lines in float32
_MOST_PARTS = 64  # of the kinds of steps, by which parameters have gradients, that are remembered


def check_number(name: str, value: float, low: float, high: float = math.inf) -> float:
    """``value`` as a float with low <= value < high; ValueError naming the argument otherwise."""
    real = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not (real and low <= value < high and value <= sys.float_info.max):
        top = "" if high == math.inf else f" and < {high:g}"
        raise ValueError(f"{name} must be a finite number >= {low:g}{top}, got {value!r}")
    return float(value)


def check_betas(betas: Any) -> tuple[float, float]:
    """``betas`` as two floats in [0, 1); ValueError otherwise."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be a pair of numbers, got {betas!r}")
    return check_number("betas[0]", betas[0], 0, 1), check_number("betas[1]", betas[1], 0, 1)


def check_optimizer(value: Any) -> None:
    """Raise TypeError unless it is an :class:`Optimizer`."""
    if not isinstance(value, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer, got {type(value).__name__}")


def step_numbers(device: str, values: Any) -> NDArray[Any]:
    """The numbers of a step as an array that a device computes with: float64 on cpu, else float32.

    Raises ValueError for a finite one beyond float32.
    """
    wide = np.asarray(values, np.float64)
    if device == "cpu":
        return wide
    with np.errstate(over="raise"):
        try:
            return wide.astype(np.float32)
        except FloatingPointError:
            raise ValueError(
                f"the numbers of a step must fit float32 on {device!r}, got {values}"
            ) from None


class Optimizer:
    """Base of the optimizers: the flat buffers, and which stretches of them a step touches.

    params: the tensors to update, all on one device, or a list of groups ``{"params": tensors,
    "lr": …, "weight_decay": …}`` whose options replace the optimizer's own for their tensors. Each
    tensor's ``data`` becomes a view of the flat parameter buffer, and its gradients are collected
    in a flat gradient buffer; make the optimizer after moving the model to its device. A step
    leaves alone a parameter whose ``grad`` is None.

    ``param_groups`` is the list of groups with all their options, which may be changed between
    steps; ``lr`` is the learning rate of all of them.
    """

    _state_names: tuple[str, ...] = ()

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], **options: Any) -> None:
        try:
            given: list[Any] = list(params)
        except TypeError:
            raise TypeError(
                f"params must hold tensors or groups (dicts), got {type(params).__name__}"
            ) from None
        if not given:
            raise ValueError("params must hold at least one tensor, got none")
        grouped = [isinstance(item, Mapping) for item in given]
        if any(grouped) and not all(grouped):
            raise TypeError("params must hold tensors or groups (dicts), not both")
        self.steps = 0
        self.param_groups = [
            self._group(i, group, options)
            for i, group in enumerate(given if grouped[0] else [{"params": given}])
        ]
        self.params: list[Tensor] = [t for group in self.param_groups for t in group["params"]]
        if not self.params:
            raise ValueError("params must hold at least one tensor, got only empty groups")
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
        self._state = {name: self._zeros() for name in self._state_names}
        self._views = [self._view(self._flat, i) for i in range(len(self.params))]
        sizes = [t.size for t in self.params]
        self._gradients = FlatGradients(self._zeros(), self._offsets, sizes)
        self._copies = None if self.device == "cpu" else WeightCopies(self._views)
        self._parts: dict[Hashable, Parts] = {}
        for i, t in enumerate(self.params):
            self._views[i][...] = t.data
            gradient, t.data = t.grad, self._views[i]
            t._gradient_home = GradientHome(self._gradients, i, t.shape)
            t.grad = gradient

    def _group(
        self, index: int, group: Mapping[str, Any], options: Mapping[str, Any]
    ) -> dict[str, Any]:
        if "params" not in group:
            raise ValueError(f'params[{index}] must have an entry "params"')
        tensors = group["params"]
        made = {"params": [tensors] if isinstance(tensors, Tensor) else list(tensors), **options}
        for name in set(group) - set(made):
            raise ValueError(
                f"params[{index}]: {name!r} is no option of {type(self).__name__}, "
                f"only {', '.join(options)}"
            )
        made.update((name, value) for name, value in group.items() if name != "params")
        made["lr"] = check_number("lr", made["lr"], 0.0)
        self._check(made)
        return made

    def _check(self, group: dict[str, Any]) -> None:
        """Check and convert the options of one group other than lr."""
        raise NotImplementedError

    def _numbers(self, group: dict[str, Any]) -> Sequence[float]:
        """The numbers of a group in step ``self.steps``: device data, as many in every step."""
        raise NotImplementedError

    def _form(self, group: dict[str, Any]) -> Hashable:
        """What is no number among the options that the launches of a group depend on."""
        return None

    def _forms(self) -> Hashable:
        return tuple([self._form(group) for group in self.param_groups])

    def _next_step(self) -> NDArray[Any]:
        self.steps += 1
        return step_numbers(self.device, [self._numbers(group) for group in self.param_groups])

    def _any(self, option: str) -> bool:
        return any(group[option] for group in self.param_groups)

    @property
    def lr(self) -> float:
        """The learning rate of the next step, a finite number >= 0; that of the first group.

        Setting it sets the rate of every group.
        """
        return float(self.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        value = check_number("lr", value, 0.0)
        for group in self.param_groups:
            group["lr"] = value

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

    def _step_parts(self) -> Parts:
        """What a step goes through: the parameters that have a gradient, and what is to be done to
        each of them on the way.
        """
        self._check_home()
        taking_gradients(self.params)
        gradients, copies = self._gradients, self._copies
        given = tuple([t._grad is not None for t in self.params])
        waiting = tuple(gradients.pending.items()), tuple(sorted(gradients.scaled))
        layout = gradients.layout, None if copies is None else copies.layout
        key = given, waiting, layout
        parts = self._parts.get(key)
        if parts is None:
            if len(self._parts) >= _MOST_PARTS:
                del self._parts[next(iter(self._parts))]
            kept = (None, None) if copies is None else (copies.exchanged, copies.narrow)
            stretches = self._stretches(given)
            parts = self._parts[key] = Parts(stretches, self.device, gradients.slices, *kept)
        return parts

    def _check_home(self) -> None:
        for i, t in enumerate(self.params):
            if t.data is not self._views[i]:
                raise RuntimeError(
                    f"params[{i}] has been moved or given to another optimizer since this "
                    "one was made; make the optimizer after model.to(device)"
                )

    def _stretches(self, given: Sequence[bool]) -> list[Stretch]:
        """The longest stretches that are treated alike."""
        gradients = self._gradients
        kept = {} if self._copies is None else self._copies.kept
        found: list[Stretch] = []
        groups = (g for g, group in enumerate(self.param_groups) for _ in group["params"])
        for i, group in enumerate(groups):
            if not given[i]:
                continue
            start, end, count = self._offsets[i], self._offsets[i + 1], gradients.pending.get(i, 0)
            scaled = i in gradients.scaled
            if count or i in kept:
                first, _ = gradients.places[i] if count else (0, 0)
                slices = (first, count) if count else None
                stop = start + self.params[i].size
                found.append(Stretch(start, stop, group, slices, scaled, kept.get(i)))
                continue
            before = found[-1] if found else None
            if before is not None and before == Stretch(before.start, start, group, None, scaled):
                start = found.pop().start
            found.append(Stretch(start, end, group, None, scaled))
        return found

    def gradient_runs(self) -> list[Array]:
        """The flat gradients that the next step will use: views of the gradient buffer."""
        self._gradients.settle_all()
        return [self._gradients.buffer[s.start : s.stop] for s in self._step_parts().stretches]

    def step(self) -> None:
        """Update every parameter that has a gradient, in place."""
        gradients, copies = self._gradients, self._copies
        parts = self._step_parts()
        watch(self._forms)
        numbers = per_step(self._next_step, self.device)
        if parts.stretches:
            self._update(self._flat, gradients.buffer, self._state, numbers, parts, gradients.scale)
        gradients.consumed()
        moved = gradients.grow()
        watch_attribute(gradients, "layout")
        if copies is not None:
            moved = copies.grow() or moved
            watch_attribute(copies, "layout")
        if moved:
            self._parts.clear()

    @property
    def flat_size(self) -> int:
        """Elements of each flat buffer."""
        return self._offsets[-1]

    def flat_step(self) -> tuple[Array, dict[str, Array], Array]:
        """What a kernel takes that computes gradients and updates in one: counts a step.

        Returns the flat parameters, the flat state buffers by name, and the numbers of the step for
        the first group. What has written the parameters then calls :meth:`parameters_changed`.
        """
        self._check_home()
        watch(self._forms)
        return self._flat, self._state, per_step(self._next_step, self.device)[0]

    def _update(
        self,
        p: Array,
        g: Array,
        state: dict[str, Array],
        numbers: Array,
        parts: Parts,
        scale: Array | None,
    ) -> None:
        """One step through these parts of the flat buffers, numbers (groups, k)."""
        raise NotImplementedError

    def _clip_norm(self, max_norm: float) -> Array:
        """Scale all gradients to a common norm of at most ``max_norm`` -> the norm before, 0-d.

        On ``cuda`` and ``emulated`` the next step multiplies them by the coefficient on its way.
        """
        gradients = self._gradients
        gradients.settle_scale()
        parts = self._step_parts()
        if not parts.stretches:
            return module_of(self._flat).zeros((), self._flat.dtype)
        if self.device == "cpu":
            return cast("Array", clip_norm.on("cpu")(self.gradient_runs(), max_norm))
        norm, gradients.scale = launch_gradient_norm(gradients.buffer, parts, max_norm)
        gradients.pending.clear()
        gradients.scaled.update(i for i, t in enumerate(self.params) if t._grad is not None)
        return norm

    def parameters_changed(self) -> None:
        """Say that the arrays of parameters have been written by other than :meth:`step`.

        A step keeps copies of weights, on ``cuda`` and ``emulated``: for the backward pass, and in
        the precision "bf16" those that the forward pass takes as well. A write into
        ``parameter.data[...]``, such as clipping weights by hand, cannot be seen, and they no
        longer fit. Everything in this library that writes parameters says so itself.
        """
        if self._copies is not None:
            self._copies.refresh()

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


def weight_decay_groups(params: Iterable[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups in which only weights decay, not biases and the scales of norms.

    params: such as ``model.parameters()``. Tensors of two or more axes form a group with
    ``weight_decay``, vectors and numbers one with 0.
    """
    tensors = list(params)
    groups = [
        {"params": [t for t in tensors if t.ndim > 1], "weight_decay": weight_decay},
        {"params": [t for t in tensors if t.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
