"""Scores at their analytic values, and against SciPy where there is no closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.metrics.classifier_score import (
    classifier_score,
    frechet_distance,
    kernel_distance,
    mode_score,
    reversed_score,
)


def test_score_is_k_for_balanced_certainty_and_one_for_constant_rows() -> None:
    certain = torch.eye(10).repeat(600, 1)
    with pytest.warns(UserWarning, match="biased"):
        assert classifier_score(certain, splits=2) == (pytest.approx(10.0, abs=1e-9), pytest.approx(0.0, abs=1e-9))
    constant = torch.tensor([0.2, 0.5, 0.3]).expand(20_000, 3)
    assert classifier_score(constant, splits=4)[0] == pytest.approx(1.0, abs=1e-6)


def test_score_equals_numpy_split_by_split() -> None:
    p = torch.randn(40_000, 5, generator=torch.Generator().manual_seed(0)).softmax(1)
    scores = []
    for part in np.split(p.double().numpy(), 8):
        scores.append(np.exp((part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()))
    mean, deviation = classifier_score(p, splits=8)
    assert (mean, deviation) == (pytest.approx(np.mean(scores)), pytest.approx(np.std(scores)))


def test_bad_probabilities_are_refused() -> None:
    with pytest.raises(ShapeError, match="sum to 1"):
        classifier_score(torch.ones(10, 3))
    with pytest.raises(ShapeError, match="cannot be cut"):
        classifier_score(torch.eye(3), splits=5)


def test_mode_score_punishes_lost_modes_and_equals_the_plain_score_on_the_training_marginal() -> None:
    everything, half = torch.eye(4).repeat(5, 1), torch.eye(4)[:2].repeat(10, 1)
    even = torch.ones(4)
    assert mode_score(everything, even) == pytest.approx(4.0)
    # certain rows over half of the classes: log 2 of information, and a marginal log 2 away from uniform
    assert mode_score(half, even) == pytest.approx(1.0)
    with pytest.raises(ShapeError, match="4 positive"):
        mode_score(half, torch.tensor([1.0, 0.0, 1.0, 1.0]))


def test_mode_score_equals_a_sum_by_hand_and_the_printed_formula_is_the_plain_score() -> None:
    p = torch.randn(50, 5, generator=torch.Generator().manual_seed(3)).softmax(1)
    shares = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    rows, prior = p.double().tolist(), (shares / 15).double().tolist()
    marginal = [sum(row[k] for row in rows) / 50 for k in range(5)]
    inside = sum(row[k] * math.log(row[k] / marginal[k]) for row in rows for k in range(5)) / 50
    lost = sum(marginal[k] * math.log(marginal[k] / prior[k]) for k in range(5))
    assert mode_score(p, shares) == pytest.approx(math.exp(inside - lost), abs=1e-6)
    with pytest.warns(UserWarning, match="biased"):
        plain = classifier_score(p, splits=1)[0]
    assert mode_score(p, shares) < plain
    for labels in (shares, shares.flip(0), torch.ones(5)):  # whatever the labels: it is no score of lost modes
        assert mode_score(p, labels, printed=True) == pytest.approx(plain, abs=1e-9)


def test_mode_score_tells_apart_what_the_plain_score_does_not() -> None:
    counts = torch.tensor([10] * 5 + [1] * 5)  # five classes ten times as frequent as the others, a perfect judge
    real, balanced = torch.eye(10).repeat_interleave(counts, 0), torch.eye(10)
    one = torch.eye(10)[:1].repeat(20, 1)
    assert mode_score(real, counts) == pytest.approx(6.78, abs=0.005)
    assert mode_score(real, counts) == pytest.approx(mode_score(real, counts, printed=True))
    assert mode_score(balanced, counts, printed=True) == pytest.approx(10.0)
    assert mode_score(balanced, counts) == pytest.approx(5.75, abs=0.005)
    assert mode_score(one, counts) < mode_score(one, counts, printed=True) == pytest.approx(1.0)


def test_frechet_distance_of_gaussians_and_against_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    b = (
        torch.randn(300, 6, generator=generator, dtype=torch.float64) @ torch.randn(6, 6, generator=generator).double()
        + 1
    )
    ca, cb = np.cov(a.numpy().T), np.cov(b.numpy().T)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * linalg.sqrtm(ca @ cb).real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-8)
    assert frechet_distance(a, a + 2.0) == pytest.approx(6 * 4.0)
    assert frechet_distance(a, 3.0 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(4 * np.trace(ca))


def test_kernel_distance_is_unbiased_and_equals_a_double_loop() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(7, 3, generator=generator), torch.randn(5, 3, generator=generator) + 1

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x @ y / 3 + 1) ** 3)

    within = [sum(kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j) for x in (a, b)]
    across = sum(kernel(x, y) for x in a for y in b)
    expected = within[0] / 42 + within[1] / 20 - 2 * across / 35
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-5)
    same = [kernel_distance(*torch.randn(2, 60, 3, generator=generator)) for _ in range(200)]
    assert abs(float(np.mean(same))) < 3 * float(np.std(same)) / math.sqrt(200)
    with pytest.raises(ShapeError, match="N >= 2"):
        kernel_distance(a[:1], b)


def test_reversed_score_is_the_other_divergence_and_bounded_by_its_floor():
    p = torch.rand(30, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 0.05
    p = p / p.sum(1, keepdim=True)
    marginal = p.mean(0)
    loop = sum(float((marginal * (marginal / row).log()).sum()) for row in p) / len(p)
    assert reversed_score(p) == pytest.approx(loop)
    assert reversed_score(torch.full((5, 3), 1 / 3)) == pytest.approx(0.0, abs=1e-7)
    assert reversed_score(torch.eye(4)) == pytest.approx(-math.log(4) + 0.75 * 12 * math.log(10), rel=1e-6)
