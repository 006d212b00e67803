"""The least time that a call can take on a GPU: its memory, its arithmetic, its launches.

    time = max(bytes / memory bandwidth, FLOPs / arithmetic rate) + launches * LAUNCH_US

The roofline of Williams, Waterman and Patterson (2009) with the rates of the data sheets, which no
program quite reaches. A call whose arrays stay in the L2 cache can be faster than this.
"""

from __future__ import annotations

from dataclasses import dataclass

from gpucnn.xray.gpus import GPU

# About what the shortest kernel takes as a node of a CUDA graph.
LAUNCH_US = 1.0


@dataclass(frozen=True)
class Prediction:
    """Microseconds: of the memory, of the arithmetic, of the launches."""

    memory_us: float
    math_us: float
    launch_us: float

    @property
    def us(self) -> float:
        return max(self.memory_us, self.math_us) + self.launch_us

    @property
    def bound(self) -> str:
        """The largest of the three: "memory", "math" or "launch"."""
        parts = {"memory": self.memory_us, "math": self.math_us, "launch": self.launch_us}
        return max(parts, key=lambda name: parts[name])


def predict(
    gpu: GPU,
    moved: float,
    flops: float,
    *,
    precision: str = "fp32",
    matrix_flops: float = 0,
    matrix_precision: str = "tf32",
    launches: int = 1,
) -> Prediction:
    """The time on ``gpu`` of moving ``moved`` bytes and computing ``flops`` at a precision.

    matrix_flops: those that tensor cores do at the same time, at their own precision. Raises
    ValueError for a precision that the GPU does not compute in.
    """
    math = flops / gpu.rate(precision)
    if matrix_flops:
        math = max(math, matrix_flops / gpu.rate(matrix_precision))
    return Prediction(
        memory_us=moved / (gpu.bandwidth * 1e9) * 1e6,
        math_us=math * 1e6,
        launch_us=launches * LAUNCH_US,
    )
