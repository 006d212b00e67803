"""What is known without a GPU of the kernels for few channels, and must stay so."""

from __future__ import annotations

import pytest

from bench.cases import Conv2dCase
from gpucnn import emulator, kernel
from gpucnn.kernel import FILES
from gpucnn.xray import sass
from gpucnn.xray.compiled import compiled
from gpucnn.xray.counters import LaunchCounters, count
from tests.few_channels import problem, taken

needs_counters = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)
needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)
needs_disassembler = pytest.mark.skipif(sass.disassembler() is None, reason=sass.HINT)


def counted(case: Conv2dCase) -> list[LaunchCounters]:
    """The counters of the three passes, by the kernels that they take by themselves."""
    given = problem(case.x, case.weight, case.bias, case.options)
    found = []
    for made, arrays, _ in taken("depthwise" if given[3].G > 1 else "direct", given):
        with count() as launches:
            made.on("emulated")(*arrays, given[3])
        found.append(launches.launches[0])
    return found


# First layers, heads, the layers of MobileNet and ResNeXt.
@pytest.mark.parametrize(
    "case",
    [
        Conv2dCase((2, 72, 72, 1), (16, 3, 3, 1), {"padding": 1}),
        Conv2dCase((2, 72, 72, 1), (8, 3, 3, 1), {"padding": 1}),
        Conv2dCase((2, 32, 32, 3), (64, 3, 3, 3), {"padding": 1}),
        Conv2dCase((2, 32, 32, 3), (16, 3, 3, 3), {"padding": 1}),
        Conv2dCase((1, 32, 32, 3), (16, 4, 4, 3), {"padding": 1, "stride": 2}),
        Conv2dCase((1, 32, 32, 64), (2, 3, 3, 64), {"padding": 1}),
        Conv2dCase((2, 16, 32, 64), (4, 1, 1, 64)),
        Conv2dCase((1, 32, 32, 64), (64, 3, 3, 1), {"padding": 1, "groups": 64}),
        Conv2dCase((1, 32, 32, 64), (64, 3, 3, 1), {"padding": 1, "groups": 64, "stride": 2}),
        Conv2dCase((1, 7, 7, 512), (512, 3, 3, 1), {"padding": 1, "groups": 512}),
        Conv2dCase((1, 16, 16, 32), (64, 3, 3, 1), {"padding": 1, "groups": 32}),
        Conv2dCase((1, 16, 16, 32), (96, 3, 3, 1), {"padding": 1, "groups": 32, "stride": 2}),
        Conv2dCase((1, 32, 32, 64), (64, 3, 3, 4), {"padding": 1, "groups": 16}),
        Conv2dCase((1, 16, 16, 64), (64, 3, 3, 2), {"padding": 1, "groups": 32, "stride": 2}),
    ],
    ids=str,
)
@needs_counters
def test_requests_are_coalesced_and_reads_do_not_conflict(case: Conv2dCase) -> None:
    """All is written once, and shared memory is read without conflicts."""
    found = counted(case)
    assert len(found) == 3
    for counters in found:
        assert counters.coalesced_share >= 0.9, counters.kernel
        assert counters.written_bytes == counters.written_footprint, counters.kernel
        reads = [x for x in counters.sites if (x.space, x.access) == ("shared", "read")]
        assert sum(x.conflicts for x in reads) <= 0.02 * sum(x.requests for x in reads)


@pytest.mark.parametrize(
    "case",
    [
        Conv2dCase((8, 28, 28, 1), (6, 5, 5, 1), {"padding": 2}),
        Conv2dCase((1, 56, 56, 3), (64, 7, 7, 3), {"padding": 3, "stride": 2}),
    ],
    ids=str,
)
@needs_counters
def test_first_layers_of_lenet_and_resnet(case: Conv2dCase) -> None:
    """Forward and weight gradient; y and dy of six channels pass through lines."""
    for counters in counted(case)[:2]:
        assert counters.coalesced_share >= 0.9
        assert counters.written_bytes == counters.written_footprint
        reads = [x for x in counters.sites if (x.space, x.access) == ("shared", "read")]
        assert sum(x.conflicts for x in reads) == 0 or case.weight[0] % 4


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize(
    ("name", "macros", "loop"),
    [
        # a filter row: 8 pixels x 4 outputs x 9 taps, of 30 cells and 9 times 4 weights
        ("conv2d_direct_forward", (3, 3, 1), {"FFMA": 288, "LDS.32": 30, "LDS.128": 9}),
        # 8 pixels x 4 channels x 3 taps x 4 outputs, of 10 pixels and 12 times 4 weights
        ("conv2d_direct_to_few", (4,), {"FFMA": 384, "LDG.128": 10, "LDS.128": 12, "LDS.32": 1}),
        # 4 pixels x 4 channels x 9 taps, of 18 pixels; all weights stay in registers
        ("conv2d_depthwise_forward", (3, 1, 1, 1, 4), {"FFMA": 144, "LDG.128": 18, "STG.128": 4}),
        ("conv2d_depthwise_data_gradient", (3, 1, 1, 1, 4), {"FFMA": 144, "LDG.128": 18}),
        ("conv2d_depthwise_weight_gradient", (3, 1, 1, 1, 4), {"FFMA": 48, "LDG.128": 10}),
    ],
)
def test_the_main_loop_is_that_of_the_count(
    name: str, macros: tuple[int, ...], loop: dict[str, int]
) -> None:
    """As the head comments predict, and nothing else goes to memory."""
    (spec,) = (
        spec
        for family in ("conv2d_direct", "conv2d_direct_to_few", "conv2d_depthwise")
        for spec in FILES[family].specialisations
        if name in kernel.signatures(family) and tuple(v for k, v in sorted(spec.macros)) == macros
    )
    mix = sass.instruction_mix(compiled(spec, "sm_90").cubin)[name].loop
    assert loop == {k: n for k, n in mix.items() if k.startswith(("FFMA", "LDS", "LDG", "STG"))}
