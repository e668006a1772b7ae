"""Losses against closed forms: the tabular game, softmax with a fixed logit, plain means."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cambrian.errors import ConfigError, ShapeError
from cambrian.nn.adversarial import (
    HistoricalAverage,
    discriminator_loss,
    feature_matching,
    game_value,
    generator_loss,
    least_squares_discriminator,
    least_squares_generator,
    margin_loss,
    semi_supervised_loss,
    source_logit,
)


def _weighted(logits: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * F.softplus(-logits)).sum() + (q * F.softplus(logits)).sum()


def test_tabular_game_at_the_optimum_is_the_jensen_shannon_divergence() -> None:
    p = torch.tensor([0.1, 0.3, 0.2, 0.25, 0.15], dtype=torch.float64)
    q = torch.tensor([0.3, 0.1, 0.2, 0.05, 0.35], dtype=torch.float64)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = _weighted(logits, p, q)
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(torch.sigmoid(logits.detach()), p / (p + q), atol=1e-3, rtol=0)
    middle = (p + q) / 2
    divergence = 0.5 * (p * (p / middle).log()).sum() + 0.5 * (q * (q / middle).log()).sum()
    value = -_weighted(logits.detach(), p, q)
    assert abs(float(value) - (-math.log(4) + 2 * float(divergence))) < 1e-4


def test_value_of_samples_equals_the_tabular_value() -> None:
    logits = torch.tensor([0.3, -1.2, 2.0])
    real, fake = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 2, 0])
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    torch.testing.assert_close(game_value(logits[real], logits[fake]), -_weighted(logits, p, q))


def test_one_sided_smoothing_moves_the_optimum_of_the_real_side_only() -> None:
    real, fake = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.tensor([0.7, -0.2])
    expected = F.binary_cross_entropy_with_logits(real, torch.full((50,), 0.9)) + F.softplus(fake).mean()
    torch.testing.assert_close(discriminator_loss(real, fake, 0.9), expected)


def test_generator_losses_and_their_gradients_at_a_confident_discriminator() -> None:
    logits = torch.tensor([-8.0], requires_grad=True)
    slopes = {}
    for kind in ("ns", "minimax"):
        (slopes[kind],) = torch.autograd.grad(generator_loss(logits, kind), logits)
    assert float(slopes["ns"]) == pytest.approx(-1.0, abs=1e-3)  # does not saturate
    assert float(slopes["minimax"]) == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ConfigError, match="ns, minimax"):
        generator_loss(logits, "hinge")


def test_k_logits_equal_k_plus_one_with_the_last_fixed_to_zero() -> None:
    logits = 5 * torch.randn(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = torch.cat((logits, torch.zeros(20, 1, dtype=torch.float64)), 1).softmax(1)
    torch.testing.assert_close(torch.sigmoid(source_logit(logits)), 1 - full[:, 6], atol=1e-6, rtol=0)
    unlabelled, fake = logits[:10], logits[10:]
    expected = -0.5 * (1 - full[:10, 6]).log().mean() - 0.5 * full[10:, 6].log().mean()
    torch.testing.assert_close(semi_supervised_loss(unlabelled, fake), expected)


def test_source_logit_survives_logits_that_overflow_exp() -> None:
    huge = torch.tensor([[200.0, 100.0], [-300.0, -200.0]])
    assert torch.isfinite(semi_supervised_loss(huge, huge))
    with pytest.raises(ShapeError, match="batch, classes"):
        source_logit(torch.randn(3))


def test_feature_matching_and_its_gradient() -> None:
    real, fake = torch.randn(8, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    gap = real.mean(0) - fake.mean(0)
    torch.testing.assert_close(feature_matching(real, fake), gap.square().mean())
    torch.testing.assert_close(feature_matching(real, fake, "absolute"), gap.abs().mean())
    feature_matching(real, fake).backward()
    assert real.grad is None and fake.grad is not None
    with pytest.raises(ConfigError, match="squared or absolute"):
        feature_matching(real, fake, "cosine")


def test_least_squares_and_margin() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.5, 2.0])
    assert float(least_squares_discriminator(real, fake)) == pytest.approx(0.5 * (2.0 + 2.125))
    assert float(least_squares_generator(fake)) == pytest.approx(0.5 * 0.625)
    assert float(margin_loss(real, fake, 1.0)) == pytest.approx(2.0 + 0.25)


def test_historical_average_is_the_mean_of_all_values_and_survives_saving() -> None:
    net = nn.Linear(2, 1)
    seen = [torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()]
    history = HistoricalAverage(net)
    assert not list(history.parameters())
    for step in range(4):
        with torch.no_grad():
            net.weight.add_(step + 1.0)
        history.record()
        seen.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    mean = torch.stack(seen).mean(0)
    torch.testing.assert_close(history.mean, mean)
    torch.testing.assert_close(history.penalty(), (seen[-1] - mean).square().sum())
    twin = HistoricalAverage(net)
    twin.load_state_dict(history.state_dict())
    assert torch.equal(twin.penalty(), history.penalty()) and int(twin.count) == 5
