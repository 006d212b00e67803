"""Operators that work element by element, per channel, per row or on whole parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# x (..., C)
ACTIVATION = [(1,), (7,), (3, 5, 7, 3), (2, 3, 4, 8), (1024,), (1030,)]

# (function, options)
ACTIVATION_FUNCTIONS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"negative_slope": -0.3}),
    ("elu", {}),
    ("elu", {"alpha": 1.5}),
    ("selu", {}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("softplus", {}),
    ("softplus", {"beta": 0.7, "threshold": 3.0}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("hardswish", {}),
]

# (x (..., C), slopes: 1 or C)
PRELU = [
    ((1,), 1),
    ((7,), 7),
    ((3, 5, 7, 3), 3),
    ((2, 3, 4, 8), 1),
    ((1, 33), 33),
    ((130, 5), 5),
    ((2, 3, 68), 1),
    ((4500, 1), 1),
]

# x (..., C): more than one value per channel
BATCH_NORM = [
    (2, 1),
    (7, 3),
    (2, 5),
    (3, 5, 7, 1),
    (2, 3, 4, 5),
    (1, 9, 8, 33),
    (2, 9, 7, 16),
    (3, 1, 1, 68),
    (300, 4),
    (4, 37, 29, 2),
]

# x of dropout; those with four axes also of dropout2d
DROPOUT = [(1,), (7,), (3, 5), (1024,), (1030,), (2, 3, 5, 8), (3, 1, 1, 5), (2, 4, 3, 33)]

# x (N, ..., C) and the number of groups; one group of few pixels is also layer_norm
GROUP_NORM = [
    ((2, 1), 1),
    ((3, 7), 1),
    ((5, 8), 2),
    ((2, 3, 5, 6), 3),
    ((2, 3, 2, 33), 33),
    ((1, 5, 7, 24), 3),
    ((300, 12), 1),
    ((2, 600), 1),
    ((2, 19, 17, 16), 4),
    ((3, 23, 29, 6), 2),
    ((2, 1, 1, 1028), 1),
]

# x (..., C)
SOFTMAX = [(1, 1), (5, 3), (9, 10), (2, 3, 4, 5), (3, 32), (2, 33), (4, 1000)]

# input (..., C)
CLASS_LOSS = [(1, 1), (5, 3), (9, 10), (2, 3, 4, 5), (3, 33), (2, 300)]

# (input (..., C), label_smoothing)
CROSS_ENTROPY = [
    ((1, 1), 0.0),
    ((5, 3), 0.0),
    ((9, 10), 0.1),
    ((2, 3, 4, 5), 0.0),
    ((3, 32), 1.0),
    ((2, 33), 0.25),
    ((3, 500), 0.1),
]


@dataclass(frozen=True)
class LocalResponseNormCase:
    """x (…, C), or (N, H, W, C) within, the size and the options of local_response_norm."""

    x: tuple[int, ...]
    size: int
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        options = "".join(f",{k}={v}" for k, v in self.options.items())
        return f"{'x'.join(map(str, self.x))},size={self.size}{options}"


LOCAL_RESPONSE_NORM = [
    LocalResponseNormCase((1,), 1),
    LocalResponseNormCase((3, 7), 3),
    LocalResponseNormCase((2, 5, 3, 8), 5),
    LocalResponseNormCase((2, 3, 5, 33), 4, {"beta": 0.5, "k": 2.0}),
    LocalResponseNormCase((2, 3, 5, 12), 4, {"convention": "onnx"}),
    LocalResponseNormCase((5, 3), 9, {"convention": "caffe"}),
    LocalResponseNormCase((2, 6, 20), 6, {"convention": "alexnet"}),
    LocalResponseNormCase((1, 2, 2, 16), 2, {"convention": "matconvnet"}),
    LocalResponseNormCase((3, 9), 2, {"convention": "tf"}),
    LocalResponseNormCase((4, 5), 50, {"beta": 1.0}),
    LocalResponseNormCase((2, 5, 7, 4), 3, {"region": "within"}),
    LocalResponseNormCase((2, 6, 5, 3), 4, {"region": "within", "beta": 0.6}),
    LocalResponseNormCase((1, 3, 4, 5), 9, {"region": "within", "convention": "caffe"}),
    LocalResponseNormCase((2, 1, 1, 1), 1, {"region": "within"}),
]

# (shape, axis) of sum, mean and max
REDUCE: list[tuple[tuple[int, ...], int | tuple[int, ...] | None]] = [
    ((), None),
    ((1,), 0),
    ((7, 5), None),
    ((7, 5), 0),
    ((3, 33), -1),
    ((2, 5, 7, 3), (1, 2)),
    ((2, 5, 7, 3), (0, 1, 2)),
    ((2, 3, 4, 35), (0, 3)),
    ((2, 1, 5, 1, 3), (1, 2)),
    ((3, 1, 4, 1, 2), (0, 4)),
    ((1, 1, 1), (0, 2)),
    ((9001,), None),
    ((2, 4500, 1), 1),
    ((2, 300, 34), 1),
]

# (a shape, the larger one it is broadcast to)
BROADCAST: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
    ((), (3,)),
    ((), ()),
    ((1,), (1, 1)),
    ((5,), (5,)),
    ((5,), (3, 5)),
    ((3, 1), (3, 5)),
    ((1, 3), (4, 3)),
    ((2, 1, 1, 5), (2, 3, 4, 5)),
    ((2, 3, 4, 1), (2, 3, 4, 5)),
    ((3, 1, 1), (2, 3, 4, 5)),
    ((1, 3, 1, 33), (2, 3, 7, 33)),
    ((1, 1, 3, 1, 1), (2, 1, 3, 1, 4)),
]

# (shape, axes)
TRANSPOSE = [
    ((), ()),
    ((5,), (0,)),
    ((1, 1), (1, 0)),
    ((33, 65), (1, 0)),
    ((7, 3), (0, 1)),
    ((2, 5, 7, 3), (0, 3, 1, 2)),
    ((2, 3, 5, 7), (0, 2, 3, 1)),
    ((3, 4, 5), (1, 0, 2)),
    ((3, 4, 5), (2, 1, 0)),
    ((2, 3, 4, 5), (3, 1, 0, 2)),
    ((2, 1, 3, 1, 4), (4, 3, 2, 1, 0)),
    ((2, 3, 2, 3, 2), (2, 0, 4, 1, 3)),
]

# (M, K, N) of a matrix product
MATMUL = [(1, 1, 1), (3, 5, 2), (7, 33, 9), (2, 300, 10), (65, 17, 35), (33, 4, 3)]

# (shapes, axis)
CONCATENATE: list[tuple[list[tuple[int, ...]], int]] = [
    ([(5,)], 0),
    ([(1,), (4,), (3,)], 0),
    ([(2, 3), (2, 1)], -1),
    ([(2, 3), (5, 3)], 0),
    ([(2, 3, 5, 4), (2, 3, 5, 8)], -1),
    ([(2, 3, 5, 3), (2, 3, 5, 4), (2, 3, 5, 33)], 3),
    ([(2, 3, 2, 3), (2, 1, 2, 3)], 1),
    ([(1, 1, 1, 1), (1, 1, 1, 1)], -4),
]

# (function, options)
REGRESSION_LOSS: list[tuple[str, dict[str, Any]]] = [
    ("l1_loss", {}),
    ("mse_loss", {}),
    ("huber_loss", {}),
    ("huber_loss", {"delta": 0.3}),
    ("smooth_l1_loss", {}),
    ("smooth_l1_loss", {"beta": 0.3}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("binary_cross_entropy_with_logits", {}),
    ("hinge_loss", {}),
    ("kl_div", {}),
    ("kl_div", {"log_target": True}),
]

# n of add, subtract, multiply, affine and scale
ELEMENTWISE = [1, 3, 4, 5, 1023, 1024, 4099]

# a (..., C) with a vector b (C)
ELEMENTWISE_VECTOR = [(1, 1), (3, 5), (5, 4), (2, 3, 4, 33), (1030, 1), (7, 300)]

# n of one optimizer step
OPTIMIZER = [1, 2, 3, 4, 1021]

# the sizes of the buffers that are clipped together
CLIP: list[tuple[int, ...]] = [(1,), (3,), (4, 1, 5), (1021,), (9000, 7), (2,) * 300]

# (O, R, C) reduced over R
AXIS_REDUCE = [
    (1, 1, 1),
    (3, 5, 1),
    (300, 3, 1),
    (3, 255, 1),
    (2, 7, 3),
    (5, 1, 33),
    (2, 300, 34),
    (1, 9001, 1),
    (2, 4500, 1),
]
