"""Range asymmetric numeral systems: an entropy coder that is a stack (Duda 2013, arXiv 1311.2540).

A symbol of frequency f out of 2^p costs p - log2 f bits: coding pushes it onto one 64-bit number, decoding pops it.
When the number outgrows its interval [2^31, 2^63), its low 32 bits move to a list of words.

    push:  s' = (s // f) 2^p + start + s mod f
    pop:   c = s mod 2^p,  s' = f (s // 2^p) + c - start       where start <= c < start + f names the symbol

`lanes` such numbers share one list, and numpy moves them together. What was pushed last is popped first, so an encoder
runs backwards; popping symbols that nobody pushed reads the bits below as random ones, which is how bits-back coding
spends them (Townsend et al. 2019, arXiv 1901.04866).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cambrian.errors import ConfigError, DataError, ShapeError

LOW = 1 << 31  # a lane's number lies in [LOW, LOW 2^32)
WORD_BITS = 32
MAX_PRECISION = 28
MAX_LANES = 1 << 20


class Stack:
    """Coded symbols, one number a lane. `seed_words` (uint32, at least one a lane) are random bits below everything:
    bits-back coding needs them to begin, and gets them back. The last ones fill the lanes' numbers (31 bits of each
    word), because what is popped first comes from there.

    Each call takes one symbol a lane for the first `n` lanes: arrays `[n]`, n <= lanes. `precision` (bits of the
    frequencies' total) may differ from call to call. A pop must mirror its push: same n, same precision.
    """

    def __init__(self, lanes: int = 1, precision: int = 16, seed_words: Any | None = None) -> None:
        if not 1 <= lanes <= MAX_LANES:
            raise ConfigError(f"a stack has 1 to {MAX_LANES} lanes, not {lanes}")
        self.lanes, self.precision = lanes, _checked_precision(precision)
        self.heads = np.full(lanes, LOW, np.uint64)
        words = np.zeros(0, np.uint32) if seed_words is None else np.array(seed_words, dtype=np.uint32).ravel()
        if seed_words is not None:
            if len(words) < lanes:
                raise ConfigError(f"{lanes} lanes need as many seed words, not {len(words)}")
            words, last = words[: len(words) - lanes], words[len(words) - lanes :]
            self.heads |= last.astype(np.uint64) >> np.uint64(1)
        self._words, self._count = words, len(words)
        self._lowest = len(words)

    # -- one symbol a lane -------------------------------------------------------------------------------------------

    def push(self, start: Any, freq: Any, precision: int | None = None) -> None:
        """Code symbols that occupy `[start, start + freq)` of `[0, 2^precision)`; both integers `[n]`."""
        bits = self.precision if precision is None else _checked_precision(precision)
        start, freq = self._intervals(start, freq, bits)
        head = self.heads[: len(start)]
        full = head >= freq << np.uint64(63 - bits)
        if full.any():
            self._write(head[full])
            head = np.where(full, head >> np.uint64(WORD_BITS), head)
        quotient, rest = np.divmod(head, freq)
        self.heads[: len(start)] = (quotient << np.uint64(bits)) + rest + start

    def peek(self, count: int | None = None, precision: int | None = None) -> np.ndarray:
        """The cumulative values `[n]` (int64) of the symbols on top of the first `count` lanes (default: of all)."""
        bits = self.precision if precision is None else _checked_precision(precision)
        lanes = self.lanes if count is None else count
        if not 0 <= lanes <= self.lanes:
            raise ShapeError(f"a stack of {self.lanes} lanes cannot show {lanes} symbols at once")
        return (self.heads[:lanes] & np.uint64((1 << bits) - 1)).astype(np.int64)

    def pop(self, start: Any, freq: Any, precision: int | None = None) -> None:
        """Remove the symbols whose intervals hold what `peek` showed. Raises `DataError` when they do not, or when the
        stack runs out: the data is damaged, or a bits-back coder needs more `seed_words`.
        """
        bits = self.precision if precision is None else _checked_precision(precision)
        start, freq = self._intervals(start, freq, bits)
        head = self.heads[: len(start)]
        value = head & np.uint64((1 << bits) - 1)
        if ((value < start) | (value >= start + freq)).any():
            raise DataError("a coded symbol lies outside its interval; the data is damaged or the model another one")
        head = freq * (head >> np.uint64(bits)) + value - start
        short = head < LOW
        if short.any():
            head[short] = (head[short] << np.uint64(WORD_BITS)) | self._read(int(short.sum()))
        self.heads[: len(start)] = head

    # -- many symbols ------------------------------------------------------------------------------------------------

    def push_symbols(self, symbols: Any, cumulative: Any, precision: int | None = None) -> None:
        """Code `symbols [N]` under tables `cumulative [S + 1]` (one for all) or `[N, S + 1]`, lane by lane."""
        symbols, tables = np.asarray(symbols, np.int64).ravel(), np.asarray(cumulative, np.int64)
        if symbols.size and not (symbols.min() >= 0 and symbols.max() < tables.shape[-1] - 1):
            raise DataError(f"symbols must lie in 0..{tables.shape[-1] - 2}, not {symbols.min()}..{symbols.max()}")
        _check_tables(tables, len(symbols))
        rows = () if tables.ndim == 1 else (np.arange(len(symbols)),)
        start = tables[(*rows, symbols)]
        freq = tables[(*rows, symbols + 1)] - start
        for at in range(0, len(symbols), self.lanes):
            self.push(start[at : at + self.lanes], freq[at : at + self.lanes], precision)

    def pop_symbols(self, count: int, cumulative: Any, precision: int | None = None) -> np.ndarray:
        """The `count` symbols (int64) that `push_symbols` coded, in their order."""
        tables = np.asarray(cumulative, np.int64)
        _check_tables(tables, count)
        symbols = np.empty(count, np.int64)
        for at in reversed(range(0, count, self.lanes)):
            part = slice(at, min(at + self.lanes, count))
            mine = tables if tables.ndim == 1 else tables[part]
            symbols[part] = self._pop_under(part.stop - at, mine, precision)
        return symbols

    def _pop_under(self, count: int, tables: np.ndarray, precision: int | None) -> np.ndarray:
        value = self.peek(count, precision)
        if tables.ndim == 1:
            symbols = np.searchsorted(tables, value, side="right") - 1
            rows: tuple[np.ndarray, ...] = ()
        else:
            symbols = (tables <= value[:, None]).sum(1) - 1
            rows = (np.arange(count),)
        symbols = symbols.clip(0, tables.shape[-1] - 2)  # a value beyond the table is refused by pop
        start = tables[(*rows, symbols)]
        self.pop(start, tables[(*rows, symbols + 1)] - start, precision)
        return symbols

    # -- state -------------------------------------------------------------------------------------------------------

    @property
    def words(self) -> np.ndarray:
        """The words (uint32) below the lanes' numbers, oldest first: a copy."""
        return self._words[: self._count].copy()

    def is_empty(self) -> bool:
        """Whether everything pushed was popped and no seed words remain. 31 bits a lane check this after decoding."""
        return self._count == 0 and bool((self.heads == LOW).all())

    def equals(self, other: Stack) -> bool:
        """Whether both hold the same: after decoding, that the seed words came back."""
        return np.array_equal(self.heads, other.heads) and np.array_equal(self.words, other.words)

    def trim(self) -> int:
        """Drop the seed words that were never read, and say how many they were."""
        unread = min(self._lowest, self._count)
        self._words, self._count = self._words[unread : self._count].copy(), self._count - unread
        self._lowest = 0
        return unread

    def bits(self) -> int:
        """Size of `to_bytes()` in bits."""
        return 8 * len(self.to_bytes())

    def information(self) -> float:
        """Bits that the content is worth: 32 a word and log2(number / 2^31) a lane; a real size is above it by what the
        numbers' start and their rounding to bytes cost, at most 8 bytes a lane and the two or three of the prefix.
        """
        return WORD_BITS * self._count + float(np.log2(self.heads.astype(np.float64) / LOW).sum())

    def copy(self) -> Stack:
        """An independent stack with the same content."""
        other = Stack(self.lanes, self.precision)
        other.heads, other._words, other._count = self.heads.copy(), self.words, self._count
        other._lowest = self._lowest
        return other

    def to_bytes(self) -> bytes:
        """A prefix (lanes and precision as one variable-length number), the words, the lanes' numbers (little-endian)
        without the last one's zeros.
        """
        body = self.words.astype("<u4").tobytes() + self.heads.astype("<u8").tobytes()
        return _varint((self.lanes << 5) | self.precision) + body.rstrip(b"\0")

    @classmethod
    def from_bytes(cls, data: bytes) -> Stack:
        """What `to_bytes` wrote. Raises `DataError` for data that it cannot have written."""
        code, size = _read_varint(data)
        lanes, precision = code >> 5, code & 31
        if not (1 <= lanes <= MAX_LANES and 1 <= precision <= MAX_PRECISION):
            raise DataError(f"coded data claims {lanes} lanes of precision {precision}; it is damaged")
        body = data[size:]
        if not body or body[-1] == 0:
            raise DataError("coded data is truncated, or zeros follow it")
        # the last number has 4 to 8 bytes without its zeros; a multiple of 4 that ends in a byte above 127 has only 4
        body += b"\0" * (-len(body) % 4 if len(body) % 4 or body[-1] < 128 else 4)
        words = (len(body) - 8 * lanes) // 4
        if words < 0:
            raise DataError(f"coded data of {lanes} lanes is truncated at {len(data)} bytes")
        found = cls(lanes, precision)
        found._words = np.frombuffer(body, "<u4", words).astype(np.uint32)
        found._count = found._lowest = words
        found.heads = np.frombuffer(body, "<u8", lanes, 4 * words).astype(np.uint64)
        if ((found.heads < LOW) | (found.heads >= LOW << WORD_BITS)).any():
            raise DataError("coded data holds a number outside its interval; it is damaged")
        return found

    # -- words -------------------------------------------------------------------------------------------------------

    def _write(self, head: np.ndarray) -> None:
        end = self._count + len(head)
        if end > len(self._words):
            self._words = np.concatenate((self._words, np.empty(max(end, 64), np.uint32)))
        self._words[self._count : end] = head.astype(np.uint32)  # keeps the low 32 bits
        self._count = end

    def _read(self, count: int) -> np.ndarray:
        if count > self._count:
            raise DataError("the coded data ends too early: it is damaged, or was given too few seed words")
        self._count -= count
        self._lowest = min(self._lowest, self._count)
        return self._words[self._count : self._count + count].astype(np.uint64)

    def _intervals(self, start: Any, freq: Any, bits: int) -> tuple[np.ndarray, np.ndarray]:
        start, freq = np.asarray(start), np.asarray(freq)
        if start.shape != freq.shape or start.ndim != 1 or len(start) > self.lanes:
            raise ShapeError(f"start {start.shape} and freq {freq.shape} must be equal and at most [{self.lanes}]")
        if start.dtype.kind not in "iu" or freq.dtype.kind not in "iu":
            raise ShapeError(f"start and freq must be integers, not {start.dtype} and {freq.dtype}")
        if start.size and (start.min() < 0 or freq.min() < 1 or (start + freq).max() > 1 << bits):
            raise DataError(f"intervals must be non-empty and lie within 0..2^{bits}")
        return start.astype(np.uint64), freq.astype(np.uint64)


def _checked_precision(precision: int) -> int:
    if not 1 <= precision <= MAX_PRECISION:
        raise ConfigError(f"precision must be 1 to {MAX_PRECISION} bits, not {precision}")
    return precision


def _check_tables(tables: np.ndarray, count: int) -> None:
    if tables.ndim not in (1, 2) or tables.shape[-1] < 2 or (tables.ndim == 2 and len(tables) != count):
        raise ShapeError(f"cumulative tables must be [S + 1] or [{count}, S + 1], not {tables.shape}")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _read_varint(data: bytes) -> tuple[int, int]:
    number = 0
    for i, octet in enumerate(data[:5]):
        number |= (octet & 127) << (7 * i)
        if octet < 128:
            return number, i + 1
    raise DataError(f"coded data of {len(data)} bytes has no readable prefix")
