"""gpucnn.random: Philox against its published vectors, and the promises of its streams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpucnn import random

# kat_vectors of the Random123 distribution: rounds, counter, key, expected words.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
VECTORS = [
    (7, (0, 0, 0, 0), (0, 0), (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48)),
    (10, (0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        10,
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (10, PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize(("rounds", "counter", "key", "expected"), VECTORS)
def test_philox_known_answers(
    rounds: int, counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = random.philox4x32(np.array([counter], dtype=np.uint32), key, rounds)
    assert [hex(w) for w in words[0]] == [hex(w) for w in expected]


def test_bits_put_the_block_and_the_stream_in_the_counter() -> None:
    stream = (5 << 32) | 9
    expected = random.philox4x32(
        np.array([[3, 0, 9, 5]], dtype=np.uint32), (0x89ABCDEF, 0x01234567)
    )
    got = random.bits(0x0123456789ABCDEF, stream, 4, start=12)
    np.testing.assert_array_equal(got, expected[0])


@pytest.mark.parametrize("draw", [random.bits, random.uniform, random.normal])
@given(start=st.integers(0, 50), n=st.integers(0, 50))
def test_an_element_does_not_depend_on_its_predecessors(draw, start: int, n: int) -> None:
    np.testing.assert_array_equal(draw(7, 3, 100)[start : start + n], draw(7, 3, n, start))


def test_elements_beyond_32_bit_indices_differ() -> None:
    assert (random.bits(0, 0, 8, start=2**34) != random.bits(0, 0, 8)).any()


def test_seeds_and_streams_are_distinct() -> None:
    rows = {
        random.bits(seed, stream, 4).tobytes()
        for seed in (0, 1, 2**32, 2**63)
        for stream in (0, 1, 2**32)
    }
    assert len(rows) == 12


def test_uniform_is_exact_and_uniform() -> None:
    u = random.uniform(1, 2, 200_000)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    np.testing.assert_array_equal(u * 2**24, np.floor(u * 2**24))
    counts = np.bincount((u * 20).astype(int), minlength=20)
    # chi-squared of 19 degrees of freedom: 43.8 is exceeded once in a thousand streams.
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 43.8


def test_normal_moments() -> None:
    z = random.normal(1, 2, 400_000).astype(np.float64)
    assert z.dtype == np.float64
    assert np.isfinite(z).all()
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.var() - 1) < 5 * np.sqrt(2 / z.size)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / z.size)
    assert abs((z[0::2] * z[1::2]).mean()) < 5 / np.sqrt(z.size / 2)


@given(seed=st.integers(0, 2**64 - 1), n=st.integers(0, 200))
def test_permutation_holds_each_number_once(seed: int, n: int) -> None:
    np.testing.assert_array_equal(np.sort(random.permutation(seed, 0, n)), np.arange(n))


def test_permutation_mixes() -> None:
    order = random.permutation(0, 0, 1000)
    assert np.corrcoef(order, np.arange(1000))[0, 1] < 0.15
    assert (order != random.permutation(0, 1, 1000)).any()


def test_generator_continues_and_never_repeats() -> None:
    generator = random.Generator(5)
    first, second = generator.uniform(6), generator.uniform(6)
    np.testing.assert_array_equal(first, random.uniform(5, 0, 6))
    assert not set(first) & set(second)


def test_seed_restarts_the_library_s_generators() -> None:
    generators = random.default_generator(), random.dropout_generator()
    before = [(g.seed, g.position) for g in generators]
    try:
        random.seed(3)
        first = [g.normal(4) for g in generators]
        random.seed(3)
        for generator, values in zip(generators, first, strict=True):
            np.testing.assert_array_equal(generator.normal(4), values)
        assert (first[0] != first[1]).all()
    finally:
        for generator, (seed, position) in zip(generators, before, strict=True):
            generator.seed, generator.position = seed, position


@pytest.mark.parametrize(("seed", "stream"), [(-1, 0), (0, -1)])
def test_negative_seed_or_stream_is_refused(seed: int, stream: int) -> None:
    with pytest.raises(ValueError, match=f"seed={seed}, stream={stream}"):
        random.bits(seed, stream, 1)
    with pytest.raises(ValueError, match=f"seed={seed}, stream={stream}"):
        random.Generator(seed, stream)


def test_each_call_of_a_generator_begins_with_a_block() -> None:
    generator = random.Generator(0)
    assert [generator.reserve(n) for n in (1, 4, 5, 2)] == [0, 4, 8, 16]
    generator.position = 21
    assert generator.reserve(3) == 24
    assert generator.position == 28


def test_wrong_library_seeds_are_refused() -> None:
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1\.5"):
        random.seed(1.5)
    with pytest.raises(ValueError, match="seed must be >= 0, got -2"):
        random.seed(-2)
