"""The attacker with its controls and curves, and the study of attacks through a substitute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Attacker, Measurement, Progress, Study, attacker, study
from cambrian.engine.samples import Curves, Table
from cambrian.engine.targets import trained
from cambrian.errors import DataError
from cambrian.inspect.attack import ascend, attack_row, in_batches, join
from cambrian.inspect.carlini_wagner import carlini_wagner
from cambrian.inspect.results import AttackResult, Row
from cambrian.inspect.target import ModuleTarget, Target
from cambrian.systems.attack.blackbox._pictures import curve_figure, growth_figure
from cambrian.systems.attack.blackbox._saliency_map import SCORES
from cambrian.systems.attack.blackbox.model import (
    ARCHITECTURES,
    AUGMENTATIONS,
    METHODS,
    Oracle,
    Substitute,
    agreement,
    balanced,
    blackbox_attack,
    planned_queries,
    train_substitute,
)

VICTIMS = ("cnn", "logistic", "svm", "tree", "knn")


@config
class Training:
    seeds: int = option(100, "inputs of the attacker's own that the substitute starts from", low=2)
    rounds: int = option(6, "augmentations; each doubles the set", low=0, high=12)
    lam: float = option(0.1, "step of the augmentation, as a fraction of the input range", low=-1.0, high=1.0)
    augmentation: str = option("jacobian", "how the set grows", choices=AUGMENTATIONS)
    scores: str = option("logit", "whose gradient the augmentation follows", choices=SCORES)
    period: int = option(0, "rounds after which the step changes its sign; 0: never", low=0)
    keep: int = option(0, "new points a round by reservoir sampling; 0: all", low=0)
    after: int = option(3, "first round with reservoir sampling", low=0)
    arch: str = option("lenet-1998", "the substitute", choices=ARCHITECTURES)
    steps: int = option(150, "training steps in each round but the last", low=1)
    final: int = option(900, "training steps in the last round", low=1)
    batch: int = option(64, "points per training step", low=1)
    lr: float = option(1e-3, "Adam's rate", low=0.0)
    budget: int = option(6400, "label queries that training may use", low=1)

    def substitute(self, oracle: Oracle, seeds: Tensor, generator: torch.Generator, **more: Any) -> Substitute:
        """Trained with these options."""
        names = (
            "rounds",
            "lam",
            "augmentation",
            "scores",
            "period",
            "keep",
            "after",
            "arch",
            "steps",
            "final",
            "batch",
            "lr",
        )
        return train_substitute(oracle, seeds, generator=generator, **{n: getattr(self, n) for n in names}, **more)

    @property
    def planned(self) -> int:
        """Label queries that training will use."""
        grown = self.augmentation != "none"
        return planned_queries(self.seeds, self.rounds, self.keep, self.after) if grown else self.seeds


@config
class Options(Training):
    eps: float = option(0.25, "size, as a fraction of the input range", low=0.0, high=1.0)
    method: str = option("fgsm", "what fools the substitute", choices=METHODS)
    gamma: float = option(0.1, "jsma: largest share of values that it touches", low=0.0, high=1.0)
    split: str = option("valid", "where the seeds come from; never the split that is attacked")
    reference: bool = option(True, "report random signs and the white-box attack beside it")
    watched: int = option(200, "inputs on which each round is judged, for the curves; not counted as queries", low=0)
    cw_steps: int = option(
        0, "steps of the white-box attack of least distortion (Carlini, Wagner) beside it; 0: none", low=0
    )
    batch_attack: int = option(256, "samples per pass", low=1)


@attacker("blackbox")
class BlackBox(Attacker[Options]):
    """Trains a substitute on the victim's labels, and sends the victim what fools the substitute."""

    needs = ("labels_only",)
    quick = {"seeds": 40, "rounds": 2, "steps": 40, "final": 60}

    def attack(self, target: Target, x: Tensor, y: Tensor, generator: torch.Generator) -> AttackResult:
        """Seeds from another split, a substitute within the budget, the attack; rows of it and of its references."""
        o = self.options
        target.check(x, y)
        oracle, judge, begin = Oracle(target, o.budget), Oracle(target), time.perf_counter()
        seeds = seed_set(target, o.split, o.seeds, generator)

        def watch(made: ModuleTarget) -> Row:
            a, b = x[: o.watched], y[: o.watched]
            if not len(a):
                return {}
            found = blackbox_attack(judge, made, a, o.eps, y=b)
            return {"agreement": agreement(judge, made, a), "transfer": _rate(found, judge(a) == b)}

        substitute = o.substitute(oracle, seeds, generator, watch=watch)
        spent = time.perf_counter() - begin
        result = self._through(judge, substitute, target, x, y, o.method, generator)
        facts = {"norm": "inf", "eps": o.eps}
        row = _row(target, x, y, result, f"{o.method} on {o.arch}", "labels only", facts, oracle.queries)
        result.rows = [{**row, "s/image": spent / len(x), "agreement": agreement(judge, substitute, x)}]
        if o.reference:
            noise = self._through(judge, substitute, target, x, y, "noise", generator)
            result.rows.append(_row(target, x, y, noise, "random sign", "none", facts, 0))
            result.rows += self._white_box(target, x, y, facts)
        result.figures["queries"] = curve_figure(substitute.rounds)
        if target.space.kind == "image":
            result.figures["growth"] = growth_figure(substitute, o.seeds, target.classes)
        return result

    def _white_box(self, target: Target, x: Tensor, y: Tensor, facts: Row) -> list[Row]:
        """What an attacker could do who sees the victim."""
        o = self.options
        if target.offers()["grad_x"] is not None:
            return []
        makers = {"fgsm on the victim": (facts, lambda a, b: ascend(target, a, b, eps=o.eps))}
        if o.cw_steps:
            least = {"norm": "2", "eps": None}
            makers["carlini-wagner on the victim"] = (
                least,
                lambda a, b: carlini_wagner(target, a, b, steps=o.cw_steps),
            )
        rows = []
        for name, (known, make) in makers.items():
            found = join([make(a, b) for a, b in in_batches(x, y, o.batch_attack)])
            rows.append(_row(target, x, y, found, name, "white box", known, 0))
        return rows

    def _through(
        self, judge: Oracle, made: Substitute, target: Target, x: Tensor, y: Tensor, method: str, g: torch.Generator
    ) -> AttackResult:
        o = self.options
        parts = [
            blackbox_attack(judge, made, a, o.eps, y=b, method=method, gamma=o.gamma, generator=g)
            for a, b in in_batches(x, y, o.batch_attack)
        ]
        return join(parts)


def _row(
    target: Target, x: Tensor, y: Tensor, result: AttackResult, method: str, knowledge: str, facts: Row, asked: int
) -> Row:
    row = attack_row(target, x, y, result, method=method, knowledge=knowledge, **facts)
    return {**row, "label queries": asked}


def seed_set(target: Target, split: str, count: int, generator: torch.Generator) -> Tensor:
    """`count` inputs `[N,...]` of a split, every class present as far as it has them: what an attacker collects by hand.

    Raises `DataError` when the split has fewer.
    """
    total = target.size(split)
    if total < count:
        raise DataError(f"split {split!r} has {total} samples, fewer than the {count} seeds wanted")
    number = int(torch.randint(2**31, (1,), generator=generator))
    x, y, _ = next(target.batches(split, min(total, 20 * count), number, size=20 * count))
    return x[balanced(y, count, generator)]


def _rate(found: AttackResult, right: Tensor) -> float:
    return float(found.success.sum()) / max(int(right.sum()), 1)


# -- the claims --------------------------------------------------------------------------------------------------------


@config
class Config(Training):
    victim: str = option("cnn", "which model is attacked", choices=VICTIMS)
    attack: str = option("fgsm", "what fools the substitute; noise needs none", choices=METHODS)
    shuffle: bool = option(False, "permute the victim's labels before training (a control)")
    samples: int = option(500, "test inputs", low=10)
    network: str = option("lenet-5", "the victim network", choices=ARCHITECTURES[2:])
    size: int = option(20, "edge of the pictures", low=16, high=64)
    target_lr: float = option(0.01, "learning rate of the victim network", low=0.0)
    target_steps: int = option(300, "training steps of the victim network", low=1)
    fitted: int = option(2000, "training samples of a scikit-learn victim", low=20)
    each_round: bool = option(False, "judge the substitute of each round, for the curves")


TRANSFER = Claim(
    name="substitute",
    statement="With at most 6,400 label queries, FGSM at 0.25 on a substitute changes at least 30 points more of a CNN's right "
    "labels than random signs of equal size.",
    metric="success",
    direction="higher",
    margin=0.30,
    paper="Abstract: 84.24 % of the examples fool MetaMind's network after 6,400 queries; Amazon 96.19 %, Google 88.94 %",
    arms={"substitute": Arm(), "random-sign": Arm({"attack": "noise"})},
    system="substitute",
    baselines=("random-sign",),
    sabotage=Arm({"shuffle": True}),
    conditions=(
        Condition("substitute", "label_queries", "<=", 6400),
        Condition("substitute", "clean_accuracy", ">=", 0.95),
    ),
)


def _mechanism(size: int) -> Claim:
    return Claim(
        name=f"augmentation-{size}",
        statement=f"Jacobian augmentation fools the CNN on at least 5 points more at 0.{size} than as many queries in random "
        "directions, and than the seeds alone, substitutes trained for equal steps.",
        metric=f"success_{size}",
        direction="higher",
        margin=0.05,
        paper="Section 4.2 argues for the Jacobian's directions; figure 5 and table 2 show success growing with the rounds",
        arms={"jacobian": Arm(), "random": Arm({"augmentation": "random"}), "seeds": Arm({"augmentation": "none"})},
        system="jacobian",
        baselines=("random", "seeds"),
        sabotage=Arm({"shuffle": True}),
    )


@study("blackbox")
class BlackBoxStudy(Study[Config]):
    """Trains a substitute on the labels of a small victim that it does not know, and attacks the victim through it."""

    presets = {
        "smoke": Config(seeds=40, rounds=2, steps=10, final=20, samples=60, target_steps=60, fitted=300),
        "laptop": Config(),
        "paper": Config(seeds=150, samples=10_000, steps=1000, final=3000, target_steps=3000),
    }
    claims = (TRANSFER, _mechanism(25), _mechanism(15))

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c, generator = self.config, torch.Generator().manual_seed(seed)
        settings = {"net": c.network, "size": c.size, "steps": c.target_steps, "lr": c.target_lr}
        network = trained("resnet", data="glyphs", overrides=settings, seed=seed).target()
        x, y, _ = next(network.batches("test", c.samples, seed, size=c.samples))
        victim = network if c.victim == "cnn" else estimator(c.victim, network, c.fitted, seed)
        budgeted, judge = (Oracle(victim, budget, space=network.space) for budget in (c.budget, None))
        progress(1, 3)
        right = judge(x) == y
        metrics = {"clean_accuracy": float(right.float().mean()), "label_queries": 0.0}
        rows: list[Row] = []
        made: Substitute | Target = network
        if c.attack != "noise":
            seeds = seed_set(network, "valid", c.seeds, generator)

            def watch(target: ModuleTarget) -> Row:
                found = blackbox_attack(judge, target, x, 0.25, y=y)
                return {"agreement": agreement(judge, target, x), "transfer": _rate(found, right)}

            made = c.substitute(budgeted, seeds, generator, shuffle=c.shuffle, watch=watch if c.each_round else None)
            rows = made.rounds
            metrics["label_queries"] = float(budgeted.queries)
            metrics["agreement"] = agreement(judge, made, x)
        progress(2, 3)
        for name, size in (("success_15", 0.15), ("success_25", 0.25)):
            found = blackbox_attack(judge, made, x, size, y=y, method=c.attack, generator=generator)
            metrics[name] = _rate(found, right)
        metrics["success"] = metrics["success_25"]
        progress(3, 3)
        return Measurement(metrics, curves(rows) if c.each_round and rows else Table.of([metrics]))


def estimator(kind: str, network: ModuleTarget, count: int, seed: int) -> Any:
    """A scikit-learn classifier fitted on flat training pictures of the network's data."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import SVC
    from sklearn.tree import DecisionTreeClassifier

    makers = {
        "logistic": lambda: LogisticRegression(max_iter=200),
        "svm": lambda: SVC(),
        "tree": lambda: DecisionTreeClassifier(random_state=seed),
        "knn": lambda: KNeighborsClassifier(5),
    }
    x, y, _ = next(network.batches("train", min(count, network.size("train")), seed, size=count))
    return makers[kind]().fit(x.flatten(1).numpy(), y.numpy())


def curves(rows: list[Row]) -> Curves:
    """Agreement and transfer over label queries."""
    xs = [float(row["label queries"]) for row in rows]
    return Curves({name: (xs, [float(r[name]) for r in rows]) for name in ("agreement", "transfer")}, x="label queries")
