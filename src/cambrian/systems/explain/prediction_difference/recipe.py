"""The explainer with its comparison of samplers, classes, sizes and layers, and the study on scenes whose object is known."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Explainer, Measurement, Progress, Study, explainer, study
from cambrian.engine.samples import Plot
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.maps import (
    boxes,
    deletion_auc,
    explain_row,
    insertion_auc,
    mask_mass,
    overlay_figure,
    pointing_hits,
)
from cambrian.inspect.results import Explanation, Row
from cambrian.inspect.target import Target
from cambrian.systems.explain.prediction_difference._pictures import crowded, scene_reader
from cambrian.systems.explain.prediction_difference._samplers import patch_corners
from cambrian.systems.explain.prediction_difference.model import PDA, SAMPLERS, spread

# -- explain -----------------------------------------------------------------------------------------------------------


@config
class Options:
    k: int = option(4, "edge of a patch in pixels", low=1)
    window: int = option(8, "edge of the surroundings that a patch is conditioned on", low=1)
    stride: int = option(2, "pixels between patches", low=1)
    samples: int = option(10, "replacements for a patch", low=1)
    samplers: tuple[str, ...] = option(
        ("conditional", "marginal", "grey"),
        "what to compare, joined by ;, the first is also shown by class, size and unit",
    )
    quantity: str = option("prob", "prob (log-odds), logit, or unit:LAYER/CHANNEL")
    images: int = option(6, "pictures", low=1)
    split: str = option("test", "where they come from", choices=("train", "valid", "test"))
    top: int = option(3, "classes in the comparison of classes, likeliest first", low=1)
    sizes: tuple[int, ...] = option((), "further patch sizes to show (window grows with them)")
    units: tuple[str, ...] = option((), "feature maps to compare, as LAYER/CHANNEL")
    control: bool = option(True, "compare with the map of the network with fresh weights (doubles the cost)")

    def check(self) -> None:
        """Raise `ConfigError` for a sampler that there is not."""
        unknown = [name for name in self.samplers if name not in SAMPLERS]
        if unknown or not self.samplers:
            raise ConfigError(f"samplers must be some of {', '.join(SAMPLERS)}, not {list(self.samplers)}")


@explainer("prediction-difference")
class PredictionDifference(Explainer[Options]):
    """Evidence for (red) and against (blue) the class that a network names, in some pictures."""

    needs = ("logits", "retrain", "image")
    quick = {"images": 2, "stride": 4, "samples": 4, "control": False, "samplers": ("conditional",)}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """The common table's row of every sampler; maps by sampler, class, patch size and feature map."""
        o = self.options
        if target.space.kind != "image":
            raise CapabilityError(f"patches are cut from pictures; this target takes {target.space.kind}")
        seed = int(torch.randint(2**31, (1,), generator=generator))
        x, _, meta = next(target.batches(o.split, min(o.images, target.size(o.split)), seed))
        with torch.no_grad():
            guess = target.logits(x).topk(min(o.top, len(target.classes)), dim=1).indices
        names = [target.classes[int(i)] for i in guess[:, 0]]
        rows, maps = self._compare(target, x, guess[:, 0], meta, generator)
        figures = {"samplers": overlay_figure(target, x, maps, names)}
        first = self._pda(o.samplers[0])
        if guess.shape[1] > 1:
            found = first(target, x, guess, generator=generator)
            ranks = {f"class {i + 1}": found[:, i : i + 1] for i in range(guess.shape[1])}
            titles = ["/".join(target.classes[int(i)] for i in row) for row in guess]
            figures["classes"] = overlay_figure(target, x, ranks, titles)
        if o.sizes:
            strip = {
                f"k={k}": self._pda(o.samplers[0], k)(target, x, guess[:, 0], generator=generator) for k in o.sizes
            }
            figures["sizes"] = overlay_figure(target, x, strip, names)
        if o.units:
            units = {u: self._pda(o.samplers[0], quantity=f"unit:{u}")(target, x, generator=generator) for u in o.units}
            figures["units"] = overlay_figure(target, x, units, names)
        return Explanation(rows, figures)

    def _pda(self, sampler: str, k: int | None = None, quantity: str | None = None) -> PDA:
        o = self.options
        size = k or o.k
        return PDA(
            k=size,
            window=size + o.window - o.k,
            stride=min(o.stride, size),
            samples=o.samples,
            sampler=sampler,
            quantity=quantity or o.quantity,
        )

    def _compare(
        self, target: Target, x: Tensor, y: Tensor, meta: dict[str, Tensor], generator: torch.Generator
    ) -> tuple[list[Row], dict[str, Tensor]]:
        rows: list[Row] = []
        maps: dict[str, Tensor] = {}
        masks = boxes(meta["mask"].to(x.device)) if "mask" in meta else None
        for name in self.options.samplers:
            pda = self._pda(name)
            made = pda.prepare(target, generator)

            def run(on: Target, a: Tensor, b: Tensor, pda: PDA = pda, made=made, name: str = name) -> Tensor:
                found = pda(on, a, b, generator=generator, sampler=made)
                maps.setdefault(name, found)
                return found

            rows.append(
                explain_row(
                    target,
                    x,
                    y,
                    run,
                    method=f"pda:{name}",
                    quantity=pda.quantity,
                    masks=masks,
                    generator=generator if self.options.control else None,
                )
            )
        return rows, maps


# -- the study ---------------------------------------------------------------------------------------------------------


@config
class Config:
    sampler: str = option("conditional", "what stands in a patch; noise: a random map", choices=(*SAMPLERS, "noise"))
    shuffled: bool = option(False, "condition every scene's patches on the surroundings of another scene")
    k: int = option(4, "edge of a patch in pixels", low=1)
    window: int = option(8, "edge of the surroundings", low=1)
    stride: int = option(2, "pixels between patches", low=1)
    samples: int = option(8, "replacements for a patch", low=1)
    scenes: int = option(48, "scenes that the network reads correctly", low=2)
    distracted: int = option(32, "of them, how many are tried with a distractor too", low=0)
    target_steps: int = option(700, "training steps of the network", low=1)
    target_samples: int = option(8000, "scenes that it is trained on", low=10)


VISIBLE = 8  # pixels of a distractor that count as seen
RANDOM = 20  # random maps for each distractor: chance is known exactly

CLAIM = Claim(
    name="surroundings",
    statement="At least 15 points more of the positive evidence lie in the object's box when patches are sampled given "
    "their surroundings than when they come from other pictures.",
    metric="mass",
    direction="higher",
    margin=0.15,
    paper="figure 3: conditional maps are more focused on the object than marginal ones (shown, not measured)",
    arms={"conditional": Arm(), "marginal": Arm({"sampler": "marginal", "distracted": 0})},
    system="conditional",
    baselines=("marginal",),
    sabotage=Arm({"shuffled": True, "distracted": 0}),
)
GREY = Claim(
    name="grey",
    statement="At least 5 points more of the positive evidence lie in the object's box under conditional samples than "
    "under grey patches, which cost an eighth.",
    metric="mass",
    direction="higher",
    margin=0.05,
    paper="no figure: the paper compares with marginal samples only",
    arms={"conditional": Arm(), "grey": Arm({"sampler": "grey", "distracted": 0})},
    system="conditional",
    baselines=("grey",),
    sabotage=Arm({"shuffled": True, "distracted": 0}),
)
AGAINST = Claim(
    name="against",
    statement="A distractor of another class speaks against the class on 60 % of the scenes, 10 points more often than "
    "under a random map.",
    metric="distractor_against",
    direction="higher",
    margin=0.10,
    paper="section 4.1: blue regions mark what speaks against the class (shown, not measured)",
    arms={"conditional": Arm(), "noise": Arm({"sampler": "noise"})},
    system="conditional",
    baselines=("noise",),
    sabotage=Arm({"sampler": "noise"}),
    conditions=(Condition("conditional", "distractor_against", ">=", 0.6),),
)
DELETION = Claim(
    name="deletion",
    statement="Removing pixels in the order of the map lowers the class's mean probability by 10 points more than a "
    "random order of patches.",
    metric="deletion",
    direction="lower",
    margin=0.10,
    paper="no figure: the measure is later than the paper",
    arms={"conditional": Arm(), "noise": Arm({"sampler": "noise"})},
    system="conditional",
    baselines=("noise",),
    sabotage=Arm({"sampler": "noise"}),
)


@study("prediction-difference")
class PredictionDifferenceStudy(Study[Config]):
    """Trains a network on scenes with a small object, and asks where its evidence lies."""

    presets = {
        "smoke": Config(scenes=4, distracted=2, samples=2, stride=4, target_steps=60, target_samples=600),
        "laptop": Config(),
        "paper": Config(scenes=500, distracted=200, samples=10, stride=1, target_steps=10_000),
    }
    claims = (CLAIM, GREY, AGAINST, DELETION)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        target = scene_reader("prediction-difference", seed, steps=c.target_steps, samples=c.target_samples)
        progress(1, 3)
        index = _read_correctly(target, c.scenes)
        x, y, meta = target.draw("test", index)
        maps = self._maps(target, x, y, seed)
        box = boxes(meta["mask"])
        progress(2, 3)
        metrics = {
            "mass": float(mask_mass(maps, box).mean()),
            "mass_strokes": float(mask_mass(maps, meta["mask"]).mean()),
            "pointing": float(pointing_hits(maps, box).float().mean()),
            "deletion": float(deletion_auc(target, x, y, maps).mean()),
            "insertion": float(insertion_auc(target, x, y, maps).mean()),
            "box": float(box.float().mean()),
            "accuracy": target.metric()["accuracy"],
        }
        if c.distracted:
            metrics |= self._distractors(target, index[: c.distracted], y[: c.distracted], seed)
        progress(3, 3)
        few = slice(0, min(8, len(x)))
        names = [target.classes[int(i)] for i in y[few]]
        return Measurement(metrics, Plot(overlay_figure(target, x[few], {c.sampler: maps[few]}, names)))

    def _maps(self, target: Target, x: Tensor, y: Tensor, seed: int) -> Tensor:
        c, generator = self.config, torch.Generator().manual_seed(seed)
        if c.sampler == "noise":
            corners = patch_corners(*x.shape[2:], c.k, c.stride)
            return spread(torch.randn(len(x), 1, len(corners), generator=generator), corners, c.k, *x.shape[2:])
        pda = PDA(k=c.k, window=c.window, stride=c.stride, samples=c.samples, sampler=c.sampler)
        around = x.roll(1, 0) if c.shuffled else None
        return pda(target, x, y, generator=generator, surroundings=around)

    def _distractors(self, target: Target, index: Tensor, y: Tensor, seed: int) -> dict[str, float]:
        """How often, and how much, the visible part of a distractor speaks against the scene's class."""
        x, where = crowded(seed, index, target.size("test"))
        seen = where.flatten(1).sum(1) >= VISIBLE
        rounds = RANDOM if self.config.sampler == "noise" else 1
        maps = torch.stack([self._maps(target, x, y, seed + 1000 * i) for i in range(rounds)])
        mean = ((maps * where).flatten(2).sum(2) / where.flatten(1).sum(1).clamp_min(1))[:, seen]
        with torch.no_grad():
            right = (target.logits(x).argmax(1) == y).float().mean()
        figures = {"distractor_evidence": mean.mean(), "distractor_against": (mean < 0).float().mean()}
        figures["distractors_seen"] = seen.float().sum()
        return {name: float(value) for name, value in figures.items()} | {"distracted_accuracy": float(right)}


def _read_correctly(target: Target, count: int) -> Tensor:
    """The first `count` test scenes that the network gets right (all it has, if they are fewer)."""
    right = [target.logits(x).argmax(1) == y for x, y, _ in target.batches("test")]
    return torch.cat(right).nonzero()[:count, 0]
