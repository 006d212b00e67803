"""Receptive fields against the true support of the gradient, cell by cell."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from gpucnn import functional as F
from gpucnn import models, nn
from gpucnn.receptive_field import ReceptiveField
from tests.support import randn


def support(model: nn.Module, shape: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The box of cells with a gradient, per output cell; weights are positive: nothing cancels."""
    for parameter in model.parameters():
        parameter.data[...] = 1
    model.eval()
    out = model(gpucnn.Tensor(np.zeros((1, *shape), np.float32))).shape
    boxes = []
    for cell in np.ndindex(out[1:-1]):
        x = gpucnn.Tensor(np.zeros((1, *shape), np.float32), requires_grad=True)
        dy = np.zeros(out, np.float32)
        dy[(0, *cell)] = 1
        model(x).backward(dy)
        assert x.grad is not None
        seen = x.grad.numpy()[0].any(axis=-1)
        ends = []
        for axis in range(seen.ndim):
            at = np.flatnonzero(seen.any(axis=tuple(a for a in range(seen.ndim) if a != axis)))
            ends.append(slice(int(at[0]), int(at[-1]) + 1) if at.size else slice(0, 0))
        boxes.append(tuple(ends))
    return boxes


def check(model: nn.Module, shape: tuple[int, ...]) -> ReceptiveField:
    expected = support(model, shape)
    field = gpucnn.receptive_field(model, shape)
    cells = np.ndindex(tuple(len(axis.low) for axis in field.axes))
    for cell, box in zip(cells, expected, strict=True):
        boxes = field.cells(*cell)
        # One empty axis leaves an output that sees nothing.
        if any(s.start == s.stop for s in boxes):
            assert any(s.start == s.stop for s in box)
        else:
            assert boxes == box, cell
    sizes = [max(b[axis].stop - b[axis].start for b in expected) for axis in range(len(shape) - 1)]
    assert field.size == tuple(sizes)
    return field


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 1, 3, dilation=(2, 1)), nn.Conv2d(1, 1, 2, stride=2)],
        [nn.Conv2d(1, 1, 3, stride=2, padding=1), nn.ConvTranspose2d(1, 1, 4, 2, 1)],
        [nn.ConvTranspose2d(1, 1, 2, 3, output_padding=(1, 2)), nn.Conv2d(1, 1, 2)],
        [nn.ConvTranspose2d(1, 1, (3, 2), 2, (1, 0), 1, dilation=2), nn.Conv2d(1, 1, 3, 2)],
        [nn.AvgPool2d(2), nn.Conv2d(1, 1, 3, padding="same"), nn.AvgUnpool2d(2)],
        [nn.Conv2d(1, 1, 2), nn.AdaptiveAvgPool2d((4, 3)), nn.Conv2d(1, 1, 2)],
        [nn.AvgPool2d(3, stride=2, padding=1, edge="ceil"), nn.ConvTranspose2d(1, 1, 2)],
    ],
)
def test_is_the_support_of_the_gradient(layers: list[nn.Module]) -> None:
    check(nn.Sequential(*layers), (7, 9, 1))


@given(data=st.data())
def test_random_nets(data: st.DataObject) -> None:
    """Up to three convolutions and transposed ones, with every option."""
    layers: list[nn.Module] = []
    size = first = data.draw(st.integers(4, 7))
    for _ in range(3):
        k, s = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
        d, p = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
        reach = d * (k - 1) + 1
        if data.draw(st.booleans()) and size + 2 * p >= reach:
            layers.append(nn.Conv2d(1, 1, (k, 1), (s, 1), (p, 0), (d, 1)))
            size = (size + 2 * p - reach) // s + 1
        elif size <= 7 and (size - 1) * s - 2 * p + reach >= 1:
            extra = data.draw(st.integers(0, max(s, d) - 1))
            options = {"output_padding": (extra, 0), "dilation": (d, 1)}
            layers.append(nn.ConvTranspose2d(1, 1, (k, 1), (s, 1), (p, 0), **options))
            size = (size - 1) * s - 2 * p + reach + extra
    if layers:
        check(nn.Sequential(*layers), (first, 2, 1))


class Skip(nn.Module):
    """Branches of unequal reach, added."""

    def __init__(self) -> None:
        self.narrow, self.wide = nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 5, padding=2)

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.relu(self.narrow(x) + self.wide(x)) + x


class Scaled(nn.Module):
    """A parameter per channel, which sees nothing of the input however it is reshaped."""

    def __init__(self) -> None:
        self.conv, self.scale = nn.Conv2d(1, 3, 3), nn.Parameter(randn(1, 1, 1, 3))

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return self.conv(x) * (self.scale + 1.0)


def test_parameters_see_nothing() -> None:
    assert gpucnn.receptive_field(Scaled(), (6, 7, 1)).size == (3, 3)


def test_branches_join() -> None:
    field = gpucnn.receptive_field(Skip(), (9, 8, 1))
    assert field.size == (5, 5)
    assert field.cells(0, 4) == (slice(0, 3), slice(2, 7))
    assert (field.jump, field.offset) == ((1.0, 1.0), (0.0, 0.0))


@pytest.mark.parametrize(
    ("layers", "jump", "offset"),
    [
        ([nn.Conv2d(1, 1, 3)], 1.0, 1.0),
        ([nn.Conv2d(1, 1, 4, 2, 1), nn.Conv2d(1, 1, 3, 3, dilation=2)], 6.0, 4.5),
        ([nn.ConvTranspose2d(1, 1, 4, 2, 1)], 0.5, -0.25),
        ([nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 3, 2, 1)], 1.0, 0.0),
    ],
)
def test_jump_and_offset(layers: list[nn.Module], jump: float, offset: float) -> None:
    """By hand, and as the mean centre of what whole periods of inner outputs see."""
    field = gpucnn.receptive_field(nn.Sequential(*layers), (60, 60, 1))
    assert (field.jump, field.offset) == ((jump, jump), (offset, offset))
    axis = field.axes[0]
    inner = np.arange(len(axis.low) // 2 - 2, len(axis.low) // 2 + 2)
    centres = (axis.low[inner] + axis.high[inner]) / 2
    np.testing.assert_allclose(np.mean(centres - jump * inner), offset)


def test_sequences_and_volumes() -> None:
    check(nn.Sequential(nn.Conv1d(1, 1, 3, 2), nn.Conv1d(1, 1, 2, dilation=2)), (12, 1))
    check(nn.Sequential(nn.Conv3d(1, 1, (1, 2, 3), padding=(0, 1, 0))), (3, 4, 5, 1))


def test_pools_and_linear_layers() -> None:
    layers = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    field = gpucnn.receptive_field(nn.Sequential(*layers), (8, 8, 1))
    assert field.size == (8, 8)
    assert field.jump == (None, None)
    assert field.cells(0, 0) == (slice(0, 8), slice(0, 8))
    unpool = gpucnn.receptive_field(nn.Sequential(nn.AvgUnpool2d(3)), (4, 4, 1))
    assert unpool.cells(5, 6) == (slice(1, 2), slice(2, 3))


def test_global_and_adaptive_pools() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.GlobalMaxPool2d(), nn.Linear(1, 2))
    assert gpucnn.receptive_field(model, (9, 8, 1)).size == (9, 8)
    even = gpucnn.receptive_field(nn.AdaptiveMaxPool2d((2, 3)), (8, 8, 1))
    assert (even.jump, even.offset) == ((4.0, None), (1.5, None))
    assert even.cells(1, 1) == (slice(4, 8), slice(2, 6))


class Pooled(nn.Module):
    """Max pooling and unpooling as functions."""

    def __init__(self) -> None:
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        y, indices = F.max_pool2d(x, 2, return_indices=True)
        return F.max_unpool2d(self.conv(y), indices, 2)


def test_pools_that_are_no_layers() -> None:
    field = gpucnn.receptive_field(Pooled(), (8, 8, 1))
    assert (field.size, field.jump, field.offset) == ((6, 6), (1.0, 1.0), (0.0, 0.0))
    assert field.cells(4, 1) == (slice(2, 8), slice(0, 4))


def test_concatenated_channels() -> None:
    branches = nn.Concat(nn.Conv2d(1, 2, 1), nn.Conv2d(1, 1, 3, padding=1))
    field = gpucnn.receptive_field(nn.Sequential(branches, nn.Conv2d(3, 1, 2)), (6, 6, 1))
    assert field.size == (4, 4)


class Mystery(nn.Module):
    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return gpucnn.Tensor(x.numpy()[:, ::-1].copy())


def test_errors_and_modes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), Mystery(), nn.Dropout())
    model[0].eval()
    with pytest.raises(ValueError, match=r"model: the reach of 1 Mystery\(\) is not known"):
        gpucnn.receptive_field(model, (6, 6, 1))
    assert [m.training for m in model] == [False, True, True]
    with pytest.raises(ValueError, match="channel"):
        gpucnn.receptive_field(model, (6, 6, 2))
    field = gpucnn.receptive_field(nn.Sequential(nn.Conv2d(1, 1, 3)), (6, 6, 1))
    with pytest.raises(ValueError, match="output must be 2 positions"):
        field.cells(1)
    with pytest.raises(IndexError):
        field.cells(4, 0)


def test_docstring_example() -> None:
    module: Any = __import__("sys").modules["gpucnn.receptive_field"]
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("name", models.names())
def test_the_reach_of_every_model_is_known(name: str) -> None:
    shape = models.input_shape(name)
    field = gpucnn.receptive_field(models.create(name), shape)
    assert all(1 < size <= n for size, n in zip(field.size, shape, strict=False))
