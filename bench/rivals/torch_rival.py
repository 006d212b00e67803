"""PyTorch's contenders for one problem: eager, channels_last, compiled, in a CUDA graph."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn.threads import thread_count

from ..harness.arguments import flat
from ..harness.timing import Contender
from ..steps import LEARNING_RATE, ROW, Step, TorchCalls, first_values
from .expression import EXPRESSIONS, Expression, channels_first
from .rival import Gap, Rival
from .torch_models import as_torch


def _register() -> None:
    from . import (  # noqa: F401
        torch_blocks,
        torch_elements,
        torch_images,
        torch_rows,
        torch_training,
    )


class Torch:
    """PyTorch on one device, at its best settings for it.

    compile_seconds: how long torch.compile may take in all; afterwards its column has gaps.
    """

    def __init__(self, device: str, timer: Any, compile_seconds: float) -> None:
        import torch as library

        _register()
        torch: Any = library  # its functions are not all typed
        self.torch, self.device, self._timer = torch, device, timer
        self._compile_seconds = compile_seconds
        self._bf16 = False
        if device == "cuda":
            if not torch.cuda.is_available():
                raise ImportError(f"this PyTorch ({torch.__version__}) cannot use the GPU")
            torch.backends.cudnn.benchmark = True
            self._stream = torch.cuda.ExternalStream(timer.stream.ptr)
        else:
            torch.set_num_threads(thread_count())

    def use_precision(self, precision: str) -> None:
        """Let convolutions and matrix products use TF32, or not; steps autocast to bf16, or not."""
        self._bf16 = precision == "bf16"
        if self.device == "cuda":
            tf32 = precision != "fp32"
            self.torch.backends.cudnn.allow_tf32 = tf32
            self.torch.backends.cuda.matmul.allow_tf32 = tf32

    def release(self) -> None:
        """Give memory that no tensor needs back to the GPU."""
        if self.device == "cuda":
            self.torch.cuda.empty_cache()

    def on_stream(self) -> Any:
        """A context in which PyTorch launches where the timer looks."""
        if self.device == "cpu":
            return contextlib.nullcontext()
        return self.torch.cuda.stream(self._stream)

    def tensors(self, inputs: list[Any], images_last: bool = False) -> list[Any]:
        """Copies of host arrays on the device; images channels-last in memory if wanted."""
        torch = self.torch

        def tensor(value: Any) -> Any:
            if isinstance(value, list):
                return [tensor(v) for v in value]
            if value is None:
                return None
            made = torch.tensor(np.ascontiguousarray(value), device=self.device)
            if images_last and made.ndim == 4:
                made = made.contiguous(memory_format=torch.channels_last)
            return made

        with self.on_stream():
            return [tensor(value) for value in inputs]

    def host(self, results: Any) -> list[Any]:
        """Results as host arrays."""
        return [r.detach().cpu().numpy() for r in flat(results)]

    def record(self, call: Callable[[int], Any]) -> Callable[[int], Callable[[], Any]]:
        """``record`` of a contender: calls captured by torch.cuda.graph."""

        def record(count: int) -> Callable[[], Any]:
            graph = self.torch.cuda.CUDAGraph()
            self.torch.cuda.synchronize()
            with self.torch.cuda.graph(graph):
                kept = [call(i) for i in range(count)]
            kept.clear()
            return graph.replay  # type: ignore[no-any-return]

        return record

    def may_compile(self) -> str:
        """Why torch.compile is not tried, or ""."""
        if self.device == "cpu":
            return "torch.compile is timed on a GPU only"
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs triton"
        if self._compile_seconds <= 0:
            return "the time for torch.compile is used up"
        return ""

    def compiled(self, function: Callable[..., Any], first: Callable[[Any], Any]) -> Any:
        """torch.compile of a function, compiled by a first call; the time it takes is counted."""
        start = time.perf_counter()
        self.torch._dynamo.reset()
        made = self.torch.compile(function, dynamic=False)
        try:
            first(made)
            self.torch.cuda.synchronize()
        finally:
            self._compile_seconds -= time.perf_counter() - start
        return made

    def rivals(self, primitive: str, arguments: tuple[Any, ...], sets: int) -> list[Rival | Gap]:
        """The contenders for a problem, each with the results of its first call."""
        builder = EXPRESSIONS.get(primitive)
        made = builder(self.torch, *arguments) if builder else None
        if made is None:
            return [Gap("torch", "PyTorch has no such function")]
        found: list[Rival | Gap] = [self._eager(made, sets, images_last=False)]
        if any(getattr(value, "ndim", 0) == 4 for value in made.inputs):
            found.append(self._eager(made, sets, images_last=True))
        if self.device == "cuda":
            images_last = len(found) > 1
            found.append(self._graph(made, sets, images_last))
            found.append(self._compiled(made, sets, images_last))
        return found

    def step_rivals(self, step: Step) -> list[Rival | Gap]:
        """The contenders for a training step; their results are the losses of the first steps."""
        found: list[Rival | Gap] = [
            self._step("torch", step, images_last=False),
            self._step("torch_channels_last", step, images_last=True),
        ]
        if self.device == "cuda":
            found.append(self._step("torch_graph", step, images_last=True))
            trouble = self.may_compile()
            if trouble:
                return [*found, Gap("torch_compiled", trouble)]
            try:
                found.append(self._step("torch_compiled", step, images_last=True))
            except Exception as error:  # whatever the compiler raises is a gap of its column
                found.append(Gap("torch_compiled", f"{type(error).__name__}: {error}"))
        return found

    def reference(self, step: Step) -> list[Any]:
        """The losses of the first steps in float64, by PyTorch's own functions."""
        bf16, self._bf16 = self._bf16, False
        try:
            with self.on_stream():
                calls = step.torchs(self, False, False, self.torch.float64)
                return [first_values(step, lambda: calls.step(calls.module))]
        finally:
            self._bf16 = bf16

    def _step(self, name: str, step: Step, images_last: bool) -> Rival:
        with self.on_stream():
            return self._step_here(name, step, images_last)

    def _step_here(self, name: str, step: Step, images_last: bool) -> Rival:
        graph = name in ("torch_graph", "torch_compiled")
        calls = step.torchs(self, images_last, graph, self.torch.float32)
        module = calls.module
        if name == "torch_compiled" and module is not None:
            module = self.compiled(module, lambda made: calls.forward(made).sum().backward())
            calls.restore()

        def call(_: int) -> Any:
            return calls.step(module)

        def results() -> list[Any]:
            with self.on_stream():
                return [first_values(step, lambda: call(0))]

        record = self.record(call) if graph else None
        on_gpu = self.device == "cuda"
        contender = Contender(
            name, call, 1, self.on_stream, record, eager=on_gpu, graph=graph, row=ROW * on_gpu
        )
        return Rival(contender, results)

    def autocast(self) -> Any:
        """A context in which products and convolutions compute in bf16, if that is the precision.

        What it casts is not kept from call to call, since a graph would read the old copies.
        """
        dtype = self.torch.bfloat16
        return self.torch.autocast(self.device, dtype, enabled=self._bf16, cache_enabled=False)

    def network_step(
        self, model: Any, images: Any, labels: Any, images_last: bool, capturable: bool, dtype: Any
    ) -> TorchCalls:
        """Forward, cross-entropy, backward and fused Adam of the twin of a network."""
        torch = self.torch
        twin = as_torch(model).to(self.device, dtype)
        if images_last:
            twin = twin.to(memory_format=torch.channels_last)
        (x,) = self.tensors([channels_first(images)], images_last)
        x = x.to(dtype)
        target = torch.tensor(labels, dtype=torch.long, device=self.device)
        options: dict[str, Any] = {"capturable": True} if capturable else {}
        optimizer = torch.optim.Adam(twin.parameters(), lr=LEARNING_RATE, fused=True, **options)
        state = copy.deepcopy(twin.state_dict())

        def forward(module: Any) -> Any:
            with self.autocast():
                return module(x)

        def run(module: Any) -> Any:
            loss = torch.nn.functional.cross_entropy(forward(module).to(dtype), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        def restore() -> None:  # the running statistics have moved
            twin.load_state_dict(state)
            optimizer.zero_grad()

        return TorchCalls(twin, run, forward, restore)

    def _calls(self, made: Expression, sets: int, images_last: bool, run: Any = None) -> Any:
        inputs = [self.tensors(made.inputs, images_last) for _ in range(sets)]
        function = run or made.run
        return inputs, lambda i: function(*inputs[i])

    def _rival(self, name: str, made: Expression, inputs: Any, call: Any, **how: Any) -> Rival:
        sets = len(inputs)

        def results() -> list[Any]:
            with self.on_stream():
                returned = call(0)
                got = self.host([returned, [inputs[0][i] for i in made.updated]])
            count = len(got) - len(list(flat([made.inputs[i] for i in made.updated])))
            return [*made.results(got[:count]), *got[count:]] if count else got

        contender = Contender(name, call, sets, self.on_stream, **how)
        return Rival(contender, results)

    def _eager(self, made: Expression, sets: int, images_last: bool) -> Rival:
        name = "torch_channels_last" if images_last else "torch"
        inputs, call = self._calls(made, sets, images_last)
        return self._rival(name, made, inputs, call, eager=self.device == "cuda")

    def _graph(self, made: Expression, sets: int, images_last: bool) -> Rival:
        inputs, call = self._calls(made, sets, images_last)
        return self._rival("torch_graph", made, inputs, call, record=self.record(call), graph=True)

    def _compiled(self, made: Expression, sets: int, images_last: bool) -> Rival | Gap:
        trouble = self.may_compile()
        if trouble:
            return Gap("torch_compiled", trouble)
        try:
            inputs, _ = self._calls(made, sets, images_last)
            with self.on_stream():
                run = self.compiled(made.run, lambda run: run(*inputs[0]))
        except Exception as error:  # whatever the compiler raises is a gap of its column
            return Gap("torch_compiled", f"{type(error).__name__}: {error}")
        record = self.record(lambda i: run(*inputs[i]))
        return self._rival(
            "torch_compiled", made, inputs, lambda i: run(*inputs[i]), record=record, graph=True
        )
