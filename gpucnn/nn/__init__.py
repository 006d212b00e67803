"""Modules: layers that own their parameters, and containers of layers."""

from gpucnn.nn import init
from gpucnn.nn.activation import (
    ELU,
    GELU,
    SELU,
    Hardswish,
    Identity,
    LeakyReLU,
    LogSoftmax,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpucnn.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose2d
from gpucnn.nn.dropout import Dropout, Dropout2d
from gpucnn.nn.linear import Flatten, Linear
from gpucnn.nn.loss import CrossEntropyLoss, MultiMarginLoss, NLLLoss
from gpucnn.nn.module import Module, Parameter, Sequential
from gpucnn.nn.normalization import (
    BatchNorm1d,
    BatchNorm2d,
    GroupNorm,
    LayerNorm,
    LocalResponseNorm,
)
from gpucnn.nn.pooling import (
    AdaptiveAvgPool2d,
    AdaptiveMaxPool2d,
    AvgPool2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    MaxPool2d,
    SumPool2d,
)
from gpucnn.nn.unpooling import AvgUnpool2d, MaxUnpool2d, SumUnpool2d

__all__ = [
    "ELU",
    "GELU",
    "SELU",
    "AdaptiveAvgPool2d",
    "AdaptiveMaxPool2d",
    "AvgPool2d",
    "AvgUnpool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose2d",
    "CrossEntropyLoss",
    "Dropout",
    "Dropout2d",
    "Flatten",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "GroupNorm",
    "Hardswish",
    "Identity",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "LocalResponseNorm",
    "LogSoftmax",
    "MaxPool2d",
    "MaxUnpool2d",
    "Module",
    "MultiMarginLoss",
    "NLLLoss",
    "PReLU",
    "Parameter",
    "ReLU",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "SumPool2d",
    "SumUnpool2d",
    "Tanh",
    "init",
]
