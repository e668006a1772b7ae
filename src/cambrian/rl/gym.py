"""gymnasium environments as `VecEnv`, and a `VecEnv` as a gymnasium vector environment.

gymnasium's vector environments reset a finished copy in the same step (`SAME_STEP`, the observation that ended the episode is in
`info["final_obs"]`), in the next one (`NEXT_STEP`, the default since 1.0: that step ignores its action), or never (`DISABLED`).
`GymnasiumEnv` makes same-step of all three: for the latter two it resets the finished copies at once through `reset_mask`.

The inner state of a gymnasium environment cannot be read, so a resumed run begins new episodes there: resuming is exact only on
the embedded environments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.errors import CapabilityError, ConfigError, MissingExtraError, ShapeError
from cambrian.worlds.control.vec import Box, Discrete, Space, Step


def from_gymnasium(name: str, num_envs: int, *, seed: int = 0, mode: str = "SameStep", **settings: Any) -> GymnasiumEnv:
    """`num_envs` copies of the gymnasium environment `name` in this process; `mode` is SameStep, NextStep or Disabled."""
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("gymnasium", "rl") from error
    try:
        makers = [lambda: gymnasium.make(name, **settings)] * num_envs
        vector = gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=gymnasium.vector.AutoresetMode(mode))
    except gymnasium.error.Error as error:
        raise ConfigError(f"gymnasium cannot make {name!r}: {error}") from error
    return GymnasiumEnv(vector, seed=seed)


class GymnasiumEnv:
    """A gymnasium vector environment (1.0 or later) as a `VecEnv`.

    Raises `CapabilityError` for observation or action spaces other than Box and Discrete (flatten a Dict first).
    """

    def __init__(self, vector: Any, *, seed: int = 0) -> None:
        mode = vector.metadata.get("autoreset_mode", "NextStep")
        self.mode: str = str(getattr(mode, "value", mode))
        if self.mode not in ("SameStep", "NextStep", "Disabled"):
            raise ConfigError(f"unknown autoreset mode {mode!r}; it must be SameStep, NextStep or Disabled")
        self.vector, self.seed = vector, seed
        self.num_envs = int(vector.num_envs)
        observations = _space(vector.single_observation_space, "observation")
        if not isinstance(observations, Box):
            raise CapabilityError(
                "observations must be a Box; wrap a Discrete observation space in a one-hot wrapper first"
            )
        self.observation_space, self.action_space = observations, _space(vector.single_action_space, "action")
        self.restarts = 0
        self.reset()

    def reset(self, mask: Tensor | None = None) -> Tensor:
        """Start new episodes everywhere (reseeded the first time), or where `mask` [B] is true."""
        if mask is None:
            obs, _ = self.vector.reset(seed=self.seed + 1_000_003 * self.restarts)
            self.restarts += 1
        else:
            obs = self._reset_some(mask.cpu().numpy(), self.observation.cpu().numpy())
        self.observation = self._tensor(obs)
        return self.observation

    def _reset_some(self, mask: np.ndarray, before: np.ndarray) -> np.ndarray:
        obs, _ = self.vector.reset(options={"reset_mask": mask.copy()})
        if not np.array_equal(np.asarray(obs, before.dtype)[~mask], before[~mask]):
            raise CapabilityError(
                f"{type(self.vector).__name__} ignores reset_mask, so its {self.mode} mode cannot be turned into same-step "
                "resets; make it with autoreset_mode SameStep"
            )
        return obs

    def step(self, action: Tensor) -> Step:
        """Step every copy; box actions are clipped to the bounds of the space."""
        space = self.action_space
        shape = (self.num_envs,) if isinstance(space, Discrete) else (self.num_envs, *space.shape)
        if action.shape != shape:
            raise ShapeError(f"actions must be of shape {shape}, not {tuple(action.shape)}")
        given = action.cpu().numpy()
        if isinstance(space, Box):
            own = self.vector.single_action_space
            given = np.clip(given, own.low, own.high).astype(own.dtype)
        obs, reward, terminated, truncated, info = self.vector.step(given)
        truncated = truncated & ~terminated
        done = terminated | truncated
        final = np.array(obs)
        if done.any():
            if self.mode == "SameStep":
                final[done] = np.stack([np.asarray(info["final_obs"][i]) for i in np.flatnonzero(done)])
            else:
                obs = self._reset_some(done, final)
        self.observation = self._tensor(obs)
        ends = [torch.from_numpy(np.array(flag, dtype=bool)) for flag in (terminated, truncated, done)]
        rewards = torch.from_numpy(np.asarray(reward, dtype=np.float32))
        last = self._tensor(final) if done.any() else self.observation
        return Step(self.observation, rewards, ends[0], ends[1], last, ends[2])

    def render(self, index: int = 0) -> Tensor:
        """The picture of copy `index` [3, H, W] in [0, 1]; the environment must have been made with render_mode='rgb_array'."""
        frames = self.vector.render()
        if frames is None or frames[index] is None:
            raise CapabilityError("this gymnasium environment was made without render_mode='rgb_array'")
        return torch.from_numpy(np.array(frames[index])).permute(2, 0, 1).float() / 255

    def _tensor(self, array: Any) -> Tensor:
        array = np.array(array)
        dtype = torch.uint8 if array.dtype == np.uint8 else torch.float32
        return torch.from_numpy(array).to(dtype)

    def state_dict(self) -> dict[str, Any]:
        """How often it was restarted: a loaded environment begins new episodes with the next seed."""
        return {"restarts": self.restarts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Begin new episodes that the saved run has not seen."""
        self.restarts = int(state["restarts"])
        self.reset()


def to_gymnasium(env: Any) -> Any:
    """A `VecEnv` as a `gymnasium.vector.VectorEnv` with same-step resets, for libraries that expect one."""
    try:
        import gymnasium
    except ImportError as error:
        raise MissingExtraError("gymnasium", "rl") from error

    class Vector(gymnasium.vector.VectorEnv):
        metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP}

        def __init__(self) -> None:
            self.num_envs = env.num_envs
            self.single_observation_space = _gym_space(gymnasium, env.observation_space)
            self.single_action_space = _gym_space(gymnasium, env.action_space)
            batch = gymnasium.vector.utils.batch_space
            self.observation_space = batch(self.single_observation_space, self.num_envs)
            self.action_space = batch(self.single_action_space, self.num_envs)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[np.ndarray, dict[str, Any]]:
            if seed is not None and hasattr(env, "generator"):
                env.generator.manual_seed(seed)
            mask = (options or {}).get("reset_mask")
            return env.reset(None if mask is None else torch.from_numpy(mask)).cpu().numpy(), {}

        def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
            result = env.step(torch.as_tensor(actions))
            obs, reward, terminated, truncated, final, done = (t.cpu().numpy() for t in result)
            if not done.any():
                return obs, reward, terminated, truncated, {}
            finals = np.empty(self.num_envs, dtype=object)
            for i in np.flatnonzero(done):
                finals[i] = final[i]
            return obs, reward, terminated, truncated, {"final_obs": finals, "_final_obs": done}

    return Vector()


def _space(space: Any, what: str) -> Space:
    name = type(space).__name__
    if name == "Discrete" and int(space.start) == 0:
        return Discrete(int(space.n))
    if name == "Box":
        return Box(tuple(space.shape), float(np.min(space.low)), float(np.max(space.high)))
    hint = "; flatten it with gymnasium.wrappers.FlattenObservation" if what == "observation" else ""
    raise CapabilityError(f"the {what} space must be a Box or a Discrete that starts at 0, not {space}{hint}")


def _gym_space(gymnasium: Any, space: Space) -> Any:
    if isinstance(space, Discrete):
        return gymnasium.spaces.Discrete(space.n)
    return gymnasium.spaces.Box(space.low, space.high, space.shape, np.float32)
