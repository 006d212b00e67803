"""Training steps that the tests of graphs run eagerly and recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import gpucnn
from gpucnn import Tensor, models, nn, optim, random
from gpucnn import functional as F
from gpucnn.optim import EMA, clip_grad_norm_
from tests.support import randn


def small_net() -> nn.Module:
    """Batch norm, pooling and both kinds of dropout on (8, 8, 1) images; 3 classes."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout2d(0.2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(4 * 4 * 6, 3),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "small": (small_net, (8, 8, 1)),
    "lenet5": (lambda: models.create("lenet5"), (28, 28, 1)),
}


class Trace(NamedTuple):
    """All that a training run leaves behind, to be compared bit for bit."""

    outputs: list[bytes]
    state: dict[str, bytes]
    counters: tuple[Any, ...]


class Run:
    """A model with all that belongs to a step: Adam, half a cosine, clipping, an average."""

    def __init__(self, net: str, device: str, graph: bool) -> None:
        gpucnn.seed(3)
        make, self.shape = NETS[net]
        self.device, self.batch = device, 3 if net == "small" else 1
        self.model = make().to(device).train()
        self.optimizer = optim.Adam(self.model.parameters(), lr=3e-3)
        self.schedule = optim.CosineAnnealingLR(self.optimizer, 30)
        self.average = EMA(self.optimizer, 0.9)
        self.step: Any = gpucnn.cuda_graph(self.compute) if graph else self.compute
        self.outputs: list[bytes] = []

    def compute(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One training step -> loss, norm of the gradients."""
        loss = F.cross_entropy(self.model(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm_(self.optimizer, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.average.update()
        return loss, norm

    def data(self, i: int) -> tuple[Tensor, Tensor]:
        """The batch of step i."""
        x = randn(self.batch, *self.shape, seed=i)
        y = (np.arange(self.batch) + i) % 3
        return Tensor(x, device=self.device), Tensor(y, device=self.device)

    def steps(self, first: int, stop: int, between: Callable[[], None] | None = None) -> None:
        """Steps first to stop − 1; ``between`` is called after each."""
        for i in range(first, stop):
            self.outputs += [t.numpy().tobytes() for t in self.step(*self.data(i))]
            if between is not None:
                between()

    def trace(self) -> Trace:
        """What is there now."""
        optimizer = {f"optimizer {k}": v for k, v in self.optimizer.state_dict().items()}
        average = {f"average {k}": v for k, v in self.average.state_dict().items()}
        arrays = {**self.model.state_dict(), **optimizer, **average}
        grads = {str(i): p.grad.numpy() for i, p in enumerate(self.optimizer.params) if p.grad}
        state = {name: np.asarray(v).tobytes() for name, v in {**arrays, **grads}.items()}
        counters = (
            self.optimizer.steps,
            self.optimizer.lr,
            self.schedule.steps,
            self.average.updates,
            random.dropout_generator().position,
        )
        return Trace(self.outputs, state, counters)


def trace(net: str, device: str, graph: bool, steps: int) -> Trace:
    """The trace of so many steps."""
    run = Run(net, device, graph)
    run.steps(0, steps)
    return run.trace()
