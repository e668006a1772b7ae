"""Scores of generated samples through a classifier: Inception-style score, MODE score, Frechet and kernel distance.

    IS    exp(E_x KL(p(y|x) || p(y)))                                  Salimans et al. 2016 (1606.03498), section 4
    MODE  exp(E_x KL(p(y|x) || p(y)) - KL(p(y) || p*(y)))              Che et al. 2016 (1612.02136), section 4.1
    FD    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))                  Heusel et al. 2017 (1706.08500), eq. 6
    KD    unbiased squared MMD, kernel (x.y / D + 1)^3                 Binkowski et al. 2018 (1801.01401), section 4

The published Inception score is this with Inception-v3 on ImageNet; with another classifier the numbers are
comparable only among themselves. Shapes: N samples, K classes, D features.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cambrian.errors import ShapeError

SPLIT_SIZE = 5000


def _check_probabilities(probabilities: Tensor) -> Tensor:
    p = probabilities.double()
    if p.ndim != 2 or len(p) == 0 or not torch.allclose(p.sum(1), torch.ones((), dtype=p.dtype), atol=1e-4):
        raise ShapeError(f"class probabilities must be [N >= 1, K] with rows that sum to 1, got {tuple(p.shape)}")
    return p


def _mean_divergence(p: Tensor, q: Tensor) -> Tensor:
    """`E KL(p_i || q)` in nats, rows against one distribution, with 0 log 0 = 0."""
    return (torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum(1).mean()


def classifier_score(probabilities: Tensor, splits: int = 10) -> tuple[float, float]:
    """Mean and standard deviation over `splits` of the Inception-style score of `probabilities [N, K]`; between 1
    and K.

    Warns when a split holds fewer than 5,000 samples: the marginal is then fitted to the samples that it is compared
    with, and the score is biased.
    """
    p = _check_probabilities(probabilities)
    if not 1 <= splits <= len(p):
        raise ShapeError(f"{len(p)} samples cannot be cut into {splits} splits")
    if len(p) // splits < SPLIT_SIZE:
        warnings.warn(
            f"classifier score over splits of {len(p) // splits} samples is biased; the published protocol is "
            f"10 splits of {SPLIT_SIZE}",
            stacklevel=2,
        )
    scores = torch.stack([_mean_divergence(part, part.mean(0)).exp() for part in p.tensor_split(splits)])
    return float(scores.mean()), float(scores.std(unbiased=False))


def mode_score(probabilities: Tensor, training_labels: Tensor, printed: bool = False) -> float:
    """The score of Che et al.: like the classifier score, but lost modes cost, against the label distribution
    `training_labels [K]` of real data (normalised here).

    With `E KL(p(y|x) || q) = E KL(p(y|x) || p(y)) + KL(p(y) || q)` for every q, the formula as printed (q the training
    labels in both terms) is the classifier score itself, whatever the labels: `printed=True` gives that. The default
    takes the samples' own marginal in the first term, so that the second one is a price.
    """
    p = _check_probabilities(probabilities)
    if training_labels.shape != p.shape[1:] or not bool((training_labels > 0).all()):
        raise ShapeError(f"training label shares must be {p.shape[1]} positive numbers")
    prior = training_labels.double() / training_labels.sum()
    marginal = p.mean(0, keepdim=True)
    first = _mean_divergence(p, prior if printed else marginal)
    return float((first - _mean_divergence(marginal, prior)).exp())


def _check_features(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ShapeError(
            f"features must be [N >= 2, D] and [M >= 2, D], got {tuple(first.shape)}, {tuple(second.shape)}"
        )
    return first.double(), second.double()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared 2-Wasserstein distance of Gaussians fitted to features `[N, D]` and `[M, D]`; 0 or more.

    `tr (C1 C2)^(1/2)` is the sum of singular values of `C1^(1/2) C2^(1/2)`: no root of a non-symmetric matrix is
    needed.
    """
    a, b = _check_features(first, second)

    def root(x: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(torch.cov(x.T).reshape(x.shape[1], x.shape[1]))
        return (vectors * values.clamp_min(0).sqrt()) @ vectors.T

    root_a, root_b = root(a), root(b)
    mean = (a.mean(0) - b.mean(0)).square().sum()
    trace = root_a.square().sum() + root_b.square().sum() - 2 * torch.linalg.svdvals(root_a @ root_b).sum()
    return max(0.0, float(mean + trace))


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel; may come out slightly below 0 for equal
    laws.
    """
    a, b = _check_features(first, second)
    dims, n, m = a.shape[1], len(a), len(b)

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / dims + 1) ** 3

    within_a, within_b = kernel(a, a), kernel(b, b)
    first_term = (within_a.sum() - within_a.trace()) / (n * (n - 1))
    second_term = (within_b.sum() - within_b.trace()) / (m * (m - 1))
    return float(first_term + second_term - 2 * kernel(a, b).mean())


def reversed_score(probabilities: Tensor, floor: float = 1e-12) -> float:
    """`E_x KL(p(y) || p(y|x))` in nats, no exponential: the score I' of Zhao et al. 2016 (1609.03126), section 4.1.

    The divergence is the other way round than in the classifier score, so single confident answers weigh without bound;
    probabilities below `floor` count as `floor`.
    """
    p = _check_probabilities(probabilities)
    marginal = p.mean(0, keepdim=True)
    return float((torch.special.xlogy(marginal, marginal) - marginal * p.clamp_min(floor).log()).sum(1).mean())
