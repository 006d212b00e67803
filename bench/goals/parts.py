"""Parts of a training step that are compared whole: a fused block, an update of all parameters.

Both sides compute the same function of the same numbers, PyTorch by the modules that a user would
write. They are measured as training steps are (:class:`bench.steps.Step`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import gpucnn
from gpucnn import models, nn, optim

from ..problems.problem import normal, size, words
from ..rivals.expression import channels_first
from ..steps import Step, TorchCalls

_RATE = 1e-2


def _host(t: Any) -> Any:
    """A tensor of either side as a host array."""
    return t.detach().cpu().numpy() if hasattr(t, "cpu") else t.numpy()


def _mean_size(tensors: Any) -> float:
    """The mean of |t| over each tensor, added up: no layout changes it."""
    return float(sum(np.abs(_host(t)).mean(dtype=np.float64) for t in tensors))


@dataclass(frozen=True)
class Block(Step):
    """Batch norm in training, a residual or not, ReLU, a 2×2 max pool or not: forward, backward.

    shape: of the images, (N, H, W, C). What is returned are its result and the gradient of its
    input; the gradients of gamma and beta are computed too.
    """

    shape: tuple[int, int, int, int] = (1, 1, 1, 1)
    residual: bool = False
    pool: bool = False

    @property
    def case(self) -> str:
        what = ("", "-add")[self.residual] + "-relu" + ("", "-pool")[self.pool]
        return f"bn{what}-{'x'.join(map(str, self.shape))}"

    def build(self) -> nn.Module:
        with gpucnn.use_device("cpu"):
            norm: nn.Module = nn.BatchNorm2d(self.shape[-1])
            first = nn.Residual(nn.Sequential(norm)) if self.residual else norm
            pool = [nn.MaxPool2d(2)] if self.pool else []
            return nn.Sequential(first, nn.ReLU(), *pool)

    @property
    def _out(self) -> tuple[int, ...]:
        N, H, W, C = self.shape
        return (N, H // 2, W // 2, C) if self.pool else self.shape

    @property
    def flops(self) -> int:
        """Those of the formulas, as in the problems of the fused blocks."""
        return (14 + self.residual) * size(self.shape) + 4 * size(self._out) * self.pool

    @property
    def bytes(self) -> int:
        """x and dy in, y and dx out: a cache large enough would need no more."""
        return words(self.shape, self.shape, self._out, self._out)

    def _arrays(self) -> tuple[Any, Any]:
        return normal(0, 0, *self.shape), normal(0, 1, *self._out)

    def value(self, result: Any) -> float:
        return _mean_size(result)

    def ours(self, device: str, dtype: Any = np.float32) -> Callable[[], Any]:
        model = self.build()
        for tensor in (*model.parameters(), *(b for _, b in model.named_buffers())):
            tensor.data = tensor.data.astype(dtype)
        model.to(device).train()
        given, dy = (gpucnn.Tensor(a.astype(dtype), device=device) for a in self._arrays())
        x = gpucnn.Tensor(given.data, requires_grad=True, device=device)

        def run() -> Any:
            for t in (x, *model.parameters()):
                t.grad = None
            y = model(x)
            y.backward(dy.data)
            return y, x.grad

        return run

    def torchs(self, torch: Any, images_last: bool, capturable: bool, dtype: Any) -> TorchCalls:
        from ..rivals.torch_models import as_torch

        twin = as_torch(self.build()).to(torch.device, dtype)
        x, dy = torch.tensors([channels_first(a) for a in self._arrays()], images_last)
        x, dy = x.to(dtype).requires_grad_(), dy.to(dtype)
        wanted = [x, *twin.parameters()]

        def step(module: Any) -> Any:
            y = module(x)
            return y.detach(), torch.torch.autograd.grad(y, wanted, dy)[0]

        return TorchCalls(twin, step, lambda module: module(x))


@dataclass(frozen=True)
class Update(Step):
    """A step of Adam over all parameters of a network, whose gradients are where backward passes
    leave them; PyTorch's is its fused one. What is returned are the parameters.
    """

    @property
    def case(self) -> str:
        return f"adam-{self.model}"

    def build(self) -> nn.Module:
        gpucnn.seed(0)
        with gpucnn.use_device("cpu"):
            return models.create(self.model)

    def _elements(self) -> int:
        return sum(p.size for p in self.build().parameters())

    @property
    def flops(self) -> int:
        return 16 * self._elements()

    @property
    def bytes(self) -> int:
        """Parameters and two moments read and written, gradients read."""
        return 7 * 4 * self._elements()

    def value(self, result: Any) -> float:
        return _mean_size(result)

    def ours(self, device: str, dtype: Any = np.float32) -> Callable[[], Any]:
        model = self.build().to(device)
        parameters = list(model.parameters())
        for p in parameters:
            values = p.numpy().astype(dtype)
            p.data = gpucnn.Tensor(values, device=device).data
            p.grad = gpucnn.Tensor(_gradient(values), device=device)
        optimizer = optim.Adam(parameters, lr=_RATE)

        def run() -> Any:
            optimizer.step()
            return parameters

        return run

    def torchs(self, torch: Any, images_last: bool, capturable: bool, dtype: Any) -> TorchCalls:
        from ..rivals.torch_models import as_torch

        twin = as_torch(self.build()).to(torch.device, dtype)
        parameters = list(twin.parameters())
        for p in parameters:
            p.grad = torch.torch.as_tensor(_gradient(_host(p)), device=torch.device)
        options = {"capturable": True} if capturable else {}
        optimizer = torch.torch.optim.Adam(parameters, lr=_RATE, fused=True, **options)

        def step(_: Any) -> Any:
            optimizer.step()
            return parameters

        return TorchCalls(None, step)


def _gradient(values: Any) -> Any:
    """A gradient that is a function of each element alone."""
    return np.sin(1000 * values)


BLOCKS = [
    Block("bn", 128, "layer", (128, 32, 32, 16)),
    Block("bn", 128, "layer", (128, 32, 32, 16), residual=True),
    Block("bn", 512, "layer", (512, 32, 32, 64)),
    Block("bn", 512, "layer", (512, 32, 32, 128), pool=True),
]
UPDATES = [Update("resnet20", 128, "layer"), Update("unet_small", 16, "layer")]
