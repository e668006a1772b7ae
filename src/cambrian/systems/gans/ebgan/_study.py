"""The grid study, which carries the claim: scores over all cells of a grid, for EBGAN, for the plain GAN, or for both."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from cambrian.data import images as pictures
from cambrian.data.source import Source
from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import Measurement, Progress, Study, study
from cambrian.engine.samples import Gallery, Images, Plot, Sample, Table
from cambrian.errors import ConfigError
from cambrian.metrics.classifier_score import classifier_score, reversed_score
from cambrian.metrics.judges import Judge
from cambrian.systems.gans import _worlds
from cambrian.systems.gans._judging import panel_of
from cambrian.systems.gans.ebgan import _grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@config
class GridConfig:
    """Options of one grid on scikit-learn's digits."""

    game: str = option("ebgan", "what is trained in every cell", choices=("ebgan", "gan", "both"))
    steps: int = option(1000, "rounds of every cell", low=1)
    batch: int = option(64, "samples per step and cell", low=2)
    layers: tuple[int, ...] = option((2, 3), "weight layers of G, and of D unless layers_d is given", low=2)
    widths: tuple[int, ...] = option((128, 256), "width of G, and of D unless widths_d is given", low=1)
    layers_d: tuple[int, ...] = option((), "weight layers of D, all pairs with layers; empty: as deep as G", low=2)
    widths_d: tuple[int, ...] = option((), "width of D, all pairs with widths; empty: as wide as G", low=1)
    dropouts: tuple[float, ...] = option((0.0, 0.5), "dropout in D", low=0.0, high=0.95)
    optimisers: tuple[str, ...] = option(("adam",), "optimisers of each player of the plain GAN (EBGAN: Adam)", choices=("adam", "sgd"))  # type: ignore[reportArgumentType]  # fmt: skip
    rates: tuple[float, ...] = option((1e-3,), "step sizes of the plain GAN (EBGAN: 1e-3)", low=0.0)
    replicates: int = option(1, "runs of every cell", low=1)
    pt_weight: float = option(0.1, "weight of the pulling-away term; 0 leaves it out", low=0.0)
    margin: float | None = option(None, "m; None: 1.5 x mean energy of data over the first batches, cell by cell", low=0.0)  # fmt: skip
    latent: int = option(64, "Z, latent size, U(-1, 1)", low=1)
    norm: str = option("split", "batch norm in both players: by source, or none", choices=("split", "none"))
    beta1: float = option(0.5, "Adam's first decay, SGD's momentum", low=0.0, high=0.999)
    samples: int = option(1000, "samples that each cell is judged by", low=16)


CLAIM = Claim(
    name="grid",
    statement="Over a grid of nets the lower quartile of the classifier score of EBGAN with the pulling-away term is at least "
    "1.1 times that of the non-saturating GAN.",
    metric="lower_quartile",
    direction="higher",
    compare="ratio",
    margin=1.1,
    paper="figures 2 and 3: histograms of 512 EBGAN and 6,144 GAN runs on MNIST, EBGAN-PT's the furthest to the right",
    arms={"ebgan-pt": Arm(), "gan": Arm({"game": "gan"})},
    system="ebgan-pt",
    baselines=("gan",),
    sabotage=Arm({"margin": 0.0}),
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """One game's scores, a number per cell, and a few samples of each cell `[cells, n, *shape]`."""

    cells: Sequence[_grid.Cell]
    score: list[float]
    reversed: list[float]
    shown: Tensor

    def figures(self) -> dict[str, float]:
        """Quartiles over cells."""
        low, middle, high = np.quantile(self.score, [0.25, 0.5, 0.75])
        names = (
            "lower_quartile",
            "median",
            "upper_quartile",
            "worst",
            "best",
            "i_prime_lower_quartile",
            "i_prime_median",
        )
        values = (low, middle, high, min(self.score), max(self.score), *np.quantile(self.reversed, [0.25, 0.5]))
        return {name: float(value) for name, value in zip(names, values, strict=True)}


@study("ebgan")
class GridStudy(Study[GridConfig]):
    """All cells of one grid, trained in stacks and judged."""

    presets = {
        "smoke": GridConfig(steps=60, widths=(64,), samples=300),
        "laptop": GridConfig(),
        "paper": GridConfig(
            steps=20_000,
            layers=(2, 3, 4, 5),
            widths=(400, 800, 1600, 3200),
            layers_d=(2, 3, 4, 5),
            widths_d=(128, 256, 512, 1024),
            optimisers=("adam", "sgd"),
            rates=(1e-2, 1e-3, 1e-4),
        ),
    }
    claims = (CLAIM,)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        """Quartiles of the score over cells; of `game=both`, of each game and their ratio, paired by cell."""
        games = _grid.GAMES if self.config.game == "both" else (self.config.game,)
        found: dict[str, Scores] = {}
        for number, game in enumerate(games):
            found[game] = self._play(game, seed, lambda a, b, n=number: progress(n * b + a, len(games) * b))
        metrics = dict(found[games[0]].figures())
        if len(games) == 2:
            metrics |= {f"gan_{name}": value for name, value in found["gan"].figures().items()}
            paired = by_cell(found["ebgan"], found["gan"])
            metrics |= dict(zip(("ratio", "ratio_low", "ratio_high"), ratio_of_quartiles(*paired), strict=True))
        return Measurement(metrics, report(found, metrics))

    def _play(self, game: str, seed: int, progress: Progress) -> Scores:
        c = self.config
        data = _worlds.load(Source("world", "digits"))
        split = data.split("train")
        train = pictures.signed(split[torch.arange(len(split))]["image"])
        cells = _grid.product(
            game,
            layers=c.layers,
            widths=c.widths,
            layers_d=c.layers_d,
            widths_d=c.widths_d,
            dropouts=c.dropouts,
            optimisers=c.optimisers if game == "gan" else ("adam",),
            rates=c.rates if game == "gan" else (1e-3,),
            replicates=c.replicates,
            seed=seed,
        )
        settings = {name: getattr(c, name) for name in ("batch", "latent", "norm", "beta1", "pt_weight", "margin")}
        made = _grid.run(cells, train, steps=c.steps, samples=c.samples, settings=settings, progress=progress)
        return judged(cells, made, panel_of(data).judge.require())


def judged(cells: Sequence[_grid.Cell], made: Sequence[Tensor], judge: Judge) -> Scores:
    """Both scores of every cell's samples `[N, *shape]` in [0, 1]; a cell that diverged counts as 1 and 0, the worst."""
    score, backward = [], []
    for samples in made:
        if not torch.isfinite(samples).all():
            score.append(1.0)
            backward.append(0.0)
            continue
        probabilities = judge.probabilities(samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bias of few samples is the same in every cell
            score.append(classifier_score(probabilities, splits=1)[0])
        backward.append(reversed_score(probabilities))
    return Scores(cells, score, backward, torch.stack([samples[:8] for samples in made]))


def by_cell(first: Scores, second: Scores) -> tuple[list[float], list[float]]:
    """Scores of the cells that both grids have, in one order; `ConfigError` when there is none."""
    names = [[f"{cell.name} #{cell.seed}" for cell in scores.cells] for scores in (first, second)]
    other = dict(zip(names[1], second.score, strict=True))
    both = [(score, other[name]) for name, score in zip(names[0], first.score, strict=True) if name in other]
    if not both:
        raise ConfigError("the two grids share no cell; give both the same layers, widths and dropouts")
    return [a for a, _ in both], [b for _, b in both]


def ratio_of_quartiles(
    first: Sequence[float], second: Sequence[float], draws: int = 4000
) -> tuple[float, float, float]:
    """Ratio of lower quartiles with a 95 % interval: cells are resampled, each with its pair."""
    a, b = np.asarray(first), np.asarray(second)
    pick = np.random.default_rng(0).integers(0, len(a), size=(draws, len(a)))
    ratios = np.quantile(a[pick], 0.25, axis=1) / np.quantile(b[pick], 0.25, axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.quantile(a, 0.25) / np.quantile(b, 0.25)), float(low), float(high)


def report(found: Mapping[str, Scores], metrics: Mapping[str, float]) -> Sample:
    """Histograms of both scores, a table of cells, and eight samples of each cell, a row each."""
    items: dict[str, Sample] = {"histograms": Plot(histograms(found))}
    for game, scores in found.items():
        rows = [
            {"cell": cell.name, "classifier score": score, "I'": backward}
            for cell, score, backward in zip(scores.cells, scores.score, scores.reversed, strict=True)
        ]
        items[f"cells of {game}"] = Table.of(rows)
        items[f"samples of {game}"] = Images(scores.shown.flatten(0, 1).nan_to_num(0.0).clamp(0, 1), columns=8)
    if "ratio" in metrics:
        items["ratio of lower quartiles"] = Table.of([{k: metrics[k] for k in ("ratio", "ratio_low", "ratio_high")}])
    return Gallery(items)


def histograms(found: Mapping[str, Scores]) -> Figure:
    """Shares of cells by classifier score and by I'."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    for axes, title, name in zip(figure.subplots(1, 2), ("classifier score", "I' (nats)"), ("score", "reversed")):
        values = {game: getattr(scores, name) for game, scores in found.items()}
        edges = np.linspace(min(map(min, values.values())), max(map(max, values.values())) + 1e-6, 16)
        for game, own in values.items():
            axes.hist(own, bins=edges, weights=np.full(len(own), 1.0 / len(own)), alpha=0.55, label=game)
        axes.set(xlabel=title, ylabel="share of runs")
        axes.legend(fontsize=7)
    return figure


def grid(preset: str, seed: int = 0) -> Sample:
    """The report of a grid of both games at a preset's size."""
    if preset not in GridStudy.presets:
        raise ConfigError(f"preset {preset!r} is unknown; use one of {', '.join(GridStudy.presets)}")
    found = GridStudy(dataclasses.replace(GridStudy.presets[preset], game="both")).measure(
        seed, Path(), lambda a, b: None
    )
    assert found.sample is not None
    return found.sample
