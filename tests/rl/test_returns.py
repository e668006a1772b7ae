"""Advantages and n-step transitions against plain sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cambrian.errors import ConfigError, ShapeError
from cambrian.rl.returns import NStep, discounted, gae
from cambrian.worlds.control.vec import Step


def rollout(seed: int, horizon: int = 40, envs: int = 3) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    draw = lambda: torch.randn(horizon, envs, generator=g, dtype=torch.float64)  # noqa: E731
    terminated = torch.rand(horizon, envs, generator=g) < 0.1
    truncated = (torch.rand(horizon, envs, generator=g) < 0.1) & ~terminated
    return {
        "rewards": draw(),
        "values": draw(),
        "next_values": draw(),
        "terminated": terminated,
        "done": terminated | truncated,
    }


def brute(data: dict[str, Tensor], gamma: float, lam: float) -> Tensor:
    """A_t as the double sum of the definition, one episode at a time."""
    horizon, envs = data["rewards"].shape
    out = torch.zeros(horizon, envs, dtype=torch.float64)
    for b in range(envs):
        for t in range(horizon):
            for k in range(t, horizon):
                after = 0.0 if data["terminated"][k, b] else data["next_values"][k, b]
                out[t, b] += (gamma * lam) ** (k - t) * (data["rewards"][k, b] + gamma * after - data["values"][k, b])
                if data["done"][k, b]:
                    break
    return out


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (0.9, 1.0), (1.0, 0.0)])
def test_gae_equals_the_double_sum(gamma: float, lam: float) -> None:
    data = rollout(0)
    assert data["done"].sum() > data["terminated"].sum() > 0
    advantages, returns = gae(**data, gamma=gamma, lam=lam)
    expected = brute(data, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(returns, expected + data["values"], rtol=0, atol=1e-6)


def test_truncation_is_not_termination() -> None:
    one = {k: torch.tensor([[v]]) for k, v in {"rewards": 1.0, "values": 0.0, "next_values": 10.0}.items()}
    end, no = torch.tensor([[True]]), torch.tensor([[False]])
    assert gae(**one, terminated=end, done=end, gamma=0.5, lam=1.0)[0].item() == 1.0
    assert gae(**one, terminated=no, done=end, gamma=0.5, lam=1.0)[0].item() == 6.0


def test_gae_refuses_mixed_shapes() -> None:
    data = rollout(0)
    data["values"] = data["values"][:-1]
    with pytest.raises(ShapeError, match="one shape"):
        gae(**data, gamma=0.9, lam=0.9)


def test_discounted_sums_start_anew_after_an_end() -> None:
    rewards = torch.tensor([[1.0], [2.0], [4.0]])
    sums, start = discounted(rewards, torch.tensor([[False], [True], [False]]), torch.tensor([8.0]), gamma=0.5)
    assert sums[:, 0].tolist() == [5.0, 4.5, 4.0]
    assert start.tolist() == [4.0]


@pytest.mark.parametrize("n", [1, 3])
def test_n_step_transitions_equal_sums_over_each_episode(n: int) -> None:
    data, gamma = rollout(3), 0.9
    horizon, envs = data["rewards"].shape
    window, seen = NStep(n, gamma), []
    successor = torch.arange(horizon * envs, dtype=torch.float64).view(horizon, envs, 1)
    for t in range(horizon):
        term, done = data["terminated"][t], data["done"][t]
        step = Step(successor[t], data["rewards"][t], term, done & ~term, successor[t], done)
        out = window.push(torch.full((envs, 1), float(t)), torch.arange(envs), step)
        assert (out is None) == (t < n - 1)
        if out is not None:
            seen.append(out)
    for t, out in enumerate(seen):
        assert (out["obs"] == t).all() and torch.equal(out["action"], torch.arange(envs))
        for b in range(envs):
            total, k = 0.0, t
            while True:
                total += gamma ** (k - t) * float(data["rewards"][k, b])
                if data["done"][k, b] or k - t == n - 1:
                    break
                k += 1
            assert float(out["reward"][b]) == pytest.approx(total, abs=1e-9)
            assert float(out["discount"][b]) == pytest.approx(0.0 if data["terminated"][k, b] else gamma ** (k - t + 1))
            assert float(out["next_obs"][b, 0]) == float(successor[k, b, 0])


def test_a_restored_window_gives_the_same_transitions() -> None:
    data = rollout(4)
    first, second = NStep(3, 0.9), NStep(3, 0.9)

    def push(window: NStep, t: int) -> dict[str, Tensor] | None:
        term, done = data["terminated"][t], data["done"][t]
        step = Step(data["values"][t], data["rewards"][t], term, done & ~term, data["next_values"][t], done)
        return window.push(data["values"][t], torch.arange(3), step)

    for t in range(5):
        push(first, t)
    second.load_state_dict(first.state_dict())
    for t in range(5, 12):
        a, b = push(first, t), push(second, t)
        assert a is not None and b is not None
        assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ConfigError, match="at least 1"):
        NStep(0, 0.9)
