"""One training step of a classifier: layer by layer, or in one launch where a kernel does that."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import functional as F
from gpucnn.device import module_of
from gpucnn.nn import Module, Sequential
from gpucnn.ops.lenet5_step import (
    IMAGE,
    MOST_CLASSES,
    lenet5_step,
    parameter_offsets,
    parameter_shapes,
)
from gpucnn.ops.loss import IGNORE_INDEX, class_indices
from gpucnn.optim import Adam, AdamW, Optimizer, clip_grad_norm_
from gpucnn.primitive import chosen_by_hand
from gpucnn.recording import using
from gpucnn.tensor import Tensor

# Of models.lenet5, without the last one, which has a row for each class.
_POOL = "AvgPool2d(kernel_size=(2, 2), stride=(2, 2), padding=((0, 0), (0, 0)))"
_LENET5 = (
    "Conv2d(1, 6, kernel_size=(5, 5), stride=(1, 1), padding=((2, 2), (2, 2)))", "Tanh()", _POOL,
    "Conv2d(6, 16, kernel_size=(5, 5), stride=(1, 1), padding=((0, 0), (0, 0)))", "Tanh()", _POOL,
    "Flatten()", "Linear(400, 120)", "Tanh()", "Linear(120, 84)", "Tanh()",
)  # fmt: skip


class TrainingStep:
    """Forward pass, cross-entropy, backward pass, clipping and update with one batch.

    ``step(images, target)`` returns the mean loss, a 0-d tensor, and the scores (N, classes) of
    before the update.

    Inside ``use_variant(lenet5_step="persistent")`` it is one launch, whose blocks wait for each
    other once, instead of one for each operation; for :func:`gpucnn.models.lenet5` with up to 16
    classes and one group of :class:`~gpucnn.optim.Adam` or ``AdamW`` over all of its parameters, on
    float32 images (N, 28, 28, 1) and class indices (N). It computes in float32 whatever the
    precision chosen, and leaves no gradients behind: every ``grad`` is None. The bits depend on the
    batch and the parameters alone, on a GPU of any size. On ``cpu`` its definition runs.

    model, optimizer: on one device. clip_norm: the largest norm of all gradients together, None
    for any, which is what that variant takes. Raises ValueError where it is chosen for anything
    else.
    """

    def __init__(self, model: Module, optimizer: Optimizer, clip_norm: float | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.clip_norm = clip_norm
        self._classes = 0  # that the kernel was found to fit
        # Made here: no part of a step, which may be recorded.
        self._meeting = module_of(optimizer.params[0].data).zeros(1, np.int32)

    def __call__(self, images: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        """Train with images and what the loss takes as their target."""
        if chosen_by_hand("lenet5_step") is not None:
            return self._at_once(images, target)
        scores = self.model(images)
        loss = F.cross_entropy(scores, target)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            clip_grad_norm_(self.optimizer, self.clip_norm)
        self.optimizer.step()
        return loss, scores

    def _at_once(self, images: Tensor, target: Any) -> tuple[Tensor, Tensor]:
        optimizer = self.optimizer
        if self.clip_norm is not None:
            raise ValueError(
                f"clip_norm: lenet5_step='persistent' does not clip gradients, got {self.clip_norm}"
            )
        if not self._classes:
            self._classes = _fitting_classes(self.model, optimizer)
        if isinstance(images, Tensor):  # the kernel takes float32, whatever the precision
            images = F.to_float32(images)
        _check_images(images, optimizer.device)
        N, classes, device = images.shape[0], self._classes, images.device
        like = Tensor._wrap(np.broadcast_to(np.float32(0), (N, classes)), device)
        labels = class_indices(target, like, IGNORE_INDEX)
        optimizer.zero_grad()
        using(optimizer.params)
        flat, state, numbers = optimizer.flat_step()
        buffers = flat, state["exp_avg"], state["exp_avg_sq"]
        batch = images.data, labels, numbers, self._meeting
        loss, scores = lenet5_step.on(device)(*buffers, *batch, classes, IGNORE_INDEX)
        optimizer.parameters_changed()
        return Tensor._wrap(loss, device), Tensor._wrap(scores, device)


def _fitting_classes(model: Module, optimizer: Optimizer) -> int:
    """The classes of the LeNet-5 that the kernel is to train; ValueError for any other network."""
    chosen = "lenet5_step='persistent' trains"
    layers = list(model) if isinstance(model, Sequential) else []
    parameters = list(model.parameters())
    classes = parameters[-1].shape[0] if parameters and parameters[-1].ndim == 1 else 0
    if (
        [repr(layer) for layer in layers] != [*_LENET5, f"Linear(84, {classes})"]
        or tuple(t.shape for t in parameters) != parameter_shapes(classes)
    ):  # fmt: skip
        raise ValueError(f"model: {chosen} models.lenet5 alone, got {model!r}")
    if not 1 <= classes <= MOST_CLASSES:
        raise ValueError(f"model: {chosen} up to {MOST_CLASSES} classes, got {classes}")
    if type(optimizer) not in (Adam, AdamW):
        raise ValueError(f"optimizer: {chosen} by Adam or AdamW, got {type(optimizer).__name__}")
    if len(optimizer.param_groups) > 1:
        raise ValueError(
            f"optimizer: {chosen} one group of parameters, got {len(optimizer.param_groups)}"
        )
    if [id(t) for t in optimizer.params] != [id(t) for t in parameters]:
        raise ValueError(f"optimizer: {chosen} all of the model's parameters, in their order")
    if optimizer.params[0].dtype != np.float32 and optimizer.device != "cpu":
        raise ValueError(f"model: {chosen} float32, got {optimizer.params[0].dtype}")
    flat = optimizer.flat_size
    if flat != parameter_offsets(classes)[-1]:
        raise RuntimeError(f"the flat buffers have {flat} elements, not as lenet5_step has them")
    return int(classes)


def _check_images(images: Tensor, device: str) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a Tensor, got {type(images).__name__}")
    if images.shape[1:] != IMAGE or not math.prod(images.shape):
        raise ValueError(f"images must have shape (N, 28, 28, 1), N >= 1, got {images.shape}")
    if images.device != device:
        raise ValueError(f"images must be on {device!r}, as the model is, got {images.device!r}")
    if images.dtype.kind != "f" or (device != "cpu" and images.dtype != np.float32):
        raise TypeError(f"images must be float32, got {images.dtype}")
