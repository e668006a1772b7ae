"""The explainer with its mosaics, and the study of what an independent network makes of the pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import Explainer, Measurement, Progress, Study, explainer, study
from cambrian.engine.samples import Images
from cambrian.engine.targets import trained
from cambrian.errors import ConfigError
from cambrian.inspect.results import Explanation, Row
from cambrian.inspect.target import Target
from cambrian.systems.explain.feature_visualisation._regularisers import regularisers
from cambrian.systems.explain.feature_visualisation.model import (
    PARAMS,
    STARTS,
    Aim,
    Picture,
    high_frequency_share,
    parse,
    top_crops,
    visualise,
)
from cambrian.systems.perception.resnet import GLYPH_TARGETS
from cambrian.systems.perception.vgg import SMALL_COLOUR_TARGET

# -- explain -----------------------------------------------------------------------------------------------------------


@config
class Options:
    what: str = option(
        "classes", "classes; a layer (all its channels); or aims such as class:7 or layer:3, joined by +"
    )
    steps: int = option(128, "ascent steps", low=1)
    regs: str = option("small", "regularisers or sets of them, joined by +; none: none")
    param: str = option("pixel", "how the picture is written", choices=PARAMS)
    start: str = option("noise", "first picture", choices=STARTS)
    lr: float | None = option(None, "size of a step (None: 0.02 pixel, 0.05 fourier)", low=0.0)
    copies: int = option(1, "pictures per aim", low=1)
    octaves: int = option(1, "coarse to fine in so many sizes (pixel)", low=1)
    limit: int = option(64, "aims at most", low=1)
    samples: int = option(1000, "real pictures to compare with", low=1)


@explainer("feature-visualisation")
class FeatureVisualisation(Explainer[Options]):
    """What classes, channels or units want to see, beside the real pictures that excite them most."""

    needs = ("grad_x", "image")
    quick = {"steps": 30, "limit": 6, "samples": 200}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """One row per aim, a mosaic of all pictures, and for the first few the nine best real crops beside them."""
        o = self.options
        aims = self._aims(target)[: o.limit]
        begin = time.perf_counter()
        found = visualise(
            target, aims, steps=o.steps, regs=o.regs.split("+"), param=o.param, lr=o.lr, start=o.start, copies=o.copies,
            octaves=o.octaves, generator=generator,
        )  # fmt: skip
        seconds = (time.perf_counter() - begin) / len(found.pictures)
        n = min(o.samples, target.size("test"))
        real = torch.cat(
            [x for x, _, _ in target.batches("test", n, int(torch.randint(2**31, (), generator=generator)))]
        )
        crops = {aim.text: top_crops(target, aim, real) for aim in aims}
        rows = [self._row(target, aim, i, found, crops[aim.text][1], seconds) for i, aim in enumerate(aims)]
        figures = {"mosaic": mosaic([aim.text for aim in aims], found.pictures[:: o.copies])}
        figures["beside-real"] = beside_real(
            [(aim.text, found.pictures[i * o.copies], crops[aim.text][0]) for i, aim in enumerate(aims[:12])]
        )
        return Explanation(rows, figures)

    def _aims(self, target: Target) -> list[Aim]:
        what = self.options.what
        if what == "classes":
            return [Aim(f"class:{name}", "", i) for i, name in enumerate(target.classes)]
        texts = what.split("+")
        if len(texts) == 1 and ":" not in what:
            width = target.features(target.example(), [what])[what].shape[1]
            texts = [f"{what}:{channel}" for channel in range(width)]
        return [parse(text, target) for text in texts]

    def _row(self, target: Target, aim: Aim, number: int, found: Picture, real: Tensor, seconds: float) -> Row:
        i = number * self.options.copies
        picture, whole = found.pictures[i : i + 1], not aim.layer
        chance = target.logits(picture).softmax(1)[0].detach()
        score = float(found.score[i])
        if aim.layer and aim.place is None and aim.vector is None:  # the crops' scores are of the best place
            h = target.features(picture, [aim.layer])[aim.layer]
            score = float(h[0, aim.index].max()) if h.dim() == 4 else score
        return {
            "aim": aim.text,
            "target quantity": "class score before the softmax" if whole else "activation, largest place",
            "activation": score,
            "largest on real pictures": float(real.max()),
            "before clipping (mean place)": float(found.free_score[i]),
            "own probability": float(chance[aim.index]) if whole else None,
            "energy above half Nyquist": float(high_frequency_share(picture)[0]),
            "dead": bool(found.dead[i]),
            "forward": self.options.steps + 1,
            "backward": self.options.steps + 1,
            "s/picture": seconds,
        }


def _shown(picture: Tensor) -> Any:
    array = picture.detach().permute(1, 2, 0).clamp(0, 1).numpy()
    return array.squeeze(2) if array.shape[2] == 1 else array


def mosaic(titles: list[str], pictures: Tensor):
    """All pictures `[N,C,H,W]` under their aims."""
    from matplotlib.figure import Figure

    columns = min(9, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(0.9 * columns, 1.05 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, title, picture in zip(axes, titles, pictures, strict=False):
        axis.imshow(_shown(picture), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title.removeprefix("class:"), fontsize=7, pad=2)
    return figure


def beside_real(entries: list[tuple[str, Tensor, Tensor]]):
    """Each row: an aim's picture, and the real crops `[N,C,h,w]` that excite it most."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 0.8 * len(entries)), layout="constrained")
    axes = figure.subplots(len(entries), 10, squeeze=False)
    for row, (title, picture, crops) in zip(axes, entries, strict=True):
        for axis in row:
            axis.axis("off")
        row[0].imshow(_shown(picture), cmap="gray", vmin=0, vmax=1)
        row[0].set_title(title, fontsize=6, pad=2)
        for axis, crop in zip(row[1:], crops, strict=False):
            axis.imshow(_shown(crop), cmap="gray", vmin=0, vmax=1)
    return figure


# -- the claim ---------------------------------------------------------------------------------------------------------

TARGETS: dict[str, tuple[str, dict[str, object]]] = {
    "vgg": ("vgg", SMALL_COLOUR_TARGET),
    "resnet-mini": ("resnet", GLYPH_TARGETS["resnet-mini"]),
}


@config
class Config:
    regs: tuple[str, ...] = option(("small",), "regularisers or sets of them")
    steps: int = option(128, "ascent steps", low=1)
    param: str = option("pixel", "how the picture is written", choices=PARAMS)
    start: str = option("noise", "first picture", choices=STARTS)
    networks: tuple[str, ...] = option(tuple(TARGETS), "whose classes are shown")
    training: int | None = option(None, "training steps of the networks; None: each its own", low=1)

    def check(self) -> None:
        """Conditions across fields."""
        regularisers(self.regs)
        unknown = [name for name in self.networks if name not in TARGETS]
        if unknown or not self.networks:
            raise ConfigError(f"networks must be some of {', '.join(TARGETS)}, not {unknown}")


CLAIM = Claim(
    name="judged",
    statement="An independently trained network gives class pictures their class at least 20 points more often when they "
    "were made with regularisers, at equal steps; mean of two architectures.",
    metric="judged",
    direction="higher",
    margin=0.20,
    paper="qualitative (Yosinski et al., figure 4); no figure is given",
    arms={"regularised": Arm(), "plain": Arm({"regs": ()})},
    system="regularised",
    baselines=("plain",),
    sabotage=Arm({"regs": ()}),
)


@study("feature-visualisation")
class FeatureVisualisationStudy(Study[Config]):
    """Class pictures of small trained networks, judged by a network of the same architecture and another seed."""

    presets = {
        "smoke": Config(steps=6, networks=("vgg",), training=40),
        "laptop": Config(),
        "paper": Config(steps=1000),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c, rows = self.config, []
        for number, name in enumerate(c.networks):
            target, judge = _trained(name, seed, c.training), _trained(name, seed + 1, c.training)
            aims = [Aim(f"class:{label}", "", i) for i, label in enumerate(target.classes)]
            generator = torch.Generator().manual_seed(seed)
            found = visualise(
                target, aims, steps=c.steps, regs=c.regs, param=c.param, start=c.start, generator=generator
            )
            rows.append({"network": name, **judged(target, judge, found)})
            progress(number + 1, len(c.networks))
        keys = [key for key in rows[0] if key != "network"]
        metrics = {key: sum(row[key] for row in rows) / len(rows) for key in keys}
        return Measurement(metrics, Images(found.pictures), notes={"networks": rows})


@torch.no_grad()
def judged(target: Target, judge: Target, found: Picture) -> dict[str, float]:
    """Figures on one picture per class, in class order."""
    wanted = torch.arange(len(found.pictures))
    own, other = target.logits(found.pictures), judge.logits(found.pictures)
    real = torch.cat([target.logits(x) for x, _, _ in target.batches("test", min(500, target.size("test")), 0)])
    return {
        "judged": float((other.argmax(1) == wanted).float().mean()),
        "own": float((own.argmax(1) == wanted).float().mean()),
        "above_real": float((found.score >= 1.5 * real.amax(0)).float().mean()),
        "high_frequency": float(high_frequency_share(found.pictures).mean()),
        "score": float(found.score.mean()),
        "free_score": float(found.free_score.mean()),
    }


def _trained(name: str, seed: int, steps: int | None) -> Target:
    slug, overrides = TARGETS[name]
    settings: dict[str, Any] = {**overrides, **({} if steps is None else {"steps": steps, "samples": 600})}
    return trained(slug, data="glyphs", overrides=settings, seed=seed).target()
