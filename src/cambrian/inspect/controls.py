"""Controls of every explanation: the same network with fresh weights, and rank correlation."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from cambrian.errors import CapabilityError


def reinitialised(module: nn.Module, seed: int) -> nn.Module:
    """A copy with fresh weights and statistics from each layer's own `reset_parameters`.

    Raises `CapabilityError` when a layer with weights of its own has no such method.
    """
    fresh = copy.deepcopy(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in fresh.named_modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()
            elif any(True for _ in part.parameters(recurse=False)):
                raise CapabilityError(f"layer {name!r} ({type(part).__name__}) cannot be re-initialised")
    return fresh


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation with average ranks for ties; 0 when one side is constant."""
    ranks = [_ranks(np.asarray(values, dtype=float)) for values in (a, b)]
    centred = [r - r.mean() for r in ranks]
    norm = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float((centred[0] * centred[1]).sum() / norm) if norm > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return ((last - counts + 1 + last) / 2)[inverse]
