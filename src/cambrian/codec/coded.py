"""How a `.cmb` file stores one tensor whose entries are few different values, or mostly zero.

- `fixed`: a palette of `k` values, then every weight as an index of ceil(log2 k) bits;
- `flagged`: a palette, one bit per weight (non-zero), then the non-zero weights as ceil(log2 (k-1)) bits each;
- `huffman`: a palette, then all indices in one Huffman stream;
- `sparse`: a palette without zero, a stream of position gaps, and a stream of indices, 0 for a filler, for every entry;
- `scattered`: a stream of position gaps, whose largest symbol is a filler, then the non-zero entries as they are.

A stream begins with a byte: 0 fixed-length codes, 1 Huffman. Every entry of a stream takes at least a bit and bridges
at most 256 positions, so that a tensor has at most 2,048 elements for each byte of its payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.codec import bits, huffman
from cambrian.codec.delta_index import MAX_GAP_BITS, DeltaIndex
from cambrian.errors import CheckpointError

Entry = dict[str, Any]
FIELDS: dict[str, tuple[str, ...]] = {
    "raw": (), "fixed": ("symbols",), "flagged": ("symbols",), "huffman": ("symbols",),
    "sparse": ("symbols", "gap", "entries", "split"), "scattered": ("gap", "entries", "split"),
}  # fmt: skip
"""The whole numbers that the header gives for each kind, beside shape and bytes."""


@dataclass(frozen=True)
class Palette:
    """A tensor whose entries are few different values: `index` (int64, the tensor's shape) into `values [k]`.

    `kinds` are the ways of storing it that may be used; the shortest is.
    """

    index: Tensor
    values: Tensor
    kinds: tuple[str, ...] = ("fixed", "flagged")

    @classmethod
    def of(cls, dense: Tensor, values: Tensor, kinds: tuple[str, ...] = ("fixed", "flagged")) -> Palette:
        """Find every entry of `dense` in the ascending `values`; `ValueError` when one is not there."""
        return cls(_find(dense.detach(), values), values.to(dense.dtype), kinds)

    def dense(self) -> Tensor:
        return self.values[self.index]

    def encode(self) -> tuple[Entry, bytes]:
        """What the header says of the tensor, and its payload."""
        values, index = self.values.detach().cpu().contiguous(), self.index.cpu().numpy().ravel()
        found = {kind: stream for kind in self.kinds if (stream := _WRITERS[kind](index, values)) is not None}
        best = min(found, key=lambda kind: len(found[kind]))
        entry = {"shape": list(self.index.shape), "kind": best, "symbols": len(values)}
        return entry, to_bytes(values) + found[best]


@dataclass(frozen=True)
class Sparse:
    """A tensor that is mostly zero: `values [k]` are the different non-zero ones, ascending, or None to store the
    non-zero entries as they are.

    `gap_bits` is the field of a position gap (1 to 8; 0: whatever makes the shortest file); `huffman` False stores all
    streams in fixed-length codes.
    """

    tensor: Tensor
    values: Tensor | None = None
    gap_bits: int = 0
    huffman: bool = True

    def dense(self) -> Tensor:
        return self.tensor

    def encode(self) -> tuple[Entry, bytes]:
        """What the header says of the tensor, and its payload."""
        choices = [self.gap_bits] if self.gap_bits else range(1, MAX_GAP_BITS + 1)
        return min((self._encode(gap) for gap in choices), key=lambda made: len(made[1]))

    def _encode(self, gap: int) -> tuple[Entry, bytes]:
        dense = self.tensor.detach().cpu().contiguous()
        mask = (dense != 0) | torch.signbit(dense)
        gaps, present = DeltaIndex(gap).encode(mask.numpy())
        entry = {"shape": list(dense.shape), "kind": "scattered", "gap": gap, "entries": len(gaps)}
        if self.values is None:
            first = write_stream(np.where(present, gaps, 1 << gap), (1 << gap) + 1, self.huffman)
            return {**entry, "split": len(first)}, first + to_bytes(dense[mask])
        values = self.values.detach().cpu().to(dense.dtype)
        symbols = np.zeros(len(gaps), np.int64)
        symbols[present] = _find(dense[mask], values).numpy() + 1
        first = write_stream(gaps, 1 << gap, self.huffman)
        second = write_stream(symbols, len(values) + 1, self.huffman)
        entry |= {"kind": "sparse", "symbols": len(values), "split": len(first)}
        return entry, to_bytes(values) + first + second


def _find(dense: Tensor, values: Tensor) -> Tensor:
    values = values.to(dense.dtype)
    index = torch.searchsorted(values, dense.contiguous()).clamp_max(max(len(values) - 1, 0))
    if dense.numel() and not (len(values) and torch.equal(values[index], dense)):
        raise ValueError("the tensor holds values that are not in the palette")
    return index


# -- writing -------------------------------------------------------------------------------------------------------------


def write_stream(symbols: np.ndarray, alphabet: int, coded: bool = True) -> bytes:
    """Symbols below `alphabet` in the shorter of both codes; without `coded` in the fixed-length one."""
    plain = b"\0" + bits.pack(symbols, bits.width(alphabet))
    packed = b"\1" + huffman.pack(symbols, alphabet) if coded and len(symbols) else plain
    return min(plain, packed, key=len)


def _write_flagged(index: np.ndarray, values: Tensor) -> bytes | None:
    zeros = (values == 0).nonzero()
    if not len(zeros) or len(values) < 2:
        return None
    zero = int(zeros[0])
    present = index != zero
    kept = index[present]
    return np.packbits(present).tobytes() + bits.pack(kept - (kept > zero), bits.width(len(values) - 1))


_WRITERS = {
    "fixed": lambda index, values: bits.pack(index, bits.width(len(values))),
    "flagged": _write_flagged,
    "huffman": lambda index, values: huffman.pack(index, len(values)),
}


# -- reading -------------------------------------------------------------------------------------------------------------


def read(entry: Entry, dtype: torch.dtype, part: bytes) -> Tensor:
    """The tensor of a checked header entry and its payload. Raises `CheckpointError` when they do not fit."""
    count, kind = prod(entry["shape"]), entry["kind"]
    if kind == "raw":
        if count * dtype.itemsize != len(part):
            raise CheckpointError(f"shape {entry['shape']} but {len(part)} bytes")
        return from_bytes(part, dtype).reshape(entry["shape"])
    if kind == "scattered":
        return _read_scattered(entry, dtype, part, count)
    symbols = entry["symbols"]
    lowest = 0 if kind == "sparse" else 1
    if not lowest <= symbols * dtype.itemsize <= len(part) or symbols < lowest:
        raise CheckpointError(f"a palette of {symbols} values in {len(part)} bytes")
    values, stream = from_bytes(part[: symbols * dtype.itemsize], dtype), part[symbols * dtype.itemsize :]
    if kind == "sparse":
        return _read_sparse(entry, values, stream, count)
    index = _READERS[kind](stream, values, count)
    if count and int(index.max()) >= symbols:
        raise CheckpointError(f"index {int(index.max())} of a palette of {symbols}")
    return values[torch.from_numpy(index)].reshape(entry["shape"])


def read_stream(payload: bytes, alphabet: int, count: int) -> np.ndarray:
    """The symbols that `write_stream` wrote; every one is below `alphabet`."""
    if not payload or payload[0] > 1:
        raise CheckpointError("a stream has no known code; the file is damaged")
    if payload[0]:
        return huffman.unpack(payload[1:], alphabet, count)
    found = bits.unpack(payload[1:], count, bits.width(alphabet))
    if count and int(found.max()) >= alphabet:
        raise CheckpointError(f"symbol {int(found.max())} of an alphabet of {alphabet}")
    return found


def _read_flagged(stream: bytes, values: Tensor, count: int) -> np.ndarray:
    zeros = (values == 0).nonzero()
    flags = bits.packed_bytes(count, 1)
    if not len(zeros) or len(values) < 2 or len(stream) < flags:
        raise CheckpointError("flagged for zeros but there is none in the palette, or the stream is short")
    zero = int(zeros[0])
    present = bits.unpack(stream[:flags], count, 1).astype(bool)
    kept = bits.unpack(stream[flags:], int(present.sum()), bits.width(len(values) - 1))
    index = np.full(count, zero, np.int64)
    index[present] = kept + (kept >= zero)
    return index


_READERS = {
    "fixed": lambda stream, values, count: bits.unpack(stream, count, bits.width(len(values))),
    "flagged": _read_flagged,
    "huffman": lambda stream, values, count: huffman.unpack(stream, len(values), count),
}


def _halves(entry: Entry, stream: bytes) -> tuple[bytes, bytes, DeltaIndex]:
    if not 1 <= entry["gap"] <= MAX_GAP_BITS or entry["split"] > len(stream) or entry["entries"] > 8 * len(stream):
        raise CheckpointError(f"{entry['entries']} entries with gaps of {entry['gap']} bits in {len(stream)} bytes")
    return stream[: entry["split"]], stream[entry["split"] :], DeltaIndex(entry["gap"])


def _read_sparse(entry: Entry, values: Tensor, stream: bytes, count: int) -> Tensor:
    first, second, index = _halves(entry, stream)
    gaps = read_stream(first, index.span, entry["entries"])
    symbols = read_stream(second, len(values) + 1, entry["entries"])
    where = torch.from_numpy(index.decode(gaps, symbols > 0, count))  # before anything of `count` entries is made
    dense = torch.zeros(count, dtype=values.dtype)
    dense[where] = values[torch.from_numpy(symbols[symbols > 0] - 1)]
    return dense.reshape(entry["shape"])


def _read_scattered(entry: Entry, dtype: torch.dtype, part: bytes, count: int) -> Tensor:
    first, second, index = _halves(entry, part)
    gaps = read_stream(first, index.span + 1, entry["entries"])
    present = gaps < index.span
    if int(present.sum()) * dtype.itemsize != len(second):
        raise CheckpointError(f"{int(present.sum())} non-zero entries in {len(second)} bytes")
    where = torch.from_numpy(index.decode(np.minimum(gaps, index.span - 1), present, count))
    dense = torch.zeros(count, dtype=dtype)
    dense[where] = from_bytes(second, dtype)
    return dense.reshape(entry["shape"])


def to_bytes(tensor: Tensor) -> bytes:
    """The bytes of a contiguous CPU tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def from_bytes(payload: bytes, dtype: torch.dtype) -> Tensor:
    """A flat tensor that owns a copy of these bytes, whose number is a multiple of the item's."""
    if not payload:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(payload), dtype=torch.uint8).view(dtype)
