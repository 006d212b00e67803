"""Layers that are computed together: the same results as one by one, in fewer launches."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import models, nn
from gpucnn.kernel import observe_launches
from gpucnn.summary import summarize
from tests.support import assert_close, distinct


def block(*layers: nn.Module, channels: int = 8, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(channels, 8, 3, padding=1, **options), *layers]


def residual(*ends: nn.Module, projection: nn.Module | None = None) -> nn.Residual:
    return nn.Residual(nn.Sequential(*block(nn.ReLU()), *ends), projection)


# The layers, and the runs of them that are computed together.
CASES: dict[str, tuple[list[nn.Module], list[tuple[int, int]]]] = {
    "conv-relu": (block(nn.ReLU()), [(0, 2)]),
    "conv-tanh": (block(nn.Tanh()), [(0, 2)]),
    "conv-sigmoid-conv": (block(nn.Sigmoid(), *block()), [(0, 2)]),
    "conv-leaky": (block(nn.LeakyReLU(0.2)), [(0, 2)]),
    "conv-norm": (block(nn.BatchNorm2d(8)), [(0, 2)]),
    "conv-norm-relu": (block(nn.BatchNorm2d(8), nn.ReLU(), *block()), [(0, 3)]),
    "conv-norm-leaky-pool": (
        block(nn.BatchNorm2d(8), nn.LeakyReLU(0.1), nn.MaxPool2d(2)), [(0, 4)],
    ),
    "norm-relu-pool": ([nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], [(0, 3)]),
    "no-affine": (block(nn.BatchNorm2d(8, affine=False), nn.ReLU()), [(0, 3)]),
    "cumulative": (block(nn.BatchNorm2d(8, momentum=None), nn.ReLU()), [(0, 3)]),
    "untracked": (block(nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU()), [(0, 3)]),
    "residual-norm": ([residual(*block(nn.BatchNorm2d(8), bias=False)), nn.ReLU()], [(0, 2)]),
    "residual-conv": ([residual(*block()), nn.Tanh(), *block()], [(0, 2)]),
    "residual-alone": ([residual(*block(nn.BatchNorm2d(8)))], [(0, 1)]),
    "projection": (
        [residual(nn.BatchNorm2d(8), projection=nn.Conv2d(8, 8, 1)), nn.ReLU()], [(0, 2)],
    ),
    "linear": (
        [nn.Flatten(), nn.Linear(240, 9), nn.Tanh(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3)],
        [(1, 3), (3, 5)],
    ),
    "norm-linear": (
        [nn.GlobalAvgPool2d(), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 9), nn.Sigmoid()],
        [(1, 3), (3, 5)],
    ),
    "norm-conv-relu": (
        [nn.BatchNorm2d(8), nn.Conv2d(8, 9, 3), nn.ReLU(), nn.Conv2d(9, 8, 3)], [(1, 3)],
    ),
    "norm-linear-relu": (
        [nn.GlobalAvgPool2d(), nn.BatchNorm1d(8), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8)],
        [(2, 4)],
    ),
    "two": (block(nn.ReLU(), *block(nn.BatchNorm2d(8)), nn.MaxPool2d(2)), [(0, 2), (2, 4)]),
}  # fmt: skip


def step(
    layers: list[nn.Module], device: str, *, fuse: bool, training: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Output, gradients and buffers after one step of the layers, and its launches."""
    model = nn.Sequential(*layers, fuse=fuse)
    gpucnn.seed(1)
    for name, p in model._state().items():
        if p.dtype.kind == "f":
            offset = 2.0 if "running_var" in name else 0.0
            p.data = distinct(*p.shape, seed=len(name)) + np.float32(offset)
        else:
            p.data = np.zeros(p.shape, p.dtype)
        p.device, p.grad = "cpu", None
    model.to(device).train(training)
    x = gpucnn.Tensor(distinct(2, 6, 5, 8), requires_grad=True, device=device)
    names: list[str] = []
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        y = model(x)
        y.backward(distinct(*y.shape, seed=3))
    found = {"y": y.numpy(), "x": x.grad.numpy() if x.grad else np.zeros(0)}
    found |= {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad}
    found |= {name: p.numpy().copy() for name, p in model.named_buffers()}
    return found, names


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("name", CASES)
def test_fused_is_the_layers_one_by_one(name: str, training: bool, device: str) -> None:
    layers, runs = CASES[name]
    model = nn.Sequential(*layers)
    assert [(group.start, group.stop) for group in model.groups()] == runs
    plain, before = step(layers, device, fuse=False, training=training)
    fused, after = step(layers, device, fuse=True, training=training)
    assert plain.keys() == fused.keys()
    for key, expected in plain.items():
        scale = max(1.0, float(np.abs(expected).max()))
        assert_close(fused[key] / scale, expected / scale, "torch", 72, f"{name}: {key}")
    assert len(after) < len(before) + (device == "cpu" or not training)


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(8, 8, 3)],
        block(nn.GELU()),
        block(nn.LeakyReLU(-0.5)),
        block(nn.MaxPool2d(2)),
        [nn.BatchNorm2d(8), nn.Tanh()],
        [nn.BatchNorm2d(8), nn.MaxPool2d(2)],
        [nn.Residual(nn.ReLU()), nn.ReLU()],
        [nn.Conv1d(8, 8, 3), nn.ReLU()],
        [nn.Linear(None, 3), nn.ReLU()],
    ],
    ids=str,
)
def test_what_no_kernel_computes_together(layers: list[nn.Module]) -> None:
    assert nn.Sequential(*layers).groups() == []


def test_layers_with_another_forward_are_left_alone() -> None:
    class Mine(nn.ReLU):
        def forward(self, x: gpucnn.Tensor) -> gpucnn.Tensor:
            return x

    hooked = nn.ReLU()
    seen: list[Any] = []
    vars(hooked)["forward"] = lambda x: seen.append(x) or F.relu(x)
    tied = nn.MaxPool2d(2)
    tied.inverse()
    for layers, runs in (
        (block(Mine()), []),
        (block(hooked), []),
        (block(nn.BatchNorm2d(8), nn.ReLU(), tied), [(0, 3)]),
        (block(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)), [(0, 3)]),
        (block(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2, edge="zero")), [(0, 3)]),
        (block(nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(12)), [(0, 3)]),
    ):
        assert [(g.start, g.stop) for g in nn.Sequential(*layers).groups()] == runs
    nn.Sequential(*block(hooked))(gpucnn.Tensor(distinct(1, 4, 4, 8)))
    assert len(seen) == 1


def test_a_layer_is_fused_once_it_has_a_size(kernel_device: str) -> None:
    with gpucnn.use_device(kernel_device):
        model = nn.Sequential(nn.Linear(None, 8), nn.ReLU())
    x = gpucnn.Tensor(distinct(3, 8), device=kernel_device)
    outputs = [model(x).numpy() for _ in range(2)]
    assert len(model.groups()) == 1
    assert_close(outputs[1], outputs[0], "exact")


def test_a_variant_of_linear_by_hand_is_the_one_that_runs(kernel_device: str) -> None:
    model = nn.Sequential(nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 8)).to(kernel_device)
    x = gpucnn.Tensor(distinct(3, 8), device=kernel_device)
    names: list[str] = []
    with (
        gpucnn.use_variant(linear="tiled"),
        observe_launches(lambda launch: names.append(launch.kernel.name)),
    ):
        model(x).sum().backward()
    assert {"linear_forward", "relu_forward", "linear_data_gradient", "relu_backward"} <= set(names)
    assert not [name for name in names if name.startswith("conv2d")]


def test_what_is_recorded_without_fusion_stays_alone(kernel_device: str) -> None:
    """Also where the convolution behind it is recorded with it."""
    x = gpucnn.Tensor(distinct(1, 4, 4, 8), requires_grad=True, device=kernel_device)
    w = gpucnn.Tensor(distinct(8, 1, 1, 8), device=kernel_device)
    names: list[str] = []
    with gpucnn.fusion(False):
        y = F.relu(x)
    with observe_launches(lambda launch: names.append(launch.kernel.name)):
        F.conv2d(y, w).sum().backward()
    assert "relu_backward" in names


def test_switching_it_off() -> None:
    layers = block(nn.ReLU())
    assert nn.Sequential(*layers, fuse=False).groups() == []
    assert nn.Sequential(*layers, fuse=False)[:2].fuse is False  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="fuse must be True or False"):
        nn.Sequential(*layers, fuse=1)  # type: ignore[arg-type]


def test_which_layers_a_summary_calls_fused() -> None:
    rows = {row.name: row.fused for row in summarize(models.create("resnet20"), (32, 32, 3))}
    assert {name: fused for name, fused in rows.items() if name in ("0", "1", "2", "21")} == {
        "0": "", "1": "0", "2": "0", "21": "",
    }  # fmt: skip
    assert (rows["3.module.1"], rows["3.module.4"], rows["4"]) == (
        "3.module.0",
        *["3.module.3"] * 2,
    )
    assert rows["9.projection.1"] == "9.projection.0"


@pytest.mark.parametrize("name", ["shapenet", "resnet20", "segnet_small"])
def test_models_take_the_same_step(name: str, kernel_device: str) -> None:
    """In float64 the layers one by one; fused, in float32, by the kernels."""
    if models.kind(name) == "pixel":
        shape, target = (1, 16, 16, 1), np.zeros((1, 16, 16), np.int32)
    else:
        shape, target = (2, *models.input_shape(name)), np.array([0, 1], np.int32)
    losses = {}
    launches: dict[bool, int] = {}
    for device, fuse in (("cpu", False), (kernel_device, False), (kernel_device, True)):
        gpucnn.seed(2)
        model = models.create(name).to(device).train()
        names: list[str] = []
        with gpucnn.fusion(fuse), observe_launches(lambda launch, to=names: to.append(launch)):
            images = gpucnn.Tensor(distinct(*shape), device=device)
            loss = F.cross_entropy(model(images), gpucnn.Tensor(target, device=device))
            loss.backward()
        launches[fuse] = len(names)
        losses[device, fuse] = loss.item()
    values = list(losses.values())
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5)
    assert launches[True] < launches[False]


def test_gradients_in_float64() -> None:
    """Of a fused linear layer, and of a normalisation whose statistics a convolution left."""

    def tensor(*shape: int, seed: int) -> gpucnn.Tensor:
        values = distinct(*shape, seed=seed, dtype=np.float64)
        return gpucnn.Tensor(values, requires_grad=True, device="cpu")

    inputs = [tensor(3, 4, seed=0), tensor(5, 4, seed=1), tensor(5, seed=2)]
    for activation in ("identity", "relu", "leaky_relu", "sigmoid", "tanh"):
        assert gpucnn.gradcheck(
            lambda *given, f=activation: F.linear_fused(*given, activation=f), inputs
        )

    def layer(x: gpucnn.Tensor, w: gpucnn.Tensor, gamma: gpucnn.Tensor) -> gpucnn.Tensor:
        y = F.conv2d_fused(x, w, activation="tanh", moments=True)
        return F.batch_norm(y, gamma, None, None, None, training=True)

    assert gpucnn.gradcheck(
        layer, [tensor(2, 3, 4, 2, seed=3), tensor(3, 2, 2, 2, seed=4), tensor(3, seed=5)]
    )


def test_layers_that_change_are_grouped_anew() -> None:
    """Groups are found once, and again after any attribute of a module was set or deleted."""
    x = gpucnn.Tensor(distinct(2, 5, 4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU(0.5))
    plain = model[0](x)

    def check(expected: gpucnn.Tensor) -> None:
        assert_close(model(x).numpy(), expected.numpy(), "float32", 3)

    for _ in range(2):
        check(F.leaky_relu(plain, 0.5))
    model[1].negative_slope = -0.5
    check(F.leaky_relu(plain, -0.5))
    model[1].forward = lambda x: x
    check(plain)
    del model[1].forward
    check(F.leaky_relu(plain, -0.5))
    model.layers = (*model.layers, nn.ReLU())
    check(F.relu(F.leaky_relu(plain, -0.5)))
    twin = copy.deepcopy(model)
    twin.layers = twin.layers[:1]
    assert_close(twin(x).numpy(), plain.numpy(), "float32", 3)
    check(F.relu(F.leaky_relu(plain, -0.5)))
