"""One iteration of A2C and PPO: collect a rollout with the present policy, then learn from it.

A2C is the case of one epoch over one minibatch: the ratio is then 1, and the gradient of the surrogate that of -log pi(a|s) A.

Shapes: T steps, B environments, A actions or action dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cambrian.rl.losses import adapted_penalty, clipped_surrogate, explained_variance, normalised, value_loss
from cambrian.rl.returns import gae
from cambrian.rl.schedules import linear
from cambrian.systems.control.baselines import _fast
from cambrian.systems.control.baselines.model import ActorCritic

if TYPE_CHECKING:
    from cambrian.rl.vec import EpisodeStatistics, VecEnv
    from cambrian.systems.control.baselines.recipe import BaselinesRecipe


@dataclass
class Rollout:
    """T steps of B environments, and the states in which the clock ended an episode."""

    obs: Tensor  # [T, B, ...]
    action: Tensor  # [T, B] or [T, B, A]
    head: Tensor  # [T, B, A] logits or means
    reward: Tensor  # [T, B]
    terminated: Tensor  # [T, B]
    done: Tensor  # [T, B]
    last: Tensor  # [B, ...] what is seen now
    cut: Tensor  # [T, B] truncated
    finals: list[Tensor] = field(default_factory=list[Tensor])  # the last states of the truncated episodes, in order


class TorchActor:
    """Acts with the model as it is: any observations, any device."""

    def __init__(self, model: ActorCritic, generator: torch.Generator, device: torch.device) -> None:
        self.model, self.generator, self.device = model, generator, device

    def start(self, horizon: int, envs: int) -> None:
        """Nothing to prepare."""

    @torch.no_grad()
    def act(self, obs: Tensor, _: int) -> tuple[Tensor, Tensor]:
        """Actions and policy heads for B observations."""
        features = self.model.encoder(self.model.seen(obs.to(self.device)))
        head = self.model.actor(features)
        return self.model.distribution(head).sample(self.generator), head

    @torch.no_grad()
    def values(self, obs: Tensor) -> Tensor:
        """V of n observations: [n]."""
        return self.model(obs.to(self.device))[1]


class FastActor:
    """Acts and values through numpy: vector observations on the CPU. Randomness for a rollout is drawn at its start."""

    def __init__(self, model: ActorCritic, generator: torch.Generator) -> None:
        self.model, self.generator = model, generator
        self.flat = _fast.Flat(model)
        self.actor, self.critic = _fast.Dense(model.actor), _fast.Dense(model.critic)

    def refresh(self) -> None:
        """Find the parameters' memory again."""
        self.flat.attach()
        self.actor.refresh()
        self.critic.refresh()

    def start(self, horizon: int, envs: int) -> None:
        """Draw the noise of `horizon` steps."""
        self.refresh()
        if self.model.log_std is None:
            self.noise = torch.rand(horizon, envs, 1, generator=self.generator).numpy()
        else:
            spread = self.model.log_std.detach().exp()
            self.noise = (torch.randn(horizon, envs, len(spread), generator=self.generator) * spread).numpy()

    def act(self, obs: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Actions and policy heads for B observations."""
        seen = obs if self.model.norm is None else self.model.norm(obs)
        head = self.actor(seen.numpy())
        if self.model.log_std is not None:
            return torch.from_numpy(head + self.noise[step]), torch.from_numpy(head)
        edges = np.exp(head - head.max(1, keepdims=True)).cumsum(1)
        action = (edges[:, :-1] <= self.noise[step] * edges[:, -1:]).sum(1)
        return torch.from_numpy(action), torch.from_numpy(head)

    def values(self, obs: Tensor) -> Tensor:
        """V of n observations: [n]."""
        seen = obs if self.model.norm is None else self.model.norm(obs)
        return torch.from_numpy(self.critic(seen.numpy())[:, 0])


Actor = TorchActor | FastActor


def collect(actor: Actor, env: VecEnv, episodes: EpisodeStatistics, horizon: int) -> Rollout:
    """Act for `horizon` steps in every environment, from where the last rollout stopped."""
    actor.start(horizon, env.num_envs)
    rows: list[tuple[Tensor, ...]] = []
    finals: list[Tensor] = []
    for t in range(horizon):
        obs = env.observation
        action, head = actor.act(obs, t)
        step = env.step(action)
        episodes.update(step.reward, step.done)
        rows.append((obs, action, head, step.reward, step.terminated, step.done, step.truncated))
        if np.count_nonzero(step.truncated.numpy()):
            finals.append(step.final_obs[step.truncated])
    obs, action, head, reward, terminated, done, cut = (torch.stack(column) for column in zip(*rows))
    return Rollout(obs, action, head, reward, terminated, done, env.observation, cut, finals)


def estimate(
    actor: Actor, rollout: Rollout, reward: Tensor, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, advantages and returns, each [T, B]; one pass of the critic over every state of the rollout."""
    horizon, envs = rollout.reward.shape
    states = torch.cat((rollout.obs.flatten(0, 1), rollout.last, *rollout.finals))
    values = actor.values(states).cpu()
    own = values[: horizon * envs].view(horizon, envs)
    following = values[envs : (horizon + 1) * envs].view(horizon, envs).clone()
    following[rollout.cut] = values[(horizon + 1) * envs :]
    advantages, returns = gae(reward, own, following, rollout.terminated, rollout.done, gamma=gamma, lam=lam)
    return own, advantages, returns


def iterate(run: BaselinesRecipe) -> dict[str, Any]:
    """Collect, estimate, learn; then let the normalisers see the rollout (so that they stood still while it was used)."""
    config, model = run.settings, run.model
    assert isinstance(model, ActorCritic) and run.actor is not None
    for group in run.optim.param_groups:
        group["lr"] = linear(config.lr, 0.0, config.steps, run.iteration) if config.anneal else config.lr
    rollout = collect(run.actor, run.env, run.episodes, config.horizon)
    reward = rollout.reward if run.scaler is None else run.scaler(rollout.reward)
    values, advantages, returns = estimate(run.actor, rollout, reward, gamma=config.gamma, lam=config.lam)
    with torch.no_grad():
        log_std = None if model.log_std is None else model.log_std.detach().clone()
        log_prob = model.distribution(rollout.head, log_std).log_prob(rollout.action)
    columns = {
        "obs": rollout.obs if model.norm is None or not run.fast else model.norm(rollout.obs),
        "action": rollout.action, "head": rollout.head, "log_prob": log_prob,
        "advantage": advantages, "returns": returns, "values": values,
    }  # fmt: skip
    flat = {name: column.flatten(0, 1) for name, column in columns.items()}
    scalars = learn(run, flat, log_std)
    scalars["explained_variance"] = explained_variance(values, returns)
    if config.surrogate == "adaptive-kl":
        run.extra["beta"] = adapted_penalty(float(run.extra["beta"]), scalars["kl"], config.kl_target)
        scalars["beta"] = run.extra["beta"]
    if model.norm is not None:
        model.norm.update(rollout.obs.flatten(0, 1))
    if run.scaler is not None:
        run.scaler.update(rollout.reward, rollout.done)
    return scalars


def learn(run: BaselinesRecipe, flat: dict[str, Tensor], log_std: Tensor | None) -> dict[str, Any]:
    """All epochs over the rollout; scalars are means over the last epoch."""
    config = run.settings
    goal = _fast.Objective(
        clip=config.clip if config.surrogate == "clip" else None,
        beta=float(run.extra["beta"]) if "kl" in config.surrogate else 0.0,
        entropy=config.entropy, value=config.value_coef, value_clip=config.value_clip,
    )  # fmt: skip
    size = len(flat["log_prob"])
    update = FastUpdate(run, flat, log_std, goal) if run.fast else TorchUpdate(run, flat, log_std, goal)
    rows: list[dict[str, Any]] = []
    for epoch in range(config.epochs):
        last = epoch == config.epochs - 1
        for index in torch.randperm(size, generator=run.rng).split(config.minibatch or size):
            scalars = update(index, last)
            if last and scalars is not None:
                rows.append(scalars)
    return {name: float(np.mean([float(row[name]) for row in rows])) for name in rows[0]}


class FastUpdate:
    """A minibatch update with written-out gradients; see `_fast`."""

    def __init__(
        self, run: BaselinesRecipe, flat: dict[str, Tensor], log_std: Tensor | None, goal: _fast.Objective
    ) -> None:
        assert isinstance(run.model, ActorCritic) and isinstance(run.actor, FastActor)
        self.run, self.model, self.nets, self.goal = run, run.model, run.actor, goal
        self.flat = {name: tensor.numpy() for name, tensor in flat.items()}
        self.normalise = run.settings.normalise_advantage
        if log_std is None:
            self.flat["head"] = _fast.log_softmax(self.flat["head"])
        else:
            self.old_log_std = log_std.numpy()

    def __call__(self, index: Tensor, report: bool) -> dict[str, float] | None:
        place = index.numpy()
        batch = {name: column[place] for name, column in self.flat.items()}
        if self.normalise and len(place) > 1:
            advantage = batch["advantage"]
            centred = advantage - advantage.mean()
            spread = math.sqrt(float(centred @ centred) / (len(centred) - 1))
            batch["advantage"] = centred * np.float32(1 / (spread + 1e-8))
        nets, goal = self.nets, self.goal
        report = report or bool(self.run.methods)
        head, value = nets.actor(batch["obs"]), nets.critic(batch["obs"])[:, 0]
        if self.model.log_std is None:
            found = _fast.categorical_gradients(head, value, batch, goal, report=report)
        else:
            batch["old_log_std"] = self.old_log_std
            log_std = self.model.log_std.detach().numpy()
            found = _fast.gaussian_gradients(head, log_std, value, batch, goal, report=report)
            assert self.model.log_std.grad is not None and found.log_std is not None
            self.model.log_std.grad.numpy()[...] = found.log_std
        nets.actor.backward(found.head)
        nets.critic.backward(found.value[:, None])
        loss = found.scalars["loss"] if found.scalars else None
        self.run.apply_gradients(self.run.optim, loss=loss, clip_norm=self.run.settings.clip_norm)
        if self.run.methods:
            nets.refresh()
        return found.scalars


class TorchUpdate:
    """A minibatch update by autograd, on the run's device."""

    def __init__(
        self, run: BaselinesRecipe, flat: dict[str, Tensor], log_std: Tensor | None, goal: _fast.Objective
    ) -> None:
        assert isinstance(run.model, ActorCritic)
        self.run, self.model, self.goal = run, run.model, goal
        self.flat = {name: tensor.to(run.device) for name, tensor in flat.items()}
        self.log_std = None if log_std is None else log_std.to(run.device)

    def __call__(self, index: Tensor, report: bool) -> dict[str, Any]:
        place = index.to(self.run.device)
        batch = {name: column[place] for name, column in self.flat.items()}
        loss, scalars = self.objective(batch)
        self.run.minimise(loss, self.run.optim, clip_norm=self.run.settings.clip_norm)
        return scalars

    def objective(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch, from `cambrian.rl.losses`."""
        goal = self.goal
        advantage = normalised(batch["advantage"]) if self.run.settings.normalise_advantage else batch["advantage"]
        head, value = self.model(batch["obs"])
        policy = self.model.distribution(head)
        ratio = (policy.log_prob(batch["action"]) - batch["log_prob"]).exp()
        surrogate = clipped_surrogate(ratio, advantage, goal.clip)
        error = value_loss(value, batch["returns"], old=batch["values"], clip=goal.value_clip)
        entropy = policy.entropy().mean()
        kl = self.model.distribution(batch["head"], self.log_std).kl(policy).mean()  # type: ignore[arg-type]
        loss = surrogate + goal.value * error - goal.entropy * entropy + goal.beta * kl
        outside = torch.zeros(()) if goal.clip is None else ((ratio - 1).abs() > goal.clip).float().mean()
        scalars = {"loss": loss, "policy_loss": surrogate, "value_loss": error, "entropy": entropy, "kl": kl}
        return loss, {**{k: v.detach() for k, v in scalars.items()}, "clip_share": outside}
