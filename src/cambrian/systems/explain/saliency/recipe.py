"""The explainer, with the common table's row for each method, and the study of how far maps are from adding up."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Explainer, Measurement, Progress, Study, explainer, study
from cambrian.engine.samples import Plot
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.channels import channel_relevance
from cambrian.inspect.maps import FILLS, Explain, boxes, explain_row, overlay_figure, randomised, rank_agreement
from cambrian.inspect.results import Explanation, Row
from cambrian.inspect.target import Target
from cambrian.systems.explain._scenes import scene_target, understood
from cambrian.systems.explain.saliency.model import (
    ADDITIVE,
    BASELINES,
    METHODS,
    QUADRATURES,
    QUANTITIES,
    completeness_gap,
    saliency,
)

# -- explain -----------------------------------------------------------------------------------------------------------


@config
class Options:
    methods: str = option("all", "all, or methods joined by +")
    of: str = option("logit", "the score that is explained", choices=QUANTITIES)
    label: str = option("true", "explain the true class or the predicted one", choices=("true", "predicted"))
    baseline: str = option("zero", "integrated: baselines joined by +, averaged: " + ", ".join(BASELINES))
    n: int = option(50, "integrated: gradients a picture and baseline", low=1)
    quad: str = option("gauss-legendre", "integrated: where they are taken", choices=QUADRATURES)
    samples: int = option(25, "smoothgrad: noisy copies", low=1)
    sigma: float = option(0.15, "smoothgrad: noise, as a fraction of the input range", low=0.0, high=1.0)
    layer: str | None = option(None, "grad-cam: a layer with feature maps (none: the last)")
    images: int = option(64, "test pictures that are measured", low=1)
    randomise: bool = option(True, "compare with the maps of the network with fresh weights")

    def chosen(self) -> list[str]:
        """The methods. Raises `ConfigError` for one that is not there."""
        names = list(METHODS) if self.methods == "all" else self.methods.split("+")
        for name in names:
            if name not in METHODS:
                raise ConfigError(f"methods must be all or some of {', '.join(METHODS)}, not {name!r}")
        return names

    def function(self, method: str, seed: int = 0) -> Explain:
        """`(target, x, y) -> maps` with these options; noise is drawn from `seed` at every call."""
        settings: dict[str, Any] = {"n": self.n, "quad": self.quad, "samples": self.samples, "sigma": self.sigma}
        settings |= {"baseline": self.baseline.split("+"), "layer": self.layer}

        def explain(target: Target, x: Tensor, y: Tensor) -> Tensor:
            return saliency(target, x, y, method, self.of, generator=torch.Generator().manual_seed(seed), **settings)

        return explain


@explainer("saliency")
class Saliency(Explainer[Options]):
    """Seven gradient attributions side by side, each with its row of measures."""

    needs = ("grad_x", "logits", "image")
    quick = {"images": 16, "n": 16, "samples": 10}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """One row a method, and the maps of six pictures. With `methods=all` a method that cannot apply to the network
        gives a row that says why; a named one raises. The relevance of channels (gradient times activation) goes along.
        """
        o, seed = self.options, int(torch.randint(2**31, (1,), generator=generator))
        x, y, meta = next(target.batches("test", min(o.images, target.size("test")), seed, size=o.images))
        if o.label == "predicted":
            y = target.logits(x).argmax(1)
        masks = boxes(meta["mask"].to(x.device)) if "mask" in meta else None
        rows: list[Row] = []
        shown: dict[str, Tensor] = {}
        for method in o.chosen():
            try:
                row, maps = self._one(target, x, y, method, masks, seed)
            except CapabilityError as error:
                if o.methods != "all":
                    raise
                rows.append({"method": method, "note": str(error)})
                continue
            rows.append(row)
            shown[method] = maps[:6]
        titles = [target.classes[int(label)] for label in y[:6]]
        figures = {"maps": overlay_figure(target, x[:6], shown, titles)}
        try:
            relevance = channel_relevance(target, [(x, y, meta)])
        except CapabilityError:  # no feature maps that could be removed: nothing to hand on
            relevance = {}
        return Explanation(rows, figures, relevance)

    def _one(
        self, target: Target, x: Tensor, y: Tensor, method: str, masks: Tensor | None, seed: int
    ) -> tuple[Row, Tensor]:
        o, kept = self.options, []
        explain = o.function(method, seed)
        row = explain_row(
            target, x, y, remembering(explain, kept), method=method, quantity=o.of, masks=masks,
            generator=torch.Generator().manual_seed(seed) if o.randomise else None,
        )  # fmt: skip
        if method in ADDITIVE:
            row["completeness gap"] = float(gap_of(target, x, y, kept[0], o, seed).median())
        return row, kept[0]


def random_map(seed: int) -> Explain:
    """Noise in place of a map, always the same."""
    return lambda _target, x, _y: torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


def remembering(explain: Explain, kept: list[Tensor]) -> Explain:
    """`explain`, whose maps are also put into `kept`."""

    @functools.wraps(explain)
    def run(target: Target, x: Tensor, y: Tensor) -> Tensor:
        kept.append(explain(target, x, y))
        return kept[-1]

    return run


def gap_of(target: Target, x: Tensor, y: Tensor, maps: Tensor, options: Options, seed: int) -> Tensor:
    """The completeness gap `[B]` against the baselines of the options."""
    kinds, generator = options.baseline.split("+"), torch.Generator().manual_seed(seed)
    return completeness_gap(target, x, y, maps, baseline=kinds, of=options.of, generator=generator)


# -- the claim ---------------------------------------------------------------------------------------------------------


@config
class Config:
    method: str = option("integrated", "the map; random is a control without knowledge", choices=(*METHODS, "random"))
    n: int = option(64, "integrated: gradients a picture", low=1)
    quad: str = option("gauss-legendre", "integrated: where they are taken", choices=QUADRATURES)
    baseline: str = option("zero", "the picture without evidence", choices=BASELINES)
    fill: str = option("blur", "what stands where deletion took a pixel", choices=FILLS)
    images: int = option(128, "test pictures of the network's correct answers", low=10)
    target_steps: int = option(200, "training steps of the explained network", low=1)
    target_samples: int = option(5000, "scenes that it is trained on", low=100)


COMPLETENESS = Claim(
    name="completeness",
    statement="Integrated gradients with 64 gradients leave a median completeness gap of at most 2 %, where gradient x input "
    "leaves at least 30 %.",
    metric="gap",
    direction="lower",
    margin=0.28,
    paper="Section 5: 20 to 300 steps suffice for a gap of 5 %; proposition 1: exact in the limit, which gradient x input is not",
    arms={"integrated": Arm(), "gradient-x-input": Arm({"method": "gradient-x-input"})},
    system="integrated",
    baselines=("gradient-x-input",),
    sabotage=Arm({"n": 1}),
    conditions=(Condition("integrated", "gap", "<=", 0.02), Condition("gradient-x-input", "gap", ">=", 0.30)),
)


@study("saliency")
class SaliencyStudy(Study[Config]):
    """Trains a small network on scenes and measures one method's maps on them, in every way of the common table."""

    presets = {
        "smoke": Config(images=12, target_steps=60, target_samples=800, n=16),
        "laptop": Config(),
        "paper": Config(images=1000, target_steps=3000, target_samples=12_000, n=300),
    }
    claims = (COMPLETENESS,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        target = scene_target("saliency", seed, samples=c.target_samples, steps=c.target_steps)
        progress(1, 2)
        x, y, masks = understood(target, min(c.images, self._known(target)), seed)
        options = Options(baseline=c.baseline, n=c.n, quad=c.quad)
        kept: list[Tensor] = []
        explain = remembering(random_map(seed) if c.method == "random" else options.function(c.method, seed), kept)
        row = explain_row(target, x, y, explain, method=c.method, masks=masks, fill=c.fill)
        metrics = {
            name.replace(" ", "_"): row[name] for name in ("deletion AUC", "insertion AUC", "pointing", "mask mass")
        }
        metrics["evaluations"] = row["backward/image"]
        if c.method in ADDITIVE:
            gaps = gap_of(target, x, y, kept[0], options, seed)
            metrics |= {"gap": float(gaps.median()), "gap_p90": float(gaps.quantile(0.9))}
        other = explain(randomised(target, torch.Generator().manual_seed(seed)), x, y)
        metrics["randomised"] = float(rank_agreement(kept[0], other).mean())
        metrics["randomised_absolute"] = float(rank_agreement(kept[0].abs(), other.abs()).mean())
        metrics["accuracy"] = target.metric()["accuracy"]
        progress(2, 2)
        titles = [target.classes[int(label)] for label in y[:8]]
        return Measurement(metrics, Plot(overlay_figure(target, x[:8], {c.method: kept[0][:8]}, titles)))

    def _known(self, target: Target) -> int:
        """How many test pictures the network gets right (a network trained for seconds knows few)."""
        return max(1, round(target.metric()["accuracy"] * target.size("test")))
