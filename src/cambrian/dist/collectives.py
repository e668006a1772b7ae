"""What it costs to combine a message of n bytes over K workers: seconds by communication scheme.

Bandwidth terms as in Paleo (Qi, Sparks, Talwalkar 2017, section 4), B bytes/s; and latency terms with them, L seconds
for each message that follows another (0 gives the paper's formulas):

    one-to-all        2 (K-1) n / B                  a server collects every gradient and answers
    tree              2 ceil(log2 K) n / B           reduce and broadcast along a binary tree
    butterfly         ceil(log2 K) n / B             all workers exchange whole messages in every round
    butterfly-mixing  n / B                          one round of the butterfly per step
    ring              2 (K-1)/K n / B                reduce-scatter and all-gather
    pipeline          2 (K-1 + n/b) L + (b (K-1) + n) (2/B)       chain in blocks of b bytes (Wang et al. 2016)

All are 0 for K = 1. Arguments may be arrays; they broadcast.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cambrian.errors import ConfigError

Cost = Callable[[NDArray[np.float64], NDArray[np.float64], float, float], NDArray[np.float64]]


def _rounds(workers: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ceil(np.log2(workers))


def _pipeline(
    size: NDArray[np.float64], workers: NDArray[np.float64], bandwidth: float, latency: float
) -> NDArray[np.float64]:
    hops = workers - 1
    block = np.minimum(best_block(size, workers, bandwidth, latency), np.maximum(size, 1.0))
    cost = 2 * (hops + size / block) * latency + (block * hops + size) * 2 / bandwidth
    return np.where(hops > 0, cost, 0.0)


def best_block(
    size: ArrayLike, workers: ArrayLike, bandwidth: float, latency: float, least: float = 1024.0
) -> NDArray[np.float64]:
    """The block size (bytes) that makes the pipelined all-reduce fastest: sqrt(n L B / (K-1)), at least `least`."""
    hops = np.maximum(np.asarray(workers, dtype=np.float64) - 1, 1.0)
    return np.maximum(np.sqrt(np.asarray(size, dtype=np.float64) * latency * bandwidth / hops), least)


SCHEMES: dict[str, Cost] = {
    "one-to-all": lambda n, k, b, latency: 2 * (k - 1) * (n / b + latency),
    "tree": lambda n, k, b, latency: 2 * _rounds(k) * (n / b + latency),
    "butterfly": lambda n, k, b, latency: _rounds(k) * (n / b + latency),
    "butterfly-mixing": lambda n, k, b, latency: np.minimum(k - 1, 1) * (n / b + latency),
    "ring": lambda n, k, b, latency: 2 * (k - 1) * (n / k / b + latency),
    "pipeline": _pipeline,
}


def seconds(
    scheme: str, size: ArrayLike, workers: ArrayLike, *, bandwidth: float, latency: float = 0.0
) -> NDArray[np.float64]:
    """Seconds to combine `size` bytes over `workers`, at `bandwidth` bytes/s and `latency` seconds per message.

    Raises `ConfigError` for an unknown scheme, fewer than one worker, or a bandwidth that is not positive.
    """
    if scheme not in SCHEMES:
        raise ConfigError(f"no communication scheme {scheme!r}; choose one of {', '.join(SCHEMES)}")
    if bandwidth <= 0 or np.any(np.asarray(workers) < 1):
        raise ConfigError(f"bandwidth must be positive and workers at least 1, not {bandwidth} and {workers}")
    n, k = np.broadcast_arrays(np.asarray(size, dtype=np.float64), np.asarray(workers, dtype=np.float64))
    return np.asarray(SCHEMES[scheme](n, k, bandwidth, latency))
