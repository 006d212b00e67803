"""Networks that give an image for an image: scores per pixel, or the image itself again."""

from __future__ import annotations

from typing import cast

from gpucnn import functional as F
from gpucnn import nn
from gpucnn.models.classification import Shape
from gpucnn.tensor import Tensor


def _conv(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def _conv_transpose(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.ConvTranspose2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


class SegNet(nn.Module):
    """Encoder of convolutions and max pools; decoder that unpools by their indices.

    Source: after Badrinarayanan, Kendall and Cipolla, arXiv:1511.00561, whose decoder convolves
    where this one uses transposed convolutions.
    """

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, ...]) -> None:
        pairs = list(zip((in_channels, *widths[:-1]), widths, strict=True))
        self.encoders = nn.Sequential(*(nn.Sequential(*_conv(a, b)) for a, b in pairs))
        self.decoders = nn.Sequential(
            *(
                nn.Sequential(*_conv_transpose(b, a if i else widths[0]))
                for i, (a, b) in reversed(list(enumerate(pairs)))
            )
        )
        # The smallest maps are the cheapest place to see far.
        self.bottleneck = nn.Sequential(
            *_conv(widths[-1], widths[-1]), *_conv(widths[-1], widths[-1])
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        remembered = []
        for encoder in self.encoders:
            x = encoder(x)
            high, wide = x.shape[1:3]
            pooled = F.max_pool2d(x, 2, return_indices=True)
            x, indices = cast("tuple[Tensor, Tensor]", pooled)
            remembered.append((indices, (high, wide)))
        x = self.bottleneck(x)
        for decoder, (indices, size) in zip(self.decoders, reversed(remembered), strict=True):
            x = decoder(F.max_unpool2d(x, indices, 2, output_size=size))
        return cast("Tensor", self.classifier(x))


class UNet(nn.Module):
    """Encoder and decoder with a skip connection at every resolution.

    Source: after Ronneberger, Fischer and Brox, arXiv:1505.04597, with padding and batch norm.
    """

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, ...]) -> None:
        pairs = list(zip((in_channels, *widths[:-1]), widths, strict=True))
        self.encoders = nn.Sequential(
            *(nn.Sequential(*_conv(a, b), *_conv(b, b)) for a, b in pairs)
        )
        below = list(reversed(pairs[1:]))
        self.ups = nn.Sequential(*(nn.ConvTranspose2d(b, a, 2, stride=2) for a, b in below))
        self.decoders = nn.Sequential(
            *(nn.Sequential(*_conv(2 * a, a), *_conv(a, a)) for a, _ in below)
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, encoder in enumerate(self.encoders):
            if i:
                skips.append(x)
                x = F.max_pool2d(x, 2)
            x = encoder(x)
        for up, decoder, skip in zip(self.ups, self.decoders, reversed(skips), strict=True):
            x = decoder(F.concatenate([skip, up(x)]))
        return cast("Tensor", self.classifier(x))


def segnet_small(num_classes: int = 4, image_shape: Shape = (72, 72, 1)) -> SegNet:
    """For 72×72×1: three pools of 12, 24 and 48 channels, undone by their indices."""
    return SegNet(num_classes, image_shape[2], (12, 24, 48))


def unet_small(num_classes: int = 4, image_shape: Shape = (72, 72, 1)) -> UNet:
    """For 72×72×1: four resolutions of 8, 16, 32 and 64 channels; sides are multiples of eight."""
    if image_shape[0] % 8 or image_shape[1] % 8:
        raise ValueError(
            f"unet_small halves images three times: their sides must be multiples of 8, got "
            f"{image_shape[0]} x {image_shape[1]}"
        )
    return UNet(num_classes, image_shape[2], (8, 16, 32, 64))


def autoencoder(channels: int = 1) -> nn.Sequential:
    """For 28×28×channels: two strided convolutions to 7×7×8 and two transposed ones back."""
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 16, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, channels, 3, stride=2, padding=1, output_padding=1),
        nn.Sigmoid(),
    )
