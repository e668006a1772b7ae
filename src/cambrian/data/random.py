"""Counter-based random numbers: the same key gives the same draw, whatever else is in the batch.

A key is one int64 per sample, a hash of (seed, epoch, index). `uniform` and `normal` expand it into as many numbers as
asked, by SplitMix64 (Steele, Lea, Flood 2014) over a counter, in plain int64 tensor arithmetic, so they run on any device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GAMMA = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic on int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of int64 [...] that looks random."""
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def sample_keys(seed: int, epoch: int, index: Tensor) -> Tensor:
    """One key per sample: int64 [B] from the run's seed, the epoch and the dataset positions `index` [B]."""
    start = torch.tensor([seed, epoch], dtype=torch.int64, device=index.device)
    return mix(mix(mix(start[0]) ^ start[1]) ^ index.to(torch.int64))


def bits(key: Tensor, n: int, stream: int = 0) -> Tensor:
    """int64 [B, n] of random bits for keys [B]; different `stream`s are independent."""
    counter = torch.arange(n, dtype=torch.int64, device=key.device) + (stream << 32)
    return mix(mix(key)[:, None] ^ mix(counter)[None, :])


def uniform(key: Tensor, n: int, *, low: float = 0.0, high: float = 1.0, stream: int = 0) -> Tensor:
    """float32 [B, n], uniform in [low, high), a pure function of each sample's key."""
    unit = _shift(bits(key, n, stream), 40).to(torch.float32) * 2.0**-24
    return low + (high - low) * unit


def normal(key: Tensor, n: int, *, stream: int = 0) -> Tensor:
    """float32 [B, n], standard normal, by the Box-Muller transform of two uniforms per number."""
    u = uniform(key, 2 * n, stream=stream)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :n]))
    return radius * torch.cos(2.0 * math.pi * u[:, n:])


def integers(key: Tensor, n: int, high: int, *, stream: int = 0) -> Tensor:
    """int64 [B, n], uniform in {0, ..., high - 1}."""
    return _shift(bits(key, n, stream), 33) % high
