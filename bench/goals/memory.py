"""Memory that a training step needs on a GPU, ours and PyTorch's, and how many kernels it is."""

from __future__ import annotations

import gc
import time
from typing import Any

import gpucnn

from ..run import open_timer
from ..steps import Step
from .counts import kept_bytes
from .journal import Journal
from .steps import networks

_MEGA = 1e6
_CALLS = 4  # until steps replay a graph


def ours(step: Step, precision: str, cupy: Any) -> tuple[float, float, int]:
    """(arena and what is kept, what CuPy's pool has handed out, launches) of a step as a graph.

    Bytes; the pool's are those of a pool that nobody else uses, while the graph lives.
    """
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc), gpucnn.precision(precision):
        graph = gpucnn.cuda_graph(step.ours("cuda"))
        for _ in range(_CALLS):
            graph()
        cupy.cuda.get_current_stream().synchronize()
        gc.collect()
        if graph.memory is None:
            raise RuntimeError(graph.reason or "no graph was recorded")
        found = graph.memory.bytes + kept_bytes(step), pool.used_bytes(), graph.launches
        del graph
    gc.collect()
    pool.free_all_blocks()
    return found


def theirs(library: Any, step: Step, precision: str) -> tuple[int, int]:
    """(bytes that PyTorch has in use at most, kernels) of an eager step, channels last."""
    torch = library.torch
    library.use_precision(precision)
    with library.on_stream():
        gc.collect()
        torch.cuda.empty_cache()
        calls = step.torchs(library, True, False, torch.float32)
        for _ in range(2):  # cuDNN has chosen, the optimizer has its state
            calls.step(calls.module)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        calls.step(calls.module)
        torch.cuda.synchronize()
        most = int(torch.cuda.max_memory_allocated())
        return most, _kernels(torch, lambda: calls.step(calls.module))


def _kernels(torch: Any, call: Any) -> int:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    on_gpu = [e for e in seen.events() if str(e.device_type).endswith("CUDA")]
    return len([e for e in on_gpu if not e.name.startswith(("Memset", "Memcpy"))])


def measure(journal: Journal, until: float) -> None:
    """Megabytes and kernels of each network of the goals."""
    from ..rivals.torch_rival import Torch

    timer = open_timer("cuda")
    library: Any = None
    try:
        library = Torch("cuda", timer, 0.0)
    except (ImportError, OSError, RuntimeError) as error:
        journal.note(f"no PyTorch: {error}")
    for step, precision in networks():
        if time.monotonic() > until:
            journal.note(f"no time was left for {step}")
            return
        assert isinstance(step, Step)
        name = f"memory/{step.case}/{precision}"
        try:
            planned, held, launches = ours(step, precision, timer.cupy)
            journal.figure(f"{name}/ours", planned / _MEGA, "MB", "arena and what is kept")
            journal.figure(f"{name}/held", held / _MEGA, "MB", "of CuPy's pool")
            journal.figure(f"kernels/{step.case}/{precision}/ours", launches, "")
        except Exception as error:  # the next network may do
            journal.note(f"{step}: {type(error).__name__}: {error}")
        if library is None:
            continue
        try:
            most, kernels = theirs(library, step, precision)
            journal.figure(f"{name}/torch", most / _MEGA, "MB", "max_memory_allocated, eager")
            journal.figure(f"kernels/{step.case}/{precision}/torch", kernels, "")
        except Exception as error:
            journal.note(f"{step}, torch: {type(error).__name__}: {error}")
