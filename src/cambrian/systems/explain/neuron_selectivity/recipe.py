"""The explainer (a row for each layer, features, histograms, labels), and the study of labels with and without colour."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim, Condition
from cambrian.engine.config import config, option
from cambrian.engine.roles import Explainer, Measurement, Progress, Study, explainer, study
from cambrian.engine.samples import Curves
from cambrian.inspect.controls import reinitialised, spearman
from cambrian.inspect.results import Explanation, Row
from cambrian.inspect.target import Target
from cambrian.systems.explain.neuron_selectivity._colour import axis_tilt, hue_axis
from cambrian.systems.explain.neuron_selectivity._figures import histograms, label_bars, mosaic, sorted_alive
from cambrian.systems.explain.neuron_selectivity._inks import TASKS, reader
from cambrian.systems.explain.neuron_selectivity.model import (
    Top,
    TopActivations,
    class_floor,
    class_index,
    class_shares,
    color_index,
    neuron_feature,
    orientation_index,
    symmetry_index,
)

# -- explain -----------------------------------------------------------------------------------------------------------


@config
class Options:
    layers: str = option("auto", "layers joined by +; auto: what follows each convolution")
    n: int = option(100, "images kept for each unit", low=2)
    split: str = option("test", "which images", choices=("train", "valid", "test"))
    samples: int | None = option(None, "images looked at (None: all)", low=2)
    threshold: float = option(1.0, "share of activation that the classes of a unit must reach", low=0.01, high=1.0)
    mirror: bool = option(False, "symmetry at the vertical axis too (one variant for each winner)")
    turn: float | None = option(None, "orientation too: turn the crops by so many degrees")
    selective: float = option(0.25, "colour index from which a unit counts as colour-selective")
    shown: int = option(36, "units in each mosaic", low=1)
    listed: int = option(5, "units of the last layer whose classes are listed", low=1)


@explainer("neuron-selectivity")
class NeuronSelectivity(Explainer[Options]):
    """What every unit likes, and how much it depends on colour, on one class, on side and on orientation."""

    needs = ("image",)
    quick = {"samples": 500, "n": 20}

    def explain(self, target: Target, generator: torch.Generator) -> Explanation:
        """One row for each layer; mosaics of neuron features sorted by index, histograms, labels of the last layer."""
        o = self.options
        names = [] if o.layers == "auto" else o.layers.split("+")
        tops = TopActivations(target, names, o.n, o.split, o.samples).collect()
        labels = _labels(target, o.split)
        classes = len(target.classes)
        indices: dict[str, dict[str, Tensor]] = {}
        if target.space.shape[0] == 3:
            indices["colour"] = color_index(target, tops, o.split)
        indices["class"] = {k: class_index(t, labels[t.images.cpu()], classes, o.threshold) for k, t in tops.items()}
        if o.mirror:
            indices["symmetry"] = symmetry_index(target, tops, o.split)
        if o.turn is not None:
            indices["orientation"] = orientation_index(target, tops, o.split, o.turn)
        figures: dict[str, Any] = {"indices": histograms(indices)}
        rows: list[Row] = []
        by = next(iter(indices))
        for depth, (name, top) in enumerate(tops.items()):
            features = neuron_feature(target, top, o.split)
            rows.append({"layer": name, "depth": depth, **self._row(top, features, name, indices, classes)})
            order = sorted_alive(indices[by][name])[: o.shown]
            if len(order):
                figures[f"features {name}"] = mosaic(features, order, f"{name}: most {by}-selective first")
        last = list(tops)[-1]
        order = sorted_alive(indices["class"][last])[: o.listed]
        if len(order):
            shares = class_shares(tops[last], labels[tops[last].images.cpu()], classes)
            bars = [(f"{last} / {int(u)}, {float(indices['class'][last][u]):.2f}", shares[u]) for u in order]
            figures["labels"] = label_bars(bars, target.classes)
        return Explanation(rows, figures)

    def _row(self, top: Top, features: Tensor, name: str, indices: dict[str, dict[str, Tensor]], classes: int) -> Row:
        field = top.field.size if top.field else "whole picture"
        row: Row = {"units": len(top.values), "dead": int(top.dead.sum()), "field": field}
        row |= {f"median {index} index": _median(found[name]) for index, found in indices.items()}
        row["least class index"] = class_floor(top.values.shape[1], classes)
        if "colour" in indices:
            alpha = indices["colour"][name]
            chosen = alpha >= self.options.selective
            row["colour-selective"] = float(chosen.sum()) / max(int((~alpha.isnan()).sum()), 1)
            if bool(chosen.any()):
                angle, share = hue_axis(features[chosen])
                row["units on one hue axis"] = int((share >= 0.9).sum())
                row["median hue axis"], row["median tilt"] = _median(angle), _median(axis_tilt(features[chosen]))
        return row


def _median(values: Tensor) -> float:
    """Median of what is not NaN (NaN when nothing is left)."""
    return float(values.double().nanquantile(0.5))


def _labels(target: Target, split: str) -> Tensor:
    return torch.cat([y.cpu() for _, y, _ in target.batches(split)])


# -- the study ---------------------------------------------------------------------------------------------------------


@config
class Config:
    task: str = option("colour", "what the class depends on; shuffled: an ink drawn anew", choices=TASKS)
    network: str = option("trained", "which weights", choices=("trained", "untrained"))
    n: int = option(100, "images kept for each unit", low=2)
    threshold: float = option(0.9, "of the class index", low=0.01, high=1.0)
    samples: int = option(3000, "pictures looked at", low=2)
    target_steps: int = option(500, "training steps of the network", low=1)
    target_samples: int = option(8000, "pictures that it is trained on", low=10)


COLOUR = Claim(
    name="colour",
    statement="The median colour index of the last convolution is at least 0.2 higher when the class depends on the ink "
    "than when the same pictures are sorted by shape.",
    metric="alpha_last",
    direction="higher",
    margin=0.2,
    paper="no figure: colour-selective units are shown in all layers of VGG-M",
    arms={"colour": Arm(), "shape": Arm({"task": "shape"})},
    system="colour",
    baselines=("shape",),
    sabotage=Arm({"task": "shuffled"}),
)
CLASS = Claim(
    name="class",
    statement="The median class index rises with depth (Spearman at least 0.8) in a trained network, and not in one with "
    "fresh weights (at least 0.5 less).",
    metric="gamma_spearman",
    direction="higher",
    margin=0.5,
    paper="section 5: class selectivity rises with depth (shown, not measured)",
    arms={"trained": Arm(), "untrained": Arm({"network": "untrained"})},
    system="trained",
    baselines=("untrained",),
    sabotage=Arm({"network": "untrained"}),
    conditions=(Condition("trained", "gamma_spearman", ">=", 0.8),),
)


@study("neuron-selectivity")
class NeuronSelectivityStudy(Study[Config]):
    """Indexes the units of a network that must use the colour, and of one that need not, on the same pictures."""

    presets = {
        "smoke": Config(n=10, samples=200, target_steps=20, target_samples=400),
        "laptop": Config(),
        "paper": Config(n=100, samples=20_000, target_steps=10_000, target_samples=50_000),
    }
    claims = (COLOUR, CLASS)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        sizes = {"steps": c.target_steps, "train": c.target_samples, "test": c.samples}
        target = reader("neuron-selectivity", c.task, seed, **sizes)
        accuracy = target.metric()["accuracy"]
        if c.network == "untrained":
            target = copy.copy(target)
            target.module = reinitialised(target.module, seed + 1000)
        progress(1, 2)
        tops = TopActivations(target, n=c.n).collect()
        alpha = [_median(v) for v in color_index(target, tops, "test").values()]
        labels, classes = _labels(target, "test"), len(target.classes)
        gamma = [_median(class_index(t, labels[t.images], classes, c.threshold)) for t in tops.values()]
        progress(2, 2)
        depth = [float(i) for i in range(len(tops))]
        metrics = {
            "alpha_last": alpha[-1],
            "alpha_first": alpha[0],
            "gamma_first": gamma[0],
            "gamma_last": gamma[-1],
            "gamma_rise": gamma[-1] - gamma[0],
            "gamma_spearman": spearman(depth, gamma),
            "gamma_floor": class_floor(c.n, classes),
            "dead": float(torch.cat([t.dead for t in tops.values()]).float().mean()),
            "accuracy": accuracy,
        }
        lines = {"colour index": (depth, alpha), "class index": (depth, gamma)}
        return Measurement(
            metrics, Curves(lines, x="convolution", y="median over units"), {"alpha": alpha, "gamma": gamma}
        )
