"""Modules: layers that own their parameters, and containers of layers."""

from gpucnn.nn import init
from gpucnn.nn.activation import ReLU, Softmax
from gpucnn.nn.conv import Conv2d
from gpucnn.nn.linear import Flatten, Linear
from gpucnn.nn.module import Module, Parameter, Sequential
from gpucnn.nn.normalization import BatchNorm1d, BatchNorm2d, LocalResponseNorm
from gpucnn.nn.pooling import AvgPool2d, MaxPool2d, SumPool2d

__all__ = [
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "Flatten",
    "Linear",
    "LocalResponseNorm",
    "MaxPool2d",
    "Module",
    "Parameter",
    "ReLU",
    "Sequential",
    "Softmax",
    "SumPool2d",
    "init",
]
