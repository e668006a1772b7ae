"""The baselines' configuration and roles."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.data.source import Source
from cambrian.data.split import Batch, Data
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Scalars, action, recipe
from cambrian.engine.samples import Animation, Images
from cambrian.errors import ConfigError
from cambrian.rl.normalise import RewardScaler
from cambrian.rl.replay import PrioritisedReplay, Replay
from cambrian.rl.returns import NStep
from cambrian.rl.vec import Box, Discrete, EpisodeStatistics, VecEnv, make_env
from cambrian.systems.control.baselines import _dqn, _onpolicy
from cambrian.systems.control.baselines.model import ActorCritic, Agent, QNetwork

# What each algorithm uses where the configuration says None: PPO's are those of its paper's MuJoCo table but for the shorter
# rollout of several environments, A2C's those of the released code, DQN's scaled down from Atari to small networks.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {"horizon": 200, "epochs": 10, "minibatch": 64, "lr": 3e-4, "lam": 0.95, "entropy": 0.0},
    "a2c": {"horizon": 5, "epochs": 1, "minibatch": None, "lr": 7e-4, "lam": 1.0, "entropy": 0.01},
    "dqn": {"horizon": 1, "epochs": 1, "minibatch": 32, "lr": 1e-3, "lam": 1.0, "entropy": 0.0},
}


@config
class Config:
    """An algorithm, an environment and their hyper-parameters; None means the algorithm's own default."""

    algo: str = option("ppo", "algorithm", choices=("ppo", "a2c", "dqn"))
    env: str = option("cartpole", "embedded environment, or gym:ID for a gymnasium one")
    steps: int = option(25, "training iterations; each takes horizon x envs environment steps", low=1)
    envs: int = option(8, "environments stepped together", low=1)
    horizon: int | None = option(None, "steps in each environment per iteration", low=1)
    hidden: tuple[int, ...] = option((64, 64), "hidden units of each layer", low=1)
    gamma: float = option(0.99, "discount", low=0.0, high=1.0)
    lr: float | None = option(None, "learning rate", low=0.0)
    anneal: bool = option(False, "let the learning rate fall linearly to 0")
    clip_norm: float = option(0.5, "largest global gradient norm", low=0.0)
    minibatch: int | None = option(None, "samples per update", low=1)
    lam: float | None = option(None, "lambda of generalised advantage estimation", low=0.0, high=1.0)
    epochs: int | None = option(None, "passes over each rollout", low=1)
    surrogate: str = option("clip", "PPO's objective", choices=("clip", "none", "kl", "adaptive-kl"))
    clip: float = option(0.2, "PPO: how far the probability ratio counts", low=0.0)
    kl_beta: float = option(1.0, "PPO: weight (adaptive: first weight) of the KL penalty", low=0.0)
    kl_target: float = option(0.01, "PPO: KL that the adaptive penalty aims at, in nats", low=0.0)
    entropy: float | None = option(None, "weight of the entropy bonus", low=0.0)
    value_coef: float = option(0.5, "weight of the value loss", low=0.0)
    value_clip: float | None = option(None, "PPO: clip the value's change", low=0.0)
    normalise_advantage: bool = option(True, "PPO: normalise advantages in each minibatch")
    orthogonal: bool = option(True, "orthogonal initialisation (sqrt 2; policy 0.01; value 1)")
    normalise_obs: bool = option(False, "normalise observations by running moments, clip at 10")
    scale_reward: bool = option(False, "divide rewards by the running deviation of the discounted return")
    double: bool = option(True, "DQN: choose with the online, value with the target network")
    duelling: bool = option(True, "DQN: separate streams for value and advantage")
    prioritised: bool = option(True, "DQN: draw transitions by TD error")
    n_step: int = option(1, "DQN: steps before bootstrapping", low=1)
    buffer: int = option(20000, "DQN: transitions kept", low=1)
    learn_start: int = option(1000, "DQN: transitions before learning starts", low=1)
    updates: int = option(2, "DQN: gradient steps per iteration", low=1)
    target_every: int = option(1000, "DQN: environment steps between copies of the target network", low=1)
    explore: float = option(0.2, "DQN: share of training over which epsilon falls", low=0.0, high=1.0)
    epsilon: float = option(0.05, "DQN: last probability of a random action", low=0.0, high=1.0)
    alpha: float = option(0.6, "DQN: exponent of the priorities", low=0.0, high=1.0)
    beta: float = option(0.4, "DQN: first exponent of the importance weights (ends at 1)", low=0.0, high=1.0)
    episodes: int = option(50, "episodes in an evaluation", low=1)

    def check(self) -> None:
        """Conditions across fields."""
        full = self.filled()
        size = full.horizon * self.envs  # type: ignore[operator]
        if self.algo != "dqn" and full.minibatch and size % full.minibatch:
            raise ConfigError(
                f"a rollout of horizon x envs = {size} samples does not divide into minibatches of {full.minibatch}"
            )
        if self.algo == "dqn" and self.buffer < max(self.learn_start, self.envs):
            raise ConfigError(
                f"buffer ({self.buffer}) must hold learn_start ({self.learn_start}) and envs ({self.envs}) transitions"
            )

    def filled(self) -> Config:
        """This configuration with the algorithm's defaults in place of None; A2C neither clips nor normalises advantages."""
        values = {k: v for k, v in DEFAULTS[self.algo].items() if getattr(self, k) is None}
        copy = object.__new__(Config)
        for name, value in {**vars(self), **values}.items():
            object.__setattr__(copy, name, value)
        if self.algo == "a2c":
            object.__setattr__(copy, "surrogate", "none")
            object.__setattr__(copy, "normalise_advantage", False)
        return copy


@recipe("baselines", data="cartpole")
class BaselinesRecipe(Recipe[Config]):
    """Trains one agent in one environment; every iteration collects and learns."""

    presets = {
        "smoke": Config(steps=8, episodes=20, lr=1e-3),
        "laptop": Config(steps=25),
        "paper": Config(
            env="gym:Hopper-v5", steps=488, envs=1, horizon=2048, normalise_obs=True, scale_reward=True, anneal=True
        ),
    }
    headline = ("return", "higher")

    @classmethod
    def load_data(cls, config: Config, source: Source) -> Data:
        """Environments make their own data; the choice among them is `env`."""
        if source.kind != "world":
            raise ConfigError(
                f"the baselines learn in environments, not from {source}; choose one with env=NAME or env=gym:ID"
            )
        return Data(config.env, "environment", info={"env": config.env}, source=config.env)

    def build(self, config: Config, data: Data) -> None:
        """Environments, networks, optimiser; replay memory or normalisers as the algorithm needs."""
        self.settings: Any = config.filled()
        self.env: VecEnv = make_env(config.env, config.envs, seed=self.seed * 9176 + 11)
        self.episodes = EpisodeStatistics(config.envs, keep=100)
        self.replay: Replay | None = None
        self.scaler: RewardScaler | None = None
        self.actor: _onpolicy.Actor | None = None
        self.values: _dqn.FastValues | None = None
        seen = self.env.observation
        self.fast = self.device.type == "cpu" and seen.dim() == 2 and seen.dtype == torch.float32
        if config.algo == "dqn":
            self._build_dqn()
        else:
            self._build_onpolicy()
        self.extra["beta"] = config.kl_beta

    def _build_onpolicy(self) -> None:
        config, space = self.settings, self.env.action_space
        discrete = isinstance(space, Discrete)
        self.model: ActorCritic | QNetwork = ActorCritic(
            obs_shape=self.env.observation_space.shape,
            actions=space.n if isinstance(space, Discrete) else int(np.prod(space.shape)),
            discrete=discrete, hidden=config.hidden, orthogonal_init=config.orthogonal, normalise_obs=config.normalise_obs,
        ).to(self.device)  # fmt: skip
        if config.scale_reward:
            self.scaler = RewardScaler(config.envs, gamma=config.gamma)
        if self.fast:
            self.actor = _onpolicy.FastActor(self.model, self.rng)
        else:
            self.actor = _onpolicy.TorchActor(self.model, self.rng, self.device)
        if config.algo == "a2c":
            self.optim = self.optimiser(
                torch.optim.RMSprop, self.model.parameters(), lr=config.lr, alpha=0.99, eps=1e-5
            )
        else:
            self.optim = self._adam(eps=1e-5)

    def _build_dqn(self) -> None:
        config, space = self.settings, self.env.action_space
        if not isinstance(space, Discrete):
            raise ConfigError(
                f"DQN chooses among discrete actions, and {config.env} has continuous ones; use algo=ppo or algo=a2c"
            )
        shape = {"obs_shape": self.env.observation_space.shape, "actions": space.n}
        parts = {**shape, "hidden": config.hidden, "duelling": config.duelling}
        self.model = QNetwork(**parts).to(self.device)
        self.target_net = QNetwork(**parts).to(self.device).requires_grad_(False)
        self.target_net.load_state_dict(self.model.state_dict())
        if config.prioritised:
            self.replay = PrioritisedReplay(config.buffer, alpha=config.alpha)
        else:
            self.replay = Replay(config.buffer)
        self.window = NStep(config.n_step, config.gamma)
        if self.fast:
            self.values = _dqn.FastValues(self.model, self.target_net)
        self.optim = self._adam(eps=1e-8)

    def _adam(self, *, eps: float) -> Any:
        # One fused kernel; a training method that brings its own optimiser knows no such setting.
        extra = {} if self.methods else {"fused": True}
        return self.optimiser(torch.optim.Adam, self._trained(), lr=self.settings.lr, eps=eps, **extra)

    def _trained(self) -> list[Tensor]:
        """What the optimiser updates: one vector on the fast path, unless a training method wants to see the parameters."""
        nets = self.actor if self.values is None else self.values
        if self.methods or nets is None or isinstance(nets, _onpolicy.TorchActor):
            return list(self.model.parameters())
        return [nets.flat.vector]

    def step(self, batch: Batch) -> Scalars:
        """Collect and learn; `batch` is empty."""
        scalars = _dqn.iterate(self) if self.settings.algo == "dqn" else _onpolicy.iterate(self)
        if self.episodes.finished:
            scalars["episode_return"] = self.episodes.mean(50)
            scalars["episode_length"] = float(self.episodes.lengths[-50:].mean())
        return scalars

    @property
    def agent(self) -> Agent:
        """The trained agent."""
        space = self.env.action_space
        bounds = (space.low, space.high) if isinstance(space, Box) else None
        return Agent(self.model, bounds=bounds, seed=self.seed)

    def evaluate(self, split: str, generator: torch.Generator) -> dict[str, float]:
        """Returns of `episodes` complete episodes with the most probable actions, in environments of their own."""
        returns, lengths, _ = self.play(self.settings.episodes, generator, deterministic=True)
        ordered = np.sort(returns)
        cut = len(ordered) // 4
        found = {
            "return": float(returns.mean()), "return_std": float(returns.std()), "return_median": float(np.median(returns)),
            "return_iqm": float(ordered[cut : len(ordered) - cut].mean()), "length": float(lengths.mean()),
        }  # fmt: skip
        if self.episodes.finished:
            found["training_return"] = self.episodes.mean(50)
        return found

    def play(
        self, episodes: int, generator: torch.Generator, *, deterministic: bool, frames: int = 0
    ) -> tuple[np.ndarray, np.ndarray, list[Tensor]]:
        """The first episode of each of `episodes` fresh environments: returns, lengths, and up to `frames` pictures [n,3,H,W].

        The first episodes, not the first to finish: those would favour short ones.
        """
        env = make_env(self.settings.env, episodes, seed=int(torch.randint(2**31, (), generator=generator)))
        agent, shots = self.agent, []
        returns, lengths, alive = np.zeros(episodes), np.zeros(episodes, np.int64), np.ones(episodes, bool)
        still: list[Tensor | None] = [None] * episodes
        while alive.any():
            if len(shots) < frames:
                # An environment that has ended keeps its last picture.
                still = [env.render(i) if alive[i] else still[i] for i in range(episodes)]
                shots.append(torch.stack([shot for shot in still if shot is not None]))
            elif frames:
                break
            step = env.step(agent.act(env.observation, deterministic, generator))
            returns += step.reward.numpy() * alive
            lengths += alive
            alive &= ~step.done.numpy()
        return returns, lengths, shots

    def sample(self, n: int, generator: torch.Generator) -> Animation:
        """The beginning of an episode in each of `n` environments (at most 6), up to 200 steps."""
        count = max(1, min(n, 6))
        return self._film(count, generator, deterministic=True, frames=200)

    @action
    def watch(self, n: int = 1, seed: int = 0, deterministic: bool = False, frames: int = 200) -> Animation:
        """Film `n` environments for `frames` steps, by default with sampled actions."""
        return self._film(n, torch.Generator().manual_seed(seed), deterministic=deterministic, frames=frames)

    def _film(self, n: int, generator: torch.Generator, *, deterministic: bool, frames: int) -> Animation:
        with torch.no_grad():
            shots = self.play(n, generator, deterministic=deterministic, frames=frames)[2]
        return Animation([Images(shot) for shot in shots], milliseconds=40)
