"""The ladder of convolutions in numbers: a table of ``kernels/README.md``, and one of every kernel
on tensor cores under ``bench/results/xray``.

``python -m bench.ladder`` writes both; ``python -m bench.ladder --check`` exits with 1 where they
say something else. Needs NVRTC, its disassembler and the emulator, and no GPU.
"""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, REGISTER_TILED, use_tile
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.precision import precision
from gpucnn.primitive import PRIMITIVES
from gpucnn.storage import handed_over
from gpucnn.xray import sass
from gpucnn.xray.compiled import compiled
from gpucnn.xray.counters import LaunchCounters, count
from gpucnn.xray.occupancy import Occupancy, occupancy
from gpucnn.xray.pipeline import PASSES, Pipeline, tensor_core_kernels
from gpucnn.xray.record import compiler_version
from gpucnn.xray.report import Tools

from .problems.problem import normal, shaped

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "kernels" / "README.md"
TENSOR_CORES = ROOT / "bench" / "results" / "xray" / "tensor_cores.csv"
BEGIN, END = "<!-- python -m bench.ladder: begin -->", "<!-- python -m bench.ladder: end -->"
ARCH = "sm_90"

# Each step of the ladder: a rung, the precision it is shown in, and what the table calls it.
STEPS = (
    ("naive", "fp32", "naive"),
    ("tiled", "fp32", "tiled"),
    ("register_tiled", "fp32", "register_tiled"),
    ("implicit_gemm", "fp32", "implicit_gemm, fp32"),
    ("implicit_gemm", "tf32", "implicit_gemm, tf32"),
    ("implicit_gemm", "bf16", "implicit_gemm, bf16"),
)
_RUNGS = {rung.name: rung for rung in (REGISTER_TILED, IMPLICIT_GEMM)}
IMAGES, FILTERS = (1, 16, 16, 32), (128, 3, 3, 32)


def problem() -> ConvGeometry:
    """What the ladder is shown on: one 256 × 128 tile of outputs, 288 k."""
    return conv_geometry(2, shaped(*IMAGES), shaped(*FILTERS), None, 1, 1, 1, 1)


@contextlib.contextmanager
def _widest_tile(rung: str, mode: str) -> Iterator[None]:
    if rung not in _RUNGS:
        yield
        return
    with use_tile(_RUNGS[rung], _RUNGS[rung].widest(mode)):
        yield


@dataclass(frozen=True)
class Seen:
    """One pass on one step of the ladder."""

    name: str
    counters: LaunchCounters
    registers: int
    shared: int
    occupancy: Occupancy
    mix: sass.Mix

    @property
    def multiply_adds_per_load(self) -> float:
        """Multiply-adds of the convolution that a lane does in the main loop, per load."""
        assert self.counters.spec is not None
        macros = dict(self.counters.spec.macros)
        per_matrix = 16 * 8 * (16 if macros.get("HALF") else 8) / 32 / macros.get("TERMS", 1)
        name, count = self.math
        return count * (per_matrix if name == "HMMA" else 1) / _loads(self.mix)

    @property
    def math(self) -> tuple[str, int]:
        """What multiplies in the main loop: (instruction, how many of them)."""
        name = "HMMA" if "HMMA" in self.mix.loop else "FFMA"
        return name, self.mix.loop[name]


def _loads(mix: sass.Mix) -> int:
    return sum(n for key, n in mix.loop.items() if key.split(".")[0] in sass.LOADS)


def see(direction: str) -> list[Seen]:
    """One pass on every step."""
    s, found = problem(), []
    x, w, y = normal(0, 0, *s.x_shape), normal(0, 1, *s.w_shape), normal(0, 2, *s.y_shape)
    inputs = {"forward": (x, w, None), "data_gradient": (y, w), "weight_gradient": (y, x)}
    for rung, mode, name in STEPS:
        launcher = PRIMITIVES[f"conv2d_{direction}"].launchers[rung]
        with _widest_tile(rung, mode), precision(mode), count() as counted:
            launcher(*handed_over("conv2d", inputs[direction]), s)
        (counters,) = (c for c in counted.launches if c.kernel == f"conv2d_{rung}_{direction}")
        assert counters.spec is not None
        module = compiled(counters.spec, ARCH)
        usage, threads = module.usage[counters.kernel], int(np.prod(counters.block))
        shared = usage.static_shared + counters.shared_mem
        fits = occupancy(ARCH, threads, usage.registers, shared)
        mix = sass.instruction_mix(module.cubin)[counters.kernel]
        found.append(Seen(name, counters, usage.registers, shared, fits, mix))
    return found


_COLUMNS = (
    *("registers", "shared memory", "warps per SM"),
    *("global requests", "sectors per request", "sectors ÷ least"),
    *("shared requests", "conflicts", "main loop: math, loads", "multiply-adds per load"),
)


def _cells(seen: Seen) -> Iterator[str]:
    c = seen.counters
    least = (c.read_footprint + c.written_footprint) / 32
    yield str(seen.registers)
    yield f"{seen.shared / 1024:.0f} KiB" if seen.shared else "–"
    yield str(seen.occupancy.warps)
    yield f"{c.global_requests:,}"
    yield f"{c.sectors_per_request:.1f} of {c.ideal_sectors_per_request:.1f}"
    yield f"{(c.read_sectors + c.written_sectors) / least:,.1f}"
    yield f"{c.shared_requests:,}" if c.shared_requests else "–"
    yield f"{c.bank_conflicts:,}" if c.shared_requests else "–"
    yield f"{seen.math[1]} {seen.math[0]}, {_loads(seen.mix)}"
    yield f"{seen.multiply_adds_per_load:.1f}"


def ladder() -> str:
    """The generated part of kernels/README.md."""
    s, lines = problem(), []
    flops = 2 * s.outputs * s.OC * s.K / 1e6
    lines.append(
        f"x {IMAGES}, w {FILTERS}, padding 1: {flops:.1f} MFLOP per pass. Registers, shared memory "
        f"and warps: NVRTC {compiler_version()} for {ARCH}; requests: the emulator.\n"
    )
    for direction in PASSES:
        lines += [f"**{direction.replace('_', ' ')}**\n", f"| rung | {' | '.join(_COLUMNS)} |"]
        lines.append("|---|" + "---:|" * len(_COLUMNS))
        lines += [f"| {seen.name} | {' | '.join(_cells(seen))} |" for seen in see(direction)]
        lines.append("")
    return "\n".join(lines)


def tensor_core_row(pipeline: Pipeline) -> dict[str, str]:
    """One kernel: what its tile predicts of the main loop, and what the compiler made of it."""
    module, want = compiled(pipeline.spec, ARCH), pipeline.loop
    usage = module.usage[pipeline.kernel]
    mix = sass.instruction_mix(module.cubin)[pipeline.kernel]
    shared = usage.static_shared + pipeline.dynamic_shared
    fits = occupancy(ARCH, pipeline.tile.threads, usage.registers, shared)
    loop = mix.loop
    ours = "LDSM" if pipeline.by_rows or pipeline.transposes else "LDS.32"
    row = {
        "pass": pipeline.direction,
        "tile": f"{pipeline.tile.rows}x{pipeline.tile.columns}",
        "precision": pipeline.precision,
        "copies_of_bytes": pipeline.copied,
        "dims": pipeline.dims,
        "registers": usage.registers,
        "shared_bytes": shared,
        "blocks_per_sm": fits.blocks,
        "warps_per_sm": fits.warps,
        "loop_instructions": sum(loop.values()),
        "hmma": loop["HMMA"],
        "hmma_predicted": want.math,
        "operand_loads": loop.get(ours, 0),
        "operand_loads_predicted": want.operands,
        "copies": loop.get(f"LDGSTS.{8 * pipeline.copied}", 0),
        "copies_predicted": want.copies,
        "place_reads": loop.get("LDS.128", 0),
        "place_reads_predicted": want.places,
        "math_per_load": f"{loop['HMMA'] / _loads(mix):.3f}",
        "math_per_load_predicted": f"{want.math_per_load:.3f}",
        "rest": "; ".join(f"{n} {name}" for name, n in loop.items() if name in _REST),
        "nvrtc": compiler_version(),
    }
    return {name: str(value) for name, value in row.items()}


_REST = ("integer", "float compare", "convert", "move", "branch", "FADD", "BAR", "other")


def tensor_cores() -> str:
    """The table of every kernel on tensor cores, as CSV."""
    rows = [tensor_core_row(pipeline) for pipeline in tensor_core_kernels()]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def replaced(readme: str, generated: str) -> str:
    """The README with another generated part; ValueError where it has none."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"kernels/README.md must hold {BEGIN} and {END}")
    return f"{head}{begin}\n{generated}{end}{tail}"


def generated_part(readme: str) -> str:
    """What stands between the marks."""
    return readme.partition(BEGIN + "\n")[2].partition(END)[0]


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit with 1 if a table is out of date.")
def main(check: bool) -> None:
    """Write the tables of the ladder."""
    tools = Tools.here()
    if not (tools.compiler and tools.disassembler and tools.emulator):
        raise click.ClickException("; ".join(tools.missing()))
    readme = README.read_text(encoding="utf-8")
    wanted = {README: replaced(readme, ladder()), TENSOR_CORES: tensor_cores()}
    stale = [path for path, text in wanted.items()
             if not path.exists() or path.read_text(encoding="utf-8") != text]  # fmt: skip
    for path in stale:
        click.echo(f"{'out of date' if check else 'written'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], encoding="utf-8")
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main()
