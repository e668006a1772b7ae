"""Records what gymnasium's classic control does, for `test_classic.py`; run it where gymnasium is installed:

    python tests/worlds/control/record_gymnasium.py

Writes `gymnasium_trajectories.npz` beside itself: for each environment `NAME_state` [501, 4, S] float64, `NAME_action`, `NAME_reward`,
`NAME_terminated` [500, 4]. Where an episode ended, the next state is a fresh start (`NAME_fresh` [500, 4] marks it).
"""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np

NAMES = {"cartpole": "CartPole-v1", "mountaincar": "MountainCar-v0", "pendulum": "Pendulum-v1", "acrobot": "Acrobot-v1"}


def choose(name: str, state: np.ndarray, rng: np.random.Generator) -> np.ndarray | int:
    """Half sensible, half random, so that episodes both last and end."""
    if name == "pendulum":
        return rng.uniform(-2.5, 2.5, 1)
    if rng.random() < 0.3:
        return int(rng.integers(0, 2 if name == "cartpole" else 3))
    if name == "cartpole":
        return int(state[2] + 0.3 * state[3] > 0)
    return int(state[1] > 0) * 2 if name == "mountaincar" else int(state[2] < 0) * 2


def record(name: str) -> dict[str, np.ndarray]:
    """Four trajectories of 500 steps."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[list[np.ndarray]]] = {k: [] for k in ("state", "action", "reward", "terminated", "fresh")}
    for copy in range(4):
        env = gymnasium.make(NAMES[name]).unwrapped
        env.reset(seed=copy)
        env.state = np.array(env.state, np.float64)
        column: dict[str, list[np.ndarray]] = {k: [] for k in rows}
        column["state"].append(np.array(env.state))
        for _ in range(500):
            action = choose(name, np.array(env.state), rng)
            _, reward, terminated, _, _ = env.step(action)
            if terminated:
                env.reset()
                env.state = np.array(env.state, np.float64)
            for key, value in zip(column, (env.state, action, reward, terminated, terminated)):
                column[key].append(np.array(value))
        for key in rows:
            rows[key].append(column[key])
    return {f"{name}_{key}": np.stack([np.stack(c) for c in value], 1) for key, value in rows.items()}


if __name__ == "__main__":
    arrays = {key: value for name in NAMES for key, value in record(name).items()}
    np.savez_compressed(Path(__file__).with_name("gymnasium_trajectories.npz"), **arrays)
    print({k: (v.shape, str(v.dtype)) for k, v in arrays.items()})
