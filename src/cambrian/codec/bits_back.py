"""Bits-back coding with a stack coder (Townsend, Bird, Barber 2019, arXiv 1901.04866): a latent-variable model codes at
the cost of its own bound, because the bits that choose the latents are taken from the message and are got back.

    encode:  pop z under q(z | x),  push x under p(x | z),  push z under p(z)
    decode:  pop z under p(z),      pop x under p(x | z),   push z back under q(z | x)

A continuous latent is one of `2^bits` buckets that hold equal mass under its prior, so the prior is coded exactly and
the posterior as the mass of its bucket. Nothing here knows the model: parameters come in, whole numbers go out.

Shapes: N symbols of one call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from cambrian.codec.frequencies import start_of
from cambrian.codec.rans import Stack
from cambrian.errors import ConfigError, DataError

Cdf = Callable[[np.ndarray, slice], np.ndarray]
"""`cdf(symbol [n], part)`: P(below symbol) of the symbols at the positions `part`, float64 [n]."""


def push_cdf(stack: Stack, symbols: np.ndarray, cdf: Cdf, count: int, precision: int) -> None:
    """Code `symbols [N]` in 0..count-1 by a distribution function in closed form, lane by lane."""
    symbols = np.asarray(symbols, np.int64)
    if symbols.size and not (symbols.min() >= 0 and symbols.max() < count):
        raise DataError(f"symbols must lie in 0..{count - 1}, not {symbols.min()}..{symbols.max()}")
    everything = slice(0, len(symbols))
    start = start_of(cdf(symbols, everything), symbols, count, precision)
    freq = start_of(cdf(symbols + 1, everything), symbols + 1, count, precision) - start
    for at in range(0, len(symbols), stack.lanes):
        stack.push(start[at : at + stack.lanes], freq[at : at + stack.lanes], precision)


def pop_cdf(stack: Stack, length: int, cdf: Cdf, count: int, precision: int) -> np.ndarray:
    """The `length` symbols that `push_cdf` coded (or that the bits below choose), found by bisection."""
    symbols = np.empty(length, np.int64)
    for at in reversed(range(0, length, stack.lanes)):
        part = slice(at, min(at + stack.lanes, length))
        value = stack.peek(part.stop - at, precision)
        low, high = np.zeros(part.stop - at, np.int64), np.full(part.stop - at, count, np.int64)
        start, end = np.zeros_like(low), np.full_like(low, 1 << precision)
        while (high - low > 1).any():  # start_of(low) <= value < start_of(high)
            middle = (low + high) // 2
            at_middle = start_of(cdf(middle, part), middle, count, precision)
            right = at_middle <= value
            low, start = np.where(right, middle, low), np.where(right, at_middle, start)
            high, end = np.where(right, high, middle), np.where(right, end, at_middle)
        stack.pop(start, end - start, precision)
        symbols[part] = low
    return symbols


@lru_cache(maxsize=4)
def _quantiles(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard normal quantiles: the bucket's edges `[2^bits + 1]` (infinite at the ends) and middles `[2^bits]`."""
    at = torch.arange(2 ** (bits + 1) + 1, dtype=torch.float64) / 2 ** (bits + 1)
    values = torch.special.ndtri(at).numpy()
    return values[::2].copy(), values[1::2].copy()


@dataclass(frozen=True)
class Buckets:
    """`2^bits` buckets of equal prior mass a latent; posterior masses have `precision` bits (the difference keeps the
    least mass that a bucket needs for being codable next to free).
    """

    bits: int = 12
    precision: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= self.precision - 4:
            raise ConfigError(f"{self.bits} bits of buckets need 4 more of precision, not {self.precision}")

    @property
    def count(self) -> int:
        return 1 << self.bits

    def standard(self, bucket: np.ndarray) -> np.ndarray:
        """The median of each bucket under N(0, 1) [N]; the latent is prior mean + prior std times this."""
        return _quantiles(self.bits)[1][bucket]

    def _cdf(self, posterior: tuple[np.ndarray, np.ndarray], prior: tuple[np.ndarray, np.ndarray]) -> Cdf:
        edges, (mean, std), (prior_mean, prior_std) = _quantiles(self.bits)[0], posterior, prior

        def cdf(symbol: np.ndarray, part: slice) -> np.ndarray:
            edge = (prior_mean[part] + prior_std[part] * edges[symbol] - mean[part]) / std[part]
            return torch.special.ndtr(torch.from_numpy(edge)).numpy()

        return cdf

    def pop_posterior(self, stack: Stack, posterior: Any, prior: Any) -> np.ndarray:
        """Buckets [N] drawn by the stack's bits from the normal `posterior` = (mean, std), both float64 [N]."""
        return pop_cdf(stack, len(prior[0]), self._cdf(posterior, prior), self.count, self.precision)

    def push_posterior(self, stack: Stack, bucket: np.ndarray, posterior: Any, prior: Any) -> None:
        """Give the bits back that `pop_posterior` took."""
        push_cdf(stack, bucket, self._cdf(posterior, prior), self.count, self.precision)

    def push_prior(self, stack: Stack, bucket: np.ndarray) -> None:
        """Code the buckets under their prior: `bits` bits each, exactly."""
        for at in range(0, len(bucket), stack.lanes):
            part = bucket[at : at + stack.lanes]
            stack.push(part, np.ones_like(part), self.bits)

    def pop_prior(self, stack: Stack, length: int) -> np.ndarray:
        """Undo `push_prior`."""
        bucket = np.empty(length, np.int64)
        for at in reversed(range(0, length, stack.lanes)):
            part = stack.peek(min(stack.lanes, length - at), self.bits)
            stack.pop(part, np.ones_like(part), self.bits)
            bucket[at : at + len(part)] = part
        return bucket
