"""GAM and GAM-II on discriminators whose errors are known by construction."""

from __future__ import annotations

import pytest
import torch

from cambrian.errors import ShapeError
from cambrian.metrics.gam import fooled, gam, gam2


def test_errors_of_discriminators_made_by_hand() -> None:
    samples = torch.linspace(0.005, 0.995, 100)  # uniform in (0, 1)
    logits = torch.stack([samples - threshold for threshold in (0.1, 0.5, 0.8)])  # take 90, 50 and 20 % for data
    torch.testing.assert_close(fooled(logits), torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64))
    assert float(fooled(torch.zeros(4))) == 0.5
    found = gam2(fooled(logits)[None])
    assert float(found.mean[0]) == pytest.approx(1.6 / 3) and float(found.worst[0]) == pytest.approx(0.2)


def test_a_generators_own_discriminator_is_left_out() -> None:
    errors = torch.tensor([[0.0, 0.6, 0.4], [0.2, 0.1, 0.3], [0.9, 0.5, 0.0]])
    found = gam2(errors, torch.eye(3, dtype=torch.bool))
    torch.testing.assert_close(found.mean, torch.tensor([0.5, 0.25, 0.7]))
    torch.testing.assert_close(found.worst, torch.tensor([0.4, 0.2, 0.5]))
    assert found.best == 2
    assert found.table()[1] == {"generator": 1, "mean error": 0.25, "worst error": pytest.approx(0.2)}
    with pytest.raises(ShapeError, match="not its own"):
        gam2(errors[:1, :1], torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"\[generators, discriminators\]"):
        gam2(errors[0])


def test_a_duel_is_valid_only_between_equals_on_data() -> None:
    assert gam((0.2, 0.1), (0.2, 0.4)).winner == 1  # its discriminator errs less on the other's samples
    assert gam((0.2, 0.4), (0.2, 0.1)).winner == 2
    assert gam((0.2, 0.4), (0.2, 0.4)).winner == 0
    unfair = gam((0.4, 0.1), (0.1, 0.4))
    assert unfair.winner == 0 and unfair.r_test == pytest.approx(4.0) and unfair.r_sample == pytest.approx(0.25)
    assert gam((0.0, 0.0), (0.0, 0.0)).r_test == 1.0
