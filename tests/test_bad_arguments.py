"""Every argument of every public function against values that are no use: what is refused, and how.

What an operator's own test file pins is one message; here every argument meets every odd value.
A call may work (a stride of 3 is a stride); otherwise it raises ValueError or TypeError, and names
an argument.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from bench.cases import ACTIVATION_FUNCTIONS, REGRESSION_LOSS
from gpucnn import DeviceError, Tensor, nn, optim
from gpucnn import functional as F
from tests.support import randn


def tensor(*shape: int) -> Tensor:
    return Tensor(randn(*shape))


X1, X2, X3, ROWS = (2, 6, 4), (2, 6, 5, 4), (1, 4, 4, 4, 2), (3, 4)

# Arguments with which a function works: shapes stand for tensors of noise.
CALLS: dict[str, dict[str, Any]] = {
    "conv1d": {"x": X1, "weight": (8, 3, 4), "bias": (8,)},
    "conv2d": {"x": X2, "weight": (8, 3, 3, 4), "bias": (8,)},
    "conv2d_fused": {"x": X2, "weight": (8, 3, 3, 4), "bias": (8,), "residual": (2, 4, 3, 8)},
    "conv3d": {"x": X3, "weight": (3, 2, 2, 2, 2), "bias": (3,)},
    "conv_transpose1d": {"x": X1, "weight": (4, 3, 8), "bias": (8,)},
    "conv_transpose2d": {"x": X2, "weight": (4, 3, 3, 8), "bias": (8,)},
    "conv_transpose3d": {"x": X3, "weight": (2, 2, 2, 2, 3), "bias": (3,)},
    "locally_connected2d": {"x": X2, "weight": (4, 3, 8, 3, 3, 4), "bias": (4, 3, 8)},
    "linear_fused": {"x": ROWS, "weight": (5, 4), "bias": (5,)},
    "linear": {"x": ROWS, "weight": (5, 4), "bias": (5,)},
    "matmul": {"a": ROWS, "b": (4, 2)},
    **{f"{name}_pool1d": {"x": X1, "kernel_size": 2} for name in ("max", "avg", "sum")},
    **{f"{name}_pool2d": {"x": X2, "kernel_size": 2} for name in ("max", "avg", "sum")},
    **{f"{name}_pool3d": {"x": X3, "kernel_size": 2} for name in ("max", "avg", "sum")},
    **{
        f"adaptive_{name}_pool{dims}d": {"x": x, "output_size": 2}
        for name in ("max", "avg")
        for dims, x in enumerate((X1, X2, X3), 1)
    },
    **{
        f"global_{name}_pool{dims}d": {"x": x}
        for name in ("max", "avg")
        for dims, x in enumerate((X1, X2, X3), 1)
    },
    "max_unpool2d": {"x": (1, 2, 2, 1), "indices": [[[[0], [3]], [[8], [10]]]], "kernel_size": 2},
    "max_unpool1d": {"x": (1, 2, 1), "indices": [[[0], [3]]], "kernel_size": 2},
    "max_unpool3d": {"x": (1, 1, 1, 2, 1), "indices": [[[[[0], [6]]]]], "kernel_size": 2},
    **{f"{name}_unpool1d": {"x": X1, "kernel_size": 2} for name in ("avg", "sum")},
    **{f"{name}_unpool2d": {"x": X2, "kernel_size": 2} for name in ("avg", "sum")},
    **{f"{name}_unpool3d": {"x": X3, "kernel_size": 2} for name in ("avg", "sum")},
    "convert_pool_indices": {
        "indices": [[[[0], [2]], [[8], [10]]]],
        "src": "torch",
        "dst": "chainer",
        "input_size": (4, 4),
        "kernel_size": 2,
    },
    **{
        name: {
            "x": ROWS,
            **dict.fromkeys(("gamma", "beta", "running_mean"), (4,)),
            "running_var": Tensor(np.ones(4, np.float32)),
            "training": True,
        }
        for name in ("batch_norm", "batch_norm_block")
    },
    "group_norm": {"x": ROWS, "num_groups": 2, "weight": (4,), "bias": (4,)},
    "layer_norm": {"x": ROWS, "normalized_shape": 4, "weight": (4,), "bias": (4,)},
    "local_response_norm": {"x": X2, "size": 3},
    "prelu": {"x": X2, "weight": (4,)},
    "dropout": {"x": X2, "training": True},
    "dropout2d": {"x": X2, "training": True},
    **{name: {"a": X2, "b": X2} for name in ("add", "subtract", "multiply")},
    "negate": {"a": X2},
    **{name: {"x": X2} for name in ("to_bfloat16", "to_float32")},
    "broadcast_to": {"x": (5, 1), "shape": [2, 5, 4]},
    "concatenate": {"tensors": [tensor(*ROWS), tensor(*ROWS)]},
    **{name: {"x": X2} for name in ("transpose", "sum", "mean", "max", "softmax", "log_softmax")},
    **{name: {"x": X2} for name in ("identity", *(name for name, _ in ACTIVATION_FUNCTIONS))},
    **{
        name: {"input": ROWS, "target": [0, 1, 2]}
        for name in ("cross_entropy", "nll_loss", "multi_margin_loss")
    },
    **{name: {"input": ROWS, "target": np.ones(ROWS)} for name, _ in REGRESSION_LOSS},
}

ODD: list[Any] = [
    None, True, "x", "1", b"x", -1, 0, 2.5, 1j, float("nan"), float("inf"), 2**40, -(2**70),
    10**400, (), (1,), (1, 2, 3), (1,) * 8, ("a", "b"), ((1, 2), (3,)), [], [None], [1, 2],
    [[1, 2], [3, 4]], {}, object(), len, np.int64(3), np.float64(2.5), np.complex64(1),
    np.zeros(0), np.zeros((2, 2)), np.array(3), np.array(["a"]), np.array([1, 2]),
    Tensor(np.zeros((2, 3), np.float32)), Tensor(np.zeros((0, 3), np.float32)), Tensor([1, 2]),
    Tensor(np.zeros(X2)), Tensor(np.float32(1)),
]  # fmt: skip


PARAMETER = "a parameter"
OPTIMIZER = "an optimizer"
# What a layer, optimizer or schedule is made from.
MAKES: dict[str, dict[str, Any]] = {
    **{
        name: {"in_channels": 4, "out_channels": 4, "kernel_size": 3}
        for name in (f"{k}{d}d" for k in ("Conv", "ConvTranspose") for d in (1, 2, 3))
    },
    "LocallyConnected2d": {
        "in_channels": 2,
        "out_channels": 2,
        "input_size": (6, 6),
        "kernel_size": 3,
    },
    "Linear": {"in_features": 4, "out_features": 4},
    **{f"BatchNorm{d}d": {"num_features": 4} for d in (1, 2)},
    "GroupNorm": {"num_groups": 2, "num_channels": 4},
    "LayerNorm": {"normalized_shape": 4},
    "LocalResponseNorm": {"size": 3},
    **{f"{k}Pool{d}d": {"kernel_size": 2} for k in ("Max", "Avg", "Sum") for d in (1, 2, 3)},
    **{f"{k}Unpool{d}d": {"kernel_size": 2} for k in ("Max", "Avg", "Sum") for d in (1, 2, 3)},
    **{f"Adaptive{k}Pool{d}d": {"output_size": 2} for k in ("Max", "Avg") for d in (1, 2, 3)},
    "Residual": {"module": nn.ReLU()},
    **{
        name: {}
        for name in ("ELU", "GELU", "LeakyReLU", "PReLU", "Softplus", "Dropout", "Dropout2d",
                     "HuberLoss", "SmoothL1Loss", "KLDivLoss", "MSELoss", "CrossEntropyLoss",
                     "NLLLoss", "MultiMarginLoss")
    },
    **{
        name: {"params": PARAMETER}
        for name in ("Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "AMSGrad", "Lion", "Nadam",
                     "RMSprop")
    },
    "SGD": {"params": PARAMETER, "lr": 0.1},
    "EMA": {"optimizer": OPTIMIZER},
    "StepLR": {"optimizer": OPTIMIZER, "step_size": 3},
    "MultiStepLR": {"optimizer": OPTIMIZER, "milestones": [2, 4]},
    "ExponentialLR": {"optimizer": OPTIMIZER, "gamma": 0.9},
    "CosineAnnealingLR": {"optimizer": OPTIMIZER, "t_max": 5},
    "OneCycleLR": {"optimizer": OPTIMIZER, "max_lr": 0.1, "total_steps": 5},
    "ReduceLROnPlateau": {"optimizer": OPTIMIZER},
}  # fmt: skip
LARGE = 10**6  # a layer of so many channels would be made, and take its time


def test_every_function_is_in_the_table() -> None:
    assert set(CALLS) == set(F.__all__)


def arguments_of(name: str) -> list[str]:
    return list(inspect.signature(getattr(F, name)).parameters)


def call(name: str, **change: Any) -> Any:
    arguments = {
        k: tensor(*v) if isinstance(v, tuple) and k != "input_size" else v
        for k, v in CALLS[name].items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(F, name)(**{**arguments, **change})


def complaint(call: Callable[[], Any], arguments: list[str]) -> str:
    """What is wrong with the way a call is refused; nothing if it works."""
    try:
        call()
    except (ValueError, TypeError, DeviceError) as error:
        words = set(re.findall(r"\w+", str(error)))
        return "" if words & set(arguments) else repr(error)
    except Exception as error:
        return repr(error)
    return ""


@pytest.mark.parametrize("name", CALLS)
def test_odd_values_are_refused_by_name(name: str) -> None:
    call(name)
    for argument in arguments_of(name):
        for value in ODD:
            found = complaint(partial(call, name, **{argument: value}), arguments_of(name))
            assert not found, f"{argument}={value!r}"


def make(name: str, **change: Any) -> Any:
    p = Tensor(np.ones(3, np.float32), requires_grad=True)
    stand_ins: dict[str, Any] = {PARAMETER: lambda: [p], OPTIMIZER: lambda: optim.SGD([p], lr=0.1)}
    arguments = {
        k: stand_ins[v]() if isinstance(v, str) and v in stand_ins else v
        for k, v in MAKES[name].items()
    }
    return getattr(nn if hasattr(nn, name) else optim, name)(**{**arguments, **change})


@pytest.mark.parametrize("name", MAKES)
def test_what_layers_and_optimizers_refuse(name: str) -> None:
    make(name)
    kind = getattr(nn if hasattr(nn, name) else optim, name)
    arguments = list(inspect.signature(kind).parameters)
    for argument in arguments:
        for value in ODD:
            if isinstance(value, int) and value > LARGE and hasattr(nn, name):
                continue
            found = complaint(partial(make, name, **{argument: value}), arguments)
            assert not found, f"{argument}={value!r}"


@pytest.mark.parametrize("name", [n for n in CALLS if n not in ("identity", "concatenate")])
def test_arrays_that_are_no_tensors(name: str) -> None:
    """The commonest slip: a NumPy array where a Tensor belongs."""
    first = arguments_of(name)[0]
    if first == "indices":
        return
    with pytest.raises(TypeError, match=f"{first} must be a Tensor, got ndarray; gpucnn.Tensor"):
        call(name, **{first: randn(*CALLS[name][first])})
