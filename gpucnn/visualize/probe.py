"""What happens inside a model: the layers' outputs, and gradients with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn import functional as F
from gpucnn.nn import Module, Sequential
from gpucnn.nn.module import inference
from gpucnn.precision import precision
from gpucnn.tensor import Tensor, no_grad

Floats = NDArray[Any]


@dataclass(frozen=True)
class LayerOutput:
    """Attributes:
    name: of the layer, as in ``named_modules()``.
    module: the layer.
    output: what it made of the images, (N, …).
    """

    name: str
    module: Module
    output: Floats


def _leaves(model: Module) -> Iterator[tuple[str, Module]]:
    """Modules that hold no others."""
    for name, module in model.named_modules():
        if not any(True for _ in module.named_children()) and not isinstance(module, Sequential):
            yield name, module


@contextmanager
def watched(model: Module, called: Callable[[str, Module, Tensor], Tensor]) -> Iterator[None]:
    """Inside, ``called(name, layer, output)`` is what goes on in the place of each layer's output.

    The layers are computed one by one, as at inference, in float32.
    """

    def watch(name: str, module: Module) -> Callable[..., Any]:
        ordinary = module.forward

        def forward(*inputs: Any, **options: Any) -> Any:
            made = ordinary(*inputs, **options)
            if isinstance(made, tuple):
                return (called(name, module, made[0]), *made[1:])
            return called(name, module, made)

        return forward

    leaves = list(_leaves(model))
    with inference(model), precision("fp32"):
        try:
            for name, module in leaves:
                vars(module)["forward"] = watch(name, module)
            yield
        finally:
            for _, module in leaves:
                vars(module).pop("forward", None)


@contextmanager
def _frozen(model: Module) -> Iterator[None]:
    """Inside, backward passes leave the parameters alone."""
    trained = [t for t in model.parameters() if t.requires_grad]
    for tensor in trained:
        tensor.requires_grad = False
    try:
        yield
    finally:
        for tensor in trained:
            tensor.requires_grad = True


def _device(model: Module) -> str | None:
    return next((t.device for t in model.parameters()), None)


def layer_outputs(model: Module, images: Floats) -> list[LayerOutput]:
    """What each layer makes of normalized images (N, H, W, C), in the order of the calls."""
    found: list[LayerOutput] = []

    def called(name: str, module: Module, output: Tensor) -> Tensor:
        found.append(LayerOutput(name, module, np.array(output.numpy())))
        return output

    with watched(model, called), no_grad():
        model(Tensor(images, device=_device(model)))
    return found


def _class_score(scores: Tensor, classes: Floats) -> Tensor:
    """The sum over images, and over pixels with a class of their own, of the score of the class."""
    chosen = np.zeros(scores.shape, np.float32)
    np.put_along_axis(chosen, classes[..., None], 1.0, axis=-1)
    return (scores * Tensor(chosen, device=scores.device)).sum()


def saliency(model: Module, images: Floats, classes: Floats) -> Floats:
    """How much each pixel changes the score of a class: the largest |∂ score/∂ pixel| of channels.

    Args:
        model: takes the images, returns scores (N, …, classes).
        images: normalized, (N, H, W, C).
        classes: integers, one for each image or pixel.

    Returns:
        (N, H, W), >= 0.

    Source: Simonyan, Vedaldi and Zisserman, arXiv:1312.6034.
    """
    x = Tensor(images, requires_grad=True, device=_device(model))
    with inference(model), _frozen(model), precision("fp32"):
        _class_score(model(x), classes).backward()
    assert x.grad is not None
    gradient: Floats = np.abs(x.grad.numpy()).max(axis=-1)
    return gradient


def grad_cam(model: Module, images: Floats, classes: Floats, layer: str | None = None) -> Floats:
    """Where a layer found what speaks for a class: ReLU(Σ_c w_c·A_c), w_c = mean ∂ score/∂ A_c.

    Args:
        model, images, classes: as of :func:`saliency`.
        layer: its name; by default the last one whose output is an image of more than a pixel.

    Returns:
        (N, h, w), the size of the layer's output, >= 0.

    Raises:
        ValueError: there is no such layer, or its output is no image.

    Source: Selvaraju et al., arXiv:1610.02391.
    """
    images_of = {
        each.name: each.output.shape
        for each in layer_outputs(model, images[:1])
        if each.output.ndim == 4 and each.output.shape[1] * each.output.shape[2] > 1
    }
    if layer is None:
        if not images_of:
            raise ValueError("model: no layer's output is an image")
        layer = list(images_of)[-1]
    if layer not in images_of:
        raise ValueError(
            f"layer must be one whose output is an image, {', '.join(images_of)}; got {layer!r}"
        )
    cut: list[Tensor] = []

    def called(name: str, module: Module, output: Tensor) -> Tensor:
        if name != layer:
            return output
        cut[:] = [Tensor(output.detach(), requires_grad=True)]
        return cut[0]

    with watched(model, called), _frozen(model):
        _class_score(model(Tensor(images, device=_device(model))), classes).backward()
    maps = cut[0]
    if maps.grad is None:
        raise ValueError(f"layer: the scores do not depend on {layer}")
    weights = maps.grad.numpy().mean(axis=(1, 2), keepdims=True)
    result: Floats = np.maximum((weights * maps.numpy()).sum(axis=-1), 0.0)
    return result


def gradients(model: Module, images: Floats, labels: Floats) -> dict[str, Floats]:
    """The gradient of the mean cross-entropy in each parameter, by name, as at inference."""
    kept = {name: (t, t.grad, t._gradient_home) for name, t in model.named_parameters()}
    try:
        for tensor, _, _ in kept.values():
            tensor.grad = tensor._gradient_home = None
        with inference(model), precision("fp32"):
            F.cross_entropy(model(Tensor(images, device=_device(model))), labels).backward()
        return {
            name: np.array(tensor.grad.numpy())
            for name, (tensor, _, _) in kept.items()
            if tensor.grad is not None
        }
    finally:
        for tensor, grad, home in kept.values():
            tensor.grad, tensor._gradient_home = grad, home
