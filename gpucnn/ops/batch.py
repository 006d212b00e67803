"""Training batches: gathered from the data set, augmented and normalised: ``kernels/batch.cu``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.bfloat16 import narrowed
from gpucnn.device import Array, empty
from gpucnn.kernel import KernelFile
from gpucnn.ops.augmentation import Augmentation, Draws, draw
from gpucnn.ops.loss import IGNORE_INDEX
from gpucnn.primitive import primitive
from gpucnn.threads import map_chunks

# geometry


@dataclass(frozen=True)
class BatchPlan:
    """What is the same for every batch of a run.

    N: images of a batch. classes: of the labels. seed: of the augmentation. options: what is
    changed; its crop must fit the images. stored: whether images come out in bfloat16.
    """

    N: int
    classes: int
    seed: int = 0
    options: Augmentation = field(default_factory=Augmentation)
    stored: bool = False


def _cut(n: int, start: NDArray[Any], size: int) -> NDArray[np.bool_]:
    """Which of the n cells along an axis lie in a stretch of each image: (N, n)."""
    at = np.arange(n) - start[:, None]
    return np.asarray((at >= 0) & (at < size))


# primitives

_CHUNK = 1 << 16  # elements: a few arrays of this many stay in a 2 MiB L2 cache


def _window(
    images: NDArray[Any], border: int, mode: Any, fill: int, place: tuple[Any, Any]
) -> NDArray[Any]:
    """Each image, padded by a border, cut to its size at its own place: (n,H,W,C)."""
    H, W = images.shape[1:3]
    pad = ((0, 0), (border, border), (border, border), (0, 0))
    options = {"constant_values": fill} if mode == "constant" else {}
    windows = sliding_window_view(np.pad(images, pad, mode, **options), (H, W), axis=(1, 2))
    at = (np.arange(len(images)), *place)
    return np.moveaxis(windows[at], 1, 3)


def _moved(images: NDArray[Any], drawn: Draws, o: Augmentation, fill: int) -> NDArray[Any]:
    """Images (n,H,W,C), which may change, with their pixels in other places."""
    if o.shift:
        images = _window(images, o.shift, "edge", 0, (drawn.down, drawn.across))
    if o.crop:
        mode = "constant" if o.padding == "zero" else "reflect"
        images = _window(images, o.crop, mode, fill, (drawn.crop_down, drawn.crop_across))
    if o.flip:
        images[drawn.flip] = images[drawn.flip, :, ::-1]
    if o.vertical_flip:
        images[drawn.vertical_flip] = images[drawn.vertical_flip, ::-1]
    return images


def _normalised(
    x: Array, levels: NDArray[np.uint8], drawn: Draws, scale: Array, offset: Array, o: Augmentation
) -> None:
    """x = (level·scale − offset)·factor + added·scale, each operation rounded, and the cutout."""
    n, H, W, C = x.shape
    x[...] = levels
    # Rows of W·C numbers: NumPy takes long loops over a few channels slowly.
    flat, scale, offset = x.reshape(n, H, W * C), np.tile(scale, W), np.tile(offset, W)
    flat *= scale
    flat -= offset
    if o.contrast or o.brightness:
        flat *= drawn.factor[:, None, None]
        flat += (drawn.added[:, None].astype(x.dtype) * scale)[:, None]
    if o.cutout:
        cut = _cut(H, drawn.top, o.cutout)[:, :, None] & _cut(W, drawn.left, o.cutout)[:, None]
        x[cut] = 0


def _part(drawn: Draws, start: int, stop: int) -> Draws:
    return Draws(*(array[start:stop] for array in vars(drawn).values()))


@primitive
def gather_batch(
    images: Array,
    labels: Array,
    order: Array,
    position: Array,
    scale: Array,
    offset: Array,
    blend: Array | None,
    plan: BatchPlan,
) -> tuple[Array, Array]:
    """x[n] = λ·a(i) + (1 − λ)·a(j), a(i) = the augmented image i·scale − offset, and its target

    images uint8 (M,H,W,C), labels int32 (M) or (M,H,W); order int32 (K,L): which images epoch e
    takes, one after the other, is row e mod K; position int32 (2): the epoch and the batch's number
    in it; scale, offset (C): 1/(255·std), mean/std; blend (4096): equally likely λ, for mixup, else
    None -> x (N,H,W,C), and labels int32 (N) or (N,H,W), or with mixup λ·[c = y_i] + (1 − λ)·[c =
    y_j] (N,classes). With plan.stored x is rounded to bfloat16.

    i = order[e mod K, (batch·N + n) mod L], j that of n + 1, of 0 for the last n. What is drawn for
    image i depends on the seed, the epoch and i alone. Label maps move with their images; what
    comes from padding of zeros has no label, −100. Without mixup λ = 1. Every operation is rounded
    to float32: kernels give the same bits.
    """
    o, N = plan.options, plan.N
    H, W, C = images.shape[1:]
    epoch, batch = (int(v) for v in position)
    rows = order[epoch % len(order), (batch * N + np.arange(N)) % order.shape[1]]
    drawn = draw(rows, epoch, plan.seed, o, H, W)
    x = buffers.empty((N, H, W, C), scale.dtype)

    def part(start: int, stop: int) -> None:
        here = _part(drawn, start, stop)
        levels = _moved(images[rows[start:stop]], here, o, 0)
        _normalised(x[start:stop], levels, here, scale, offset, o)

    chunk = max(1, _CHUNK // (H * W * C))
    map_chunks(part, N, chunk)
    target = labels[rows]
    if blend is not None:
        x, target = _mixed(x, target, blend[drawn.blend], plan.classes, chunk)
    elif target.ndim > 1:
        moved = _moved(target[..., None], drawn, o, IGNORE_INDEX)
        target = np.ascontiguousarray(moved[..., 0])
    return narrowed(x) if plan.stored else x, target


def _mixed(
    x: Array, labels: Array, share: Array, classes: int, chunk: int
) -> tuple[Array, NDArray[Any]]:
    """Each image and label blended with the next."""
    rest = 1 - share
    y = buffers.empty_like(x)
    other = np.roll(x, -1, axis=0)

    def part(start: int, stop: int) -> None:
        own, whole = slice(start, stop), (slice(start, stop), None, None, None)
        np.multiply(x[own], share[whole], out=y[own])
        other[own] *= rest[whole]
        y[own] += other[own]

    map_chunks(part, len(x), chunk)
    named = np.arange(classes)
    target = share[:, None] * (labels[:, None] == named)
    target += rest[:, None] * (np.roll(labels, -1)[:, None] == named)
    return y, target


_THREADS = 256
_EACH = 16  # elements of a thread, in groups of four

_kernels = KernelFile("batch", storage=True)


def _geometry(images: Array, plan: BatchPlan) -> tuple[tuple[int], tuple[int]]:
    """(grid, block): whole blocks for each image."""
    elements = images.size // images.shape[0]
    threads = min(_THREADS, -(-elements // 128) * 32)
    return (plan.N * -(-elements // (threads * _EACH)),), (threads,)


@gather_batch.kernel()
def _launch_gather(
    images: Array,
    labels: Array,
    order: Array,
    position: Array,
    scale: Array,
    offset: Array,
    blend: Array | None,
    plan: BatchPlan,
) -> tuple[Array, Array]:
    o, N = plan.options, plan.N
    H, W, C = images.shape[1:]
    x = empty(images, (N, H, W, C), np.uint16 if plan.stored else np.float32)
    y = target = None
    if blend is None:
        y = empty(images, (N, *labels.shape[1:]), np.int32)
    else:
        target = empty(images, (N, plan.classes))
    flips = int(o.flip) | int(o.vertical_flip) << 1
    changes = (flips, o.shift, o.crop, int(o.padding == "reflect"), o.cutout)
    levels = (255.0 * o.brightness, o.contrast, int(bool(o.brightness or o.contrast)))
    arrays = (images, labels, order, position, scale, offset, blend)
    sizes = (*order.shape, N, H, W, C, int(labels.ndim > 1), plan.classes, IGNORE_INDEX)
    launch = _kernels.storing(x, "gather_batch")
    launch(
        *_geometry(images, plan), x, y, target, *arrays, *sizes, *changes, *levels,
        plan.seed & (2**64 - 1),
    )  # fmt: skip
    return x, target if y is None else y
