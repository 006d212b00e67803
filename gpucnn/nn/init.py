"""Initial weights, drawn from the library's own counter-based generator (``gpucnn.seed``).

fan_in is the number of inputs of one output: KH·KW·C/groups for a convolution weight
(OC, KH, KW, C/groups), in_features for a linear weight (out, in); fan_out is the number of outputs
that one input reaches within its group: KH·KW·OC/groups, out_features.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpucnn.bfloat16 import is_bfloat16, narrowed
from gpucnn.device import to_device
from gpucnn.ops.geometry import choice
from gpucnn.optim.optimizer import check_number
from gpucnn.random import default_generator
from gpucnn.tensor import Tensor
from gpucnn.weight_copies import changed


def fans(tensor: Tensor, groups: int = 1) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight; ValueError below two dimensions."""
    if tensor.ndim < 2:
        raise ValueError(f"tensor must have at least 2 dimensions, got shape {tensor.shape}")
    taps = math.prod(tensor.shape[1:-1])
    return taps * tensor.shape[-1], taps * tensor.shape[0] // groups


def _gain(nonlinearity: str) -> float:
    gains = {"linear": 1.0, "relu": math.sqrt(2.0)}
    return gains[choice("nonlinearity", nonlinearity, gains)]


def _fill(tensor: Tensor, values: NDArray[np.float32]) -> Tensor:
    values = values.reshape(tensor.shape)
    stored = narrowed(values) if is_bfloat16(tensor.data) else values
    tensor.data[...] = to_device(stored, tensor.device)
    changed(tensor.data)
    return tensor


def uniform_(tensor: Tensor, bound: float) -> Tensor:
    """Fill with U(−bound, bound); returns the tensor."""
    check_number("bound", bound, 0.0)
    return _fill(tensor, (2 * default_generator().uniform(tensor.size) - 1) * np.float32(bound))


def normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with N(0, std²); returns the tensor."""
    check_number("std", std, 0.0)
    return _fill(tensor, default_generator().normal(tensor.size) * np.float32(std))


def kaiming_uniform_(tensor: Tensor, nonlinearity: str = "relu") -> Tensor:
    """U(±gain·√(3/fan_in)), gain √2 for "relu", 1 for "linear".

    Source: He et al., arXiv:1502.01852; torch.nn.init.kaiming_uniform_.
    """
    return uniform_(tensor, _gain(nonlinearity) * math.sqrt(3.0 / fans(tensor)[0]))


def kaiming_normal_(tensor: Tensor, nonlinearity: str = "relu") -> Tensor:
    """N(0, gain²/fan_in), gain √2 for "relu", 1 for "linear".

    Source: He et al., arXiv:1502.01852; torch.nn.init.kaiming_normal_.
    """
    return normal_(tensor, _gain(nonlinearity) / math.sqrt(fans(tensor)[0]))


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, groups: int = 1) -> Tensor:
    """U(±gain·√(6/(fan_in + fan_out))).

    Source: Glorot and Bengio, AISTATS 2010; torch.nn.init.xavier_uniform_.
    """
    return uniform_(tensor, gain * math.sqrt(6.0 / sum(fans(tensor, groups))))


def xavier_normal_(tensor: Tensor, gain: float = 1.0, groups: int = 1) -> Tensor:
    """N(0, gain²·2/(fan_in + fan_out)).

    Source: Glorot and Bengio, AISTATS 2010; torch.nn.init.xavier_normal_.
    """
    return normal_(tensor, gain * math.sqrt(2.0 / sum(fans(tensor, groups))))
