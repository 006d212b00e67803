"""The functions of the library, gathered from ``gpucnn.ops``.

A batch may be empty (N = 0): the result then has its right shape, a sum is 0, a mean NaN, running
statistics stay as they are, gradients are 0, and no kernel is launched.
"""

from gpucnn.ops.activation import (
    elu,
    gelu,
    hardswish,
    identity,
    leaky_relu,
    relu,
    selu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from gpucnn.ops.adaptive_pool1d import (
    adaptive_avg_pool1d,
    adaptive_max_pool1d,
    global_avg_pool1d,
    global_max_pool1d,
)
from gpucnn.ops.adaptive_pool2d import (
    adaptive_avg_pool2d,
    adaptive_max_pool2d,
    global_avg_pool2d,
    global_max_pool2d,
)
from gpucnn.ops.adaptive_pool3d import (
    adaptive_avg_pool3d,
    adaptive_max_pool3d,
    global_avg_pool3d,
    global_max_pool3d,
)
from gpucnn.ops.avg_pool2d import avg_pool2d, sum_pool2d
from gpucnn.ops.avg_unpool2d import avg_unpool2d, sum_unpool2d
from gpucnn.ops.batch_norm import batch_norm
from gpucnn.ops.binary_cross_entropy import binary_cross_entropy_with_logits
from gpucnn.ops.broadcast import broadcast_to
from gpucnn.ops.cast import to_bfloat16, to_float32
from gpucnn.ops.class_loss import multi_margin_loss, nll_loss
from gpucnn.ops.concatenate import concatenate
from gpucnn.ops.conv1d import conv1d
from gpucnn.ops.conv2d import conv2d
from gpucnn.ops.conv2d_fused import conv2d_fused
from gpucnn.ops.conv3d import conv3d
from gpucnn.ops.conv_transpose1d import conv_transpose1d
from gpucnn.ops.conv_transpose2d import conv_transpose2d
from gpucnn.ops.conv_transpose3d import conv_transpose3d
from gpucnn.ops.cross_entropy import cross_entropy
from gpucnn.ops.dropout import dropout, dropout2d
from gpucnn.ops.elementwise import add, multiply, negate, subtract
from gpucnn.ops.fused_batch_norm import batch_norm_block
from gpucnn.ops.group_norm import group_norm, layer_norm
from gpucnn.ops.linear import linear, matmul
from gpucnn.ops.linear_fused import linear_fused
from gpucnn.ops.local_response_norm import local_response_norm
from gpucnn.ops.locally_connected2d import locally_connected2d
from gpucnn.ops.pool1d import avg_pool1d, max_pool1d, sum_pool1d
from gpucnn.ops.pool2d import max_pool2d
from gpucnn.ops.pool3d import avg_pool3d, max_pool3d, sum_pool3d
from gpucnn.ops.pool_indices import convert_pool_indices
from gpucnn.ops.prelu import prelu
from gpucnn.ops.reduce import max, mean, sum
from gpucnn.ops.regression_loss import (
    hinge_loss,
    huber_loss,
    kl_div,
    l1_loss,
    mse_loss,
    smooth_l1_loss,
)
from gpucnn.ops.softmax import log_softmax, softmax
from gpucnn.ops.transpose import transpose
from gpucnn.ops.unpool1d import avg_unpool1d, max_unpool1d, sum_unpool1d
from gpucnn.ops.unpool2d import max_unpool2d
from gpucnn.ops.unpool3d import avg_unpool3d, max_unpool3d, sum_unpool3d

__all__ = [
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "add",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "avg_unpool1d",
    "avg_unpool2d",
    "avg_unpool3d",
    "batch_norm",
    "batch_norm_block",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "concatenate",
    "conv1d",
    "conv2d",
    "conv2d_fused",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convert_pool_indices",
    "cross_entropy",
    "dropout",
    "dropout2d",
    "elu",
    "gelu",
    "global_avg_pool1d",
    "global_avg_pool2d",
    "global_avg_pool3d",
    "global_max_pool1d",
    "global_max_pool2d",
    "global_max_pool3d",
    "group_norm",
    "hardswish",
    "hinge_loss",
    "huber_loss",
    "identity",
    "kl_div",
    "l1_loss",
    "layer_norm",
    "leaky_relu",
    "linear",
    "linear_fused",
    "local_response_norm",
    "locally_connected2d",
    "log_softmax",
    "matmul",
    "max",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "mean",
    "mse_loss",
    "multi_margin_loss",
    "multiply",
    "negate",
    "nll_loss",
    "prelu",
    "relu",
    "selu",
    "sigmoid",
    "silu",
    "smooth_l1_loss",
    "softmax",
    "softplus",
    "subtract",
    "sum",
    "sum_pool1d",
    "sum_pool2d",
    "sum_pool3d",
    "sum_unpool1d",
    "sum_unpool2d",
    "sum_unpool3d",
    "tanh",
    "to_bfloat16",
    "to_float32",
    "transpose",
]
