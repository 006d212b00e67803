"""Training steps in JAX: the layers of a network as functions of its own arrays, under ``jit``.

Images stay (N, H, W, C) and filters as they are here: no layout is converted. Adam is written out,
since JAX has no optimizers; parameters and state are donated, so that they are updated in place.
JAX launches on streams of its own, hence the host's clock; its calls do not wait for each other.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.models.segmentation import SegNet, UNet

from ..harness.timing import Contender
from ..steps import CHECKED, LEARNING_RATE, ROW, Step
from .rival import Gap, Rival

_BETAS, _EPS = (0.9, 0.999), 1e-8


class Jax:
    """JAX on its default device: TF32 or bf16 where the precision is that."""

    def __init__(self, device: str) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # others need memory too
        jax: Any = importlib.import_module("jax")
        self.jax, self.device = jax, device
        self._precision = "fp32"
        if device == "cuda" and jax.default_backend() not in ("gpu", "cuda"):
            raise RuntimeError(f"this JAX ({jax.__version__}) cannot use the GPU")

    def use_precision(self, precision: str) -> None:
        """How products are computed; in bf16 activations and copies of weights are bfloat16."""
        self._precision = precision
        mode = {"fp32": "highest", "tf32": "tensorfloat32"}.get(precision)
        self.jax.config.update("jax_default_matmul_precision", mode)

    def rivals(self, primitive: str, arguments: tuple[Any, ...], sets: int) -> list[Rival | Gap]:
        """Whole steps only."""
        return [Gap("jax", "JAX takes part in training steps only")]

    def step_rivals(self, step: Step) -> list[Rival | Gap]:
        """The contender for a training step of a network."""
        if type(step) is not Step:
            return [Gap("jax", "JAX takes part in training steps of networks only")]
        call = self._call(step)

        def results() -> list[Any]:
            return [np.array([float(call(0)) for _ in range(CHECKED)])]

        last: list[Any] = []

        def timed(i: int) -> None:
            last[:] = [call(i)]

        def wait() -> None:
            self.jax.block_until_ready(last)

        return [Rival(Contender("jax", timed, row=ROW, wait=wait), results)]

    def _call(self, step: Step) -> Callable[[int], Any]:
        jax, jnp = self.jax, self.jax.numpy
        network = _Network(jax, step.build())
        images, labels = step.batch_of_images()
        half = jnp.bfloat16 if self._precision == "bf16" else None

        def loss(parameters: Any, x: Any, target: Any) -> Any:
            if half is not None:
                parameters, x = jax.tree.map(lambda a: a.astype(half), (parameters, x))
            scores = network(parameters, x).astype(jnp.float32)
            logs = jax.nn.log_softmax(scores)
            return -jnp.take_along_axis(logs, target[..., None], -1).mean()

        @functools.partial(jax.jit, donate_argnums=(0,))
        def train(state: Any, x: Any, target: Any) -> Any:
            parameters, m, v, t = state
            value, gradient = jax.value_and_grad(loss)(parameters, x, target)
            t = t + 1
            (b1, b2), tree = _BETAS, jax.tree.map
            m = tree(lambda m, g: b1 * m + (1 - b1) * g, m, gradient)
            v = tree(lambda v, g: b2 * v + (1 - b2) * g * g, v, gradient)
            rate, root = LEARNING_RATE / (1 - b1**t), jnp.sqrt(1 - b2**t)
            parameters = tree(
                lambda p, m, v: p - rate * m / (jnp.sqrt(v) / root + _EPS), parameters, m, v
            )
            return (parameters, m, v, t), value

        parameters = [jnp.array(a) for a in network.arrays]
        zeros = [jnp.zeros_like(a) for a in parameters]
        box = [(parameters, zeros, [jnp.zeros_like(a) for a in parameters], jnp.float32(0))]
        x, target = jnp.asarray(images), jnp.asarray(labels)

        def call(_: int) -> Any:
            box[0], value = train(box[0], x, target)
            return value

        return call


class _Network:
    """The function of a network in training; running statistics, which no loss needs, are left
    out, though PyTorch and we compute them.

    arrays: its parameters, in the order in which the layers take them.
    """

    def __init__(self, jax: Any, model: nn.Module) -> None:
        self._jax, self._jnp = jax, jax.numpy
        self.arrays: list[Any] = []
        self._run = self._of(model)

    def __call__(self, parameters: list[Any], x: Any) -> Any:
        return self._run(parameters, x)

    def _take(self, tensor: Any) -> int:
        """The position of a parameter among the arrays."""
        self.arrays.append(tensor.numpy())
        return len(self.arrays) - 1

    def _bias(self, m: Any) -> int | None:
        return None if m.bias is None else self._take(m.bias)

    def _of(self, m: Any) -> Callable[[list[Any], Any], Any]:
        if isinstance(m, nn.Sequential):
            return self._chain([self._of(child) for _, child in m.named_children()])
        if isinstance(m, nn.Residual):
            body = self._of(m.module)
            skip = (lambda p, x: x) if m.projection is None else self._of(m.projection)
            return lambda p, x: body(p, x) + skip(p, x)
        if isinstance(m, UNet):
            return self._unet(m)
        if isinstance(m, SegNet):
            return self._segnet(m)
        if isinstance(m, nn.Conv2d):
            return self._convolution(m)
        if isinstance(m, nn.ConvTranspose2d):
            return self._transposed(m)
        if isinstance(m, nn.BatchNorm2d):
            return self._norm(m)
        if isinstance(m, nn.Linear):
            w, b = self._take(m.weight), self._bias(m)
            return lambda p, x: self._biased(x @ p[w].T, p, b)
        simple = {
            nn.Flatten: lambda x: x.reshape(len(x), -1),
            nn.ReLU: self._jax.nn.relu,
            nn.Tanh: self._jnp.tanh,
            nn.GlobalAvgPool2d: lambda x: x.mean((1, 2)),
            nn.GlobalMaxPool2d: lambda x: x.max((1, 2)),
        }
        if type(m) in simple:
            function: Callable[[Any], Any] = simple[type(m)]
            return lambda p, x: function(x)
        if isinstance(m, nn.AvgPool2d | nn.MaxPool2d):
            return self._pool(m)
        raise TypeError(f"no JAX layer for {m!r}")

    @staticmethod
    def _chain(parts: list[Any]) -> Callable[[list[Any], Any], Any]:
        def run(p: list[Any], x: Any) -> Any:
            for part in parts:
                x = part(p, x)
            return x

        return run

    @staticmethod
    def _biased(y: Any, p: list[Any], b: int | None) -> Any:
        return y if b is None else y + p[b]

    def _convolution(self, m: Any) -> Callable[[list[Any], Any], Any]:
        w, b = self._take(m.weight), self._bias(m)
        pads = m.padding.upper() if isinstance(m.padding, str) else list(m.padding)
        convolve = functools.partial(
            self._jax.lax.conv_general_dilated,
            window_strides=m.stride,
            padding=pads,
            rhs_dilation=m.dilation,
            feature_group_count=m.groups,
            dimension_numbers=("NHWC", "OHWI", "NHWC"),
        )
        return lambda p, x: self._biased(convolve(x, p[w]), p, b)

    def _transposed(self, m: Any) -> Callable[[list[Any], Any], Any]:
        """The adjoint of a convolution: one of the image spread by the stride, filters turned."""
        if m.groups != 1 or isinstance(m.padding, str):
            raise TypeError(f"no JAX layer for {m!r}")
        w, b = self._take(m.weight), self._bias(m)
        spread = [d * (k - 1) for k, d in zip(m.kernel_size, m.dilation, strict=True)]
        pads = [
            (s - low, s - high + more)
            for s, (low, high), more in zip(spread, m.padding, m.output_padding, strict=True)
        ]
        convolve = functools.partial(
            self._jax.lax.conv_general_dilated,
            window_strides=(1, 1),
            padding=pads,
            lhs_dilation=m.stride,
            rhs_dilation=m.dilation,
            dimension_numbers=("NHWC", "IHWO", "NHWC"),
        )
        return lambda p, x: self._biased(convolve(x, p[w][:, ::-1, ::-1]), p, b)

    def _norm(self, m: Any) -> Callable[[list[Any], Any], Any]:
        g, b, jnp = self._take(m.weight), self._take(m.bias), self._jnp

        def run(p: list[Any], x: Any) -> Any:
            wide = x.astype(jnp.float32)
            mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
            y = (wide - mean) * self._jax.lax.rsqrt(var + m.eps) * p[g] + p[b]
            return y.astype(x.dtype)

        return run

    def _pool(self, m: Any) -> Callable[[list[Any], Any], Any]:
        lax, jnp = self._jax.lax, self._jnp
        window, strides = (1, *m.kernel_size, 1), (1, *m.stride, 1)
        if any(any(pair) for pair in m.padding):
            raise TypeError(f"no JAX layer for {m!r}")
        if isinstance(m, nn.MaxPool2d):
            return lambda p, x: lax.reduce_window(x, -jnp.inf, lax.max, window, strides, "VALID")
        cells = float(np.prod(m.kernel_size))
        return lambda p, x: lax.reduce_window(x, 0.0, lax.add, window, strides, "VALID") / cells

    def _halved(self, x: Any) -> tuple[Any, Any]:
        """2×2 max pooling, and where in each window the maximum is."""
        N, H, W, C = x.shape
        cells = x.reshape(N, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4)
        cells = cells.reshape(N, H // 2, W // 2, C, 4)
        return cells.max(-1), cells.argmax(-1)

    def _doubled(self, x: Any, at: Any) -> Any:
        """The way back: each value to its place, 0 elsewhere."""
        N, H, W, C = x.shape
        cells = x[..., None] * self._jax.nn.one_hot(at, 4, dtype=x.dtype)
        cells = cells.reshape(N, H, W, C, 2, 2).transpose(0, 1, 4, 2, 5, 3)
        return cells.reshape(N, 2 * H, 2 * W, C)

    def _unet(self, m: UNet) -> Callable[[list[Any], Any], Any]:
        encoders, ups, decoders = (
            [self._of(c) for c in part.layers] for part in (m.encoders, m.ups, m.decoders)
        )
        classifier = self._of(m.classifier)

        def run(p: list[Any], x: Any) -> Any:
            skips = []
            for i, encoder in enumerate(encoders):
                if i:
                    skips.append(x)
                    x = self._halved(x)[0]
                x = encoder(p, x)
            for up, decoder in zip(ups, decoders, strict=True):
                x = decoder(p, self._jnp.concatenate([skips.pop(), up(p, x)], -1))
            return classifier(p, x)

        return run

    def _segnet(self, m: SegNet) -> Callable[[list[Any], Any], Any]:
        encoders, decoders = (
            [self._of(c) for c in part.layers] for part in (m.encoders, m.decoders)
        )
        bottleneck, classifier = self._of(m.bottleneck), self._of(m.classifier)

        def run(p: list[Any], x: Any) -> Any:
            places = []
            for encoder in encoders:
                x, at = self._halved(encoder(p, x))
                places.append(at)
            x = bottleneck(p, x)
            for decoder in decoders:
                x = decoder(p, self._doubled(x, places.pop()))
            return classifier(p, x)

        return run
