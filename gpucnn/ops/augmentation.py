"""Random changes of training images: their options, and what is drawn for each image.

Everything drawn for image i of an epoch comes from two Philox streams that the epoch chooses: word
i of the first, and block i, four words, of the second. ``kernels/batch.cu`` draws the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gpucnn import random
from gpucnn.ops.geometry import choice, flag, integer

FIRST_STREAM: Final = 3 << 32  # plus the epoch
SECOND_STREAM: Final = 9 << 32
PADDINGS: Final = ("zero", "reflect")

_QUANTILES: Final = 1 << 12  # of the share in mixup: the word's upper 12 bits choose one
_MOST_SHIFT: Final = 2047  # 12 bits choose one of 2·shift + 1 places
_MOST_PIXELS: Final = 1 << 16  # along an axis: 16 bits choose one of them


def _number(name: str, value: Any, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= most:
        raise ValueError(f"{name} must lie between 0 and {most:g}, got {value}")
    return float(value)


@dataclass(frozen=True)
class Augmentation:
    """Random changes that keep what an image shows, in this order; 0 and False leave one out.

    Attributes:
        shift: moves the image by up to this many pixels up, down, left and right, every distance
            equally likely; the border is repeated. At most 2047.
        crop: cuts the image out of itself padded by this many pixels on each side, at a uniform
            place. Less than the height and the width.
        padding: of ``crop``: "zero", black, or "reflect", mirrored at the border pixels' centres.
        flip: mirrors every other image left to right, by chance.
        vertical_flip: mirrors every other image top to bottom, by chance.
        contrast: multiplies the distance of each level from the training set's mean by a number
            uniform in 1 ± contrast, 0 to 1; levels are not clipped.
        brightness: adds to all levels a number uniform in ± brightness of the full scale, 0 to 1.
        cutout: a square of this side, in pixels, around a uniform pixel becomes the training set's
            mean; part of it may lie outside.
        mixup: blends image n of a batch with image n + 1, the last with the first: λ of its own and
            1 − λ of the other's levels and label, λ the larger of λ' and 1 − λ', λ' drawn from
            Beta(mixup, mixup). At most 100.

    Raises ValueError or TypeError naming the attribute if one is out of range.

    Source: crops: He et al., arXiv:1512.03385, §4.2; cutout: DeVries and Taylor, arXiv:1708.04552;
    mixup: Zhang et al., arXiv:1710.09412.
    """

    flip: bool = False
    shift: int = 0
    vertical_flip: bool = False
    crop: int = 0
    padding: str = "zero"
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        flag("flip", self.flip)
        flag("vertical_flip", self.vertical_flip)
        integer("shift", self.shift, 0, _MOST_SHIFT)
        integer("crop", self.crop, 0, _MOST_PIXELS // 2 - 1)
        choice("padding", self.padding, PADDINGS)
        integer("cutout", self.cutout, 0, _MOST_PIXELS)
        for name, most in (("brightness", 1.0), ("contrast", 1.0), ("mixup", 100.0)):
            _number(name, getattr(self, name), most)

    def __bool__(self) -> bool:
        """Whether anything is changed."""
        return self != Augmentation(padding=self.padding)

    def __str__(self) -> str:
        """What :meth:`parse` reads: "flip,crop=4", or "none"."""
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                name = field.name.replace("_", "-")
                parts.append(name if value is True else f"{name}={value}")
        return ",".join(parts) or "none"

    @classmethod
    def parse(cls, text: str) -> Augmentation:
        """From words like ``flip,crop=4,padding=reflect,brightness=0.2``, or "none".

        Raises ValueError naming the word that is unknown, given twice or out of range.
        """
        defaults = {field.name: field.default for field in fields(cls)}
        options: dict[str, Any] = {}
        for word in text.split(",") if text.strip() != "none" else ():
            written, equals, value = (part.strip() for part in word.partition("="))
            name = written.replace("-", "_")
            if name not in defaults:
                known = ", ".join(key.replace("_", "-") for key in defaults)
                raise ValueError(f"augmentation must be made of {known}, got {word.strip()!r}")
            if name in options:
                raise ValueError(f"{written} must be given once, got it twice in {text!r}")
            options[name] = _value(written, defaults[name], value if equals else None)
        return cls(**options)

    def check_images(self, height: int, width: int) -> None:
        """Raise ValueError if images of this size cannot be changed like that."""
        if self.crop >= min(height, width):
            raise ValueError(
                f"crop must be less than the height and the width of the images, {height} x "
                f"{width}, got {self.crop}"
            )
        if self.cutout and max(height, width) > _MOST_PIXELS:
            raise ValueError(
                f"cutout needs images of at most {_MOST_PIXELS} pixels along an axis, got "
                f"{height} x {width}"
            )


def _value(name: str, default: Any, text: str | None) -> Any:
    """An option's value as its default's type."""
    kind = type(default)
    if kind is bool:
        if text is not None:
            raise ValueError(f"{name} takes no value, got {name}={text}")
        return True
    if text is None:
        raise ValueError(f"{name} needs a value, {name}=…")
    try:
        return kind(text)
    except ValueError:
        wanted = "an integer" if kind is int else "a number"
        raise ValueError(f"{name} must be {wanted}, got {text!r}") from None


@dataclass(frozen=True)
class Draws:
    """What was drawn for some images, one entry each.

    Attributes:
        down, across: where the image lies in itself padded by ``shift``, int64.
        crop_down, crop_across: likewise by ``crop``.
        flip, vertical_flip: bool.
        factor: of the contrast, float32; added: gray levels of the brightness, float32.
        top, left: of the square that is cut out, int64.
        blend: index into the quantiles of mixup's shares, int64.
    """

    down: NDArray[np.int64]
    across: NDArray[np.int64]
    crop_down: NDArray[np.int64]
    crop_across: NDArray[np.int64]
    flip: NDArray[np.bool_]
    vertical_flip: NDArray[np.bool_]
    factor: NDArray[np.float32]
    added: NDArray[np.float32]
    top: NDArray[np.int64]
    left: NDArray[np.int64]
    blend: NDArray[np.int64]


def _one_of(word: NDArray[np.uint32], low: int, bits: int, n: int) -> NDArray[np.int64]:
    """0 … n − 1 by ``bits`` bits of each word from bit ``low`` on: ⌊bits · n / 2^bits⌋."""
    part = (word >> np.uint32(low)) & np.uint32((1 << bits) - 1)
    return np.asarray((part.astype(np.int64) * n) >> bits)


def _centred(word: NDArray[np.uint32], low: int) -> NDArray[np.float32]:
    """Uniform in (−1, 1) by 16 bits of each word, exact in float32."""
    part = (word >> np.uint32(low)) & np.uint32(0xFFFF)
    return np.asarray((2 * part.astype(np.int64) - 65535).astype(np.float32) * np.float32(2**-16))


def draw(
    images: NDArray[Any], epoch: int, seed: int, options: Augmentation, height: int, width: int
) -> Draws:
    """What is drawn for images, numbers of the data set (n,), in an epoch.

    What the options do not ask for may be anything.
    """
    index = images.astype(np.uint64)
    place = (index % np.uint64(4)).astype(np.intp)
    words = second = np.zeros((len(place), 4), np.uint32)
    if options.flip or options.vertical_flip or options.shift:
        words = random.blocks(seed, FIRST_STREAM + epoch, index // np.uint64(4))
    if options.crop or options.contrast or options.brightness or options.cutout or options.mixup:
        second = random.blocks(seed, SECOND_STREAM + epoch, index)
    first, second = words[np.arange(len(place)), place], second.T
    shifts, crops = 2 * options.shift + 1, 2 * options.crop + 1
    full = np.float32(255.0 * options.brightness)
    return Draws(
        down=_one_of(first, 20, 12, shifts),
        across=_one_of(first, 8, 12, shifts),
        crop_down=_one_of(second[0], 16, 16, crops),
        crop_across=_one_of(second[0], 0, 16, crops),
        flip=(first & np.uint32(1)).astype(bool) & options.flip,
        vertical_flip=(first & np.uint32(2)).astype(bool) & options.vertical_flip,
        factor=np.float32(1.0) + np.float32(options.contrast) * _centred(second[1], 16),
        added=full * _centred(second[1], 0),
        top=_one_of(second[2], 16, 16, height) - options.cutout // 2,
        left=_one_of(second[2], 0, 16, width) - options.cutout // 2,
        blend=(second[3] >> np.uint32(20)).astype(np.int64),
    )


def _symmetric_beta(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """The distribution function I_x(a, a) for x <= 1/2, by its continued fraction.

    Source: NIST Digital Library of Mathematical Functions, 8.17.22; evaluated by Lentz's method.
    """
    front = np.exp(
        a * (np.log(x) + np.log1p(-x)) + math.lgamma(2 * a) - 2 * math.lgamma(a) - math.log(a)
    )
    c, d = np.ones_like(x), 1.0 / (1.0 - 2 * a * x / (a + 1))
    fraction = d.copy()
    for m in range(1, 40):
        even = m * (a - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (2 * a + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1.0 / (1.0 + step * d)
            c = 1.0 + step / c
            fraction *= c * d
    return np.asarray(front * fraction)


@lru_cache(maxsize=4)
def shares(mixup: float) -> NDArray[np.float32]:
    """4096 equally likely quantiles of max(λ, 1 − λ), λ from Beta(mixup, mixup): float32, rising.

    The decimals that could differ between machines are rounded away. Read-only.
    """
    # max(λ, 1 − λ) lies above its quantile where min(λ, 1 − λ) lies below the mirrored one.
    wanted = (np.arange(_QUANTILES) + 0.5) / (2 * _QUANTILES)
    # The smaller part is searched by its logarithm: for a small mixup it is next to nothing.
    low, high = np.full(_QUANTILES, -700.0), np.full(_QUANTILES, math.log(0.5))
    for _ in range(48):
        middle = (low + high) / 2
        below = _symmetric_beta(np.exp(middle), mixup) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    table: NDArray[np.float32] = np.round(1.0 - np.exp(high), 7)[::-1].astype(np.float32)
    table.flags.writeable = False
    return table
