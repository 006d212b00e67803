"""The functions of the library, gathered from ``gpucnn.ops``."""

from gpucnn.ops.activation import relu
from gpucnn.ops.avg_pool2d import avg_pool2d, sum_pool2d
from gpucnn.ops.batch_norm import batch_norm
from gpucnn.ops.conv2d import conv2d
from gpucnn.ops.elementwise import add
from gpucnn.ops.linear import linear
from gpucnn.ops.local_response_norm import local_response_norm
from gpucnn.ops.loss import cross_entropy
from gpucnn.ops.pool2d import max_pool2d
from gpucnn.ops.softmax import softmax

__all__ = [
    "add",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "cross_entropy",
    "linear",
    "local_response_norm",
    "max_pool2d",
    "relu",
    "softmax",
    "sum_pool2d",
]
