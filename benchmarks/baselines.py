"""Steps per second, acting and learning, of PPO and DQN against Stable-Baselines3: same net, same hyper-parameters, one thread.

The peers are optional: `pip install 'cambrian[rl]' stable-baselines3`. Without them this file says so and stops.

    python benchmarks/baselines.py          # or with a name: ppo, vector, dqn

Both sides run on one thread and wait for nothing, so CPU seconds are compared: other programs on the machine disturb them less.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from cambrian.engine.loop import Loop
from cambrian.inspect.bench import ratio_interval
from cambrian.rl.returns import gae
from cambrian.systems.control.baselines import BaselinesRecipe, Config


def ours(**settings: Any) -> tuple[BaselinesRecipe, Callable[[int], None]]:
    """A recipe, and a function that takes it `n` environment steps further (whole iterations)."""
    loop = Loop(BaselinesRecipe(Config(**settings), seed=0))
    per = loop.recipe.settings.horizon * settings["envs"]

    def run(n: int) -> None:
        for _ in range(n // per):
            loop.advance()

    return loop.recipe, run


def vector(envs: int) -> Any:
    """CartPole as Stable-Baselines3 wants it."""
    import gymnasium
    from stable_baselines3.common.vec_env import DummyVecEnv

    return DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * envs)


def peer_ppo(envs: int, horizon: int, minibatch: int, epochs: int) -> Any:
    """Stable-Baselines3's PPO with our configuration."""
    from stable_baselines3 import PPO

    return PPO(
        "MlpPolicy", vector(envs), n_steps=horizon, batch_size=minibatch, n_epochs=epochs, learning_rate=3e-4, gamma=0.99,
        gae_lambda=0.95, clip_range=0.2, ent_coef=0.0, vf_coef=0.5, max_grad_norm=0.5, policy_kwargs={"net_arch": [64, 64]},
        seed=0, device="cpu",
    )  # fmt: skip


def peer_dqn(envs: int) -> Any:
    """Stable-Baselines3's DQN with our configuration."""
    from stable_baselines3 import DQN

    return DQN(
        "MlpPolicy", vector(envs), learning_rate=1e-3, buffer_size=20000, learning_starts=1000, batch_size=32, gamma=0.99,
        train_freq=1, gradient_steps=2, target_update_interval=1000, exploration_fraction=0.2, exploration_final_eps=0.05,
        max_grad_norm=10, policy_kwargs={"net_arch": [64, 64]}, seed=0, device="cpu",
    )  # fmt: skip


def copy_ppo(model: torch.nn.Module, policy: Any) -> None:
    """Give Stable-Baselines3's policy our weights."""
    targets = [policy.mlp_extractor.policy_net[0], policy.mlp_extractor.policy_net[2], policy.action_net]
    targets += [policy.mlp_extractor.value_net[0], policy.mlp_extractor.value_net[2], policy.value_net]
    sources = [m for net in (model.actor, model.critic) for m in net if isinstance(m, torch.nn.Linear)]  # type: ignore[union-attr]
    for target, source in zip(targets, sources, strict=True):
        target.load_state_dict(source.state_dict())


def check_ppo() -> None:
    """The same weights give the same values and log-probabilities, and the same rollout the same advantages."""
    from stable_baselines3.common.buffers import RolloutBuffer

    recipe, _ = ours(envs=8, steps=1)
    peer = peer_ppo(8, 16, 64, 1)
    copy_ppo(recipe.model, peer.policy)
    obs, action = torch.randn(32, 4), torch.randint(0, 2, (32,))
    head, value = recipe.model(obs)
    values, log_prob, _ = peer.policy.evaluate_actions(obs, action)
    torch.testing.assert_close(value, values[:, 0])
    torch.testing.assert_close(recipe.model.distribution(head).log_prob(action), log_prob)  # type: ignore[operator]
    buffer = RolloutBuffer(16, peer.observation_space, peer.action_space, "cpu", 0.95, 0.99, 8)
    reward, v, done = torch.randn(16, 8), torch.randn(17, 8), torch.rand(16, 8) < 0.2
    buffer.rewards, buffer.values = reward.numpy(), v[:16].numpy()
    buffer.episode_starts = np.concatenate((np.zeros((1, 8)), done[:-1].numpy())).astype(np.float32)
    buffer.compute_returns_and_advantage(v[16], done[-1].numpy())
    advantages, _ = gae(reward, v[:16], v[1:], done, done, gamma=0.99, lam=0.95)
    np.testing.assert_allclose(advantages.numpy(), buffer.advantages, rtol=1e-4, atol=1e-5)


def check_dqn() -> None:
    """The same weights give the same action values."""
    recipe, _ = ours(envs=8, steps=1, **DQN)
    peer = peer_dqn(8)
    sources = [m for m in recipe.model.modules() if isinstance(m, torch.nn.Linear)]
    for target, source in zip((peer.policy.q_net.q_net[i] for i in (0, 2, 4)), sources, strict=True):
        target.load_state_dict(source.state_dict())
    obs = torch.randn(32, 4)
    torch.testing.assert_close(recipe.model(obs), peer.policy.q_net(obs))


DQN: dict[str, Any] = {
    "algo": "dqn", "double": False, "duelling": False, "prioritised": False, "clip_norm": 10.0, "learn_start": 1000,
}  # fmt: skip


def report(title: str, steps: int, peer: Any, mine: dict[str, Callable[[int], None]], repeats: int) -> None:
    """CPU time of `steps` environment steps, ours and the peer's in turn; the ratio of medians with its 95 % interval."""
    contenders = {"stable-baselines3": lambda n: peer.learn(n, reset_num_timesteps=False), **mine}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, run in contenders.items():
            start = time.process_time()
            run(steps)
            if repeat:
                seconds[name].append(time.process_time() - start)
    theirs = seconds.pop("stable-baselines3")
    print(f"{title}: stable-baselines3 {steps / float(np.median(theirs)):,.0f} steps/s")
    for name, own in seconds.items():
        ratio, low, high = ratio_interval(own, theirs)
        print(
            f"  {name} {steps / float(np.median(own)):,.0f} steps/s: {ratio:.1f}x [{low:.1f}, {high:.1f}]", flush=True
        )


def both(envs: int, **settings: Any) -> dict[str, Callable[[int], None]]:
    """Our runs on gymnasium's CartPole and on the embedded one."""
    return {name: ours(env=name, envs=envs, steps=10**6, **settings)[1] for name in ("gym:CartPole-v1", "cartpole")}


def main(only: str = "", repeats: int = 5) -> None:
    """Check that both compute the same, then compare."""
    try:
        import gymnasium  # noqa: F401
        import stable_baselines3  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error.name} is not installed; run: pip install 'cambrian[rl]' stable-baselines3")
        return
    torch.set_num_threads(1)
    check_ppo()
    check_dqn()
    if only in ("", "ppo"):
        report("PPO, 8 environments", 1600, peer_ppo(8, 200, 64, 10), both(8), repeats)
    if only in ("", "vector"):
        for envs in (64, 512):
            mine = both(envs, horizon=4, minibatch=envs, epochs=4)
            report(f"PPO, {envs} environments", envs * 4, peer_ppo(envs, 4, envs, 4), mine, repeats)
    if only in ("", "dqn"):
        peer, mine = peer_dqn(8), both(8, **DQN)
        for run in (peer.learn, *mine.values()):
            run(1600)
        report("DQN, 8 environments", 800, peer, mine, repeats)


if __name__ == "__main__":
    main(*sys.argv[1:2])
