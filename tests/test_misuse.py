"""Warnings of what runs, but is hardly meant."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import MisuseWarning, Tensor, kernel
from gpucnn import functional as F
from tests import fake_cupy
from tests.support import randn


@pytest.mark.usefixtures("unwarned")
@pytest.mark.parametrize(
    ("function", "match"),
    [(F.softmax, "applied twice it trains slowly"), (F.log_softmax, "or use nll_loss")],
)
@pytest.mark.parametrize("target", [[0, 2], np.full((2, 3), 1 / 3, np.float32)])
def test_a_softmax_before_the_loss_is_warned_of_once(
    function: Any, match: str, target: Any
) -> None:
    x = Tensor(randn(2, 3), requires_grad=True)
    F.cross_entropy(F.relu(x), target)
    F.nll_loss(F.log_softmax(x), [0, 2])
    with pytest.warns(MisuseWarning, match=match) as caught:
        F.cross_entropy(function(x), target)
    assert [w.filename for w in caught] == [__file__]
    F.cross_entropy(function(x), target)


def test_a_zero_that_wins_at_the_edge_is_warned_of_once(device: str, unwarned: None) -> None:
    """Only where the edge is "zero" and the values of a window are negative."""
    x = Tensor(np.full((1, 3, 3, 1), -1, np.float32), device=device)
    F.max_pool2d(x, 2, edge="ceil")
    F.max_pool2d(x, 3, 2, 1, edge="zero")  # complete windows: padding never competes
    F.max_pool2d(Tensor(np.zeros((1, 3, 3, 1), np.float32), device=device), 2, edge="zero")
    with pytest.warns(MisuseWarning, match='edge="zero" found windows') as caught:
        F.max_pool2d(x, 2, edge="zero")
    assert [w.filename for w in caught] == [__file__]
    F.max_pool2d(x, 2, edge="zero")


@pytest.mark.usefixtures("unwarned")
def test_only_the_first_calls_look_for_zeros_at_the_edge() -> None:
    positive, negative = (Tensor(np.full((1, 3, 3, 1), v, np.float32)) for v in (1, -1))
    for _ in range(4):
        F.max_pool2d(positive, 2, edge="zero")
    F.max_pool2d(negative, 2, edge="zero")


@pytest.mark.emulated
@pytest.mark.usefixtures("unwarned")
def test_zeros_at_the_edge_on_the_cuda_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back while a graph is captured."""
    cupy = fake_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(gpucnn.device, "_cuda_trouble", lambda: "")
    kernel._cuda_kernel.cache_clear()
    x = Tensor(np.full((1, 3, 3, 1), -1, np.float32), device="cuda")
    capturing = types.SimpleNamespace(is_capturing=lambda: True)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(cupy.cuda, "get_current_stream", lambda: capturing)
            F.max_pool2d(x, 2, edge="zero")
        with pytest.warns(MisuseWarning, match='edge="zero"'):
            F.max_pool2d(x, 2, edge="zero")
    finally:
        kernel._cuda_kernel.cache_clear()


@pytest.mark.parametrize("size", [(3, 2, 2), (2, 3, 2), (2, 2, 3)])
def test_a_zero_that_wins_at_the_edge_is_warned_of(
    size: tuple[int, ...], device: str, unwarned: None
) -> None:
    x = Tensor(np.full((1, *size, 1), -1, np.float32), device=device)
    F.max_pool3d(x, 2, edge="ceil")
    with pytest.warns(MisuseWarning, match='edge="zero" found windows'):
        F.max_pool3d(x, 2, edge="zero")
