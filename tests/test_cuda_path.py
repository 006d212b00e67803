"""The Python side of the ``cuda`` device, without a GPU: a stand-in for CuPy, emulated kernels.

What this shows: arguments reach CuPy in the form it needs, every array stays on its device, and no
arithmetic but that of our kernels happens. What it cannot show: that the kernels run on a GPU.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types

import numpy as np
import pytest

import gpucnn
from gpucnn import functional as F
from gpucnn import kernel, models, nn
from gpucnn.device import DeviceError
from gpucnn.kernel import FILES
from gpucnn.optim import (
    EMA,
    SGD,
    AdamW,
    Nadam,
    Optimizer,
    RMSprop,
    clip_grad_norm_,
    clip_grad_value_,
)
from gpucnn.startup import compile_at_import
from tests import fake_cupy
from tests.support import assert_close, randn
from tests.test_emulated_training import losses

pytestmark = [pytest.mark.emulated, pytest.mark.usefixtures("cuda_path")]


@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_training_gives_the_bits_of_the_emulated_device(optimizer: type[Optimizer]) -> None:
    before = fake_cupy.RawKernel.launches
    assert losses("cuda", optimizer) == losses("emulated", optimizer)
    assert fake_cupy.RawKernel.launches > before


def test_groups_clipping_and_averages() -> None:
    def train(device: str) -> list[np.ndarray]:
        params = [gpucnn.Tensor(randn(n), requires_grad=True, device=device) for n in (70, 5)]
        groups = [{"params": params[:1]}, {"params": params[1:], "centered": True, "momentum": 0.5}]
        optimizer = RMSprop(groups, lr=0.1)
        ema = EMA(optimizer, 0.5)
        for i, p in enumerate(params):
            p.backward(randn(p.size, seed=1 + i))
        norm = clip_grad_norm_(optimizer, 1.0)
        clip_grad_value_(params, 0.2)
        optimizer.step()
        ema.update()
        ema.apply()
        Nadam(params).step()
        return [norm.numpy(), *(p.numpy() for p in params)]

    for a, b in zip(train("cuda"), train("emulated"), strict=True):
        assert np.array_equal(a, b)


def test_tensor_operators() -> None:
    def compute(device: str) -> list[np.ndarray]:
        a, b, v = (
            gpucnn.Tensor(randn(*s), requires_grad=True, device=device)
            for s in [(6, 5), (5, 6), (5,)]
        )
        joined = F.concatenate([(a - v) * v + 1.5, a * a.mean(1, keepdims=True), -b.transpose()])
        columns = joined.reshape(3, 2, 15).max((0, 2)).mean() + joined.sum(0).max()
        total = columns + (a @ b).reshape(1, 36).sum() * 0.5
        total.backward()
        return [total.numpy(), *(t.grad.numpy() for t in (a, b, v) if t.grad is not None)]

    results = [compute(device) for device in ("cuda", "emulated", "cpu")]
    for cuda, emulated, cpu in zip(*results, strict=True):
        assert np.array_equal(cuda, emulated)
        assert_close(cuda, cpu, "torch", 36)


def test_checkpoints_and_inference() -> None:
    model = models.create("fashionnet").to("cuda").eval()
    state = model.state_dict()
    assert all(isinstance(value, np.ndarray) for value in state.values())
    model.load_state_dict(state)
    optimizer = AdamW(model.parameters())
    optimizer.load_state_dict(optimizer.state_dict())
    with gpucnn.no_grad():
        y = model(gpucnn.Tensor(randn(1, 28, 28, 1), device="cuda"))
    assert y.device == "cuda"
    assert y.numpy().shape == (1, 10)


POOL3D = nn.MaxPool3d(2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(2, 4, 3, padding=1, groups=2), (2, 5, 2)),
        (nn.Conv2d(3, 3, 3, padding="same", groups=3), (1, 4, 5, 3)),
        (nn.Conv3d(1, 2, 2, stride=2, bias=False), (1, 3, 2, 4, 1)),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1), (1, 2, 3, 2)),
        (nn.LocallyConnected2d(2, 3, (4, 3), 2), (2, 4, 3, 2)),
        (nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2), (1, 2, 1, 3, 2)),
        (nn.LocallyConnected2d(2, 4, (5, 4), 2, dilation=2, groups=2), (2, 5, 4, 2)),
        (nn.Sequential(nn.Conv2d(1, 33, 1), nn.GlobalMaxPool2d()), (1, 24, 13, 1)),
        (nn.Sequential(nn.Conv1d(1, 33, 1), nn.GlobalAvgPool1d()), (1, 300, 1)),
        (nn.Sequential(nn.Conv3d(2, 3, 1), POOL3D, POOL3D.inverse()), (1, 3, 4, 5, 2)),
        (nn.Sequential(nn.Conv3d(2, 3, 1), nn.AdaptiveMaxPool3d(2)), (1, 3, 4, 5, 2)),
    ],
    ids=repr,
)
def test_layers_give_the_bits_of_the_emulated_device(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    results = []
    for device in ("cuda", "emulated"):
        layer.to(device)
        x = gpucnn.Tensor(randn(*shape), requires_grad=True, device=device)
        y = layer(x)
        for parameter in layer.parameters():
            parameter.grad = None
        y.backward(randn(*y.shape, seed=1))
        grads = [t.grad.numpy().tobytes() for t in (x, *layer.parameters()) if t.grad is not None]
        results.append([y.numpy().tobytes(), *grads])
    assert len(results[0]) > 2
    assert results[0] == results[1]


def test_use_device_and_why() -> None:
    with gpucnn.use_device("cuda"):
        assert gpucnn.Tensor([1.0, 2.0]).device == "cuda"
        assert repr(gpucnn.Tensor([1.5])) == "Tensor([1.5], device='cuda')"
        assert gpucnn.Tensor(3.0).shape == ()
        with pytest.raises(TypeError, match="no NumPy array"):
            np.asarray(gpucnn.Tensor([1.0]))
    with pytest.raises(DeviceError, match="got cpu and cuda"):
        gpucnn.Tensor([1.0], device="cpu") + gpucnn.Tensor([1.0], device="cuda")


def test_every_default_kernel_compiles_in_threads() -> None:
    kernel.compile_all()


def test_an_import_survives_kernels_that_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: fake_cupy.RawKernel) -> None:
        raise OSError("no nvrtc\nand a long log")

    monkeypatch.setattr(fake_cupy.RawKernel, "compile", refuse)
    monkeypatch.delenv("GPUCNN_COMPILE")
    monkeypatch.delenv("GPUCNN_DEVICE", raising=False)
    with pytest.warns(RuntimeWarning, match=r"do not compile here \(OSError: no nvrtc\); gpucnn"):
        compile_at_import()
    monkeypatch.setenv("GPUCNN_COMPILE", "lazy")
    compile_at_import()


def test_a_gpu_without_nvrtc_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    cupy, cuda = fake_cupy.module(), types.ModuleType("cupy.cuda")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupy.cuda", cuda)
    monkeypatch.setattr(gpucnn.device, "driver_cuda_version", lambda: (13, 0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    trouble = gpucnn.device._cuda_trouble.__wrapped__
    assert "CuPy does not work here (ImportError: " in trouble()
    cuda.nvrtc = types.SimpleNamespace(getVersion=lambda: (13, 0))
    assert trouble() == ""


@pytest.mark.parametrize("value", ["1", "0"])
def test_waiting_after_each_launch(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """With GPUCNN_SYNC=1 a fault shows at the kernel that made it."""
    waits: list[int] = []
    stream = types.SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setattr(sys.modules["cupy"].cuda, "get_current_stream", lambda: stream)
    monkeypatch.setenv("GPUCNN_SYNC", value)
    arrays = (fake_cupy.asarray(randn(4, seed=i)) for i in range(3))
    FILES["elementwise"]["add"]((1,), (256,), *arrays, 4)
    assert len(waits) == int(value)


def test_numbers_are_wrapped_for_cupy_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []

    class Counted(fake_cupy.CNumpyArray):
        def __init__(self, value: np.ndarray) -> None:
            super().__init__(value)
            made.append(value)

    monkeypatch.setattr(sys.modules["cupy"].cuda.function, "CNumpyArray", Counted)
    add = dataclasses.replace(FILES["elementwise"]["add"])  # that has packed nothing yet
    a, b = (fake_cupy.asarray(randn(5, seed=i)) for i in (0, 1))
    for _ in range(3):
        add((1,), (256,), fake_cupy.empty((5,), np.float32), a, b, 5)
    assert made == [5]
    monkeypatch.setattr(sys.modules["cupy"].cuda, "function", None)  # another CuPy
    add((1,), (256,), fake_cupy.empty((4,), np.float32), a, b, 4)


def test_cupy_wraps_a_number_so_that_its_bytes_are_found() -> None:
    """With CuPy itself, which needs no GPU for it."""
    pytest.importorskip("cupy", reason="needs CuPy")
    run = "import ctypes, numpy as np, cupy.cuda.function as f;"
    run += "n = np.asarray(np.float32(1.5)); c = f.CNumpyArray(n);"
    run += "assert ctypes.string_at(c.ptr, 4) == n.tobytes()"
    subprocess.run([sys.executable, "-c", run], check=True)


def test_arrays_of_other_devices_are_refused() -> None:
    add = FILES["elementwise"]["add"]
    a, b = (fake_cupy.asarray(randn(4, seed=i)) for i in (0, 1))
    with pytest.raises(ValueError, match="must be on GPU 0, one is a NumPy array"):
        add((1,), (256,), a, b, randn(4), 4)
    elsewhere = fake_cupy.ndarray(randn(4), device=1)
    with pytest.raises(ValueError, match="must be on GPU 0, one is on GPU 1"):
        add((1,), (256,), a, b, elsewhere, 4)
