"""``gpucnn shape``: the sizes are those of the layers, the texts add up."""

from __future__ import annotations

import json
import re
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpucnn
from gpucnn import functional as F
from gpucnn import nn
from gpucnn.cli import main
from gpucnn.visualize.sizes import parse_shape, steps

sizes = st.tuples(st.integers(1, 4), st.integers(1, 4))
images = st.tuples(st.integers(1, 12), st.integers(1, 12))


def evaluated(formula: str) -> float:
    """What is left of the = of a formula, by Python."""
    text = formula.split(" = ")[0].replace("−", "-").replace("·", "*")
    text = re.sub(r"⌊(.*?)⌋", r"floor(\1)", text)
    return eval(re.sub(r"⌈(.*?)⌉", r"ceil(\1)", text), {"floor": floor, "ceil": ceil})


def check(text: str, layer: Any, shape: tuple[int, int, int]) -> None:
    """Sizes, or that both refuse."""
    x = gpucnn.Tensor(np.zeros((1, *shape), np.float32), device="cpu")
    try:
        with gpucnn.no_grad():
            expected = tuple(layer()(x).shape[1:])
    except ValueError:
        with pytest.raises(ValueError, match=r"behind|must be"):
            steps(text, shape)
        return
    (step,) = steps(text, shape)
    assert step.shape == expected, step
    both = len(step.formulas) > 1 and step.formulas[1].startswith("W")
    for axis, line in enumerate(step.formulas[: 2 if both else 1]):
        formula = line.split(": ", 1)[1]
        before, *less = formula.split(", less the last window")
        assert evaluated(before) == step.shape[axis] + len(less)
        assert int(re.findall(r"\d+", formula)[-1]) == step.shape[axis]


@given(k=sizes, s=sizes, p=sizes, d=sizes, n=images)
def test_convolutions(k: Any, s: Any, p: Any, d: Any, n: Any) -> None:
    p = p[0] - 1, p[1] - 1
    options = f"k{k[0]}x{k[1]} s{s[0]}x{s[1]} p{p[0]}x{p[1]} d{d[0]}x{d[1]}"
    check(f"conv c2 {options}", lambda: nn.Conv2d(1, 2, k, s, p, d), (*n, 1))
    check(f"tconv c2 {options}", lambda: nn.ConvTranspose2d(1, 2, k, s, p, dilation=d), (*n, 1))
    same = f"conv k{k[0]}x{k[1]} s{s[0]}x{s[1]} psame d{d[0]}x{d[1]}"
    check(same, lambda: nn.Conv2d(1, 1, k, s, "same", d), (*n, 1))


@given(k=sizes, s=sizes, p=sizes, n=images, edge=st.sampled_from(["drop", "ceil", "zero"]))
def test_pools(k: Any, s: Any, p: Any, n: Any, edge: str) -> None:
    p = p[0] - 1, p[1] - 1
    options = f"{k[0]}x{k[1]} s{s[0]}x{s[1]} p{p[0]}x{p[1]}"
    check(
        f"avgpool {options} edge={edge}",
        lambda: lambda x: F.avg_pool2d(x, k, s, p, edge=edge),
        (*n, 3),
    )
    check(f"unpool {options}", lambda: lambda x: F.avg_unpool2d(x, k, s, p), (*n, 3))


def test_a_whole_chain_with_receptive_fields() -> None:
    chain = "conv c16 k5 s2 p2 | bn | relu | pool 2 | conv c32 k3 p1 | pool 2 | flatten | linear 10"
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, 2, 2),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.MaxPool2d(2),
    )
    found = steps(chain, (72, 72, 1))
    same = [(36, 36, 16)] * 3
    shapes = [*same, (18, 18, 16), (18, 18, 32), (9, 9, 32), (2592,), (10,)]
    assert [step.shape for step in found] == shapes
    whole = gpucnn.receptive_field(model, (72, 72, 1))
    assert found[5].field == whole.size
    assert found[5].jump == whole.jump
    assert found[6].field is None


def test_upsampling_sees_no_more_than_its_windows() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 3, 2, 1), nn.ConvTranspose2d(1, 1, 4, 2, 1))
    found = steps("conv k3 s2 p1 | tconv k4 s2 p1", (40, 40, 1))
    whole = gpucnn.receptive_field(model, (40, 40, 1))
    assert (found[1].field, found[1].jump) == (whole.size, whole.jump) == ((5, 5), (1.0, 1.0))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("conv", "'conv': needs a kernel, such as k3"),
        ("conv k3 | ", r"between two \| must stand a layer"),
        ("convolve k3", "'convolve' is no layer, which are conv, tconv"),
        ("conv k3 q2", "'q2' is no option of it, which are k, s, p, d, c, g"),
        ("conv k0", "must be"),
        ("conv k9", "behind 8x8x2: the window is larger than the padded image"),
        ("pool 2 edge=wrap", "edge is one of drop, ceil, zero, got 'wrap'"),
        ("conv k3 c3 g2", "groups must divide the channels 2 and 3"),
        ("linear 10", "linear takes a vector: put flatten or globalpool before it"),
        ("flatten | conv k3", "takes images, and these were flattened"),
        ("tconv k1 p4", "nothing is left"),
        ("tconv k3 s2 o2", "output_padding must be smaller than 2, got 2"),
        ("tconv k3 psame", "padding must be numbers"),
        ("linear", "needs its number of features"),
        ("conv k3 c2x3", "must be one number"),
    ],
)
def test_chains_that_cannot_be(chain: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps(chain, (8, 8, 2))


def test_shapes_that_cannot_be() -> None:
    assert parse_shape("72x48") == (72, 48, 1)
    for text in ("72", "axb", "0x3x1", "3x3x3x3", "99999999999x2"):
        with pytest.raises(ValueError, match="must"):
            parse_shape(text)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shape", "conv c16 k5x3 s2 p1 | relu | pool 2 edge=zero | tconv k4 s2 p1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("images  72 x 72 x 1\n")
    assert "conv c16 k5x3 s2 p1  ->  35 x 36 x 16\n" in out
    assert "    H: ⌊(72 + 1 + 1 − 1·(5 − 1) − 1) / 2⌋ + 1 = ⌊69 / 2⌋ + 1 = 35\n" in out
    assert "    receptive field H: 1 + 1·(5 − 1)·1 = 5, jump 2\n" in out
    assert main(["shape", "pool 2", "--in", "5x5x3", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["layers"][0]["shape"] == [2, 2, 3]
    assert main(["shape", "conv k3", "--in", "5by5"]) == 2
    assert "must look like 72x72x1" in capsys.readouterr().err
