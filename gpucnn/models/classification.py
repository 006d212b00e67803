"""Networks that give one vector of scores per image.

The sizes that their docstrings name are those of the images they were made for; others fit as long
as the pools leave something of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpucnn import nn

Shape = tuple[int, int, int]  # (H, W, C) of an image
_HALF = (2, 2, 0)  # (kernel size, stride, padding) of a pool that halves


def _flat(image_shape: Shape, channels: int, steps: Sequence[tuple[int, int, int]]) -> int:
    """Numbers per image behind convolutions and pools of (kernel size, stride, padding)."""
    sides = list(image_shape[:2])
    for kernel_size, stride, padding in steps:
        sides = [(side + 2 * padding - kernel_size) // stride + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"images of {image_shape[0]} x {image_shape[1]} are too small")
    return sides[0] * sides[1] * channels


def _block(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1
) -> list[nn.Module]:
    """Convolution that keeps the size (at stride 1), batch norm, ReLU."""
    return [
        nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    ]


def lenet5(num_classes: int = 10, image_shape: Shape = (28, 28, 1)) -> nn.Sequential:
    """For 28×28×1: two convolutions with tanh and average pooling, three linear layers.

    Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; with a
    padding of 2 instead of 32×32 images, and full connections between the feature maps.
    """
    return nn.Sequential(
        nn.Conv2d(image_shape[2], 6, 5, padding=2),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(_flat(image_shape, 16, [(5, 1, 2), _HALF, (5, 1, 0), _HALF]), 120),
        nn.Tanh(),
        nn.Linear(120, 84),
        nn.Tanh(),
        nn.Linear(84, num_classes),
    )


def shapenet(num_classes: int = 3, image_shape: Shape = (72, 72, 1)) -> nn.Sequential:
    """For 72×72×1: three blocks of convolution, batch norm, ReLU and pooling, two linear layers."""
    return nn.Sequential(
        *_block(image_shape[2], 16, 5, stride=2),
        nn.MaxPool2d(2),
        *_block(16, 32),
        nn.MaxPool2d(2),
        *_block(32, 32),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(_flat(image_shape, 32, [(5, 2, 2), _HALF, _HALF, _HALF]), 64),
        nn.ReLU(),
        nn.Linear(64, num_classes),
    )


def fashionnet(num_classes: int = 10, image_shape: Shape = (28, 28, 1)) -> nn.Sequential:
    """For 28×28×1: three blocks of convolution, batch norm, ReLU and pooling, two linear layers."""
    return nn.Sequential(
        *_block(image_shape[2], 16),
        nn.MaxPool2d(2),
        *_block(16, 32),
        nn.MaxPool2d(2),
        *_block(32, 64),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(_flat(image_shape, 64, [_HALF] * 3), 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def vgg_small(num_classes: int = 10, image_shape: Shape = (32, 32, 3)) -> nn.Sequential:
    """For 32×32×3: three pairs of 3×3 convolutions, each pair pooled, two linear layers.

    Source: after Simonyan and Zisserman, arXiv:1409.1556, with batch norm.
    """
    return nn.Sequential(
        *_block(image_shape[2], 32),
        *_block(32, 32),
        nn.MaxPool2d(2),
        *_block(32, 64),
        *_block(64, 64),
        nn.MaxPool2d(2),
        *_block(64, 128),
        *_block(128, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(_flat(image_shape, 128, [_HALF] * 3), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )


def _basic_block(in_channels: int, out_channels: int, stride: int = 1) -> list[nn.Module]:
    """ReLU(x + BN(conv(ReLU(BN(conv(x)))))); a 1×1 convolution fits x where sizes differ."""
    body = nn.Sequential(
        *_block(in_channels, out_channels, 3, stride),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
    )
    projection = None
    if stride != 1 or in_channels != out_channels:
        projection = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    return [nn.Residual(body, projection), nn.ReLU()]


def resnet20(num_classes: int = 10, image_shape: Shape = (32, 32, 3)) -> nn.Sequential:
    """For 32×32×3: a convolution, three stages of three residual blocks, global average pooling.

    Source: He et al., arXiv:1512.03385, section 4.2, n = 3, with projections where sizes change.
    """
    stages = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
    blocks: list[nn.Module] = []
    for in_channels, out_channels, stride in stages:
        blocks += _basic_block(in_channels, out_channels, stride)
        blocks += _basic_block(out_channels, out_channels) + _basic_block(
            out_channels, out_channels
        )
    return nn.Sequential(
        *_block(image_shape[2], 16), *blocks, nn.GlobalAvgPool2d(), nn.Linear(64, num_classes)
    )


def resnet9(num_classes: int = 10, image_shape: Shape = (32, 32, 3)) -> nn.Sequential:
    """For 32×32×3: four widening convolutions with pooling, two residual blocks, a linear layer.

    Source: the residual network of Page, "How to train your ResNet", 2018.
    """

    def residual(channels: int) -> nn.Module:
        return nn.Residual(nn.Sequential(*_block(channels, channels), *_block(channels, channels)))

    return nn.Sequential(
        *_block(image_shape[2], 64),
        *_block(64, 128),
        nn.MaxPool2d(2),
        residual(128),
        *_block(128, 256),
        nn.MaxPool2d(2),
        *_block(256, 512),
        nn.MaxPool2d(2),
        residual(512),
        nn.GlobalMaxPool2d(),
        nn.Linear(512, num_classes),
    )


def alexnet_mini(num_classes: int = 10, image_shape: Shape = (32, 32, 3)) -> nn.Sequential:
    """For 32×32×3: local response normalisation, overlapping pooling and dropout, in small.

    Source: after Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional
    neural networks", 2012.
    """
    return nn.Sequential(
        nn.Conv2d(image_shape[2], 32, 5, padding=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, convention="alexnet"),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(32, 64, 5, padding=2, groups=2),
        nn.ReLU(),
        nn.LocalResponseNorm(5, convention="alexnet"),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(_flat(image_shape, 64, [(3, 2, 0)] * 3), 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, num_classes),
    )
