"""The problems that bench, x-ray, parity and check run: arguments, bytes, FLOPs, terms."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import gpucnn.functional  # noqa: F401  registers every primitive
from bench.problems import GROUPS, Problem, all_problems, select
from gpucnn.primitive import PRIMITIVES

EDGE = select(all_problems(), groups=["edge"])

# Of bits, not of numbers that a definition in float64 could check: tests/test_bfloat16.py.
CONVERSIONS = {"widen", "narrow"}

# What a call reads of an input that it does not read whole, in elements.
READ_IN_PART: dict[str, Callable[..., dict[int, int]]] = {
    "cut_columns": lambda y, start, width: {0: len(y) * width},
    "gather_batch": lambda images, labels, order, *rest: {
        i: rest[-1].N * math.prod(a.shape[1:])
        for i, a in enumerate((images, labels, order[0], *rest[:-1]))
        if i in (0, 1, 2, 6) and a is not None
    },
    "nll_forward": lambda x, *_: {0: len(x)},
}
# Numbers are moved, selected or compared with an index, not computed.
NO_ARITHMETIC = {
    "cut_columns",
    "join_columns",
    "transpose_forward",
    "max_unpool2d_forward",
    "max_unpool2d_backward",
    "spread",
}
# Some numbers of each channel at most.
SMALL = {"mean_of_rows", "batch_norm_join_moments"}
# Sums of products of the inputs: with ones in every array a result counts its terms.
COUNTING = [
    "axis_sum",
    "batch_norm_sums",
    "column_sum",
    "conv2d_data_gradient",
    "conv2d_forward",
    "conv2d_weight_gradient",
    "conv_transpose2d_forward",
    "linear_data_gradient",
    "linear_forward",
    "linear_weight_gradient",
    "locally_connected2d_data_gradient",
    "locally_connected2d_forward",
    "locally_connected2d_weight_gradient",
    "max_pool2d_backward",
    "max_unpool2d_forward",
    "sum_slices",
]


def arrays(values: Any) -> Iterator[np.ndarray]:
    """Every array in arguments or results, those of lists too."""
    if isinstance(values, np.ndarray):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from arrays(value)


def moved(problem: Problem) -> int:
    """The bytes of the distinct arrays that the definition takes and returns."""
    arguments = problem.make(0)
    in_part = READ_IN_PART.get(problem.primitive)
    part = in_part(*arguments) if in_part else {}
    read = sum(
        part[i] * argument.itemsize if i in part else sum(a.nbytes for a in arrays(argument))
        for i, argument in enumerate(arguments)
    )
    written = sum(a.nbytes for i in problem.updated for a in arrays(arguments[i]))
    returned = arrays(PRIMITIVES[problem.primitive].definition(*arguments))
    return int(read + written + sum(a.nbytes for a in returned))


def test_every_primitive_has_problems_of_each_group() -> None:
    have = {(p.primitive, p.group) for p in all_problems()}
    wanted = PRIMITIVES.keys() - CONVERSIONS
    missing = [pair for name in wanted for g in GROUPS if (pair := (name, g)) not in have]
    assert not missing


def test_names_tell_problems_apart() -> None:
    names = Counter(str(p) for p in all_problems())
    assert not [name for name, count in names.items() if count > 1]
    assert not [name for name in names if " " in name]


def test_families_are_those_of_the_primitives_or_their_other_dimensions() -> None:
    timed = [p for p in PRIMITIVES.values() if p.name not in CONVERSIONS]
    families = {p.family for p in timed} | {"conv1d", "conv3d"}
    assert {p.family for p in all_problems()} == families


def test_directions() -> None:
    found = {p.primitive: p.direction for p in all_problems()}
    assert found["conv2d_forward"] == found["max_pool3d_join"] == "forward"
    assert found["conv2d_weight_gradient"] == found["batch_norm_sums"] == "backward"
    assert found["adam_step"] == found["clip_norm"] == found["ema_step"] == "step"
    assert {d for name, d in found.items() if name.endswith("_forward")} == {"forward"}


@pytest.mark.parametrize("primitive", sorted({p.primitive for p in EDGE}))
def test_arguments_fit_and_bytes_are_those_of_the_arrays(primitive: str) -> None:
    parameters = inspect.signature(PRIMITIVES[primitive].definition)
    for problem in (p for p in EDGE if p.primitive == primitive):
        arguments = problem.make(0)
        parameters.bind(*arguments)
        assert {a.dtype.str[1:] for a in arrays(arguments)} <= {"f4", "i4", "u1", "u8"}, problem
        assert problem.bytes == moved(problem), problem
        assert problem.flops > 0 or primitive in NO_ARITHMETIC or "kernel=1" in problem.case, (
            problem
        )
        assert problem.terms >= 1, problem


@pytest.mark.parametrize("primitive", sorted({p.primitive for p in EDGE}))
def test_results_are_finite_and_repeat_by_seed(primitive: str) -> None:
    problem = next(p for p in EDGE if p.primitive == primitive)

    def results(seed: int) -> list[np.ndarray]:
        arguments = problem.make(seed)
        returned = PRIMITIVES[primitive].definition(*arguments)
        return [*arrays(returned), *(a for i in problem.updated for a in arrays(arguments[i]))]

    first, again = results(0), results(0)
    assert first
    assert all(np.isfinite(a).all() for a in first)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("primitive", COUNTING)
def test_terms_are_the_longest_sum(primitive: str) -> None:
    for problem in (p for p in EDGE if p.primitive == primitive):
        arguments = list(problem.make(0))
        for a in arrays(arguments):
            if a.dtype.kind == "f":
                a[...] = 1
        result = PRIMITIVES[primitive].definition(*arguments)
        if primitive == "axis_sum":
            result /= arguments[1]  # the factor
        if primitive == "batch_norm_sums":
            result = result[1]
        most = max(float(a.max()) for a in arrays(result))
        assert most <= problem.terms * (1 + 1e-5), problem
        if "padding" not in problem.case:  # which cuts windows off
            assert most >= problem.terms * (1 - 1e-5), problem


def test_flops_of_textbook_layers() -> None:
    found = {str(p): p.flops for p in all_problems()}
    assert found["conv2d_forward[H-resnet9-64to128]"] == 77_309_411_328  # 77.3 GFLOP
    assert found["linear_forward[square-1024]"] == 2 * 1024**3
    assert found["relu_forward[resnet9-64]"] == 512 * 32 * 32 * 64
    assert found["max_pool2d_forward[resnet9-64]"] == 512 * 16 * 16 * 64 * 3


def test_typical_problems_are_large_enough_to_time_and_small_enough_to_emulate() -> None:
    for problem in select(all_problems(), groups=["typical"]):
        tiny = problem.primitive in SMALL
        assert tiny or 2e5 <= problem.bytes <= 2e7 or problem.flops >= 2e7, problem
        assert problem.bytes <= 3e7, problem
        assert problem.flops <= 5e8, problem


def test_all_problems_allocate_nothing() -> None:
    assert sum(p.bytes for p in all_problems()) > 2**35  # had they been made, memory were full
