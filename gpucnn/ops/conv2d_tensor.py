"""Launchers of ``kernels/conv2d_implicit_gemm.cu``: convolution on tensor cores."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from gpucnn.device import Array, DeviceError, empty
from gpucnn.kernel import Kernel, KernelFile
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.reduce import launch_sum_slices
from gpucnn.ops.tile import GRID_YZ, slices
from gpucnn.ops.transpose import launch_transpose
from gpucnn.precision import precision_of


@dataclass(frozen=True)
class Tile:
    """What one block computes: rows × columns, shared out to warps."""

    rows: int
    columns: int
    warps_m: int
    warps_n: int
    resident: int  # blocks that a multiprocessor should hold, for __launch_bounds__
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.warps_m * self.warps_n

    def ring(self, by_rows: bool) -> int:
        """Bytes of dynamic shared memory: the slabs of tensor_tile_rows, or tensor_tile_columns."""
        return 4 * self.stages * (self.rows + self.columns + (0 if by_rows else 16)) * 32

    def macros(self, terms: int, vector: int, dims: int) -> dict[str, int]:
        return {
            "TILE_GM": self.rows,
            "TILE_GN": self.columns,
            "WARPS_M": self.warps_m,
            "WARPS_N": self.warps_n,
            "RESIDENT_BLOCKS": self.resident if terms == 1 else 1,
            "STAGES": self.stages,
            "TERMS": terms,
            "VECTOR": vector,
            "DIMS": dims,
        }


# Widest first. The widest has the most products per value read from shared memory, the others fit
# layers of fewer channels or fewer pixels.
TILES = (
    Tile(256, 128, 4, 2, 1, 3),
    Tile(128, 128, 2, 4, 1, 3),
    Tile(128, 64, 2, 2, 2, 3),
    Tile(64, 64, 2, 2, 2, 3),
    Tile(128, 32, 4, 1, 2, 3),
    Tile(128, 16, 4, 1, 2, 3),
)
_ANY = 3  # the tile of volumes, and of channels that do not come in fours
_BUSY_BLOCKS = 264  # two for each multiprocessor of a large GPU; a constant, as are the bits

_PLACES = 16  # bytes of static shared memory that a row of tensor_tile_rows takes besides

_TERMS = {"tf32": 1, "fp32": 3}

# (tile, terms, vector, dims) -> specialisation
_INDEX: dict[tuple[int, int, int, int], int] = {}
_SPECIALISATIONS: list[dict[str, int]] = []
for _terms in (1, 3):
    for _index, _vector, _dims in (
        *((t, 4, 2) for t in range(_terms // 3, len(TILES))),
        (_ANY, 1, 2),
        (_ANY, 4, 3),
        (_ANY, 1, 3),
    ):
        _INDEX[_index, _terms, _vector, _dims] = len(_SPECIALISATIONS)
        _SPECIALISATIONS.append(TILES[_index].macros(_terms, _vector, _dims))

_kernels = KernelFile("conv2d_implicit_gemm", *_SPECIALISATIONS)


def _address(a: Array) -> int:
    return int(a.ctypes.data if isinstance(a, np.ndarray) else a.data.ptr)


def _tile(
    rows: int, columns: int, s: ConvGeometry, terms: int, vector: int, shared: int, by_rows: bool
) -> int:
    """The widest tile that the columns half fill, that makes enough blocks and finds the memory."""
    if vector == 1 or s.dims == 3:
        return _ANY
    if columns <= 32:
        return 5 if columns <= 16 else 4
    for index in range(terms // 3, _ANY):
        tile = TILES[index]
        blocks = -(-rows // tile.rows) * -(-columns // tile.columns) * s.G
        enough = blocks >= _BUSY_BLOCKS and tile.ring(by_rows) + _PLACES * tile.rows <= shared
        if enough and columns > tile.columns // 2:
            return index
    return _ANY


@functools.cache
def _shared_memory(gpu: int) -> int:
    """Bytes of shared memory that a block may ask for."""
    import cupy

    device = cupy.cuda.Device(gpu)
    if int(device.compute_capability) < 80:
        raise DeviceError(
            f"conv2d: the variant implicit_gemm needs a GPU of compute capability 8.0 or newer, "
            f"this one has {device.compute_capability}; choose another by use_variant"
        )
    return int(device.attributes["MaxSharedMemoryPerBlockOptin"])


def _choose(
    name: str, s: ConvGeometry, rows: int, columns: int, channels: int, *arrays: Array
) -> tuple[Kernel, Tile]:
    """The kernel for a product of ``rows`` × ``columns``, and its tile.

    channels: a number that four divides if every run of channels that the kernel reads is made of
    fours; arrays: what it reads.
    """
    like = arrays[0]
    vector = 4 if channels % 4 == 0 and all(_address(a) % 16 == 0 for a in arrays) else 1
    terms, dims = _TERMS[precision_of(like)], 3 if s.dims == 3 else 2
    shared = 227 * 1024 if isinstance(like, np.ndarray) else _shared_memory(like.device.id)
    index = _tile(rows, columns, s, terms, vector, shared, name != "weight_gradient")
    kernel = _kernels[f"conv2d_implicit_gemm_{name}", _INDEX[index, terms, vector, dims]]
    return kernel, TILES[index]


def tensor_forward(x: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    s = geometry
    y = empty(x, s.y_shape)
    kernel, tile = _choose("forward", s, s.outputs, s.OCG, s.CG, x, w)
    blocks = -(-s.outputs // tile.rows) * -(-s.OCG // tile.columns)
    kernel((blocks, s.G), (tile.threads,), y, x, w, b, *s.numbers, shared_mem=tile.ring(True))
    return y


def tensor_gather(dy: Array, w: Array, b: Array | None, geometry: ConvGeometry) -> Array:
    """The data gradient, with a bias: also the forward pass of a transposed convolution."""
    s = geometry
    dx = empty(dy, s.x_shape)
    taps = s.KD * s.KH * s.KW
    wt = launch_transpose(w.reshape(s.G, s.OCG, taps, s.CG), (0, 3, 2, 1))
    axes = ((s.D, s.SD), (s.H, s.SH), (s.W, s.SW))
    phases = math.prod(min(size, stride) for size, stride in axes)
    largest = s.N * math.prod(-(-size // stride) for size, stride in axes)
    kernel, tile = _choose("data_gradient", s, phases * largest, s.CG, s.OCG, dy, wt)
    blocks = phases * -(-largest // tile.rows) * -(-s.CG // tile.columns)
    wt = wt.reshape(s.C, *s.w_shape[1:-1], s.OCG)
    kernel((blocks, s.G), (tile.threads,), dx, dy, wt, b, *s.numbers, shared_mem=tile.ring(True))
    return dx


def tensor_data_gradient(dy: Array, w: Array, geometry: ConvGeometry) -> Array:
    return tensor_gather(dy, w, None, geometry)


def tensor_weight_gradient(dy: Array, x: Array, geometry: ConvGeometry) -> Array:
    s = geometry
    # The number of slices, and with it the bits, does not depend on the tile that fits the GPU.
    blocks = -(-s.K // 128) * -(-s.OCG // 64) * s.G
    count, each = slices(s.outputs, blocks, max(1, GRID_YZ // s.G))
    rows = s.K * count
    kernel, tile = _choose("weight_gradient", s, rows, s.OCG, math.gcd(s.CG, s.OCG), x, dy)
    tiles = -(-s.K // tile.rows) * -(-s.OCG // tile.columns)
    partial = empty(x, (count, *s.w_shape))
    grid = (tiles, s.G * count)
    shared = tile.ring(False)
    kernel(grid, (tile.threads,), partial, dy, x, *s.numbers, each, shared_mem=shared)
    return launch_sum_slices(partial, None)
