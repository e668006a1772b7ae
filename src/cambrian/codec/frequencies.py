"""From probabilities to the whole-number frequencies of an entropy coder, each at least 1 so that everything can be
coded.

The cumulative distribution C is rounded, not the probabilities:

    start_k = floor(C_k (2^p - S)) + k,   freq_k = start_{k+1} - start_k >= 1

so the frequencies sum to 2^p, and one symbol's interval needs C at its two ends only.

Shapes: `...` any, S symbols, p bits of precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cambrian.errors import ConfigError, DataError


def quantise(probabilities: Any, precision: int) -> np.ndarray:
    """Frequencies int64 `[..., S]` that sum to `2^precision`, every one at least 1, proportional to `probabilities
    [..., S]` (numpy array or CPU tensor; they need not sum to 1). Raises `DataError` for a negative or non-finite
    entry or a row that sums to 0, and `ConfigError` for more than `2^precision` symbols.
    """
    return np.diff(cumulative(probabilities, precision), axis=-1)


def cumulative(probabilities: Any, precision: int) -> np.ndarray:
    """The starts of `quantise`'s intervals and their end: int64 `[..., S + 1]`, from 0 to `2^precision`."""
    weights = np.asarray(probabilities, np.float64)
    if not weights.ndim or not weights.size:
        raise DataError(f"probabilities must be [..., S] with S >= 1, not {weights.shape}")
    sums = weights.cumsum(-1)
    if not (np.isfinite(sums).all() and (weights >= 0).all() and (sums[..., -1] > 0).all()):
        raise DataError("probabilities must be finite, not negative, and not all 0")
    inner = sums[..., :-1] / sums[..., -1:]
    ends = np.zeros((*weights.shape[:-1], 1))
    return starts(np.concatenate((ends, inner, ends + 1.0), -1), precision)


def starts(cdf: Any, precision: int) -> np.ndarray:
    """int64 `[..., S + 1]` from a cumulative distribution `[..., S + 1]` that rises from 0 to 1: see the module."""
    cdf = np.asarray(cdf, np.float64)
    return start_of(cdf, np.arange(cdf.shape[-1]), cdf.shape[-1] - 1, precision)


def start_of(cdf: Any, symbol: Any, symbols: int, precision: int) -> np.ndarray:
    """Where `symbol` (of `symbols`) begins, given the cumulative distribution below it: for models with a closed form,
    which need no table. Arrays broadcast; int64.
    """
    free = (1 << precision) - symbols
    if free < 0:
        raise ConfigError(f"{symbols} symbols do not fit frequencies of {precision} bits")
    return np.floor(np.asarray(cdf, np.float64) * free).astype(np.int64) + np.asarray(symbol, np.int64)
