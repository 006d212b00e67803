"""Batches without an image: the right shapes, sums of 0, means of NaN, and no kernel launched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, kernel, models, nn, optim
from gpucnn import functional as F
from tests.support import needs_torch, randn, torch
from tests.test_bad_arguments import CALLS

REDUCTIONS = {"sum": 0.0, "mean": np.nan}
LOSSES = [name for name, arguments in CALLS.items() if "target" in arguments]
# Those whose results are one for each image of x.
PER_IMAGE = [
    name
    for name in CALLS
    if name
    not in (*LOSSES, *REDUCTIONS, "max", "transpose", "broadcast_to", "convert_pool_indices")
]
BATCHED = ("x", "a", "b", "indices", "tensors", "residual")


def arguments(name: str, device: str, empty: bool) -> dict[str, Any]:
    """Those of the table; the batch without images."""
    batch = next(iter(CALLS[name].values()))

    def value(key: str, given: Any) -> Any:
        if isinstance(given, list):
            if isinstance(given[0], Tensor):
                return [value(key, t.shape) for t in given]
            made = np.array(given)
            return made[:0] if empty and key in BATCHED else made
        if isinstance(given, Tensor):
            return given.to(device)
        if not isinstance(given, tuple) or key == "input_size":
            return given
        whole = given[0] == batch[0] and key in BATCHED and not (name == "matmul" and key == "b")
        made = randn(*given)[:0] if empty and whole else randn(*given)
        return Tensor(made, requires_grad=not key.startswith("running"), device=device)

    if name == "concatenate":
        batch = batch[0].shape
    return {key: value(key, given) for key, given in CALLS[name].items()}


@pytest.fixture
def no_launch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The launches in which a thread has nothing to do."""
    grids: list[tuple[int, ...]] = []
    launch = kernel.Kernel.__call__

    def watched(self: Any, grid: Any, *args: Any, **options: Any) -> None:
        if 0 in tuple(grid) or any(getattr(a, "size", 1) == 0 for a in args):
            grids.append(tuple(grid))
        launch(self, grid, *args, **options)

    monkeypatch.setattr(kernel.Kernel, "__call__", watched)
    return grids


@pytest.mark.parametrize("name", PER_IMAGE)
def test_as_many_images_out_as_in(name: str, device: str, no_launch: list[Any]) -> None:
    """Shapes and dtypes are those of a filled batch; parameters receive gradients of 0."""
    given = arguments(name, device, True)
    y = getattr(F, name)(**given)
    filled = getattr(F, name)(**arguments(name, device, False))
    assert y.shape == (0, *filled.shape[1:])
    assert (y.dtype, y.device, y.requires_grad) == (filled.dtype, device, filled.requires_grad)
    y.backward(np.zeros(y.shape, np.float32))
    tensors = given.pop("tensors", [])
    for t in [*tensors, *(v for v in given.values() if isinstance(v, Tensor) and v.requires_grad)]:
        assert t.grad.shape == t.shape
        assert not t.grad.numpy().any()
    assert not no_launch


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "batchmean"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, reduction: str, device: str, no_launch: list[Any]) -> None:
    if reduction == "batchmean" and name != "kl_div":
        return
    x = Tensor(np.zeros((0, 4), np.float32), requires_grad=True, device=device)
    target = np.asarray(CALLS[name]["target"])[:0]
    loss = getattr(F, name)(x, target, reduction=reduction)
    filled = getattr(F, name)(
        Tensor(randn(3, 4), device=device), CALLS[name]["target"], reduction="none"
    )
    if reduction == "none":
        assert loss.shape == (0, *filled.shape[1:])
    else:
        np.testing.assert_array_equal(loss.numpy(), 0.0 if reduction == "sum" else np.nan)
    loss.backward(np.ones(loss.shape, np.float32))
    assert x.grad.shape == (0, 4)
    assert not no_launch


@pytest.mark.parametrize("name", REDUCTIONS)
def test_sums_are_0_and_means_nan(name: str, device: str) -> None:
    x = Tensor(np.zeros((0, 3, 2), np.float32), requires_grad=True, device=device)
    function = getattr(F, name)
    np.testing.assert_array_equal(function(x).numpy(), REDUCTIONS[name])
    y = function(x, axis=(0, 2), keepdims=True)
    np.testing.assert_array_equal(y.numpy(), np.full((1, 3, 1), REDUCTIONS[name]))
    assert function(x, axis=1).shape == (0, 2)
    y.backward(np.ones(y.shape, np.float32))
    assert x.grad.shape == x.shape
    assert F.max(x, axis=1).shape == (0, 2)
    with pytest.raises(ValueError, match="x must not be empty where it has a maximum"):
        F.max(x, axis=0)


def test_other_shapes(device: str) -> None:
    x = Tensor(np.zeros((0, 3, 2), np.float32), requires_grad=True, device=device)
    y = F.transpose(x, (2, 0, 1))
    assert y.shape == (2, 0, 3)
    y.backward(np.zeros(y.shape, np.float32))
    assert x.grad.shape == x.shape
    assert F.concatenate([x, x], axis=0).shape == (0, 3, 2)
    with pytest.raises(ValueError, match="not be empty"):
        F.concatenate([x, Tensor(np.zeros((1, 3, 2), np.float32), device=device)], axis=0)
    assert nn.Flatten()(x).shape == (0, 6)


@pytest.mark.parametrize("shape", [(4,), (1, 6, 5, 4), (0, 1, 1, 4), (6, 1, 1)])
def test_broadcasting(shape: tuple[int, ...], device: str, no_launch: list[Any]) -> None:
    x = Tensor(np.zeros((0, 6, 5, 4), np.float32), requires_grad=True, device=device)
    b = Tensor(np.ones(shape, np.float32), requires_grad=True, device=device)
    for y in (x + b, x * b, b - x if len(shape) > 1 else x - b):
        assert y.shape == x.shape
        y.backward(np.zeros(y.shape, np.float32))
    assert b.grad.shape == shape
    assert not b.grad.numpy().any()
    assert not no_launch


def test_a_used_twice_tensor_adds_its_gradients(device: str, no_launch: list[Any]) -> None:
    x = Tensor(np.zeros((0, 3), np.float32), requires_grad=True, device=device)
    for _ in range(2):
        (F.relu(x) + x * 2.0).backward(np.zeros((0, 3), np.float32))
    assert x.grad.shape == (0, 3)
    assert not no_launch


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_left_alone(momentum: float | None, device: str) -> None:
    layer = nn.BatchNorm2d(3, momentum=momentum).to(device)
    layer(Tensor(randn(2, 4, 4, 3), device=device))
    before = layer.state_dict()
    y = layer(Tensor(np.zeros((0, 4, 4, 3), np.float32), device=device))
    assert y.shape == (0, 4, 4, 3)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match="running_mean must be given"):
        F.batch_norm(Tensor(np.zeros((0, 3)), device="cpu"), None, None, None, None, training=False)


@pytest.mark.parametrize("name", models.names())
def test_models_take_an_empty_batch(name: str) -> None:
    """A step of the sum of nothing moves no weight."""
    model = models.create(name)
    x = Tensor(np.zeros((0, *models.input_shape(name)), np.float32))
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    before = model.state_dict()
    y = model(x)
    filled = model.eval()(Tensor(np.zeros((1, *models.input_shape(name)), np.float32)))
    assert y.shape == (0, *filled.shape[1:])
    y.sum().backward()
    optimizer.step()
    for key, value in model.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@needs_torch
def test_agrees_with_pytorch() -> None:
    x, w = np.zeros((0, 6, 5, 2), np.float32), randn(3, 3, 3, 2)
    t, tw = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    y = F.max_pool2d(F.conv2d(t, tw, padding=1), 2)
    loss = F.cross_entropy(y, np.zeros(y.shape[:-1], np.int32))
    loss.backward()
    px = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    pw = torch.tensor(w.transpose(0, 3, 1, 2), requires_grad=True)
    py = torch.nn.functional.max_pool2d(torch.nn.functional.conv2d(px, pw, padding=1), 2)
    ploss = torch.nn.functional.cross_entropy(py, torch.zeros(0, *py.shape[2:], dtype=torch.long))
    ploss.backward()
    assert y.numpy().transpose(0, 3, 1, 2).shape == py.shape
    np.testing.assert_array_equal(loss.item(), ploss.item())
    np.testing.assert_array_equal(tw.grad.numpy().transpose(0, 3, 1, 2), pw.grad.numpy())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda x: F.conv2d(x, Tensor(np.zeros((2, 3, 3, 5)))), "weight must have"),
        (lambda x: F.conv2d(x, Tensor(np.zeros((0, 3, 3, 4)))), "weight must have shape"),
        (lambda x: F.max_pool2d(x, 9), "kernel_size: a window of 9"),
        (lambda x: F.add(x, Tensor(np.zeros((2, 6, 5, 4)))), "b must have the shape of a"),
        (lambda x: F.broadcast_to(Tensor(np.zeros((1, 3))), (2, 0, 3)), "shape must be >= 1"),
        (
            lambda x: F.max_unpool2d(x, np.zeros((1, 6, 5, 4), int), 2),
            "indices must have the shape",
        ),
        (lambda x: F.relu(Tensor(np.zeros((0, 0, 4)))), "x must not be empty"),
        (lambda x: F.softmax(Tensor(np.zeros((3, 0)))), "not be empty"),
        (lambda x: F.dropout(Tensor(np.zeros((3, 0))), training=True), "x must not be empty"),
        (lambda x: F.mse_loss(Tensor(np.zeros((3, 0))), np.zeros((3, 0))), "input must not be"),
    ],
)
def test_what_is_refused_of_one_image_is_refused_of_none(call: Any, match: str) -> None:
    with gpucnn.use_device("cpu"), pytest.raises(ValueError, match=match):
        call(Tensor(np.zeros((0, 6, 5, 4))))
