"""Convolutions of fewer products on the CPU: the same results as by the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gpucnn
from bench.tolerances import float32_bar
from gpucnn import functional as F
from gpucnn.gradcheck import gradcheck
from gpucnn.ops import conv2d, winograd, winograd_rows
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv_geometry import ConvGeometry
from tests.support import assert_close, randn

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]

CASES = {
    "whole tiles": ((2, 8, 4, 5), 3, 1),
    "tiles cut off": ((3, 7, 9, 4), 6, 1),
    "no padding": ((2, 6, 10, 3), 8, 0),
    "wide padding": ((1, 5, 6, 8), 7, 3),
    "one-sided padding": ((5, 6, 5, 9), 2, ((2, 0), (0, 1))),
    "less than a tile": ((4, 3, 3, 2), 4, 0),
    "tiles of padding": ((2, 3, 2, 3), 2, ((7, 0), (1, 9))),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(params=["tiles", "rows"])
def wherever_it_can(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the two ways, also where it costs more than it saves."""
    way = winograd if request.param == "tiles" else winograd_rows
    monkeypatch.setattr(
        conv2d, "_fewer_products", lambda s: way if winograd.is_plain_3x3(s) else None
    )
    return way


def by_definition(s: ConvGeometry) -> bool:
    return conv2d._fewer_products(s) is None


def problem(case: tuple[Any, ...], dtype: Any) -> tuple[ConvGeometry, Arrays]:
    shape, OC, padding = case
    x, w = randn(*shape, dtype=dtype), randn(OC, 3, 3, shape[3], seed=1, dtype=dtype)
    s = conv2d_geometry(x, w, None, 1, padding, 1, 1)
    return s, (x, w, randn(*s.y_shape, seed=2, dtype=dtype))


def formula(s: ConvGeometry, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> Arrays:
    """(y, dx, dw) in float64, one cell of the windows after the other."""
    x, w, dy = (a.astype(np.float64) for a in (x, w, dy))
    inside = np.s_[:, s.PT : s.PT + s.H, s.PL : s.PL + s.W]
    padded = np.zeros((s.N, s.OH + 2, s.OW + 2, s.C))
    padded[inside] = x
    y, dpadded, dw = np.zeros(dy.shape), np.zeros(padded.shape), np.zeros(w.shape)
    for kh, kw in np.ndindex(3, 3):
        cells = np.s_[:, kh : kh + s.OH, kw : kw + s.OW]
        y += padded[cells] @ w[:, kh, kw].T
        dpadded[cells] += dy @ w[:, kh, kw]
        dw[:, kh, kw] = np.tensordot(dy, padded[cells], ((0, 1, 2), (0, 1, 2)))
    return y, dpadded[inside], dw


def results(s: ConvGeometry, x: np.ndarray, w: np.ndarray, dy: np.ndarray) -> Arrays:
    return (
        conv2d_forward(x, w, None, s),
        conv2d_data_gradient(dy, w, s),
        conv2d_weight_gradient(dy, x, s),
    )


def check(s: ConvGeometry, arrays: Arrays, bar: str = "") -> None:
    assert not by_definition(s)
    terms = (9 * s.C, 9 * s.OC, s.outputs)
    for got, expected, n in zip(results(s, *arrays), formula(s, *arrays), terms, strict=True):
        assert_close(got, expected, bar or float32_bar(n), n)


@cases
def test_is_the_formula(case: Any, wherever_it_can: Any) -> None:
    check(*problem(case, np.float64), bar="float64")


@pytest.mark.parametrize("channels", [15, 16, 32, 64, 128])
def test_keeps_the_bar_of_float32(channels: int) -> None:
    """Where it is taken by itself."""
    check(*problem(((16, 12, 12, channels), channels, 1), np.float32))


@cases
def test_in_bands(case: Any, wherever_it_can: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images too large for the cache are cut: here each row of tiles is."""
    monkeypatch.setattr(wherever_it_can, "_UNIT", 1)
    check(*problem(case, np.float64), bar="float64")


def test_gradients(wherever_it_can: Any) -> None:
    x, w, b = (
        gpucnn.Tensor(randn(*n, dtype=np.float64)) for n in ((2, 5, 6, 2), (3, 3, 3, 2), (3,))
    )
    for t in (x, w, b):
        t.requires_grad = True
    assert gradcheck(lambda x, w, b: F.conv2d(x, w, b, padding=1), [x, w, b])


@pytest.mark.parametrize("bad", [np.inf, np.nan, 1.5e308])
@pytest.mark.parametrize("which", [0, 1, 2], ids=["x", "w", "dy"])
def test_what_is_not_finite_spoils_no_tile(
    bad: float, which: int, wherever_it_can: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of its tile, and of its batch, is as the formula has it."""
    s, arrays = problem(((4, 9, 9, 5), 3, 1), np.float64)
    arrays[which].reshape(-1)[100] = bad
    with np.errstate(all="ignore"):
        got = results(s, *arrays)
        monkeypatch.setattr(conv2d, "_fewer_products", lambda s: None)
        assert by_definition(s)
        expected = results(s, *arrays)
    for a, e, terms in zip(got, expected, (45, 27, s.outputs), strict=True):
        finite = np.isfinite(e)
        assert_close(a[~finite], e[~finite], "exact")
        assert_close(a[finite], e[finite], "float64", terms)
    assert not all(np.isfinite(e).all() for e in expected) or np.isfinite(bad)


@pytest.mark.parametrize("threads", ["2", "5"])
@pytest.mark.parametrize("channels", [16, 64])
def test_the_bits_do_not_depend_on_the_threads(
    channels: int, threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    s, arrays = problem(((7, 16, 16, channels), channels, 1), np.float32)
    assert conv2d._fewer_products(s) is (winograd if channels > 16 else winograd_rows)
    monkeypatch.setenv("GPUCNN_THREADS", "1")
    alone = [a.tobytes() for a in results(s, *arrays)]
    monkeypatch.setenv("GPUCNN_THREADS", threads)
    assert [a.tobytes() for a in results(s, *arrays)] == alone


def geometry(C: int, OC: int, size: int, **options: Any) -> ConvGeometry:
    kernel, groups = options.pop("kernel", 3), options.get("groups", 1)
    x, w = np.empty((32, size, size, C)), np.empty((OC, kernel, kernel, C // groups))
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1, **options}
    return conv2d_geometry(x, w, None, **options)


def test_each_way_is_taken_where_it_pays() -> None:
    for sizes in ((64, 64, 8), (32, 64, 7), (32, 32, 16), (256, 512, 56)):
        assert conv2d._fewer_products(geometry(*sizes)) is winograd
    for sizes in ((16, 16, 32), (16, 32, 14), (16, 32, 18)):
        assert conv2d._fewer_products(geometry(*sizes)) is winograd_rows
    assert by_definition(geometry(3, 16, 32)), "too few channels"
    for sizes in ((14, 512, 28), (512, 14, 28)):
        assert by_definition(geometry(*sizes)), "too few terms for such rounding"
    assert by_definition(geometry(16, 32, 1)), "mostly cells that are cut off"
    assert by_definition(geometry(512, 512, 4)), "mostly transforms of the filters"


@pytest.mark.parametrize(
    "options",
    [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"kernel": 5}, {"kernel": 1}],
    ids=str,
)
def test_other_convolutions_are_left_alone(options: dict[str, Any]) -> None:
    assert by_definition(geometry(64, 64, 16, **options))
