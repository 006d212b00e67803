"""Convolutions that grow along one axis: batch, or channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .cases import Conv2dCase
from .problems import Problem
from .problems.convolution import passes

GROUP = "scaling"


class Curve(NamedTuple):
    """One axis: its label, and the case of each value on it."""

    name: str
    label: str
    cases: dict[int, Conv2dCase]


def _case(batch: int, channels: int, size: int) -> Conv2dCase:
    x, w = (batch, size, size, channels), (channels, 3, 3, channels)
    return Conv2dCase(x, w, {"padding": 1}, bias=False)


def curves(quick: bool) -> tuple[Curve, Curve]:
    """3×3 convolutions over 16×16 images, larger where a GPU should be filled."""
    size, batch = (16, 16) if quick else (32, 64)
    batches = (1, 2, 4, 8, 16, 32, 64) if quick else (1, 4, 16, 64, 256, 1024)
    channels = (1, 2, 4, 8, 16, 32, 64) if quick else (1, 4, 16, 64, 128, 256)
    return (
        Curve("batch", "batch size", {n: _case(n, 16, size) for n in batches}),
        Curve("channels", "channels in and out", {c: _case(batch, c, size) for c in channels}),
    )


def case_name(curve: str, value: int) -> str:
    """The case of a point on a curve, as in the rows."""
    return f"scaling-{curve}-{value}"


def point_of(case: str) -> tuple[str, int] | None:
    """(curve, value) of a case's name, None for another case."""
    parts = case.split("-")
    if len(parts) != 3 or parts[0] != GROUP or not parts[2].isdecimal():
        return None
    return parts[1], int(parts[2])


def problems(quick: bool) -> Iterator[Problem]:
    """The forward pass at each point of each curve."""
    for curve in curves(quick):
        for value, case in curve.cases.items():
            name = case_name(curve.name, value)
            yield next(passes("conv2d", 2, name, case, GROUP))
