"""Counter-based random numbers: Philox 4x32-10, keyed by seed and stream.

Element ``i`` of a stream depends on ``(seed, stream, i)`` alone, so it can be computed without its
predecessors, on any device, in any order. No NumPy random state is read or changed.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from __future__ import annotations

import operator
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS: Final = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_ROUNDS: Final = 10


def philox4x32(
    counter: NDArray[np.uint32], key: tuple[int, int], rounds: int = _ROUNDS
) -> NDArray[np.uint32]:
    """The Philox 4x32 block function. counter (n, 4) uint32 -> random words (n, 4) uint32."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0 = (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0)
        c2 = (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1)
        c1, c3 = p1 & _LOW, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def blocks(seed: int, stream: int, index: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Blocks of a stream, four words each, in any order: index uint64 (n,) -> uint32 (n, 4).

    The counter of a block is (index, stream), both 64-bit.
    """
    if seed < 0 or stream < 0:
        raise ValueError(f"seed and stream must be >= 0, got seed={seed}, stream={stream}")
    counter = np.empty((len(index), 4), dtype=np.uint32)
    counter[:, 0] = index & _LOW
    counter[:, 1] = index >> np.uint64(32)
    counter[:, 2] = stream & 0xFFFFFFFF
    counter[:, 3] = (stream >> 32) & 0xFFFFFFFF
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def bits(seed: int, stream: int, n: int, start: int = 0) -> NDArray[np.uint32]:
    """Elements ``start`` to ``start + n - 1`` of a stream as uint32 (n,).

    Element ``i`` is word ``i % 4`` of block ``i // 4``.
    """
    first, last = start // 4, -(-(start + n) // 4)
    words = blocks(seed, stream, np.arange(first, last, dtype=np.uint64))
    return words.reshape(-1)[start - 4 * first :][:n]


def uniform(seed: int, stream: int, n: int, start: int = 0) -> NDArray[np.float32]:
    """Uniform float32 (n,) in [0, 1): the upper 24 bits of each element, exact in float32."""
    upper = bits(seed, stream, n, start) >> np.uint32(8)
    return cast("NDArray[np.float32]", upper.astype(np.float32) * np.float32(2**-24))


def normal(seed: int, stream: int, n: int, start: int = 0) -> NDArray[np.float32]:
    """Standard normal float32 (n,) by Box-Muller: elements 2j and 2j + 1 share two words."""
    first = start // 2 * 2
    count = -(-(start + n - first) // 2) * 2
    words = bits(seed, stream, count, first).astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((words[0::2] + 1.0) * 2.0**-32))
    angle = 2.0 * np.pi * words[1::2] * 2.0**-32
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return pairs[start - first :][:n].astype(np.float32)


def permutation(seed: int, stream: int, n: int) -> NDArray[np.int64]:
    """A permutation of 0..n-1, int64 (n,): the stable order of one 64-bit key per element."""
    words = bits(seed, stream, 2 * n).astype(np.uint64)
    return np.argsort((words[0::2] << np.uint64(32)) | words[1::2], kind="stable")


class Generator:
    """A stream with a position: each call continues where the last one stopped."""

    def __init__(self, seed: int, stream: int = 0) -> None:
        if seed < 0 or stream < 0:
            raise ValueError(f"seed and stream must be >= 0, got seed={seed}, stream={stream}")
        self.seed = seed
        self.stream = stream
        self.position = 0

    def reserve(self, n: int) -> int:
        """Step over the next ``n`` elements and return the index of the first.

        It is a multiple of 4: what one call draws begins with a block of its own.
        """
        start = -(-self.position // 4) * 4
        self.position = start + -(-n // 4) * 4
        return start

    def uniform(self, n: int) -> NDArray[np.float32]:
        """The next ``n`` uniform numbers in [0, 1), float32 (n,)."""
        return uniform(self.seed, self.stream, n, self.reserve(n))

    def normal(self, n: int) -> NDArray[np.float32]:
        """The next ``n`` standard normal numbers, float32 (n,)."""
        return normal(self.seed, self.stream, n, self.reserve(n))


_DROPOUT_STREAM: Final = 8 << 32

_default = Generator(0)
_dropout = Generator(0, _DROPOUT_STREAM)


def default_generator() -> Generator:
    """The generator that parameter initialisation draws from."""
    return _default


def dropout_generator() -> Generator:
    """The generator that dropout draws from where it is not given one."""
    return _dropout


def seed(n: int) -> None:
    """Restart the library's random numbers from seed ``n`` (an integer >= 0)."""
    try:
        n = operator.index(n)
    except TypeError:
        raise TypeError(f"seed must be an integer, got {n!r}") from None
    if n < 0:
        raise ValueError(f"seed must be >= 0, got {n}")
    for generator in (_default, _dropout):
        generator.seed, generator.position = n, 0
