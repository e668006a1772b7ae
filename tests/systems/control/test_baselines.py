"""DQN, A2C and PPO: written-out gradients, learning, exact resume, evaluation, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cambrian.data.source import Source
from cambrian.engine.loop import Loop, evaluate, fit, inference
from cambrian.errors import CapabilityError, ConfigError, ShapeError
from cambrian.rl.vec import Box, Discrete, VecWorld
from cambrian.systems.control.baselines import ActorCritic, Agent, BaselinesRecipe, Config, QNetwork, _fast, _study
from cambrian.systems.control.baselines._onpolicy import TorchUpdate, collect, estimate
from cambrian.worlds.control.registry import WORLDS


class Identity(VecWorld):
    """Observes one of three symbols; naming it pays 1. Episodes of ten steps, so that the best return is 10."""

    observation_space, action_space, time_limit = Box((3,), 0.0, 1.0), Discrete(3), 10

    def initial(self, n: int) -> np.ndarray:
        return torch.randint(0, 3, (n, 1), generator=self.generator).numpy()

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        right = (action == state[:, 0]).astype(np.float32)
        return self.initial(len(state)), right, np.zeros(len(state), bool)

    def observe(self, state: np.ndarray) -> np.ndarray:
        return np.eye(3, dtype=np.float32)[state[:, 0]]


class Echo(Identity):
    """The same with a real number to be repeated: reward 1 - error^2."""

    observation_space, action_space = Box((1,), -1.0, 1.0), Box((1,), -1.0, 1.0)

    def initial(self, n: int) -> np.ndarray:
        return self._uniform(n, 1, -1.0, 1.0)

    def transition(self, state: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reward = 1 - (np.clip(action[:, 0], -1, 1) - state[:, 0]) ** 2
        return self.initial(len(state)), reward.astype(np.float32), np.zeros(len(state), bool)

    def observe(self, state: np.ndarray) -> np.ndarray:
        return state


@pytest.fixture(autouse=True)
def small_worlds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORLDS, "identity", Identity)
    monkeypatch.setitem(WORLDS, "echo", Echo)


def trained(seed: int = 0, **settings: Any) -> BaselinesRecipe:
    run = BaselinesRecipe(Config(**settings), seed=seed)
    fit(Loop(run), run.config.steps)
    return run


SMALL: dict[str, Any] = {"envs": 4, "horizon": 16, "minibatch": 16, "epochs": 2, "hidden": (16, 12)}


@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
@pytest.mark.parametrize(
    "variant",
    [
        {}, {"surrogate": "none"}, {"surrogate": "kl", "kl_beta": 2.0}, {"entropy": 0.1},
        {"clip": 0.01, "value_clip": 0.05, "normalise_advantage": False, "normalise_obs": True},
    ],
)  # fmt: skip
def test_written_out_gradients_equal_autograd(env: str, variant: dict[str, Any]) -> None:
    run = BaselinesRecipe(Config(env=env, **SMALL, **variant), seed=1)
    model, config = run.model, run.settings
    assert isinstance(model, ActorCritic) and run.fast
    if model.norm is not None:
        model.norm.update(run.env.observation + torch.randn(4, *model.obs_shape, generator=run.rng))
    rollout = collect(run.actor, run.env, run.episodes, 16)
    values, advantages, returns = estimate(run.actor, rollout, rollout.reward, gamma=0.99, lam=0.95)
    log_std = None if model.log_std is None else model.log_std.detach().clone()
    log_prob = model.distribution(rollout.head, log_std).log_prob(rollout.action).detach()
    columns = {"obs": rollout.obs, "action": rollout.action, "head": rollout.head, "log_prob": log_prob}
    batch = {
        k: v.flatten(0, 1)
        for k, v in {**columns, "advantage": advantages, "returns": returns, "values": values}.items()
    }
    with torch.no_grad():  # a policy that has moved, on both sides of the clip
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=run.rng))
    goal = _fast.Objective(
        clip=config.clip if config.surrogate == "clip" else None, beta=config.kl_beta if config.surrogate == "kl" else 0.0,
        entropy=config.entropy, value=0.5, value_clip=config.value_clip,
    )  # fmt: skip
    loss, terms = TorchUpdate(run, batch, log_std, goal).objective(batch)
    expected = torch.autograd.grad(loss, list(model.parameters()))

    data = {k: v.numpy() for k, v in batch.items()}
    if config.normalise_advantage:
        advantage = data["advantage"]
        data["advantage"] = (advantage - advantage.mean()) / (advantage.std(ddof=1) + 1e-8)
    seen = model.seen(batch["obs"]).numpy()
    head, value = run.actor.actor(seen), run.actor.critic(seen)[:, 0]
    if log_std is None:
        data["head"] = _fast.log_softmax(data["head"])
        found = _fast.categorical_gradients(head, value, data, goal, report=True)
    else:
        data["old_log_std"] = log_std.numpy()
        found = _fast.gaussian_gradients(head, model.log_std.detach().numpy(), value, data, goal, report=True)
        model.log_std.grad.numpy()[...] = found.log_std
    run.actor.actor.backward(found.head)
    run.actor.critic.backward(found.value[:, None])
    for (name, parameter), wanted in zip(model.named_parameters(), expected):
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert found.scalars is not None and set(found.scalars) == set(terms)
    for name, term in terms.items():
        assert found.scalars[name] == pytest.approx(float(term), rel=1e-4, abs=1e-5), name
    if variant.get("clip") or not variant:
        assert 0 < found.scalars["clip_share"] < 1


@pytest.mark.parametrize("duelling", [False, True])
def test_written_out_q_gradients_equal_autograd(duelling: bool) -> None:
    net = QNetwork(obs_shape=(4,), actions=3, hidden=(8, 6), duelling=duelling)
    obs, pull = torch.randn(5, 4), torch.randn(5, 3)
    q = net(obs)
    expected = torch.autograd.grad((q * pull).sum(), list(net.parameters()))
    flat = _fast.Flat(net)
    fast = _fast.DuellingDense(net.encoder, net.advantage, net.value)
    np.testing.assert_allclose(fast(obs.numpy()), q.detach().numpy(), rtol=1e-5, atol=1e-6)
    fast.backward(pull.numpy())
    for parameter, wanted in zip(net.parameters(), expected):
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6)
    assert float(flat.vector.grad.abs().sum()) > 0


def test_a_dqn_run_is_the_same_by_autograd() -> None:
    settings = {"algo": "dqn", "n_step": 2, "learn_start": 40, "target_every": 90, "clip_norm": 0.3, "steps": 30}
    fast, plain = (BaselinesRecipe(Config(**settings), seed=1) for _ in range(2))
    plain.values = None
    plain.optim = torch.optim.Adam(plain.model.parameters(), lr=1e-3)
    for run in (fast, plain):
        fit(Loop(run), 30)
    for a, b in zip((*fast.model.parameters(), *fast.target_net.parameters()),
                    (*plain.model.parameters(), *plain.target_net.parameters())):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(fast.replay.tree.sums[0], plain.replay.tree.sums[0], rtol=1e-3, atol=1e-4)
    assert not torch.equal(fast.model.encoder[0].weight, fast.target_net.encoder[0].weight)


def test_duelling_values_are_centred() -> None:
    net = QNetwork(obs_shape=(4,), actions=3)
    obs = torch.randn(6, 4)
    torch.testing.assert_close(net(obs).mean(1), net.value(net.encoder(obs))[:, 0])


LEARNERS = {
    "ppo": {"algo": "ppo", "steps": 12, "horizon": 40, "minibatch": 64, "lr": 3e-3},
    "a2c": {"algo": "a2c", "steps": 250, "lr": 3e-3},
    "dqn": {"algo": "dqn", "steps": 300, "learn_start": 64, "target_every": 200, "gamma": 0.5},
    "dqn-plain": {"algo": "dqn", "steps": 300, "learn_start": 64, "target_every": 200, "gamma": 0.5,
                  "double": False, "duelling": False, "prioritised": False, "n_step": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", list(LEARNERS))
def test_learns_to_name_what_it_sees(name: str) -> None:
    run = trained(env="identity", **LEARNERS[name])
    assert evaluate(run)["return"] >= 9.5


def test_ppo_learns_to_repeat_a_number() -> None:
    run = trained(env="echo", steps=20, horizon=40, minibatch=64, lr=3e-3, gamma=0.5)
    assert evaluate(run)["return"] >= 9.5


RESUMED = {
    "ppo": {"env": "pendulum", "normalise_obs": True, "scale_reward": True, "surrogate": "adaptive-kl", "anneal": True, **SMALL},
    "a2c": {"algo": "a2c", "envs": 3},
    "dqn": {"algo": "dqn", "envs": 3, "learn_start": 6, "minibatch": 8, "n_step": 3, "buffer": 12, "target_every": 9},
    "images": {"env": "gridmaze", "envs": 3, "horizon": 4, "minibatch": 6, "epochs": 1, "hidden": (8,)},
}  # fmt: skip


@pytest.mark.parametrize("name", list(RESUMED))
def test_a_resumed_run_is_bit_equal(name: str, tmp_path: Path) -> None:
    from cambrian.engine.checkpoint import Checkpoints

    settings = {"steps": 8, **RESUMED[name]}
    straight = Loop(BaselinesRecipe(Config(**settings), seed=3))
    curve = [straight.advance() for _ in range(8)]
    broken = Loop(BaselinesRecipe(Config(**settings), seed=3))
    for _ in range(5):
        broken.advance()
    Checkpoints(tmp_path, keep=1).save(5, broken.state_dict())
    resumed = Loop(BaselinesRecipe(Config(**settings), seed=3))
    resumed.load_state_dict(Checkpoints(tmp_path, keep=1).load(5))
    assert [resumed.advance() for _ in range(3)] == curve[5:]
    for a, b in zip(straight.recipe.model.parameters(), resumed.recipe.model.parameters()):
        assert torch.equal(a, b)
    assert torch.equal(straight.recipe.env.observation, resumed.recipe.env.observation)


def test_evaluation_leaves_training_alone_and_repeats() -> None:
    run = BaselinesRecipe(Config(normalise_obs=True, episodes=5, **SMALL), seed=0)
    loop = Loop(run)
    loop.advance()
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    seen, finished = run.env.observation.clone(), run.episodes.finished
    first = evaluate(run)
    assert first == evaluate(run) and first["length"] == first["return"]
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    assert torch.equal(seen, run.env.observation) and run.episodes.finished == finished


def test_an_evaluation_counts_the_first_episode_of_each_environment() -> None:
    run = BaselinesRecipe(Config(**SMALL), seed=0)
    returns, lengths, _ = run.play(30, torch.Generator().manual_seed(0), deterministic=False)
    assert (returns == lengths).all() and returns.min() >= 5
    # Episodes under random play last about 22 steps; the first to finish of many would be shorter.
    assert 15 < returns.mean() < 32


def test_truncated_episodes_bootstrap_from_their_own_last_state() -> None:
    run = BaselinesRecipe(Config(env="pendulum", **SMALL), seed=0)
    run.env.max_steps = 7
    rollout = collect(run.actor, run.env, run.episodes, 16)
    values, advantages, _ = estimate(run.actor, rollout, rollout.reward, gamma=0.9, lam=0.0)
    assert int(rollout.cut.sum()) == 8 and len(rollout.finals) == 2
    with torch.no_grad():
        last = run.model(rollout.finals[0])[1]
        reset = run.model(rollout.obs[7])[1]
    delta = rollout.reward[6] + 0.9 * last - values[6]
    torch.testing.assert_close(advantages[6], delta, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(last, reset)


def test_fast_and_general_acting_agree_on_the_policy() -> None:
    run = BaselinesRecipe(Config(env="cartpole", normalise_obs=True, **SMALL), seed=2)
    run.model.norm.update(torch.randn(50, 4, generator=run.rng))
    obs = torch.randn(9, 4, generator=run.rng)
    run.actor.start(1, 9)
    head, value = run.model(obs)
    torch.testing.assert_close(run.actor.act(obs, 0)[1], head.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(run.actor.values(obs), value.detach(), rtol=1e-4, atol=1e-6)


def test_agents_act_within_bounds_and_survive_saving(tmp_path: Path) -> None:
    run = BaselinesRecipe(Config(env="pendulum", **SMALL), seed=0)
    obs = run.env.observation
    action = run.agent.act(obs, deterministic=True)
    assert action.shape == (4, 1) and torch.equal(action, run.agent.act(obs))
    loud = Agent(run.model, bounds=(-0.01, 0.01))
    assert float(loud.act(obs, deterministic=False).abs().max()) <= 0.01
    again = ActorCritic.from_pretrained(run.model.save_pretrained(tmp_path))
    assert torch.equal(Agent(again).act(obs), action)
    with pytest.raises(ShapeError, match="observations must be"):
        run.agent.act(torch.zeros(2, 5))
    with pytest.raises(CapabilityError, match="acts with"):
        Agent(torch.nn.Linear(3, 1))  # type: ignore[arg-type]


def test_images_go_through_the_convolutional_encoders() -> None:
    nature = QNetwork(obs_shape=(4, 84, 84), actions=6, hidden=(512,))
    assert nature(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 6)
    run = trained(env="breakout", algo="dqn", steps=20, learn_start=32, envs=4, hidden=(16,))
    assert not run.fast and run.replay is not None and run.replay.size == 80
    with pytest.raises(ShapeError, match="channels first"):
        QNetwork(obs_shape=(84, 84, 3), actions=2)


def test_samples_are_films(tmp_path: Path) -> None:
    run = BaselinesRecipe(Config(**SMALL), seed=0)
    with inference(run, 0) as generator:
        (path,) = run.sample(2, generator).save(tmp_path, "film")
    with Image.open(path) as film:
        assert film.n_frames > 5
    assert len(run.watch(n=1, frames=4).frames) == 4


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        Config(horizon=10, envs=3, minibatch=64)
    with pytest.raises(ConfigError, match="discrete actions, and pendulum"):
        BaselinesRecipe(Config(algo="dqn", env="pendulum"))
    with pytest.raises(ConfigError, match="must hold learn_start"):
        Config(algo="dqn", buffer=10)
    with pytest.raises(ConfigError, match="no environment 'cartpol'"):
        BaselinesRecipe(Config(env="cartpol"))
    with pytest.raises(ConfigError, match="env=NAME"):
        BaselinesRecipe.load_data(Config(), Source("path", "somewhere"))


def test_the_scale_runs_from_random_to_solved() -> None:
    for env, (random, solved) in _study.SCALES.items():
        assert _study.scaled(env, random) == 0 and _study.scaled(env, solved) == 1


@pytest.mark.parametrize("env", ["cartpole", "pendulum"])
def test_zero_of_the_scale_is_the_random_policys_return(env: str) -> None:
    world, g = WORLDS[env](256, seed=7), torch.Generator().manual_seed(0)
    total, alive = np.zeros(256), np.ones(256, bool)
    while alive.any():
        action = (
            torch.randint(0, 2, (256,), generator=g) if env == "cartpole" else torch.rand(256, 1, generator=g) * 4 - 2
        )
        step = world.step(action)
        total += step.reward.numpy() * alive
        alive &= ~step.done.numpy()
    random = _study.SCALES[env][0]
    assert abs(total.mean() - random) < 4 * total.std() / 16


def test_huge_clips_are_no_clips() -> None:
    wide, none = (trained(steps=2, **SMALL, **extra) for extra in ({"clip": 1e9}, {"surrogate": "none"}))
    assert all(torch.equal(a, b) for a, b in zip(wide.model.parameters(), none.model.parameters()))
