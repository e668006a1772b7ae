"""Matching against all permutations, rank correlation against scipy."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import spearmanr

from cambrian.errors import ShapeError
from cambrian.metrics.matching import contingency, matched_accuracy, matching, rank_correlation


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_the_matching_is_the_best_of_all_one_to_one_matchings(shape: tuple[int, int]) -> None:
    counts = torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(shape[0]))
    wide = counts if shape[0] <= shape[1] else counts.T
    rows = range(len(wide))
    best = max(sum(int(wide[i, j]) for i, j in zip(rows, way)) for way in itertools.permutations(range(wide.shape[1]), len(wide)))  # fmt: skip
    assert matched_accuracy(counts) == pytest.approx(best / int(counts.sum()))
    named = matching(counts)
    used = named[named >= 0].tolist()
    assert len(used) == len(set(used)) == min(shape)


def test_two_codes_may_not_share_a_class() -> None:
    codes, labels = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 0, 1, 1])
    counts = contingency(codes, labels, (3, 2))
    assert counts.tolist() == [[2, 0], [2, 0], [0, 2]]
    assert matched_accuracy(counts) == pytest.approx(4 / 6)  # greedy matching would say 1


def test_rank_correlation_equals_scipys_with_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 6, (50,), generator=draw), torch.randn(50, generator=draw)
    assert rank_correlation(a, b) == pytest.approx(float(spearmanr(a, b).statistic), abs=1e-12)
    assert rank_correlation(b, b.exp()) == pytest.approx(1.0)
    assert rank_correlation(torch.ones(5), torch.arange(5.0)) == 0.0


def test_bad_input() -> None:
    with pytest.raises(ShapeError, match="codes must lie in 0..1"):
        contingency(torch.tensor([0, 2]), torch.tensor([0, 1]), (2, 2))
    with pytest.raises(ShapeError, match=r"\[N >= 1\]"):
        contingency(torch.tensor([0, 1]), torch.tensor([0]), (2, 2))
    with pytest.raises(ShapeError, match=r"\[N >= 2\]"):
        rank_correlation(torch.zeros(1), torch.zeros(1))
