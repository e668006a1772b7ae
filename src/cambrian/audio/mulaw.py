"""Mu-law companding: 8-bit sound with fine steps near zero (ITU-T G.711; WaveNet, arXiv 1609.03499, section 2.2).

    y = sign(x) ln(1 + mu |x|) / ln(1 + mu),  mu = bins - 1

and y in [-1, 1] falls into one of `bins` equal bins.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cambrian.errors import ShapeError


def encode(x: Tensor, bins: int = 256) -> Tensor:
    """Waveform in [-1, 1], any shape -> int64 bin numbers 0..bins-1. Raises `ShapeError` beyond the range or for NaN."""
    if x.numel() and not bool((x.abs() <= 1).all()):
        raise ShapeError("mu-law takes a waveform in [-1, 1] without NaN; scale or clip it first")
    mu = bins - 1
    y = x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
    return ((y + 1) / 2 * bins).floor().clamp(0, bins - 1).to(torch.int64)


def decode(index: Tensor, bins: int = 256) -> Tensor:
    """int64 bin numbers -> float32 waveform at the bins' centres (in the companded domain). Raises `ShapeError`."""
    if index.is_floating_point() or (index.numel() and not 0 <= int(index.min()) <= int(index.max()) < bins):
        raise ShapeError(f"mu-law bins are integers in 0..{bins - 1}")
    mu = bins - 1
    y = (index.to(torch.float32) + 0.5) / bins * 2 - 1
    return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu
