"""The compressor, sweeps over the number of levels, and the study of loss against bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cambrian.engine.claims import Arm, Claim
from cambrian.engine.config import config, option
from cambrian.engine.roles import Compressor, Measurement, Progress, Study, compressor, study
from cambrian.engine.samples import Curves
from cambrian.engine.targets import trained
from cambrian.errors import CapabilityError, ConfigError
from cambrian.inspect.curvature import WAYS, floored, hessian_diag
from cambrian.inspect.results import Compression, Row
from cambrian.inspect.size import compression_row, store, weight_names
from cambrian.inspect.state import CompressionState
from cambrian.inspect.target import Target
from cambrian.systems.compress.quantization_limit.model import (
    METHODS,
    Quantised,
    Weights,
    bits_at,
    position_bits,
    predicted_increase,
    quantise,
    tune,
)
from cambrian.systems.perception.resnet import GLYPH_TARGETS


@config
class Options:
    method: str = option("huniform", "how levels are chosen", choices=METHODS)
    k: int = option(16, "levels (of a uniform grid: bins over the weights' range; of ecsq: at the start)", low=1)
    step: float = option(0.0, "width of uniform bins around its multiples; 0: k bins over the range", low=0.0)
    lam: float = option(0.01, "ecsq: price of a bit, as a share of the weights' mean weighted square", low=0.0)
    curvature: str = option("fisher", "what stands for the Hessian's diagonal", choices=WAYS)
    samples: int = option(1000, "training samples for the curvature", low=1)
    floor: float = option(0.1, "added to every curvature, as a share of the mean", low=1e-12)
    code: str = option("huffman", "how indices are stored", choices=("huffman", "fixed"))
    steps: int = option(200, "training steps of the levels, biases and batch norm afterwards", low=0)
    lr: float = option(3e-4, "Adam's rate in them", low=0.0)


@compressor("quantization-limit")
class QuantizationLimit(Compressor[Options]):
    """Any trained classifier, pruned before or not -> one codebook for all its layers, and the file."""

    needs = ("logits", "retrain")
    quick = {"steps": 30, "samples": 200}

    def stages(self) -> tuple[str, ...]:
        return ("quantise",)

    def compress(self, target: Target, directory: Path, generator: torch.Generator) -> Compression:
        """The quantised module, its file, and rows for k-means with as many levels and for the chosen method before and
        after training the levels.
        """
        o, before = self.options, target.state
        if before is not None and before.quantised:
            raise ConfigError("the network is quantised already; quantise once")
        names = weight_names(target.module)
        if not names:
            raise CapabilityError("the network has no convolution or linear layer to quantise")
        diagonal = floored(
            hessian_diag(target, names, n=o.samples, how=o.curvature, generator=generator), share=o.floor
        )
        settings = {"k": o.k, "step": o.step, "lam": o.lam * price(target, diagonal, before)}
        made = quantise(target, o.method, diagonal=diagonal, state=before, **settings)
        plain = quantise(target, "kmeans", state=before, k=min(o.k, len(made.clusters.codebook)))
        rows = [self._row(target, plain, before, directory / "kmeans.cmb", f"kmeans:{o.k}", diagonal, 0)]
        rows.append(self._row(target, made, before, directory / "rounded.cmb", f"{o.method}:{o.k}", diagonal, 0))
        if o.steps:
            tune(target, made, steps=o.steps, lr=o.lr, generator=generator)
            rows.append(
                self._row(target, made, before, directory / "tuned.cmb", f"{o.method}:{o.k}+tune", diagonal, o.steps)
            )
        path = directory / ("tuned.cmb" if o.steps else "rounded.cmb")
        state = copy.deepcopy(before) or CompressionState()
        made.book.finish(made.module, state, o.code == "huffman")
        return Compression(made.module, rows, path, state, {"levels": level_figure(made)})

    def _row(
        self, target: Target, made: Quantised, before: CompressionState | None, path: Path, chain: str,
        diagonal: Mapping[str, Tensor], steps: int,
    ) -> Row:  # fmt: skip
        state = copy.deepcopy(before) or CompressionState()
        made.book.finish(made.module, state, self.options.code == "huffman")
        store(path, made.module, state, chain=state.stages)
        old, new, h = target.metric(), target.metric(made.module), made.weights.join(diagonal)
        facts: Row = {"accuracy before": old["accuracy"], "accuracy after": new["accuracy"], "retrain steps": steps}
        facts |= {"levels": len(made.clusters.codebook), "fixed bits": made.fixed, "huffman bits": made.coded}
        facts["position bits"] = position_bits(before) / len(made.weights.values) if before is not None else 0.0
        facts["loss increase"] = new["loss"] - old["loss"]
        facts["predicted"] = predicted_increase(made.weights.values, made.clusters, h) if not steps else None
        return compression_row(target, made.module, path, chain=chain, **facts)


def price(target: Target, diagonal: Mapping[str, Tensor], state: CompressionState | None = None) -> float:
    """The unit of lambda: the mean of h w^2, what setting a weight to zero costs."""
    weights = Weights.of(target.module, state)
    return float((weights.join(diagonal) * weights.values**2).mean())


def level_figure(made: Quantised):
    """The weights of all layers and the levels that they went to."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(made.weights.values, bins=200, color="lightgrey", label="weights")
    counts = np.bincount(made.clusters.index)
    axes.vlines(made.clusters.codebook, 0.5, counts, color="tab:blue", lw=1.2, label="weights at each level")
    axes.set(
        xlabel="weight", ylabel="count", yscale="log", title=f"{len(counts)} levels, {made.coded:.2f} bits a weight"
    )
    axes.legend(fontsize=7)
    return figure


# -- loss against bits -----------------------------------------------------------------------------------------------------

LEVELS = {  # where the loss rises by about 0.05 nat
    "kmeans": (16, 24, 32, 48, 64),
    "hkmeans": (16, 24, 32, 48, 64),
    "uniform": (32, 48, 64, 96),
    "huniform": (32, 48, 64, 96),
    "ecsq": (1e-2, 6e-3, 3e-3, 1.5e-3, 7e-4),
}


def sweep(
    target: Target,
    method: str,
    settings: Sequence[float],
    *,
    diagonal: Mapping[str, Tensor],
    split: str = "test",
    centred: bool = True,
    steps: int = 0,
    lr: float = 3e-4,
    generator: torch.Generator | None = None,
) -> list[Row]:
    """Quantise at each setting: levels, bits, loss increase and accuracy.

    A setting is a number of levels, for ecsq the price of a bit; `centred` uniform grids have bins around the multiples
    of the range over that number, which leaves a level near zero (and sometimes one more). With `steps` the levels are trained before they are measured.
    """
    before, rows, unit = target.metric(split=split), [], price(target, diagonal)
    span = float(np.ptp(Weights.of(target.module).values))
    for value in settings:
        chosen: dict[str, Any] = {"k": 64, "lam": value * unit} if method == "ecsq" else {"k": int(value)}
        if centred and "uniform" in method:
            chosen = {"step": span / value}
        made = quantise(target, method, diagonal=diagonal, **chosen)
        h = made.weights.join(diagonal)
        row: Row = {
            "method": method,
            "setting": value,
            "predicted": predicted_increase(made.weights.values, made.clusters, h),
        }
        if steps:
            tune(target, made, steps=steps, lr=lr, generator=generator or torch.Generator().manual_seed(0))
        after = target.metric(made.module, split)
        row |= {"levels": len(made.clusters.codebook), "fixed": made.fixed, "huffman": made.coded}
        rows.append({**row, "increase": after["loss"] - before["loss"], "accuracy": after["accuracy"]})
    return rows


@config
class Config:
    experiment: str = option(
        "levels", "levels: loss at given numbers of levels; bits: bits at a given loss", choices=("levels", "bits")
    )
    method: str = option("hkmeans", "how levels are chosen", choices=METHODS)
    levels: tuple[int, ...] = option((8, 12, 16, 24), "numbers of levels, or of bins over the range")
    increase: float = option(0.05, "bits: the loss increase, in nats, at which they are read off", low=1e-4)
    code: str = option("huffman", "bits: which code is counted", choices=("huffman", "fixed"))
    curvature: str = option("fisher", "what stands for the Hessian's diagonal", choices=WAYS)
    samples: int = option(1500, "training samples for the curvature", low=10)
    floor: float = option(0.1, "added to every curvature, as a share of the mean", low=1e-12)
    weights: str = option(
        "curvature", "permuted: given to the wrong weights; ones: all alike", choices=("curvature", "permuted", "ones")
    )
    target_steps: int = option(600, "training steps of the network", low=1)
    target_samples: int = option(8000, "pictures that it is trained on", low=10)

    def check(self) -> None:
        """Conditions across fields."""
        if not self.levels or min(self.levels) < 2:
            raise ConfigError(f"levels are numbers from 2 on, not {self.levels}")


PAPER = "Table 1 (pruned, Huffman): LeNet k-means 44.58, Hessian 47.16, uniform 51.25, ECSQ 49.01; ResNet-32 18.25 / 20.51 / 22.17 / 21.01"
FIXED = Claim(
    name="hessian",
    statement="At 8, 12, 16 and 24 levels for all layers together, Hessian-weighted k-means raises the test loss at most half "
    "as much as k-means (geometric mean), both at their global optimum and without retraining.",
    metric="increase",
    direction="lower",
    margin=0.5,
    compare="ratio",
    paper=PAPER,
    arms={"hessian": Arm(), "kmeans": Arm({"method": "kmeans"})},
    system="hessian",
    baselines=("kmeans",),
    sabotage=Arm({"weights": "permuted"}),
)
UNIFORM = Claim(
    name="uniform-huffman",
    statement="Huffman coded, uniform levels need no more bits than k-means for a loss increase of 0.05 nat.",
    metric="bits",
    direction="lower",
    margin=1.0,
    compare="ratio",
    paper=PAPER,
    arms={
        "uniform": Arm({"experiment": "bits", "method": "uniform"}),
        "kmeans": Arm({"experiment": "bits", "method": "kmeans"}),
    },
    system="uniform",
    baselines=("kmeans",),
    sabotage=Arm({"experiment": "bits", "method": "uniform", "code": "fixed"}),
)
ECSQ = Claim(
    name="ecsq",
    statement="Huffman coded, entropy-constrained levels need at most 0.97 times the bits of k-means for a loss increase of "
    "0.05 nat.",
    metric="bits",
    direction="lower",
    margin=0.97,
    compare="ratio",
    paper=PAPER,
    arms={
        "ecsq": Arm({"experiment": "bits", "method": "ecsq"}),
        "kmeans": Arm({"experiment": "bits", "method": "kmeans"}),
    },
    system="ecsq",
    baselines=("kmeans",),
    sabotage=Arm({"experiment": "bits", "method": "ecsq", "code": "fixed"}),
)
ORDER = Claim(
    name="fixed-length",
    statement="With a fixed-length code the order is the other way round: k-means raises the loss less than a uniform grid of "
    "as many levels.",
    metric="increase",
    direction="lower",
    margin=1.0,
    compare="ratio",
    paper=PAPER,
    arms={"kmeans": Arm({"method": "kmeans"}), "uniform": Arm({"method": "uniform"})},
    system="kmeans",
    baselines=("uniform",),
    sabotage=Arm({"method": "uniform"}),
)


def target_settings(c: Config) -> dict[str, Any]:
    """Options of the recipe `resnet` for the network that the study quantises."""
    return {**GLYPH_TARGETS["resnet-mini"], "steps": c.target_steps, "samples": c.target_samples}


@study("quantization-limit")
class QuantizationLimitStudy(Study[Config]):
    """Quantises a small residual network without retraining and measures its loss."""

    presets = {
        "smoke": Config(levels=(8, 16), samples=60, target_steps=40, target_samples=400),
        "laptop": Config(),
        "paper": Config(samples=1000, curvature="gauss-newton", target_steps=64_000, target_samples=50_000),
    }
    claims = (FIXED, UNIFORM, ECSQ, ORDER)

    def measure(self, seed: int, directory: Path, progress: Progress) -> Measurement:
        c = self.config
        target = trained("resnet", data="glyphs", overrides=target_settings(c), seed=seed).target()
        progress(1, 2)
        diagonal = self._diagonal(target, seed)
        settings = c.levels if c.experiment == "levels" else LEVELS[c.method]
        rows = sweep(target, c.method, settings, diagonal=diagonal, centred=c.experiment == "bits")
        progress(2, 2)
        metrics = {"accuracy": target.metric()["accuracy"], "loss": target.metric()["loss"]}
        for row in rows:
            metrics |= {f"increase {row['setting']:g}": row["increase"], f"bits {row['setting']:g}": row[c.code]}
        rises = [max(row["increase"], 1e-4) for row in rows]
        if c.experiment == "levels":
            metrics["increase"] = math.exp(sum(map(math.log, rises)) / len(rises))
        else:
            metrics["bits"] = bits_at([(row[c.code], rise) for row, rise in zip(rows, rises, strict=True)], c.increase)
            if not math.isfinite(metrics["bits"]):
                raise ConfigError(f"the loss of {c.method} does not cross {c.increase} nat; choose another increase")
        line = ([row[c.code] for row in rows], rises)
        return Measurement(
            metrics, Curves({c.method: line}, x="bits a weight", y="loss increase"), notes={"rows": rows}
        )

    def _diagonal(self, target: Target, seed: int) -> dict[str, Tensor]:
        c, generator = self.config, torch.Generator().manual_seed(seed + 1)
        names = weight_names(target.module)
        if c.weights == "ones" or c.method in ("kmeans", "uniform"):  # nothing weighs by curvature
            return {name: torch.ones_like(target.module.get_parameter(name)) for name in names}
        found = floored(hessian_diag(target, names, n=c.samples, how=c.curvature, generator=generator), share=c.floor)
        if c.weights == "permuted":
            flat = torch.cat([value.flatten() for value in found.values()])
            mixed = flat[torch.randperm(len(flat), generator=generator)]
            sizes = [value.numel() for value in found.values()]
            found = {name: part.view_as(found[name]) for name, part in zip(found, mixed.split(sizes), strict=True)}
        return found
