"""What the machine takes for the things that steps are made of: the constants behind estimates.

A copy that misses L2 and one that stays there, matrix instructions in registers, a node of a graph
and its launch, arguments of a launch, a barrier of the grid, layers of known networks by cuDNN.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import gpucnn
from gpucnn import functional as F
from gpucnn.kernel import inline_headers, kernel_folder
from gpucnn.signature import parse_kernels

from ..harness.cuda_timer import CudaTimer
from ..harness.timing import Contender, interleave, summarise
from ..machine import NOTHING, kernels, measure_cuda
from ..problems import all_problems
from ..run import open_timer
from .journal import Journal

SOURCE = Path(__file__).with_name("facts.cu")
NODES = (1, 16, 128, 1024)  # of graphs
ROUNDS = (100, 1100)  # barriers of a launch
_THREADS = 256  # of a block that waits
_CALLS, _TURNS = 200, 20  # of what the host does
_SECONDS = 0.1
_LAYERS = "ABCDEFGHIJKLMN"
_DIRECTIONS = ("forward", "data_gradient", "weight_gradient")


def source() -> str:
    """``facts.cu`` with its header inlined."""
    text = SOURCE.read_text(encoding="utf-8")
    return inline_headers(text, "bench/goals/facts.cu", [kernel_folder()], set())


def names() -> list[str]:
    """The kernels of ``facts.cu``."""
    return list(parse_kernels(source()))


def _kernel(raw_kernel: Any, name: str, **options: Any) -> Any:
    return raw_kernel(source(), name, ("-std=c++17",), **options)


def _us(timer: CudaTimer, contender: Contender) -> float:
    run = timer.prepare(contender)
    return summarise(interleave({"": run}, _SECONDS)[""], run.timer).median


def graph_costs(timer: CudaTimer) -> tuple[float, float]:
    """(microseconds of a node, of a launch of a graph) by a line through graphs of empty nodes."""
    cupy = timer.cupy
    nothing, y = kernels(cupy.RawKernel)[NOTHING], cupy.zeros((1,), "float32")
    times = []
    for count in NODES:

        def nodes(count: int = count) -> None:
            for _ in range(count):
                nothing((1,), (1,), (y,))

        with timer.stream:
            nothing((1,), (1,), (y,))
            graph = timer.record(nodes)
            launch = functools.partial(_launch, graph, timer.stream)
            times.append(_us(timer, Contender("graph", launch, eager=True, row=20)))
    slope, constant = np.polyfit(NODES, times, 1)
    return float(slope), float(constant)


def _launch(graph: Any, stream: Any, _: int) -> None:
    graph.launch(stream)


def barrier_us(timer: CudaTimer) -> float:
    """Microseconds of a barrier of the whole grid, one block on each multiprocessor."""
    cupy = timer.cupy
    device = cupy.cuda.runtime.getDevice()
    blocks = int(cupy.cuda.runtime.getDeviceProperties(device)["multiProcessorCount"])
    kernel = _kernel(cupy.RawKernel, "facts_barriers", enable_cooperative_groups=True)
    with timer.stream:
        word = cupy.zeros((1,), "uint32")

        def barriers(rounds: int) -> Contender:
            def call(_: int) -> None:
                kernel((blocks,), (_THREADS,), (word, np.int32(rounds)))

            return Contender("barriers", call, eager=True, row=5)

        short, long = (_us(timer, barriers(n)) for n in ROUNDS)
    return (long - short) / (ROUNDS[1] - ROUNDS[0])


def _host_us(call: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Microseconds of this thread for a call, the least of several turns."""
    least = float("inf")
    for _ in range(_TURNS):
        start = time.thread_time()
        for _ in range(_CALLS):
            call()
        least = min(least, (time.thread_time() - start) / _CALLS * 1e6)
        wait()
    return least


def launches(timer: CudaTimer) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What CuPy is asked to launch: kernels of more and more arguments, and of one packed."""
    cupy = timer.cupy
    y = cupy.zeros((1,), "float32")
    wrap = cupy.cuda.function.CNumpyArray
    for name in ("facts_1", "facts_8", "facts_16"):
        kernel = _kernel(cupy.RawKernel, name)
        numbers = [np.int32(1)] * (int(name.split("_")[1]) - 2) + [np.float32(1)]
        arguments = (y, *(numbers if name != "facts_1" else ()))
        wrapped = (y, *(wrap(np.asarray(n)) for n in arguments[1:]))
        yield name, functools.partial(kernel, (1,), (1,), arguments)
        if len(wrapped) > 1:
            yield f"{name}-wrapped", functools.partial(kernel, (1,), (1,), wrapped)
    packed = np.zeros(1, np.dtype([("y", "u8"), ("a", "i4", 14), ("o", "f4")], align=True))
    packed["y"] = y.data.ptr
    kernel = _kernel(cupy.RawKernel, "facts_packed")
    yield "facts_packed", functools.partial(kernel, (1,), (1,), (packed,))


_SHAPE = (2, 2, 2, 8)


def operators(device: str) -> dict[str, Callable[[], Any]]:
    """Calls of ours on arrays of a few numbers."""

    def tensor(*shape: int) -> gpucnn.Tensor:
        return gpucnn.Tensor(np.ones(shape, np.float32), device=device, requires_grad=True)

    x, w, b = tensor(*_SHAPE), tensor(8, 3, 3, 8), tensor(8)
    rows, labels = tensor(2, 3), gpucnn.Tensor(np.array([0, 2], np.int32), device=device)
    return {
        "relu": lambda: F.relu(x),
        "conv2d": lambda: F.conv2d(x, w, b, padding=1),
        "add": lambda: x + x,
        "cross_entropy": lambda: F.cross_entropy(rows, labels),
    }


def torch_operators(torch: Any, device: str) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch."""
    f = torch.nn.functional

    def tensor(*shape: int) -> Any:
        return torch.ones(shape, device=device, requires_grad=True)

    x, w, b = tensor(2, 8, 2, 2), tensor(8, 8, 3, 3), tensor(8)
    rows, labels = tensor(2, 3), torch.tensor([0, 2], device=device)
    return {
        "relu": lambda: f.relu(x),
        "conv2d": lambda: f.conv2d(x, w, b, padding=1),
        "add": lambda: x + x,
        "cross_entropy": lambda: f.cross_entropy(rows, labels),
    }


def layers(library: Any, journal: Journal, until: float) -> None:
    """Microseconds of cuDNN for the layers A to N, in each direction, layout and precision."""
    timer, torch = library._timer, library.torch
    from ..rivals.expression import EXPRESSIONS

    for problem in all_problems():
        wanted = problem.family == "conv2d" and problem.group == "layer"
        if not wanted or problem.case[0] not in _LAYERS:
            continue
        if not problem.primitive.endswith(_DIRECTIONS):
            continue
        if time.monotonic() > until:
            journal.note(f"no time was left for cuDNN's {problem} and what comes after it")
            return
        made = EXPRESSIONS[problem.primitive](torch, *problem.make(0))
        if made is None:
            continue
        for precision in ("fp32", "tf32", "bf16"):
            library.use_precision(precision)
            for last in (False, True):
                name = f"cudnn/{problem.case}/{problem.primitive}/{precision}"
                name += "/channels_last" if last else "/nchw"
                inputs = library.tensors(made.inputs, last)
                if precision == "bf16":
                    inputs = [None if t is None else t.bfloat16() for t in inputs]
                call = lambda _, run=made.run, inputs=inputs: run(*inputs)  # noqa: E731
                contender = Contender(
                    name, call, 1, library.on_stream, library.record(call), graph=True
                )
                try:
                    journal.figure(name, _us(timer, contender), "µs")
                except Exception as error:  # a layout that cuDNN has no kernel for
                    journal.note(f"{name}: {type(error).__name__}: {error}")
        library.release()


def measure(journal: Journal, until: float) -> None:
    """All of it, the quickest first."""
    timer = open_timer("cuda")
    machine = measure_cuda(timer)
    journal.machine(machine)
    journal.figure("copy/cold", machine.copy_gb_s, "GB/s")
    journal.figure("copy/l2", machine.overheads["l2_copy_gb_s"], "GB/s")
    for precision, peak in machine.peak_gflop_s.items():
        journal.figure(f"peak/{precision}", peak / 1e3, "TFLOP/s", "in registers")
    for name in ("node_us", "launch_us"):
        journal.figure(f"launch/{name}", machine.overheads[name], "µs")

    def attempt(what: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # the other facts are worth having
            journal.note(f"{what}: {type(error).__name__}: {error}")

    def graphs() -> None:
        node, launch = graph_costs(timer)
        journal.figure("graph/node", node, "µs", f"slope over {NODES} nodes")
        journal.figure("graph/launch", launch, "µs", "constant of that line")

    def host() -> None:
        with timer.stream:
            for name, call in operators("cuda").items():
                call()
                journal.figure(f"host/{name}/ours", _host_us(call, timer.synchronize), "µs")
            for name, call in launches(timer):
                call()
                timer.synchronize()
                journal.figure(f"host/{name}", _host_us(call, timer.synchronize), "µs")

    def rivals() -> None:
        from ..rivals.torch_rival import Torch

        library = Torch("cuda", timer, 0.0)
        with library.on_stream():
            for name, call in torch_operators(library.torch, "cuda").items():
                call()
                us = _host_us(call, library.torch.cuda.synchronize)
                journal.figure(f"host/{name}/torch", us, "µs")
        layers(library, journal, until)

    attempt("graphs", graphs)
    attempt("barrier", lambda: journal.figure("barrier", barrier_us(timer), "µs", "of the grid"))
    attempt("host", host)
    attempt("PyTorch", rivals)
