"""The PyTorch twin of a network of gpucnn: the same layers with the same weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpucnn import nn
from gpucnn.models.segmentation import SegNet, UNet


def _copy(torch: Any, made: Any, **arrays: Any) -> Any:
    with torch.no_grad():
        for name, array in arrays.items():
            getattr(made, name).copy_(torch.tensor(np.ascontiguousarray(array)))
    return made


def _parameters(m: Any) -> dict[str, Any]:
    """weight in PyTorch's layout, and the bias if there is one."""
    w = m.weight.numpy()
    named = {"weight": np.moveaxis(w, -1, 1) if w.ndim > 2 else w}
    return named if m.bias is None else {**named, "bias": m.bias.numpy()}


def _pads(m: Any) -> tuple[int, ...]:
    if isinstance(m.padding, str) or any(low != high for low, high in m.padding):
        raise TypeError(f"no PyTorch layer for {m!r}")
    return tuple(low for low, _ in m.padding)


def as_torch(model: nn.Module) -> Any:
    """The PyTorch modules of a network; TypeError for a layer that has no twin here.

    A flattened image keeps the order of its channels: where a linear layer follows, its columns are
    put in PyTorch's order.
    """
    import torch

    made = _Twins(torch).of(model)
    if any(m.padding_mode != "zeros" for m in made.modules() if isinstance(m, torch.nn.Conv2d)):
        raise TypeError("padding must be zeros")
    return made.train()


class _Twins:
    """Walks through a network and remembers how many channels the images have."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self._channels, self._flattened = 0, False

    def of(self, m: Any) -> Any:
        t = self.torch.nn
        if isinstance(m, nn.Sequential):
            return t.Sequential(*(self.of(child) for _, child in m.named_children()))
        if isinstance(m, nn.Residual):
            return self._residual(m)
        if isinstance(m, UNet):
            return self._unet(m)
        if isinstance(m, SegNet):
            return self._segnet(m)
        if isinstance(m, nn.Conv2d):
            self._channels = m.out_channels
            sizes = m.in_channels, m.out_channels, m.kernel_size, m.stride, _pads(m), m.dilation
            return _copy(
                self.torch, t.Conv2d(*sizes, m.groups, m.bias is not None), **_parameters(m)
            )
        if isinstance(m, nn.ConvTranspose2d):
            self._channels = m.out_channels
            window = (m.in_channels, m.out_channels, m.kernel_size, m.stride, _pads(m))
            rest = m.output_padding, m.groups, m.bias is not None, m.dilation
            return _copy(self.torch, t.ConvTranspose2d(*window, *rest), **_parameters(m))
        if isinstance(m, nn.BatchNorm2d):
            norm = t.BatchNorm2d(m.num_features, m.eps, m.momentum)
            vectors: Any = {"weight": m.weight, "bias": m.bias}
            return _copy(self.torch, norm, **{name: v.numpy() for name, v in vectors.items()})
        if isinstance(m, nn.Linear):
            return self._linear(m)
        if isinstance(m, nn.Flatten):
            self._flattened = True
            return t.Flatten()
        if isinstance(m, nn.AvgPool2d | nn.MaxPool2d):
            pool = t.AvgPool2d if isinstance(m, nn.AvgPool2d) else t.MaxPool2d
            return pool(m.kernel_size, m.stride)
        if isinstance(m, nn.GlobalAvgPool2d | nn.GlobalMaxPool2d):
            average = isinstance(m, nn.GlobalAvgPool2d)
            pool = t.AdaptiveAvgPool2d if average else t.AdaptiveMaxPool2d
            return t.Sequential(pool(1), t.Flatten())
        if isinstance(m, nn.ReLU | nn.Tanh):
            return t.ReLU() if isinstance(m, nn.ReLU) else t.Tanh()
        raise TypeError(f"no PyTorch layer for {m!r}")

    def _linear(self, m: Any) -> Any:
        arrays = _parameters(m)
        if self._flattened:
            side = math.isqrt(m.in_features // self._channels)
            images = arrays["weight"].reshape(m.out_features, side, side, self._channels)
            arrays["weight"] = images.transpose(0, 3, 1, 2).reshape(m.out_features, -1)
            self._flattened = False
        made = self.torch.nn.Linear(m.in_features, m.out_features, m.bias is not None)
        return _copy(self.torch, made, **arrays)

    def _residual(self, m: nn.Residual) -> Any:
        body = self.of(m.module)
        skip = self.torch.nn.Identity() if m.projection is None else self.of(m.projection)

        class Residual(self.torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.body, self.skip = body, skip

            def forward(self, x: Any) -> Any:
                return self.body(x) + self.skip(x)

        return Residual()

    def _unet(self, m: UNet) -> Any:
        torch = self.torch
        parts = [m.encoders, m.ups, m.decoders]
        modules = [torch.nn.ModuleList([self.of(c) for c in part.layers]) for part in parts]
        classifier = self.of(m.classifier)

        class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.encoders, self.ups, self.decoders = modules
                self.classifier = classifier

            def forward(self, x: Any) -> Any:
                skips = []
                for i, encoder in enumerate(self.encoders):
                    if i:
                        skips.append(x)
                        x = torch.nn.functional.max_pool2d(x, 2)
                    x = encoder(x)
                for up, decoder in zip(self.ups, self.decoders, strict=True):
                    x = decoder(torch.cat([skips.pop(), up(x)], 1))
                return self.classifier(x)

        return Twin()

    def _segnet(self, m: SegNet) -> Any:
        torch = self.torch
        parts = [torch.nn.ModuleList([self.of(c) for c in m.encoders.layers])]
        bottleneck = self.of(m.bottleneck)
        parts.append(torch.nn.ModuleList([self.of(c) for c in m.decoders.layers]))
        classifier = self.of(m.classifier)

        class Twin(torch.nn.Module):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.encoders, self.decoders = parts
                self.bottleneck, self.classifier = bottleneck, classifier

            def forward(self, x: Any) -> Any:
                remembered = []
                for encoder in self.encoders:
                    x = encoder(x)
                    size = x.shape[2:]
                    x, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
                    remembered.append((indices, size))
                x = self.bottleneck(x)
                for decoder in self.decoders:
                    indices, size = remembered.pop()
                    x = decoder(torch.nn.functional.max_unpool2d(x, indices, 2, output_size=size))
                return self.classifier(x)

        return Twin()
