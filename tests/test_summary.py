"""Layer summaries: counts by hand, and receptive fields against the gradients they predict."""

from __future__ import annotations

import numpy as np
import pytest

import gpucnn
from gpucnn import nn
from gpucnn.summary import summarize


def test_counts_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, (3, 5), stride=(2, 1), padding=(1, 2), groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * 5 * 6, 7, bias=False),
    )
    rows = summarize(model, (16, 11, 2))
    assert [row.name for row in rows] == ["0", "1", "2", "3", "4", "5"]
    shapes = [(8, 11, 6), (8, 11, 6), (8, 11, 6), (4, 5, 6), (120,), (7,)]
    assert [row.output_shape for row in rows] == shapes
    assert [row.parameters for row in rows] == [6 * 3 * 5 * 1 + 6, 12, 0, 0, 0, 840]
    assert [row.multiply_adds for row in rows] == [8 * 11 * 6 * 3 * 5 * 1, 0, 0, 0, 0, 840]
    assert rows[0].layer.startswith("Conv2d(2, 6, ")
    fields = [row.receptive_field for row in rows]
    assert fields == [(3, 5), (3, 5), (3, 5), (5, 6), (5, 6), (16, 11)]


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(1, 1, 3)],
        [nn.Conv2d(1, 1, 5, stride=2, padding=2), nn.Conv2d(1, 1, 3, padding=1)],
        [nn.Conv2d(1, 1, 3, padding="same"), nn.Conv2d(1, 1, (1, 4), stride=3, padding="same")],
        [nn.Conv2d(1, 1, 2, padding=((1, 0), (0, 1))), nn.Conv2d(1, 1, 3, stride=2)],
        [nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 13, padding=6)],
        [nn.Conv2d(1, 1, 12, stride=14, padding=6)],
        [nn.Conv2d(1, 1, 3, stride=2), nn.Flatten(), nn.Linear(48, 3)],
    ],
)
def test_receptive_field_is_the_extent_of_the_gradient(layers: list[nn.Module]) -> None:
    """With positive weights no gradient cancels; the widest of all outputs must match."""
    model = nn.Sequential(*layers)
    for parameter in model.parameters():
        parameter.data[...] = 1
    shape = (14, 17, 1)
    model.eval()
    size = model(gpucnn.Tensor(np.zeros((1, *shape), np.float32))).size
    extents = []
    for output in range(size):
        x = gpucnn.Tensor(np.zeros((1, *shape), np.float32), requires_grad=True)
        y = model(x)
        one = np.zeros(size, np.float32)
        one[output] = 1
        y.backward(one.reshape(y.shape))
        assert x.grad is not None
        seen = x.grad.numpy()[0, ..., 0] != 0
        extents.append([np.ptp(np.flatnonzero(seen.any(axis=axis))) + 1 for axis in (1, 0)])
    expected = tuple(np.max(extents, axis=0))
    assert summarize(model, shape)[-1].receptive_field == expected


def test_dilation_and_pooling_reach() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, dilation=4), nn.MaxPool2d(3, stride=2, padding=1))
    fields = [row.receptive_field for row in summarize(model, (40, 40, 1))]
    assert fields == [(9, 9), (11, 11)]


def test_reach_of_layers_that_normalise_and_drop() -> None:
    layers = [nn.LocalResponseNorm(5), nn.Dropout(), nn.Dropout2d(), nn.Conv2d(1, 1, (3, 1)),
              nn.LocalResponseNorm(4, region="within")]  # fmt: skip
    fields = [row.receptive_field for row in summarize(nn.Sequential(*layers), (9, 9, 1))]
    assert fields == [(1, 1), (1, 1), (1, 1), (3, 1), (6, 4)]


class Shared(nn.Module):
    """One layer called twice, and a sum: no chain of layers."""

    def __init__(self) -> None:
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(36, 2)

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        y = self.conv(self.conv(x)) + x
        return self.head(y.reshape(1, -1))


class Rolled(nn.Module):
    """A layer that no rule knows."""

    def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
        return gpucnn.Tensor(np.roll(x.numpy(), 1, axis=1))


def test_unknown_reach_is_none() -> None:
    rows = summarize(nn.Sequential(nn.Conv2d(1, 1, 3), Rolled(), nn.ReLU()), (6, 6, 1))
    assert [row.receptive_field for row in rows] == [(3, 3), None, None]


def test_transposed_convolution() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2))
    (row,) = summarize(model, (5, 4, 4))
    assert row.output_shape == (11, 9, 6)
    assert row.multiply_adds == 5 * 4 * 4 * 3 * 3 * 3
    assert row.receptive_field == (2, 2)


def test_shared_parameters_count_once_and_branches_join() -> None:
    model = Shared()
    rows = summarize(model, (6, 6, 1))
    assert [row.name for row in rows] == ["conv", "conv", "head"]
    assert [row.parameters for row in rows] == [10, 0, 74]
    assert [row.receptive_field for row in rows] == [(3, 3), (5, 5), (6, 6)]
    assert "forward" not in vars(model.conv)


def test_a_layer_in_two_places_is_counted_once() -> None:
    """By identity: it is called twice, and has its parameters once."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    rows = summarize(nn.Sequential(conv, nn.ReLU(), nn.Sequential(conv)), (6, 5, 1))
    assert [row.name for row in rows] == ["0", "1", "0"]
    assert [row.parameters for row in rows] == [10, 0, 0]
    assert [row.multiply_adds for row in rows] == [270, 0, 270]


def test_every_parameter_is_counted_and_no_buffer() -> None:
    """Those of a module that holds others, of a layer that is not called, of a shared weight."""

    class Model(nn.Module):
        def __init__(self) -> None:
            self.conv = nn.Conv2d(1, 2, 1)
            self.norm = nn.BatchNorm2d(2)
            self.scale = nn.Parameter(np.ones(2, np.float32))
            self.spare = nn.Linear(3, 4)
            self.again = self.scale

        def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
            return self.norm(self.conv(x)) * self.scale

    model = Model()
    rows = summarize(model, (4, 4, 1))
    assert [(row.name, row.parameters) for row in rows] == [
        ("conv", 4), ("norm", 4), ("", 2), ("spare", 16),
    ]  # fmt: skip
    assert rows[2].layer == "Model"
    assert sum(row.parameters for row in rows) == sum(p.size for p in model.parameters())


def test_the_mode_is_restored_even_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    before = model.state_dict()
    summarize(model, (8, 8, 1))
    with pytest.raises(ValueError, match="channel"):
        summarize(model, (8, 8, 2))
    assert all(module.training for _, module in model.named_modules())
    assert all("forward" not in vars(module) for _, module in model.named_modules())
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
