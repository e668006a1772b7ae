"""Relative-entropy coding: send a draw from q, known to the sender only, to somebody who knows p, in about KL(q || p)
bits.

Both sides can make the same K candidates from p; the sender picks one with probability proportional to q / p and sends
its number (Havasi et al. 2019, arXiv 1810.00440). K must be about e^KL, so latents are sent in blocks of some ten bits:

    K = 2^c,  c = the least of 0, 2, 5, 8, 11, 14, 17 that is not below KL in bits;    cost: c + the code of c

The steps of 3 leave 1.5 spare bits on average, and take two bits less to code than every c would; with K = 2^KL the
draws have about 1.1 times the variance of q. A block whose KL exceeds `SPLIT` bits for this picture is halved, which
takes a class of its own. The class is coded adaptively. Candidates come from a counter-based generator (Philox), so
the receiver makes the chosen one only.

Shapes: D latents of a block, K candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch

from cambrian.codec import frequencies
from cambrian.codec.rans import Stack
from cambrian.errors import ConfigError, DataError, ShapeError

SPLIT = 14.0  # bits
WIDTHS = (0, 2, 5, 8, 11, 14, 17)  # bits of an index, the last for a single latent beyond SPLIT
HALVED = len(WIDTHS)  # the class of a halved block
CLASS_BITS = 12
NOTHING = 0.05  # bits below which a block is one draw from the prior
_PER_COUNTER = 16  # numbers of 16 bits in one counter value of Philox

Normal = tuple[np.ndarray, np.ndarray]


@lru_cache(maxsize=1)
def _table() -> np.ndarray:
    """2^16 standard normal quantiles, float32: a candidate is a table entry, so that it is the same everywhere."""
    at = (torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16)
    return torch.special.ndtri(at).float().numpy()


def candidates(key: tuple[int, int], first: int, count: int, size: int) -> np.ndarray:
    """Candidates `first` to `first + count - 1` of the stream `key`: standard normal float32 [count, size]."""
    counters = -(-size // _PER_COUNTER)
    source = np.random.Philox(key=np.array(key, np.uint64), counter=np.array([first * counters, 0, 0, 0], np.uint64))
    words = source.random_raw(4 * counters * count).astype("<u8").view("<u2").reshape(count, -1)
    return _table()[words[:, :size]]


def divergence(q: Normal, p: Normal) -> float:
    """KL(q || p) in bits of independent normals given as (mean, std), both [D]."""
    ratio = q[1] / p[1]
    terms = 0.5 * (ratio**2 + ((q[0] - p[0]) / p[1]) ** 2 - 1) - np.log(ratio)
    return float(terms.sum()) / math.log(2)


class Classes:
    """Adaptive frequencies of the WIDTHS and of HALVED; both sides count along. At first the classes near that of
    a block of `expected` bits are the likely ones.
    """

    def __init__(self, expected: float) -> None:
        distance = np.abs(np.array([*WIDTHS, SPLIT + 3.0]) - (expected + 1.5))
        self.counts = np.exp(-distance / 2.5) + 0.02

    def cumulative(self) -> np.ndarray:
        return frequencies.cumulative(self.counts, CLASS_BITS)

    def seen(self, symbol: int) -> None:
        self.counts[symbol] += 1.0
        if self.counts.sum() > 400:  # forget slowly
            self.counts *= 0.5


@dataclass
class Sender:
    """Codes blocks one after the other; the draws come from `rng`, which the receiver does not need."""

    rng: np.random.Generator
    classes: dict[int, Classes] = field(default_factory=dict[int, Classes])
    symbols: list[tuple[int, int, int]] = field(default_factory=list[tuple[int, int, int]])  # start, frequency, bits

    def send(self, q: Normal, p: Normal, key: tuple[int, int], context: int = 0, expected: float = 10.0) -> np.ndarray:
        """A draw from q in units of p, float64 [D]: (z - mean) / std. `context` chooses the adaptive model of c,
        `expected` bits where it starts.
        """
        if not (q[0].shape == q[1].shape == p[0].shape == p[1].shape) or q[0].ndim != 1 or not len(q[0]):
            raise ShapeError(f"a block needs four equal vectors, not {[a.shape for a in (*q, *p)]}")
        bits = divergence(q, p)
        if not math.isfinite(bits):
            raise DataError("a block's divergence is not finite; the model's outputs are broken")
        if bits > SPLIT and len(q[0]) > 1:
            self._class(HALVED, context, expected)
            half = len(q[0]) // 2
            parts = []
            for part, name in ((slice(0, half), 1), (slice(half, None), 2)):
                mine = (q[0][part], q[1][part]), (p[0][part], p[1][part])
                parts.append(self.send(*mine, child(key, name), context, expected))
            return np.concatenate(parts)
        number = 0 if bits < NOTHING else next((i for i, w in enumerate(WIDTHS) if w >= bits), HALVED - 1)
        width = WIDTHS[number]
        drawn = candidates(key, 0, 1 << width, len(q[0]))
        weights = log_weights(drawn, q, p)
        index = int((weights + self.rng.gumbel(size=len(weights))).argmax())
        self._class(number, context, expected)
        if width:
            self.symbols.append((index, 1, width))
        return drawn[index].astype(np.float64)

    def _class(self, symbol: int, context: int, expected: float) -> None:
        model = self.classes.setdefault(context, Classes(expected))
        table = model.cumulative()
        self.symbols.append((int(table[symbol]), int(table[symbol + 1] - table[symbol]), CLASS_BITS))
        model.seen(symbol)


@dataclass
class Receiver:
    """Reads what `Sender` wrote from a stack that `push_all` made."""

    stack: Stack
    classes: dict[int, Classes] = field(default_factory=dict[int, Classes])

    def receive(self, size: int, key: tuple[int, int], context: int = 0, expected: float = 10.0) -> np.ndarray:
        """The draw that the sender chose, float64 [D]. Raises `DataError` when the stream ends or cannot be right."""
        model = self.classes.setdefault(context, Classes(expected))
        symbol = int(self.stack.pop_symbols(1, model.cumulative(), CLASS_BITS)[0])
        model.seen(symbol)
        if symbol == HALVED:
            if size < 2:
                raise DataError("the stream halves a single latent; the data is damaged or the model another one")
            half = size // 2
            parts = [self.receive(n, child(key, name), context, expected) for n, name in ((half, 1), (size - half, 2))]
            return np.concatenate(parts)
        index, width = 0, WIDTHS[symbol]
        if width:
            index = int(self.stack.peek(1, width)[0])
            self.stack.pop(np.array([index]), np.array([1]), width)
        return candidates(key, index, 1, size)[0].astype(np.float64)


def log_weights(drawn: np.ndarray, q: Normal, p: Normal) -> np.ndarray:
    """log q / p of candidates [K, D] in units of p, up to a constant: a quadratic, so two matrix products; float64
    [K].
    """
    ratio, shift = p[1] / q[1], (p[0] - q[0]) / q[1]
    squares = (0.5 - 0.5 * ratio**2).astype(np.float32)
    return (drawn * drawn @ squares).astype(np.float64) - drawn @ (ratio * shift).astype(np.float32)


def child(key: tuple[int, int], name: int) -> tuple[int, int]:
    """The key of half a block: the path of halvings in the second number's low bits."""
    return key[0], (key[1] & ~0xFFFF) | ((key[1] & 0xFFFF) * 2 + name & 0xFFFF)


def block_key(seed: int, picture: int, block: int) -> tuple[int, int]:
    """The stream of candidates of one block of one picture."""
    if not (0 <= seed < 1 << 32 and 0 <= picture < 1 << 32 and 0 <= block < 1 << 32):
        raise ConfigError(f"seed, picture and block must be below 2^32, not {seed}, {picture}, {block}")
    return seed << 32 | picture, block << 16


def cost(symbols: list[tuple[int, int, int]]) -> float:
    """Bits of coded symbols."""
    return sum(bits - math.log2(freq) for _, freq, bits in symbols)


def push_all(symbols: list[tuple[int, int, int]]) -> Stack:
    """A stack of one lane from which the symbols are popped in their order."""
    stack = Stack()
    for start, freq, bits in reversed(symbols):
        stack.push(np.array([start]), np.array([freq]), bits)
    return stack


def blocks(mean_bits: np.ndarray, target: float = 10.0) -> list[np.ndarray]:
    """Partition latents by what they cost on average, `mean_bits` [D]: dearest first, each block about `target` bits.
    Positions int64, every one in exactly one block; the same input gives the same blocks.
    """
    values = np.asarray(mean_bits, np.float64)
    if not np.isfinite(values).all() or not values.size:
        raise DataError("the mean cost of a latent must be finite")
    order = np.argsort(-values, kind="stable")
    spent = np.maximum(values[order], 0.0).cumsum()
    count = max(1, math.ceil(spent[-1] / (1.2 * target)))  # equal shares, none far above the target
    number = np.floor(spent / max(spent[-1], 1e-12) * count - 1e-9).clip(0, count - 1).astype(np.int64)
    return [order[number == n] for n in np.unique(number)]
