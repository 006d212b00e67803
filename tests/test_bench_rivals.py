"""Every rival computes what the definition does; what it computes is compared, not its time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bench.harness.verify import Reference
from bench.problems import Problem, all_problems
from bench.rivals import (
    Gap,
    Rival,
    cupy_rival,
    open_rivals,
    torch_blocks,
    torch_elements,
    torch_images,
    torch_rows,
    torch_training,
)
from bench.rivals.expression import EXPRESSIONS
from gpucnn.primitive import PRIMITIVES
from tests.support import needs_torch, torch


@pytest.fixture(scope="module")
def library() -> Iterator[Any]:
    from bench.rivals.torch_rival import Torch

    threads = torch.get_num_threads()
    yield Torch("cpu", None, 0.0)
    torch.set_num_threads(threads)


def smallest(primitive: str) -> Problem:
    found = [p for p in all_problems() if p.primitive == primitive and p.group == "typical"]
    return min(found, key=lambda p: p.bytes)


@needs_torch
@pytest.mark.parametrize("primitive", sorted(EXPRESSIONS))
def test_pytorch_computes_the_same(primitive: str, library: Any) -> None:
    problem = smallest(primitive)
    found = library.rivals(primitive, problem.make(0), 1)
    reference = Reference(problem)
    for rival in found:
        assert isinstance(rival, Rival)
        assert reference.compare(rival.results(), "torch").trouble == "", rival.contender.name
    names = [rival.contender.name for rival in found]
    assert names in (["torch"], ["torch", "torch_channels_last"])


@needs_torch
def test_edges_that_pytorch_lacks_are_gaps(library: Any) -> None:
    """Padding on one side, zeros that compete: nothing of PyTorch's makes these outputs."""
    for primitive, geometry in (("conv2d_forward", 3), ("max_pool2d_forward", 1)):
        gaps = 0
        for problem in all_problems():
            if problem.primitive == primitive and problem.group == "edge":
                made = EXPRESSIONS[primitive](torch, *problem.make(0))
                gaps += made is None
                if made is not None and primitive == "conv2d_forward":
                    s = problem.make(0)[geometry]
                    assert made.inputs[0].shape[1] == s.C
        assert gaps > 0


def test_expressions_belong_to_primitives() -> None:
    """Importing a module of expressions registers them."""
    assert set(EXPRESSIONS) <= set(PRIMITIVES)
    for module, primitive in (
        (torch_blocks, "batch_norm_block_forward"),
        (torch_images, "conv2d_forward"),
        (torch_elements, "relu_forward"),
        (torch_rows, "softmax_forward"),
        (torch_training, "adam_step"),
    ):
        assert EXPRESSIONS[primitive].__module__ == module.__name__
    assert len(EXPRESSIONS) > 60


@needs_torch
def test_what_pytorch_lacks_is_a_gap(library: Any) -> None:
    assert library.rivals("scale_rows", (), 1) == [Gap("torch", "PyTorch has no such function")]


@pytest.mark.parametrize(
    ("primitive", "run"),
    [
        ("conv2d_forward", cupy_rival.forward),
        ("conv2d_data_gradient", cupy_rival.data_gradient),
        ("conv2d_weight_gradient", cupy_rival.weight_gradient),
    ],
)
def test_im2col_and_matmul(primitive: str, run: Any) -> None:
    """What CuPy computes as a rival, computed by NumPy."""
    checked = 0
    for problem in all_problems():
        if problem.primitive != primitive or problem.family != "conv2d":
            continue
        if problem.group == "edge" or problem.case == "16to32-b16":
            arguments = problem.make(0)
            if arguments[-1].G == 1:
                got = run(np, *arguments)
                assert Reference(problem).compare([got], "torch").trouble == "", problem.case
                checked += 1
    assert checked > 8


def test_a_rival_without_a_gpu_is_a_gap() -> None:
    found, gaps = open_rivals(("cupy", "jax"), "cpu", None, 0.0)
    assert found == {}
    reasons = ["CuPy computes on a GPU only", "JAX is timed on a GPU only"]
    assert [gap.reason for gap in gaps] == reasons
