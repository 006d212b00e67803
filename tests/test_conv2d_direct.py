"""conv2d of few channels: the variants "direct" and "depthwise" against the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpucnn
from bench.cases import Conv2dCase, ConvCase
from gpucnn import emulator, kernel, nn, optim
from gpucnn import functional as F
from gpucnn.bfloat16 import narrowed, use
from gpucnn.device import to_host
from gpucnn.kernel import FILES, Launch, observe_launches, standing_in, without_running
from gpucnn.ops import conv2d_depthwise, conv2d_direct
from gpucnn.ops.conv2d import (
    conv2d_data_gradient,
    conv2d_forward,
    conv2d_geometry,
    conv2d_weight_gradient,
)
from gpucnn.ops.conv2d_direct import direct_tile, to_few
from gpucnn.ops.conv_transpose2d import conv_transpose2d_forward, conv_transpose2d_geometry
from tests.few_channels import PASSES, VARIANTS, problem, taken
from tests.support import (
    assert_close,
    check_kernel,
    check_stored,
    gradients,
    needs_torch,
    on,
    randn,
    torch,
)

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
# To few channels: one lane and many, several turns of channels, all taps of a row and some.
TO_FEW = [
    Conv2dCase((2, 9, 20, 16), (2, 3, 3, 16), {"padding": 1}),
    Conv2dCase((1, 12, 21, 64), (3, 1, 1, 64)),
    Conv2dCase((1, 5, 6, 150), (4, 3, 3, 150), {"padding": 3}, bias=False),
    Conv2dCase((2, 8, 9, 132), (1, 2, 2, 132)),
    Conv2dCase((2, 9, 10, 7), (3, 3, 2, 7), {"stride": 2}),
    Conv2dCase((1, 12, 11, 24), (1, 5, 7, 24), {"dilation": (1, 2), "padding": ((0, 3), (6, 1))}),
    Conv2dCase((3, 4, 17, 8), (4, 2, 4, 8), {"stride": (1, 3), "padding": 2}),
    Conv2dCase((1, 7, 45, 6), (3, 3, 2, 6), {"padding": 1}),
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
    Conv2dCase((2, 5, 9, 8), (8, 2, 3, 1), {"groups": 8, "padding": 1}),
    Conv2dCase((1, 8, 11, 8), (8, 3, 3, 1), {"groups": 8, "padding": 2, "stride": 2}),
    Conv2dCase((1, 5, 6, 2), (80, 3, 3, 1), {"groups": 2}),
    Conv2dCase((2, 9, 10, 16), (16, 3, 3, 4), {"groups": 4, "padding": 1}),
    Conv2dCase((1, 9, 11, 72), (72, 3, 3, 4), {"groups": 18, "padding": 2, "stride": 2}),
    Conv2dCase((1, 8, 9, 8), (8, 2, 5, 4), {"groups": 2, "padding": 3, "dilation": (2, 1)}),
    Conv2dCase((2, 7, 6, 12), (12, 3, 3, 2), {"groups": 6, "padding": 1, "stride": (2, 1)}),
]
both = pytest.mark.parametrize(
    ("variant", "case"),
    [*(("direct", c) for c in (*DIRECT, *TO_FEW)), *(("depthwise", c) for c in DEPTHWISE)],
    ids=str,
)


def check(variant: str, device: str, given: Any) -> int:
    """Check the passes that a variant takes, each by its own kernels -> their number."""
    passes = taken(variant, given)
    for made, arrays, terms in passes:
        launches: list[Launch] = []
        with gpucnn.use_variant(conv2d=variant), observe_launches(launches.append):
            check_kernel(made, device, arrays, given[3], terms=terms)
        assert launches[0].kernel.name.startswith(f"conv2d_{variant}"), made.name
    return len(passes)


@both
def test_kernels(variant: str, case: Conv2dCase, kernel_device: str) -> None:
    given = problem(case.x, case.weight, case.bias, case.options)
    strided = max(given[3].SH, given[3].SW) > 1
    assert check(variant, kernel_device, given) == (1 if case in TO_FEW and strided else 3)


@both
def test_kernels_in_bfloat16(variant: str, case: Conv2dCase, kernel_device: str) -> None:
    use()
    given = problem(case.x, case.weight, case.bias, case.options)
    for made, arrays, terms in taken(variant, given):
        launches: list[Launch] = []
        with gpucnn.use_variant(conv2d=variant), observe_launches(launches.append):
            check_stored(made, kernel_device, arrays, given[3], stored=(0, 1), terms=terms)
        assert launches[0].kernel.name.startswith(f"conv2d_{variant}"), made.name
        assert ("BFLOAT16", 1) in launches[0].kernel.spec.macros


@both
@pytest.mark.emulated
def test_the_order_of_threads_does_not_show(variant: str, case: Conv2dCase) -> None:
    def in_every_order(launch: Launch, arguments: Any) -> None:
        spec, name = launch.kernel.spec, launch.kernel.name
        compiled = emulator.RawKernel(spec.source, name, spec.options)
        emulator.check_order(compiled, launch.grid, launch.block, arguments, launch.shared_mem)

    given = problem(case.x, case.weight, case.bias, case.options)
    with gpucnn.use_variant(conv2d=variant), standing_in(in_every_order):
        for made, arrays, _ in taken(variant, given):
            made.on("emulated")(*arrays, given[3])


@pytest.mark.parametrize(("variant", "case"), [("direct", DIRECT[7]), ("depthwise", DEPTHWISE[1])])
def test_slices_of_several_tiles(
    variant: str, case: Conv2dCase, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for larger batches, where a block goes from tile to tile."""
    monkeypatch.setattr(conv2d_direct, "BLOCKS", 2)
    monkeypatch.setattr(conv2d_depthwise, "BLOCKS", 2)
    x, _, _, s, dy = problem((9, *case.x[1:]), case.weight, False, case.options)
    launches: list[Launch] = []
    with gpucnn.use_variant(conv2d=variant), observe_launches(launches.append):
        check_kernel(conv2d_weight_gradient, kernel_device, [dy, x], s, terms=s.outputs)
    assert launches[0].grid[0] <= 4
    if variant == "direct":
        tile = direct_tile(s, True)
        assert tile is not None
        assert tile.count >= 3 * launches[0].grid[0]


@pytest.mark.parametrize("case", [DIRECT[3], DIRECT[7], DIRECT[5], TO_FEW[0], TO_FEW[2]], ids=str)
def test_blocks_of_several_tiles_keep_their_filters(
    case: Conv2dCase, kernel_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_few.cache_clear()
    monkeypatch.setattr(conv2d_direct, "_tiles_each", lambda tiles: 3)
    check("direct", kernel_device, problem((9, *case.x[1:]), case.weight, True, case.options))
    to_few.cache_clear()


def test_the_cases_reach_every_specialisation() -> None:
    """Planned on the emulated device and not run."""
    use()
    launches: list[Launch] = []
    with observe_launches(launches.append), without_running():
        for case in (*DIRECT, *TO_FEW, *DEPTHWISE):
            x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
            for stored in (np.asarray, narrowed):
                x, w, dy = stored(x), stored(w), stored(dy)
                conv2d_forward.on("emulated")(x, w, b, s)
                conv2d_data_gradient.on("emulated")(dy, w, s)
                conv2d_weight_gradient.on("emulated")(dy, x, s)
    reached = {(launch.kernel.spec, launch.kernel.name) for launch in launches}
    for family in ("conv2d_direct", "conv2d_direct_to_few", "conv2d_depthwise"):
        for spec in FILES[family].specialisations:
            assert {(spec, name) for name in kernel.signatures(family)} <= reached, spec


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
        c, oc = draw(st.integers(1, 4)), draw(st.integers(1, 40))
        c, oc = draw(st.sampled_from([(c, oc), (oc, c)]))
        cg, least = c, 3 if c <= 4 or max(stride) == 1 else 1
    else:
        cg = draw(st.sampled_from([1, 1, 2, 4]))
        c = draw(st.sampled_from([4, 8, 12, 40] if cg > 1 else [2, 3, 4, 8, 12, 40]))
        oc, options["groups"], least = c * (draw(st.integers(1, 3)) if cg == 1 else 1), c // cg, 3
    if options.get("groups") == 1:
        return
    given = problem((n, *size, c), (oc, *kernel, cg), draw(st.booleans()), options)
    assert check(variant, "emulated", given) >= least


@pytest.mark.parametrize(
    ("case", "variant"),
    [
        (ConvCase((2, 5, 6, 16), (16, 4, 4, 3), {"stride": 2, "padding": 1}), "direct"),
        (ConvCase((1, 4, 5, 6), (6, 3, 3, 1), {"stride": 3, "output_padding": (2, 1)}), "direct"),
        (ConvCase((1, 4, 9, 2), (2, 3, 3, 20), {"padding": 1}), "direct"),
        (ConvCase((1, 5, 4, 8), (8, 3, 3, 1), {"groups": 8, "stride": 2}), "depthwise"),
        (ConvCase((1, 5, 4, 6), (6, 3, 3, 1), {"groups": 3, "stride": 2}), "depthwise"),
        (ConvCase((1, 5, 4, 8), (8, 3, 3, 4), {"groups": 2, "padding": 1}), "depthwise"),
    ],
    ids=str,
)
def test_transposed_convolutions(case: ConvCase, variant: str, kernel_device: str) -> None:
    """The same kernels with a bias, which are also the default."""
    options = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1, "groups": 1}
    channels = case.weight[-1] * case.options.get("groups", 1)
    x, w, b = randn(*case.x), randn(*case.weight, seed=1), randn(channels, seed=3)
    s = conv_transpose2d_geometry(x, w, b, **{**options, **case.options})
    for chosen in (variant, None):
        launches: list[Launch] = []
        with gpucnn.use_variant(conv_transpose2d=chosen), observe_launches(launches.append):
            given = [x, w, b]
            check_kernel(conv_transpose2d_forward, kernel_device, given, s, terms=s.OCG * s.K)
        assert launches[0].kernel.name.startswith(f"conv2d_{variant}")


@pytest.mark.emulated
def test_arrays_may_begin_anywhere() -> None:
    """Kernels with 16-byte accesses get them at multiples of 16 bytes."""
    for variant, case in (
        ("direct", TO_FEW[0]),
        ("direct", DIRECT[3]),
        ("depthwise", DEPTHWISE[0]),
    ):
        x, w, b, s, dy = problem(case.x, case.weight, case.bias, case.options)
        moved = []
        for a in (x, w, b, dy):
            assert a is not None
            room = np.empty(a.size + 1, np.float32)
            moved.append(room[1:].reshape(a.shape))
            moved[-1][...] = a
        x, w, b, dy = moved
        check(variant, "emulated", (x, w, b, s, dy))


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
        ((1, 8, 8, 4), (8, 3, 3, 4), {}, 3, 0),
        ((1, 8, 8, 1), (8, 3, 3, 1), {"stride": 2}, 3, 0),
        ((1, 8, 8, 5), (8, 3, 3, 5), {}, 0, 0),
        ((1, 8, 8, 16), (4, 3, 3, 16), {}, 3, 0),
        ((1, 8, 8, 16), (4, 3, 3, 16), {"stride": 2}, 1, 0),
        ((1, 8, 8, 4), (8, 3, 3, 2), {"groups": 2}, 0, 0),
        ((1, 8, 8, 4), (4, 3, 3, 2), {"groups": 2}, 0, 3),
        ((1, 8, 8, 6), (6, 3, 3, 2), {"groups": 3}, 0, 0),
        ((1, 8, 8, 8), (8, 3, 3, 4), {"groups": 2}, 0, 3),
        ((1, 8, 8, 4), (8, 3, 3, 1), {"groups": 4}, 0, 3),
        ((1, 200, 200, 4), (64, 40, 40, 4), {}, 0, 0),
        ((1, 300, 300, 2), (8, 3, 3, 2), {"dilation": 140}, 1, 0),  # only the data gradient
        ((1, 40, 40, 4), (4, 33, 33, 1), {"groups": 4}, 0, 0),
        ((1, 8, 8, 2**19), (2**19, 1, 1, 1), {"groups": 2**19}, 0, 3),
    ],
)
def test_what_fits(x: Any, weight: Any, options: Any, direct: int, depthwise: int) -> None:
    all_options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **options}
    s = conv2d_geometry(np.empty(x, "f"), np.empty(weight, "f"), None, *all_options.values())
    found = [
        sum(VARIANTS[variant].takes(made.name, s) for made in PASSES)
        for variant in ("direct", "depthwise")
    ]
    assert found == [direct, depthwise]


def test_tiles_fit_the_shared_memory_of_every_gpu() -> None:
    for kernel_size in (1, 3, 5, 7, 11):
        for size, stride in ((1, 1), (28, 2), (224, 1), (1000, 4)):
            weight = np.empty((64, kernel_size, kernel_size, 3), "f")
            x = np.empty((2, size, size, 3), "f")
            s = conv2d_geometry(x, weight, None, stride, kernel_size // 2, 1, 1)
            tiles = direct_tile(s, False), direct_tile(s, True), to_few(s, True)
            for tile in tiles:
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
            nn.ReLU(),
            nn.Conv2d(6, 4, 1),
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


THROUGH_THE_TAPE = [DIRECT[3], DIRECT[7], TO_FEW[0], *(DEPTHWISE[i] for i in (0, 6, 14, 15))]


@pytest.mark.parametrize("case", THROUGH_THE_TAPE, ids=str)
def test_gradients_agree_with_the_cpu(case: Conv2dCase, kernel_device: str) -> None:
    """Through the tape, by the default choice."""
    x, w, b, s, dy = problem(case.x, case.weight, True, case.options)
    assert b is not None

    def fn(*t: gpucnn.Tensor) -> gpucnn.Tensor:
        return F.conv2d(*t, **case.options)

    y, grads = gradients(fn, [x, w, b], dy)
    found = gradients(fn, [x, w, b], dy, kernel_device)
    for a, e in zip([found[0], *found[1]], [y, *grads], strict=True):
        assert_close(a, e, "float32", s.outputs)


@needs_torch
@pytest.mark.parametrize("case", THROUGH_THE_TAPE, ids=str)
def test_values_and_gradients_are_those_of_pytorch(case: Conv2dCase, kernel_device: str) -> None:
    x, w, b, s, dy = problem(case.x, case.weight, True, case.options)
    assert b is not None
    nchw, nhwc = (0, 3, 1, 2), (0, 2, 3, 1)
    given = [torch.tensor(a, dtype=torch.float64) for a in (x, w, b, dy)]
    tx, tw, tb, tdy = (t.permute(nchw) if t.ndim == 4 else t for t in given)
    for t in (tx, tw, tb):
        t.requires_grad_()
    ty = torch.nn.functional.conv2d(tx, tw, tb, **case.options)
    ty.backward(tdy)
    expected = [ty.detach(), tx.grad, tw.grad]
    y, grads = gradients(lambda *t: F.conv2d(*t, **case.options), [x, w, b], dy, kernel_device)
    for a, e in zip([y, *grads[:2]], expected, strict=True):
        assert_close(a, e.permute(nhwc).numpy(), "float32", s.outputs)
    assert_close(grads[2], tb.grad.numpy(), "float32", s.outputs)
