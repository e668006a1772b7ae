"""How many modes does a generator reach, and how evenly?

Shapes: N samples, K modes, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ShapeError


@dataclass(frozen=True)
class ModeCount:
    """`touched` modes got at least a tenth of their fair share of samples within `radius`, `covered` within 3
    standard deviations; `quality` is the share of samples within 3 standard deviations of any mode."""

    touched: int
    covered: int
    quality: float


def _nearest(samples: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    if samples.ndim != 2 or centres.ndim != 2 or samples.shape[1] != centres.shape[1] or not len(samples):
        raise ShapeError(
            f"samples and centres must be [N >= 1, D] and [K, D], got {tuple(samples.shape)}, {tuple(centres.shape)}"
        )
    distance, mode = torch.cdist(samples, centres.to(samples)).min(dim=1)
    return distance, mode


def count_modes(samples: Tensor, centres: Tensor, deviation: float, radius: float, share: float = 0.1) -> ModeCount:
    """Assign each sample `[N, D]` to its nearest centre `[K, D]` and count the modes that got their share."""
    distance, mode = _nearest(samples, centres)
    need = share * len(samples) / len(centres)

    def reached(limit: float) -> int:
        hits = torch.bincount(mode[distance <= limit], minlength=len(centres))
        return int((hits >= max(need, 1.0)).sum())

    quality = float((distance <= 3 * deviation).float().mean())
    return ModeCount(reached(radius), reached(3 * deviation), quality)


def counts_of(labels: Tensor, modes: int) -> Tensor:
    """How often each of `modes` classes occurs among int64 `[N]`; the counter for modes that a classifier tells apart
    (stacked digits: `labels = 100 r + 10 g + b`, 1,000 modes)."""
    if labels.ndim != 1 or not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= modes:
        raise ShapeError(f"labels must be [N >= 1] in 0..{modes - 1}, got shape {tuple(labels.shape)}")
    return torch.bincount(labels, minlength=modes)


def kl_to_uniform(counts: Tensor) -> float:
    """`KL(q || uniform)` in nats of the empirical distribution of counts `[K]`; 0 when even, `log K` when
    collapsed.
    """
    if counts.ndim != 1 or not bool((counts >= 0).all()) or float(counts.sum()) <= 0:
        raise ShapeError("counts must be a vector of non-negative numbers with a positive sum")
    share = counts.double() / counts.sum()
    return float(torch.special.xlogy(share, share).sum() + math.log(len(counts)))
