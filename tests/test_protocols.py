"""NumPy, CuPy and PyTorch take a tensor's memory, and give theirs, without copies."""

from __future__ import annotations

import types

import numpy as np
import pytest

import gpucnn
from gpucnn import Tensor, from_dlpack
from gpucnn import functional as F
from tests.support import needs_torch, randn, torch


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8, np.bool_])
def test_numpy_shares_memory_both_ways(dtype: type) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    tensor = from_dlpack(array)
    assert (tensor.device, tensor.dtype, tensor.shape) == ("cpu", dtype, (2, 3))
    assert np.shares_memory(tensor.data, array)
    back = np.from_dlpack(tensor)
    assert np.shares_memory(back, array)
    assert np.shares_memory(np.asarray(tensor), array)
    assert tensor.__dlpack_device__() == (1, 0)


@needs_torch
def test_torch_shares_memory_both_ways() -> None:
    theirs = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    ours = from_dlpack(theirs, requires_grad=True)
    theirs[1, 2] = 70
    assert ours.numpy()[1, 2] == 70
    assert ours.requires_grad
    again = torch.from_dlpack(Tensor(np.ones((2, 2), np.float32)))
    assert again.sum() == 4
    weights = gpucnn.nn.Linear(3, 2).weight
    torch.from_dlpack(weights)[...] = 0.25
    assert (weights.numpy() == 0.25).all()
    halves = torch.ones(3, dtype=torch.float64)[::2].to(torch.float16)
    assert from_dlpack(halves).dtype == np.float32


def test_the_emulated_device_takes_what_lies_on_the_host() -> None:
    with gpucnn.use_device("emulated"):
        tensor = from_dlpack(randn(3))
        assert tensor.device == "emulated"
        assert F.relu(tensor).shape == (3,)


def test_what_cannot_be_taken_is_refused() -> None:
    with pytest.raises(TypeError, match="data must be an array that DLPack takes"):
        from_dlpack([1.0])
    with pytest.raises(TypeError, match="data must be numbers"):
        from_dlpack(np.ones(2, np.complex64))
    stored = F.to_bfloat16(Tensor(randn(2, 3)))
    with pytest.raises(BufferError, match="bfloat16 is handed on by"):
        np.from_dlpack(stored)
    with pytest.raises(AttributeError, match="on 'cpu' has no __cuda_array_interface__"):
        stored.__cuda_array_interface__  # noqa: B018
    assert not hasattr(Tensor([1.0]), "__cuda_array_interface__")
    assert np.asarray(stored).dtype == np.float32


def test_numpy_functions_take_tensors() -> None:
    a, b = randn(2, 3), randn(2, 3, seed=1)
    x, y = Tensor(a), Tensor(b, requires_grad=True)
    for made, expected in (
        (np.stack([x, y]), np.stack([a, b])),
        (np.concatenate((x, b), axis=1), np.concatenate((a, b), axis=1)),
        (np.mean(x), np.mean(a)),
        (np.sum(x, axis=0), np.sum(a, axis=0)),
        (np.exp(x), np.exp(a)),
        (np.add(x, y), a + b),
        (np.maximum(b, x), np.maximum(a, b)),
        (np.where(x, y, 0), np.where(a, b, 0)),
        (np.add.reduce(x), a.sum(axis=0)),
        (np.multiply(b, x), a * b),
    ):
        assert not isinstance(made, Tensor)
        assert np.array_equal(made, expected)
    out = np.empty((2, 3), np.float32)
    assert np.negative(x, out=out) is out
    np.testing.assert_allclose(x, a)


def test_numbers_of_numpy_leave_operators_to_the_tensor() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    for made, expected in (
        (np.float32(3) * x, [3, 6]),
        (np.float64(3) + x, [4, 5]),
        (np.int64(3) - x, [2, 1]),
        (x * np.float32(3), [3, 6]),
    ):
        assert isinstance(made, Tensor)
        assert made.requires_grad
        assert made.numpy().tolist() == expected


def test_a_gpus_memory_is_not_copied_by_accident(cuda_path: types.ModuleType) -> None:
    tensor = Tensor(randn(2, 3), device="cuda")
    with pytest.raises(TypeError, match="is no NumPy array"):
        np.asarray(tensor)


@pytest.mark.gpu
def test_cupy_and_torch_share_memory_of_the_gpu() -> None:
    import cupy

    tensor = Tensor(randn(2, 3), device="cuda")
    assert cupy.asarray(tensor).data.ptr == tensor.data.data.ptr
    again = from_dlpack(cupy.from_dlpack(tensor))
    assert again.device == "cuda"
    assert again.data.data.ptr == tensor.data.data.ptr
    assert float(np.sum(tensor)) == pytest.approx(float(tensor.numpy().sum()), rel=1e-5)
    if torch is not None and torch.cuda.is_available():
        assert torch.from_dlpack(tensor).data_ptr() == tensor.data.data.ptr


def test_what_numpy_would_write_into_a_widened_copy_is_refused() -> None:
    stored = F.to_bfloat16(Tensor(randn(2, 3)))
    for write in (
        lambda: np.copyto(stored, randn(2, 3)),
        lambda: np.exp(randn(2, 3), out=stored),
        lambda: np.add.at(stored, 0, 1.0),
        lambda: np.sum(randn(2, 3), axis=0, out=stored),
    ):
        with pytest.raises(TypeError, match="bfloat16 is handed on by"):
            write()
    with pytest.raises(ValueError, match="uncopied"):
        np.array(stored, copy=False)
    with pytest.raises(ValueError, match="uncopied"):
        np.array(Tensor([1.0]), np.float64, copy=False)
    assert np.array(Tensor([1.0]), copy=False) == 1


@needs_torch
def test_numbers_that_numpy_lacks_are_a_type_error() -> None:
    with pytest.raises(TypeError, match="an array that DLPack takes"):
        from_dlpack(torch.ones(2, dtype=torch.bfloat16))
