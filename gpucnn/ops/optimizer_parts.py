"""What one step of an optimizer goes through: stretches of its flat buffers, in one launch.

``kernels/update.cuh`` works on a table of parts, which :class:`Parts` makes.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpucnn.bfloat16 import narrowed
from gpucnn.device import Array, move_to_device
from gpucnn.kernel import Kernel
from gpucnn.ops.elementwise import four_each
from gpucnn.recording import lasting
from gpucnn.threads import map_chunks, scratch

# geometry

THREADS = 256
_ELEMENTS = 4 * THREADS  # of the largest part
_SLICES_PER_LANE = 8
_MOST_LANE_BITS = 4
_FEWEST_COLUMN_BITS = 2  # a thread's four elements
_NO_COPY = -(2**31)


def slice_lane_bits(count: int) -> int:
    """The logarithm of the lanes that share ``count`` slices: ``kernels/slices.cuh``."""
    return min(_MOST_LANE_BITS, (-(-count // _SLICES_PER_LANE) - 1).bit_length())


def slice_elements(count: int) -> int:
    """Elements that a block adds ``count`` slices of."""
    return _ELEMENTS >> slice_lane_bits(count)


@dataclass(frozen=True)
class Copies:
    """The copies of a filter (G, OCG, taps, CG), by their first elements; -1 for one not kept.

    exchanged: (G, CG, taps, OCG) in float32. narrowed: as it lies, in bfloat16; narrowed_exchanged:
    both.
    """

    G: int
    OCG: int
    taps: int
    CG: int
    exchanged: int = -1
    narrowed: int = -1
    narrowed_exchanged: int = -1

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Of the filter."""
        return self.G, self.OCG, self.taps, self.CG


@dataclass(frozen=True)
class Stretch:
    """Elements ``start`` to ``stop`` of the flat buffers, with the numbers of one group.

    slices: (first element, count) of the slices that hold the gradient, None where the gradient
    buffer does. scaled: whether a coefficient multiplies it. copy: those of a filter, which the
    stretch then is.
    """

    start: int
    stop: int
    group: int
    slices: tuple[int, int] | None = None
    scaled: bool = False
    copy: Copies | None = None

    def parts(self) -> NDArray[np.int32]:
        """The rows of the table: the words of Part in ``kernels/update.cuh``."""
        first, count = self.slices or (0, 0)
        lane_bits = slice_lane_bits(count) if count else 0
        corners = _flat(self, lane_bits) if self.copy is None else _tiles(self, lane_bits)
        start, rows, columns, pitch, column_bits, copy_at, copy_pitch, *narrowed = corners
        slices_at, stride = first - self.start, self.stop - self.start
        words = (
            start, rows, columns, pitch, column_bits, self.group, slices_at if count else 0, count,
            stride if count else 0, lane_bits, copy_at, copy_pitch, self.scaled, *narrowed,
        )  # fmt: skip
        return np.stack(np.broadcast_arrays(*words), axis=-1).astype(np.int32)


def _flat(s: Stretch, lane_bits: int) -> tuple[Any, ...]:
    """(start, rows, columns, pitch, column bits, copy, its pitch, narrowed, its copy) of runs of
    neighbours.
    """
    each = _ELEMENTS >> lane_bits
    start = np.arange(s.start, s.stop, each)
    return start, 1, np.minimum(s.stop - start, each), 0, each.bit_length() - 1, -1, 0, _NO_COPY, -1


def _tiles(s: Stretch, lane_bits: int) -> tuple[Any, ...]:
    """The same of tiles of output channels × input channels of one tap."""
    copy = s.copy
    assert copy is not None
    bits = 10 - lane_bits
    # As square as can be, narrower or wider where there are few channels on a side.
    column_bits = min(-(-bits // 2), (copy.CG - 1).bit_length())
    column_bits = max(column_bits, _FEWEST_COLUMN_BITS, bits - (copy.OCG - 1).bit_length())
    columns, rows = 1 << column_bits, 1 << (bits - column_bits)
    corner = itertools.product(
        range(copy.G), range(0, copy.OCG, rows), range(copy.taps), range(0, copy.CG, columns)
    )
    g, oc, tap, c = np.array(list(corner)).T
    start = s.start + ((g * copy.OCG + oc) * copy.taps + tap) * copy.CG + c
    at = ((g * copy.CG + c) * copy.taps + tap) * copy.OCG + oc
    limits = np.minimum(copy.OCG - oc, rows), np.minimum(copy.CG - c, columns)
    return (
        start, *limits, copy.taps * copy.CG, column_bits,
        copy.exchanged + at if copy.exchanged >= 0 else -1, copy.taps * copy.OCG,
        copy.narrowed - s.start if copy.narrowed >= 0 else _NO_COPY,
        copy.narrowed_exchanged + at if copy.narrowed_exchanged >= 0 else -1,
    )  # fmt: skip


class Parts:
    """The stretches of a step, with the buffers where their slices and copies lie."""

    def __init__(
        self,
        stretches: Sequence[Stretch],
        device: str,
        slices: Array | None = None,
        copies: Array | None = None,
        narrow: Array | None = None,
    ) -> None:
        self.stretches, self.device = tuple(stretches), device
        self.slices, self.copies, self.narrow = slices, copies, narrow

    @functools.cached_property
    def table(self) -> Array:
        """(parts, 15) int32 on the device."""
        table = np.concatenate([s.parts() for s in self.stretches])
        return lasting(lambda: move_to_device(table, self.device))


# on the host

Update = Callable[..., None]  # (slice of the flat buffers, *numbers of the group)
_CHUNK = 1 << 15  # elements: six float32 buffers of it fit a core's cache


def update_parts(
    update: Update, p: Array, g: Array, numbers: Array, parts: Parts | None, scale: Array | None
) -> None:
    """Call ``update`` for every chunk: what the kernels do, in NumPy.

    First the slices of a stretch are added and its gradient is scaled, in place; afterwards its
    copy is written.
    """
    for s in (Stretch(0, p.size, 0),) if parts is None else parts.stretches:
        gradient = g[s.start : s.stop]
        gather_gradient(s, gradient, parts)
        if s.scaled and scale is not None:
            gradient *= scale.reshape(())
        own = (numbers if parts is None else numbers[s.group]).tolist()

        def part(start: int, stop: int, first: int = s.start, own: Any = own) -> None:
            update(slice(first + start, first + stop), *own)

        map_chunks(part, s.stop - s.start, _CHUNK)
        if s.copy is not None and parts is not None:
            _write_copies(p[s.start : s.stop], s.copy, parts)


def _write_copies(values: Array, copy: Copies, parts: Parts) -> None:
    exchanged = values.reshape(copy.sizes).transpose(0, 3, 2, 1).reshape(-1)
    n = values.size
    if parts.copies is not None and copy.exchanged >= 0:
        parts.copies[copy.exchanged : copy.exchanged + n] = exchanged
    for first, given in ((copy.narrowed, values), (copy.narrowed_exchanged, exchanged)):
        if parts.narrow is not None and first >= 0:
            parts.narrow[first : first + n] = narrowed(given.astype(np.float32))


def gather_gradient(s: Stretch, gradient: Array, parts: Parts | None) -> None:
    """Add the slices of a stretch, if its gradient lies there."""
    if s.slices is None or parts is None or parts.slices is None:
        return
    first, count = s.slices
    slices = parts.slices[first : first + count * gradient.size]
    np.sum(slices.reshape(count, -1), axis=0, out=gradient)


def temporary(name: str, like: Array) -> NDArray[Any]:
    """A scratch buffer of the shape and dtype of a chunk."""
    return scratch(f"optimizer {name}", like.shape, like.dtype)


# on a device


def launch_update(
    kernel: Kernel,
    buffers: Sequence[Array | None],
    g: Array,
    numbers: Array,
    parts: Parts | None,
    scale: Array | None,
) -> None:
    """One launch over all parts. buffers: p and the states, as the kernel takes them."""
    width = numbers.shape[-1]
    if parts is None:
        grid, given = four_each(g.size), (None, None, numbers, None, None, None)
    else:
        grid = (parts.table.shape[0],)
        given = (parts.copies, parts.narrow, numbers, parts.table, parts.slices, scale)
    kernel(grid, (THREADS,), *buffers, g, *given, g.size, width)
