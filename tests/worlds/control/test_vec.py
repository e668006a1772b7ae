"""The batched protocol: ends, resets within the step, exact restoring, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cambrian.errors import CheckpointError, ConfigError, ShapeError
from cambrian.worlds.control.grid import Breakout, GridMaze
from cambrian.worlds.control.registry import WORLDS, make


def random_action(world, generator):
    n = getattr(world.action_space, "n", None)
    return (
        torch.randint(0, n, (world.num_envs,), generator=generator)
        if n
        else torch.randn(world.num_envs, 1, generator=generator)
    )


@pytest.mark.parametrize("name", list(WORLDS))
def test_ends_reset_within_the_step_and_final_obs_is_the_successor(name: str) -> None:
    world, generator = make(name, 5, seed=3, max_steps=17), torch.Generator().manual_seed(0)
    clock, ended = np.zeros(5, int), 0
    for _ in range(60):
        before, action = world.state, random_action(world, generator)
        step = world.step(action)
        clock += 1
        successor, reward, terminated = world.transition(before, action.numpy())
        np.testing.assert_array_equal(step.final_obs.numpy(), world.observe(successor))
        np.testing.assert_array_equal(step.reward.numpy(), reward)
        np.testing.assert_array_equal(step.terminated.numpy(), terminated)
        np.testing.assert_array_equal(step.truncated.numpy(), (clock >= 17) & ~terminated)
        assert torch.equal(step.done, step.terminated | step.truncated)
        alive = ~step.done
        assert torch.equal(step.obs[alive], step.final_obs[alive])
        assert torch.equal(step.obs, world.observation)
        clock[step.done.numpy()] = 0
        ended += int(step.done.sum())
        assert step.obs.shape[1:] == world.observation_space.shape and step.obs.dtype == torch.float32
    assert ended >= 15
    np.testing.assert_array_equal(world.clock, clock)


@pytest.mark.parametrize("name", list(WORLDS))
def test_a_restored_world_goes_on_bit_equal(name: str) -> None:
    world, generator = make(name, 3, seed=5, max_steps=9), torch.Generator().manual_seed(1)
    for _ in range(5):
        world.step(random_action(world, generator))
    saved = world.state_dict()
    actions = [random_action(world, generator) for _ in range(25)]
    first = [world.step(a) for a in actions]
    other = make(name, 3, seed=99, max_steps=9)
    other.load_state_dict(saved)
    for a, expected in zip(actions, first):
        for x, y in zip(other.step(a), expected):
            assert torch.equal(x, y)


def test_seeds_decide_the_starts() -> None:
    a, b, c = make("cartpole", 4, seed=1), make("cartpole", 4, seed=1), make("cartpole", 4, seed=2)
    assert torch.equal(a.observation, b.observation)
    assert not torch.equal(a.observation, c.observation)


def test_wrong_input_is_refused() -> None:
    world = make("cartpole", 3)
    with pytest.raises(ShapeError, match="integer of shape"):
        world.step(torch.zeros(3, 1))
    with pytest.raises(ShapeError, match="float of shape"):
        make("pendulum", 3).step(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="no embedded environment 'carpole'"):
        make("carpole", 1)
    with pytest.raises(ConfigError, match="at least 1"):
        make("cartpole", 0)
    with pytest.raises(CheckpointError, match="shape"):
        world.load_state_dict(make("cartpole", 4).state_dict())


def test_partial_reset_leaves_the_others_alone() -> None:
    world = make("acrobot", 3)
    for _ in range(4):
        world.step(torch.tensor([0, 1, 2]))
    before = world.observation.clone()
    after = world.reset(torch.tensor([False, True, False]))
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert not torch.equal(after[1], before[1])
    np.testing.assert_array_equal(world.clock, [4, 0, 4])


def test_maze_distances_are_what_a_walk_along_them_takes() -> None:
    far = GridMaze.distances()
    assert far.max() > 10 and (far[GridMaze.walls] == -1).all() and (far[~GridMaze.walls] >= 0).all()
    world = GridMaze(16, seed=0)
    start = far[world.state[:, 0], world.state[:, 1]]
    moves, left, total = GridMaze.moves, start.copy(), np.zeros(16)
    running = np.ones(16, bool)
    while running.any():
        near = world.state[:, None] + moves
        there = far[near[..., 0], near[..., 1]]
        action = np.where(there < 0, 999, there).argmin(1)
        step = world.step(torch.from_numpy(action))
        total += step.reward.numpy() * running
        left -= running
        running &= ~step.done.numpy()
    assert (left == 0).all()
    np.testing.assert_allclose(total, 1 - 0.01 * (start - 1), atol=1e-5)


def test_a_breakout_player_who_tracks_the_ball_clears_the_wall() -> None:
    world, score, fresh_walls = Breakout(4, seed=0), np.zeros(4), 0
    for _ in range(900):
        x, dx, paddle = world.state[:, 0], world.state[:, 2], world.state[:, 4]
        aim = np.clip(x + dx, 0, 9)
        close = world.state[:, 1] >= 7
        goal = np.where(close, x, aim)
        action = np.where(goal > paddle, 2, np.where(goal < paddle, 1, 0))
        before = world.state[:, 6:36].sum(1)
        step = world.step(torch.from_numpy(action))
        fresh_walls += int(((world.state[:, 6:36].sum(1) > before) & ~step.done.numpy()).sum())
        score += step.reward.numpy()
        planes = step.obs
        assert torch.equal(planes[:, :3].sum((2, 3)), torch.ones(4, 3))
        assert set(np.unique(world.state[:, 2])) <= {-1, 1}
    assert fresh_walls >= 1, score
    assert (score > 30).all()


def test_a_brick_is_worth_one_and_turns_the_ball_round() -> None:
    world = Breakout(1)
    state = world.state.copy()
    state[0, :6] = 4, 4, 1, -1, 0, 0
    new, reward, over = world.transition(state, np.array([0]))
    assert reward[0] == 1 and not over[0]
    assert new[0, 6:36].sum() == 29 and new[0, 6 + 20 + 5] == 0
    np.testing.assert_array_equal(new[0, :6], [5, 4, 1, 1, 0, 1])
    state[0, :6] = 4, 8, 1, 1, 8, 0
    assert world.transition(state, np.array([0]))[2][0]
    state[0, :6] = 4, 8, 1, 1, 5, 0
    kept, _, over = world.transition(state, np.array([0]))
    assert not over[0]
    np.testing.assert_array_equal(kept[0, :4], [5, 8, -1, -1])
