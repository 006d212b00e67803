"""Output sizes, counted window by window, and the checks of arguments that operators share."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

import gpucnn
from gpucnn.ops.geometry import (
    Geometry,
    choice,
    flag,
    host_array,
    integer,
    remembered,
    resolve_padding,
    sizes,
)


def test_conv_output_size_counts_the_places_of_the_window() -> None:
    for n, k, s, d, low, high in product(
        range(1, 7), range(1, 4), range(1, 4), (1, 2, 3), range(3), range(3)
    ):
        cells = range(-low, n + high)
        starts = range(-low, n + high, s)
        fits = [all(o + j * d in cells for j in range(k)) for o in starts]
        options = {"stride": s, "padding": (low, high), "dilation": d}
        if not any(fits):
            with pytest.raises(ValueError, match="kernel_size: a window of"):
                gpucnn.conv_output_size(n, k, **options)
        else:
            assert gpucnn.conv_output_size(n, k, **options) == sum(fits)


def test_conv_transpose_output_size_counts_the_cells_written() -> None:
    """From the first cell that a window writes to the last, less the padding."""
    for n, k, s, d, low, high in product(
        range(1, 5), range(1, 4), range(1, 4), (1, 2), range(3), range(3)
    ):
        written = {i * s + j * d for i in range(n) for j in range(k)}
        options = {"stride": s, "padding": (low, high), "dilation": d}
        for extra in range(max(s, d)):
            out = max(written) + 1 + extra - low - high
            if out < 1:
                with pytest.raises(ValueError, match="padding must leave an output"):
                    gpucnn.conv_transpose_output_size(n, k, output_padding=extra, **options)
            else:
                made = gpucnn.conv_transpose_output_size(n, k, output_padding=extra, **options)
                assert made == out


def test_same_padding_gives_an_output_per_stride_and_the_odd_cell_to_the_end() -> None:
    for n, k, s, d in product(range(1, 12), range(1, 6), range(1, 4), (1, 2)):
        ((low, high),) = resolve_padding("same", (n,), (k,), (s,), (d,))
        assert gpucnn.conv_output_size(n, k, stride=s, padding=(low, high), dilation=d) == -(
            -n // s
        )
        assert high - low in (0, 1)
        if low + high:  # no more than is needed
            assert (-(-n // s) - 1) * s + d * (k - 1) + 1 == n + low + high
    assert resolve_padding("same", (9,), (4,), (1,), (1,)) == ((1, 2),)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"size": 0}, ValueError, "size must be >= 1"),
        ({"size": 2.0}, TypeError, "size must be an integer"),
        ({"kernel_size": 0}, ValueError, "kernel_size must be >= 1"),
        ({"stride": 0}, ValueError, "stride must be >= 1"),
        ({"stride": True}, TypeError, "stride must be an integer"),
        ({"padding": -1}, ValueError, "padding must be >= 0"),
        ({"padding": (1, 2, 3)}, ValueError, "padding must be an int or a pair"),
        ({"padding": "same"}, TypeError, "padding must be an integer"),
        ({"dilation": 0}, ValueError, "dilation must be >= 1"),
    ],
)
def test_bad_sizes(options: Any, error: type[Exception], match: str) -> None:
    for function in (gpucnn.conv_output_size, gpucnn.conv_transpose_output_size):
        with pytest.raises(error, match=match):
            function(**{"size": 9, "kernel_size": 3, **options})


@pytest.mark.parametrize("extra", [-1, 2, 5])
def test_bad_output_padding(extra: int) -> None:
    with pytest.raises(ValueError, match="output_padding must be"):
        gpucnn.conv_transpose_output_size(4, 3, stride=2, output_padding=extra)


def test_checks() -> None:
    assert flag("bias", np.True_) is True
    assert choice("mode", "b", {"a": 1, "b": 2}) == "b"
    assert integer("n", np.int8(3), 0, 3) == 3
    assert sizes("stride", [1, np.int64(2)], 2) == (1, 2)
    assert host_array("target", [[1, 2]]).shape == (1, 2)
    for call, error, match in [
        (lambda: flag("bias", 1), TypeError, "bias must be True or False, got 1"),
        (lambda: choice("mode", "c", "ab"), ValueError, "mode must be one of a, b, got 'c'"),
        (lambda: choice("mode", ["a"], "ab"), ValueError, "mode must be one of"),
        (lambda: integer("n", 4, 0, 3), ValueError, "n must be at most 3, got 4"),
        (lambda: sizes("stride", 2**31, 2), ValueError, "stride must be at most"),
        (lambda: host_array("target", [[1], [2, 3]]), ValueError, "target must be an array"),
    ]:
        with pytest.raises(error, match=match):
            call()


def test_a_check_is_remembered_by_shapes_dtype_and_the_very_options() -> None:
    calls: list[Any] = []

    @remembered(arrays=slice(1, 3))
    def check(dims: int, a: Any, b: Any, step: Any) -> tuple[Any, ...]:
        calls.append(step)
        integer("step", step, 1)
        return dims, a.shape, step

    a, b = np.zeros((2, 3), np.float32), np.zeros(3, np.float32)
    pair = (1, 1)
    assert check(2, a, b, 1) == check(2, a + 1, b + 1, 1) == (2, (2, 3), 1)
    assert len(calls) == 1
    for other in ((3, a, b, 1), (2, a[:1], b, 1), (2, a, b[:2], 1), (2, a, None, 1), (2, a, b, 2)):
        assert check(*other) == check(*other) == (other[0], other[1].shape, other[3])
    assert len(calls) == 6
    check(2, a.astype(float), b.astype(float), 1)
    assert len(calls) == 7
    for _ in range(2):  # what a check refuses it does not return
        check(2, a, b.astype(float), 1)
    assert len(calls) == 8
    check(2, a, b, step=1)
    assert len(calls) == 9
    for wrong in (True, 1.0, [1], pair):
        for _ in range(2):
            with pytest.raises(TypeError, match="step must be an integer"):
                check(2, a, b, wrong)
    assert len(calls) == 17


@pytest.mark.parametrize("options", [{"stride": True}, {"padding": (True, 0)}, {"dilation": 1.0}])
def test_an_option_equal_to_a_right_one_is_refused_still(options: dict[str, Any]) -> None:
    x, w = (gpucnn.Tensor(np.zeros((1, 3, 3, 1), np.float32)) for _ in range(2))
    right = {"stride": 1, "padding": (1, 0), "dilation": 1}
    gpucnn.functional.conv2d(x, w, **right)
    with pytest.raises(TypeError, match=f"{next(iter(options))} must be an integer"):
        gpucnn.functional.conv2d(x, w, **{**right, **options})


def test_a_geometry_works_things_out_once() -> None:
    @dataclass(frozen=True)
    class Sizes(Geometry):
        N: int
        C: int
        __hash__ = Geometry.__hash__

    calls: list[Sizes] = []

    def area(s: Sizes) -> int:
        calls.append(s)
        return s.N * s.C

    s = Sizes(2, 3)
    assert s.once(area) == s.once(area) == 6
    assert calls == [s]
    assert s.values == (2, 3)
    assert {s: 1}[Sizes(2, 3)] == 1
    assert s != Sizes(3, 2)
