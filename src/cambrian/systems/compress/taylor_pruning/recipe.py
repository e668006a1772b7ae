"""The compressor, and the study of a transferred network: agreement with the oracle, and accuracy after pruning."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Compressor, Measurement, Progress, Study, compressor, study
from cambrian.engine.samples import Table
from cambrian.engine.targets import kept, trained
from cambrian.errors import ConfigError
from cambrian.inspect.results import Compression, Row
from cambrian.inspect.size import compression_row, store
from cambrian.inspect.surgery import ChannelGraph
from cambrian.inspect.target import Target, wrap
from cambrian.systems.compress.taylor_pruning import _criteria as criteria
from cambrian.systems.compress.taylor_pruning._figures import agreement, rank_figure, tradeoff_figure, width_figure
from cambrian.systems.compress.taylor_pruning.model import (
    CRITERIA,
    Pruner,
    Until,
    prune,
    reestimate,
    score,
)
from cambrian.worlds import glyphs

# -- the compressor --------------------------------------------------------------------------------------------------


@config
class Options:
    criterion: str = option("taylor", "what ranks the maps", choices=CRITERIA)
    until: str = option("flops=0.5", "flops, params or maps = the share to go down to; accuracy = the least")
    updates: int = option(30, "fine-tuning steps before each removal", low=0)
    maps: int = option(4, "maps removed at a time", low=1)
    final: int = option(300, "fine-tuning steps at the end", low=0)
    samples: int = option(256, "training samples that the criterion looks at", low=2)
    lr: float = option(0.01, "rate of fine-tuning", low=0.0)
    batch: int = option(32, "samples per fine-tuning step", low=1)
    l2: bool = option(True, "divide scores by their layer's norm")
    flops: float = option(1e-3, "weight of the MFLOPs that a map costs", low=0.0)
    units: bool = option(False, "remove hidden units of linear layers too")
    compare: tuple[str, ...] = option((), "other criteria to run beside it")
    oracle: bool = option(True, "compare ranks with those of removing each map")

    def check(self) -> None:
        Until.parse(self.until)
        unknown = set(self.compare) - set(CRITERIA)
        if unknown:
            raise ConfigError(f"compare takes {', '.join(CRITERIA)}, not {sorted(unknown)[0]!r}")


@compressor("taylor-pruning")
class TaylorPrune(Compressor[Options]):
    """Any trained classifier -> the same network with fewer feature maps, and its `.cmb` file."""

    needs = ("logits", "retrain")
    quick = {"updates": 4, "maps": 12, "final": 60, "oracle": False, "until": "flops=0.7"}

    def stages(self) -> tuple[str, ...]:
        return ("restructure",)

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The smaller module, `taylor-pruning.cmb`, and a row for each criterion that was run."""
        o = self.options
        names = list(dict.fromkeys([o.criterion, *o.compare]))
        seed = int(torch.randint(2**31, (1,), generator=generator))
        batches = list(target.batches("train", min(o.samples, target.size("train")), seed, size=128))
        truth = criteria.oracle(target, batches, units=o.units) if o.oracle else None
        before = target.metric()["accuracy"]
        rows, histories, works = [], {}, {}
        for name in names:
            history: list[Row] = []
            works[name] = self._prune(target, name, seed, history)
            histories[name] = history
            path = directory / f"{'taylor-pruning' if name == o.criterion else name}.cmb"
            work = works[name]
            store(path, work.module, work.state, chain=work.state.stages, criterion=name)
            first = score(name, target, batches, units=o.units, generator=torch.Generator().manual_seed(seed))
            facts = agreement(first, truth) if truth is not None else {}
            rows.append(self._row(target, works[name], path, name, before) | facts)
        first = score(o.criterion, target, batches, units=o.units, generator=torch.Generator().manual_seed(seed))
        figures = {"tradeoff": tradeoff_figure(histories, before), "ranks": rank_figure(first, truth)}
        figures["widths"] = width_figure(*(_widths(target, m) for m in (target.module, works[o.criterion].module)))
        file = directory / "taylor-pruning.cmb"
        return Compression(works[o.criterion].module, rows, file, works[o.criterion].state, figures)

    def _prune(self, target: Target, criterion: str, seed: int, history: list[Row]) -> Pruner:
        """Prune, and follow the test accuracy about twenty times on the way (with batch norm estimated anew)."""
        o = self.options

        def note(work: Pruner) -> None:
            row = work.history[-1]
            last = history[-1]["maps left"] if history else 1.0
            left = {f"{m} left": row[m] / work.start[m] for m in ("flops", "params", "maps")}
            if last - left["maps left"] >= 0.025 or not history:
                here = reestimate(copy.deepcopy(work.module), work.batches)
                history.append({**left, "accuracy": target.metric(here)["accuracy"]})

        return prune(
            target, criterion=criterion, until=Until.parse(o.until), updates=o.updates, maps=o.maps, final=o.final,
            samples=o.samples, lr=o.lr, batch=o.batch, l2=o.l2, flops=o.flops, units=o.units, progress=note,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip

    def _row(self, target: Target, work: Pruner, path: Path, criterion: str, before: float) -> Row:
        o, left = self.options, work.sizes()
        facts = {
            "accuracy before": before,
            "accuracy after": target.metric(work.module)["accuracy"],
            "retrain steps": o.updates * len(work.history) + o.final,
            "maps": left["maps"],
            "MFLOPs": left["flops"] / 1e6,
        }
        facts |= {f"{m} left": left[m] / work.start[m] for m in ("maps", "params", "flops")}
        return compression_row(target, work.module, path, chain=f"taylor-pruning:{criterion}", **facts)


def _widths(target: Target, module: nn.Module) -> dict[str, int]:
    return {n: len(group) for n, group in ChannelGraph(module, target.example()).prunable(units=True).items()}


# -- the claims ------------------------------------------------------------------------------------------------------


@config
class Config:
    experiment: str = option("ranks", "what to measure", choices=("ranks", "prune"))
    criterion: str = option("taylor", "what ranks the maps", choices=CRITERIA[:-1])
    gradient: str = option("own", "taylor's gradient, or a control", choices=("own", "permuted", "ones"))
    absolute: str = option("example", "where taylor takes the absolute value", choices=("example", "batch"))
    l2: bool = option(True, "divide scores by their layer's norm")
    scored: int = option(512, "pictures that the criterion and the oracle look at", low=2)
    until: str = option("flops=0.5", "prune: where to stop")
    updates: int = option(6, "prune: fine-tuning steps before each removal", low=0)
    maps: int = option(3, "prune: maps removed at a time", low=1)
    lr: float = option(0.01, "prune: rate of fine-tuning", low=0.0)
    stages: int = option(3, "stages of the VGG-A; each halves the picture", low=1, high=5)
    base_steps: int = option(600, "training steps on the first domain", low=1)
    steps: int = option(300, "training steps on the second domain", low=1)
    samples: int = option(2000, "training pictures of the second domain", low=20)

    def check(self) -> None:
        Until.parse(self.until)


RANKS = Claim(
    name="oracle-ranks",
    statement="Spearman's correlation with the oracle, mean over layers, is at least 0.2 higher for the Taylor criterion "
    "than for mean squared weights, and at least 0.5.",
    metric="per_layer",
    direction="higher",
    margin=0.2,
    paper="Table 1: VGG-16 on Birds-200, per layer: Taylor 0.73, weight 0.27, mean activation 0.56",
    arms={"taylor": Arm(), "weight": Arm({"criterion": "weight"})},
    system="taylor",
    baselines=("weight",),
    sabotage=Arm({"gradient": "permuted"}),
    conditions=(Condition("taylor", "per_layer", ">=", 0.5),),
)
NORM = Claim(
    name="l2-across-layers",
    statement="Normalising by a layer's l2 norm raises Taylor's correlation with the oracle across layers by 0.1.",
    metric="across",
    direction="higher",
    margin=0.1,
    paper="Table 1: across layers, Taylor 0.14 raw, 0.73 with l2 normalisation",
    arms={"l2": Arm(), "raw": Arm({"l2": False})},
    system="l2",
    baselines=("raw",),
    sabotage=Arm({"l2": False}),
)
PRUNING: dict[str, object] = {"experiment": "prune", "stages": 4}
PRUNE = Claim(
    name="half-the-flops",
    statement="At half the FLOPs, before the final fine-tuning, maps chosen by Taylor leave 5 points more accuracy than "
    "maps chosen by weight or at random, with equal updates.",
    metric="accuracy",
    direction="higher",
    margin=0.05,
    paper="figures 4 to 6: Birds-200, Flowers-102: Taylor above weight, activation and random at equal FLOPs",
    arms={
        "taylor": Arm({**PRUNING}),
        "weight": Arm({**PRUNING, "criterion": "weight"}),
        "random": Arm({**PRUNING, "criterion": "random"}),
    },
    system="taylor",
    baselines=("weight", "random"),
    sabotage=Arm({**PRUNING, "criterion": "random"}),
)


@study("taylor-pruning")
class TaylorPruningStudy(Study[Config]):
    """Scores, or prunes, a network that was trained on one kind of characters and transferred to another."""

    presets = {
        "smoke": Config(scored=64, base_steps=40, steps=30, samples=200, maps=24, updates=2),
        "laptop": Config(),
        "paper": Config(scored=5000, base_steps=20_000, steps=20_000, samples=6000, updates=30, maps=1),
    }
    claims = (RANKS, NORM, PRUNE)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        target = transferred(c.stages, c.base_steps, c.steps, c.samples, seed)
        progress(1, 2)
        found = self._ranks(target, seed) if c.experiment == "ranks" else self._prune(target, seed)
        progress(2, 2)
        return found

    def _ranks(self, target: Target, seed: int) -> Measurement:
        c, generator = self.config, torch.Generator().manual_seed(seed)
        batches = list(target.batches("train", min(c.scored, target.size("train")), seed, size=128))
        truth = criteria.oracle(target, batches)
        if c.criterion == "taylor":
            settings = {"absolute": c.absolute, "gradient": c.gradient, "generator": generator}
            scores = criteria.taylor(target, batches, **settings)
        else:
            scores = score(c.criterion, target, batches, units=False, generator=generator)
        found = agreement(scores, truth)
        across = found["spearman across"] if c.l2 else found["spearman across, raw"]
        metrics = {"per_layer": found["spearman per layer"], "across": across, "accuracy": target.metric()["accuracy"]}
        rows = [[n, i, float(s), float(truth[n][i])] for n, value in scores.items() for i, s in enumerate(value)]
        return Measurement(metrics, Table(["layer", "map", c.criterion, "oracle"], rows))

    def _prune(self, target: Target, seed: int) -> Measurement:
        c = self.config
        work = prune(
            target, criterion=c.criterion, until=Until.parse(c.until), updates=c.updates, maps=c.maps,
            samples=min(c.scored, 256), lr=c.lr, l2=c.l2, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        left = work.sizes()
        metrics = {"accuracy": target.metric(work.module)["accuracy"], "start": target.metric()["accuracy"]}
        metrics |= {f"{m}_left": left[m] / work.start[m] for m in ("maps", "params", "flops")}
        before, after = (_widths(target, module) for module in (target.module, work.module))
        widths = [[name, count, after[name]] for name, count in before.items()]
        return Measurement(metrics, Table(["layer", "maps before", "maps after"], widths))


BASE: dict[str, object] = {
    "plan": "A", "samples": 8000, "lr": 0.1, "weight_decay": 1e-4, "characters": "alnum", "channels": 3,
}  # fmt: skip
SECOND = "abdefghmnqrt"


def transferred(stages: int, base_steps: int, steps: int, samples: int, seed: int) -> Target:
    """A VGG-A of an eighth of the widths, trained on 36 plain coloured capitals and digits, then on
    `samples` pictures of twelve small letters on photographed textures.
    """
    data = glyphs.load(
        train=samples, valid=500, test=2000, seed=seed, size=32, characters=SECOND, colour=True, ground="texture"
    )
    base = trained("vgg", data="glyphs", overrides={**BASE, "stages": stages, "steps": base_steps}, seed=seed).target()
    module = copy.deepcopy(base.module)
    old = module.classifier[-1]
    module.classifier[-1] = nn.Linear(old.in_features, len(SECOND))
    nn.init.normal_(module.classifier[-1].weight, 0.0, 0.01, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(module.classifier[-1].bias)
    target = wrap(module, space=base.space, classes=data.info["classes"], data=data)

    def train(net: nn.Module) -> None:
        how = {"lr": 0.05, "lr_scale": 1.0, "weight_decay": BASE["weight_decay"]}
        target.finetune(net, steps=steps, generator=torch.Generator().manual_seed(seed), **how)

    facts = {"base_steps": base_steps, "steps": steps, "samples": samples, "seed": seed, **BASE, "stages": stages}
    target.module = kept("taylor-pruning", facts, module, train)
    return target
