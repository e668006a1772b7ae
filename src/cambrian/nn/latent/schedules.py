"""How the divergence is weighed over training, and below what it is free."""

from __future__ import annotations

from torch import Tensor

from cambrian.errors import ConfigError, ShapeError


def exponential_weight(step: int, rate: float, minimum: float) -> float:
    """1 - (1 - minimum) rate^step: the KL weight of Ha & Eck 2017, from `minimum` towards 1."""
    return 1.0 - (1.0 - minimum) * rate**step


def linear_weight(step: int, steps: int, start: float = 0.0) -> float:
    """From `start` at step 0 to 1 at `steps` and after."""
    return start + (1.0 - start) * min(1.0, step / steps)


def floored(kl: Tensor, floor: float) -> Tensor:
    """max(kl, floor) for a batch mean `kl` (a scalar): below the floor the divergence is free and has no gradient.

    It must act on the batch mean: a floor on every element would hold each of them up (Kingma et al. 2016).
    """
    if kl.dim():
        raise ShapeError(f"the floor applies to the batch mean, a scalar, not to {tuple(kl.shape)}")
    return kl.clamp(min=floor)


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """sum_j max(mean_B KL_j, floor) of `kl` [B, Z], a scalar in nats: each feature's first nats are free, on the batch mean
    (Kingma et al. 2016, equation 15).
    """
    if kl.dim() != 2:
        raise ShapeError(f"free bits need the divergence of each feature, [B, Z], not {tuple(kl.shape)}")
    return kl.mean(0).clamp(min=floor).sum()


def cyclic_weight(step: int, period: int, rise: float = 0.5) -> float:
    """From 0 to 1 over the first share `rise` of every `period` steps, then 1 to its end (Fu et al. 2019, arXiv 1903.10145)."""
    if period < 1 or not 0 < rise <= 1:
        raise ConfigError(f"period must be at least 1 and rise in (0, 1], not {period} and {rise}")
    return min(1.0, (step % period) / (rise * period))
