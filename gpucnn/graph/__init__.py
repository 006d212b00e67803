"""Steps that are recorded once and replayed: :func:`gpucnn.cuda_graph`."""

from gpucnn.graph.plan import MemoryPlan
from gpucnn.graph.step import CudaGraph, cuda_graph

__all__ = ["CudaGraph", "MemoryPlan", "cuda_graph"]
