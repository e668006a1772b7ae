"""The classic environments move exactly as gymnasium's do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cambrian.worlds.control.registry import WORLDS

STORED = Path(__file__).with_name("gymnasium_trajectories.npz")


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(STORED, allow_pickle=False) as file:
        return dict(file)


@pytest.mark.parametrize("name", ["cartpole", "mountaincar", "pendulum", "acrobot"])
def test_five_hundred_steps_equal_gymnasium(name: str, stored: dict[str, np.ndarray]) -> None:
    truth, actions = stored[f"{name}_state"], stored[f"{name}_action"]
    world = WORLDS[name](4, dtype="float64")
    state = truth[0]
    for t in range(500):
        state, reward, terminated = world.transition(state, actions[t])
        assert state.dtype == np.float64
        np.testing.assert_array_equal(terminated, stored[f"{name}_terminated"][t])
        np.testing.assert_allclose(reward, stored[f"{name}_reward"][t], rtol=1e-6, atol=1e-6)
        fresh = stored[f"{name}_fresh"][t]
        state = np.where(fresh[:, None], truth[t + 1], state)
        np.testing.assert_allclose(state, truth[t + 1], rtol=0, atol=1e-5)


def test_the_stored_trajectories_cover_ends_and_long_runs(stored: dict[str, np.ndarray]) -> None:
    ends = {name: int(stored[f"{name}_terminated"].sum()) for name in ("cartpole", "mountaincar", "acrobot")}
    assert all(count >= 4 for count in ends.values()), ends
    assert not stored["pendulum_terminated"].any()


@pytest.mark.parametrize(
    ("name", "limit"), [("cartpole", 500), ("mountaincar", 200), ("pendulum", 200), ("acrobot", 500)]
)
def test_time_limits_are_gymnasiums(name: str, limit: int) -> None:
    assert WORLDS[name].time_limit == limit


def test_pendulum_observation_and_action_clipping() -> None:
    world = WORLDS["pendulum"](2, dtype="float64")
    seen = world.observe(np.array([[0.0, 1.0], [np.pi / 2, -3.0]]))
    np.testing.assert_allclose(seen, [[1, 0, 1], [0, 1, -3]], atol=1e-12)
    start = np.array([[1.0, 0.0]])
    strong, bound = (world.transition(start, np.array([[u]])) for u in (9.0, 2.0))
    np.testing.assert_array_equal(strong[0], bound[0])


@pytest.mark.parametrize("name", list(WORLDS))
def test_pictures_are_pictures_and_show_the_state(name: str) -> None:
    world = WORLDS[name](2, seed=1)
    first = world.render(0)
    assert first.shape[0] == 3
    assert float(first.min()) >= 0 and float(first.max()) <= 1
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        n = getattr(world.action_space, "n", None)
        world.step(torch.randint(0, n, (2,), generator=generator) if n else torch.ones(2, 1))
    assert not torch.equal(first, world.render(0))
