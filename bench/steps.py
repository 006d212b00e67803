"""Whole training steps: forward, backward and the optimizer's update of one batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import gpucnn
from gpucnn import models, nn, optim
from gpucnn.summary import summarize
from gpucnn.training import TrainingStep

from .harness.ours import DEFAULT, DEFINITION

FAMILY = "training_step"
LEARNING_RATE = 1e-5  # larger steps of Adam would turn rounding errors into other losses
CHECKED = 2  # steps whose losses are compared before anything is timed
ROW = 20  # steps in a row of one sample on a GPU: the host is ahead, as in a training run
GRAPH = "graph"  # the variant of steps that are recorded and replayed
GRAPH_8, PARTS = "graph_8", 8  # the same with eight steps in each graph
PERSISTENT = (
    "persistent"  # the same with one launch for each of the eight, of a network that has it
)
GRAPHS = (GRAPH, GRAPH_8, PERSISTENT)
_SHORT = 2e10  # operations of a step: above, the launch of a graph is nothing beside it


def step_variants(device: str) -> tuple[str, ...]:
    """Ours on a device: on a GPU launched kernel by kernel, and as graphs."""
    return (DEFINITION,) if device == "cpu" else (DEFAULT, *GRAPHS)


class TorchCalls(NamedTuple):
    """A step in PyTorch.

    module: the part that torch.compile takes, or None. step: computes a step with that part, or
    what it was compiled to. forward: applies the part alone; restore: undoes what that has changed.
    """

    module: Any
    step: Callable[[Any], Any]
    forward: Callable[[Any], Any] = lambda module: None
    restore: Callable[[], None] = lambda: None


BLOCK = "block-16to32"  # the commonest three layers, which label each pixel of (32, 32, 16) images


def block() -> nn.Module:
    """A 3×3 convolution of 16 to 32 channels with batch norm and ReLU."""
    return nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())


@dataclass(frozen=True)
class Step:
    """A network of :mod:`gpucnn.models` or the block, and a batch size; group as in ``Problem``."""

    model: str
    batch: int
    group: str

    family = primitive = FAMILY
    direction = "step"
    terms = 1

    @property
    def case(self) -> str:
        """Network and batch size."""
        return f"{self.model}-b{self.batch}"

    def __str__(self) -> str:
        return f"{FAMILY}[{self.case}]"

    def build(self) -> gpucnn.nn.Module:
        """The network with the weights of seed 0."""
        gpucnn.seed(0)
        with gpucnn.use_device("cpu"):
            return block() if self.model == BLOCK else models.create(self.model)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return (32, 32, 16) if self.model == BLOCK else models.input_shape(self.model)

    def batch_of_images(self) -> tuple[Any, Any]:
        """Random images (N,H,W,C) and labels int32, one per image or pixel."""
        rng = np.random.default_rng(0)
        shape = self.input_shape
        x = rng.standard_normal((self.batch, *shape), np.float32)
        by_pixel = self.model == BLOCK or models.kind(self.model) == "pixel"
        rows = (self.batch, *shape[:2]) if by_pixel else (self.batch,)
        return x, rng.integers(0, 3, rows).astype(np.int32)

    @property
    def flops(self) -> int:
        """Of the convolutions and linear layers: forward, and as much for each of two gradients.

        Nobody needs the gradient of the images.
        """
        with gpucnn.use_device("cpu"):
            layers = summarize(self.build(), self.input_shape)
        products = [layer.multiply_adds for layer in layers if layer.multiply_adds]
        return 2 * self.batch * (3 * sum(products) - products[0])

    @property
    def bytes(self) -> int:
        """Images read; parameters, two moments read and written: what no step can do without."""
        parameters = sum(p.size for p in self.build().parameters())
        images = self.batch * math.prod(self.input_shape)
        return 4 * (images + 6 * parameters)

    @property
    def variants(self) -> tuple[str, ...]:
        """Of :func:`step_variants`, those on a GPU that are worth timing."""
        left_out = [] if self.flops < _SHORT else [GRAPH_8]
        if self.model != "lenet5":
            left_out.append(PERSISTENT)
        return tuple(v for v in step_variants("cuda") if v not in left_out)

    def value(self, result: Any) -> float:
        """The number by which a step is checked, of what ours and PyTorch's returned."""
        return float(result.item())

    def torchs(self, torch: Any, images_last: bool, capturable: bool, dtype: Any) -> TorchCalls:
        """The same in PyTorch, on the device and by the settings of a ``rivals.torch_rival.Torch``.

        capturable: the optimizer keeps its numbers where a CUDA graph reads them.
        """
        images, labels = self.batch_of_images()
        calls: TorchCalls = torch.network_step(
            self.build(), images, labels, images_last, capturable, dtype
        )
        return calls

    def ours(self, device: str, dtype: Any = np.float32) -> Callable[[], Any]:
        """What computes one step of gpucnn on a device and returns the loss, a tensor."""
        model, (images, labels) = self.build(), self.batch_of_images()
        if dtype != np.float32:
            for tensor in (*model.parameters(), *(b for _, b in model.named_buffers())):
                tensor.data = tensor.data.astype(dtype)
        model.to(device).train()
        x = gpucnn.Tensor(images.astype(dtype), device=device)
        target = gpucnn.Tensor(labels, device=device)
        step = TrainingStep(model, optim.Adam(model.parameters(), lr=LEARNING_RATE))
        return lambda: step(x, target)[0]


STEPS = [
    *(
        Step(name, batch, "typical")
        for name, batch in [
            ("lenet5", 64),
            ("shapenet", 64),
            (BLOCK, 64),
            ("fashionnet", 128),
            ("resnet20", 16),
            ("resnet9", 4),
            ("unet_small", 8),
            ("segnet_small", 8),
        ]
    ),
    *(
        Step(name, batch, "layer")
        for name, batch in [
            ("lenet5", 128),
            ("shapenet", 256),
            ("resnet20", 128),
            ("resnet9", 512),
            ("unet_small", 16),
            ("segnet_small", 16),
        ]
    ),
]


def our_step(step: Step, device: str, dtype: Any = np.float32) -> Callable[[], Any]:
    """One training step of gpucnn on a device; returns the loss, a tensor."""
    return step.ours(device, dtype)


def as_variant(run: Callable[[], Any], variant: str) -> Callable[[], Any]:
    """A step as it is computed by a variant, before it is recorded."""
    if variant != PERSISTENT:
        return run

    def at_once() -> Any:
        with gpucnn.use_variant(lenet5_step="persistent"):
            return run()

    return at_once


def first_values(step: Step, run: Callable[[], Any]) -> Any:
    """The losses, or what else a step is checked by, of the first steps, an array."""
    return np.array([step.value(run()) for _ in range(CHECKED)])


@functools.cache
def expected_losses(step: Step) -> Any:
    """The losses of the first steps by the definitions in float64."""
    return first_values(step, our_step(step, "cpu", np.float64))
