"""One iteration of DQN: a few steps of epsilon-greedy play into the replay memory, then a few updates from it.

Shapes: B environments, n samples of a minibatch, A actions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cambrian.rl.losses import polyak, q_target, td_loss
from cambrian.rl.replay import PrioritisedReplay
from cambrian.rl.schedules import linear
from cambrian.systems.control.baselines import _fast
from cambrian.systems.control.baselines.model import QNetwork

if TYPE_CHECKING:
    from cambrian.systems.control.baselines.recipe import BaselinesRecipe


class FastValues:
    """Online and target network through numpy: vector observations on the CPU."""

    def __init__(self, online: QNetwork, target: QNetwork) -> None:
        self.flats = _fast.Flat(online), _fast.Flat(target)
        self.online, self.target = (self._wrap(net) for net in (online, target))

    @property
    def flat(self) -> _fast.Flat:
        """The online network's memory."""
        return self.flats[0]

    @staticmethod
    def _wrap(net: QNetwork) -> _fast.DuellingDense:
        assert isinstance(net.encoder, torch.nn.Sequential)
        return _fast.DuellingDense(net.encoder, net.advantage, net.value)

    def refresh(self) -> None:
        """Find the parameters' memory again."""
        for flat in self.flats:
            flat.attach()
        self.online.refresh()
        self.target.refresh()


def iterate(run: BaselinesRecipe) -> dict[str, Any]:
    """Play, then learn once the memory holds `learn_start` transitions."""
    config = run.settings
    assert run.replay is not None and run.window is not None and run.target_net is not None
    taken = run.iteration * config.horizon * config.envs
    epsilon = linear(1.0, config.epsilon, config.explore * config.steps * config.horizon * config.envs, taken)
    if run.values is not None and (run.methods or not run.values.flat.intact):
        run.values.refresh()
    for group in run.optim.param_groups:
        group["lr"] = linear(config.lr, 0.0, config.steps, run.iteration) if config.anneal else config.lr
    _play(run, epsilon)
    scalars: dict[str, Any] = {"epsilon": epsilon}
    if run.replay.size >= max(config.learn_start, 1):
        rows = [_update(run) for _ in range(config.updates)]
        scalars.update({name: float(np.mean([row[name] for row in rows])) for name in rows[0]})
    after = taken + config.horizon * config.envs
    if after // config.target_every > taken // config.target_every:
        polyak(run.target_net, run.model)
    return scalars


def _play(run: BaselinesRecipe, epsilon: float) -> None:
    config, env = run.settings, run.env
    assert run.replay is not None and run.window is not None
    draws = torch.rand(config.horizon, 2, config.envs, generator=run.rng).numpy()
    for explore, choice in draws:
        obs = env.observation
        if run.values is not None:
            q = run.values.online(obs.numpy())
        else:
            with torch.no_grad():
                q = run.model(obs.to(run.device)).cpu().numpy()
        action = torch.from_numpy(np.where(explore < epsilon, (choice * q.shape[1]).astype(np.int64), q.argmax(1)))
        step = env.step(action)
        run.episodes.update(step.reward, step.done)
        transition = run.window.push(obs, action, step)
        if transition is not None:
            run.replay.add(**transition)


def _update(run: BaselinesRecipe) -> dict[str, float]:
    config, replay = run.settings, run.replay
    assert replay is not None
    if isinstance(replay, PrioritisedReplay):
        batch = replay.sample(
            config.minibatch or 32, run.rng, beta=linear(config.beta, 1.0, config.steps, run.iteration)
        )
    else:
        batch = replay.sample(config.minibatch or 32, run.rng)
    loss, error, q = _fast_step(run, batch) if run.values is not None else _torch_step(run, batch)
    if isinstance(replay, PrioritisedReplay):
        replay.update(batch["index"], error)
    return {"loss": loss, "q": q, "td_error": float(error.abs().mean())}


def _torch_step(run: BaselinesRecipe, batch: dict[str, Tensor]) -> tuple[float, Tensor, float]:
    """Loss, TD errors [n] and mean action value, by autograd."""
    batch = {name: tensor.to(run.device) for name, tensor in batch.items()}
    assert run.target_net is not None
    with torch.no_grad():
        online = run.model(batch["next_obs"]) if run.settings.double else None
        target = q_target(batch["reward"], batch["discount"], run.target_net(batch["next_obs"]), online)
    q = run.model(batch["obs"])
    loss, error = td_loss(q, batch["action"], target, batch["weight"])
    run.minimise(loss, run.optim, clip_norm=run.settings.clip_norm)
    return float(loss.detach()), error.cpu(), float(q.detach().mean())


def _fast_step(run: BaselinesRecipe, batch: dict[str, Tensor]) -> tuple[float, Tensor, float]:
    """The same with written-out gradients: the Huber loss's is the error cut at +-1."""
    nets = run.values
    assert nets is not None
    data = {name: tensor.numpy() for name, tensor in batch.items()}
    following, row = data["next_obs"], np.arange(len(data["action"]))
    later = nets.target(following)
    best = (nets.online(following) if run.settings.double else later).argmax(1)
    target = data["reward"] + data["discount"] * later[row, best]
    q = nets.online(data["obs"])
    error = q[row, data["action"]] - target
    size = np.abs(error)
    huber = np.where(size < 1, 0.5 * error * error, size - 0.5)
    gradient = np.zeros_like(q)
    gradient[row, data["action"]] = data["weight"] * np.clip(error, -1, 1) / len(row)
    nets.online.backward(gradient)
    loss = float((data["weight"] * huber).mean())
    run.apply_gradients(run.optim, loss=loss, clip_norm=run.settings.clip_norm)
    if run.methods:
        nets.refresh()
    return loss, torch.from_numpy(error), float(q.mean())
