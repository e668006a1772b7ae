"""How well do unnamed codes name classes? One-to-one matching of codes to classes, and rank correlation of factors.

A greedy assignment (each code to its most frequent class) lets several codes share a class and so counts as right
what is not a naming; here each code may stand for one class only, chosen by the Hungarian algorithm.

Shapes: N samples, K codes, L classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cambrian.errors import ShapeError


def contingency(codes: Tensor, labels: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Counts int64 `[K, L]` of samples with code k and label l, from int64 `[N]` each and `sizes = (K, L)`."""
    if codes.ndim != 1 or codes.shape != labels.shape or not len(codes):
        raise ShapeError(f"codes and labels must be [N >= 1], got {tuple(codes.shape)} and {tuple(labels.shape)}")
    for name, values, size in (("codes", codes, sizes[0]), ("labels", labels, sizes[1])):
        if int(values.min()) < 0 or int(values.max()) >= size:
            raise ShapeError(f"{name} must lie in 0..{size - 1}, got {int(values.min())}..{int(values.max())}")
    return torch.bincount(codes * sizes[1] + labels, minlength=sizes[0] * sizes[1]).view(sizes)


def matching(counts: Tensor) -> Tensor:
    """The class that each code stands for, int64 `[K]`, -1 for codes left over, from counts `[K, L]`."""
    from scipy.optimize import linear_sum_assignment  # scikit-learn brings it

    rows, columns = linear_sum_assignment(counts.cpu().numpy(), maximize=True)
    out = torch.full((len(counts),), -1)
    out[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return out


def matched_accuracy(counts: Tensor) -> float:
    """Share of samples whose code stands for their class, under the best one-to-one matching."""
    named = matching(counts)
    held = named >= 0
    return float(counts[held, named[held]].sum() / counts.sum())


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's coefficient of two samples `[N]`, ties given their mean rank; 0 when one side is constant."""
    if first.ndim != 1 or first.shape != second.shape or len(first) < 2:
        raise ShapeError(f"two samples must be [N >= 2], got {tuple(first.shape)} and {tuple(second.shape)}")
    a, b = (_ranks(x) for x in (first, second))
    spread = a.norm() * b.norm()
    return float(a @ b / spread) if spread > 0 else 0.0


def _ranks(x: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]
    return ranks - ranks.mean()
