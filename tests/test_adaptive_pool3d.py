"""Adaptive and global pooling of volumes and sequences: loops -> definition; PyTorch; devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from bench.cases import ADAPTIVE_POOL3D
from gpucnn import Tensor, nn
from gpucnn import functional as F
from tests.support import assert_close, distinct, gradients, needs_torch, randn, torch
from tests.test_adaptive_pool2d import VALUES

cases = pytest.mark.parametrize(("shape", "output_size"), ADAPTIVE_POOL3D, ids=str)
values = pytest.mark.parametrize("kind", VALUES)


def resolved(shape: Any, output_size: Any) -> tuple[int, ...]:
    wanted = output_size if isinstance(output_size, tuple) else (output_size,) * 3
    return tuple(n if w is None else w for w, n in zip(wanted, shape[1:4], strict=True))


def region(size: tuple[int, ...], outputs: tuple[int, ...], at: tuple[int, ...]) -> list[Any]:
    """The cells (d, h, w) of one region, in raster order."""
    axes = [
        range(int(np.floor(o * n / m)), int(np.ceil((o + 1) * n / m)))
        for o, n, m in zip(at, size, outputs, strict=True)
    ]
    return [(d, h, w) for d in axes[0] for h in axes[1] for w in axes[2]]


def avg_loops(x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, dx = np.zeros(dy.shape), np.zeros(x.shape)
    for at in np.ndindex(dy.shape[1:4]):
        cells = region(x.shape[1:4], dy.shape[1:4], at)
        for cell in cells:
            y[(slice(None), *at)] += x[(slice(None), *cell)] / len(cells)
            dx[(slice(None), *cell)] += dy[(slice(None), *at)] / len(cells)
    return y, dx


def max_loops(x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y, indices, dx = np.zeros(dy.shape), np.zeros(dy.shape, np.int32), np.zeros(x.shape)
    for n, *at, c in np.ndindex(dy.shape):
        cells = region(x.shape[1:4], dy.shape[1:4], tuple(at))
        best, winner = -np.inf, cells[0]
        for cell in cells:
            value = x[(n, *cell, c)]
            if value > best or np.isnan(value):
                best, winner = value, cell
        y[(n, *at, c)] = best
        indices[(n, *at, c)] = (winner[0] * x.shape[2] + winner[1]) * x.shape[3] + winner[2]
        dx[(n, *winner, c)] += dy[(n, *at, c)]
    return y, indices, dx


@cases
def test_avg_is_the_rule(shape: Any, output_size: Any) -> None:
    outputs = resolved(shape, output_size)
    x = randn(*shape, dtype=np.float64)
    dy = randn(shape[0], *outputs, shape[4], seed=1, dtype=np.float64)
    expected, dx = avg_loops(x, dy)
    y, (actual,) = gradients(lambda t: F.adaptive_avg_pool3d(t, output_size), [x], dy)
    assert_close(y, expected, "float64", x[0].size)
    assert_close(actual, dx, "float64", dy.size)


@values
@cases
def test_max_is_the_rule(shape: Any, output_size: Any, kind: str) -> None:
    outputs = resolved(shape, output_size)
    x = VALUES[kind](*shape).astype(np.float64)
    dy = randn(shape[0], *outputs, shape[4], seed=1, dtype=np.float64)
    expected = max_loops(x, dy)
    t = Tensor(x, requires_grad=True)
    y, indices = F.adaptive_max_pool3d(t, output_size, return_indices=True)
    y.backward(dy)
    assert indices.dtype == np.int32
    assert_close(y.numpy(), expected[0], "exact")
    assert_close(indices.numpy(), expected[1], "exact")
    assert_close(t.grad.numpy(), expected[2], "float64", dy.size)


@cases
def test_devices_agree(shape: Any, output_size: Any, kernel_device: str) -> None:
    dy = randn(shape[0], *resolved(shape, output_size), shape[4], seed=1)
    x = randn(*shape)
    expected, (dx,) = gradients(lambda t: F.adaptive_avg_pool3d(t, output_size), [x], dy)
    y, (actual,) = gradients(
        lambda t: F.adaptive_avg_pool3d(t, output_size), [x], dy, kernel_device
    )
    assert_close(y, expected, "float32", x[0].size)
    assert_close(actual, dx, "float32", dy.size)
    for make in VALUES.values():
        x = make(*shape).astype(np.float32)
        results = []
        for device in ("cpu", kernel_device):
            t = Tensor(x, requires_grad=True, device=device)
            y, indices = F.adaptive_max_pool3d(t, output_size, return_indices=True)
            y.backward(dy)
            results.append((y.numpy(), indices.numpy(), t.grad.numpy()))
        assert_close(results[1][0], results[0][0], "exact")
        assert_close(results[1][1], results[0][1], "exact")
        assert_close(results[1][2], results[0][2], "float32", dy.size)


@cases
def test_gradcheck(shape: Any, output_size: Any) -> None:
    x = Tensor(distinct(1, *shape[1:4], min(shape[4], 2), dtype=np.float64), requires_grad=True)
    assert gpucnn.gradcheck(lambda t: F.adaptive_avg_pool3d(t, output_size), [x])
    assert gpucnn.gradcheck(lambda t: F.adaptive_max_pool3d(t, output_size), [x])
    assert gpucnn.gradcheck(F.global_avg_pool3d, [x])
    assert gpucnn.gradcheck(F.global_max_pool3d, [x])


@pytest.mark.parametrize("pool", ["adaptive_max", "adaptive_avg", "global_max", "global_avg"])
def test_gradcheck_of_sequences(pool: str) -> None:
    x = Tensor(distinct(2, 7, 3, dtype=np.float64), requires_grad=True)
    size = (3,) if pool.startswith("adaptive") else ()
    assert gpucnn.gradcheck(lambda t: getattr(F, f"{pool}_pool1d")(t, *size), [x])


@needs_torch
@pytest.mark.parametrize("dims", [1, 3])
@given(data=st.data())
def test_agrees_with_pytorch(dims: int, data: st.DataObject) -> None:
    draw, side = data.draw, st.integers(1, 6)
    size = tuple(draw(side) for _ in range(dims))
    outputs = tuple(draw(side) for _ in range(dims))
    kind = draw(st.sampled_from(list(VALUES)))
    x = VALUES[kind](draw(st.integers(1, 2)), *size, draw(st.sampled_from([1, 3, 4])))
    x = x.astype(np.float32)
    dy = randn(x.shape[0], *outputs, x.shape[-1], seed=2)
    tdy = torch.tensor(np.moveaxis(dy, -1, 1).copy())

    def back(t: Any) -> np.ndarray:
        return np.ascontiguousarray(np.moveaxis(t.detach().numpy(), 1, -1))

    tx = torch.tensor(np.moveaxis(x, -1, 1).copy(), requires_grad=True)
    ty, ti = getattr(torch.nn.functional, f"adaptive_max_pool{dims}d")(
        tx, outputs, return_indices=True
    )
    ty.backward(tdy)
    t = Tensor(x, requires_grad=True)
    y, indices = getattr(F, f"adaptive_max_pool{dims}d")(t, outputs, return_indices=True)
    y.backward(dy)
    assert_close(y.numpy(), back(ty), "exact")
    assert_close(indices.numpy(), back(ti), "exact")
    assert_close(t.grad.numpy(), back(tx.grad), "torch", dy.size)

    tx.grad = None
    ty = getattr(torch.nn.functional, f"adaptive_avg_pool{dims}d")(tx, outputs)
    ty.backward(tdy)
    y, (dx,) = gradients(lambda v: getattr(F, f"adaptive_avg_pool{dims}d")(v, outputs), [x], dy)
    if kind != "special":  # where infinities meet, NaN comes of the order of additions
        assert_close(y, back(ty), "torch", 216)
    assert_close(dx, back(tx.grad), "torch", dy.size)


def test_sequences(device: str) -> None:
    """Five places to three: 0-1, 1-3, 3-4. The first of equal maxima has the gradient."""
    x = Tensor(np.array([1, 9, 6, 9, 5], np.float32).reshape(1, 5, 1), device=device)
    assert F.adaptive_avg_pool1d(x, 3).numpy().reshape(-1).tolist() == [5, 8, 7]
    y, indices = F.adaptive_max_pool1d(x, (3,), return_indices=True)
    assert y.numpy().reshape(-1).tolist() == [9, 9, 9]
    assert indices.numpy().reshape(-1).tolist() == [1, 1, 3]
    assert F.adaptive_avg_pool1d(x, (None,)).numpy().tolist() == x.numpy().tolist()
    assert F.global_max_pool1d(x).numpy().tolist() == [[9]]
    assert F.global_avg_pool1d(x).numpy().tolist() == [[6]]


@pytest.mark.parametrize("dims", [1, 3])
def test_global(dims: int, device: str) -> None:
    """(N, C); equal cells send the gradient to the first; a NaN is not lost."""
    size = (3, 2, 5)[-dims:]
    x = np.zeros((2, *size, 4), np.float32)
    flat = x.reshape(2, -1, 4)
    flat[1, 3, 2] = np.nan
    largest, mean = getattr(F, f"global_max_pool{dims}d"), getattr(F, f"global_avg_pool{dims}d")
    y, (dx,) = gradients(largest, [x], np.ones((2, 4), np.float32), device)
    expected = np.zeros(flat.shape)
    expected[:, 0] = 1
    expected[1, 0, 2], expected[1, 3, 2] = 0, 1
    assert_close(dx.reshape(flat.shape), expected, "exact")
    assert np.isnan(y).sum() == 1
    y, (dx,) = gradients(mean, [x], np.ones((2, 4), np.float32), device)
    assert y.shape == (2, 4)
    assert np.isnan(y[1, 2])
    assert_close(dx, np.full(x.shape, 1 / np.prod(size)), "float32")


def test_the_first_of_equal_cells_in_depth_order(device: str) -> None:
    """An equal maximum in a later plane, but an earlier row, does not win."""
    x = np.zeros((1, 2, 3, 3, 1), np.float32)
    x[0, 0, 2, 1], x[0, 1, 0, 0] = 5, 5
    _, indices = F.adaptive_max_pool3d(Tensor(x, device=device), 1, return_indices=True)
    assert indices.numpy().item() == 7
    x[0, 0, 1, 1] = x[0, 1, 0, 2] = np.nan
    y, indices = F.adaptive_max_pool3d(Tensor(x, device=device), 1, return_indices=True)
    assert np.isnan(y.numpy()).all()
    assert indices.numpy().item() == 9 + 2


def test_layers() -> None:
    row, volume = Tensor(randn(2, 9, 3)), Tensor(randn(2, 4, 5, 7, 3))
    for dims, x in ((1, row), (3, volume)):
        axes = tuple(range(1, dims + 1))
        assert getattr(nn, f"AdaptiveAvgPool{dims}d")(2)(x).shape == (2, *(2,) * dims, 3)
        y, indices = getattr(nn, f"AdaptiveMaxPool{dims}d")((2,) * dims, return_indices=True)(x)
        assert y.shape == indices.shape == (2, *(2,) * dims, 3)
        average, largest = (getattr(nn, f"Global{k}Pool{dims}d")() for k in ("Avg", "Max"))
        assert_close(average(x).numpy(), x.numpy().mean(axes), "float32", 140)
        assert_close(largest(x).numpy(), x.numpy().max(axes), "exact")
    assert repr(nn.AdaptiveMaxPool1d(4)) == "AdaptiveMaxPool1d(output_size=4)"
    assert repr(nn.GlobalAvgPool3d()) == "GlobalAvgPool3d()"


def test_receptive_fields() -> None:
    field = gpucnn.receptive_field(
        nn.Sequential(nn.Conv1d(1, 1, 2), nn.AdaptiveAvgPool1d(2)), (9, 1)
    )
    assert field.cells(1) == (slice(4, 9),)
    assert gpucnn.receptive_field(nn.GlobalMaxPool3d(), (3, 4, 5, 1)).size == (3, 4, 5)


X1, X3 = (2, 6, 4), (2, 3, 4, 5, 4)


@pytest.mark.parametrize(
    ("dims", "x", "output_size", "error", "match"),
    [
        (1, (6, 4), 2, ValueError, r"x must have shape \(N, W, C\)"),
        (1, (2, 0, 4), 2, ValueError, "x must not be empty"),
        (1, X1, (1, 2), ValueError, "output_size must be an int or one int"),
        (1, X1, 0, ValueError, "output_size must be >= 1"),
        (1, X1, 2**29, ValueError, "output_size: 536870912 regions of 6 cells"),
        (3, (6, 5, 4), 2, ValueError, r"x must have shape \(N, D, H, W, C\)"),
        (3, (2, 3, 0, 5, 4), 2, ValueError, "x must not be empty"),
        (3, X3, 0, ValueError, "output_size must be >= 1"),
        (3, X3, (1, 2), ValueError, "output_size must be an int or 3 ints"),
        (3, X3, (1, 2.5, 1), TypeError, "output_size must be an integer"),
        (3, X3, (2**30, 1, 1), ValueError, "output_size: 1073741824 regions of 3 cells"),
    ],
)
def test_bad_arguments(
    dims: int, x: Any, output_size: Any, error: type[Exception], match: str
) -> None:
    for name in ("max", "avg"):
        with pytest.raises(error, match=match):
            getattr(F, f"adaptive_{name}_pool{dims}d")(Tensor(np.zeros(x, np.float32)), output_size)
        if "output_size" not in match:
            with pytest.raises(error, match=match):
                getattr(F, f"global_{name}_pool{dims}d")(Tensor(np.zeros(x, np.float32)))


@pytest.mark.parametrize(("dims", "shape"), [(1, X1), (3, X3)])
def test_bad_dtype(dims: int, shape: Any) -> None:
    x = Tensor(np.zeros(shape, np.int32))
    for name in ("max", "avg"):
        with pytest.raises(TypeError, match="x must be float32"):
            getattr(F, f"global_{name}_pool{dims}d")(x)
        with pytest.raises(TypeError, match="x must be float32"):
            getattr(F, f"adaptive_{name}_pool{dims}d")(x, 1)
