"""gpucnn: a small CNN library whose compute is hand-written CUDA C."""

from gpucnn import functional, models, nn, optim
from gpucnn import tuning as tuning  # primitives ask it which kernel to take
from gpucnn.bfloat16 import BFLOAT16 as bfloat16
from gpucnn.device import DeviceError, cuda_available, default_device, use_device, why_cpu
from gpucnn.fusion import fusion
from gpucnn.gradcheck import gradcheck
from gpucnn.graph import cuda_graph
from gpucnn.misuse import MisuseWarning
from gpucnn.ops import batch as batch  # primitives that no function of functional uses
from gpucnn.ops import lenet5_step as lenet5_step
from gpucnn.ops.geometry import conv_output_size, conv_transpose_output_size
from gpucnn.ops.pool_indices import convert_pool_indices
from gpucnn.precision import precision
from gpucnn.primitive import use_variant
from gpucnn.protocols import from_dlpack
from gpucnn.random import seed
from gpucnn.receptive_field import receptive_field
from gpucnn.startup import compile_at_import
from gpucnn.tensor import Function, Tensor, no_grad

__version__ = "0.1.0"

__all__ = [
    "DeviceError",
    "Function",
    "MisuseWarning",
    "Tensor",
    "__version__",
    "bfloat16",
    "conv_output_size",
    "conv_transpose_output_size",
    "convert_pool_indices",
    "cuda_available",
    "cuda_graph",
    "default_device",
    "from_dlpack",
    "functional",
    "fusion",
    "gradcheck",
    "models",
    "nn",
    "no_grad",
    "optim",
    "precision",
    "receptive_field",
    "seed",
    "use_device",
    "use_variant",
    "why_cpu",
]

compile_at_import()
