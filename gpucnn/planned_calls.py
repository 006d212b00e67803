"""Functions that call a primitive's launcher, and go by its plans: :mod:`gpucnn.launch_plan`."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast

import numpy as np

from gpucnn import launch_plan
from gpucnn.launch_plan import ALIGNMENT, Plan, hopeless, plans, watch_call

_numbers = itertools.count()
_ARRAYS = ("Array", "Array | None")
_strange: set[type] = set()  # types of arguments with which there is no plan


def _is_plain(value: Any, alone: bool = True) -> bool:
    """Whether equal values are the same to a launcher: numbers, words, and frozen groups of them.

    alone: an argument by itself, of which a call sees the type, and whether a zero has a sign.
    """
    if type(value) is float:
        return value == value and (value != 0 or (alone and math.copysign(1.0, value) > 0))
    if isinstance(value, tuple):
        return all(_is_plain(part, False) for part in value)
    if not _can_be_plain(value):
        return False
    if dataclasses.is_dataclass(value):
        parts = (getattr(value, part.name) for part in dataclasses.fields(value))
        return all(_is_plain(part, False) for part in parts)
    return True


def _can_be_plain(value: Any) -> bool:
    """Whether values of this type can be."""
    if dataclasses.is_dataclass(value):
        return bool(vars(type(value))["__dataclass_params__"].frozen)
    return isinstance(value, tuple) or type(value) in (bool, int, float, str, type(None))


_CALL = """
def _call({declared}):
    if _plans.off or _by_hand:
        return _launcher()({parameters})
    try:
        if {strided}:
            return _launcher()({parameters})
        _problem = ({key})
        _plan = _known.get(_problem)
    except (AttributeError, TypeError):  # such as a list
        return _launcher()({parameters})
    if _plan is None:
        return _first(_problem, ({arrays}), ({options}))
    if not _plan.everywhere and not _fits(_plan, ({arrays}), ({options})):
        return _launcher()({parameters})
    return _plan.call({arrays})
"""


def planned(
    definition: Callable[..., Any],
    device: str,
    launcher: Callable[[], Callable[..., Any]],
    by_hand: Mapping[str, str],
) -> Callable[..., Any]:
    """A function that calls a primitive's launcher on a device, by plans where it can.

    It is written for the primitive's parameters, whose names begin with a letter: what it does
    beside the launches should take no time. launcher: returns the launcher. by_hand: the kernels
    that are chosen so.
    """
    from gpucnn.device import current_gpu
    from gpucnn.precision import chosen_precision

    signature = inspect.signature(definition).parameters
    kinds = {name: p.annotation for name, p in signature.items()}
    defaults = {n: p.default for n, p in signature.items() if p.default is not p.empty}
    arrays = list(itertools.takewhile(lambda name: kinds[name] in _ARRAYS, kinds))
    if not arrays:
        return lambda *arguments: launcher()(*arguments)
    options, on_gpu = [name for name in kinds if name not in arrays], device == "cuda"

    def first(problem: Hashable, values: tuple[Any, ...], rest: tuple[Any, ...]) -> Any:
        if problem in hopeless or not _strange.isdisjoint(map(type, rest)):
            return launcher()(*values, *rest)
        elsewhere = [a for a in values if a is not None and isinstance(a, np.ndarray) is on_gpu]
        if elsewhere or not all(map(_is_plain, rest)):
            _strange.update([type(v) for v in rest if not _can_be_plain(v)])
            return launcher()(*values, *rest)
        return watch_call(launcher(), problem, values, rest)

    def of_each(text: str) -> list[str]:
        """A text of each array, None for one that is not there."""
        absent = [f"None if {a} is None else " if kinds[a] != "Array" else "" for a in arrays]
        return [f"({before}{text.format(a)})" for a, before in zip(arrays, absent, strict=True)]

    key = [str(next(_numbers)), "_precision()", *of_each("({0}.shape, {0}.dtype)")]
    key += [*options, *(f"type({name})" for name in options)]
    if on_gpu:
        key += ["_gpu()", *of_each("{0}.device.id")]
    strided = [
        f"not {a}.flags.c_contiguous"
        if kinds[a] == "Array"
        else f"{a} is not None and not {a}.flags.c_contiguous"
        for a in arrays
    ]
    known: dict[str, Any] = {
        "_plans": launch_plan, "_known": plans, "_by_hand": by_hand,
        "_launcher": launcher, "_first": first, "_fits": _fits, "_precision": chosen_precision,
        "_gpu": current_gpu,
    }  # fmt: skip
    known |= {f"_of_{name}": value for name, value in defaults.items()}
    text = _CALL.format(
        declared=", ".join([f"{n}=_of_{n}" if n in defaults else n for n in kinds]),
        parameters=", ".join(kinds),
        strided=" or ".join(strided),
        key=", ".join(key),
        arrays="".join([f"{a}, " for a in arrays]),
        options="".join([f"{name}, " for name in options]),
    )
    exec(text, known)
    return cast("Callable[..., Any]", known["_call"])


def _fits(plan: Plan, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> bool:
    """Whether zeros have the sign, and arrays the addresses, that a plan was made for."""
    from gpucnn.device import address

    for i in plan.zeros:
        if math.copysign(1.0, options[i]) < 0:
            return False
    for i, residue in plan.residues:
        array = arrays[i]
        owner = isinstance(array, np.ndarray) and array.base is None  # as malloc returns memory
        if (0 if owner else address(array) % ALIGNMENT) != residue:
            return False
    return True
