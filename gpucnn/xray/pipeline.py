"""The kernels of the pipelined convolutions one by one: what the main loop of each must hold by its
tile, and a problem that shows it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gpucnn.kernel import Specialisation
from gpucnn.ops.conv2d_pipeline import IMPLICIT_GEMM, Rung, use_tile
from gpucnn.ops.conv2d_tiles import Tile
from gpucnn.ops.conv_geometry import ConvGeometry, conv_geometry
from gpucnn.precision import precision
from gpucnn.primitive import PRIMITIVES
from gpucnn.storage import handed_over
from gpucnn.xray.counters import LaunchCounters, count

PASSES = ("forward", "data_gradient", "weight_gradient")


@dataclass(frozen=True)
class Loop:
    """Instructions of one thread in the main loop, counted from the tile: those of one slab of 32
    k, in bfloat16 of 64, or, where products are made of three, of 8 of them, in a loop of their own
    without copies.

    math: matrix instructions of its warp. operands: reads of shared memory that bring their
    operands, LDSM of four pieces of 16 bytes, or LDS of a float where k is not the fast direction.
    copies: of 16 bytes, or of 4, from global into shared memory. places: reads that say where the
    windows of the copies lie.
    """

    math: int
    operands: int
    copies: int
    places: int

    @property
    def math_per_load(self) -> float:
        return self.math / (self.operands + self.copies + self.places)


@dataclass(frozen=True)
class Pipeline:
    """One kernel of ``conv2d_implicit_gemm.cu`` in one specialisation."""

    rung: Rung
    direction: str  # of PASSES
    index: int  # of rung.tiles
    precision: str
    vector: int
    dims: int

    def __str__(self) -> str:
        kind = "volumes" if self.dims == 3 else "images"
        return f"{self.direction} {self.tile} {self.precision} by {self.copied} bytes, {kind}"

    @property
    def kernel(self) -> str:
        return f"conv2d_{self.rung.name}_{self.direction}"

    @property
    def tile(self) -> Tile:
        return self.rung.tiles[self.index]

    @property
    def spec(self) -> Specialisation:
        key = (self.index, self.precision, self.vector, self.dims)
        return self.rung.kernels.specialisations[self.rung.index[key]]

    @property
    def by_rows(self) -> bool:
        """Whether k is the fast direction of the operands in memory."""
        return self.direction != "weight_gradient"

    @property
    def slab(self) -> int:
        """Terms of the sums that come at once."""
        return 128 // self._itemsize

    @property
    def copied(self) -> int:
        """Bytes of one copy."""
        return self._itemsize * self.vector

    @property
    def _itemsize(self) -> int:
        return 2 if self.precision == "bf16" else 4

    @property
    def transposes(self) -> bool:
        """Whether LDSM brings operands also where k is not their fast direction."""
        return self.precision == "bf16"

    @property
    def dynamic_shared(self) -> int:
        """Bytes of a block."""
        return self.tile.ring(self.by_rows)

    @property
    def loop(self) -> Loop:
        """What the main loop must hold."""
        tile, macros = self.tile, dict(self.spec.macros)
        rows, columns = tile.rows // tile.warps_m // 16, tile.columns // tile.warps_n // 8
        pieces = self.by_rows or self.transposes
        per_step = rows + columns // 2 if pieces else 4 * rows + 2 * columns
        copies = [n * self.slab // self.vector // tile.threads for n in (tile.rows, tile.columns)]
        if macros["TERMS"] == 3:
            return Loop(3 * rows * columns, per_step, 0, 0)
        math = rows * columns * self.slab // (16 if macros["HALF"] else 8)
        return Loop(math, per_step * 4, sum(copies), copies[0])  # in a slab four times two pieces

    def geometry(self) -> ConvGeometry:
        """A convolution whose channels fill the tile's columns, and more than one tile's rows."""
        size, window = ((1, 4, 8, 9), (1, 1, 3)) if self.dims == 3 else ((1, 16, 18), (1, 3))
        other = (self.slab,) if self.by_rows else (96,)
        x, w = (*size, *other), (self.tile.columns, *window, *other)
        if self.direction == "data_gradient":
            x, w = (*size, w[0]), (*other, *window, w[0])
        image, weight = (np.broadcast_to(np.float32(0), shape) for shape in (x, w))
        padding = (*(0,) * (self.dims - 1), 1)
        return conv_geometry(self.dims, image, weight, None, 1, padding, 1, 1)

    def counted(self) -> LaunchCounters:
        """The counters of this kernel on :meth:`geometry`, emulated.

        Raises RuntimeError if the emulator cannot run here, KernelFault if the kernel is faulty.
        """
        s = self.geometry()
        draw = np.random.default_rng(0).standard_normal
        x, w, y = (draw(shape, np.float32) for shape in (s.x_shape, s.w_shape, s.y_shape))
        inputs = {"forward": (x, w, None), "data_gradient": (y, w), "weight_gradient": (y, x)}
        launcher = PRIMITIVES[f"conv2d_{self.direction}"].launchers[self.rung.name]
        with (
            use_tile(self.rung, self.index, by_words=self.copied == 4),
            precision(self.precision),
            count() as found,
        ):
            launcher(*handed_over("conv2d", inputs[self.direction]), s)
        launches = [launch for launch in found.launches if launch.spec == self.spec]
        assert len(launches) == 1, f"{self}: {[launch.kernel for launch in found.launches]}"
        return launches[0]


@functools.cache
def tensor_core_kernels() -> tuple[Pipeline, ...]:
    """Every kernel on tensor cores."""

    def each() -> Iterator[Pipeline]:
        for direction in PASSES:
            for key in IMPLICIT_GEMM.index:
                yield Pipeline(IMPLICIT_GEMM, direction, *key)

    return tuple(each())
