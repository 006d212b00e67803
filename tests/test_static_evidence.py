"""What is known of every tensor-core kernel without a GPU, and must stay so."""

from __future__ import annotations

import pytest

from gpucnn import emulator, kernel
from gpucnn.kernel import Specialisation
from gpucnn.xray import sass
from gpucnn.xray.compiled import compiled
from gpucnn.xray.occupancy import occupancy
from gpucnn.xray.pipeline import Pipeline, tensor_core_kernels

ARCHITECTURES = ("sm_80", "sm_90")
FEWEST_BLOCKS, FEWEST_WARPS = 2, 8  # resident on a multiprocessor; either is enough
COALESCED = 0.9

needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)
needs_disassembler = pytest.mark.skipif(sass.disassembler() is None, reason=sass.HINT)
needs_emulator = pytest.mark.skipif(
    not emulator.available(), reason=emulator.why_unavailable() or "g++ is here"
)
every_kernel = pytest.mark.parametrize("pipeline", tensor_core_kernels(), ids=str)


def test_every_tensor_core_kernel_is_here() -> None:
    """Whatever includes mma.cuh, in every specialisation."""
    with_mma = {s for s in kernel.specialisations() if '"kernels/mma.cuh"' in s.source}
    here = {(p.spec, p.kernel) for p in tensor_core_kernels()}
    assert here == {(spec, name) for spec in with_mma for name in kernel.signatures(spec.family)}


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@every_kernel
def test_nothing_spills_and_enough_is_resident(pipeline: Pipeline, arch: str) -> None:
    usage = compiled(pipeline.spec, arch).usage[pipeline.kernel]
    assert (usage.spills, usage.stack) == (0, 0)
    shared = usage.static_shared + pipeline.dynamic_shared
    fits = occupancy(arch, pipeline.tile.threads, usage.registers, shared)
    assert fits.blocks >= FEWEST_BLOCKS or fits.warps >= FEWEST_WARPS, f"{usage}: {fits}"


def specialisations(arch: str) -> list[tuple[str, Specialisation]]:
    """All for sm_90; for sm_80, since disassembling takes time, the widest and the narrowest."""
    found = {p.spec: p.index for p in tensor_core_kernels() if p.dims == 2 and p.copied == 16}
    ends = (min(found.values()), max(found.values()))
    every = dict.fromkeys(p.spec for p in tensor_core_kernels())
    return [(arch, s) for s in every if arch == "sm_90" or found.get(s) in ends]


@needs_nvrtc
@needs_disassembler
@pytest.mark.parametrize(
    ("arch", "spec"), [case for arch in ARCHITECTURES for case in specialisations(arch)], ids=str
)
def test_the_main_loop_holds_what_the_tile_predicts(arch: str, spec: Specialisation) -> None:
    """Matrix instructions, their operands and the copies are those that the tile predicts."""
    mixes = sass.instruction_mix(compiled(spec, arch).cubin)
    for pipeline in (p for p in tensor_core_kernels() if p.spec == spec):
        mix, want = mixes[pipeline.kernel].loop, pipeline.loop
        assert mix["HMMA"] == want.math > 0, pipeline
        assert mix.get(f"LDGSTS.{8 * pipeline.copied}", 0) == want.copies, pipeline
        assert mix.get("LDS.128", 0) == want.places, pipeline
        if pipeline.by_rows or pipeline.transposes:
            assert mix["LDSM"] == want.operands, pipeline
        else:  # and a few that say which windows come next
            assert want.operands <= mix["LDS.32"] <= want.operands + 6, pipeline


@needs_emulator
@every_kernel
def test_requests_are_coalesced_and_banks_do_not_conflict(pipeline: Pipeline) -> None:
    """On channels that fill whole sectors; elsewhere runs of channels begin within one."""
    counters = pipeline.counted()
    assert counters.global_requests > 0 < counters.shared_requests
    assert counters.coalesced_share >= COALESCED
    assert counters.bank_conflicts == 0
    assert counters.matrix_flops > 0
