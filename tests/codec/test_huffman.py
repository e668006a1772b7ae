"""Huffman codes: optimal, canonical, exact in length, decoded in chunks, and no trust in the bytes."""

from __future__ import annotations

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cambrian.codec import huffman
from cambrian.codec.huffman import CHUNK, HuffmanCodec, code_lengths, entropy
from cambrian.errors import CheckpointError, ConfigError


def best_cost(counts: list[int], limit: int) -> int:
    """Least sum(count * length) over all lengths that satisfy Kraft's inequality, by trying every one."""
    return min(
        sum(c * n for c, n in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, limit + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )


@pytest.mark.parametrize("limit", [3, 5])
def test_lengths_are_optimal_with_and_without_a_limit(limit: int):
    generator = np.random.default_rng(limit)
    for _ in range(6):
        counts = (generator.random(5) ** 6 * 1000).astype(int) + 1
        lengths = code_lengths(counts, limit)
        assert lengths.max() <= limit and (counts * lengths).sum() == best_cost(counts.tolist(), limit)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=60).filter(lambda c: sum(x > 0 for x in c) > 1))
@settings(max_examples=80, deadline=None)
def test_kraft_sum_is_one_and_the_mean_length_is_within_a_bit_of_the_entropy(counts: list[int]):
    lengths, array = code_lengths(counts), np.array(counts)
    assert (2.0 ** -lengths[array > 0]).sum() == 1 and not lengths[array == 0].any()
    assert entropy(array) <= (lengths * array).sum() / array.sum() + 1e-9 < entropy(array) + 1


def test_codes_are_canonical_and_free_of_prefixes():
    codec = HuffmanCodec([2, 0, 3, 1, 3])
    assert codec.codes.tolist() == [0b10, 0, 0b110, 0b0, 0b111]
    assert codec.encode(np.array([3, 0, 2, 4]))[0] == bytes([0b01011011, 0b10000000])


@pytest.mark.parametrize("count", [1, 2, CHUNK, CHUNK + 1, 5 * CHUNK + 77])
@pytest.mark.parametrize("alphabet", [1, 2, 33, 4000])
def test_streams_round_trip_at_the_exact_length(count: int, alphabet: int):
    generator = np.random.default_rng(count * alphabet)
    symbols = np.minimum(generator.geometric(0.2, count) - 1, alphabet - 1)
    if alphabet == 4000 and count > 1000:
        symbols[:900] = np.arange(900) * 4  # codes longer than the table's 12 bits
    packed = huffman.pack(symbols, alphabet)
    assert np.array_equal(huffman.unpack(packed, alphabet, count), symbols)
    codec = HuffmanCodec.of(symbols, alphabet)
    stream, chunks = codec.encode(symbols)
    bits = int((codec.lengths * np.bincount(symbols, minlength=alphabet)).sum())
    assert codec.size(symbols) == bits == chunks.sum() and len(stream) == -(-bits // 8)
    assert len(packed) - len(stream) < 2 + 5 * alphabet / 8 + 2 * len(chunks) + 4


def test_a_lone_symbol_takes_one_bit_and_nothing_takes_none():
    assert len(huffman.pack(np.full(800, 3), 5)) == 100 + 1 + 1
    assert huffman.pack(np.zeros(0, np.int64), 5) == b"" and len(huffman.unpack(b"", 5, 0)) == 0


def test_depth_is_limited_for_fibonacci_counts():
    counts = [1, 1]
    while len(counts) < 40:
        counts.append(counts[-1] + counts[-2])
    assert code_lengths(counts, 60).max() == 39
    lengths = code_lengths(counts)
    assert lengths.max() == huffman.MAX_LENGTH and (2.0**-lengths).sum() == 1
    symbols = np.arange(40).repeat(3)
    codec = HuffmanCodec(lengths)
    stream, chunks = codec.encode(symbols)
    assert np.array_equal(codec.decode(stream, chunks, len(symbols)), symbols)


def test_bad_counts_and_codes_are_typed_errors():
    for counts in ([-1, 2], np.ones(9)):
        with pytest.raises(ConfigError):
            code_lengths(counts, 3)
    for lengths in ([], [0, 0], [1, 1, 1], [1, 2], [2], [25, 1]):
        with pytest.raises(CheckpointError):
            HuffmanCodec(lengths)
    with pytest.raises(ConfigError, match="no code"):
        HuffmanCodec([1, 0, 1]).encode(np.array([1]))


def test_damaged_streams_never_pass_in_silence_or_crash():
    symbols = np.minimum(np.random.default_rng(0).geometric(0.3, 3 * CHUNK) - 1, 20)
    packed = huffman.pack(symbols, 21)
    for cut in range(len(packed)):
        with pytest.raises(CheckpointError):
            huffman.unpack(packed[:cut], 21, len(symbols))
    generator = np.random.default_rng(1)
    for _ in range(300):  # without the container's checksum, a change may give other symbols but no other failure
        changed = bytearray(packed)
        changed[generator.integers(len(packed))] ^= 1 << generator.integers(8)
        with contextlib.suppress(CheckpointError):
            assert len(huffman.unpack(bytes(changed), 21, len(symbols))) == len(symbols)
    for count in (len(symbols) - 1, len(symbols) + 1, 1 << 40):
        with pytest.raises(CheckpointError):
            huffman.unpack(packed, 21, count)
