"""The machine a run is measured on: its names, and the two roofs measured in the same run."""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn.kernel import inline_headers, kernel_folder
from gpucnn.threads import single_threaded_blas, thread_count

from .harness.cpu_timer import CpuTimer
from .harness.timing import Contender, interleave, summarise

SOURCE = Path(__file__).with_name("machine.cu")
COPY, MULTIPLY_ADD, NOTHING = "machine_copy", "machine_multiply_add", "machine_nothing"
# On tensor cores, by precision: the kernel, and the operations of one of its instructions.
TENSOR_CORE_PEAKS = {
    "tf32": ("machine_tf32", 2048),
    "bf16": ("machine_bf16", 4096),
    "fp16": ("machine_fp16", 4096),
}

_COPY_BYTES = {"cpu": 1 << 27, "cuda": 1 << 30}
_MATRIX = 1536
_CHAINS, _TILES, _THREADS, _ROUNDS = 16, 8, 256, 4096
TENSOR_CORES = 80  # compute capability from which TF32 exists


@dataclass(frozen=True)
class Machine:
    """What every row of a run repeats.

    processor: the CPU's name; gpu, driver, cupy: empty on cpu. copy_gb_s: bytes read and written by
    a large copy, 10⁹ a second. peak_gflop_s: per precision, 10⁹ a second. overheads: microseconds.
    remark: what makes the times doubtful, or "".
    """

    device: str
    processor: str
    threads: int
    gpu: str
    driver: str
    cupy: str
    numpy: str
    torch: str
    date: str
    copy_gb_s: float
    peak_gflop_s: dict[str, float]
    overheads: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @property
    def name(self) -> str:
        """The GPU's name, or the processor's."""
        return self.gpu or self.processor

    def floor_us(self, moved: int, flops: int, precision: str = "fp32") -> float:
        """The least microseconds for this many bytes and operations, whichever takes longer."""
        return max(moved / self.copy_gb_s, flops / self.peak_gflop_s[precision]) / 1e3

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_machine(path: Path) -> Machine:
    """The machine of an earlier run, from its JSON file."""
    return Machine(**json.loads(path.read_text(encoding="utf-8")))


def processor_name() -> str:
    """What /proc/cpuinfo calls the CPU, else what Python does."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _driver(runtime: Any) -> str:
    """The driver's own version, else the newest CUDA that it runs."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
        return next(word for word in first.split() if word[0].isdigit() and "." in word)
    except (OSError, IndexError, StopIteration):
        number = runtime.driverGetVersion()
        return f"CUDA {number // 1000}.{number % 1000 // 10}"


def _version(module: str) -> str:
    try:
        return str(__import__(module).__version__)
    except Exception:  # missing, or broken in its own way
        return ""


def _fastest_us(timer: Any, call: Callable[[int], Any]) -> float:
    run = timer.prepare(Contender("machine", call))
    return summarise(interleave({"": run}, 0.3)[""], run.timer).p20


def _in_threads(work: Callable[[int], Any]) -> Callable[[int], Any]:
    pool = ThreadPoolExecutor(thread_count())
    return lambda _: list(pool.map(work, range(thread_count())))


def _cpu_copy_gb_s() -> float:
    n = _COPY_BYTES["cpu"] // 8
    x, y = np.ones(n), np.zeros(n)
    cuts = np.linspace(0, n, thread_count() + 1).astype(int)

    def copy(i: int) -> None:
        np.copyto(y[cuts[i] : cuts[i + 1]], x[cuts[i] : cuts[i + 1]])

    return 2 * x.nbytes / _fastest_us(CpuTimer(), _in_threads(copy)) / 1e3


def _cpu_peak_gflop_s() -> float:
    """A matrix product per thread, or one over all threads, whichever is faster."""
    n = _MATRIX
    a, b = (np.ones((n, n), np.float32) for _ in range(2))
    outputs = [np.empty((n, n), np.float32) for _ in range(thread_count())]

    def own(i: int) -> None:
        np.matmul(a, b, out=outputs[i])

    with single_threaded_blas():
        separate = _fastest_us(CpuTimer(), _in_threads(own))
    together = _fastest_us(CpuTimer(), lambda _: own(0))
    return 2 * n**3 * max(thread_count() / separate, 1 / together) / 1e3


def measure_cpu() -> Machine:
    """The ``cpu`` device: NumPy copies and matrix products on all its threads."""
    return Machine(
        device="cpu",
        processor=processor_name(),
        threads=thread_count(),
        gpu="",
        driver="",
        cupy="",
        numpy=np.__version__,
        torch=_version("torch"),
        date=datetime.date.today().isoformat(),
        copy_gb_s=_cpu_copy_gb_s(),
        peak_gflop_s={"fp32": _cpu_peak_gflop_s()},
    )


def source() -> str:
    """``machine.cu`` with its headers inlined."""
    text = SOURCE.read_text(encoding="utf-8")
    return inline_headers(text, "bench/machine.cu", [kernel_folder()], set())


def kernels(raw_kernel: Any) -> dict[str, Any]:
    """The kernels of ``machine.cu`` as objects of a RawKernel class: CuPy's or the emulator's."""
    own = (name for name, _ in TENSOR_CORE_PEAKS.values())
    names, options = (COPY, MULTIPLY_ADD, NOTHING, *own), ("-std=c++17",)
    return {name: raw_kernel(source(), name, options) for name in names}


def _copy_gb_s(timer: Any, copy: Any, blocks: int, moved: int) -> float:
    cupy, n = timer.cupy, moved // 32  # float4 read and written
    x, y = cupy.zeros((4 * n,), "float32"), cupy.zeros((4 * n,), "float32")
    us = _fastest_us(timer, lambda _: copy((blocks,), (_THREADS,), (y, x, np.int32(n))))
    return 32 * n / us / 1e3


def measure_cuda(timer: Any) -> Machine:
    """The current GPU, by the kernels of ``machine.cu`` on the timer's stream."""
    with timer.stream:
        return _measure_cuda(timer)


def _measure_cuda(timer: Any) -> Machine:
    """Measure the two roofs and what a launch costs.

    overheads: of a kernel that does nothing, as a node of a graph (node_us) and launched from
    Python (launch_us); the bandwidth of a copy that stays in L2 is kept beside them.
    """
    cupy = timer.cupy
    runtime = cupy.cuda.runtime
    device = runtime.getDevice()
    properties = runtime.getDeviceProperties(device)
    processors = int(properties["multiProcessorCount"])
    made = kernels(cupy.RawKernel)
    blocks, rounds = 8 * processors, _ROUNDS
    y = cupy.zeros((blocks * _THREADS,), "float32")

    def multiply_add(_: int) -> None:
        numbers = (np.float32(0.5), np.float32(1), np.int32(rounds))
        made[MULTIPLY_ADD]((blocks,), (_THREADS,), (y, *numbers))

    def nothing(_: int) -> None:
        made[NOTHING]((1,), (1,), (y,))

    def tensor_cores(name: str) -> Callable[[int], None]:
        numbers = np.float32(0.5), np.int32(rounds)
        return lambda _: made[name]((blocks,), (_THREADS,), (y, *numbers))

    threads = blocks * _THREADS
    work = 2 * _CHAINS * rounds * threads
    peaks = {"fp32": work / _fastest_us(timer, multiply_add) / 1e3}
    if int(cupy.cuda.Device(device).compute_capability) >= TENSOR_CORES:
        for precision, (name, operations) in TENSOR_CORE_PEAKS.items():
            work = operations * _TILES * rounds * threads // 32
            peaks[precision] = work / _fastest_us(timer, tensor_cores(name)) / 1e3
    node = timer.prepare(Contender("node", nothing))
    launched = timer.prepare(Contender("launch", nothing, eager=True))
    overheads = {
        "node_us": summarise(interleave({"": node}, 0.1)[""], node.timer).median,
        "launch_us": summarise(interleave({"": launched}, 0.1)[""], launched.timer).median,
        "l2_copy_gb_s": _copy_gb_s(timer, made[COPY], 4 * processors, timer.l2_bytes // 4),
    }
    return Machine(
        device="cuda",
        processor=processor_name(),
        threads=thread_count(),
        gpu=properties["name"].decode(),
        driver=_driver(runtime),
        cupy=str(cupy.__version__),
        numpy=np.__version__,
        torch=_version("torch"),
        date=datetime.date.today().isoformat(),
        copy_gb_s=_copy_gb_s(timer, made[COPY], 4 * processors, _COPY_BYTES["cuda"]),
        peak_gflop_s=peaks,
        overheads=overheads,
    )
