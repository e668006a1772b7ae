"""The claim of PPO: clipped against unclipped on two environments, by the returns of the last training episodes."""

from __future__ import annotations

from pathlib import Path

from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.loop import evaluate
from cambrian.engine.roles import Measurement, Progress, Study, study
from cambrian.engine.samples import Table
from cambrian.engine.targets import trained
from cambrian.systems.control.baselines.recipe import BaselinesRecipe

# Mean return of uniformly random actions (measured on 4,096 episodes) and the return that counts as solved. 500 is the highest
# that CartPole allows; about -150 is what tuned agents reach on Pendulum, where the start decides how much is lost at best.
SCALES = {"cartpole": (22.0, 500.0), "pendulum": (-1228.0, -150.0)}


def scaled(env: str, value: float) -> float:
    """A return on the scale from the random policy's (0) to the solved one (1)."""
    random, solved = SCALES[env]
    return (value - random) / (solved - random)


@config
class StudyConfig:
    """PPO's objective, and how long to train with it."""

    surrogate: str = option("clip", "PPO's objective", choices=("clip", "none", "kl", "adaptive-kl"))
    clip: float = option(0.2, "how far the probability ratio counts", low=0.0)
    kl_beta: float = option(1.0, "weight (adaptive: first weight) of the KL penalty", low=0.0)
    kl_target: float = option(0.01, "KL that the adaptive penalty aims at", low=0.0)
    cartpole_steps: int = option(40000, "environment steps on CartPole", low=1600)
    pendulum_steps: int = option(80000, "environment steps on Pendulum", low=1600)


CLAIM = Claim(
    name="clipping",
    statement="PPO with the ratio clipped at 0.2 ends training at a higher return than the same code without clipping",
    metric="scaled_return",
    direction="higher",
    margin=0.15,
    paper="Table 1: normalised score on seven MuJoCo tasks: no clipping or penalty -0.39, clipping at 0.2 0.82",
    arms={"clip": Arm(), "unclipped": Arm({"surrogate": "none"})},
    system="clip",
    baselines=("unclipped",),
    sabotage=Arm({"clip": 1e9}),
)


@study("baselines")
class BaselinesStudy(Study[StudyConfig]):
    """Trains PPO on CartPole (lr 3e-4, gamma 0.99) and Pendulum (lr 1e-3, gamma 0.9) with one objective."""

    presets = {
        "smoke": StudyConfig(cartpole_steps=4800, pendulum_steps=4800),
        "laptop": StudyConfig(),
        "paper": StudyConfig(cartpole_steps=1_000_000, pendulum_steps=1_000_000),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Mean over both environments of the scaled mean return of the last 50 training episodes.

        `ENV_evaluation` is what the final policy's most probable actions reach, which is another question: a policy that
        collapses and recovers within the last iterations scores well there.
        """
        chosen = self.config
        shared = {
            "surrogate": chosen.surrogate,
            "clip": chosen.clip,
            "kl_beta": chosen.kl_beta,
            "kl_target": chosen.kl_target,
        }
        own = {
            "cartpole": {"steps": chosen.cartpole_steps // 1600, "lr": 3e-4, "gamma": 0.99},
            "pendulum": {"steps": chosen.pendulum_steps // 1600, "lr": 1e-3, "gamma": 0.9},
        }
        metrics: dict[str, float] = {}
        for done, (env, settings) in enumerate(own.items()):
            run = trained("baselines", overrides={"env": env, **shared, **settings}, seed=seed)
            assert isinstance(run, BaselinesRecipe)
            metrics[f"{env}_return"] = run.episodes.mean(50)
            metrics[f"{env}_evaluation"] = evaluate(run)["return"]
            progress(done + 1, len(own))
        values = [scaled(env, metrics[f"{env}_return"]) for env in own]
        rows = [(env, metrics[f"{env}_return"], value) for env, value in zip(own, values)]
        table = Table(("environment", "return of the last 50 episodes", "scaled"), rows)
        return Measurement({"scaled_return": sum(values) / len(values), **metrics}, table)
