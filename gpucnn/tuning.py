"""Which kernel a convolution or a linear layer takes where ``gpucnn tune`` has measured: a table
per GPU, kept in the user's cache folder.

A line holds for one problem, its sizes and precision included, and for the kernels it was measured
with: other sources are another table. Without a line, and on every device but ``cuda``, the rules
of the operators choose; ``use_variant`` comes before both, and ``GPUCNN_TUNED=0`` ignores the
table.

Tiles of one kernel add in one order, so that choosing among them leaves every bit as it is, but for
the moments and sums that a fused convolution leaves behind, of a part for each tile. Another kernel
adds in another order: forward passes and data gradients may differ in the last bits from those of a
GPU that was not tuned. Weight gradients keep the kernel of the rules, and with it their
slices; only its tile is chosen.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gpucnn import launch_plan
from gpucnn.cache import cache_folder, published
from gpucnn.device import Array
from gpucnn.kernel import Launch, observe_launches, specialisations
from gpucnn.ops.conv2d_few_channels import FEW_CHANNELS
from gpucnn.ops.conv2d_pipeline import (
    IMPLICIT_GEMM,
    REGISTER_TILED,
    TiledLauncher,
    use_tile,
    vectors,
)
from gpucnn.ops.conv2d_winograd import WINOGRAD
from gpucnn.ops.conv_geometry import ConvGeometry
from gpucnn.ops.linear import LinearGeometry
from gpucnn.precision import precision, precision_of
from gpucnn.primitive import PRIMITIVES, Primitive
from gpucnn.storage import handed_over

FAMILIES = ("conv2d", "conv_transpose2d", "linear")
RUNGS = {rung.name: rung for rung in (REGISTER_TILED, IMPLICIT_GEMM)}
_PARTIAL = {partial.name: partial for partial in (*FEW_CHANNELS, WINOGRAD)}
_FILES = ("conv2d_", "conv_transpose2d", "linear")
_GEOMETRIES = {"conv2d": ConvGeometry, "conv_transpose2d": ConvGeometry, "linear": LinearGeometry}

Geometry = ConvGeometry | LinearGeometry


@dataclass(frozen=True)
class Choice:
    """A variant, and "128×64", its tile; "" where the variant has one or chooses it itself."""

    variant: str
    tile: str = ""

    def __str__(self) -> str:
        return f"{self.variant} {self.tile}".strip()

    @contextlib.contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside the ``with`` block the variant takes this tile, where it has it."""
        index = self._index()
        if index is None:
            yield
            return
        with use_tile(RUNGS[self.variant], index):
            yield

    def _index(self) -> int | None:
        if not self.tile:
            return None
        return [str(tile) for tile in RUNGS[self.variant].tiles].index(self.tile)

    def launcher(self, made: Primitive) -> Callable[..., Any]:
        """The primitive's launcher of this variant, with this tile.

        Raises KeyError or ValueError if there is no such variant or tile.
        """
        launcher, index = made.launchers[self.variant], self._index()
        return launcher if index is None else TiledLauncher(launcher, RUNGS[self.variant], index)


@dataclass(frozen=True)
class Line:
    """One problem of the table: what was fastest, and its time beside that of the rules' choice."""

    primitive: str
    precision: str
    geometry: Geometry
    choice: Choice
    us: float
    rules_us: float

    @property
    def problem(self) -> tuple[str, str, Geometry]:
        return self.primitive, self.precision, self.geometry


# ---- what may be chosen


def is_tunable(primitive: str) -> bool:
    """Whether there is something to choose for a primitive."""
    return PRIMITIVES[primitive].family in FAMILIES


def rules_choice(primitive: str, arguments: Sequence[Any], moved: Callable[[Any], Any]) -> Choice:
    """What the rules choose for a call, at the present precision.

    arguments: host arrays, which ``moved`` brings to the device; the call runs there.
    """
    given = handed_over(PRIMITIVES[primitive].family, arguments)
    there = [moved(a) if isinstance(a, np.ndarray) else a for a in given]
    launches: list[Launch] = []
    with observe_launches(launches.append):
        next(iter(PRIMITIVES[primitive].launchers.values()))(*there)
    variant, _, tile = kernel_label(launches).partition(" ")
    if variant not in RUNGS or not _tiles(primitive, precision_of(there[0]), there[-1], variant):
        return Choice(variant)
    return Choice(variant, tile)


def candidates(primitive: str, mode: str, geometry: Geometry, rules: Choice) -> list[Choice]:
    """What to measure for a problem at a precision; ``rules`` is what the rules choose.

    For a weight gradient the tiles of that variant alone: the slices of its sums are its own.
    """
    found: list[Choice] = []
    for variant in PRIMITIVES[primitive].launchers:
        if not variant or (primitive.endswith("weight_gradient") and variant != rules.variant):
            continue
        partial = _PARTIAL.get(variant)
        if partial is not None and not (
            isinstance(geometry, ConvGeometry) and partial.takes(primitive, geometry)
        ):
            continue  # it would hand the problem on
        tiles = _tiles(primitive, mode, geometry, variant) if variant in RUNGS else []
        found += [Choice(variant, tile) for tile in tiles] or [Choice(variant)]
    return found


def _tiles(primitive: str, mode: str, geometry: Geometry, variant: str) -> list[str]:
    """The tiles among which a rung can choose for a problem."""
    if isinstance(geometry, LinearGeometry):
        inputs, outputs, dims = geometry.I, geometry.O, 2
    else:
        inputs, outputs, dims = geometry.CG, geometry.OCG, 3 if geometry.dims == 3 else 2
    if primitive.endswith("weight_gradient"):
        channels = math.gcd(inputs, outputs)
    else:
        gathers = primitive.endswith("data_gradient") or primitive.startswith("conv_transpose2d")
        channels = outputs if gathers else inputs
    rung, (most, least) = RUNGS[variant], vectors(mode)
    vector = most if channels % most == 0 else least
    known = [t for i, t in enumerate(rung.tiles) if (i, mode, vector, dims) in rung.index]
    return [str(tile) for tile in known] if len(known) > 1 else []


def kernel_label(launches: Iterable[Launch]) -> str:
    """The variant and tile of the first launch of a convolution or linear layer, as a choice reads.

    "" where none of them is one.
    """
    for launch in launches:
        spec = launch.kernel.spec
        if spec.family.startswith(_FILES):
            macros = dict(spec.macros)
            name = spec.family.removeprefix("conv2d_")
            name = "tiled" if name in FAMILIES else next(filter(name.startswith, _PARTIAL), name)
            width = macros.get("TILE_GN")
            rows = macros.get("TILE_GM") or (1024 // width if width else 0)
            return f"{name} {rows}×{width}" if width else name
    return ""


# ---- the table


@functools.cache
def kernel_hash() -> str:
    """Of the sources and macros of all kernels that can be chosen: 16 hexadecimal digits."""
    texts = [
        f"{spec}\0{spec.source}" for spec in specialisations() if spec.family.startswith(_FILES)
    ]
    return hashlib.sha256("\0".join(sorted(texts)).encode()).hexdigest()[:16]


def table_path(gpu: str) -> Path:
    """Where the table of a GPU lies for the kernels at hand."""
    name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-")
    return cache_folder("tune") / f"{name}-{kernel_hash()}.json"


def read_table(path: Path) -> list[Line]:
    """The lines of a table, none where there is none.

    One that cannot be read, or names what does not exist, is ignored with a warning.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        return _ignored(path, error)
    try:
        return [_line(entry) for entry in json.loads(text)["lines"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _ignored(path, error)


def _ignored(path: Path, error: Exception) -> list[Line]:
    warnings.warn(
        f"{path} is not a table of 'gpucnn tune' ({type(error).__name__}: {error}); kernels are "
        "chosen without it",
        stacklevel=3,
    )
    return []


def _line(entry: dict[str, Any]) -> Line:
    made = PRIMITIVES[entry["primitive"]]
    geometry = _GEOMETRIES[made.family](*map(int, entry["geometry"]))
    choice = Choice(entry["variant"], entry["tile"])
    choice.launcher(made)
    if entry["precision"] not in precision.modes:
        raise ValueError(f"no precision {entry['precision']!r}")
    times = float(entry["us"]), float(entry["rules_us"])
    return Line(made.name, entry["precision"], geometry, choice, *times)


def write_table(path: Path, gpu: str, lines: Sequence[Line]) -> None:
    """Write lines in one step; those of other problems that the table has are kept."""
    new = {line.problem for line in lines}
    every = [*(line for line in read_table(path) if line.problem not in new), *lines]
    entries = [
        {
            "primitive": line.primitive,
            "precision": line.precision,
            "geometry": list(astuple(line.geometry)),
            "variant": line.choice.variant,
            "tile": line.choice.tile,
            "us": round(line.us, 3),
            "rules_us": round(line.rules_us, 3),
        }
        for line in every
    ]
    with published(path) as scratch:
        text = json.dumps({"gpu": gpu, "kernels": kernel_hash(), "lines": entries}, indent=1)
        scratch.write_text(text + "\n", encoding="utf-8")


# ---- the choice


@functools.cache
def gpu_name(gpu: int) -> str:
    """The name of a GPU, "NVIDIA H200" say."""
    import cupy

    return str(cupy.cuda.runtime.getDeviceProperties(gpu)["name"].decode())


def _gpu_of(x: Array) -> str:
    """The name of the GPU that an array lives on, "" for a NumPy array."""
    return "" if isinstance(x, np.ndarray) else gpu_name(x.device.id)


@functools.cache
def _choices(gpu: str) -> dict[tuple[str, str, Geometry], Choice]:
    if os.environ.get("GPUCNN_TUNED") == "0":
        return {}
    return {line.problem: line.choice for line in read_table(table_path(gpu))}


def forget() -> None:
    """Read the tables anew at the next call."""
    _choices.cache_clear()
    _launcher.cache_clear()
    launch_plan.forget()


@functools.lru_cache(4096)
def _launcher(
    gpu: str, made: Primitive, mode: str, geometry: Geometry
) -> Callable[..., Any] | None:
    choice = _choices(gpu).get((made.name, mode, geometry))
    return None if choice is None else choice.launcher(made)


def _tuned(made: Primitive, arguments: tuple[Any, ...]) -> Callable[..., Any] | None:
    """What a table says of this call; None if nothing."""
    x, geometry = arguments[0], arguments[-1]
    gpu = _gpu_of(x)
    return _launcher(gpu, made, precision_of(x), geometry) if gpu else None


for _made in PRIMITIVES.values():
    if _made.family in FAMILIES:
        _made.tuned = _tuned
