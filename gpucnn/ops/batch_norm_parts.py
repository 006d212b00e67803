"""NumPy passes over cache-sized chunks that the fused blocks of batch normalisation share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from gpucnn import buffers
from gpucnn.device import Array
from gpucnn.ops.activation_formulas import not_below
from gpucnn.ops.channels import column_sums, fold, near, product_sums, rows_per_chunk, tile
from gpucnn.threads import map_chunks, scratch


class Given(NamedTuple):
    """What z = (x − mean)·scale + beta of a batch normalisation is computed from: (C) each.

    The mean is x[0] + delta, or ``mean``, and delta is then None. gamma, beta: None for 1 and 0.
    """

    gamma: Array | None
    beta: Array | None
    mean: Array | None
    delta: Array | None


def _or(value: Array | None, otherwise: float, like: Any) -> NDArray[Any]:
    return np.full(like.shape, otherwise) if value is None else value.astype(np.float64)


class Factors:
    """z = (x − center)·scale + shift of each channel, of folded rows.

    The mean is center + delta; near 0 the center is 0, and nothing is subtracted.
    """

    def __init__(self, x: NDArray[Any], given: Given, invstd: NDArray[Any]) -> None:
        C = x.shape[-1]
        delta = _or(given.delta, 0, invstd)
        self.dtype = x.dtype
        self.center = x.reshape(-1, C)[0] if given.mean is None else given.mean
        self.direct = near(self.center * invstd, x)
        if self.direct:
            delta = delta + self.center
        self.scale = _or(given.gamma, 1, invstd) * invstd
        self.shift = _or(given.beta, 0, invstd) - delta * self.scale
        self.minus_shift = -self.shift
        self.delta = delta
        self.slope = self.level = np.zeros(C)  # of the gradient in x
        self._tiled: dict[tuple[int, str], NDArray[Any]] = {}

    def of(self, name: str, k: int) -> NDArray[Any]:
        """A factor k times in a row."""
        found = self._tiled.get((k, name))
        if found is None:
            found = self._tiled[k, name] = tile(getattr(self, name), k, self.dtype)
        return found

    def centred(self, x: NDArray[Any], k: int, out: NDArray[Any]) -> NDArray[Any]:
        """x − center: x itself, or out."""
        return x if self.direct else np.subtract(x, self.of("center", k), out=out)

    def normalise(self, x: NDArray[Any], k: int, out: NDArray[Any]) -> None:
        """z."""
        np.multiply(self.centred(x, k, out), self.of("scale", k), out=out)
        np.add(out, self.of("shift", k), out=out)


def whole_folds(rows: int, C: int) -> int:
    """Rows of one chunk: a multiple of 64, so that a chunk folds into long rows."""
    return -(-rows_per_chunk(rows, C) // 64) * 64


def activate(z: NDArray[Any], negative_slope: float) -> None:
    """z = negative_slope·z where z <= 0, in place; a NaN passes."""
    if negative_slope == 0:
        not_below(z, 0, z)
    elif negative_slope != 1:
        bend(z, z <= 0, negative_slope)


def bend(g: NDArray[Any], negative: NDArray[Any], negative_slope: float) -> None:
    """g = negative_slope·g, 0 if that is 0, where ``negative``; in place. Spoils ``negative``."""
    if negative_slope == 0:
        blocked(g, negative, g)
    elif negative_slope != 1:
        bent = scratch("block bent", g.shape, g.dtype)
        np.multiply(g, negative_slope, out=bent)
        np.copyto(g, bent, where=negative)


def blocked(g: NDArray[Any], negative: NDArray[Any], out: NDArray[Any]) -> None:
    """out = 0 where ``negative``, whatever g is, else g. Spoils ``negative``."""
    bits = np.dtype(f"i{g.itemsize}")
    signs, keep = negative.view(np.int8), scratch("block keep", g.shape, bits)
    np.subtract(signs, 1, out=signs)
    np.copyto(keep, signs)  # all bits set, or none
    np.bitwise_and(g.view(bits), keep, out=out.view(bits))


def pack_bits(negative: NDArray[Any]) -> NDArray[Any]:
    """(rows, C) as bits (rows, ⌈C / 8⌉): bit c % 8 of byte c // 8."""
    rows, C = negative.shape
    if C % 8 == 0:
        return np.packbits(negative.reshape(-1), bitorder="little").reshape(rows, C // 8)
    return np.packbits(negative, axis=1, bitorder="little")


def unpack_bits(bits: NDArray[Any], C: int) -> NDArray[Any]:
    """The inverse of :func:`pack_bits`, as 0 and 1."""
    if C % 8 == 0:
        return np.unpackbits(bits.reshape(-1), bitorder="little").reshape(-1, C)
    return np.unpackbits(bits, axis=1, count=C, bitorder="little")


def invstd_of(spread: NDArray[Any], eps: float) -> NDArray[Any]:
    """1 / deviation in float64: ``spread`` itself where eps is 0, else it is the variance."""
    wide = spread.astype(np.float64)
    return wide if eps == 0 else 1 / np.sqrt(wide + eps)


# (start, stop, factors, x − center in folded rows, how often C is in one, out): writes the gradient
# of z of start … stop of the first axis of x.
Route = Callable[[int, int, Factors, NDArray[Any], int, NDArray[Any]], None]


def block_gradients(
    x: NDArray[Any],
    gamma: NDArray[Any] | None,
    beta: NDArray[Any] | None,
    mean: NDArray[Any] | None,
    delta: NDArray[Any] | None,
    invstd: NDArray[Any],
    sums: bool,
    g: NDArray[Any] | None,
    route: Route | None,
    chunk: int,
) -> tuple[NDArray[Any], NDArray[Any] | None, NDArray[Any] | None]:
    """dx, dgamma and dbeta from g, the gradient of z.

    g is there, or ``route`` writes it; it is left in g, which is memory for it, or None if nobody
    needs it.
    """
    C, n = x.shape[-1], len(x)
    given = Given(gamma, beta, mean, delta)
    factors = Factors(x, given, invstd)
    dx = buffers.empty_like(x)
    gradient = dx if g is None else g

    def reduce(start: int, stop: int) -> tuple[NDArray[Any], NDArray[Any]] | None:
        part = gradient[start:stop]
        folded, k = fold(x[start:stop])
        moved = factors.centred(folded, k, scratch("block moved", folded.shape, x.dtype))
        if route is not None:
            route(start, stop, factors, moved, k, part)
        if not sums:
            return None
        return product_sums(moved, part.reshape(folded.shape), C), column_sums(part, C)

    parts = map_chunks(reduce, n, chunk)
    dgamma = dbeta = None
    if sums:
        pairs = cast("list[tuple[NDArray[Any], NDArray[Any]]]", parts)
        dbeta = np.stack([s for _, s in pairs]).sum(axis=0)
        products = np.stack([p for p, _ in pairs]).sum(axis=0)
        dgamma = (products - factors.delta * dbeta) * invstd
    if mean is None:
        m = x.size // C
        factors.slope = -factors.scale * invstd * dgamma / m
        factors.level = -factors.scale * dbeta / m - factors.slope * factors.delta

    def finish(start: int, stop: int) -> None:
        folded, k = fold(x[start:stop])
        out = dx[start:stop].reshape(folded.shape)
        pulled = gradient[start:stop].reshape(folded.shape)
        if mean is not None:
            np.multiply(pulled, factors.of("scale", k), out=out)
            return
        moved = scratch("block moved", folded.shape, x.dtype)
        np.multiply(factors.centred(folded, k, moved), factors.of("slope", k), out=moved)
        np.add(moved, factors.of("level", k), out=moved)
        np.multiply(pulled, factors.of("scale", k), out=out)
        np.add(out, moved, out=out)

    map_chunks(finish, n, chunk)
    if dgamma is None or dbeta is None:
        return dx, None, None
    return dx, dgamma.astype(x.dtype), dbeta.astype(x.dtype)
