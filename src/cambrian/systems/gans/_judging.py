"""How samples of this family are judged, the same for every system: modes of points, a judge's scores of images.

    points           modes_touched, modes_covered (of K), quality: the share within 3 sd of a mode
    labelled images  classifier_score (1 to K), mode_score, frechet and kernel distance in the judge's features
    stacks           the same over all combinations (1,000 of digits), and modes_reached, modes_missed, kl_to_uniform (nats)

Every judge reports its own accuracy on real images first (`judge_accuracy`); below 97 % it scores nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from cambrian.data import images as pictures
from cambrian.data.split import Data, TensorSplit
from cambrian.metrics.classifier_score import classifier_score, frechet_distance, kernel_distance, mode_score
from cambrian.metrics.judges import REQUIRED_ACCURACY, Judge, judge_of
from cambrian.metrics.modes import count_modes, counts_of, kl_to_uniform

RADIUS = 0.3  # points: a mode counts as touched by samples within this distance
JUDGED = 4000  # real images that a judge learns from, and is measured on


@dataclass(frozen=True)
class Panel:
    """A judge for each channel of a stacked image, or one for all: probabilities over the product of their classes."""

    judge: Judge
    channels: int

    @property
    def accuracy(self) -> float:
        """Of one judge on one channel of real images."""
        return self.judge.accuracy

    def _layers(self, images: Tensor) -> list[Tensor]:
        return list(images.split(1, dim=1)) if self.channels > 1 else [images]

    def probabilities(self, images: Tensor) -> Tensor:
        """`[N, K]`, or `[N, K^channels]` where the first channel is the most significant digit."""
        product, *others = [self.judge.probabilities(layer) for layer in self._layers(images)]
        for other in others:
            product = (product[:, :, None] * other[:, None, :]).flatten(1)
        return product

    def features(self, images: Tensor) -> Tensor:
        """`[N, D * channels]`."""
        return torch.cat([self.judge.features(layer) for layer in self._layers(images)], dim=1)


def panel_of(data: Data, stack: int = 1) -> Panel:
    """The judge of `data`'s labelled images, trained once and cached; it is up to the caller to ask its accuracy.

    `stack` grey images of `data` stand in the channels of one sample; the stacked glyphs say so themselves. Data of
    many classes say in `info["judge"]` what `limit` and `steps` of `judge_of` their judge takes.
    """
    characters = len(data.info.get("stacked", ""))
    if not characters:
        effort = data.info.get("judge", {})
        return Panel(judge_of(data.split("train"), data.split("test"), len(data.info["classes"]), **effort), stack)
    parts = [data.split(name)[torch.arange(min(JUDGED, len(data.split(name))))] for name in ("train", "test")]
    # the last character stands in the last channel: label = (a K + b) K + c
    last = [TensorSplit(image=part["image"][:, 2:], label=part["label"] % characters) for part in parts]
    return Panel(judge_of(*last, characters), 3)


def judged(data: Data, made: Tensor, stack: int = 1) -> dict[str, float]:
    """Figures of samples `made [N, ...]` on the CPU, images in [0, 1]; empty for images without labels."""
    if data.kind == "points":
        found = count_modes(made, torch.tensor(data.info["centres"]), data.info["deviation"], RADIUS)
        return {
            "modes_touched": float(found.touched),
            "modes_covered": float(found.covered),
            "quality": found.quality,
        }
    if len(data.info["classes"]) < 2:
        return {}
    panel = panel_of(data, stack)
    if panel.accuracy < REQUIRED_ACCURACY:
        return {"judge_accuracy": panel.accuracy}
    return {"judge_accuracy": panel.accuracy, **_scores(data, panel, made, stack)}


def _scores(data: Data, panel: Panel, made: Tensor, stack: int) -> dict[str, float]:
    seen = panel.features(_real(data, len(made), stack)), panel.features(made)
    probabilities = panel.probabilities(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the bias of few samples is the same in every arm that is compared
        score, _ = classifier_score(probabilities, splits=1)
    out = {"classifier_score": score, "frechet": frechet_distance(*seen), "kernel": kernel_distance(*seen)}
    classes = probabilities.shape[1]
    if panel.channels > 1:
        counts = counts_of(probabilities.argmax(1), classes)
        reached = float((counts > 0).sum())
        modes = {"modes_reached": reached, "modes_missed": classes - reached}
        return out | modes | {"kl_to_uniform": kl_to_uniform(counts)}
    shares = torch.bincount(label_sample(data), minlength=classes).clamp_min(1)
    return out | {"mode_score": mode_score(probabilities, shares)}


def _real(data: Data, count: int, stack: int) -> Tensor:
    """As many held-out images as there are samples (at most all), in [0, 1]; random stacks of them where asked."""
    test = data.split("test")
    images = pictures.unit(test[torch.arange(min(len(test), max(count, 2)))]["image"])
    if stack == 1:
        return images
    draw = torch.Generator().manual_seed(0)
    return torch.cat([images[torch.randperm(len(images), generator=draw)] for _ in range(stack)], dim=1)


def label_sample(data: Data, limit: int = 10_000) -> Tensor:
    """Labels int64 of the first `limit` training samples."""
    train = data.split("train")
    return train[torch.arange(min(limit, len(train)))]["label"]
