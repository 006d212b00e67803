"""Theoretical occupancy: by hand, and beside NVIDIA's own calculator."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gpucnn.xray.occupancy import LIMITS, Occupancy, occupancy


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "share", "limits"),
    [
        # what fills a multiprocessor
        ("sm_80", 256, 32, 0, 8, 1.0, ("warps", "registers")),
        ("sm_75", 1024, 64, 0, 1, 1.0, ("warps", "registers")),
        ("sm_86", 512, 40, 0, 3, 1.0, ("warps", "registers")),
        # registers: 33 become 40 of them, so 12 warps in each quarter of 16 Ki registers
        ("sm_80", 256, 33, 0, 6, 0.75, ("registers",)),
        ("sm_90", 256, 64, 0, 4, 0.5, ("registers",)),
        ("sm_90", 128, 128, 0, 4, 0.25, ("registers",)),
        ("sm_90", 256, 255, 0, 1, 0.125, ("registers",)),
        # 72 registers a thread * 1024 are more than the 64 Ki there are
        ("sm_90", 1024, 65, 0, 0, 0.0, ("registers",)),
        # blocks: one warp each
        ("sm_80", 32, 16, 0, 32, 0.5, ("blocks",)),
        ("sm_86", 32, 16, 0, 16, 16 / 48, ("blocks",)),
        ("sm_89", 32, 16, 0, 24, 0.5, ("blocks",)),
        ("sm_120", 32, 16, 0, 24, 0.5, ("blocks",)),
        # shared memory: 48 KiB and the system's 1 KiB; sm_75 takes none
        ("sm_90", 256, 32, 48 * 1024, 4, 0.5, ("shared memory",)),
        ("sm_80", 256, 32, 48 * 1024, 3, 0.375, ("shared memory",)),
        ("sm_86", 256, 32, 48 * 1024, 2, 16 / 48, ("shared memory",)),
        ("sm_75", 256, 32, 32 * 1024, 2, 0.5, ("shared memory",)),
        ("sm_90", 256, 32, 227 * 1024, 1, 0.125, ("shared memory",)),
        ("sm_90", 256, 32, 227 * 1024 + 1, 0, 0.0, ("shared memory",)),
        ("sm_80", 256, 32, 163 * 1024 + 1, 0, 0.0, ("shared memory",)),
        # a block of 100 threads holds four warps
        ("sm_80", 100, 16, 0, 16, 1.0, ("warps",)),
    ],
)
def test_occupancy(
    arch: str, threads: int, registers: int, shared: int, blocks: int, share: float,
    limits: tuple[str, ...],
) -> None:  # fmt: skip
    found = occupancy(arch, threads, registers, shared)
    assert found == Occupancy(blocks, blocks * math.ceil(threads / 32), share, limits)


def test_occupancy_refuses_what_no_gpu_takes() -> None:
    with pytest.raises(ValueError, match=r"arch must be one of sm_75, .* got 'sm_42'"):
        occupancy("sm_42", 256, 32)
    for threads in (0, 1025):
        with pytest.raises(ValueError, match=f"threads must be within 1 and 1024, got {threads}"):
            occupancy("sm_80", threads, 32)


CALCULATOR = r"""
#include <cstddef>
#include <cstdio>
#include "cuda_occupancy.h"
int main() {
    int major, minor, threads_per_sm, registers, threads;
    size_t shared_per_sm, reserved, shared;
    while (scanf("%d %d %d %zu %zu %d %d %zu", &major, &minor, &threads_per_sm, &shared_per_sm,
                 &reserved, &threads, &registers, &shared) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major;
        device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = threads_per_sm;
        device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 49152;
        device.sharedMemPerMultiprocessor = shared_per_sm;
        device.numSms = 1;
        device.sharedMemPerBlockOptin = shared_per_sm - reserved;
        device.reservedSharedMemPerBlock = reserved;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = shared_per_sm - reserved;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(
            &result, &device, &kernel, &state, threads, shared);
        printf("%d\n", error ? -1 : result.activeBlocksPerMultiprocessor);
    }
}
"""


@pytest.mark.emulated
def test_occupancy_is_that_of_the_occupancy_calculator(tmp_path: Path) -> None:
    """cuda_occupancy.h is NVIDIA's own calculator; it needs no GPU."""
    header = next(
        iter(Path(np.__file__).parents[1].glob("nvidia/*/include/cuda_occupancy.h")), None
    )
    if header is None:
        pytest.skip("needs cuda_occupancy.h of the wheel nvidia-cuda-runtime")
    source, program = tmp_path / "calculator.cpp", tmp_path / "calculator"
    source.write_text(CALCULATOR)
    compiler = ["g++", "-w", f"-I{header.parent}", str(source), "-o", str(program)]
    subprocess.run(compiler, check=True, timeout=60)
    cases = [
        (arch, threads, registers, shared)
        for arch in LIMITS
        for threads in (32, 96, 128, 160, 256, 512, 640, 1024)
        for registers in (16, 24, 32, 33, 40, 62, 64, 80, 96, 107, 128, 168, 255)
        for shared in (0, 32, 1000, 4480, 9088, 16 * 1024, 48 * 1024, 64 * 1024, 99 * 1024)
    ]
    lines = []
    for arch, threads, registers, shared in cases:
        limit, number = LIMITS[arch], int(arch[3:])
        lines.append(f"{number // 10} {number % 10} {limit.warps * 32} {limit.shared} "
                     f"{limit.reserved} {threads} {registers} {shared}")  # fmt: skip
    text = "\n".join(lines)
    said = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True)
    expected = list(map(int, said.stdout.split()))
    assert len(expected) == len(cases)
    assert min(expected) >= 0
    assert [occupancy(*case).blocks for case in cases] == expected
