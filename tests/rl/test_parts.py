"""Distributions, losses, normalisers, schedules, episode statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions as peers
from torch import nn

from cambrian.errors import ConfigError, ShapeError
from cambrian.rl.distributions import Categorical, DiagonalGaussian, SquashedGaussian
from cambrian.rl.losses import (
    adapted_penalty,
    clipped_surrogate,
    explained_variance,
    normalised,
    polyak,
    q_target,
    td_loss,
    value_loss,
)
from cambrian.rl.normalise import ObservationNormaliser, RewardScaler, RunningMoments
from cambrian.rl.schedules import linear
from cambrian.rl.vec import Box, Discrete, EpisodeStatistics, make_env, random_actions


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_categorical_equals_torch_distributions() -> None:
    a, b = torch.randn(6, 4, generator=generator()), torch.randn(6, 4, generator=generator(1))
    ours, other = Categorical(a), Categorical(b)
    theirs = peers.Categorical(logits=a)
    action = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(ours.log_prob(action), theirs.log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.kl(other), peers.kl_divergence(theirs, peers.Categorical(logits=b)))
    assert torch.equal(ours.mode(), a.argmax(1))


def test_categorical_draws_have_their_probabilities_and_respect_masks() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20000, 4)
    mask = torch.tensor([[True, True, False, True]]).expand(20000, 4)
    policy = Categorical(logits, mask=mask)
    counts = torch.bincount(policy.sample(generator()), minlength=4).double()
    p = torch.softmax(logits[0].masked_fill(~mask[0], -math.inf), 0).double()
    assert counts[2] == 0
    kept = [0, 1, 3]
    chi = float(((counts - 20000 * p)[kept].square() / (20000 * p[kept])).sum())
    assert chi < 2 + 3 * 2
    assert torch.isfinite(policy.entropy()).all()
    with pytest.raises(ShapeError, match="leave an action"):
        Categorical(logits, mask=torch.zeros_like(mask))


def test_gaussians_equal_torch_distributions() -> None:
    mean, spread = torch.randn(5, 3, generator=generator()), torch.tensor([-0.5, 0.1, 0.3])
    ours = DiagonalGaussian(mean, spread)
    theirs = peers.Independent(peers.Normal(mean, spread.exp()), 1)
    x = ours.sample(generator(2))
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    other = DiagonalGaussian(mean + 0.3, spread - 0.2)
    expected = peers.kl_divergence(theirs, peers.Independent(peers.Normal(mean + 0.3, (spread - 0.2).exp()), 1))
    torch.testing.assert_close(ours.kl(other), expected)
    squashed = SquashedGaussian(mean, spread)
    y = squashed.sample(generator(3))
    truth = peers.TransformedDistribution(peers.Normal(mean, spread.exp()), peers.TanhTransform(cache_size=1))
    assert float(y.abs().max()) < 1
    torch.testing.assert_close(squashed.log_prob(y), truth.log_prob(y).sum(1), rtol=1e-3, atol=1e-3)


def test_clipped_surrogate_by_hand() -> None:
    ratio = torch.tensor([1.5, 0.5, 1.5, 0.5, 1.1], requires_grad=True)
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0])
    loss = clipped_surrogate(ratio, advantage, 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 1.5 - 0.8 + 2.2) / 5)
    loss.backward()
    assert ratio.grad is not None
    np.testing.assert_allclose(ratio.grad.numpy(), [0, -0.2, 0.2, 0, -0.4], atol=1e-7)
    assert float(clipped_surrogate(ratio.detach(), advantage, None)) == pytest.approx(
        -(1.5 + 0.5 - 1.5 - 0.5 + 2.2) / 5
    )


def test_the_surrogate_of_a_fresh_policy_is_a2cs_gradient() -> None:
    logits, action = torch.randn(9, 3, generator=generator(), requires_grad=True), torch.arange(9) % 3
    advantage = torch.randn(9, generator=generator(1))
    log_p = Categorical(logits).log_prob(action)
    (first,) = torch.autograd.grad(clipped_surrogate((log_p - log_p.detach()).exp(), advantage, None), logits)
    (second,) = torch.autograd.grad(-(Categorical(logits).log_prob(action) * advantage).mean(), logits)
    torch.testing.assert_close(first, second)


def test_value_loss_and_penalty_rule() -> None:
    value, old, returns = torch.tensor([2.0, 0.1]), torch.tensor([0.0, 0.0]), torch.tensor([3.0, 1.0])
    assert float(value_loss(value, returns)) == pytest.approx(0.25 * (1 + 0.81))
    assert float(value_loss(value, returns, old=old, clip=0.5)) == pytest.approx(0.25 * (6.25 + 0.81))
    assert [adapted_penalty(1.0, kl, 0.01) for kl in (0.001, 0.01, 0.1)] == [0.5, 1.0, 2.0]


def test_double_and_plain_targets_by_hand() -> None:
    reward, discount = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.9, 0.9, 0.0])
    target = torch.tensor([[5.0, 1.0], [0.0, 4.0], [9.0, 9.0]])
    online = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    torch.testing.assert_close(q_target(reward, discount, target), torch.tensor([5.5, 5.6, 3.0]))
    torch.testing.assert_close(q_target(reward, discount, target, online), torch.tensor([1.9, 5.6, 3.0]))
    with pytest.raises(ShapeError, match="must agree"):
        q_target(reward, discount, target, online[:2])


def test_td_loss_weights_the_huber_loss_not_the_error() -> None:
    q = torch.tensor([[0.0, 3.0], [0.5, 0.0]], requires_grad=True)
    loss, error = td_loss(q, torch.tensor([1, 0]), torch.tensor([0.0, 0.0]), torch.tensor([0.1, 1.0]))
    assert error.tolist() == [3.0, 0.5]
    assert loss.item() == pytest.approx((0.1 * 2.5 + 0.125) / 2)


def test_polyak_moves_and_copies() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    start, goal = a.weight.detach().clone(), b.weight.detach()
    polyak(a, b, 0.25)
    torch.testing.assert_close(a.weight.detach(), 0.75 * start + 0.25 * goal)
    polyak(a, b)
    assert torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_normalised_advantages() -> None:
    x = normalised(torch.randn(64, generator=generator()) * 5 + 3)
    assert abs(float(x.mean())) < 1e-6 and float(x.std()) == pytest.approx(1, abs=1e-5)
    assert normalised(torch.tensor([4.0])).tolist() == [4.0]


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert float(explained_variance(returns, returns)) == 1
    assert float(explained_variance(torch.zeros(3), returns)) == 0
    assert float(explained_variance(torch.randn(3), torch.ones(3))) == 0


def test_running_moments_equal_those_of_all_samples_together() -> None:
    x = torch.randn(500, 3, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 2
    moments = RunningMoments((3,))
    for part in x.split([1, 99, 250, 150]):
        moments.update(part)
    torch.testing.assert_close(moments.mean, x.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moments.var, x.var(0, correction=0), rtol=1e-3, atol=1e-5)
    with pytest.raises(ShapeError, match="samples must be"):
        moments.update(torch.zeros(3, 2))


def test_normalisers_do_not_learn_when_applied() -> None:
    norm = ObservationNormaliser((2,), clip=3.0).train()
    norm.update(torch.randn(100, 2, generator=generator()))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    assert float(norm(torch.full((4, 2), 1e6)).max()) == 3.0
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_reward_scaler_divides_by_the_deviation_of_the_return_across_rollouts() -> None:
    rewards, done = torch.randn(40, 2, generator=generator()), torch.rand(40, 2, generator=generator(1)) < 0.1
    whole, parts = RewardScaler(2, gamma=0.9), RewardScaler(2, gamma=0.9)
    whole.update(rewards, done)
    for r, d in zip(rewards.split(10), done.split(10)):
        parts.update(r, d)
    torch.testing.assert_close(whole.var, parts.var)
    assert torch.equal(whole.running, parts.running)
    torch.testing.assert_close(whole(torch.tensor([1.0])).double(), whole.var.rsqrt()[None], rtol=1e-5, atol=1e-6)


def test_linear_schedule() -> None:
    assert [linear(1.0, 0.0, 10, s) for s in (0, 5, 10, 20)] == [1.0, 0.5, 0.0, 0.0]
    assert linear(1.0, 0.2, 0, 0) == 0.2


def test_episode_statistics_by_hand_and_restored() -> None:
    stats = EpisodeStatistics(2, keep=3)
    assert math.isnan(stats.mean())
    script = [([1, 2], [0, 1]), ([1, 5], [0, 0]), ([1, 5], [1, 1]), ([7, 9], [1, 1])]
    for reward, done in script:
        stats.update(torch.tensor(reward).float(), torch.tensor(done).bool())
    assert stats.finished == 5
    assert stats.returns.tolist() == [10, 7, 9] and stats.lengths.tolist() == [2, 1, 1]
    assert stats.mean(2) == 8
    other = EpisodeStatistics(2, keep=3)
    other.load_state_dict(stats.state_dict())
    assert other.returns.tolist() == stats.returns.tolist() and other.finished == 5
    with pytest.raises(ShapeError, match="rewards must be"):
        stats.update(torch.zeros(3), torch.zeros(3, dtype=torch.bool))


def test_random_actions_stay_inside_and_unbounded_boxes_are_refused() -> None:
    assert set(random_actions(Discrete(3), 200, generator()).tolist()) == {0, 1, 2}
    box = random_actions(Box((2,), -1.0, 3.0), 300, generator())
    assert box.shape == (300, 2) and -1 <= float(box.min()) < -0.8 and 2.8 < float(box.max()) <= 3
    with pytest.raises(ConfigError, match="bounded"):
        random_actions(Box((2,)), 3, generator())


def test_unknown_environments_are_named() -> None:
    with pytest.raises(ConfigError, match="no environment 'pong'"):
        make_env("pong", 2)
