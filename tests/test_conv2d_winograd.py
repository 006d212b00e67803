"""The variant "winograd" of conv2d against the definition; its error, blocks and counters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

import gpucnn
from bench.cases import CONV2D, Conv2dCase
from gpucnn import emulator, kernel, nn, optim
from gpucnn import functional as F
from gpucnn.device import to_host
from gpucnn.kernel import FILES, Launch, observe_launches, standing_in, without_running
from gpucnn.ops.conv2d import (
    CHOICE,
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_winograd import (
    BLOCK_THREADS,
    SHARED,
    TILES,
    WINOGRAD,
    _meetings,
    tile_block,
    winograd_fits,
)
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.tuning import Choice, candidates
from gpucnn.xray import sass
from gpucnn.xray.compiled import ARCHITECTURES, compiled
from gpucnn.xray.counters import LaunchCounters, count
from gpucnn.xray.occupancy import occupancy
from tests.support import assert_close, check_kernel, gradients, on, randn

# One and several pairs of slabs, and half of the last one; channels that do not come in fours;
# blocks of several images, rows and columns of tiles, filled and not; odd sizes, all paddings.
CASES = [
    Conv2dCase((1, 8, 8, 8), (32, 3, 3, 8), {"padding": 1}),
    Conv2dCase((5, 7, 9, 20), (12, 3, 3, 20), {"padding": ((0, 2), (1, 0))}, bias=False),
    Conv2dCase((1, 33, 17, 3), (37, 3, 3, 3), {"padding": 2}),
    Conv2dCase((40, 3, 2, 4), (6, 3, 3, 4), {"padding": 1}),
    Conv2dCase((1, 1, 70, 6), (3, 3, 3, 6), {"padding": 1}),
    Conv2dCase((2, 3, 3, 13), (66, 3, 3, 13)),
    Conv2dCase((1, 12, 11, 24), (42, 3, 3, 8), {"padding": (2, 0), "groups": 3}),
    Conv2dCase((2, 5, 6, 10), (15, 3, 3, 2), {"padding": "same", "groups": 5}),
    Conv2dCase((1, 1, 1, 1), (1, 3, 3, 1), {"padding": 1}),
    Conv2dCase((1, 18, 18, 16), (16, 3, 3, 16)),
]
cases = pytest.mark.parametrize("case", CASES, ids=str)
PASSES = ("conv2d_winograd_filters", "conv2d_winograd_forward")

needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)
needs_disassembler = pytest.mark.skipif(sass.disassembler() is None, reason=sass.HINT)
needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)


def problem(
    x: tuple[int, ...], weight: tuple[int, ...], bias: bool, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, ConvGeometry, np.ndarray]:
    """(x, w, b, sizes, dy)"""
    arrays = randn(*x), randn(*weight, seed=1), randn(weight[0], seed=3) if bias else None
    all_options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    s = conv2d_geometry(*arrays, **all_options)
    return *arrays, s, randn(*s.y_shape, seed=2)


def check(device: str, given: Any) -> list[str]:
    """Check the forward pass and the data gradient -> the kernels launched."""
    x, w, b, s, dy = given
    launches: list[Launch] = []
    with gpucnn.use_variant(conv2d="winograd"), observe_launches(launches.append):
        check_kernel(conv2d_forward, device, [x, w, b], s, terms=s.K)
        check_kernel(conv2d_data_gradient, device, [dy, w], s, terms=s.OCG * 9)
    return [launch.kernel.name for launch in launches]


@cases
def test_kernels(case: Conv2dCase, kernel_device: str) -> None:
    given = problem(case.x, case.weight, case.bias, case.options)
    assert check(kernel_device, given) == [*PASSES, *PASSES]


@pytest.mark.parametrize("offset", [1, 2])
def test_arrays_at_any_address(offset: int, kernel_device: str) -> None:
    """Copies of 16 bytes and stores of 8 need aligned arrays: others go one by one."""
    x, w, b, s, _ = problem((1, 6, 5, 8), (6, 3, 3, 8), True, {"padding": 1})
    shifted = []
    for a in (x, w, b):
        assert a is not None
        (room,) = on(kernel_device, np.zeros(a.size + 4, np.float32))
        shifted.append(room[offset : offset + a.size].reshape(a.shape))
        shifted[-1][...] = on(kernel_device, a)[0]
    with gpucnn.use_variant(conv2d="winograd"):
        y = conv2d_forward.on(kernel_device)(*shifted, s)
    assert_close(y, conv2d_forward(x, w, b, s), "float32", s.K)


@cases
@pytest.mark.emulated
def test_the_order_of_threads_does_not_show(case: Conv2dCase) -> None:
    def in_every_order(launch: Launch, arguments: Any) -> None:
        spec, name = launch.kernel.spec, launch.kernel.name
        made = emulator.RawKernel(spec.source, name, spec.options)
        emulator.check_order(made, launch.grid, launch.block, arguments, launch.shared_mem)

    x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
    with gpucnn.use_variant(conv2d="winograd"), standing_in(in_every_order):
        conv2d_forward.on("emulated")(x, w, b, s)
        conv2d_data_gradient.on("emulated")(dy, w, s)


@given(data=st.data())
@settings(max_examples=40)
@pytest.mark.emulated
def test_any_sizes(data: st.DataObject) -> None:
    draw = data.draw
    pads = draw(st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2))
    size = [draw(st.integers(max(1, 3 - sum(p)), 20)) for p in pads]
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    cg, ocg = draw(st.integers(1, 18)), draw(st.integers(1, 40))
    shapes = (draw(st.integers(1, 5)), *size, groups * cg), (groups * ocg, 3, 3, cg)
    options = {"padding": pads, "groups": groups}
    given = problem(*shapes, draw(st.booleans()), options)
    assert check("emulated", given) == [*PASSES, *PASSES]


def test_the_same_bits_every_time_and_in_any_batch(kernel_device: str) -> None:
    """Each sum has its order, whichever block and thread it falls to."""
    x, w, b, s, dy = problem((3, 9, 10, 20), (36, 3, 3, 20), True, {"padding": 1})
    one = conv2d_geometry(x[1:2], w, b, 1, 1, 1, 1)
    assert tile_block(s.N, s.OH, s.OW).images != tile_block(1, s.OH, s.OW).images
    x, w, b, dy = on(kernel_device, x, w, b, dy)
    with gpucnn.use_variant(conv2d="winograd"):
        forward, backward = conv2d_forward.on(kernel_device), conv2d_data_gradient.on(kernel_device)
        y, dx = to_host(forward(x, w, b, s)), to_host(backward(dy, w, s))
        assert to_host(forward(x, w, b, s)).tobytes() == y.tobytes()
        assert to_host(forward(x[1:2], w, b, one)).tobytes() == y[1:2].tobytes()
        assert to_host(backward(dy[1:2], w, one)).tobytes() == dx[1:2].tobytes()


# accuracy


def as_matrices(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The convolution of images padded by one cell, as one product in the dtype of its inputs."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = sliding_window_view(padded, (3, 3), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    product = windows.reshape(-1, w[0].size) @ w.reshape(len(w), -1).T
    return product.reshape(*x.shape[:-1], len(w))


@pytest.mark.parametrize("channels", [16, 64, 512])
def test_error_beside_that_of_plain_float32(channels: int, kernel_device: str) -> None:
    """No larger than that of a running sum, nor than four times that of NumPy's sums in blocks.

    Inputs are positive, as behind a ReLU, where the transform of a tile cancels most.
    """
    x, w = np.abs(randn(1, 8, 6, channels)), randn(8, 3, 3, channels, seed=1)
    turned = np.ascontiguousarray(w[:, ::-1, ::-1].transpose(3, 1, 2, 0))
    expected = as_matrices(x.astype(np.float64), w.astype(np.float64))

    def error(actual: Any) -> float:
        difference = to_host(actual).astype(np.float64) - expected
        return float(np.sqrt((difference**2).mean() / (expected**2).mean()))

    forward = conv2d_geometry(x, w, None, 1, 1, 1, 1)
    backward = conv2d_geometry(expected.astype(np.float32), turned, None, 1, 1, 1, 1)
    there, filters, back = on(kernel_device, x, w, turned)
    for primitive, arguments in (
        (conv2d_forward, (there, filters, None, forward)),
        (conv2d_data_gradient, (there, back, backward)),
    ):
        ours, naive = (primitive.launchers[n](*arguments) for n in ("winograd", "naive"))
        assert 0 < error(ours) < 1.1 * error(naive)
        assert error(ours) < 4 * error(as_matrices(x, w))


def test_nan_stays_in_its_tiles(kernel_device: str) -> None:
    """Every output whose window holds NaN or infinity is NaN; others of its tiles may be."""
    x, w, _, s, _ = problem((1, 12, 12, 5), (3, 3, 3, 5), False, {"padding": 1})
    expected = conv2d_forward(x, w, None, s)
    for bad in (np.nan, np.inf, -np.inf):
        x[0, 5, 6, 2] = bad  # among the cells of the outputs 4 .. 7 by 4 .. 7
        with gpucnn.use_variant(conv2d="winograd"):
            y = to_host(conv2d_forward.on(kernel_device)(*on(kernel_device, x, w), None, s))
        assert not np.isfinite(y[0, 4:7, 5:8]).any()
        y[0, 4:8, 4:8] = expected[0, 4:8, 4:8]
        assert_close(y, expected, "float32", s.K)


# where it fits, and who takes it


@pytest.mark.parametrize(
    ("x", "weight", "options", "fits"),
    [
        ((1, 8, 8, 4), (8, 3, 3, 4), {}, True),
        ((1, 8, 8, 1), (1, 3, 3, 1), {"padding": 2}, True),
        ((1, 8, 8, 4), (8, 3, 3, 1), {"groups": 4}, True),
        ((1, 8, 8, 4), (8, 3, 3, 4), {"padding": ((0, 5), (2, 0))}, True),
        ((1, 8, 8, 4), (8, 3, 3, 4), {"padding": ((3, 0), (0, 0))}, False),
        ((1, 8, 8, 4), (8, 3, 3, 4), {"stride": (1, 2)}, False),
        ((1, 8, 8, 4), (8, 3, 3, 4), {"dilation": (2, 1)}, False),
        ((1, 8, 8, 4), (8, 3, 1, 4), {}, False),
        ((1, 8, 8, 4), (8, 2, 3, 4), {}, False),
        ((1, 3, 3, 2**17), (2**17, 3, 3, 1), {"groups": 2**17}, False),  # a grid has 65,535 planes
        ((1, 3, 3, 2**15), (2**15, 3, 3, 2), {"groups": 2**14}, True),
        ((1, 3, 3, 2**16), (2**16, 3, 3, 32), {"groups": 2**11, "padding": 2}, True),
    ],
)
def test_what_fits(x: Any, weight: Any, options: Any, fits: bool) -> None:
    """Forward pass and data gradient then run, planned here and not run."""
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    image, filters = (np.broadcast_to(np.float32(0), shape) for shape in (x, weight))
    s = conv2d_geometry(image, filters, None, *given.values())
    assert winograd_fits(s) == fits


def test_what_does_not_fit_runs_the_default() -> None:
    def launched(variant: str | None, case: Conv2dCase) -> list[Launch]:
        x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
        launches: list[Launch] = []
        chosen = gpucnn.use_variant(conv2d=variant)
        with chosen, observe_launches(launches.append), without_running():
            conv2d_forward.on("emulated")(x, w, b, s)
            conv2d_data_gradient.on("emulated")(dy, w, s)
            conv2d_weight_gradient.on("emulated")(dy, x, s)
        return launches

    fitting = [case for case in CONV2D if winograd_fits(_sizes(case))]
    assert 3 <= len(fitting) < len(CONV2D)
    for case in CONV2D:
        by_winograd, by_default = launched("winograd", case), launched(None, case)
        mine = [x.kernel.name for x in by_winograd if x.kernel.name in PASSES]
        if case in fitting:
            assert mine == [*PASSES, *PASSES]
            assert by_winograd[4:] == [x for x in by_default if "weight" in x.kernel.name or
                                       "sum" in x.kernel.name]  # fmt: skip
        else:
            assert by_winograd == by_default


def _sizes(case: Conv2dCase) -> ConvGeometry:
    return problem(case.x, case.weight, case.bias, case.options)[3]


def test_it_is_measured_where_it_fits_and_is_not_the_default() -> None:
    s = _sizes(CASES[0])
    assert "winograd" not in dict(CHOICE)
    for primitive, mode in (("conv2d_forward", "fp32"), ("conv2d_data_gradient", "tf32")):
        assert Choice("winograd") in candidates(primitive, mode, s, Choice("tiled"))
    gradient = candidates("conv2d_weight_gradient", "fp32", s, Choice("tiled"))
    assert Choice("winograd") not in gradient
    strided = _sizes(Conv2dCase((1, 8, 8, 8), (32, 3, 3, 8), {"stride": 2}))
    assert Choice("winograd") not in candidates("conv2d_forward", "fp32", strided, Choice("tiled"))
    assert set(WINOGRAD.launchers) == {"conv2d_forward", "conv2d_data_gradient"}


def test_a_network_trains_whose_layers_do_not_all_fit(kernel_device: str) -> None:
    with gpucnn.use_device(kernel_device), gpucnn.use_variant(conv2d="winograd"):
        gpucnn.seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, stride=2),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3, padding=1, groups=2),
            nn.GlobalAvgPool2d(),
        )
        step = optim.SGD(model.parameters(), 0.1)
        x, target = gpucnn.Tensor(randn(4, 7, 7, 3)), gpucnn.Tensor(np.arange(4))
        losses = []
        for _ in range(4):
            loss = F.cross_entropy(model(x), target)
            step.zero_grad()
            loss.backward()
            step.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_gradients_agree_with_the_cpu(kernel_device: str) -> None:
    """Through the tape."""
    for case in (CASES[1], CASES[6]):
        x, w, b, s, dy = problem(case.x, case.weight, True, case.options)
        assert b is not None
        y, grads = gradients(lambda *t, o=case.options: F.conv2d(*t, **o), [x, w, b], dy)
        with gpucnn.use_variant(conv2d="winograd"):
            given = gradients(
                lambda *t, o=case.options: F.conv2d(*t, **o), [x, w, b], dy, kernel_device
            )
        for a, e in zip([given[0], *given[1]], [y, *grads], strict=True):
            assert_close(a, e, "float32", max(s.outputs, s.K))


# blocks


@pytest.mark.parametrize("N", [1, 3, 64, 512])
def test_blocks_cover_the_batch_and_fit_their_memory(N: int) -> None:
    for OH, OW in ((1, 1), (2, 2), (3, 4), (4, 4), (8, 8), (14, 14), (36, 36), (32, 32), (1, 1000)):
        block = tile_block(N, OH, OW)
        assert 1 <= block.images * block.rows * block.columns <= TILES
        high, wide = -(-OH // 2), -(-OW // 2)
        blocks = -(-N // block.images) * -(-high // block.rows) * -(-wide // block.columns)
        assert block.count == blocks
        assert block.row_pitch > block.columns
        assert block.image_pitch >= (2 * block.rows + 2) * block.row_pitch
        assert block.images * block.image_pitch <= 252  # ODD of the kernel
    assert SHARED > 4 * (2 * 16 * 4 * (64 + 32) + 4 * 2 * 508)


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128])
def test_usual_images_fill_blocks_without_conflicts(size: int) -> None:
    block = tile_block(16, size, size)
    assert block.count * TILES == 16 * (size // 2) ** 2
    assert _meetings(block) == 0


# what is known without a GPU


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills_and_sixteen_warps_are_resident(arch: str) -> None:
    (spec,) = FILES["conv2d_winograd"].specialisations
    usage = compiled(spec, arch).usage["conv2d_winograd_forward"]
    assert (usage.spills, usage.stack, usage.static_shared) == (0, 0, 0)
    assert occupancy(arch, BLOCK_THREADS, usage.registers, SHARED).warps >= 16


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90"])
def test_the_main_loop_is_what_was_counted(arch: str) -> None:
    """Eight channels: a thread's multiply-adds, their operands, a transform, copies and barriers.

    Both halves of the warps have a transform in it, of which each runs its own.
    """
    (spec,) = FILES["conv2d_winograd"].specialisations
    mix = sass.instruction_mix(compiled(spec, arch).cubin)["conv2d_winograd_forward"].loop
    assert mix["FFMA"] == 8 * 64
    assert mix["LDS.128"] == 8 * 4
    assert mix["FADD"] == 2 * 32
    assert mix["STS.32"] >= 2 * 16
    assert mix["BAR"] == 3
    if arch != "sm_75":
        assert mix["LDGSTS.128"] == 2 + 2  # of cells, of filters
        assert mix["FFMA"] >= 0.7 * (sum(mix.values()) - 32 - 16 - 16)


def counted(case: Conv2dCase) -> list[LaunchCounters]:
    x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
    with gpucnn.use_variant(conv2d="winograd"), count() as found:
        conv2d_forward.on("emulated")(x, w, b, s)
        conv2d_data_gradient.on("emulated")(dy, w, s)
    assert [launch.kernel for launch in found.launches] == [*PASSES, *PASSES]
    return found.launches


@pytest.mark.parametrize(
    "case",
    [
        Conv2dCase((1, 32, 32, 16), (32, 3, 3, 16), {"padding": 1}),
        Conv2dCase((4, 8, 8, 64), (64, 3, 3, 64), {"padding": 1}),
        Conv2dCase((1, 16, 16, 32), (64, 3, 3, 32), {"padding": 1}),
    ],
    ids=str,
)
@needs_emulator
def test_requests_are_coalesced_and_banks_do_not_conflict(case: Conv2dCase) -> None:
    for counters in counted(case):
        assert counters.coalesced_share == 1.0
        assert counters.bank_conflicts == 0
        assert counters.written_bytes == counters.written_footprint


@needs_emulator
def test_the_arithmetic_is_what_was_counted() -> None:
    """16 multiply-adds for a tile, channel and filter; 32 additions for a tile and channel, and 28
    for a tile and filter: the last transform and four biases.
    """
    C, OC, tiles = 32, 64, 64
    forward = counted(Conv2dCase((1, 16, 16, C), (OC, 3, 3, C), {"padding": 1}, bias=False))[1]
    assert forward.operations["fma"] == 16 * tiles * OC * C
    blocks = OC // 32
    assert forward.flops == 2 * 16 * tiles * OC * C + 32 * tiles * C * blocks + 28 * tiles * OC
