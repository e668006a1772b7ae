"""Bit packing: arrays of small whole numbers as dense bit streams (most significant bit first), vectorised."""

from __future__ import annotations

import numpy as np

from cambrian.errors import CheckpointError

MAX_BITS = 32


def width(count: int) -> int:
    """Bits of a fixed code for `count` symbols (at least 1)."""
    return max(1, (count - 1).bit_length())


def packed_bytes(numbers: int, bits: int) -> int:
    """Bytes that `numbers` codes of `bits` bits take, the last byte padded with zeros."""
    return (numbers * bits + 7) // 8


def pack(values: np.ndarray, bits: int) -> bytes:
    """Pack non-negative integers `[N]` below `2**bits`; `ValueError` when one does not fit."""
    values = np.ascontiguousarray(values, dtype=np.uint32).ravel()
    if not 1 <= bits <= MAX_BITS or (values.size and int(values.max()) >> bits):
        raise ValueError(f"values up to {values.max(initial=0)} do not fit {bits} bits")
    octets = values.astype(">u4").view(np.uint8).reshape(-1, 4)
    return np.packbits(np.unpackbits(octets, axis=1)[:, MAX_BITS - bits :]).tobytes()


def unpack(payload: bytes, count: int, bits: int) -> np.ndarray:
    """The `count` integers (int64) that `pack` wrote. Raises `CheckpointError` when the length or the padding is
    wrong.
    """
    if len(payload) != packed_bytes(count, bits):
        raise CheckpointError(f"a bit stream of {count} x {bits} bits has {len(payload)} bytes; the file is damaged")
    flat = np.unpackbits(np.frombuffer(payload, np.uint8))
    if flat[count * bits :].any():
        raise CheckpointError("a bit stream ends in padding that is not zero; the file is damaged")
    rows = np.zeros((count, MAX_BITS), np.uint8)
    rows[:, MAX_BITS - bits :] = flat[: count * bits].reshape(count, bits)
    return np.packbits(rows, axis=1).view(">u4").astype(np.int64).ravel()
