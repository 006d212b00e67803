"""conv2d of few input channels: the variants "direct" and "depthwise" against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from bench.cases import Conv2dCase
from gpucnn import emulator, nn, optim
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.kernel import FILES, Launch, observe_launches, standing_in, without_running
from gpucnn.ops import conv2d_few_channels
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_few_channels import depthwise_fits, direct_fits, direct_tile
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.xray.counters import LaunchCounters, count
from tests.support import assert_close, check_kernel, gradients, on, randn

# Each specialisation: tiles of several images, of several rows and across; few and many filters.
DIRECT = [
    Conv2dCase((3, 9, 20, 1), (16, 3, 3, 1), {"padding": 1}),
    Conv2dCase((2, 33, 9, 1), (6, 3, 3, 1)),
    Conv2dCase((1, 2, 300, 1), (70, 2, 3, 1), {"stride": (3, 1)}),
    Conv2dCase((2, 7, 10, 3), (64, 3, 3, 3), {"padding": 1}),
    Conv2dCase((5, 4, 3, 3), (9, 3, 3, 3), {"padding": ((0, 2), (1, 0)), "dilation": (2, 1)}),
    Conv2dCase((2, 14, 13, 1), (6, 5, 5, 1), {"padding": 2}),
    Conv2dCase((1, 8, 17, 3), (20, 5, 5, 3), {"padding": "same"}, bias=False),
    Conv2dCase((2, 19, 21, 3), (40, 7, 7, 3), {"stride": 2, "padding": 3}),
    Conv2dCase((2, 6, 9, 4), (13, 3, 2, 4), {"stride": 3, "padding": 1}),
    Conv2dCase((1, 9, 37, 2), (68, 4, 4, 2), {"stride": 2, "dilation": (1, 3), "padding": 4}),
    Conv2dCase((3, 1, 1, 3), (5, 1, 1, 3)),
    Conv2dCase((2, 6, 5, 3), (8, 6, 5, 3)),
    Conv2dCase((1, 2, 3, 1), (4, 3, 3, 1), {"padding": 7, "stride": 3}),
]
DEPTHWISE = [
    Conv2dCase((2, 9, 10, 8), (8, 3, 3, 1), {"groups": 8, "padding": 1}),
    Conv2dCase((3, 7, 5, 36), (36, 3, 3, 1), {"groups": 36, "padding": 1, "stride": 2}),
    Conv2dCase((1, 8, 11, 136), (136, 5, 5, 1), {"groups": 136, "padding": 2}, bias=False),
    Conv2dCase((1, 9, 12, 4), (4, 3, 3, 1), {"groups": 4, "padding": 2, "dilation": (1, 2)}),
    Conv2dCase((2, 7, 9, 12), (12, 2, 7, 1), {"groups": 12, "stride": (1, 3), "padding": 3}),
    Conv2dCase((2, 6, 7, 5), (5, 3, 3, 1), {"groups": 5, "padding": 1}),
    Conv2dCase((1, 7, 6, 12), (24, 3, 3, 1), {"groups": 12, "padding": 1}),
    Conv2dCase((2, 5, 9, 33), (99, 4, 6, 1), {"groups": 33, "padding": 3, "stride": (3, 2)}),
    Conv2dCase((3, 1, 1, 4), (4, 1, 1, 1), {"groups": 4}),
    Conv2dCase((1, 6, 5, 4), (4, 6, 5, 1), {"groups": 4}),
    Conv2dCase((1, 2, 3, 8), (8, 3, 3, 1), {"groups": 8, "padding": 7, "stride": 3}),
]
needs_counters = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)
both = pytest.mark.parametrize(
    ("variant", "case"),
    [*(("direct", c) for c in DIRECT), *(("depthwise", c) for c in DEPTHWISE)],
    ids=str,
)


def problem(
    x: tuple[int, ...], weight: tuple[int, ...], bias: bool, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, ConvGeometry, np.ndarray]:
    """(x, w, b, sizes, dy)"""
    arrays = randn(*x), randn(*weight, seed=1), randn(weight[0], seed=3) if bias else None
    all_options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    s = conv2d_geometry(*arrays, **all_options)
    return *arrays, s, randn(*s.y_shape, seed=2)


def check(variant: str, device: str, given: Any) -> set[str]:
    """Check the three passes -> the kernels launched."""
    x, w, b, s, dy = given
    launches: list[Launch] = []
    with gpucnn.use_variant(conv2d=variant), observe_launches(launches.append):
        check_kernel(conv2d_forward, device, [x, w, b], s, terms=s.K)
        check_kernel(conv2d_weight_gradient, device, [dy, x], s, terms=s.outputs)
        if variant == "depthwise":  # "direct" leaves the data gradient to the default
            check_kernel(conv2d_data_gradient, device, [dy, w], s, terms=s.OCG * s.K)
    return {launch.kernel.name for launch in launches}


def kernels_of(variant: str) -> set[str]:
    passes = ("forward", "weight_gradient", "data_gradient")
    return {f"conv2d_{variant}_{p}" for p in passes[: 3 if variant == "depthwise" else 2]}


@both
def test_kernels(variant: str, case: Conv2dCase, kernel_device: str) -> None:
    used = check(variant, kernel_device, problem(case.x, case.weight, case.bias, case.options))
    assert kernels_of(variant) <= used


@both
@pytest.mark.emulated
def test_the_order_of_threads_does_not_show(variant: str, case: Conv2dCase) -> None:
    def in_every_order(launch: Launch, arguments: Any) -> None:
        spec, name = launch.kernel.spec, launch.kernel.name
        compiled = emulator.RawKernel(spec.source, name, spec.options)
        emulator.check_order(compiled, launch.grid, launch.block, arguments, launch.shared_mem)

    x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
    with gpucnn.use_variant(conv2d=variant), standing_in(in_every_order):
        conv2d_forward.on("emulated")(x, w, b, s)
        conv2d_weight_gradient.on("emulated")(dy, x, s)
        if variant == "depthwise":
            conv2d_data_gradient.on("emulated")(dy, w, s)


@pytest.mark.parametrize(("variant", "case"), [("direct", DIRECT[7]), ("depthwise", DEPTHWISE[1])])
def test_slices_of_several_tiles(
    variant: str, case: Conv2dCase, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for larger batches, where a block goes from tile to tile."""
    monkeypatch.setattr(conv2d_few_channels, "_BLOCKS", 2)
    x, _, _, s, dy = problem((9, *case.x[1:]), case.weight, False, case.options)
    launches: list[Launch] = []
    with gpucnn.use_variant(conv2d=variant), observe_launches(launches.append):
        check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=s.outputs)
    assert launches[0].grid[0] <= 4
    if variant == "direct":
        tile = direct_tile(s, True)
        assert tile is not None
        assert tile.count >= 3 * launches[0].grid[0]


def test_the_cases_reach_every_specialisation() -> None:
    """Planned on the emulated device and not run."""
    launches: list[Launch] = []
    with observe_launches(launches.append), without_running():
        for case in (*DIRECT, *DEPTHWISE):
            x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
            conv2d_forward.on("emulated")(x, w, b, s)
            conv2d_data_gradient.on("emulated")(dy, w, s)
            conv2d_weight_gradient.on("emulated")(dy, x, s)
    reached = {(launch.kernel.spec, launch.kernel.name) for launch in launches}
    for variant in ("direct", "depthwise"):
        for spec in FILES[f"conv2d_{variant}"].specialisations:
            assert {(spec, name) for name in kernels_of(variant)} <= reached, spec


@given(data=st.data())
@settings(max_examples=60)
@pytest.mark.parametrize("variant", ["direct", "depthwise"])
@pytest.mark.emulated
def test_any_sizes(variant: str, data: st.DataObject) -> None:
    draw = data.draw
    kernel = draw(st.sampled_from([(3, 3), (5, 5), (7, 7), (1, 1), (2, 3), (4, 2)]))
    stride = draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (3, 1), (1, 4)]))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (1, 3)]))
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4))] * 2))
    size = [
        draw(st.integers(max(1, d * (k - 1) + 1 - sum(p)), 20))
        for k, d, p in zip(kernel, dilation, pads, strict=True)
    ]
    n = draw(st.integers(1, 3))
    options: dict[str, Any] = {"stride": stride, "padding": pads, "dilation": dilation}
    if variant == "direct":
        c, oc, cg = draw(st.integers(1, 4)), draw(st.integers(1, 40)), 0
    else:
        c = draw(st.sampled_from([2, 3, 4, 8, 12, 40]))
        oc, cg, options["groups"] = c * draw(st.integers(1, 3)), 1, c
    given = problem((n, *size, c), (oc, *kernel, cg or c), draw(st.booleans()), options)
    assert kernels_of(variant) <= check(variant, "emulated", given)


def test_the_same_bits_every_time(kernel_device: str) -> None:
    for variant, case in (("direct", DIRECT[3]), ("depthwise", DEPTHWISE[1])):
        x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
        x, w, b, dy = on(kernel_device, x, w, b, dy)
        with gpucnn.use_variant(conv2d=variant):
            runs = [
                [
                    to_host(conv2d_forward.on(kernel_device)(x, w, b, s)).tobytes(),
                    to_host(conv2d_data_gradient.on(kernel_device)(dy, w, s)).tobytes(),
                    to_host(conv2d_weight_gradient.on(kernel_device)(dy, x, s)).tobytes(),
                ]
                for _ in range(2)
            ]
        assert runs[0] == runs[1]


@pytest.mark.parametrize(("variant", "groups"), [("direct", 1), ("depthwise", 4)])
def test_what_no_window_reads_does_not_matter(
    variant: str, groups: int, kernel_device: str
) -> None:
    """Not a number beyond the last window; the tiles and runs reach that far."""
    x, w = randn(2, 9, 16, 4), randn(8, 3, 3, 4 // groups, seed=1)
    s = conv2d_geometry(x, w, None, (4, 3), 0, 1, groups)
    x[:, 7:], x[:, :, 15:] = np.nan, np.nan
    dy = randn(*s.y_shape, seed=2)
    with gpucnn.use_variant(conv2d=variant):
        check_kernel(conv2d_forward, kernel_device, [x, w, None], s, terms=s.K)
        check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=s.outputs)
    assert np.isfinite(conv2d_weight_gradient(dy, x, s)).all()


@pytest.mark.parametrize(
    ("x", "weight", "options", "direct", "depthwise"),
    [
        ((1, 8, 8, 4), (8, 3, 3, 4), {}, True, False),
        ((1, 8, 8, 1), (8, 3, 3, 1), {}, True, False),
        ((1, 8, 8, 5), (8, 3, 3, 5), {}, False, False),
        ((1, 8, 8, 4), (8, 3, 3, 2), {"groups": 2}, False, False),
        ((1, 8, 8, 4), (8, 3, 3, 1), {"groups": 4}, False, True),
        ((1, 200, 200, 4), (64, 40, 40, 4), {}, False, False),
        ((1, 300, 300, 2), (8, 3, 3, 2), {"dilation": 140}, False, False),
        ((1, 40, 40, 4), (4, 33, 33, 1), {"groups": 4}, False, False),
        ((1, 8, 8, 2**19), (2**19, 1, 1, 1), {"groups": 2**19}, False, True),
    ],
)
def test_what_fits(x: Any, weight: Any, options: Any, direct: bool, depthwise: bool) -> None:
    all_options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    s = conv2d_geometry(np.empty(x, "f"), np.empty(weight, "f"), None, *all_options.values())
    assert (direct_fits(s), depthwise_fits(s)) == (direct, depthwise)


def test_tiles_fit_the_shared_memory_of_every_gpu() -> None:
    for kernel in (1, 3, 5, 7, 11):
        for size in (1, 28, 224, 1000):
            x, w = np.empty((2, size, size, 3), "f"), np.empty((64, kernel, kernel, 3), "f")
            s = conv2d_geometry(x, w, None, 1, kernel // 2, 1, 1)
            for backward in (False, True):
                tile = direct_tile(s, backward)
                assert tile is not None
                assert tile.shared <= 48 * 1024
                assert tile.images * tile.rows * tile.runs <= 256


@pytest.mark.parametrize("variant", ["direct", "depthwise"])
def test_a_network_trains_whose_layers_do_not_all_fit(variant: str, kernel_device: str) -> None:
    """Those that do not fit take the default."""
    with gpucnn.use_device(kernel_device), gpucnn.use_variant(conv2d=variant):
        gpucnn.seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, groups=2),
            nn.GlobalAvgPool2d(),
        )
        step = optim.SGD(model.parameters(), 0.1)
        x, target = gpucnn.Tensor(randn(4, 6, 6, 3)), gpucnn.Tensor(np.arange(4))
        losses = []
        for _ in range(4):
            loss = F.cross_entropy(model(x), target)
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_gradients_agree_with_the_cpu(kernel_device: str) -> None:
    """Through the tape, by the default choice."""
    for case in (DIRECT[7], DEPTHWISE[0], DEPTHWISE[6]):
        x, w, b, s, dy = problem(case.x, case.weight, True, case.options)
        assert b is not None
        y, grads = gradients(lambda *t, o=case.options: F.conv2d(*t, **o), [x, w, b], dy)
        given = gradients(
            lambda *t, o=case.options: F.conv2d(*t, **o), [x, w, b], dy, kernel_device
        )
        for a, e in zip([given[0], *given[1]], [y, *grads], strict=True):
            assert_close(a, e, "float32", s.outputs)


def counted(case: Conv2dCase) -> dict[str, LaunchCounters]:
    """The counters of the passes that have a kernel for few channels."""
    x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
    with count() as launches:
        conv2d_forward.on("emulated")(x, w, b, s)
        conv2d_weight_gradient.on("emulated")(dy, x, s)
        if s.G > 1:
            conv2d_data_gradient.on("emulated")(dy, w, s)
    return {x.kernel: x for x in launches.launches if x.kernel.startswith("conv2d")}


@pytest.mark.parametrize(
    "case",
    [
        Conv2dCase((2, 72, 72, 1), (16, 3, 3, 1), {"padding": 1}),
        Conv2dCase((8, 28, 28, 1), (6, 5, 5, 1), {"padding": 2}),
        Conv2dCase((2, 32, 32, 3), (64, 3, 3, 3), {"padding": 1}),
        Conv2dCase((1, 56, 56, 3), (64, 7, 7, 3), {"padding": 3, "stride": 2}),
        Conv2dCase((1, 32, 32, 64), (64, 3, 3, 1), {"padding": 1, "groups": 64}),
        Conv2dCase((1, 32, 32, 64), (64, 3, 3, 1), {"padding": 1, "groups": 64, "stride": 2}),
    ],
    ids=str,
)
@needs_counters
def test_requests_are_coalesced_and_reads_do_not_conflict(case: Conv2dCase) -> None:
    """All is written once, and the main loops read shared memory without conflicts."""
    found = counted(case)
    assert set(found) == kernels_of("depthwise" if case.options.get("groups") else "direct")
    for counters in found.values():
        assert counters.coalesced_share >= 0.9
        assert counters.written_bytes == counters.written_footprint
        conflicts = [
            x.conflicts for x in counters.sites if (x.space, x.access) == ("shared", "read")
        ]
        assert conflicts
        assert sum(conflicts) == 0 or case.weight[0] % 4  # y and dy then pass through lines
