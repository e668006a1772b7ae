"""The gymnasium adapters, in every autoreset mode, against an environment whose every observation is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.worlds.control.registry import make

gymnasium = pytest.importorskip("gymnasium", reason="needs gymnasium: pip install 'cambrian[rl]'")

from cambrian.rl.gym import GymnasiumEnv, from_gymnasium, to_gymnasium  # noqa: E402


class Counter(gymnasium.Env):
    """Observes (episode, step); terminates after `length` steps, or is cut after 3."""

    observation_space = gymnasium.spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, length: int) -> None:
        self.length, self.episode, self.steps = length, -1, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return np.array([self.episode, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        seen = np.array([self.episode, self.steps], np.float32)
        return seen, float(self.steps), self.steps >= self.length, self.steps >= 3, {}


def counters(mode: str) -> GymnasiumEnv:
    makers = [lambda: Counter(2), lambda: Counter(99)]
    return GymnasiumEnv(gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=gymnasium.vector.AutoresetMode(mode)))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_every_mode_becomes_same_step(mode: str) -> None:
    env = counters(mode)
    steps = [env.step(torch.tensor([0, 1])) for _ in range(6)]
    obs = [s.obs.tolist() for s in steps]
    assert [o[0] for o in obs] == [[0, 1], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0]]
    assert [o[1] for o in obs] == [[0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [2, 0]]
    assert [s.final_obs[0].tolist() for s in steps] == [[0, 1], [0, 2], [1, 1], [1, 2], [2, 1], [2, 2]]
    assert [s.final_obs[1].tolist() for s in steps] == [[0, 1], [0, 2], [0, 3], [1, 1], [1, 2], [1, 3]]
    assert [s.terminated.tolist() for s in steps] == [[bool(t % 2), False] for t in range(6)]
    assert [s.truncated.tolist() for s in steps] == [[False, t % 3 == 2] for t in range(6)]
    assert [s.reward.tolist() for s in steps] == [[1 + t % 2, 1 + t % 3] for t in range(6)]


def test_a_vector_that_ignores_reset_masks_is_refused() -> None:
    class Deaf(gymnasium.vector.SyncVectorEnv):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)

    env = GymnasiumEnv(Deaf([lambda: Counter(2), lambda: Counter(99)]))
    env.step(torch.tensor([0, 0]))
    with pytest.raises(CapabilityError, match="ignores reset_mask"):
        env.step(torch.tensor([0, 0]))


def test_resuming_begins_new_episodes() -> None:
    first, second = (from_gymnasium("CartPole-v1", 2, seed=4) for _ in range(2))
    assert torch.equal(first.observation, second.observation)
    start = first.observation.clone()
    second.load_state_dict(first.state_dict())
    assert not torch.equal(second.observation, start)


def test_spaces_and_actions_are_checked() -> None:
    env = from_gymnasium("Pendulum-v1", 2)
    assert env.action_space.low == -2 and env.observation_space.shape == (3,)
    assert env.step(torch.full((2, 1), 50.0)).reward.shape == (2,)
    with pytest.raises(ShapeError, match="actions must be"):
        env.step(torch.zeros(2))
    with pytest.raises(ConfigError, match="cannot make 'Nowhere-v0'"):
        from_gymnasium("Nowhere-v0", 1)

    class Lopsided(Counter):
        action_space = gymnasium.spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32))

        def step(self, action):
            assert self.action_space.contains(action)
            return super().step(action)

    pair = GymnasiumEnv(gymnasium.vector.SyncVectorEnv([lambda: Lopsided(2)]))
    assert pair.step(torch.tensor([[3.0, -3.0]])).reward.item() == 1

    class Mixed(Counter):
        observation_space = gymnasium.spaces.Dict({"a": gymnasium.spaces.Discrete(2)})

    class Words(Counter):
        observation_space = gymnasium.spaces.Discrete(4)

    for kind, message in ((Mixed, "flatten it"), (Words, "one-hot")):
        vector = gymnasium.vector.SyncVectorEnv([lambda kind=kind: kind(2)])
        with pytest.raises(CapabilityError, match=message):
            GymnasiumEnv(vector)


def test_our_worlds_serve_as_gymnasium_vectors() -> None:
    vector = to_gymnasium(make("cartpole", 3, seed=1))
    assert isinstance(vector, gymnasium.vector.VectorEnv)
    obs, _ = vector.reset(seed=7)
    again, _ = to_gymnasium(make("cartpole", 3, seed=1)).reset(seed=7)
    np.testing.assert_array_equal(obs, again)
    ends = 0
    for _ in range(60):
        obs, reward, terminated, truncated, info = vector.step(np.array([1, 0, 1]))
        assert obs.shape == (3, 4) and reward.tolist() == [1, 1, 1]
        for i in np.flatnonzero(terminated | truncated):
            assert abs(info["final_obs"][i][2]) > 0.2
            assert abs(obs[i][2]) <= 0.05
            ends += 1
    assert ends > 3
