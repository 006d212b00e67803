"""ONNX files: the outputs of onnxruntime on random images are those of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import models, nn
from gpucnn.interop.onnx import export, to_onnx
from gpucnn.nn.module import inference
from tests.support import assert_close, needs_onnx, needs_onnxruntime, randn


class Calls(nn.Module):
    """A model of one function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def forward(self, x: gpucnn.Tensor) -> Any:
        return self.function(x)


def unpooled(x: gpucnn.Tensor) -> gpucnn.Tensor:
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y * 2, indices, 2, output_size=x.shape[1:3])


MODELS: dict[str, tuple[Any, tuple[int, ...]]] = {
    **{
        name: (lambda name=name: models.create(name), models.input_shape(name))
        for name in models.names()
    },
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, 2, 1, groups=2), (10, 6)),
    "conv2d": (lambda: nn.Conv2d(6, 4, (3, 2), (2, 1), ((1, 0), (2, 1)), 2, 2), (9, 8, 6)),
    "conv2d same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (6, 7, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 3, (1, 2, 3), 2), (4, 5, 6, 2)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, 2), (5, 4)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), 2, 1, 1, 2), (5, 4, 4)),
    "conv_transpose2d cut": (lambda: nn.ConvTranspose2d(2, 3, 4, 3, ((1, 2), (0, 1))), (5, 4, 2)),
    "local response": (lambda: nn.LocalResponseNorm(4, 0.5), (3, 4, 7)),
    "local response within": (lambda: nn.LocalResponseNorm(3, 0.5, region="within"), (5, 4, 3)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (3, 4, 6)),
    "layer norm": (lambda: nn.LayerNorm((3, 4, 6)), (3, 4, 6)),
    "layer norm of channels": (lambda: nn.LayerNorm(6), (3, 4, 6)),
    "max pool": (lambda: nn.MaxPool2d((3, 2), (2, 1), (1, 0), dilation=(1, 2)), (9, 8, 3)),
    "max pool ceil": (lambda: nn.MaxPool2d(3, 2, edge="ceil"), (8, 8, 3)),
    "max pool 3d": (lambda: nn.MaxPool3d(2, padding=1), (4, 5, 6, 2)),
    "max pool 1d": (lambda: nn.MaxPool1d(3, 2), (9, 2)),
    "average pool": (lambda: nn.AvgPool2d(3, 2, 1), (9, 8, 3)),
    "average pool of cells": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), (9, 8, 3)),
    "average pool ceil": (lambda: nn.AvgPool2d(3, 2, 1, edge="ceil"), (8, 8, 3)),
    "sum pool": (lambda: nn.SumPool2d((2, 3), 1, edge="zero"), (8, 8, 3)),
    "adaptive average": (lambda: nn.AdaptiveAvgPool2d((3, 2)), (8, 7, 3)),
    "adaptive maximum": (lambda: nn.AdaptiveMaxPool2d((4, 2)), (8, 6, 3)),
    "global maximum": (lambda: nn.Sequential(nn.GlobalMaxPool2d(), nn.Linear(3, 2)), (8, 6, 3)),
    "unpool": (lambda: Calls(unpooled), (7, 6, 3)),
    "softmax": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.Softmax()), (2, 2, 3)),
    "log softmax of pixels": (lambda: nn.LogSoftmax(), (4, 5, 3)),
    "prelu": (lambda: nn.PReLU(3), (4, 5, 3)),
    "dropout at inference": (lambda: nn.Sequential(nn.Dropout(0.5), nn.ReLU()), (4, 5, 3)),
    "sums": (lambda: Calls(lambda x: x.sum((1, 2)) - x.mean((1, 2)) * 3), (4, 5, 3)),
    "maximum": (lambda: Calls(lambda x: x.max(3)), (4, 5, 3)),
    "arithmetic": (lambda: Calls(lambda x: (x * x - 2) / 3 + x * np.float32(2)), (4, 5, 3)),
    "a vector": (
        lambda: Calls(lambda x: x * gpucnn.Tensor([1.0, 2, 3]) + gpucnn.Tensor([3.0, 2, 1])),
        (4, 5, 3),
    ),
    "broadcast": (lambda: Calls(lambda x: x + gpucnn.Tensor(randn(1, 4, 1, 3))), (4, 5, 3)),
    "transpose": (lambda: Calls(lambda x: x.transpose(0, 2, 1, 3)), (4, 5, 3)),
    "transpose channels": (lambda: Calls(lambda x: x.transpose(0, 3, 1, 2)), (4, 5, 3)),
    "reshape": (lambda: Calls(lambda x: x.reshape(x.shape[0], 10, 2, 3)), (4, 5, 3)),
    "concatenate": (lambda: Calls(lambda x: F.concatenate([x, x * 2], axis=2)), (4, 5, 3)),
    "matmul": (lambda: Calls(lambda x: x @ gpucnn.Tensor(randn(6, 4))), (6,)),
    **{
        f"{name}": (lambda layer=layer: layer(), (3, 4, 2))
        for name, layer in {
            "leaky": nn.LeakyReLU,
            "elu": nn.ELU,
            "selu": nn.SELU,
            "sigmoid": nn.Sigmoid,
            "tanh": nn.Tanh,
            "softplus": nn.Softplus,
            "softplus cut": lambda: nn.Softplus(2.0, 0.5),
            "gelu": nn.GELU,
            "silu": nn.SiLU,
            "hardswish": nn.Hardswish,
            "gelu tanh": lambda: Calls(lambda x: F.gelu(x, approximate="tanh")),
        }.items()
    },
}


@needs_onnxruntime
@pytest.mark.parametrize("name", MODELS)
def test_onnxruntime_computes_the_same(name: str) -> None:
    import onnxruntime

    gpucnn.seed(0)
    make, shape = MODELS[name]
    model = make().to("cpu")
    for _, buffer in model.named_buffers():
        buffer.data[...] = np.abs(buffer.data + 0.5)
    made = to_onnx(model, shape, metadata={"classes": "a, b"})
    assert {p.key: p.value for p in made.metadata_props} == {"classes": "a, b"}
    assert made.opset_import[0].version == 17
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for n in (1, 3):  # the batch is free
        x = randn(n, *shape, seed=n)
        with inference(model):
            expected = model(gpucnn.Tensor(x, device="cpu")).numpy()
        (actual,) = session.run(None, {"images": np.moveaxis(x, -1, 1) if x.ndim > 2 else x})
        there = np.moveaxis(expected, -1, 1) if expected.ndim > 2 else expected
        scale = np.abs(there).max()
        assert_close(actual / scale, there / scale, "torch", 1000, name)


@needs_onnx
def test_weights_keep_their_names_and_files_are_written_whole(tmp_path: Path) -> None:
    import onnx

    model = models.create("lenet5")
    export(model, tmp_path / "model.onnx", (28, 28, 1))
    read = onnx.load(tmp_path / "model.onnx")
    named = {t.name: onnx.numpy_helper.to_array(t) for t in read.graph.initializer}
    for name, value in model.state_dict().items():
        expected = np.moveaxis(value, -1, 1) if value.ndim == 4 else value
        assert (named[name] == expected).all(), name
    assert [d.dim_param for d in read.graph.input[0].type.tensor_type.shape.dim] == [
        "N",
        "",
        "",
        "",
    ]
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


@needs_onnx
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.MaxPool2d(3, edge="zero"), 'max pooling with edge="zero" has no counterpart'),
        (lambda: nn.LocallyConnected2d(3, 2, 6, 3), "LocallyConnected2d has no counterpart"),
        (lambda: Calls(lambda x: (x, x)), "must return one tensor, it returned tuple"),
        (lambda: Calls(lambda x: x.sum(0)), "over the batch has no counterpart"),
        (lambda: nn.BatchNorm2d(3, track_running_stats=False), "by the statistics of a batch"),
        (lambda: nn.Conv2d(4, 2, 3), "channels"),
    ],
)
def test_what_has_no_counterpart_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_onnx(make(), (6, 6, 3))
