"""The x-ray: usage, GPUs, predictions, instructions, which call shows a kernel, its counters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from bench.problems import all_problems
from gpucnn import emulator, kernel
from gpucnn.emulator import flops
from gpucnn.primitive import PRIMITIVES
from gpucnn.xray import compiled, measure, report, roofline, sass, select
from gpucnn.xray.annotate import annotated
from gpucnn.xray.gpus import GPUS, find_gpu
from gpucnn.xray.occupancy import LIMITS

needs_nvrtc = pytest.mark.skipif(
    kernel.nvrtc_version() is None, reason="needs CuPy and NVRTC: pip install 'gpucnn[cuda13x]'"
)
needs_nvdisasm = pytest.mark.skipif(
    sass.disassembler() is None, reason="needs nvdisasm: pip install 'gpucnn[xray]'"
)


def key(name: str, **macros: int) -> measure.KernelKey:
    """The kernel of this name and these macros; of activations in float32 unless they say else."""
    wanted = {"BFLOAT16": 0, **macros}.items()
    kernels = select.find_kernels(name)
    (found,) = (k for k in kernels if wanted <= {"BFLOAT16": 0, **dict(k[0].macros)}.items())
    return found


def problem(name: str) -> measure.Problem:
    (found,) = (p for p in all_problems() if str(p) == name)
    return found


# the compiler

LOG = """\
ptxas info    : 4 bytes gmem
ptxas info    : Compiling entry function 'plain' for 'sm_90'
ptxas info    : Function properties for plain
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 16 registers, used 0 barriers
ptxas info    : Compiling entry function 'spilling' for 'sm_90'
ptxas info    : Function properties for spilling
ptxas         .     40 bytes stack frame, 36 bytes spill stores, 52 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 40 bytes cumulative stack size, 2048 bytes smem
"""


def test_the_log_of_ptxas() -> None:
    assert compiled.parse_log(LOG) == {
        "plain": compiled.Usage(16, 0, 0, 0, 0),
        "spilling": compiled.Usage(255, 40, 36, 52, 2048),
    }
    assert compiled.parse_log(LOG)["spilling"].spills == 36 + 52


@needs_nvrtc
def test_static_shared_memory_is_what_the_source_declares() -> None:
    """Two slabs of tile_matmul.cuh: 16 rows of TILE_GM + 4 and of TILE_GN + 2 floats."""
    spec, name = key("linear_forward", TILE_GN=32)
    usage = compiled.compiled(spec, "sm_80").usage[name]
    assert usage.static_shared == 4 * 16 * (4 * 256 // 32 + 4 + 32 + 2)


@needs_nvrtc
def test_compiled_code_is_kept_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "cache_folder", lambda name: tmp_path / name)
    spec, _ = key("transpose_tiles")
    fresh = compiled._compiled.__wrapped__
    first = fresh(spec, "sm_80")
    monkeypatch.setattr(compiled, "nvrtc_cubin", None)  # a second compilation would fail
    assert fresh(spec, "sm_80") == first
    assert first.cubin.startswith(b"\x7fELF")
    assert set(first.usage) == set(kernel.signatures("transpose"))


@needs_nvrtc
def test_an_interrupted_compilation_stops() -> None:
    """What has not begun does not begin."""
    spec, _ = key("transpose_tiles")
    begun: list[str] = []

    def stop(spec: kernel.Specialisation, arch: str, error: str) -> None:
        begun.append(error)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compiled.compile_each([(spec, "sm_80"), (spec, "sm_1"), (spec, "sm_2")] * 50, stop)
    assert len(begun) == 1


@needs_nvrtc
def test_a_compiler_error_is_handed_over() -> None:
    spec, _ = key("transpose_tiles")
    errors: list[str] = []
    compiled.compile_each([(spec, "sm_1")], lambda spec, arch, error: errors.append(error))
    (error,) = errors
    assert "transpose" in error
    assert "--gpu-architecture" in error


@needs_nvrtc
@pytest.mark.parametrize(
    ("name", "threads"),
    [("linear_forward", 256), ("sum_of_squares", 256), ("conv2d_naive_forward", None)],
)
def test_launch_bounds(name: str, threads: int | None) -> None:
    spec, kernel_name = select.find_kernels(name)[0]
    assert compiled.launch_bound(compiled.compiled(spec, "sm_80").cubin, kernel_name) == threads


# GPUs and predictions


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_the_float32_rate_is_that_of_the_lanes(gpu) -> None:
    lanes = 64 if gpu.arch in ("sm_75", "sm_80") else 128
    assert gpu.fp32 == pytest.approx(gpu.multiprocessors * lanes * 2 * gpu.clock / 1e3, rel=0.01)
    assert gpu.arch in LIMITS
    if gpu.tf32 is not None:  # half the products of bfloat16, on every tensor core
        assert gpu.bf16 == pytest.approx(2 * gpu.tf32, rel=0.02)


def test_gpus_by_name() -> None:
    assert set(GPUS) == {"T4", "A10", "A100", "L4", "RTX 4090", "H100", "H200", "B200"}
    assert find_gpu("rtx-4090") is find_gpu("RTX4090") is GPUS["RTX 4090"]
    with pytest.raises(ValueError, match=r"one of T4, A10, .*, B200\. Did you mean 'H200'\?"):
        find_gpu("H2000")
    with pytest.raises(ValueError, match="T4 has no tensor cores for it"):
        GPUS["T4"].rate("tf32")
    with pytest.raises(
        ValueError, match="precision must be one of fp32, tf32, bf16, fp16, got 'fp8'"
    ):
        GPUS["H100"].rate("fp8")


def test_predictions_by_hand() -> None:
    """A10: 600 GB/s and 31.2 TFLOP/s, so 52 FLOPs a byte are in balance."""
    a10 = GPUS["A10"]
    copy = roofline.predict(a10, moved=6e6, flops=6e6)
    assert (copy.memory_us, copy.bound) == (pytest.approx(10), "memory")
    assert copy.us == pytest.approx(10 + roofline.LAUNCH_US)
    dense = roofline.predict(a10, moved=6e6, flops=3.12e9, launches=3)
    assert (dense.math_us, dense.bound) == (pytest.approx(100), "math")
    assert dense.us == pytest.approx(100 + 3 * roofline.LAUNCH_US)
    assert roofline.predict(a10, moved=60, flops=0).bound == "launch"
    both = roofline.predict(a10, moved=6e6, flops=3.12e9, matrix_flops=12.5e9)
    assert both.math_us == pytest.approx(200)  # tensor cores at 62.5 TFLOP/s, meanwhile 100 us
    faster = roofline.predict(a10, moved=6e6, flops=3.12e9, precision="bf16")
    assert faster.math_us == pytest.approx(3.12e9 / 125e12 * 1e6)


# instructions


@pytest.mark.parametrize(
    ("opcode", "operands", "name"),
    [
        ("FFMA.FTZ", "R1,R2,R3,R4", "FFMA"),
        ("FADD.FTZ", "R1,R2,R3", "FADD"),
        ("UFADD.FTZ", "UR1,UR2,UR3", "FADD"),
        ("HMMA.1688.F32.TF32", "R4,R8,R10,R4", "HMMA"),
        ("LDG.E.128", "R8,desc[UR4][R2.64]", "LDG.128"),
        ("LDG.E.64.CONSTANT", "R8,desc[UR4][R2.64]", "LDG.64"),
        ("LDG.E.U8", "R8,desc[UR4][R2.64]", "LDG.8"),
        ("LDG.E", "R8,desc[UR4][R2.64]", "LDG.32"),
        ("STG.E.128", "desc[UR4][R2.64],R8", "STG.128"),
        ("LDS.128", "R4,[R1]", "LDS.128"),
        ("STS", "[R1],R4", "STS.32"),
        ("LDSM.16.M88.4", "R4,[R1]", "LDSM"),
        ("LDGSTS.E.BYPASS.128", "[R1],desc[UR4][R2.64]", "LDGSTS.128"),
        ("LDL", "R4,[R1]", "LDL.32"),
        ("BAR.SYNC.DEFER_BLOCKING", "0x0", "BAR"),
        ("SHFL.BFLY", "PT,R1,R2,0x10,0x1f", "SHFL"),
        ("MUFU.EX2", "R1,R2", "MUFU"),
        ("IMAD.WIDE.U32", "R2,R13,0x4,R2", "integer"),
        ("UIADD3", "UR4,UR5,0x1,URZ", "integer"),
        ("HFMA2", "R4,-RZ,RZ,0,0", "move"),
        ("HFMA2", "R4,R5,R6,R7", "HFMA2"),
        ("ULDC.64", "UR4,c[0x0][0x208]", "move"),
        ("BRA.U", "UP0,0x160", "branch"),
        ("FSETP.GT.FTZ.AND", "P4,PT,R8,UR7,PT", "float compare"),
        ("NEVERHEARDOF", "", "other"),
    ],
)
def test_classes_of_instructions(opcode: str, operands: str, name: str) -> None:
    assert sass.classify(opcode, operands) == name


def test_the_main_loop_is_the_inner_one_with_most_math() -> None:
    classes = ["integer", *["FFMA"] * 4, "branch", "FADD", "integer", "FFMA", "branch", "branch"]
    # [1, 5] holds four, [8, 9] one; [0, 10] goes around both
    assert sass._main_loop(classes, {5: 1, 9: 8, 10: 0}) == (1, 6)
    assert sass._main_loop(classes, {9: 8}) == (8, 10)
    assert sass._main_loop(classes, {5: 9}) is None  # forwards
    assert sass._main_loop(["integer", "branch"], {1: 0}) is None  # nothing computed
    copying = ["LDGSTS.128", "FFMA", "branch", *["FADD"] * 9, "branch"]
    assert sass._main_loop(copying, {2: 0, 12: 3}) == (0, 3)
    assert sass._main_loop(["move", *copying[1:]], {2: 0, 12: 3}) == (3, 13)


@needs_nvrtc
@needs_nvdisasm
@pytest.mark.parametrize("arch", ["sm_75", "sm_90", "sm_120"])
def test_the_main_loop_of_the_tile_product(arch: str) -> None:
    """Per slab of 16 k: four multiply-adds, a 16-byte and a 4-byte read of shared memory each."""
    spec, name = key("linear_forward", TILE_GN=32)
    mix = sass.instruction_mix(compiled.compiled(spec, arch).cubin)[name]
    assert mix.loop["FFMA"] == 16 * 4
    assert mix.loop["LDS.128"] == mix.loop["LDS.32"] == 16
    assert mix.loop["BAR"] == 2
    loads = 32 + sum(n for what, n in mix.loop.items() if what.startswith("LDG"))
    assert mix.math_per_load == pytest.approx(64 / loads, rel=0.05)
    assert "other" not in mix.all


# which launch stands for a kernel


def test_a_plan_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "_emulated_kernel", None)
    calls = measure.planned(problem("conv2d_weight_gradient[16to32-b16]"))
    variants = [call.variant for call in calls if call.precision == "fp32"]
    assert variants == list(PRIMITIVES["conv2d_weight_gradient"].launchers)
    assert {call.variant for call in calls if call.default} == {variants[0]}
    # a precision is another call where it changes what is launched
    others = {p: {c.variant for c in calls if c.precision == p} for p in ("tf32", "bf16")}
    # what "depthwise", "direct" and "winograd" do not take, they leave to the default
    assert others["tf32"] == {"", "implicit_gemm", "depthwise", "direct", "winograd"}
    assert others["bf16"] == set(variants)  # all of them take activations stored so
    naive = next(call for call in calls if call.variant == "naive")
    first = naive.launches[0]
    assert first.kernel.name == "conv2d_naive_weight_gradient"
    blocks = -(-32 * 3 * 3 * 16 // first.block[0])
    assert first.grid[0] == blocks
    assert naive.of((first.kernel.spec, first.kernel.name)) == [first]
    assert naive.work == 2 * 16 * 32 * 32 * 32 * 3 * 3 * 16


def test_a_typical_call_of_the_default_launcher_stands_for_a_kernel() -> None:
    plan = measure.plan(p for p in all_problems() if p.group != "layer")
    wanted = key("conv2d_register_tiled_forward", DIMS=2, TILE_GN=32, VECTOR=4)
    call = measure.representative(wanted, plan[wanted])
    assert call.default
    assert call.problem.group == "typical"
    assert call.work <= measure.MOST_WORK
    # the kernel's own problem, not one where it adds up a few numbers at the end
    own = key("axis_sum")
    assert measure.representative(own, plan[own]).problem.family == "reduce"
    own = key("transpose_tiles")
    assert measure.representative(own, plan[own]).problem.family == "transpose"
    wanted = key("conv2d_register_tiled_forward", DIMS=2, VECTOR=1)
    edges = [c for c in plan[wanted] if c.problem.group == "edge" and c.default]
    chosen = measure.representative(wanted, edges)
    sizes = [math.prod(x.grid) for c in edges for x in c.of(wanted)]
    assert math.prod(chosen.of(wanted)[0].grid) == max(sizes)


@pytest.mark.emulated
def test_counters_of_a_call() -> None:
    """ReLU with a multiple of four elements: every byte once, sixteen bytes a lane."""
    relu = key("relu_forward")
    (call,) = measure.planned(problem("relu_forward[16-b8]"))
    counters = measure.counted(call)[relu]
    n = 8 * 32 * 32 * 16
    assert (counters.read_bytes, counters.written_bytes) == (4 * n, 4 * n)
    row = report.Row("relu_forward", relu[0], "sm_90", None, None, call, 256, 0, counters)
    assert row.footprint == row.traffic == call.problem.bytes
    assert row.traffic_ratio == 1
    assert (row.launches, row.conflicts_per_request, row.occupancy) == (1, None, None)
    floor, uncached = row.predictions(GPUS["A10"])
    assert floor == uncached
    assert floor.us == pytest.approx(8 * n / 600e9 * 1e6 + roofline.LAUNCH_US)


@pytest.mark.emulated
def test_launches_of_one_kernel_are_summed() -> None:
    (call,) = measure.planned(problem("relu_forward[16-b8]"))
    once = measure.counted(call)[key("relu_forward")]
    twice = measure.merged([once, once])
    assert twice.global_requests == 2 * once.global_requests
    assert twice.sectors_per_request == once.sectors_per_request
    assert twice.flops == 2 * once.flops
    assert len(twice.sites) == len(once.sites)
    assert once.global_requests == measure.counted(call)[key("relu_forward")].global_requests


@pytest.mark.emulated
def test_the_margin_stands_beside_the_line_that_reads() -> None:
    wanted = key("softmax_forward")
    call = measure.representative(
        wanted, measure.plan([problem("softmax_forward[512x200]")])[wanted]
    )
    lines = list(annotated([measure.counted(call)[wanted]]))
    assert lines[0].endswith("| kernels/softmax.cu")
    source = (kernel.kernel_folder() / "softmax.cu").read_text().splitlines()
    margin = lines[0].index("|") + 2
    shown = [line[margin:] for line in lines[1 : lines.index("")]]
    assert [text for text in shown if text] == [text for text in source if text]
    (read,) = [line for line in lines if "y[c] = expf(x[c] - largest) / sum" in line]
    access, requests, sectors, ideal, *_ = read.split()
    assert (access, int(requests)) == ("ld.g", 512 * 7)  # 200 channels are 7 turns of a warp
    assert sectors == ideal == f"{(6 * 4 + 1) / 7:.2f}"
    shuffles = [line for line in lines if line.lstrip().startswith("shfl")]
    assert {int(line.split()[1]) for line in shuffles} == {512 * 5}


@pytest.mark.emulated
def test_what_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    relu = key("relu_forward")
    chosen = report.choose([relu], [problem("relu_forward[16-b8]")])
    (nothing,) = report.examine([relu], chosen, ["sm_90"], report.Tools(False, False, False))
    assert nothing.usage is nothing.mix is nothing.counters is nothing.occupancy is None
    assert (nothing.threads, nothing.dynamic_shared) == (256, 0)
    (counted,) = report.examine([relu], chosen, ["sm_90"], report.Tools(False, False, True))
    assert counted.usage is None
    assert counted.counters is not None
    (unreached,) = report.examine([relu], {}, ["sm_90"], report.Tools(False, False, True))
    assert unreached.call is unreached.counters is None

    monkeypatch.setattr(flops, "available", lambda: False)
    assert "no counters: the emulator counts on x86-64 only" in report.Tools.here().missing()
    monkeypatch.setattr(kernel, "nvrtc_version", lambda: None)
    monkeypatch.setattr(emulator, "available", lambda: False)
    tools = report.Tools.here()
    assert tools == report.Tools(False, False, False)
    assert [note.split(":")[0] for note in tools.missing()] == [
        "no registers and no occupancy", "no counters",
    ]  # fmt: skip


def test_a_call_too_large_is_not_emulated() -> None:
    spec_key = key("conv2d_tiled_forward", DIMS=2, TILE_GN=32)
    (call, *_) = measure.planned(problem("conv2d_forward[16to32-b16]"))
    huge = measure.Call(_Huge(call.problem), call.variant, call.launches)
    said: list[str] = []
    tools = report.Tools(False, False, emulator.available())
    (row,) = report.examine([spec_key], {spec_key: huge}, ["sm_90"], tools, said.append)
    assert row.counters is None
    if tools.emulator:
        assert said == ["not emulated: huge takes 1.0e+12 operations"]


class _Huge:
    """A problem that says it computes a great deal."""

    def __init__(self, problem: measure.Problem) -> None:
        self.family, self.primitive, self.case = problem.family, problem.primitive, problem.case
        self.group, self.make, self.bytes, self.flops = "layer", problem.make, 1, 10**12

    def __str__(self) -> str:
        return "huge"
