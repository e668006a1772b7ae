"""Generative adversarial metrics: generators judged by how often other models' discriminators take them for real.

    GAM      r_sample = err(D1 on G2) / err(D2 on G1),  r_test = err(D1 on data) / err(D2 on data)
             of use only where r_test is near 1; model 1 wins where r_sample < 1    Im et al. 2016 (1602.05110)
    GAM-II   of each generator, the mean and the worst (lowest) error over a pool of discriminators
                                                                                    Im et al. 2016 (1612.04021)

An error is a sample that is taken for data, or data that is taken for a sample. A discriminator that was trained
against a generator knows it, so a generator's own one is left out of its pool (`own`). Shapes: N generators, P
discriminators of the pool, B samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.errors import ShapeError


def fooled(logits: Tensor) -> Tensor:
    """The share of samples that are taken for data: logits `[..., B] -> [...]`; at 0 a discriminator is undecided."""
    if not logits.ndim or not logits.shape[-1]:
        raise ShapeError(f"logits must be [..., samples >= 1], got {tuple(logits.shape)}")
    return ((logits > 0).double() + 0.5 * (logits == 0).double()).mean(-1)


@dataclass(frozen=True)
class GAM2:
    """`mean` and `worst` error `[N]` of a pool on each generator's samples; higher is better."""

    mean: Tensor
    worst: Tensor

    @property
    def best(self) -> int:
        """The generator of the highest mean error."""
        return int(self.mean.argmax())

    def table(self) -> list[dict[str, float]]:
        """A row for each generator."""
        rows = zip(self.mean.tolist(), self.worst.tolist(), strict=True)
        return [{"generator": i, "mean error": mean, "worst error": worst} for i, (mean, worst) in enumerate(rows)]


def gam2(errors: Tensor, own: Tensor | None = None) -> GAM2:
    """GAM-II from `errors [N, P]`, how often discriminator p takes samples of generator n for data.

    Pairs that bool `own [N, P]` marks are left out; every generator needs at least one that is not.
    """
    if errors.ndim != 2 or not errors.numel() or (own is not None and own.shape != errors.shape):
        raise ShapeError(f"errors must be [generators, discriminators], got {tuple(errors.shape)}")
    foreign = torch.ones_like(errors, dtype=torch.bool) if own is None else ~own
    if not bool(foreign.any(1).all()):
        raise ShapeError("every generator needs a discriminator that is not its own")
    mean = errors.where(foreign, torch.zeros_like(errors)).sum(1) / foreign.sum(1)
    return GAM2(mean, errors.where(foreign, torch.full_like(errors, float("inf"))).amin(1))


@dataclass(frozen=True)
class GAM:
    """The ratios of a duel, and who won: 1, 2, or 0 where the discriminators differ too much on data to tell."""

    r_test: float
    r_sample: float
    winner: int


def gam(first_on: tuple[float, float], second_on: tuple[float, float], tolerance: float = 0.25) -> GAM:
    """The duel of two pairs from `(error on data, error on the other's samples)` of each one's discriminator.

    Nobody wins where `r_test` is farther than `tolerance` from 1, or where `r_sample` is 1.
    """
    tiny = 1e-12  # neither discriminator errs: a ratio of 1
    r_test, r_sample = ((a + tiny) / (b + tiny) for a, b in zip(first_on, second_on, strict=True))
    valid = abs(r_test - 1.0) <= tolerance
    winner = 0 if not valid or r_sample == 1.0 else 1 if r_sample < 1.0 else 2
    return GAM(r_test, r_sample, winner)
