"""Weights to PyTorch and back: equal outputs both ways, for every layer that PyTorch has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import gpucnn
from gpucnn import nn
from gpucnn.interop.torch import load_torch_state_dict, save_for_torch, state_dict_for_torch
from gpucnn.nn.module import inference
from tests.support import assert_close, needs_torch, randn, torch

# name -> (a model here, that of PyTorch, (H, W, C) of its images)
T = None if torch is None else torch.nn
PAIRS: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
    "conv1d": (
        lambda: nn.Conv1d(6, 4, 3, 2, 1, groups=2),
        lambda: T.Conv1d(6, 4, 3, 2, 1, groups=2),
        (9, 6),
    ),
    "conv2d": (
        lambda: nn.Conv2d(6, 4, (3, 2), (2, 1), (1, 0), 2, 2),
        lambda: T.Conv2d(6, 4, (3, 2), (2, 1), (1, 0), 2, 2),
        (9, 8, 6),
    ),
    "conv2d without bias": (
        lambda: nn.Conv2d(1, 4, 3, bias=False),
        lambda: T.Conv2d(1, 4, 3, bias=False),
        (5, 6, 1),
    ),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), lambda: T.Conv3d(2, 3, (1, 2, 3)), (3, 4, 5, 2)),
    "conv_transpose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, 2),
        lambda: T.ConvTranspose1d(4, 6, 3, 2),
        (5, 4),
    ),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2),
        lambda: T.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2),
        (5, 4, 4),
    ),
    "conv_transpose3d": (
        lambda: nn.ConvTranspose3d(2, 3, (1, 2, 3)),
        lambda: T.ConvTranspose3d(2, 3, (1, 2, 3)),
        (3, 4, 5, 2),
    ),
    "linear": (lambda: nn.Linear(7, 3), lambda: T.Linear(7, 3), (7,)),
    "flatten": (
        lambda: nn.Sequential(
            nn.ReLU(), nn.Flatten(), nn.Tanh(), nn.Dropout(0.5), nn.Linear(60, 3), nn.Linear(3, 2)
        ),
        lambda: T.Sequential(
            T.ReLU(), T.Flatten(), T.Tanh(), T.Dropout(0.5), T.Linear(60, 3), T.Linear(3, 2)
        ),
        (4, 5, 3),
    ),
    "flatten a volume": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(120, 2)),
        lambda: T.Sequential(T.Flatten(), T.Linear(120, 2)),
        (4, 5, 2, 3),
    ),
    "batch_norm1d": (lambda: nn.BatchNorm1d(5), lambda: T.BatchNorm1d(5), (5,)),
    "batch_norm2d": (lambda: nn.BatchNorm2d(5), lambda: T.BatchNorm2d(5), (3, 4, 5)),
    "batch_norm2d of averages": (
        lambda: nn.BatchNorm2d(5, momentum=None),
        lambda: T.BatchNorm2d(5, momentum=None),
        (3, 4, 5),
    ),
    "batch_norm2d without statistics": (
        lambda: nn.BatchNorm2d(5, affine=False, track_running_stats=False),
        lambda: T.BatchNorm2d(5, affine=False, track_running_stats=False),
        (3, 4, 5),
    ),
    "group_norm": (lambda: nn.GroupNorm(2, 6), lambda: T.GroupNorm(2, 6), (3, 4, 6)),
    "layer_norm": (lambda: nn.LayerNorm((3, 4, 6)), lambda: T.LayerNorm((6, 3, 4)), (3, 4, 6)),
    "layer_norm of features": (lambda: nn.LayerNorm(6), lambda: T.LayerNorm(6), (6,)),
    "prelu": (lambda: nn.PReLU(6), lambda: T.PReLU(6), (3, 4, 6)),
    "lenet": (
        lambda: gpucnn.models.lenet5(),
        lambda: T.Sequential(
            T.Conv2d(1, 6, 5, padding=2),
            T.Tanh(),
            T.AvgPool2d(2),
            T.Conv2d(6, 16, 5),
            T.Tanh(),
            T.AvgPool2d(2),
            T.Flatten(),
            T.Linear(400, 120),
            T.Tanh(),
            T.Linear(120, 84),
            T.Tanh(),
            T.Linear(84, 10),
        ),
        (28, 28, 1),
    ),
}


def disturb(state: dict[str, Any]) -> dict[str, Any]:
    """Other numbers in the place of fresh ones: positive variances, counters as they are."""
    return {
        name: a if a.dtype.kind == "i" else (np.abs(randn(*a.shape, seed=i)) + 0.1).astype(a.dtype)
        for i, (name, a) in enumerate(state.items())
    }


@needs_torch
@pytest.mark.parametrize("name", PAIRS)
def test_outputs_are_equal_both_ways(name: str) -> None:
    ours, theirs, shape = PAIRS[name][0](), PAIRS[name][1](), PAIRS[name][2]
    x = randn(3, *shape, seed=9)
    there = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))

    def outputs() -> tuple[np.ndarray, np.ndarray]:
        with inference(ours), torch.no_grad():
            theirs.eval()
            made = theirs(there).numpy()
            return ours(gpucnn.Tensor(x, device="cpu")).numpy(), np.moveaxis(made, 1, -1)

    ours.to("cpu").load_state_dict(disturb(ours.state_dict()))
    state = state_dict_for_torch(ours, shape)
    assert all(a.flags.c_contiguous for a in state.values())
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in state.items()})
    assert_close(*outputs(), "torch", x.size)

    changed = disturb({n: t.numpy() for n, t in reversed(theirs.state_dict().items())})
    theirs.load_state_dict({n: torch.from_numpy(a) for n, a in changed.items()})
    load_torch_state_dict(ours, theirs.state_dict(), shape)
    assert_close(*outputs(), "torch", x.size)
    for key, value in state_dict_for_torch(ours, shape).items():
        if value.dtype.kind == "f":
            assert value.tobytes() == changed[key].tobytes(), key


@needs_torch
def test_safetensors_that_torch_loads_after_one_call(tmp_path: Path) -> None:
    import safetensors.torch

    ours, theirs, shape = (make() if callable(make) else make for make in PAIRS["lenet"])
    save_for_torch(ours, tmp_path / "weights.safetensors", shape)
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    x = randn(2, *shape)
    with torch.no_grad():
        made = theirs(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).numpy()
    assert_close(ours(gpucnn.Tensor(x)).numpy(), made, "torch", 400)


def test_safetensors_never_gets_an_array_with_other_strides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors 0.8.0 writes the memory of such an array as if it were contiguous."""
    seen: list[bool] = []
    honest = safetensors.numpy.save

    def save(tensors: dict[str, np.ndarray], *args: Any, **options: Any) -> bytes:
        seen.extend(a.flags.c_contiguous for a in tensors.values())
        return honest(tensors, *args, **options)

    monkeypatch.setattr(safetensors.numpy, "save", save)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    save_for_torch(model, tmp_path / "a.safetensors", (4, 4, 3))
    assert len(seen) == 4
    assert all(seen)
    loaded = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    weight = model[0].weight.numpy()
    assert (loaded["0.weight"] == weight.transpose(0, 3, 1, 2)).all()


def test_what_does_not_fit_is_refused_and_nothing_changed() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    state = state_dict_for_torch(model, (4, 4, 1))
    before = model.state_dict()
    with pytest.raises(ValueError, match="image_shape must be given"):
        state_dict_for_torch(model)
    with pytest.raises(ValueError, match=r"must have shape \(2, 1, 3, 3\), got \(2, 3, 3, 1\)"):
        load_torch_state_dict(
            model, {**state, "0.weight": state["0.weight"].transpose(0, 2, 3, 1)}, (4, 4, 1)
        )
    with pytest.raises(ValueError, match=r"missing 2.bias; unknown 2.bios"):
        load_torch_state_dict(
            model, {("2.bios" if n == "2.bias" else n): a for n, a in state.items()}, (4, 4, 1)
        )
    for name, value in model.state_dict().items():
        assert value.tobytes() == before[name].tobytes()
    local = nn.LocallyConnected2d(1, 2, 4, 3)
    with pytest.raises(ValueError, match="weight: PyTorch has no layer like LocallyConnected2d"):
        state_dict_for_torch(local)
