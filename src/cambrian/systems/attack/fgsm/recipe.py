"""The attacker with its reference rows, adversarial training for any supervised recipe, and the study of both."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cambrian.data.split import Batch
from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.recipe import Recipe, Scalars
from cambrian.engine.roles import (
    Attacker,
    Measurement,
    Objective,
    Progress,
    Study,
    TrainingMethod,
    attacker,
    study,
    training_method,
)
from cambrian.engine.samples import Curves
from cambrian.engine.targets import trained
from cambrian.errors import ConfigError
from cambrian.inspect.attack import Goal, ascend, attack_row, in_batches, join, pgd
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import Space, Target
from cambrian.systems.attack.fgsm.model import (
    DIRECTIONS,
    adversarial_objective,
    control,
    fgsm,
    line_fit,
    logit_paths,
)
from cambrian.systems.perception.vgg import SMALL_COLOUR_TARGET

# -- attack ------------------------------------------------------------------------------------------------------------


@config
class Options:
    eps: float = option(8 / 255, "size, as a fraction of the input range", low=0.0, high=1.0)
    norm: str = option("inf", "which ball", choices=("inf", "2"))
    goal: str = option("untargeted", "untargeted, or the name of the wanted class")
    start: str = option("none", "random start before the step", choices=("none", "uniform", "sign"))
    direction: str = option("gradient", "gradient, or a control of equal size", choices=DIRECTIONS)
    batch: int = option(256, "samples per pass", low=1)
    reference: bool = option(True, "report random signs, ten basic iterations and PGD beside it")


@attacker("fgsm")
class FGSM(Attacker[Options]):
    """The fast gradient sign method, its L2 and targeted forms, and the controls that it must beat."""

    needs = ("grad_x", "logits")

    def attack(self, target: Target, x: Tensor, y: Tensor, generator: torch.Generator) -> AttackResult:
        """One step on every input; rows of FGSM, random signs, BIM and PGD; the strip, path and eps figures."""
        o, goal = self.options, self._goal(target)
        result, row = self._timed("fgsm", target, x, y, goal, lambda a, b: self._one(target, a, b, goal, generator))
        result.rows = [row]
        if o.reference:
            others = {
                "random sign": lambda a, b: control(target, a, b, o.eps, "noise", generator, o.norm),
                "bim-10": lambda a, b: ascend(
                    target, a, b, eps=o.eps, step=o.eps / 5, steps=10, norm=o.norm, goal=goal
                ),
            }
            if goal.label is None:
                others["pgd-10"] = lambda a, b: pgd(target, a, b, eps=o.eps, norm=o.norm, generator=generator)
            result.rows += [self._timed(name, target, x, y, goal, run)[1] for name, run in others.items()]
        few = slice(0, min(8, len(x)))
        if target.space.kind == "image":
            result.figures["strip"] = strip_figure(target, x[few], result.x_adv[few], y[few])
        result.figures["paths"] = path_figure(target, x[few], y[few], o.eps)
        return result

    def _goal(self, target: Target) -> Goal:
        if self.options.goal == "untargeted":
            return Goal()
        if self.options.goal not in target.classes:
            raise ConfigError(f"goal must be untargeted or one of {target.classes[:20]}, not {self.options.goal!r}")
        if self.options.direction != "gradient":
            raise ConfigError("a wanted class goes with direction=gradient only")
        return Goal(target.classes.index(self.options.goal))

    def _one(self, target: Target, x: Tensor, y: Tensor, goal: Goal, generator: torch.Generator) -> AttackResult:
        o = self.options
        if o.direction != "gradient":
            return control(target, x, y, o.eps, o.direction, generator, o.norm)
        return ascend(target, x, y, eps=o.eps, norm=o.norm, goal=goal, start=o.start, generator=generator)

    def _timed(self, name: str, target: Target, x: Tensor, y: Tensor, goal: Goal, run: Any) -> tuple[AttackResult, Row]:
        begin = time.perf_counter()
        result = join([run(a, b) for a, b in in_batches(x, y, self.options.batch)])
        seconds = (time.perf_counter() - begin) / len(x)
        label = name if self.options.direction == "gradient" or name != "fgsm" else f"fgsm:{self.options.direction}"
        facts = {"knowledge": "white box", "norm": self.options.norm, "eps": self.options.eps, "s/image": seconds}
        return result, attack_row(target, x, y, result, method=label, goal=goal, **facts)


def strip_figure(target: Target, x: Tensor, x_adv: Tensor, y: Tensor):
    """Each column: input, perturbation (mid grey is zero, scaled to its own size), adversarial input, with class
    and confidence.
    """
    from matplotlib.figure import Figure

    with torch.no_grad():
        answers = [target.logits(batch).softmax(1).max(1) for batch in (x, x_adv)]
    step = x_adv - x
    eta = 0.5 + step / (2 * step.abs().amax().clamp_min(1e-12))
    lows, width = target.space.lo, target.space.width
    figure = Figure(figsize=(1.3 * len(x), 4.6), layout="constrained")
    axes = figure.subplots(3, len(x), squeeze=False)
    for i in range(len(x)):
        for row, picture in enumerate(((x[i] - lows) / width, eta[i], (x_adv[i] - lows) / width)):
            shown = picture.detach().cpu().permute(1, 2, 0).clamp(0, 1).numpy()
            axes[row, i].imshow(
                shown.squeeze(2) if shown.shape[2] == 1 else shown[..., :3], cmap="gray", vmin=0, vmax=1
            )
            axes[row, i].axis("off")
        for row, answer in ((0, answers[0]), (2, answers[1])):
            right = int(answer.indices[i]) == int(y[i])
            text = f"{target.classes[int(answer.indices[i])]} {100 * float(answer.values[i]):.0f}%"
            axes[row, i].set_title(text, fontsize=9, color="black" if right else "firebrick")
    return figure


def path_figure(target: Target, x: Tensor, y: Tensor, eps: float):
    """Logit of the true class minus the best other, along the gradient's sign, one line per input."""
    from matplotlib.figure import Figure

    steps, logits = logit_paths(target, x, y, 2 * eps, points=41)
    true = logits.gather(2, y.view(1, -1, 1).expand(len(steps), -1, 1)).squeeze(2)
    other = logits.masked_fill(F.one_hot(y, logits.shape[2]).bool(), float("-inf")).amax(2)
    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot((255 * steps).cpu().numpy(), (true - other).cpu().numpy(), lw=1)
    axes.axhline(0, color="black", lw=0.8)
    for edge in (-255 * eps, 255 * eps):
        axes.axvline(edge, color="grey", lw=0.8, ls=":")
    axes.set(xlabel="step along sign(gradient), in 255ths of the range", ylabel="true logit minus best other")
    return figure


# -- adversarial training ----------------------------------------------------------------------------------------------


@config
class TrainingOptions:
    eps: float = option(8 / 255, "size, as a fraction of the input range", low=0.0, high=1.0)
    a: float = option(0.5, "share of the clean loss", low=0.0, high=1.0)
    norm: str = option("inf", "which ball", choices=("inf", "2"))
    clean: int = option(200, "clean steps before the first perturbation (0 for a warm start)", low=0)
    ramp: int = option(200, "steps over which eps then grows to its size", low=0)
    layer: str = option("", "perturb the input of this submodule instead of the pixels")


@training_method("fgsm")
class AdversarialTraining(TrainingMethod[TrainingOptions]):
    """Adds FGSM examples of the current network to the loss of any supervised recipe whose model takes inputs in
    its target's space.

    Everything depends on the recipe's own iteration count, so there is no state of its own to save.
    """

    def __init__(self, options: TrainingOptions | None = None) -> None:
        super().__init__(options)
        self._space: Space | None = None

    def attach(self, recipe: Recipe[Any]) -> None:
        self.require_supervised(recipe)

    def size(self, iteration: int) -> float:
        """The present eps."""
        o = self.options
        after = iteration - o.clean
        return o.eps * min(1.0, max(0.0, (after + 1) / (o.ramp + 1) if after >= 0 else 0.0))

    def objective(self, recipe: Recipe[Any], batch: Batch, objective: Objective) -> tuple[Tensor, Scalars]:
        size, o = self.size(recipe.iteration), self.options
        if size == 0.0 or o.a == 1.0:
            return objective(batch)
        if self._space is None:
            self._space = recipe.target().space
        return adversarial_objective(
            recipe.model, lambda: objective(batch), eps=size, space=self._space, a=o.a, norm=o.norm, layer=o.layer
        )


# -- the claims --------------------------------------------------------------------------------------------------------


@config
class Config:
    experiment: str = option("attack", "what to measure", choices=("attack", "training"))
    eps: float = option(8 / 255, "size, as a fraction of the input range", low=0.0, high=1.0)
    direction: str = option("gradient", "attack: gradient or a control", choices=DIRECTIONS)
    adversarial: bool = option(True, "training: with adversarial examples, or plainly for equal steps")
    steps: int = option(450, "training: fine-tuning steps", low=1)
    lr: float = option(2e-3, "training: AdamW rate", low=0.0)
    samples: int = option(1000, "test samples", low=10)
    target_steps: int = option(900, "training steps of the network to be attacked", low=1)
    target_samples: int = option(12_000, "pictures that it is trained on", low=10)


ATTACK = Claim(
    name="fast-gradient",
    statement="FGSM at 8/255 leaves an accuracy at least 60 points below random signs of equal size.",
    metric="robust_accuracy",
    direction="lower",
    margin=0.60,
    paper="Section 4: MNIST, eps 0.25: 99.9 % error of a shallow softmax, 89.4 % of a maxout network",
    arms={"fgsm": Arm(), "random-sign": Arm({"direction": "noise"})},
    system="fgsm",
    baselines=("random-sign",),
    sabotage=Arm({"direction": "permuted"}),
)
TRAINING = Claim(
    name="adversarial-training",
    statement="Fine-tuning on FGSM examples gains 30 points under FGSM over plain fine-tuning, and loses at most 3 clean.",
    metric="fgsm_accuracy",
    direction="higher",
    margin=0.30,
    paper="Section 6: error on adversarial examples 89.4 -> 17.9 %, clean error 0.94 -> 0.84 %",
    arms={
        "adversarial": Arm({"experiment": "training"}),
        "plain": Arm({"experiment": "training", "adversarial": False}),
    },
    system="adversarial",
    baselines=("plain",),
    sabotage=Arm({"experiment": "training", "adversarial": False}),
    conditions=(Condition("adversarial", "clean_change", ">=", -0.03),),
)


@study("fgsm")
class FGSMStudy(Study[Config]):
    """Attacks a small trained network; or fine-tunes it on adversarial examples and attacks it again."""

    presets = {
        "smoke": Config(samples=64, steps=4, target_steps=60, target_samples=600),
        "laptop": Config(),
        "paper": Config(samples=10000, steps=20000, target_steps=10_000),
    }
    claims = (ATTACK, TRAINING)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        overrides = {**SMALL_COLOUR_TARGET, "steps": c.target_steps, "samples": c.target_samples}
        target = trained("vgg", data="glyphs", overrides=overrides, seed=seed).target()
        progress(1, 2)
        metrics = self._attack(target, seed) if self.config.experiment == "attack" else self._training(target, seed)
        progress(2, 2)
        sizes = [i / 255 for i in (0, 1, 2, 4, 8, 12, 16)]
        x, y = (part[:200] for part in self._samples(target, seed))
        errors = [1 - float((target.logits(fgsm(target, x, y, s).x_adv).argmax(1) == y).float().mean()) for s in sizes]
        return Measurement(metrics, Curves({"FGSM error over 255 eps": ([255 * s for s in sizes], errors)}))

    def _samples(self, target: Target, seed: int) -> tuple[Tensor, Tensor]:
        parts = list(target.batches("test", min(self.config.samples, target.size("test")), seed))
        return torch.cat([x for x, _, _ in parts]), torch.cat([y for _, y, _ in parts])

    def _attack(self, target: Target, seed: int) -> dict[str, float]:
        c, generator = self.config, torch.Generator().manual_seed(seed)
        attack = FGSM(Options(eps=c.eps, direction=c.direction, reference=False))
        x, y = self._samples(target, seed)
        row = attack.attack(target, x, y, generator).rows[0]
        metrics = {"robust_accuracy": row["robust accuracy"], "clean_accuracy": row["clean accuracy"]}
        for size in (2, 8):
            steps, logits = logit_paths(target, x[:200], y[:200], size / 255)
            fits = line_fit(steps, logits.gather(2, y[:200].view(1, -1, 1).expand(len(steps), -1, 1)).squeeze(2))
            metrics[f"straight_{size}"] = float((fits >= 0.9).float().mean())
        return metrics

    def _training(self, target: Target, seed: int) -> dict[str, float]:
        tuned = copy.copy(target)
        tuned.module = self._tune(target, seed, self.config.adversarial)
        x, y = self._samples(target, seed)
        after = fgsm(tuned, x, y, self.config.eps)
        strong = pgd(tuned, x, y, eps=self.config.eps, generator=torch.Generator().manual_seed(seed))
        clean = tuned.metric()["accuracy"]
        metrics = {"clean_accuracy": clean, "fgsm_accuracy": _accuracy(tuned, after, y)}
        metrics["pgd_accuracy"] = _accuracy(tuned, strong, y)
        plain = target.metric(self._tune(target, seed, False))["accuracy"] if self.config.adversarial else clean
        return {**metrics, "clean_change": clean - plain}

    def _tune(self, target: Target, seed: int, adversarial: bool) -> nn.Module:
        """A fine-tuned copy of the trained network: the warm start that adversarial training needs."""
        c = self.config

        def loss(module: nn.Module, x: Tensor, y: Tensor, meta: dict[str, Tensor]) -> Tensor:
            plain = lambda: (F.cross_entropy(module(x), y), {})  # noqa: E731
            return adversarial_objective(module, plain, eps=c.eps, space=target.space)[0] if adversarial else plain()[0]

        settings = {"factory": torch.optim.AdamW, "lr": c.lr, "lr_scale": 1.0, "weight_decay": 1e-4, "loss": loss}
        generator = torch.Generator().manual_seed(seed)
        return target.finetune(copy.deepcopy(target.module), steps=c.steps, generator=generator, **settings)


@torch.no_grad()
def _accuracy(target: Target, result: AttackResult, y: Tensor) -> float:
    return float((target.logits(result.x_adv).argmax(1) == y).float().mean())
