"""Training batches that are gathered from a data set and augmented."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchCase:
    """The data set (M, H, W, C), images of a batch, what is changed, and labels of each pixel."""

    images: tuple[int, int, int, int]
    N: int
    augmentation: str = "none"
    per_pixel: bool = False

    def __str__(self) -> str:
        shape, labels = "x".join(map(str, self.images)), ",per_pixel" if self.per_pixel else ""
        return f"{shape},N={self.N},{self.augmentation}{labels}"


EVERYTHING = "flip,vertical-flip,shift=2,crop=3,brightness=0.2,contrast=0.4,cutout=3"

BATCH = [
    BatchCase((1, 1, 1, 1), 1),
    BatchCase((7, 3, 5, 1), 3),
    BatchCase((5, 6, 7, 3), 2, "flip,vertical-flip"),
    BatchCase((9, 4, 4, 4), 5, "shift=1"),
    BatchCase((6, 5, 9, 1), 4, "shift=20"),
    BatchCase((8, 7, 5, 2), 3, "crop=4"),
    BatchCase((8, 7, 5, 3), 3, "crop=4,padding=reflect,shift=2"),
    BatchCase((4, 5, 6, 3), 3, "cutout=4"),
    BatchCase((4, 6, 5, 1), 3, "brightness=1.0"),
    BatchCase((4, 6, 5, 5), 3, "contrast=1.0"),
    BatchCase((5, 6, 8, 1), 4, f"{EVERYTHING},mixup=0.2"),
    BatchCase((5, 7, 6, 3), 5, f"{EVERYTHING},padding=reflect,mixup=1.0"),
    BatchCase((3, 5, 4, 1), 1, "mixup=0.5"),
    BatchCase((6, 7, 5, 3), 4, EVERYTHING, True),
    BatchCase((6, 7, 5, 1), 4, f"{EVERYTHING},padding=reflect", True),
    BatchCase((3, 70, 67, 1), 2, EVERYTHING, True),
    BatchCase((3, 41, 37, 3), 2, "flip,crop=4,mixup=0.2"),
]
