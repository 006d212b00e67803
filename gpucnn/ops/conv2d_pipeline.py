"""Launchers of the pipelined convolutions: ``kernels/conv2d_register_tiled.cu`` and
``kernels/conv2d_implicit_gemm.cu``, which differ in how a block multiplies a slab.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from gpucnn.arrivals import chunk_arrivals
from gpucnn.device import Array, DeviceError, address, empty, result
from gpucnn.kernel import Kernel, KernelFile, Macros
from gpucnn.launch_plan import without_plans
from gpucnn.ops.conv2d_tiles import (
    BUSY_BLOCKS,
    TILES,
    Tile,
    forward_slices,
    gather_slices,
    gathered_terms,
    phases_of,
    whole,
)
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.reduce import empty_slices, launch_stored_slices, launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, slices
from gpucnn.precision import has_tf32, precision, precision_of
from gpucnn.weight_copies import exchanged


def _splits(arithmetic: Macros) -> bool:
    """Whether each operand takes two registers."""
    return arithmetic.get("TERMS") == 3


# The activations of kernels/activation.cuh, in the order of its enumeration.
ACTIVATIONS = ("identity", "relu", "leaky_relu", "sigmoid", "tanh")


@dataclass(frozen=True)
class Epilogue:
    """What a tile goes through before it is stored: ``kernels/epilogue.cuh``.

    residual, activated, normalised: shaped like the output; delta, invstd: (channels). partials:
    "moments" or "sums" where the pass makes them; join: momentum and eps where its last blocks join
    them. running_mean, running_var (channels): what joined moments go into.
    """

    residual: Array | None = None
    activated: Array | None = None
    normalised: Array | None = None
    delta: Array | None = None
    invstd: Array | None = None
    partials: str | None = None
    join: tuple[float, float] | None = None
    running_mean: Array | None = None
    running_var: Array | None = None
    activation: str = "identity"
    negative_slope: float = 0.0

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        tile: Tile,
        arrays: tuple[Array | None, ...],
        numbers: tuple[int, ...],
        chunks: int,
    ) -> Any:
        """Launch a forward pass or data gradient -> the partials (planes, channels, chunks), or
        what they are joined to: mean and 1 / deviation, or dgamma and dbeta, (channels) each.

        arrays: the output and its slices, one of which is None, then the inputs.
        """
        out, partials, arrived, joined = arrays[0], None, None, (None, None)
        if self.partials is not None:
            planes = 4 if self.partials == "moments" else 2
            partials = empty(out, (planes, cast("Array", out).shape[-1], chunks))
        if self.join is not None:
            C = cast("Array", out).shape[-1]
            make = empty if self.partials == "moments" else result
            joined = make(out, (C,)), make(out, (C,))
            arrived = chunk_arrivals(out, C, chunks)
        kernel(
            grid, (tile.threads,), *arrays, self.residual, self.activated, self.normalised,
            self.delta, self.invstd, partials, arrived, *joined, self.running_mean,
            self.running_var, *numbers,
            ACTIVATIONS.index(self.activation), self.negative_slope, *(self.join or (0.0, 0.0)),
            shared_mem=tile.ring(True),
        )  # fmt: skip
        return partials if self.join is None else joined


PLAIN = Epilogue()

# Blocks that a large GPU runs at once, two on each multiprocessor: the slices of a weight gradient
# are written, kept and read, so that more of them cost memory and time.
_AT_ONCE = 264
_MOST_ROWS = 2**31 - 1 - 256  # pixels: int32 numbers those of the last tile, too
_CAPABILITY = {"fp32": 80, "tf32": 80, "bf16": 80, "fp16": 75}  # of the GPU, × 10


def vectors(mode: str) -> tuple[int, int]:
    """The numbers of a precision's operands in memory that come in a copy of 16 bytes, or of 4."""
    return (8, 2) if mode == "bf16" else (4, 1)


class Rung:
    """One file of pipelined kernels: its tiles, the widest first, and their specialisations.

    The last two tiles are for up to 32 and 16 columns; the one before them, the smallest of the
    others, is also that of volumes and of channels that do not come in copies of 16 bytes.
    arithmetic: how products are made, by precision: the macros of its Multiplier. In "bf16" it
    takes bfloat16 as it is stored, but for odd channels, and volumes whose channels do not come in
    eights.
    """

    def __init__(
        self, name: str, tiles: tuple[Tile, ...], arithmetic: dict[str, dict[str, int]]
    ) -> None:
        self.name, self.tiles, self.arithmetic = name, tiles, arithmetic
        self.storage = "bf16" in arithmetic
        self.smallest = len(tiles) - 3
        self.index: dict[tuple[int, str, int, int], int] = {}  # (tile, precision, vector, dims)
        macros: list[dict[str, int]] = []
        for mode, chosen in arithmetic.items():
            most, least = vectors(mode)
            generic = [(self.smallest, least, 2), (self.smallest, most, 3)]
            if mode != "bf16":
                generic.append((self.smallest, least, 3))
            fast = ((t, most, 2) for t in range(self.widest(mode), len(tiles)))
            for tile, vector, dims in (*fast, *generic):
                made = tiles[tile].macros(chosen, vector, dims)
                if made not in macros:
                    macros.append(made)
                self.index[tile, mode, vector, dims] = macros.index(made)
        self.kernels = KernelFile(f"conv2d_{name}", *macros)

    def widest(self, mode: str) -> int:
        """The widest tile whose sums and operands fit the registers."""
        return 1 if _splits(self.arithmetic[mode]) else 0

    def tile(
        self,
        rows: int,
        columns: int,
        s: ConvGeometry,
        mode: str,
        vector: int,
        shared: int,
        by_rows: bool,
    ) -> int:
        """The first tile that TILES names for these columns, whose operands fit the registers,
        which makes enough blocks, as the last one need not, and finds the ``shared`` bytes of
        memory; else the smallest.
        """
        if vector < 4 or s.dims == 3:
            return self.smallest
        names = [str(tile) for tile in self.tiles]
        listed = next(tiles for most, tiles in TILES if columns <= most)
        wanted = [names.index(name) for name in listed if name in names]
        for index in wanted:
            tile = self.tiles[index]
            blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * s.G
            enough = blocks >= BUSY_BLOCKS or index == wanted[-1]
            if index >= self.widest(mode) and enough and tile.fits(shared, by_rows):
                return index
        return self.smallest

    def choose(
        self, name: str, s: ConvGeometry, rows: int, columns: int, channels: int, *arrays: Array
    ) -> tuple[Kernel, Tile]:
        """The kernel for a product of ``rows`` × ``columns``, and its tile.

        channels: a number that eight divides if every run of channels that the kernel reads is made
        of eights, and likewise; arrays: what it reads.
        """
        like = arrays[0]
        mode = precision_of(like)
        most, least = vectors(mode)
        vector = most if channels % most == 0 and _aligned(arrays, 16) else least
        forced = _forced.tiles.get(self.name)
        limits = None if isinstance(like, np.ndarray) else _limits(like.device.id)
        key = (self.name, name, vector, mode, forced, limits)
        found = s.known.get(key)
        if found is None:
            found = s.known[key] = self._choose(*key[1:], s, rows, columns)
        return cast("tuple[Kernel, Tile]", found)

    def _choose(
        self,
        name: str,
        vector: int,
        mode: str,
        forced: tuple[int, bool] | None,
        limits: tuple[int, int] | None,
        s: ConvGeometry,
        rows: int,
        columns: int,
    ) -> tuple[Kernel, Tile]:
        if max(s.inputs, s.outputs) > _MOST_ROWS:
            raise ValueError(
                f"conv2d: the variant {self.name} numbers at most {_MOST_ROWS} pixels, got "
                f"{max(s.inputs, s.outputs)}"
            )
        dims, shared = 3 if s.dims == 3 else 2, 227 * 1024
        if limits is not None:
            capability, shared = limits
            needed = _CAPABILITY[mode] if self.arithmetic[mode] else 0
            if capability < needed:
                raise DeviceError(
                    f"conv2d: the variant {self.name} in {mode} needs a GPU of compute capability "
                    f"{needed / 10} or newer, this one has {capability / 10}; choose another by "
                    "use_variant or precision"
                )
        index = self.tile(rows, columns, s, mode, vector, shared, name != "weight_gradient")
        if forced is not None:
            wanted, by_words = forced
            narrower = vectors(mode)[1] if by_words else vector
            if (wanted, mode, narrower, dims) in self.index:
                index, vector = wanted, narrower
                if not self.tiles[index].fits(shared, name != "weight_gradient"):
                    raise DeviceError(
                        f"conv2d: the tile {self.tiles[index]} of {self.name} needs more than the "
                        f"{shared // 1024} KiB of shared memory that a block may have here"
                    )
        kernel = self.kernels[f"conv2d_{self.name}_{name}", self.index[index, mode, vector, dims]]
        return kernel, self.tiles[index]

    def _stores(self, channels: int, s: ConvGeometry, *arrays: Array) -> bool:
        most, least = vectors("bf16")
        in_eights = channels % most == 0 and _aligned(arrays, 16)
        even = s.dims != 3 and channels % least == 0 and _aligned(arrays, 4)
        return self.storage and (in_eights or even)

    def stores_forward(self, x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> bool:
        """Whether :meth:`forward` takes these x and w in bfloat16 as they are."""
        return self._stores(geometry.CG, geometry, x, w)

    def stores_gather(self, dy: Array, w: Array, *rest: Any) -> bool:
        """Whether :meth:`gather` and :meth:`data_gradient` do."""
        return self._stores(rest[-1].OCG, rest[-1], dy)

    def stores_weight_gradient(self, dy: Array, x: Array, geometry: ConvGeometry) -> bool:
        """Whether :meth:`weight_gradient` does."""
        return self._stores(math.gcd(geometry.CG, geometry.OCG), geometry, dy, x)

    def _product(
        self,
        kernel: Kernel,
        tile: Tile,
        grid: tuple[int, int],
        slices: tuple[int, int],
        shape: tuple[int, ...],
        inputs: tuple[Array, Array, Array | None],
        s: ConvGeometry,
    ) -> Array:
        """Launch a forward pass or data gradient that makes ``shape``, and add its slices."""
        (a, w, b), (count, each), (blocks, planes) = inputs, slices, grid
        grid, numbers = (blocks, planes * count), (*s.numbers, each)
        if count == 1:
            y = empty(a, shape, a.dtype)
            PLAIN.launch(kernel, grid, tile, (y, None, a, w, b), numbers, 0)
            return y
        partial = empty(a, (count, *shape))
        PLAIN.launch(kernel, grid, tile, (None, partial, a, w, None), numbers, 0)
        return launch_stored_slices(partial, b, a)

    def forward(self, x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
        s = geometry
        kernel, tile = self.choose("forward", s, s.outputs, s.OCG, s.CG, x, w)
        grid = (-(-s.outputs // tile.rows) * -(-s.OCG // tile.columns), s.G)
        slices = s.once(forward_slices)
        return self._product(kernel, tile, grid, slices, s.y_shape, (x, w, b), s)

    def fused_forward(
        self, x: Array, w: Array, b: Array | None, geometry: ConvGeometry, epilogue: Epilogue
    ) -> tuple[Array, Any]:
        """The forward pass, through an epilogue -> y and what that leaves behind."""
        s = geometry
        kernel, tile = self.choose("forward", s, s.outputs, s.OCG, s.CG, x, w)
        chunks, columns = -(-s.outputs // tile.rows), -(-s.OCG // tile.columns)
        y, grid = empty(x, s.y_shape, x.dtype), (chunks * columns, s.G)
        numbers = (*s.numbers, whole(s.K))
        return y, epilogue.launch(kernel, grid, tile, (y, None, x, w, b), numbers, chunks)

    def _gather(self, dy: Array, w: Array, s: ConvGeometry) -> tuple[Kernel, Tile, Array, int, int]:
        """(kernel, tile, filter with its channels exchanged, chunks, column tiles)"""
        taps = s.KD * s.KH * s.KW
        wt = exchanged(w, s.G, s.OCG, taps, s.CG)
        wt = wt.reshape(s.C, *s.w_shape[1:-1], s.OCG)
        phases, largest = s.once(phases_of)
        kernel, tile = self.choose("data_gradient", s, phases * largest, s.CG, s.OCG, dy, wt)
        return kernel, tile, wt, phases * -(-largest // tile.rows), -(-s.CG // tile.columns)

    def gather(self, dy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
        """The data gradient, with a bias: also the forward pass of a transposed convolution."""
        s = geometry
        kernel, tile, wt, chunks, columns = self._gather(dy, w, s)
        grid, slices = (chunks * columns, s.G), s.once(gather_slices)
        return self._product(kernel, tile, grid, slices, s.x_shape, (dy, wt, b), s)

    def fused_gather(
        self, dy: Array, w: Array, b: Array | None, geometry: ConvGeometry, epilogue: Epilogue
    ) -> tuple[Array, Any]:
        """:meth:`gather` through an epilogue -> dx and what that leaves behind."""
        s = geometry
        kernel, tile, wt, chunks, columns = self._gather(dy, w, s)
        dx, grid = empty(dy, s.x_shape, dy.dtype), (chunks * columns, s.G)
        numbers = (*s.numbers, whole(s.once(gathered_terms)))
        return dx, epilogue.launch(kernel, grid, tile, (dx, None, dy, wt, b), numbers, chunks)

    def data_gradient(self, dy: Array, w: Array, geometry: ConvGeometry) -> Array:
        return self.gather(dy, w, None, geometry)

    def weight_gradient(self, dy: Array, x: Array, geometry: ConvGeometry) -> Array:
        s = geometry
        # The number of slices, and with it the bits, does not depend on the tile that fits the GPU.
        blocks = -(-s.K // 128) * -(-s.OCG // 64) * s.G
        count, each = slices(s.outputs, blocks, max(1, GRID_YZ // s.G), _AT_ONCE)
        channels = math.gcd(s.CG, s.OCG)
        kernel, tile = self.choose("weight_gradient", s, s.K * count, s.OCG, channels, x, dy)
        tiles = -(-s.K // tile.rows) * -(-s.OCG // tile.columns)
        partial = empty_slices(x, count, s.w_shape)
        grid, ring = (tiles, s.G * count), tile.ring(False)
        kernel(grid, (tile.threads,), partial, dy, x, *s.numbers, each, shared_mem=ring)
        return launch_sum_slices(partial, None)


# An epilogue needs whole sums: it spares a pass or two over the few outputs of such a product, but
# more slices than these make the sums shorter by more than those passes take.
_SLICES_FOR_AN_EPILOGUE = 2


def fuses_forward(s: ConvGeometry) -> bool:
    """Whether an epilogue is worth the slices of the forward pass."""
    return s.once(forward_slices)[0] <= _SLICES_FOR_AN_EPILOGUE


def fuses_gather(s: ConvGeometry) -> bool:
    """Whether an epilogue is worth the slices of the data gradient."""
    return s.once(gather_slices)[0] <= _SLICES_FOR_AN_EPILOGUE


class _Forced(threading.local):
    """What a thread's launches take."""

    def __init__(self) -> None:
        self.tiles: dict[str, tuple[int, bool]] = {}  # rung -> (tile, whether by 4 bytes)


_forced = _Forced()


@contextlib.contextmanager
def use_tile(rung: Rung, index: int, by_words: bool = False) -> Iterator[None]:
    """Inside the ``with`` block the rung's launches take the tile of this index.

    by_words: copies of 4 bytes also where 16 at a time would do. Where there is no such
    specialisation (``rung.index``), the rung chooses as always.
    """
    before = _forced.tiles
    _forced.tiles = {**before, rung.name: (index, by_words)}
    try:
        with without_plans():
            yield
    finally:
        _forced.tiles = before


@dataclass(frozen=True)
class TiledLauncher:
    """A launcher of a rung that takes the tile of an index."""

    launcher: Callable[..., Array]
    rung: Rung
    index: int

    def in_force(self) -> contextlib.AbstractContextManager[None]:
        """Inside the ``with`` block the rung takes this tile."""
        return use_tile(self.rung, self.index)

    def __call__(self, *arguments: Any) -> Array:
        with self.in_force():
            return self.launcher(*arguments)


def _aligned(arrays: tuple[Array, ...], size: int) -> bool:
    """Whether as many bytes can be read at once from the start of each."""
    together = 0
    for a in arrays:
        together |= address(a)
    return together % size == 0


@functools.cache
def _limits(gpu: int) -> tuple[int, int]:
    """(compute capability × 10, bytes of shared memory that a block may ask for)"""
    import cupy

    device = cupy.cuda.Device(gpu)
    shared = device.attributes["MaxSharedMemoryPerBlockOptin"]
    return int(device.compute_capability), int(shared)


REGISTER_TILED = Rung(
    "register_tiled",
    (
        Tile(128, 128, 4, 2, 2, 2),
        Tile(128, 64, 4, 1, 4, 2),
        Tile(64, 64, 4, 2, 2, 2),
        Tile(128, 32, 4, 1, 4, 2),
        Tile(128, 16, 4, 1, 4, 2),
    ),
    {mode: {} for mode in precision.modes if mode != "bf16"},
)
IMPLICIT_GEMM = Rung(
    "implicit_gemm",
    (
        Tile(256, 128, 4, 2, 1, 3),
        Tile(128, 128, 2, 4, 1, 3),
        Tile(128, 64, 2, 2, 2, 3),
        Tile(64, 64, 2, 2, 2, 3),
        Tile(128, 32, 4, 1, 2, 3),
        Tile(128, 16, 4, 1, 2, 3),
    ),
    {
        "fp32": {"TERMS": 3, "HALF": 0},
        "tf32": {"TERMS": 1, "HALF": 0},
        "bf16": {"TERMS": 1, "HALF": 1, "BFLOAT16": 1},
        "fp16": {"TERMS": 1, "HALF": 2},
    },
)


def pipelined(x: Array, s: ConvGeometry) -> str | None:
    """The rung that a problem takes by itself: on tensor cores, or in float32 in registers.

    None where few channels would leave the slabs empty.
    """
    if min(s.CG, s.OCG) < 8 or s.G > GRID_YZ:
        return None
    mode = precision_of(x)
    if mode == "bf16" and not isinstance(x, np.ndarray) and not has_tf32(x.device.id):
        mode = "fp32"  # of what is widened
    return (REGISTER_TILED if mode == "fp32" else IMPLICIT_GEMM).name
