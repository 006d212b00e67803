"""Inputs, tolerances and comparisons that every test file uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

import gpucnn
from bench.tolerances import BARS
from gpucnn import Tensor
from gpucnn.bfloat16 import is_bfloat16, narrowed, widened
from gpucnn.device import to_device, to_host
from gpucnn.primitive import Primitive

try:
    import torch
except ImportError:  # a second opinion, not needed to run the kernels on a GPU
    torch = None  # type: ignore[assignment]

if torch is not None:  # its threads wait for each other longer than these small cases take
    torch.set_num_threads(1)

# Of the cases that Hypothesis draws beside an operator's fixed table.
hundreds = settings(max_examples=200)

needs_torch = pytest.mark.skipif(torch is None, reason="needs PyTorch")
needs_onnx = pytest.mark.skipif(find_spec("onnx") is None, reason="needs onnx")
needs_onnxruntime = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="needs onnxruntime"
)


def assert_close(actual: Any, expected: Any, bar: str, terms: int = 1, what: str = "") -> None:
    """Compare shape, and values by a bar of the table; NaN and infinity must match in place."""
    actual, expected = np.asarray(to_host(actual)), np.asarray(to_host(expected))
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    limit = BARS[bar]
    np.testing.assert_allclose(
        actual.astype(np.float64),
        expected.astype(np.float64),
        rtol=limit.rtol,
        atol=limit.atol * np.sqrt(terms),
        equal_nan=True,
        err_msg=what,
    )


def randn(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Standard normal numbers."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def distinct(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Shuffled equally spaced numbers in [-1, 1], none of them 0: no ties and no kinks."""
    n = int(np.prod(shape))
    values = (2 * np.arange(n) + 1 - n + (n % 2) * 0.5) / n
    return np.random.default_rng([seed, *shape]).permutation(values).reshape(shape).astype(dtype)


def tf32(a: np.ndarray) -> np.ndarray:
    """The nearest numbers with 10 bits of mantissa, halves away from zero, by arithmetic."""
    mantissa, exponent = np.frexp(a.astype(np.float64))
    rounded = np.sign(mantissa) * np.floor(np.abs(mantissa) * 2**11 + 0.5)
    return np.ldexp(rounded, exponent - 11).astype(np.float32)


def on(device: str, *arrays: np.ndarray | None) -> list[Any]:
    """The arrays as arrays of a device; None passes."""
    return [None if a is None else to_device(a, device) for a in arrays]


def check_kernel(
    primitive: Primitive,
    device: str,
    arrays: Sequence[np.ndarray | None],
    *rest: Any,
    terms: int = 1,
    bar: str = "float32",
) -> None:
    """Run a primitive's kernel on ``device`` and compare it with its definition in float64."""
    wide = [a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a for a in arrays]
    expected = primitive.definition(*wide, *rest)
    actual = primitive.on(device)(*on(device, *arrays), *rest)
    if not isinstance(expected, tuple):
        expected, actual = (expected,), (actual,)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if e is None:  # an output that was not asked for
            assert a is None
            continue
        exact = np.asarray(to_host(e)).dtype.kind != "f"
        assert_close(a, e, "exact" if exact else bar, terms, f"{primitive.name}, output {i}")


def check_stored(
    primitive: Primitive,
    device: str,
    arrays: Sequence[np.ndarray | None],
    *rest: Any,
    stored: Sequence[int] = (0,),
    terms: int = 1,
) -> None:
    """:func:`check_kernel` with these of the arrays in bfloat16, where the others are float32."""
    given = [narrowed(a) if a is not None and i in stored else a for i, a in enumerate(arrays)]
    wide = [
        a.astype(np.float64) if a is not None and a.dtype.kind == "f" else a
        for a in (widened(a) if a is not None and is_bfloat16(a) else a for a in given)
    ]
    expected = primitive.definition(*wide, *rest)
    actual = primitive.on(device)(*on(device, *given), *rest)
    if not isinstance(expected, tuple):
        expected, actual = (expected,), (actual,)
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if e is None:
            assert a is None
            continue
        what = f"{primitive.name}, output {i}"
        bar = "long sum" if np.asarray(e).dtype.kind == "f" else "exact"
        if i in (primitive.stores or ()):
            assert is_bfloat16(a), f"{what} is {a.dtype}"
            a, bar = widened(to_host(a)), "bfloat16 storage"
        assert_close(a, e, bar, terms, what)


def gradients(
    fn: Callable[..., Tensor], arrays: Sequence[np.ndarray], dy: np.ndarray, device: str = "cpu"
) -> tuple[np.ndarray, list[np.ndarray]]:
    """(y, gradient of each array) of ``fn`` for the output gradient ``dy``."""
    tensors = [gpucnn.Tensor(a, requires_grad=True, device=device) for a in arrays]
    y = fn(*tensors)
    y.backward(dy)
    return y.numpy(), [t.grad.numpy() for t in tensors if t.grad is not None]
