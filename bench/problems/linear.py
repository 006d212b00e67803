"""Fully connected layers and matrix products, which use the same primitives."""

from __future__ import annotations

from collections.abc import Iterator

from gpucnn.ops.linear import LinearGeometry

from ..cases import LINEAR, MATMUL, LinearCase
from .problem import Problem, draws, words

TYPICAL = {
    "lenet-400to120-b128": LinearCase(128, 400, 120),
    "shapenet-2592to64-b64": LinearCase(64, 2592, 64),
}

# Layers of LeNet (128 images), AlexNet and VGG (128), ResNet-50's and MobileNet's classifiers.
LAYERS = {
    "lenet-400to120": LinearCase(128, 400, 120),
    "lenet-120to84": LinearCase(128, 120, 84),
    "lenet-84to10": LinearCase(128, 84, 10),
    "alexnet-9216to4096": LinearCase(128, 9216, 4096),
    "alexnet-4096to4096": LinearCase(128, 4096, 4096),
    "alexnet-4096to1000": LinearCase(128, 4096, 1000),
    "resnet50-2048to1000": LinearCase(256, 2048, 1000),
    "square-1024": LinearCase(1024, 1024, 1024, bias=False),
}


def passes(name: str, case: LinearCase, group: str) -> Iterator[Problem]:
    s = LinearGeometry(case.M, case.I, case.O)
    flops = 2 * s.M * s.I * s.O
    x, w, y, b = (s.M, s.I), (s.O, s.I), (s.M, s.O), (s.O,) if case.bias else None
    for direction, inputs, moved, terms in (
        ("forward", (x, w, b), words(y, x, w, b), s.I + case.bias),
        ("data_gradient", (y, w), words(x, y, w), s.O),
        ("weight_gradient", (y, x), words(w, y, x), s.M),
    ):
        make = draws(*inputs, then=(s,))
        yield Problem("linear", f"linear_{direction}", name, group, make, moved, flops, terms)


def problems() -> Iterator[Problem]:
    """The forward pass and both gradients of every case."""
    for case in LINEAR:
        yield from passes(str(case), case, "edge")
    for M, K, N in MATMUL:  # a (M, K) · b (K, N) is the data gradient of a layer from N to K
        yield from passes(f"matmul-{M}x{K}x{N}", LinearCase(M, N, K, bias=False), "edge")
    for group, table in (("typical", TYPICAL), ("layer", LAYERS)):
        for name, case in table.items():
            yield from passes(name, case, group)
