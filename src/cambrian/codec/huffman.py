"""Canonical Huffman codes (Huffman 1952; Schwartz and Kallick 1964): optimal whole-bit codes, stored as code lengths.

    H <= mean length < H + 1,      sum_i 2^-l_i = 1        (two symbols or more; a lone symbol takes one bit)

A stream is cut into chunks of `CHUNK` symbols whose lengths in bits are stored, so that all chunks are decoded at once:
each step looks up the next 12 bits of every chunk in one table (longer codes by bisection) and advances them together.

Layout of `pack`: width of a code length u8, the code lengths, [smallest chunk u16, width u8, chunk lengths], the codes.

Shapes: N symbols, S size of the alphabet, L lanes (chunks).
"""

from __future__ import annotations

import heapq
import struct
from typing import Any

import numpy as np

from cambrian.codec import bits
from cambrian.errors import CheckpointError, ConfigError

CHUNK = 1024
MAX_LENGTH = 24  # a 32-bit window shifted by up to 7 bits still holds a whole code
TABLE_BITS = 12
_BASE = struct.Struct("<HB")


def code_lengths(counts: Any, limit: int = MAX_LENGTH) -> np.ndarray:
    """Lengths int64 `[S]` of an optimal prefix code for symbols of these `counts` [S]; 0 where the count is 0.

    No code is longer than `limit` (then optimal among such codes). Raises `ConfigError` for negative counts or when
    `limit` bits cannot tell the symbols apart.
    """
    counts = np.asarray(counts, np.int64).ravel()
    if counts.size and counts.min() < 0:
        raise ConfigError(f"counts cannot be negative, got {counts.min()}")
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.int64)
    if len(used) > 1 << limit:
        raise ConfigError(f"{len(used)} symbols do not fit codes of at most {limit} bits")
    if len(used) < 2:
        lengths[used] = 1
        return lengths
    depths = _tree_depths(counts[used].tolist())
    if max(depths) > limit:
        depths = _package_merge(counts[used].tolist(), limit)
    lengths[used] = depths
    return lengths


def _tree_depths(counts: list[int]) -> list[int]:
    """Depth of every leaf in Huffman's tree: the two rarest nodes become siblings until one is left."""
    parent = [0] * (2 * len(counts) - 1)
    heap = [(count, node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    for node in range(len(counts), len(parent)):
        (a, first), (b, second) = heapq.heappop(heap), heapq.heappop(heap)
        parent[first] = parent[second] = node
        heapq.heappush(heap, (a + b, node))
    depths = [0] * len(parent)
    for node in range(len(parent) - 2, -1, -1):
        depths[node] = depths[parent[node]] + 1
    return depths[: len(counts)]


def _package_merge(counts: list[int], limit: int) -> list[int]:
    """Optimal depths of at most `limit` (Larmore and Hirschberg 1990): each of the 2 S - 2 cheapest coins that holds a
    symbol makes its code one bit longer.
    """
    coins = sorted((count, (symbol,)) for symbol, count in enumerate(counts))
    row = list(coins)
    for _ in range(limit - 1):
        pairs = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(row[::2], row[1::2], strict=False)]
        row = sorted(coins + pairs)
    depths = [0] * len(counts)
    for _, symbols in row[: 2 * len(counts) - 2]:
        for symbol in symbols:
            depths[symbol] += 1
    return depths


def entropy(counts: Any) -> float:
    """Bits per symbol that no code of single symbols can go below."""
    counts = np.asarray(counts, np.float64)
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log2(p)).sum())


class HuffmanCodec:
    """The canonical code of given `lengths` [S]: among equal lengths, codes rise with the symbol.

    Raises `CheckpointError` for lengths that are no prefix code (they may come from a file).
    """

    def __init__(self, lengths: Any) -> None:
        self.lengths = np.asarray(lengths, np.int64).ravel()
        used = np.flatnonzero(self.lengths)
        if not len(used):
            raise CheckpointError("a Huffman code needs at least one symbol")
        if self.lengths.min() < 0 or self.lengths.max() > MAX_LENGTH:
            raise CheckpointError(f"code lengths must lie in 0..{MAX_LENGTH}, got up to {self.lengths.max()}")
        kraft = int((1 << (MAX_LENGTH - self.lengths[used])).sum())
        if kraft != 1 << MAX_LENGTH and not (len(used) == 1 and self.lengths[used[0]] == 1):
            raise CheckpointError(f"code lengths are not those of a full prefix code: Kraft sum {kraft / 2**24:.4g}")
        order = used[np.lexsort((used, self.lengths[used]))]
        sorted_lengths = self.lengths[order]
        room = 1 << (MAX_LENGTH - sorted_lengths)  # code space that each symbol takes, in units of 2^-MAX_LENGTH
        self._starts = np.concatenate([[0], room.cumsum()[:-1]])
        self._order = order
        self.codes = np.zeros(len(self.lengths), np.int64)
        self.codes[order] = self._starts >> (MAX_LENGTH - sorted_lengths)
        self._table: np.ndarray | None = None
        self._longest = int(self.lengths.max())

    @classmethod
    def of(cls, symbols: np.ndarray, alphabet: int) -> HuffmanCodec:
        """The optimal code for these symbols."""
        return cls(code_lengths(np.bincount(np.ravel(symbols), minlength=alphabet)))

    def size(self, symbols: np.ndarray) -> int:
        """Bits that the symbols take, without tables."""
        return int(self.lengths[np.ravel(symbols)].sum())

    def encode(self, symbols: np.ndarray) -> tuple[bytes, np.ndarray]:
        """The codes of `symbols` [N] one after the other, padded with zeros to a byte, and the bits of each chunk."""
        symbols = np.ascontiguousarray(symbols, np.int64).ravel()
        lengths = self.lengths[symbols]
        if symbols.size and lengths.min() == 0:
            raise ConfigError("a symbol has no code: it was not counted")
        parts = []
        for block in range(0, len(symbols), 1 << 18):
            codes, length = self.codes[symbols[block : block + (1 << 18)]], lengths[block : block + (1 << 18)]
            width = int(length.max())
            octets = (codes << (32 - length)).astype(">u4").view(np.uint8).reshape(-1, 4)
            spread = np.unpackbits(octets, axis=1, count=width)
            parts.append(spread[np.arange(width) < length[:, None]])
        stream = np.packbits(np.concatenate(parts)).tobytes() if parts else b""
        return stream, np.add.reduceat(lengths, np.arange(0, len(lengths), CHUNK)) if len(lengths) else lengths

    def decode(self, stream: bytes, chunks: np.ndarray | None, count: int) -> np.ndarray:
        """The `count` >= 1 symbols of `encode`; `chunks` may be None for a single one, which ends in the last byte.

        Raises `CheckpointError` unless every chunk ends where it says.
        """
        lanes = -(-count // CHUNK)
        ends = np.array([8 * len(stream)]) if chunks is None else np.cumsum(chunks)
        if len(ends) != lanes or bits.packed_bytes(int(ends[-1]), 1) != len(stream):
            raise CheckpointError(f"a Huffman stream of {len(stream)} bytes does not fit its {len(ends)} chunks")
        starts = np.zeros(1, np.int64) if chunks is None else ends - chunks
        found, reached = self._run(stream, starts, count)
        good = 0 <= ends[0] - reached[0] < 8 if chunks is None else np.array_equal(reached, ends)
        if not good or (stream and stream[-1] & ((1 << (8 * len(stream) - int(reached[-1]))) - 1)):
            raise CheckpointError("a Huffman chunk does not end where it says; the file is damaged")
        return (found >> 5).T.reshape(-1)[:count].astype(np.int64)

    def _run(self, stream: bytes, starts: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """All lanes from their first bit on: entries `symbol * 32 + length` `[steps, L]`, and where each lane ends."""
        padded = np.frombuffer(stream + bytes(CHUNK * MAX_LENGTH // 8 + 8), np.uint8).astype(np.uint32)
        windows = (padded[:-3] << 24) | (padded[1:-2] << 16) | (padded[2:-1] << 8) | padded[3:]
        lanes, last, position = len(starts), count - CHUNK * (len(starts) - 1), starts.astype(np.int64)
        found = np.zeros((min(count, CHUNK), lanes), np.uint32)
        byte, bit = np.empty_like(position), np.empty(lanes, np.uint32)
        for step in range(len(found)):
            live = lanes - (step >= last)  # the ragged last lane ends first
            at, row = position[:live], found[step, :live]
            np.right_shift(at, 3, out=byte[:live])
            np.bitwise_and(at, 7, out=bit[:live], casting="unsafe")
            window = windows.take(byte[:live])
            np.left_shift(window, bit[:live], out=window)
            self._lookup(window, row)
            at += row & 31
        return found, position

    def _lookup(self, window: np.ndarray, out: np.ndarray) -> None:
        """`symbol * 32 + length` of the code that each 32-bit window begins with."""
        if self._table is None:
            self._table = self._bisect(np.arange(1 << TABLE_BITS, dtype=np.int64) << (MAX_LENGTH - TABLE_BITS))
        np.take(self._table, window >> (32 - TABLE_BITS), out=out, mode="clip")
        if self._longest > TABLE_BITS:
            long = (out & 31) > TABLE_BITS
            if long.any():
                out[long] = self._bisect(window[long].astype(np.int64) >> (32 - MAX_LENGTH))

    def _bisect(self, prefix: np.ndarray) -> np.ndarray:
        symbol = self._order[np.searchsorted(self._starts, prefix, side="right") - 1]
        return ((symbol << 5) | self.lengths[symbol]).astype(np.uint32)


def pack(symbols: np.ndarray, alphabet: int) -> bytes:
    """A self-contained stream of symbols `[N]` below `alphabet`: code lengths, chunk lengths, codes. Empty for N = 0."""
    symbols = np.ravel(symbols)
    if not symbols.size:
        return b""
    codec = HuffmanCodec.of(symbols, alphabet)
    width = int(codec.lengths.max()).bit_length()
    stream, chunks = codec.encode(symbols)
    out = [bytes([width]), bits.pack(codec.lengths, width)]
    if len(chunks) > 1:
        base = int(chunks.min())
        spread = max(1, int(chunks.max() - base).bit_length())
        out += [_BASE.pack(base, spread), bits.pack(chunks - base, spread)]
    return b"".join([*out, stream])


def unpack(payload: bytes, alphabet: int, count: int) -> np.ndarray:
    """The symbols (int64 `[count]`) that `pack` wrote. Raises `CheckpointError` for anything else; memory stays within
    a fixed multiple of the payload and the alphabet.
    """
    if not count:
        if payload:
            raise CheckpointError("an empty Huffman stream holds bytes; the file is damaged")
        return np.zeros(0, np.int64)
    if count > 8 * len(payload):
        raise CheckpointError(f"{count} symbols cannot be coded in {len(payload)} bytes; the file is damaged")
    width, rest = _cut(payload, 1)
    if not 1 <= width[0] <= 5:
        raise CheckpointError(f"code lengths of {width[0]} bits are not possible; the file is damaged")
    table, rest = _cut(rest, bits.packed_bytes(alphabet, width[0]))
    codec = HuffmanCodec(bits.unpack(table, alphabet, width[0]))
    lanes = -(-count // CHUNK)
    if lanes == 1:
        return codec.decode(rest, None, count)
    head, rest = _cut(rest, _BASE.size)
    base, spread = _BASE.unpack(head)
    if not 1 <= spread <= 16:
        raise CheckpointError(f"chunk lengths of {spread} bits are not possible; the file is damaged")
    lengths, rest = _cut(rest, bits.packed_bytes(lanes, spread))
    return codec.decode(rest, bits.unpack(lengths, lanes, spread) + base, count)


def _cut(payload: bytes, size: int) -> tuple[bytes, bytes]:
    if size > len(payload):
        raise CheckpointError(f"a Huffman stream is truncated: {size} bytes of {len(payload)} are left")
    return payload[:size], payload[size:]
