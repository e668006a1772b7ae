"""Mode counts on clouds whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.metrics.modes import count_modes, counts_of, kl_to_uniform

CENTRES = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])


def test_fair_share_and_both_radii() -> None:
    cloud = torch.cat((CENTRES[0].expand(100, 2), CENTRES[1].expand(9, 2) + 0.2, CENTRES[2].expand(3, 2)))
    found = count_modes(cloud, CENTRES, deviation=0.02, radius=0.3, share=0.1)
    # the tenth of a fair share of 112 samples is 2.8; the second mode is 0.28 away, beyond 3 standard deviations
    assert (found.touched, found.covered) == (3, 2)
    assert found.quality == pytest.approx(103 / 112)
    strict = count_modes(cloud, CENTRES, deviation=0.02, radius=0.3, share=0.5)
    assert strict.touched == 1


def test_far_away_samples_touch_nothing() -> None:
    found = count_modes(torch.zeros(50, 2), CENTRES, deviation=0.02, radius=0.3)
    assert (found.touched, found.covered, found.quality) == (0, 0, 0.0)
    with pytest.raises(ShapeError, match="samples and centres"):
        count_modes(torch.zeros(5, 3), CENTRES, deviation=0.02, radius=0.3)


def test_divergence_from_uniform_between_its_bounds() -> None:
    assert kl_to_uniform(torch.tensor([5, 5, 5, 5])) == pytest.approx(0.0, abs=1e-12)
    assert kl_to_uniform(torch.tensor([7, 0, 0, 0])) == pytest.approx(math.log(4))
    half = kl_to_uniform(counts_of(torch.tensor([0, 1, 0, 1]), 4))
    assert half == pytest.approx(math.log(2))
    for bad in (torch.zeros(3), torch.tensor([1.0, -1.0])):
        with pytest.raises(ShapeError, match="counts"):
            kl_to_uniform(bad)
    with pytest.raises(ShapeError, match=r"0\.\.3"):
        counts_of(torch.tensor([0, 4]), 4)
