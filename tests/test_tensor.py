"""Tensor, the tape and gradcheck."""

from __future__ import annotations

import gc
import inspect
import weakref
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn import Function, Tensor
from gpucnn import functional as F
from gpucnn.device import DeviceError
from tests.support import distinct, randn


class Square(Function):
    def forward(self, x: Any) -> Any:
        self.x = x
        return x * x

    def backward(self, dy: Any) -> tuple[Any]:
        return (2 * self.x * dy,)


class Split(Function):
    """Two outputs, so that one of them can stay unused."""

    def forward(self, x: Any) -> Any:
        return x * 2, x * 3

    def backward(self, da: Any, db: Any) -> tuple[Any]:
        return ((0 if da is None else 2 * da) + (0 if db is None else 3 * db),)


def leaf(*values: float) -> Tensor:
    return Tensor(np.array(values), requires_grad=True)


def test_gradients_add_up_over_fan_out() -> None:
    x = leaf(1.0, 2.0, 3.0)
    y = Square.apply(x)
    z = F.add(F.add(y, y), x)
    z.backward(np.array([1.0, 10.0, 100.0]))
    np.testing.assert_array_equal(x.grad.numpy(), [5.0, 90.0, 1300.0])


def test_diamond_visits_each_function_once() -> None:
    x = leaf(3.0)
    y = x
    for _ in range(40):
        y = F.add(y, y)
    y.backward()
    assert x.grad.item() == 2.0**40


def test_leaf_gradients_accumulate_over_calls_without_aliasing() -> None:
    a, b = leaf(1.0), leaf(2.0)
    F.add(a, b).backward()
    F.add(a, a).backward()
    assert a.grad.item() == 3.0
    assert b.grad.item() == 1.0


def test_unused_output() -> None:
    x = leaf(1.0)
    _, b = Split.apply(x)
    b.backward()
    assert x.grad.item() == 3.0


class Fails(Square):
    def backward(self, dy: Any) -> tuple[Any]:
        raise MemoryError("no room for dx")


def test_a_failed_backward_pass_keeps_no_memory() -> None:
    """Whoever tries again with a smaller batch finds the memory of the first one free."""
    middle = Fails.apply(Tensor([1.0, 2.0], requires_grad=True))
    loss = Square.apply(middle).sum()
    record = weakref.ref(middle._creator)
    gc.disable()
    try:
        with pytest.raises(MemoryError):
            loss.backward()
        del middle, loss
        assert record() is None
    finally:
        gc.enable()


def test_records_are_freed() -> None:
    x = leaf(2.0)
    y = Square.apply(x)
    z = Square.apply(y)
    creator = y._creator
    z.backward()
    assert not hasattr(creator, "x")
    with pytest.raises(RuntimeError, match="freed by an earlier backward"):
        z.backward()


def test_no_grad_and_detach_record_nothing() -> None:
    x = leaf(2.0)
    with gpucnn.no_grad():
        y = Square.apply(x)
    assert not y.requires_grad
    assert y._creator is None
    assert not Square.apply(x).detach().requires_grad
    with pytest.raises(RuntimeError, match="requires_grad"):
        y.backward()


def test_deep_graphs_do_not_overflow_the_stack() -> None:
    x = leaf(1.0)
    y = x
    one = Tensor(np.array([1.0]))
    for _ in range(5000):
        y = F.add(y, one)
    y.backward()
    assert x.grad.item() == 1.0


def test_reshape() -> None:
    x = Tensor(randn(2, 3, 4, dtype=float), requires_grad=True)
    assert x.reshape(2, -1).shape == (2, 12)
    assert gpucnn.gradcheck(lambda t: t.reshape(4, 6), [x])
    assert x.reshape((4, -1)).shape == x.reshape([4, np.int64(6)]).shape == (4, 6)
    for sizes in [(5, 5), (-1, -1), (-2, -12), (5, -1)]:
        with pytest.raises(ValueError, match="shape: cannot reshape"):
            x.reshape(sizes)
    for bad in (2.5, "24", None, (2, 12.0)):
        with pytest.raises(TypeError, match="shape must be integers"):
            x.reshape(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "dtype"),
    [
        ([1, 2], np.int32),
        ([1.5, 2], np.float32),
        (np.zeros(2, np.float16), np.float32),
        (np.zeros(2, np.float64), np.float64),
        (np.zeros(2, np.int64), np.int32),
        (np.zeros(2, np.uint8), np.uint8),
        (True, np.bool_),
    ],
)
def test_dtypes(data: Any, dtype: Any) -> None:
    assert Tensor(data).dtype == dtype


def test_arrays_are_made_contiguous_not_copied_otherwise() -> None:
    a = randn(3, 4)
    assert Tensor(a).data is a
    assert Tensor(a.T).data.flags.c_contiguous
    np.testing.assert_array_equal(Tensor(a.T).numpy(), a.T)
    assert Tensor(2.5).shape == ()


def test_bad_data() -> None:
    with pytest.raises(TypeError, match="data must be numbers"):
        Tensor(["a"])
    with pytest.raises(ValueError, match="must fit int32"):
        Tensor([2**40])
    with pytest.raises(TypeError, match="requires_grad needs float"):
        Tensor([1], requires_grad=True)
    with pytest.raises(ValueError, match="device must be one of"):
        Tensor([1.0], device="tpu")
    with pytest.raises(ValueError, match="needs grad"):
        leaf(1.0, 2.0).backward()
    with pytest.raises(ValueError, match="grad must have shape"):
        leaf(1.0, 2.0).backward([1.0])
    with pytest.raises(ValueError, match="one element"):
        leaf(1.0, 2.0).item()


def test_cuda_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    if gpucnn.cuda_available():
        pytest.skip("a GPU works here")
    with pytest.raises(DeviceError, match=r"'cuda' cannot be used: (no NVIDIA driver|CuPy)"):
        Tensor([1.0], device="cuda")


def test_what_has_another_librarys_dtype_is_array_like() -> None:
    class Foreign:
        dtype = "foreign.float64"

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.array([1.5, 2.5])

    assert Tensor(Foreign()).dtype == np.float32
    assert Tensor(Foreign()).numpy().tolist() == [1.5, 2.5]


def test_numpy_takes_a_tensor() -> None:
    t = leaf(1.0, 2.0)
    assert np.asarray(t) is t.data
    assert np.asarray(t, np.int8).tolist() == [1, 2]
    copied = np.array(t)
    copied[0] = 9
    assert t.numpy().tolist() == [1, 2]


@pytest.mark.parametrize("shape", [(1,), (7,), (64,), (3, 5, 4, 2), (2000,)])
def test_inputs_of_gradchecks_keep_clear_of_ties_and_kinks(shape: tuple[int, ...]) -> None:
    """Distinct, and away from 0: a step of a difference quotient changes no winner and no sign."""
    values = np.sort(distinct(*shape, dtype=np.float64).reshape(-1))
    step = inspect.signature(gpucnn.gradcheck).parameters["eps"].default
    assert np.abs(values).min() > 10 * step
    assert values.size == 1 or np.diff(values).min() > 20 * step


def test_gradcheck_finds_a_wrong_gradient() -> None:
    class Wrong(Square):
        def backward(self, dy: Any) -> tuple[Any]:
            return (2.01 * self.x * dy,)

    x = Tensor(randn(5, dtype=float) + 3, requires_grad=True)
    assert gpucnn.gradcheck(Square.apply, [x])
    with pytest.raises(AssertionError, match=r"inputs\[0\], element"):
        gpucnn.gradcheck(Wrong.apply, [Tensor(x.numpy() * 10, requires_grad=True)])
    with pytest.raises(ValueError, match="must be float64"):
        gpucnn.gradcheck(Square.apply, [Tensor([1.0], requires_grad=True)])
    with pytest.raises(ValueError, match="one at least must have requires_grad"):
        gpucnn.gradcheck(Square.apply, [Tensor([1.0])])
