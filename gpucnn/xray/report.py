"""Everything that is known of each kernel, a row for each specialisation and architecture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gpucnn import emulator, kernel
from gpucnn.emulator import flops
from gpucnn.kernel import Specialisation
from gpucnn.xray import sass
from gpucnn.xray.compiled import Usage, compile_each, compiled, launch_bound
from gpucnn.xray.counters import LaunchCounters
from gpucnn.xray.gpus import GPU
from gpucnn.xray.measure import (
    TOO_MUCH_WORK,
    Call,
    KernelKey,
    Problem,
    counted,
    plan,
    representative,
)
from gpucnn.xray.occupancy import Occupancy, occupancy
from gpucnn.xray.roofline import Prediction, predict

SECTOR = 32  # bytes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One kernel of one specialisation on one architecture; None is what is not known here."""

    kernel: str
    spec: Specialisation
    arch: str
    usage: Usage | None
    mix: sass.Mix | None
    call: Call | None  # None: no problem reaches it
    threads: int | None  # of a block
    dynamic_shared: int | None  # bytes of a block
    counters: LaunchCounters | None

    @property
    def macros(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.spec.macros)

    @property
    def shared(self) -> int | None:
        """Bytes of shared memory of a block, static and dynamic."""
        if self.usage is None:
            return None
        return self.usage.static_shared + (self.dynamic_shared or 0)

    @property
    def occupancy(self) -> Occupancy | None:
        if self.usage is None or self.threads is None:
            return None
        return occupancy(self.arch, self.threads, self.usage.registers, self.shared or 0)

    @property
    def traffic(self) -> int | None:
        """Bytes of all sectors that the kernel's requests touch."""
        c = self.counters
        return None if c is None else SECTOR * (c.read_sectors + c.written_sectors)

    @property
    def footprint(self) -> int | None:
        """Bytes of the distinct sectors that it touches: the least that memory must move."""
        c = self.counters
        return None if c is None else c.read_footprint + c.written_footprint

    @property
    def traffic_ratio(self) -> float | None:
        """How often a touched sector is asked for."""
        return self.traffic / self.footprint if self.traffic and self.footprint else None

    @property
    def intensity(self) -> float | None:
        """FLOPs per byte of the footprint."""
        return self.counters.flops / self.footprint if self.counters and self.footprint else None

    @property
    def conflicts_per_request(self) -> float | None:
        c = self.counters
        return c.bank_conflicts / c.shared_requests if c and c.shared_requests else None

    @property
    def launches(self) -> int:
        return len(self.call.of((self.spec, self.kernel))) if self.call else 0

    def predictions(self, gpu: GPU) -> tuple[Prediction, Prediction] | None:
        """The time if each sector moves once, and if no request is served by a cache.

        None where nothing was counted, or where the GPU lacks the tensor cores.
        """
        c = self.counters
        if c is None or self.call is None or self.footprint is None or self.traffic is None:
            return None
        # float32 on tensor cores is made of TF32 products
        units = self.call.precision if self.call.precision != "fp32" else "tf32"
        if c.matrix_flops and getattr(gpu, units) is None:
            return None
        floor, uncached = (
            predict(
                gpu,
                moved,
                c.flops - c.matrix_flops,
                matrix_flops=c.matrix_flops,
                matrix_precision=units,
                launches=self.launches,
            )
            for moved in (self.footprint, self.traffic)
        )
        return floor, uncached


@dataclass(frozen=True)
class Tools:
    """What can be known here: from NVRTC, from its disassembler, from the emulator."""

    compiler: bool
    disassembler: bool
    emulator: bool

    @classmethod
    def here(cls) -> Tools:
        compiler = kernel.nvrtc_version() is not None
        disassembler = compiler and sass.disassembler() is not None
        return cls(compiler, disassembler, emulator.available() and flops.available())

    def missing(self) -> list[str]:
        """One sentence for each tool that is not here."""
        notes = []
        if not self.compiler:
            notes.append(
                "no registers and no occupancy: CuPy or NVRTC is missing "
                "(pip install 'gpucnn[cuda13x]')"
            )
        elif not self.disassembler:
            notes.append(sass.HINT)
        if not self.emulator:
            why = emulator.why_unavailable() or "the emulator counts on x86-64 only"
            notes.append(f"no counters: {why}")
        return notes


def choose(keys: Iterable[KernelKey], problems: Iterable[Problem]) -> dict[KernelKey, Call]:
    """The call that stands for each kernel; none for one that no problem reaches."""
    wanted = dict.fromkeys(keys)
    calls = plan(problems).items()
    return {key: representative(key, found) for key, found in calls if key in wanted}


def examine(
    keys: Sequence[KernelKey],
    chosen: Mapping[KernelKey, Call],
    archs: Sequence[str],
    tools: Tools,
    say: Say = lambda text: None,
) -> list[Row]:
    """A row for each kernel and architecture, with all that ``tools`` find out.

    chosen: the calls that stand for kernels. say: told what is being done. Raises RuntimeError for
    a kernel that does not compile, KernelFault for one that the emulator finds faulty.
    """
    specs = list(dict.fromkeys(spec for spec, _ in keys))
    if tools.compiler:
        _compile(specs, archs, say)
    counters = _count(chosen, say) if tools.emulator else {}
    rows = []
    for spec, name in keys:
        call = chosen.get((spec, name))
        launches = call.of((spec, name)) if call else []
        threads = max((math.prod(x.block) for x in launches), default=None)
        for arch in archs:
            module = compiled(spec, arch) if tools.compiler else None
            mixes = sass.instruction_mix(module.cubin) if module and tools.disassembler else {}
            rows.append(
                Row(
                    kernel=name,
                    spec=spec,
                    arch=arch,
                    usage=module.usage[name] if module else None,
                    mix=mixes.get(name),
                    call=call,
                    threads=threads or (launch_bound(module.cubin, name) if module else None),
                    dynamic_shared=max((x.shared_mem for x in launches), default=None),
                    counters=counters.get((spec, name)),
                )
            )
    return rows


def _compile(specs: Sequence[Specialisation], archs: Sequence[str], say: Say) -> None:
    pairs, done = [(spec, arch) for spec in specs for arch in archs], 0

    def finished(spec: Specialisation, arch: str, error: str) -> None:
        nonlocal done
        if error:
            raise RuntimeError(error)
        done += 1
        say(f"compiled {done} of {len(pairs)}: {spec} for {arch}")

    compile_each(pairs, finished)


def _count(chosen: Mapping[KernelKey, Call], say: Say) -> dict[KernelKey, LaunchCounters]:
    """The counters of each kernel in the call that stands for it; calls too large are left out."""
    found: dict[KernelKey, LaunchCounters] = {}
    by_call: dict[str, tuple[Call, list[KernelKey]]] = {}
    for key, call in chosen.items():
        by_call.setdefault(str(call), (call, []))[1].append(key)
    for i, (name, (call, keys)) in enumerate(by_call.items(), 1):
        if call.work > TOO_MUCH_WORK:
            say(f"not emulated: {name} takes {call.work:.1e} operations")
            continue
        say(f"counted {i} of {len(by_call)}: {name}")
        counters = counted(call)
        found.update((key, counters[key]) for key in keys)
    return found


def as_dict(row: Row, gpu: GPU | None = None) -> dict[str, Any]:
    """A row as plain data for JSON; None is what is not known."""
    c, call, occupied = row.counters, row.call, row.occupancy
    result: dict[str, Any] = {
        "kernel": row.kernel,
        "file": row.spec.family,
        "macros": dict(row.spec.macros),
        "arch": row.arch,
        "threads": row.threads,
        "dynamic_shared": row.dynamic_shared,
        "usage": asdict(row.usage) if row.usage else None,
        "occupancy": asdict(occupied) if occupied else None,
        "instructions": None,
        "problem": str(call.problem) if call else None,
        "variant": call.variant if call else None,
        "precision": call.precision if call else None,
        "counters": None,
    }
    if row.mix:
        result["instructions"] = {**asdict(row.mix), "math_per_load": row.mix.math_per_load}
    if c is not None and call is not None:
        result["counters"] = {
            "launches": row.launches,
            "read_bytes": c.read_bytes,
            "written_bytes": c.written_bytes,
            "sector_bytes": row.traffic,
            "footprint_bytes": row.footprint,
            "problem_bytes": call.problem.bytes,
            "problem_flops": call.problem.flops,
            "global_requests": c.global_requests,
            "sectors_per_request": c.sectors_per_request,
            "ideal_sectors_per_request": c.ideal_sectors_per_request,
            "coalesced_share": c.coalesced_share,
            "shared_requests": c.shared_requests,
            "bank_conflicts": c.bank_conflicts,
            "worst_conflict": c.worst_conflict,
            "barriers": c.barriers,
            "shuffles": c.shuffles,
            "atomics": c.atomics,
            "flops": c.flops,
            "matrix_flops": c.matrix_flops,
            "flops_per_byte": row.intensity,
            "sites": [asdict(site) for site in c.sites],
        }
    if gpu is not None:
        both = row.predictions(gpu)
        result["prediction"] = both and {
            "gpu": gpu.name,
            "floor_us": both[0].us,
            "uncached_us": both[1].us,
            "bound": both[0].bound,
        }
    return result
